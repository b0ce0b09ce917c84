"""The unwanted side of guidance reads with its own share of w_ref, whichever guider of the host asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import plain
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from dreamtuner_pack.dreamtuner_core.host.apply import with_subject
from dreamtuner_pack.dreamtuner_core.host.sampling import run
from dreamtuner_pack.dreamtuner_core.host.settings import NEGATIVE_WEIGHT, AppliedSubject
from dreamtuner_pack.dreamtuner_core.host.unet import self_attentions
from dreamtuner_pack.nodes.self_subject_attention import ApplySelfSubjectAttention
from families import text
from graph import attend, counted_passes, empty_latent, guide, hard_mask, sample, shared_model, soft_mask, subject
from host_graphs import GUIDERS
from host_patches import use
from plain import Applied
from torch import Tensor

WANTED, UNWANTED = (1, 3), (2, 6)  # seeds of the texts that the graphs below give to either side
Answers = dict[int, list[tuple[Tensor, Tensor, Tensor]]]
"""By a text's seed: x, sigma and the model's denoised answer, of each call."""


def answers(model: ModelPatcher, draw: Callable[[ModelPatcher], Any]) -> Answers:
    """What the model says to each text while a picture is drawn."""
    found: Answers = {}
    texts = {seed: text("sd1", seed)[0][0] for seed in (*WANTED, *UNWANTED)}

    def listen(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        out = apply_model(args["input"], args["timestep"], **args["c"])
        for row, context in enumerate(args["c"]["c_crossattn"]):
            [seed] = [seed for seed, known in texts.items() if torch.equal(known[0], context.to(known.dtype))]
            found.setdefault(seed, []).append((args["input"][row], args["timestep"][row], out[row]))
        return out

    listening = model.clone()
    listening.set_model_unet_function_wrapper(listen)
    draw(listening)
    return found


def custom(name: str) -> Callable[[ModelPatcher], Any]:
    return lambda model: use(
        "custom_sampler",
        "SamplerCustomAdvanced",
        noise=use("custom_sampler", "RandomNoise", noise_seed=3),
        guider=GUIDERS[name](model),
        sampler=use("custom_sampler", "KSamplerSelect", sampler_name="euler"),
        sigmas=use("custom_sampler", "BasicScheduler", model=model, scheduler="normal", steps=2, denoise=1.0),
        latent_image=empty_latent(),
    )


def ksampler(model: ModelPatcher, **more: Any) -> Tensor:
    return sample(model, text("sd1", 1), text("sd1", 2), steps=2, **more)


def perp_neg(model: ModelPatcher) -> Tensor:
    return ksampler(use("perpneg", "PerpNeg", model=model, empty_conditioning=text("sd1", 6), neg_scale=0.7))


DRAWN: dict[str, Callable[[ModelPatcher], Any]] = {
    "CFG": ksampler,
    "CFG 1": lambda m: ksampler(m, cfg=1.0),
    "CFG++": lambda m: ksampler(m, sampler="euler_cfg_pp"),
    "PAG": lambda m: ksampler(use("pag", "PerturbedAttentionGuidance", model=m, scale=3.0)),
    "SAG": lambda m: ksampler(use("sag", "SelfAttentionGuidance", model=m, scale=0.5, blur_sigma=2.0)),
    "PerpNeg": perp_neg,
    **{name: custom(name) for name in GUIDERS},
}


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("name", DRAWN)
def test_each_side_is_the_written_formula(name: str, share: float) -> None:
    """In float64, each conditioning that the guider asks for, in the first step (the rest is the sampler's)."""
    model = shared_model("sd1", torch.float64)
    applied = [
        Applied(subject(mask=hard_mask()), region=soft_mask(96, 64), negative_weight=share),
        Applied(subject(seed=21), 2.0, negative_weight=0.7),
    ]
    patched = model
    for a in applied:
        patched = attend(patched, a.subject, a.weight, region=a.region, negative_weight=a.negative_weight)
    for seed, asked in answers(patched, DRAWN[name]).items():
        x, sigma, answer = asked[0]
        read = applied if seed in WANTED else [a.on_the_unwanted_side() for a in applied]
        expected = x - sigma * plain.eps(model.model, x[None], sigma, text("sd1", seed), read, sigma)[0]
        assert (answer - expected).abs().max() < 2e-7 * expected.abs().max()  # the host hands it out in float32


def test_the_two_sides_differ_where_their_weights_do() -> None:
    """Else the test above would pass for a pack that reads everywhere alike."""
    model, one = shared_model("sd1"), subject()
    full, none = (answers(attend(model, one, negative_weight=share), ksampler) for share in (1.0, 0.0))
    plain_answers = answers(model, ksampler)
    torch.testing.assert_close(full[1][0][2], none[1][0][2], rtol=1e-5, atol=1e-4)
    assert not torch.allclose(full[2][0][2], none[2][0][2], rtol=1e-2)
    torch.testing.assert_close(none[2][0][2], plain_answers[2][0][2], rtol=1e-5, atol=1e-4)


def test_kept_features_do_not_depend_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, one = shared_model("sd1"), subject(mask=soft_mask())
    ksampler(attend(model, one))
    with counted_passes(monkeypatch) as computed:
        for share in (0.0, 0.4):
            kept = ksampler(attend(model, one, negative_weight=share))
            assert not computed
            fresh = ksampler(attend(model, subject(mask=soft_mask()), negative_weight=share))
            assert torch.equal(kept, fresh)
            computed.clear()


def test_nothing_is_computed_for_a_side_that_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dt', a noisier reference is computed for the unwanted side, unless that side reads nothing."""
    passes = []
    for share in (0.4, 0.0):
        model = attend(shared_model("sd1"), subject(), negative_weight=share)
        with counted_passes(monkeypatch) as computed:
            ksampler(guide(model, probability=0.0, dt=0.0, dt_uncond=40.0))
            passes.append(len(computed))
    assert passes == [4, 2]


def test_a_graph_without_it_has_the_default() -> None:
    model, one = shared_model("sd1"), subject(mask=soft_mask())
    without = ksampler(ApplySelfSubjectAttention.execute(model, one, 3.0, 0.0, 1.0).args[0])
    assert torch.equal(without, ksampler(attend(model, one, negative_weight=NEGATIVE_WEIGHT)))
    assert not torch.equal(without, ksampler(attend(model, one, negative_weight=1.0)))


# --- what only the bench asks for ------------------------------------------------------------------------------------


def test_a_weight_that_changes_over_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a straight line over the percents in which the subject is read."""
    applied = AppliedSubject(subject(), 4.0, 0.2, 0.7, end_weight=1.0)
    assert [applied.weight_at(p) for p in (0.2, 0.45, 0.7)] == pytest.approx([4.0, 2.5, 1.0])
    weights, weight = [], run.Run.weight
    monkeypatch.setattr(run.Run, "weight", lambda *a: weights.append(weight(*a)) or weights[-1])
    moving = AppliedSubject(subject(), 4.0, end_weight=1.0)
    sample(with_subject(shared_model("sd1"), moving), text("sd1", 1), text("sd1", 2), steps=4, cfg=1.0)
    assert weights == pytest.approx([4.0, 3.0, 2.0, 1.0], abs=0.01)
    constant = with_subject(shared_model("sd1"), AppliedSubject(subject(), 3.0, end_weight=3.0))
    assert torch.equal(ksampler(constant), ksampler(attend(shared_model("sd1"), subject())))


def test_reading_in_some_of_the_blocks() -> None:
    """One block after the other: no trace of the subject before the first that reads it."""
    model, one = shared_model("sd1"), subject()
    seen: dict[tuple, Tensor] = {}

    def note(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        seen[(*options["block"], options["block_index"])] = q
        return q, k, v

    def queries(patched: ModelPatcher) -> dict[tuple, Tensor]:
        seen.clear()
        patched = patched.clone()
        patched.set_model_attn2_patch(note)
        sample(patched, text("sd1", 1), text("sd1", 2), steps=1, cfg=1.0)
        return dict(seen)

    without = queries(model)
    for first, blocks in enumerate((("input",), ("middle",), ("output",))):
        read = queries(with_subject(model, AppliedSubject(one, 3.0, blocks=blocks)))
        before = {"input": (), "middle": ("input",), "output": ("input", "middle")}[blocks[0]]
        for layer in self_attentions(model):
            assert torch.equal(read[layer], without[layer]) == (layer.block in before), (first, layer)
