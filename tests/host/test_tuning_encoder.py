"""Subject tuning with the subject encoder's ResBlocks: gradients, the file, survival, and what is refused."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.ldm.modules.attention as attention
import pytest
import torch
from dreamtuner_pack.dreamtuner_core.host.apply import apply_encoder
from dreamtuner_pack.dreamtuner_core.host.encoder.load import encode_picture, load_encoder
from dreamtuner_pack.dreamtuner_core.host.settings import KEY
from dreamtuner_pack.dreamtuner_core.host.subject.saved import load_subject, save_subject
from dreamtuner_pack.dreamtuner_core.host.tuning.encoder import LEARNED
from dreamtuner_pack.dreamtuner_core.host.tuning.job import Job
from dreamtuner_pack.dreamtuner_core.host.tuning.pairs import make_pairs
from dreamtuner_pack.dreamtuner_core.host.tuning.train import Training
from dreamtuner_pack.dreamtuner_core.tuning.config import TuningConfig, warm_up
from families import tiny_model
from graph import attend, hard_mask
from graph import subject as random_subject
from plain_encoder import file_name, sea, tiny_clip
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F
from tuning_ends import Stop, picture, same, stop_at, tensors
from tuning_world import SETTINGS, World, folders

import nodes

ON = {"encoder_resblocks": True}
RATE = 0.1  # of the LoRA: that of the ResBlocks is a three hundredth of it


pytestmark = pytest.mark.usefixtures("quick_samples")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with folders(tmp_path):
        world = World(tmp_path)
        world.see()
        yield world


def a_job(world: World, **settings: Any) -> Job:
    config = TuningConfig(**{**SETTINGS, **ON, "learning_rate": RATE, **settings})
    return Job(world.model, world.clip, world.vae, world.subject, "dog", "rex", config)


# --- against a plain writing in float64 ------------------------------------------------------------------------------


def plain_tokens(w: dict[str, Tensor], states: Tensor) -> Tensor:
    """SE(r): states [1, L, T, W] -> [1, T, C]."""
    x, i = F.layer_norm(states, states.shape[-1:]).transpose(1, 2).flatten(2), 0
    while f"res_blocks.{i}.fc1.weight" in w:
        b = {name: w[f"res_blocks.{i}.{name}"] for name in (f"{m}.{p}" for m in ("norm", "fc1", "fc2") for p in PARTS)}
        n = F.layer_norm(x, x.shape[-1:], b["norm.weight"], b["norm.bias"])
        y = F.silu(n @ b["fc1.weight"].T + b["fc1.bias"]) @ b["fc2.weight"].T + b["fc2.bias"]
        skip = f"res_blocks.{i}.skip."
        x = y + (x @ w[skip + "weight"].T + w[skip + "bias"] if skip + "weight" in w else x)
        i += 1
    return F.layer_norm(x, x.shape[-1:], w["norm.weight"], w["norm.bias"])


PARTS = ("weight", "bias")


def plain_gradients(world: World, training: Training) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """Loss of the first pair, and its gradients in every weight of U-Net and encoder, in float64."""
    draw = training.tuning.pairs.draw(training.config.seed, 0, 0, len(training.tuning.levels))
    latent, noise = training.tuning.pairs.latents(draw).double(), draw.noise.double()
    sigma = training.tuning.levels[draw.level].double()
    texts = (training.texts.with_word(), training.texts.tokens)
    context = torch.cat([training._encode(text).cross for text in texts]).detach().double()
    unet = tiny_model("sd1", torch.float64).model.diffusion_model.requires_grad_(True)
    applied = world.model.get_attachment(KEY).encoders[0]
    w = {name: x.detach().double() for name, x in applied.encoding.encoder.model.state_dict().items()}
    for name in w:
        w[name].requires_grad_(name.startswith(LEARNED))
    assert training.encoder is not None
    tokens = plain_tokens(w, training.encoder.states[int(draw.flip[0])].double()[None])

    def middle(h: Tensor, options: dict[str, Any]) -> Tensor:
        return torch.cat([h[:1] + applied.strength * sea(w, tokens, h[:1], options), h[1:]])

    level = sigma[:, None, None, None]
    time = world.model.model.model_sampling.timestep(sigma).double()
    options = {"patches": {"middle_patch": [middle]}}
    said = unet((latent + level * noise) / (level**2 + 1).sqrt(), time, context, transformer_options=options)
    losses = ((said - noise) ** 2).mean((1, 2, 3))
    loss = losses[0] + losses[1]
    loss.backward()
    return (
        float(loss.detach()),
        {f"diffusion_model.{name}": p.grad for name, p in unet.named_parameters()},
        {name: x.grad for name, x in w.items() if x.grad is not None},
    )


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found.double() - wanted).norm() < 1e-4 * wanted.norm())


@pytest.mark.parametrize("kernel", ["the host's", "one without a way back"])
@pytest.mark.parametrize(("seed", "flip"), [(0, 0), (1, 1)])
def test_gradients_and_one_step_are_those_of_a_plain_writing(
    world: World, seed: int, flip: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the ResBlocks, and of the U-Net's LoRA beside them: dL/d(up) = dL/dW down^T."""
    job, plain = a_job(world, seed=seed), attention.optimized_attention

    def attention_sage(*args: Any, **kwargs: Any) -> Tensor:
        return plain(*args, **kwargs).detach()

    with Training(job, make_pairs(job)) as training:
        training.load()
        assert int(training.tuning.pairs.draw(seed, 0, 0, 10).flip[0]) == flip
        loss, of_unet, of_encoder = plain_gradients(world, training)
        if kernel != "the host's":
            monkeypatch.setattr(attention, "optimized_attention", attention_sage)
        ours = training.tuning.loss(0)
        ours.backward()
        assert float(ours) == pytest.approx(loss, rel=1e-5)
        for key, lora in training.unet.wrappers.items():
            down = lora.lora_down.weight.detach().double()
            assert close(lora.lora_up.weight.grad, of_unet[key].flatten(1) @ down.flatten(1).T), key
        assert training.encoder is not None
        learning = training.encoder.adapters.parameters
        assert len(learning) == len(of_encoder) == len([n for n in of_encoder if n.startswith(LEARNED)])
        for (module, part), grad in ((name.rsplit(".", 1), grad) for name, grad in of_encoder.items()):
            found = learning[f"encoder.{module}.{'diff' if part == 'weight' else 'diff_b'}"]
            assert close(found.grad, grad), (module, part)

        training.tuning.advance()
        rate = RATE / 300 * warm_up(0)
        for parameter in learning.values():
            # Adam's first step goes against the gradient, its full rate where that is more than rounding
            clear = parameter.grad.abs() > 1e-6
            wanted = -rate * parameter.grad.sign()
            assert clear.any()
            torch.testing.assert_close(parameter.detach()[clear], wanted[clear], rtol=0.02, atol=0)


def test_the_rate_is_the_full_methods() -> None:
    for method in ("lora", "full"):
        assert TuningConfig(method=method).encoder_rate == pytest.approx(1e-6)
    assert TuningConfig(method="full", learning_rate=2e-6).encoder_rate == pytest.approx(2e-6)


def test_read_only_at_the_noise_levels_at_which_it_is_applied(tmp_path: Path) -> None:
    with folders(tmp_path):
        world = World(tmp_path)
        world.see(start=0.25, end=0.75)
        job = a_job(world)
        encoder = Training(job, make_pairs(job)).encoder
        assert encoder is not None
        sampling = world.model.model.model_sampling
        for percent, reads in ((0.1, False), (0.5, True), (0.9, False)):
            options = encoder.joined(float(sampling.percent_to_sigma(percent)), 0, 2)({})
            assert ("patches" in options) == reads


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "method"), [("own tower", "lora"), ("CLIP", "full")])
def test_the_file_gives_the_nodes_own_picture(tmp_path: Path, kind: str, method: str) -> None:
    with folders(tmp_path):
        world = World(tmp_path)
        bare = world.model
        world.see(kind)
        other = random_subject(mask=hard_mask(), seed=77)
        world.model = attend(attend(world.model, world.subject), other)
        prompt = "a photo of a dog embedding:rex, on grass"
        before = picture(world.model, world.clip, "a dog")
        tuned = world.tune(steps=2, method=method, learning_rate=RATE, **ON)
        wanted = picture(tuned.model, tuned.clip, prompt)
        assert torch.equal(picture(world.model, world.clip, "a dog"), before), "the untouched model draws as before"

        model, clip = nodes.LoraLoader().load_lora(bare, world.clip, "rex.safetensors", 1.0, 1.0)
        encoder = load_encoder("rex.safetensors", tiny_clip())
        subject = replace(world.subject, encoding=encode_picture(encoder, world.subject.picture))
        stock = attend(attend(apply_encoder(model, subject, 0.5), subject), other)
        assert torch.equal(picture(stock, clip, prompt), wanted)
        without = attend(attend(apply_encoder(model, world.subject, 0.5), world.subject), other)
        assert not torch.equal(picture(without, clip, prompt), wanted), "the encoder learned"

        given, learned = (tensors(world.encoders / name) for name in (file_name(kind, "sd1"), "rex.safetensors"))
        assert given.keys() == learned.keys()
        changed = {name for name in given if not torch.equal(given[name], learned[name])}
        assert changed == {name for name in given if name.startswith(LEARNED)}
        with safe_open(world.encoders / "rex.safetensors", "pt") as file:
            told = file.metadata()
        assert told["licence"] == "CC0"
        assert '"subject_tuning": {"class_word": "dog", "steps": 2}' in told["training"]


def test_the_saved_subject_is_seen_by_the_encoder_that_learned(world: World) -> None:
    tuned = world.tune(steps=1, learning_rate=RATE, **ON)
    path = save_subject(world.subject, "saved", tuned.subject)
    subject, _ = load_subject(path.name, load_encoder("rex.safetensors", None))
    assert subject.encoding is not None
    assert torch.equal(subject.encoding.tokens, tuned.subject.subject.encoding.tokens)
    assert not torch.equal(subject.encoding.tokens, world.subject.encoding.tokens)


# --- survival --------------------------------------------------------------------------------------------------------


def test_killed_and_queued_again_ends_bit_identical(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.tune("whole", **ON)
    with monkeypatch.context() as killed:
        killed.setattr(Training, "keep", lambda self: "")
        stop_at(killed, 3)
        with pytest.raises(Stop):
            world.tune("broken", **ON)
    assert not (world.encoders / "broken.safetensors").exists()
    tuned = world.tune("broken", **ON)
    for folder in (world.encoders, world.loras, world.embeddings):
        assert same(folder / "broken.safetensors", folder / "whole.safetensors")
    (world.encoders / "broken.safetensors").unlink()
    again = world.tune("broken", **ON)
    assert same(world.encoders / "broken.safetensors", world.encoders / "whole.safetensors")
    prompt = "a dog embedding:broken"
    assert torch.equal(picture(again.model, again.clip, prompt), picture(tuned.model, tuned.clip, prompt))


def test_stopped_it_keeps_a_usable_encoder(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(monkeypatch, 3)
    with pytest.raises(Stop):
        world.tune(**ON)
    assert load_encoder("rex_step3.safetensors", None)
    assert not (world.encoders / "rex.safetensors").exists()
    assert not list(world.base.rglob("*.unfinished"))


def test_checkpointing_changes_nothing(world: World) -> None:
    for name, checkpointing in (("one", True), ("two", False)):
        world.tune(name, steps=2, gradient_checkpointing=checkpointing, **ON)
    assert same(world.encoders / "one.safetensors", world.encoders / "two.safetensors")
    assert same(world.loras / "one.safetensors", world.loras / "two.safetensors")


def test_no_trace_on_the_encoder(world: World) -> None:
    network = world.subject.encoding.encoder.model
    weights = {name: weight.clone() for name, weight in network.state_dict().items()}
    world.tune(steps=1, **ON)
    assert not any(getattr(module, "weight_function", []) for module in network.modules())
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(weight, weights[name]) for name, weight in network.state_dict().items())
    assert not any(p.requires_grad for p in network.parameters())


def test_off_the_encoder_takes_no_part_in_the_steps(world: World) -> None:
    """It is on the model, so that regular pictures resemble the subject; there are none here."""
    world.tune("seeing", steps=2, regular_pictures=0)
    world.model = tiny_model("sd1")
    world.tune("bare", steps=2, regular_pictures=0)
    assert same(world.loras / "seeing.safetensors", world.loras / "bare.safetensors")
    states = [tensors(world.own / "tuning" / name / "state.safetensors") for name in ("seeing", "bare")]
    assert all(torch.equal(x, states[1][name]) for name, x in states[0].items())
    assert not (world.encoders / "seeing.safetensors").exists()


def test_samples_along_the_way_see_the_subject_through_it(world: World) -> None:
    world.tune("off", steps=1)
    world.tune("on", steps=1, learning_rate=RATE, **ON)
    off, on = (tensors(world.own / "tuning" / name / "state.safetensors") for name in ("off", "on"))
    assert not torch.equal(on["samples.0"][:2], off["samples.0"][:2])
    assert torch.equal(on["samples.0"][2], off["samples.0"][2]), "the bare class is drawn without the subject"


# --- what is refused -------------------------------------------------------------------------------------------------


def twice(world: World) -> None:
    world.model = apply_encoder(world.model, world.subject, 0.2)


def never(world: World) -> None:
    world.model = tiny_model("sd1")


def weightless(world: World) -> None:
    world.model = apply_encoder(tiny_model("sd1"), world.subject, 0.0)


def of_another(world: World) -> None:
    world.subject = random_subject(mask=hard_mask(), seed=50)


def with_ip_adapter(world: World) -> None:
    world.model = tiny_model("sd1")
    world.see("IP-Adapter plus")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (twice, "has 2;"),
        (never, "has 0;"),
        (weightless, "has 0;"),
        (of_another, "another subject is linked"),
        (with_ip_adapter, "is an IP-Adapter, which has none"),
    ],
)
def test_what_cannot_learn_is_refused(world: World, change: Any, sentence: str) -> None:
    change(world)
    with pytest.raises(ValueError, match=sentence) as refusal:
        world.tune(steps=1, **ON)
    assert "turn encoder_resblocks off" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1
    assert not list(world.loras.iterdir())


def test_a_strangers_encoder_of_the_name_is_not_overwritten(world: World) -> None:
    (world.encoders / "rex.safetensors").write_bytes(b"somebody else's")
    with pytest.raises(ValueError, match="name 'rex' is taken"):
        world.tune(steps=1, **ON)
    assert (world.encoders / "rex.safetensors").read_bytes() == b"somebody else's"
    world.tune(steps=1)  # off, no encoder is written


def test_another_encoder_is_another_tuning(world: World) -> None:
    world.tune(steps=1, **ON)
    with pytest.raises(ValueError, match="name 'rex' is taken"):
        world.tune(steps=1)
    network = world.subject.encoding.encoder.model
    with torch.no_grad():
        next(iter(network.layers().values())).to_q.weight.mul_(1.5)
    with pytest.raises(ValueError, match="name 'rex' is taken"):
        world.tune(steps=1, **ON)
