"""Beside what other packs do to a run, each stood for in a few lines."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from coarse import bring, coarse_subject
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import PatcherInjection, WrappersMP
from comfy.samplers import sampler_object
from dreamtuner_pack.dreamtuner_core.host.encoder.patch import on_wanted_side
from families import text, tiny_model
from graph import attend, empty_latent, guide, hard_mask, kept, sample, shared_model, soft_mask, subject
from host_graphs import GUIDERS
from host_patches import use
from torch import Tensor
from torch.nn import functional as F

Pack = Callable[[ModelPatcher], ModelPatcher]
FRAMES = 4
LATENT = (12, 8)  # of `sample`


def draw(model: ModelPatcher, batch: int = 1, **changes: Any) -> Tensor:
    settings: dict[str, Any] = {"positive": text("sd1", 1), "negative": text("sd1", 2), "steps": 2}
    return sample(model, **settings | {"latent": empty_latent(batch)} | changes)


def everything(model: ModelPatcher, one: Any = None) -> ModelPatcher:
    """S-S-A whose sides differ in all that they can, guidance, a region and an IP-Adapter."""
    one = one or subject(mask=hard_mask())
    region = torch.zeros(1, 96, 64)
    region[:, :, :32] = 1.0
    read = attend(attend(model, one, negative_weight=0.3), subject(seed=21), 2.0, region=region)
    return guide(bring(read, coarse_subject("IP-Adapter"), 0.5), probability=0.5)


def close(a: Tensor, b: Tensor) -> None:
    assert (a - b).abs().max() < 2e-4 * b.abs().max()


@pytest.fixture
def leaves_no_trace() -> Any:
    """Whatever the test did, plain sampling draws as before, to the bit."""
    before = draw(shared_model("sd1"))
    yield
    assert torch.equal(draw(shared_model("sd1")), before)


pytestmark = pytest.mark.usefixtures("leaves_no_trace", "encoder_files")


# --- modules put into the U-Net, and patched forwards ----------------------------------------------------------------


class Motion(torch.nn.Module):
    """Mixes the frames of a batch: fails where there are not as many."""

    def forward(self, x: Tensor) -> Tensor:
        frames = x.unflatten(0, (-1, FRAMES))
        return x + 0.1 * (frames.mean(dim=1, keepdim=True) - frames).flatten(0, 1)


def animated(model: ModelPatcher) -> ModelPatcher:
    """As AnimateDiff: modules behind the blocks, and norms over all frames while the U-Net runs."""

    def inject(patcher: ModelPatcher) -> None:
        for block in (patcher.model.diffusion_model.input_blocks[1], patcher.model.diffusion_model.middle_block):
            block.append(Motion())

    def eject(patcher: ModelPatcher) -> None:
        for block in (patcher.model.diffusion_model.input_blocks[1], patcher.model.diffusion_model.middle_block):
            del block[-1]

    def whole_frames(_: torch.nn.Module, given: tuple[Tensor]) -> None:
        assert len(given[0]) % FRAMES == 0

    def over_frames(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        unet = executor.class_obj
        hook = unet.time_embed.register_forward_pre_hook(whole_frames)
        try:
            return executor(x, *args, **kwargs)
        finally:
            hook.remove()

    patched = model.clone()
    patched.set_injections("motion", [PatcherInjection(inject, eject)])
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "over frames", over_frames)
    return patched


@pytest.mark.parametrize("ours_first", [True, False])
def test_frames_with_a_motion_model(ours_first: bool) -> None:
    """Every frame reads the subject; the reference pass has no frames, and sees the bare U-Net."""
    model = shared_model("sd1")
    blocks = [len(model.model.diffusion_model.input_blocks[1]), len(model.model.diffusion_model.middle_block)]
    one, bare = (subject(mask=soft_mask()) for _ in range(2))
    patched = animated(attend(model, one)) if ours_first else attend(animated(model), one)
    frames = draw(patched, FRAMES)
    assert not torch.allclose(frames, draw(animated(model), FRAMES), rtol=1e-2)
    draw(attend(model, bare))
    of_frames, expected = kept(model, one), kept(model, bare)
    assert len(of_frames) == len(expected) == 2
    for found, alone in zip(of_frames, expected):
        assert all(torch.equal(a, b) for layer in alone for a, b in zip(found[layer], alone[layer]))
    unet = model.model.diffusion_model
    assert [len(unet.input_blocks[1]), len(unet.middle_block)] == blocks


def first_block_cache(model: ModelPatcher) -> ModelPatcher:
    """As FBCache: the U-Net's own forward is covered while it is asked, and answers with what it kept."""
    kept: dict[str, Tensor] = {}

    def wrapper(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        unet = model.model.diffusion_model
        own = unet._forward

        def cached(x: Tensor, *more: Any, **kwargs: Any) -> Tensor:
            out = own(x, *more, **kwargs)
            blended = 0.5 * (out + kept["out"]) if kept.get("out", x[:0]).shape == out.shape else out
            kept["out"] = out
            return blended

        unet._forward = cached
        try:
            return apply_model(args["input"], args["timestep"], **args["c"])
        finally:
            del unet._forward

    patched = model.clone()
    patched.set_model_unet_function_wrapper(wrapper)
    return patched


def test_a_cache_over_the_forward_never_sees_the_reference() -> None:
    """The same graph draws the same, with the features computed and with them kept."""
    model, one = shared_model("sd1"), subject(size=LATENT)  # the reference is as large as the picture
    first = draw(first_block_cache(attend(model, one)), cfg=1.0)
    assert torch.equal(draw(first_block_cache(attend(model, one)), cfg=1.0), first)


# --- packs that call for some of the rows, with options of their own -------------------------------------------------


def reference_only(model: ModelPatcher) -> ModelPatcher:
    """As Advanced-ControlNet's Reference with nothing in it: blocks of its own, unwanted rows asked about once more.

    Asked about twice they give the same twice, so the picture is the one without it.
    """

    def block_forward(self: Any, x: Tensor, context: Any = None, transformer_options: Any = None) -> Tensor:
        options = {k: v for k, v in transformer_options.items() if k not in ("patches", "patches_replace")}
        options |= {"n_heads": self.n_heads, "dim_head": self.d_head}
        assert transformer_options["uuids"]
        unwanted = transformer_options.get("ref_uncond_idxs", [])
        replaced = transformer_options["patches_replace"].get("attn1", {})
        layer = (*transformer_options["block"], transformer_options["block_index"])

        def attention(n: Tensor) -> Tensor:
            if layer not in replaced:
                return self.attn1(n)
            q, k, v = self.attn1.to_q(n), self.attn1.to_k(n), self.attn1.to_v(n)
            out = self.attn1.to_out(replaced[layer](q, k, v, options))
            if unwanted:
                part = replaced[layer](q[unwanted], k[unwanted], v[unwanted], options)
                out[unwanted] = self.attn1.to_out(part)
            return out

        x = x + attention(self.norm1(x))
        for patch in transformer_options.get("patches", {}).get("middle_patch", ()):
            x = patch(x, options)
        n, replaced2 = self.norm2(x), transformer_options["patches_replace"].get("attn2", {})
        if layer in replaced2:
            k, v = self.attn2.to_k(context), self.attn2.to_v(context)
            x = x + self.attn2.to_out(replaced2[layer](self.attn2.to_q(n), k, v, options))
        else:
            x = x + self.attn2(n, context=context)
        return x + self.ff(self.norm3(x))

    def injected(executor: Any, *args: Any, **kwargs: Any) -> Any:
        blocks = [m for m in model.model.diffusion_model.modules() if isinstance(m, BasicTransformerBlock)]
        for block in blocks:
            block.forward = block_forward.__get__(block)
        try:
            return executor(*args, **kwargs)
        finally:
            for block in blocks:
                del block.forward

    def indexed(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        options = args[4]
        each = len(x) // len(options["cond_or_uncond"])
        places = [side for side in options["cond_or_uncond"] for _ in range(each)]
        options["ref_uncond_idxs"] = [i for i, side in enumerate(places) if side == 1]
        options.setdefault("patches_replace", {})
        return executor(x, *args, **kwargs)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "reference", injected)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "reference", indexed)
    return patched


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_call_for_some_of_the_rows(batch: int, ours_first: bool) -> None:
    model = shared_model("sd1")
    patched = reference_only(everything(model)) if ours_first else everything(reference_only(model))
    close(draw(patched, batch), draw(everything(model), batch))


def with_options(change: Callable[[dict[str, Any]], None]) -> Pack:
    """A pack that calls the model with options of its own."""

    def wrapper(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        options = dict(args["c"]["transformer_options"])
        change(options)
        return apply_model(args["input"], args["timestep"], **{**args["c"], "transformer_options": options})

    def pack(model: ModelPatcher) -> ModelPatcher:
        patched = model.clone()
        patched.set_model_unet_function_wrapper(wrapper)
        return patched

    return pack


def retyped(key: str, to: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda options: options.update({key: to(options[key])})


OPTIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no ids": lambda options: options.pop("uuids"),
    "one id too few": retyped("uuids", lambda ids: ids[:1]),
    "sides in a tuple": retyped("cond_or_uncond", tuple),
    "sides in a tensor": retyped("cond_or_uncond", torch.tensor),
    "no noise level": lambda options: options.pop("sigmas"),
    "no schedule": lambda options: options.pop("sample_sigmas"),
}


@pytest.mark.parametrize("change", OPTIONS.values(), ids=OPTIONS.keys())
def test_options_of_another_kind_say_the_same(change: Callable[[dict[str, Any]], Any]) -> None:
    model = attend(bring(shared_model("sd1"), coarse_subject("IP-Adapter"), 0.5), subject(), negative_weight=0.3)
    assert torch.equal(draw(with_options(change)(model)), draw(model))
    for guider in ("CFGGuider", "DualCFGGuider, regular"):
        for probability in (0.0, 1.0):  # Eq. 5, Eq. 4
            guided = guide(model, probability=probability)
            assert torch.equal(guided_by(guider, with_options(change)(guided)), guided_by(guider, guided))


def guided_by(guider: str, model: ModelPatcher) -> Tensor:
    latent = empty_latent(1)["samples"]
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    sigmas = torch.tensor([10.0, 2.0, 0.0])
    return GUIDERS[guider](model).sample(noise, latent, sampler_object("euler"), sigmas, disable_pbar=True, seed=5)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("positive", "negative"), [0]),
        (("positive", "negative", "empty_negative_prompt"), [0]),
        (("negative", "middle", "positive"), [1, 2]),
    ],
)
def test_without_ids_the_guider_tells_the_wanted_sides(names: tuple[str, ...], wanted: list[int]) -> None:
    """In the order in which the host's guiders ask."""
    conds = {name: [{"uuid": name}] for name in names}
    for asked in (names, [None] * len(names)):
        assert [i for i, of in enumerate(asked) if on_wanted_side(conds, of, i)] == wanted


# --- packs that add rows to the wanted side --------------------------------------------------------------------------


def couple(named: bool, times: int = 3) -> Pack:
    """As Attention Couple: the wanted rows several times at the cross-attention, with the same text: no difference."""

    def widen(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        places = options["cond_or_uncond"]
        wider = [1 if side == 1 else times for side in places]
        if named:
            options["cond_or_uncond_couple"] = [side for side, n in zip(places, wider) for _ in range(n)]
        return tuple(
            torch.cat([part for chunk, n in zip(x.chunk(len(places)), wider) for part in [chunk] * n])
            for x in (q, k, v)
        )

    def narrow(out: Tensor, options: dict[str, Any]) -> Tensor:
        places, rows = options["cond_or_uncond"], 0
        each = len(out) // sum(1 if side == 1 else times for side in places)
        parts = []
        for side in places:
            n = 1 if side == 1 else times
            parts.append(out[rows : rows + n * each].unflatten(0, (n, each)).mean(dim=0))
            rows += n * each
        return torch.cat(parts)

    def pack(model: ModelPatcher) -> ModelPatcher:
        patched = model.clone()
        patched.set_model_attn2_patch(widen)
        patched.set_model_attn2_output_patch(narrow)
        return patched

    return pack


def regions_of_krita(model: ModelPatcher, times: int = 3) -> ModelPatcher:
    """As its regions: the list of sides itself is made longer for the cross-attention, and shorter after it."""

    def widen(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        places = options["cond_or_uncond"]
        chunks = [x.chunk(len(places)) for x in (q, k, v)]
        wider = [1 if side == 1 else times for side in places]
        out = tuple(torch.cat([p for c, n in zip(of, wider) for p in [c] * n]) for of in chunks)
        places[:] = [side for side, n in zip(places, wider) for _ in range(n)]
        return out

    def narrow(out: Tensor, options: dict[str, Any]) -> Tensor:
        places = options["cond_or_uncond"]
        parts = list(out.chunk(len(places)))
        kept = [i for i, side in enumerate(places) if side == 1 or i == 0 or places[i - 1] != side]
        places[:] = [places[i] for i in kept]
        return torch.cat([parts[i] for i in kept])

    patched = model.clone()
    patched.set_model_attn2_patch(widen)
    patched.set_model_attn2_output_patch(narrow)
    return patched


WIDENED = {"named": couple(True), "twice, not named": couple(False, times=2), "in place": regions_of_krita}


@pytest.mark.parametrize("name", WIDENED)
@pytest.mark.parametrize("batch", [1, 2])
def test_rows_added_to_the_wanted_side(name: str, batch: int) -> None:
    model = shared_model("sd1")
    close(draw(WIDENED[name](everything(model)), batch), draw(everything(model), batch))


def test_unclear_rows_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"expected the 2 rows of the batch at a layer, .* calls it with 4 without marking them"
    ):
        draw(couple(False, times=3)(everything(shared_model("sd1"))))


# --- tiles, windows and regions --------------------------------------------------------------------------------------


def tiled(at_once: int, turn: int = 0) -> Pack:
    """As TiledDiffusion: overlapping tiles of 8 x 8, several in one call, tile after tile. turn: rolled by so much."""

    def wrapper(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        x = args["input"].roll((turn, turn), (-2, -1))
        corners = [(0, 0), (4, 0)] if x.shape[-1] == 8 else [(top, left) for top in (0, 4) for left in (0, 4, 8)]
        out, count = torch.zeros_like(x), torch.zeros_like(x)
        for first in range(0, len(corners), at_once):
            some = corners[first : first + at_once]
            tiles = torch.cat([x[..., top : top + 8, left : left + 8] for top, left in some])

            def repeated(value: Any, n: int = len(some)) -> Any:
                return torch.cat([value] * n) if isinstance(value, Tensor) else value

            answer = apply_model(tiles, repeated(args["timestep"]), **{k: repeated(v) for k, v in args["c"].items()})
            for (top, left), part in zip(some, answer.chunk(len(some))):
                out[..., top : top + 8, left : left + 8] += part
                count[..., top : top + 8, left : left + 8] += 1
        return (out / count).roll((-turn, -turn), (-2, -1))

    def pack(model: ModelPatcher) -> ModelPatcher:
        patched = model.clone()
        patched.set_model_unet_function_wrapper(wrapper)
        return patched

    return pack


@pytest.mark.parametrize(("batch", "turn"), [(1, 0), (2, 0), (1, 3)])
def test_tiles_one_by_one_and_several_at_once(batch: int, turn: int) -> None:
    """S-S-A, guidance, encoder and region: the same picture."""
    model = everything(shared_model("sd1"))
    close(draw(tiled(2, turn)(model), batch), draw(tiled(1, turn)(model), batch))


def test_a_tile_reads_its_part_of_the_region() -> None:
    """Where the region is empty over a whole tile, and no other tile lies there, the subject is not seen."""
    model, region = shared_model("sd1"), torch.zeros(1, 96, 64)
    region[:, :32] = 1.0  # latents 0 to 3: of the first tile alone
    without = draw(tiled(2)(model), steps=1, cfg=1.0)
    with_region = draw(tiled(2)(attend(model, subject(), region=region)), steps=1, cfg=1.0)
    close(with_region[..., 8:, :], without[..., 8:, :])
    assert not torch.allclose(with_region[..., :4, :], without[..., :4, :], rtol=1e-2)


def test_a_region_is_refused_where_its_place_cannot_be_known() -> None:
    def smaller(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        x = F.interpolate(args["input"], scale_factor=0.5)
        return F.interpolate(apply_model(x, args["timestep"], **args["c"]), scale_factor=2.0)

    model = attend(shared_model("sd1"), subject(), region=soft_mask(96, 64))
    model.set_model_unet_function_wrapper(smaller)
    with pytest.raises(ValueError, match="expected whole pictures, or parts cut out of them, to lay the region on"):
        draw(model)


def test_a_region_for_each_picture_of_a_batch() -> None:
    model, one = shared_model("sd1"), subject()
    regions = torch.stack([soft_mask(96, 64)[0], hard_mask(96, 64)[0], 1 - hard_mask(96, 64)[0]])
    together = draw(attend(model, one, region=regions), 3)
    for i in range(3):
        close(together[i], draw(attend(model, one, region=regions[i : i + 1]), 3)[i])
    with pytest.raises(ValueError, match="one for each of the 2 pictures of the batch, but got 3"):
        draw(attend(model, one, region=regions), 2)


def test_windows_of_a_batch_with_a_region_for_each() -> None:
    """As context windows of frames: the model is asked about some of the batch at a time."""

    def windows(executor: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, options: Any) -> list[Tensor]:
        parts = [executor(model, conds, x[i : i + 2], timestep[i : i + 2], options) for i in (0, 2)]
        return [torch.cat(of_side) for of_side in zip(*parts)]

    regions = torch.stack([soft_mask(96, 64, seed)[0] for seed in range(4)])
    model = attend(shared_model("sd1"), subject(), region=regions)
    windowed = model.clone()
    windowed.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "windows", windows)
    close(draw(windowed, 4), draw(model, 4))


# --- a subject that is never read ------------------------------------------------------------------------------------


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "DreamTuner" in record.message]


def past_the_unet(model: ModelPatcher) -> ModelPatcher:
    """As DeepCache: an answer that does not come by way of the model's own call."""
    patched = model.clone()
    patched.set_model_unet_function_wrapper(lambda _, args: 0.9 * args["input"])
    return patched


@pytest.mark.parametrize("pack", [lambda m: attend(m, subject()), lambda m: bring(m, coarse_subject())])
def test_an_unread_subject_warns(pack: Pack, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        draw(pack(shared_model("sd1")))
        assert not ours(caplog)
        draw(past_the_unet(pack(shared_model("sd1"))))
    [warning] = ours(caplog)
    assert "the subject was never looked at in this run" in warning


def test_a_merge_that_leaves_the_subject_out_warns(caplog: pytest.LogCaptureFixture) -> None:
    """Of what the second model was, through clones of it; the first keeps its subject."""
    model = shared_model("sd1")
    with_subject = attend(model, subject()).clone()

    def merge(first: ModelPatcher, second: ModelPatcher) -> ModelPatcher:
        return use("model_merging", "ModelMergeSimple", model1=first, model2=second, ratio=0.5)

    with caplog.at_level(logging.WARNING):
        plain = draw(merge(model, model))
        assert not torch.equal(draw(merge(with_subject, model)), plain)
        assert not ours(caplog)
        assert torch.equal(draw(merge(model, with_subject)), plain)
    [warning] = ours(caplog)
    assert "the subject on it is left out" in warning


def test_a_run_that_another_pack_repeats_is_the_same_each_time() -> None:
    """Within one call of the guider: nothing of the first run hangs on the second."""
    pictures: list[Tensor] = []

    def twice(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        pictures.extend(executor(*args, **kwargs) for _ in range(2))
        return pictures[-1]

    repeated = shared_model("sd1").clone()
    repeated.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "another pack", twice)
    draw(everything(repeated))
    assert torch.equal(*pictures)


def test_each_picture_of_a_batch_has_its_own_region() -> None:
    left = torch.zeros(1, 96, 64)
    left[:, :, :32] = 1.0
    one, other, both = (
        draw(attend(shared_model("sd1"), subject(), region=region), 2)
        for region in (left, 1 - left, torch.cat([left, 1 - left]))
    )
    close(both, torch.cat([one[:1], other[1:]]))
    assert (one - other).abs().max() > 1e-2 * one.abs().max()


def test_what_another_pack_says_of_the_sides_within_a_call_is_not_asked() -> None:
    """Who is who is found out at the door, before any other pack is at work in the call."""

    def turned_round(
        executor: Any, x: Tensor, t: Tensor, c: Any = None, cross: Any = None, control: Any = None,
        transformer_options: Any = None, **more: Any,
    ) -> Tensor:  # fmt: skip
        told = {name: transformer_options[name][::-1] for name in ("cond_or_uncond", "uuids")}
        return executor(x, t, c, cross, control, transformer_options | told, **more)

    other = shared_model("sd1").clone()
    other.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "another pack", turned_round)
    assert torch.equal(draw(everything(other)), draw(everything(shared_model("sd1"))))


def test_the_reference_pass_is_alone_and_ends_at_the_last_layer_that_it_reads() -> None:
    """A forward that another pack put over a block's own sees the pictures alone, and so does the U-Net's end."""
    model, calls = tiny_model("sd1"), Counter[str]()
    unet = model.model.diffusion_model
    block = next(m for m in unet.modules() if isinstance(m, BasicTransformerBlock))
    forward = block.forward

    def theirs(*args: Any, **kwargs: Any) -> Tensor:
        calls["block"] += 1
        return forward(*args, **kwargs)

    block.forward = theirs
    unet.out.register_forward_hook(lambda *_: calls.update(["end"]))
    draw(attend(model, subject()), steps=2, cfg=1.0)
    assert calls == {"block": 2, "end": 2}
