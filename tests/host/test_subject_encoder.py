"""Load and Apply Subject Encoder: files, the tower, Eq. 1 in the host's sampler, no trace, and what stacks with it."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.clip_vision
import comfy.model_management
import execution
import folder_paths
import pytest
import torch
from coarse import bring, coarse_subject, fresh, loaded
from comfy.model_patcher import ModelPatcher
from dreamtuner_pack.dreamtuner_core.encoder.blocks import transformer_blocks
from dreamtuner_pack.dreamtuner_core.encoder.model import EncoderConfig, SubjectEncoder, inserted
from dreamtuner_pack.dreamtuner_core.guidance import Guidance
from dreamtuner_pack.dreamtuner_core.host.encoder.load import clip_states, on_a_square
from dreamtuner_pack.nodes.subject import EncodeSubjectImage
from dreamtuner_pack.nodes.subject_encoder import ApplySubjectEncoder, LoadSubjectEncoder
from families import SHAPES, draw_weights, text, tiny_model
from graph import (
    LATENT,
    SEED,
    attend,
    counted_passes,
    difference,
    draw,
    empty_latent,
    guide,
    hard_mask,
    lora,
    options_of,
    shared_model,
    subject,
)
from graph import sample as by_the_sampler
from host_graphs import GRAPHS, GUIDERS
from host_patches import PATCHES, check, use
from images import encode, mask, picture, vae
from plain import Applied
from plain_encoder import CLIP, FILES, TOWER, Coarse, file_name, layers_of, sea, tiny_clip
from plain_encoder import sample as plainly_sampled
from safetensors.torch import load_file, save_file
from strangers import flux, video
from torch import Tensor

import nodes

pytestmark = pytest.mark.usefixtures("encoder_files")
STEPS = 3
NAN = float("nan")
every_family = pytest.mark.parametrize("family", SHAPES)
every_kind = pytest.mark.parametrize("kind", ["own tower", "IP-Adapter plus"])  # one for each formula


# --- what is drawn, against the plain writing ------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """coarse, applied: of a kind and family, what is at work. guidance: of Reference Guidance, or none."""

    coarse: Callable[[str, str], list[Coarse]]
    applied: Callable[[str, str], list[Applied]] = lambda kind, family: []
    guidance: dict[str, float] | None = None
    cfg: float = 5.0
    batch: int = 1
    v_prediction: bool = False


def one(kind: str, family: str) -> list[Coarse]:
    return [Coarse(coarse_subject(kind, family))]


def read(kind: str, family: str) -> list[Applied]:
    return [Applied(coarse_subject(kind, family))]


CASES = {
    "alone": Case(one),
    "cfg 1, batch of two": Case(one, cfg=1.0, batch=2),
    "from 30 to 80 percent": Case(lambda k, f: [Coarse(coarse_subject(k, f), 1.0, 0.3, 0.8)], read),
    "two subjects": Case(
        lambda k, f: [Coarse(coarse_subject(k, f)), Coarse(coarse_subject(k, f, 21), 0.3)],
        lambda k, f: [Applied(coarse_subject(k, f)), Applied(subject(f, hard_mask(), seed=33))],
    ),
    "and S-S-A, v-prediction": Case(one, read, v_prediction=True),
    "and both guidances": Case(
        one, read, {"scale": 2.0, "probability": 0.5, "dt": 30.0, "dt_uncond": 60.0}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@every_family
@every_kind
def test_the_host_samples_what_the_method_writes(
    name: str, family: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, steps = CASES[name], 4
    model = patched = shared_model(family, v_prediction=case.v_prediction)
    coarse, applied = case.coarse(kind, family), case.applied(kind, family)
    for c in coarse:
        patched = bring(patched, c.subject, c.strength, c.start, c.end)
    for a in applied:
        patched = attend(patched, a.subject, a.weight, a.start, a.end, a.region)
    if case.guidance:
        patched = guide(patched, **case.guidance)
    latent = {"samples": torch.zeros(case.batch, 4, *LATENT)}
    found = by_the_sampler(patched, text(family, 1), text(family, 2), latent, steps=steps, cfg=case.cfg)
    noise = torch.randn(case.batch, 4, *LATENT, generator=torch.manual_seed(SEED))
    guidance = Guidance(*case.guidance.values()) if case.guidance else None
    sides = text(family, 1), text(family, 2)
    expected = plainly_sampled(
        family, model, *sides, noise, coarse, applied, guidance, SEED, steps, case.cfg, monkeypatch
    )
    assert difference(found, expected) < 2e-5
    without = by_the_sampler(model, *sides, latent, steps=steps, cfg=case.cfg)
    assert difference(found, without) > 1e-2


@every_family
def test_training_and_the_node_insert_the_same(family: str) -> None:
    """`inserted` hooks the attentions of the same U-Net: no middle patch, none of this pack's wrappers."""
    model, seen = shared_model(family), coarse_subject("own tower", family)
    half = {"positive": text(family, 1), "negative": text(family, 1), "cfg": 1.0}  # every row is wanted
    encoding, unet = seen.encoding, model.model.diffusion_model
    with inserted(encoding.encoder.model, transformer_blocks(unet), encoding.tokens, 0.7):
        trained = draw(model, family, **half)
    torch.testing.assert_close(draw(bring(model, seen, 0.7), family, **half), trained, rtol=1e-4, atol=1e-4)


def a_call(family: str) -> tuple[Any, dict[str, Any]]:
    """A tiny U-Net of that family in float64, fit for autograd, and what to call it with."""
    unet = tiny_model(family, torch.float64).model.diffusion_model
    [[context, _]], randn = text(family, 1), partial(torch.randn, generator=torch.manual_seed(2), dtype=torch.float64)
    told: dict[str, Any] = {"x": randn(2, 4, *LATENT), "context": context.double().expand(2, -1, -1)}
    told |= {"timesteps": torch.tensor([40.0, 700.0], dtype=torch.float64)}
    return unet, told | ({"y": randn(2, SHAPES[family]["adm_in_channels"])} if family == "sdxl" else {})


@every_family
def test_forward_and_gradient_are_those_of_eq_1(family: str) -> None:
    """In float64, on every family's own U-Net; and before it is trained, an encoder changes no bit."""
    with torch.inference_mode(False), torch.enable_grad():
        unet, told = a_call(family)
        encoder = SubjectEncoder(EncoderConfig.for_unet(unet, family, tower=TOWER)).double()
        tokens = torch.randn(1, 16, SHAPES[family]["context_dim"], dtype=torch.float64, requires_grad=True)
        before = unet(**told)
        with inserted(encoder, transformer_blocks(unet), tokens):
            assert torch.equal(unet(**told), before)

        draw_weights(encoder, 4)
        weights = dict(encoder.attentions.requires_grad_(True).named_parameters(prefix="attentions"))
        with inserted(encoder, transformer_blocks(unet), tokens, 0.7):
            found = unet(**told)
        plainly = {"middle_patch": [lambda h, options: h + 0.7 * sea(weights, tokens, h, options)]}
        expected = unet(**told, transformer_options={"patches": plainly})
        assert difference(found, before) > 1e-2
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        learned = [tokens, *weights.values()]
        both = (torch.autograd.grad(out.square().sum(), learned) for out in (found, expected))
        assert all(difference(a, b) < 1e-9 for a, b in zip(*both))


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
def test_in_half_precision_it_is_the_same_picture(kind: str, dtype: torch.dtype) -> None:
    exact = draw(bring(shared_model("sd1"), coarse_subject(kind)))
    half = draw(bring(shared_model("sd1", dtype), coarse_subject(kind)))
    rounding = difference(draw(shared_model("sd1", dtype)), draw(shared_model("sd1")))
    assert difference(half, exact) < 3 * rounding


# --- no trace --------------------------------------------------------------------------------------------------------

NOTHING: dict[str, Callable[[ModelPatcher], ModelPatcher]] = {
    "strength 0": partial(bring, strength=0.0),
    "a range between two steps": partial(bring, start=0.1, end=0.2),
    "an IP-Adapter at strength 0": lambda m: bring(m, coarse_subject("IP-Adapter"), 0.0),
    "an IP-Adapter between two steps": lambda m: bring(m, coarse_subject("IP-Adapter"), start=0.1, end=0.2),
}


@pytest.mark.parametrize("patch", NOTHING.values(), ids=NOTHING.keys())
def test_what_sees_nothing_changes_nothing(patch: Callable) -> None:
    model = shared_model("sd1")
    assert torch.equal(draw(patch(model)), draw(model))
    assert torch.equal(draw(patch(attend(model, fresh()))), draw(attend(model, fresh())))


@every_kind
def test_after_use_the_model_draws_as_before(kind: str) -> None:
    model = shared_model("sd1")
    before = draw(model)
    patched = bring(model, coarse_subject(kind))
    drawn = draw(patched)
    assert not torch.allclose(drawn, before, rtol=1e-2)
    assert torch.equal(draw(model), before)
    assert torch.equal(draw(patched), drawn)
    assert torch.equal(draw(patched.clone().clone()), drawn)


@every_kind
def test_no_random_number_is_drawn_from_the_hosts_generator(kind: str) -> None:
    states = []
    for model in (shared_model("sd1"), bring(shared_model("sd1"), coarse_subject(kind))):
        draw(model, sampler="euler_ancestral")
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("call", range(2 * STEPS))
def test_a_run_that_dies_anywhere_leaves_nothing(call: int) -> None:
    model, calls = shared_model("sd1"), iter(range(100))
    plain, expected, patched = draw(model), draw(everything(model, one=fresh())), everything(model, one=fresh())
    before = options_of(patched)[1:]

    def fail(*_: Any) -> None:
        if next(calls) == call:
            raise comfy.model_management.InterruptProcessingException

    handle = model.model.diffusion_model.middle_block[0].register_forward_pre_hook(fail)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            draw(patched)
    finally:
        handle.remove()
    assert torch.equal(draw(model), plain)
    assert options_of(patched)[1:] == before
    assert torch.equal(draw(patched), expected)


@every_kind
def test_the_place_in_a_batch_changes_no_more_than_without_the_pack(kind: str) -> None:
    def unlike(model: ModelPatcher) -> float:
        together = draw(model, latent=empty_latent(3))
        alone = torch.cat([draw(model, latent=empty_latent() | {"batch_index": [i]}) for i in range(3)])
        return float((together - alone).abs().max() / together.std())

    model = shared_model("sd1")
    assert unlike(bring(model, coarse_subject(kind))) <= 4 * unlike(model) + 1e-6


# --- with S-S-A ------------------------------------------------------------------------------------------------------


def test_the_order_of_the_nodes_does_not_matter() -> None:
    model, seen = shared_model("sd1"), coarse_subject()
    expected = draw(guide(attend(bring(model, seen), seen)))
    assert torch.equal(draw(bring(guide(attend(model, seen)), seen)), expected)
    assert torch.equal(draw(attend(bring(guide(model), seen), seen)), expected)


@every_kind
def test_the_reference_is_seen_with_its_own_encoder(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of it is another's for each strength, and stays for each."""
    model, seen = shared_model("sd1"), fresh(kind)
    strengths = (0.0, 0.5)
    first = {}
    for strength in strengths:
        with counted_passes(monkeypatch) as computed:
            first[strength] = draw(bring(attend(model, seen), seen, strength))
        assert len(computed) == STEPS
        assert torch.equal(draw(bring(attend(model, fresh(kind)), fresh(kind), strength)), first[strength])
    with counted_passes(monkeypatch) as computed:
        again = {strength: draw(bring(attend(model, seen), seen, strength)) for strength in strengths}
    assert not computed
    assert all(torch.equal(again[strength], first[strength]) for strength in strengths)
    assert not torch.equal(first[0.0], first[0.5])


def test_anothers_encoder_is_not_in_a_subjects_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen, other = shared_model("sd1"), fresh(), coarse_subject(seed=21)
    draw(attend(model, seen))
    with counted_passes(monkeypatch) as computed:
        draw(bring(attend(model, seen), other))
    assert not computed


def test_another_file_is_another_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = shared_model("sd1"), fresh()
    draw(bring(attend(model, seen), seen))
    other = replace(seen, encoding=coarse_subject("CLIP").encoding)  # the same latent
    with counted_passes(monkeypatch) as computed:
        drawn = draw(bring(attend(model, other), other))
    assert computed
    assert torch.equal(drawn, draw(bring(attend(model, fresh("CLIP")), fresh("CLIP"))))


# --- what stacks with it ---------------------------------------------------------------------------------------------

OTHERS = [
    "FreeU V2", "PAG", "SAG", "HyperTile", "deep shrink", "perp-neg", "EasyCache", "LoRA", "IPAdapter",
    "another pack's hidden states",
]  # fmt: skip
DRAWN = [
    "ControlNet", "areas on both sides", "masks in their bounds", "LoRA hook on one side", "cfg 1", "a noise mask",
    "7x11 latents",
]  # fmt: skip


def everything(model: ModelPatcher, strength: float = 0.5, one: Any | None = None) -> ModelPatcher:
    """Both kinds of encoder; S-S-A only while they are at work, so that strength 0 is nothing at all."""
    both = bring(bring(model, one, strength), coarse_subject("IP-Adapter"), strength)
    return attend(both, one or coarse_subject(), 3.0 if strength else 0.0)


@pytest.mark.parametrize("name", OTHERS)
def test_stacks_with(name: str) -> None:
    """The pack's nodes after the other one, and before it; and the other one is still seen."""
    other, model = PATCHES[name], shared_model("sd1")
    drawn = partial(_steady, positive=text("sd1", 1))
    after = check(drawn, everything, other(model))
    assert torch.equal(drawn(other(everything(model))), after)
    assert not torch.equal(after, drawn(everything(model)))


def _steady(model: ModelPatcher, **changes: Any) -> Tensor:
    torch.manual_seed(0)  # HyperTile and token merging draw from the global generator
    return draw(model, **changes)


@pytest.mark.parametrize("name", DRAWN)
def test_draws_on(name: str) -> None:
    check(GRAPHS[name], everything)


@pytest.mark.parametrize("name", GUIDERS)
def test_every_guider_has_a_wanted_side(name: str) -> None:
    def custom(model: ModelPatcher) -> Tensor:
        return use(
            "custom_sampler",
            "SamplerCustomAdvanced",
            noise=use("custom_sampler", "RandomNoise", noise_seed=SEED),
            guider=GUIDERS[name](model),
            sampler=use("custom_sampler", "KSamplerSelect", sampler_name="euler"),
            sigmas=use("custom_sampler", "BasicScheduler", model=model, scheduler="normal", steps=2, denoise=1.0),
            latent_image=empty_latent(),
        )["samples"]

    drawn = check(custom, everything)
    if name == "CFGGuider":
        assert torch.equal(drawn, draw(everything(shared_model("sd1")), steps=2))


@every_kind
def test_both_sides_in_one_batch_or_apart(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bring(shared_model("sd1"), coarse_subject(kind))
    together = draw(model)
    monkeypatch.setattr(model.model, "memory_required", lambda *_, **__: 1e30)
    torch.testing.assert_close(draw(model), together, rtol=1e-4, atol=1e-3)


def test_a_unet_with_a_lora_is_still_of_the_family() -> None:
    model = lora(shared_model("sd1"), 0.8)
    assert torch.equal(draw(bring(model)), draw(lora(bring(shared_model("sd1")), 0.8)))


# --- memory ----------------------------------------------------------------------------------------------------------


def test_the_weights_are_the_hosts_to_load_and_to_unload() -> None:
    seen = coarse_subject()
    model = bring(shared_model("sd1"), seen)
    comfy.model_management.unload_all_models()
    expected = draw(model)
    weights = seen.encoding.encoder.model
    assert any(one.model is not None and one.model.model is weights for one in models())
    comfy.model_management.unload_all_models()
    assert not any(one.model is not None and one.model.model is weights for one in models())
    assert torch.equal(draw(model), expected)


def test_a_clone_copies_no_weights() -> None:
    """The host deep-copies model_options at each clone, and clones what is loaded along."""
    model = bring(bring(shared_model("sd1")), coarse_subject(seed=21))
    [along] = model.clone().get_additional_models()
    assert along.model is coarse_subject().encoding.encoder.model
    assert str(model.model_options) == str(bring(shared_model("sd1")).model_options)
    assert "tensor" not in str(model.model_options)


def models() -> list[Any]:
    return comfy.model_management.current_loaded_models


def test_keys_and_values_are_projected_once_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, layers = coarse_subject(), coarse_subject().encoding.encoder.model.layers()
    kind = type(next(iter(layers.values())))
    project, made = kind.keys_values, []
    monkeypatch.setattr(kind, "keys_values", lambda layer, tokens: made.append(1) or project(layer, tokens))
    draw(bring(attend(shared_model("sd1"), fresh()), seen), steps=5)
    assert len(made) == len(layers)


# --- pictures --------------------------------------------------------------------------------------------------------


def test_a_picture_is_encoded_where_the_subject_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, by Encode Subject Image; no run encodes it again."""
    encoder = loaded("own tower", "sd1")
    tower, seen = encoder.model.tower, []
    embed = type(tower).embed
    monkeypatch.setattr(type(tower), "embed", lambda self, x: seen.append(1) or embed(self, x))
    encoded, _ = encode(picture(), mask=mask(), subject_encoder=encoder, caption=text("sd1", 3))
    assert encoded.encoding.tokens.shape == (1, 16, SHAPES["sd1"]["context_dim"])
    model = bring(attend(shared_model("sd1"), encoded), encoded)
    draw(model)
    draw(model, seed=8)
    assert len(seen) == 1


def test_the_hosts_cache_encodes_a_picture_once_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs of one graph by the host's executor, with another seed: two pictures, one encoding, one loading."""
    made: list[str] = []

    def node(kind: str, output: str, make: Callable[..., Any], **inputs: str) -> type:
        told = {name: (socket,) for name, socket in inputs.items()}

        def run(self: Any, **given: Any) -> tuple:
            made.append(kind)
            return (make(**given),)

        types = {"RETURN_TYPES": (output,), "FUNCTION": "run", "CATEGORY": "tests", "OUTPUT_NODE": output == "LATENT"}
        return type(kind, (), {"INPUT_TYPES": lambda: {"required": told}, "run": run, **types})

    own = {
        "Model": node("Model", "MODEL", lambda: shared_model("sd1")),
        "Picture": node("Picture", "IMAGE", picture),
        "VAE": node("VAE", "VAE", vae),
        "Text": node("Text", "CONDITIONING", lambda: text("sd1", 1)),
        "Draw": node(
            "Draw", "LATENT", lambda model, seed: {"samples": draw(model, seed=seed)}, model="MODEL", seed="INT"
        ),
    }
    ours = {
        kind.define_schema().node_id: kind for kind in (LoadSubjectEncoder, EncodeSubjectImage, ApplySubjectEncoder)
    }
    for name, kind in {**own, **ours}.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, kind)
    for kind in ours.values():
        monkeypatch.setattr(kind, "execute", classmethod(counted(made, kind.execute.__func__)))
    graph = {
        "1": {"class_type": "DreamTunerLoadSubjectEncoder", "inputs": {"subject_encoder": "sd1 own tower.safetensors"}},
        **{str(i): {"class_type": name, "inputs": {}} for i, name in enumerate(list(own)[:4], start=2)},
        "6": {
            "class_type": "DreamTunerEncodeSubjectImage",
            "inputs": {"image": ["3", 0], "vae": ["4", 0], "caption": ["5", 0], "subject_encoder": ["1", 0]},
        },
        "7": {
            "class_type": "DreamTunerApplySubjectEncoder",
            "inputs": {
                "model": ["2", 0],
                "subject": ["6", 0],
                "strength": 0.3,
                "start_percent": 0.0,
                "end_percent": 1.0,
            },
        },
    }
    server = SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *_: None)
    newer = "cache_args" in inspect.signature(execution.PromptExecutor).parameters
    executor = execution.PromptExecutor(
        server, **({"cache_args": {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}} if newer else {})
    )
    for seed in (1, 2):
        prompt = graph | {"8": {"class_type": "Draw", "inputs": {"model": ["7", 0], "seed": seed}}}
        asyncio.run(executor.execute_async(prompt, f"run {seed}", {}, ["8"]))
        assert executor.success, executor.status_messages[-1]
    assert {kind: made.count(kind) for kind in made} == {
        **dict.fromkeys([*list(own)[:4], *ours], 1), "Draw": 2,
    }  # fmt: skip


def counted(made: list[str], work: Callable[..., Any]) -> Callable[..., Any]:
    def execute(cls: type, *args: Any, **kwargs: Any) -> Any:
        made.append(cls.define_schema().node_id)
        return work(cls, *args, **kwargs)

    return execute


def test_without_an_encoder_the_subject_is_the_same() -> None:
    plain, _ = encode(picture(), mask=mask())
    encoded, _ = encode(picture(), mask=mask(), subject_encoder=loaded("CLIP", "sd1"))
    assert torch.equal(plain.latent, encoded.latent)
    assert plain.encoding is None


def test_the_clips_hidden_states_are_those_after_each_layer() -> None:
    """As transformers counts them: 0 is what goes into the first layer."""
    clip = tiny_clip()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    states, embedding = clip_states(clip, pixels, (5, 0, 2, 6))
    vision = clip.model.vision_model
    h = vision.pre_layrnorm(vision.embeddings(pixels))
    after = [h.clone()]
    for layer in vision.encoder.layers:
        h = layer(h, None, comfy.ldm.modules.attention.optimized_attention_for_device(h.device, small_input=True))
        after.append(h.clone())
    assert torch.equal(states, torch.stack([after[i] for i in (5, 0, 2, 6)], dim=1).float())
    out = clip.model(pixel_values=pixels, intermediate_output=-2)
    assert torch.equal(states[:, 0], out[1].float())  # the host's own penultimate one
    assert torch.equal(embedding, out[2].float())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in clip.model.modules())


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40), (1, 7)])
def test_nothing_of_a_picture_is_cut_off(shape: tuple[int, int]) -> None:
    image = torch.zeros(1, *shape, 3)
    square = on_a_square(image)
    assert square.shape == (1, max(shape), max(shape), 3)
    assert int((square == 0).sum()) == 3 * math.prod(shape)
    assert square.max() == (1.0 if shape[0] != shape[1] else 0.0)


def test_an_ip_adapter_knows_what_stands_for_no_picture() -> None:
    """A zero embedding (plain), a picture of zeros after preprocessing (plus)."""
    plain, plus = (coarse_subject(kind).encoding for kind in ("IP-Adapter", "IP-Adapter plus"))
    zeros = torch.zeros(1, 3, 32, 32)
    expected = plain.encoder.model.tokens(torch.zeros(1, CLIP["projection"]))
    torch.testing.assert_close(plain.without, expected)
    states = tiny_clip().model(pixel_values=zeros, intermediate_output=-2)[1].float()
    torch.testing.assert_close(plus.without, plus.encoder.model.tokens(states))
    assert plain.without.shape == plain.tokens.shape == (1, 4, SHAPES["sd1"]["context_dim"])
    assert plus.without.shape == plus.tokens.shape == (1, 6, SHAPES["sd1"]["context_dim"])


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_list_has_every_folders_safetensors(encoder_files: Path, tmp_path: Path) -> None:
    (encoder_files / "pickled.ckpt").write_bytes(b"x")
    more = tmp_path / "more" / "below"
    more.mkdir(parents=True)
    FILES["own tower"](more / "deep.safetensors", "sd1")
    folder_paths.add_model_folder_path("subject_encoders", str(tmp_path / "more"))
    names = LoadSubjectEncoder.define_schema().inputs[0].options
    assert file_name("CLIP", "sd2") in names
    assert str(Path("below", "deep.safetensors")) in names
    assert "pickled.ckpt" not in names
    assert str(Path(folder_paths.models_dir) / "subject_encoders") in folder_paths.get_folder_paths("subject_encoders")
    assert LoadSubjectEncoder.execute(str(Path("below", "deep.safetensors"))).args[0].model.config.family == "sd1"


def test_a_changed_file_is_read_again(encoder_files: Path) -> None:
    path = encoder_files / "changing.safetensors"
    FILES["own tower"](path, "sd1")
    before = LoadSubjectEncoder.fingerprint_inputs(path.name)
    assert LoadSubjectEncoder.fingerprint_inputs(path.name) == before
    FILES["own tower"](path, "sd2")
    assert LoadSubjectEncoder.fingerprint_inputs(path.name) != before
    assert LoadSubjectEncoder.fingerprint_inputs("none.safetensors") == ""


def spoilt(folder: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None], kind: str = "own tower") -> str:
    """A file of that kind with its weights or its metadata changed; its name."""
    from safetensors import safe_open

    source = folder / file_name(kind, "sd1")
    weights = load_file(source)
    with safe_open(source, "pt") as file:
        metadata = dict(file.metadata() or {})
    change(weights, metadata)
    save_file(weights, folder / "spoilt.safetensors", metadata)
    return "spoilt.safetensors"


def raw(folder: Path, content: bytes) -> str:
    (folder / "raw.safetensors").write_bytes(content)
    return "raw.safetensors"


def header(shape: list[int], length: int) -> bytes:
    """A safetensors file whose header claims that shape."""
    text = json.dumps({"image_proj.latents": {"dtype": "F32", "shape": shape, "data_offsets": [0, length]}}).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 16


def configured(**changes: Any) -> Callable[[dict, dict], None]:
    return lambda w, m: m.update(config=json.dumps(json.loads(m["config"]) | changes))


def first(weights: dict[str, Tensor]) -> str:
    return sorted(weights)[0]


def own_bytes(folder: Path) -> bytes:
    return (folder / file_name("own tower", "sd1")).read_bytes()


BAD_FILES: dict[str, tuple[Callable[[Path], str], str]] = {
    "no such file": (lambda f: "none.safetensors", "there is no 'none.safetensors' in models/subject_encoders"),
    "out of the folder": (lambda f: "../../etc/passwd", "there is no '../../etc/passwd' in models/"),
    "an absolute name": (lambda f: str(f / file_name("CLIP", "sd1")), "there is no '/.*' in models/subject_encoders"),
    "empty": (lambda f: raw(f, b""), "is not a complete safetensors file"),
    "a pickle": (lambda f: raw(f, b"\x80\x04\x95" + b"x" * 99), "is not a complete safetensors file"),
    "truncated": (lambda f: raw(f, own_bytes(f)[:-100]), "is not a complete safetensors file"),
    "a huge header": (lambda f: raw(f, (2**60).to_bytes(8, "little")), "is not a complete safetensors file"),
    "a huge shape": (lambda f: raw(f, header([1, 10**9, 10**9], 16)), "is not a complete safetensors file"),
    "another model": (lambda f: raw(f, _saved(f, {"model.x": torch.zeros(2)})), "is no subject encoder .*model.x"),
    "no weights": (lambda f: raw(f, _saved(f, {})), "is no subject encoder"),
    "a newer version": (lambda f: spoilt(f, lambda w, m: m.update(version="7")), "is of version 7.* reads 1"),
    "no configuration": (lambda f: spoilt(f, lambda w, m: m.update(config="{")), "no readable config"),
    "a deep configuration": (
        lambda f: spoilt(f, lambda w, m: m.update(config="[" * 10**5)), "no readable config"
    ),
    "no training": (lambda f: spoilt(f, lambda w, m: m.update(training="[]")), "no readable training"),
    "a huge configuration": (
        lambda f: spoilt(f, configured(context_width=10**12)), "cannot be built: context_width must be"
    ),
    "another configuration": (lambda f: spoilt(f, configured(context_width=64)), "of shape .*, but its kind has"),
    "more blocks": (lambda f: spoilt(f, configured(res_blocks=9)), r"misses \d+ of its \d+ weights, such as res_b"),
    "missing weights": (lambda f: spoilt(f, lambda w, m: w.__delitem__(first(w))), "misses 1 of its"),
    "more weights": (
        lambda f: spoilt(f, lambda w, m: w.update(more=torch.zeros(1))), "1 weights that its kind does not have.*more"
    ),
    "whole numbers": (
        lambda f: spoilt(f, lambda w, m: w.update({first(w): w[first(w)].int()})), "as I32, but weights must be one of"
    ),
    "NaN": (lambda f: spoilt(f, lambda w, m: w.update({first(w): NAN * w[first(w)]})), "holds NaN or infinite values"),
    "NaN in an IP-Adapter": (
        lambda f: spoilt(f, lambda w, m: w.update({first(w): NAN * w[first(w)]}), "IP-Adapter"), "holds NaN or infinite"
    ),
    "FaceID": (
        lambda f: raw(f, _saved(f, {"image_proj.proj.0.weight": torch.zeros(2, 2)})), "IP-Adapter of another kind"
    ),
}  # fmt: skip


def _saved(folder: Path, weights: dict[str, Tensor]) -> bytes:
    save_file(weights, folder / "saved.safetensors")
    return (folder / "saved.safetensors").read_bytes()


def sentence_of(use: Callable[[], Any], node: str) -> str:
    with pytest.raises(ValueError, match=f"^{node}: ") as raised:
        use()
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize(("make", "sentence"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_refused_in_one_sentence(make: Callable, sentence: str, encoder_files: Path) -> None:
    import re

    message = sentence_of(lambda: LoadSubjectEncoder.execute(make(encoder_files), tiny_clip()), "Load Subject Encoder")
    assert re.search(sentence, message), message


def siglip() -> Any:
    """A CLIP_VISION of a kind without those layers."""

    class Other:
        model = torch.nn.Linear(1, 1)

    return Other()


TOWERS = {
    "no tower": ("CLIP", None, "carries no image tower; link a clip_vision of 6 layers of width 32 and 17 tokens"),
    "no tower for an IP-Adapter": ("IP-Adapter", None, "link a clip_vision of an image embedding of width 40"),
    "another depth": ("CLIP", lambda: tiny_clip(5), "of 6 layers .* but this clip_vision has 5 layers of width 32"),
    "another kind": ("IP-Adapter plus", siglip, "reads a CLIP vision model, but got another kind"),
}


@pytest.mark.parametrize(("kind", "clip", "sentence"), TOWERS.values(), ids=TOWERS.keys())
def test_another_tower_is_refused(kind: str, clip: Callable | None, sentence: str) -> None:
    import re

    name, tower = file_name(kind, "sd1"), clip and clip()
    message = sentence_of(lambda: LoadSubjectEncoder.execute(name, tower), "Load Subject Encoder")
    assert re.search(sentence, message), message


APPLIED: dict[str, tuple[Callable[[], Any], str]] = {
    "not encoded": (lambda: bring(shared_model("sd1"), subject("sd1")), "encoded without a subject encoder; link Load"),
    "another family's file": (
        lambda: bring(shared_model("sdxl")),
        "'sd1 own tower.safetensors' is made for sd1 .text of width 48, 7 .*reads text of width 80 in 8",
    ),
    "another family's IP-Adapter": (
        lambda: bring(shared_model("sd2"), coarse_subject("IP-Adapter")),
        "is made for .*width 48, 7 .*reads text of width 64 in 7",
    ),
    "a diffusion transformer": (lambda: bring(flux()), "kind, but this model is a Flux"),
    "a video U-Net": (lambda: bring(video()), "kind, but this model is a SVD_img2vid"),
    "a negative strength": (lambda: bring(shared_model("sd1"), strength=-1.0), "strength must be between 0 and 10"),
    "strength NaN": (lambda: bring(shared_model("sd1"), strength=NAN), "strength must be between 0 and 10, but is nan"),
    "start after end": (lambda: bring(shared_model("sd1"), start=0.6, end=0.4), "start_percent must not be above"),
}


@pytest.mark.parametrize(("use", "sentence"), APPLIED.values(), ids=APPLIED.keys())
def test_what_does_not_fit_is_refused(use: Callable[[], Any], sentence: str) -> None:
    import re

    message = sentence_of(use, "Apply Subject Encoder")
    assert re.search(sentence, message), message


def test_every_family_has_blocks_of_its_own() -> None:
    """Else a file of one family could pass for another's."""
    assert len({len(layers_of(family)) for family in SHAPES} | {SHAPES[f]["context_dim"] for f in SHAPES}) > 3
