"""What a tuning computes, each part against its own plain writing, SDXL and flips included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from dreamtuner_pack.dreamtuner_core.host.calls import Text
from dreamtuner_pack.dreamtuner_core.host.tuning import train as tuning_train
from dreamtuner_pack.dreamtuner_core.host.tuning.adapters import unet_adapters
from dreamtuner_pack.dreamtuner_core.host.tuning.job import Job
from dreamtuner_pack.dreamtuner_core.host.tuning.pairs import make_pairs
from dreamtuner_pack.dreamtuner_core.host.tuning.predict import predict
from dreamtuner_pack.dreamtuner_core.host.tuning.train import Training
from dreamtuner_pack.dreamtuner_core.host.unet import self_attentions
from dreamtuner_pack.dreamtuner_core.tuning.config import TuningConfig
from families import draw_weights, text, tiny_model
from torch import Tensor
from tuning_world import SETTINGS, TinyVAE, World, folders

pytestmark = pytest.mark.usefixtures("quick_samples")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with folders(tmp_path):
        yield World(tmp_path)


def a_job(world: World, **settings: Any) -> Job:
    config = TuningConfig(**{"steps": 1, **SETTINGS, **settings})
    return Job(world.model, world.clip, world.vae, world.subject, "dog", "rex", config)


def told(family: str, seed: int) -> Text:
    return Text.of(text(family, seed))


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_reference_and_mask_are_flipped_sideways(world: World) -> None:
    """Neither is alike upside down or sideways, and the picture is wider than high."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(1, 64, 80, generator=generator)
    world.subject = replace(world.subject, mask=mask)
    pairs = make_pairs(a_job(world))
    mirrored = torch.stack([world.subject.picture[:, :, 79 - x] for x in range(80)], dim=2)
    scale = world.model.model.process_latent_in
    torch.testing.assert_close(pairs.reference[1], scale(world.vae.encode(mirrored)[0]))
    torch.testing.assert_close(pairs.reference[0], scale(world.subject.latent[0]))
    assert pairs.mask is not None
    blocks = mask.reshape(1, 8, 8, 10, 8).mean((2, 4))
    torch.testing.assert_close(pairs.mask[0], blocks)
    torch.testing.assert_close(pairs.mask[1], torch.stack([blocks[..., 9 - x] for x in range(10)], dim=-1))


def test_regular_pictures_are_flipped_sideways_and_of_one_vae(world: World) -> None:
    """A regular latent's second is that of its mirrored picture; another VAE has regular pictures of its own."""
    pairs, scale = make_pairs(a_job(world)), world.model.model.process_latent_in
    assert len(pairs.regular) == SETTINGS["regular_pictures"]
    assert not torch.equal(pairs.regular[0], pairs.regular[1]), "each from its own seed"
    for plain, flipped in pairs.regular:
        picture = world.vae.decode(world.model.model.process_latent_out(plain[None])).clamp(0, 1)
        mirrored = torch.stack([picture[:, :, picture.shape[2] - 1 - x] for x in range(picture.shape[2])], dim=2)
        torch.testing.assert_close(flipped[None], scale(world.vae.encode(mirrored)), atol=1e-4, rtol=1e-4)
    before = {path.name for path in (world.own / "regular").iterdir()}
    world.vae = TinyVAE()
    draw_weights(world.vae.first_stage_model, 8)
    make_pairs(a_job(world))
    assert {path.name for path in (world.own / "regular").iterdir()} - before


def test_both_rows_have_noise_and_level_of_their_own(world: World) -> None:
    pairs = make_pairs(a_job(world))
    draws = [pairs.draw(0, step, 0, 1000) for step in range(20)]
    assert not any(torch.equal(draw.noise[0], draw.noise[1]) for draw in draws)
    assert sum(int(draw.level[0]) != int(draw.level[1]) for draw in draws) > 15
    assert len({tuple(draw.flip.tolist()) for draw in draws}) == 4


# --- the network's own rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_each_row_reads_its_own_text_and_nothing_of_the_other(family: str) -> None:
    """Two rows at once are what each is alone, pooled text included."""
    model = tiny_model(family)
    layers = list(self_attentions(model))
    generator = torch.Generator().manual_seed(1)
    noisy, sigma = torch.randn(2, 4, 12, 8, generator=generator), torch.tensor([2.0, 0.7])
    texts = [told(family, 5), told(family, 6)]
    both = predict(model.model, noisy, sigma, texts, layers)
    for row in range(2):
        alone = predict(model.model, noisy[row : row + 1], sigma[row : row + 1], [texts[row]], layers)
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-4, rtol=1e-4)
    if family == "sdxl":
        mixed = [texts[0], Text(texts[1].cross, texts[0].pooled)]
        changed = predict(model.model, noisy, sigma, mixed, layers)
        torch.testing.assert_close(changed[0], both[0], atol=1e-4, rtol=1e-4)
        assert (changed[1] - both[1]).abs().max() > 1e-3, "the pooled text matters"


def sinusoids(value: float, width: int = 256) -> Tensor:
    frequencies = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(width // 2) / (width // 2))
    return torch.cat([torch.cos(value * frequencies), torch.sin(value * frequencies)])


def test_sdxl_is_told_height_and_then_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """SDXL's y (Podell et al., arXiv 2307.01952, 2.2): pooled text, original height and width, crop 0 0, target."""
    model, seen = tiny_model("sdxl"), []
    forward = model.model.diffusion_model.forward

    def noted(*args: Any, y: Tensor, **kwargs: Any) -> Tensor:
        seen.append(y)
        return forward(*args, y=y, **kwargs)

    monkeypatch.setattr(model.model.diffusion_model, "forward", noted)
    one = told("sdxl", 5)
    predict(model.model, torch.zeros(1, 4, 12, 8), torch.ones(1), [one], list(self_attentions(model)))
    assert one.pooled is not None
    wanted = torch.cat([one.pooled[0], *(sinusoids(x) for x in (96, 64, 0, 0, 96, 64))])
    torch.testing.assert_close(seen[0][0].float(), wanted, atol=1e-4, rtol=1e-4)


# --- what learns, and how fast ---------------------------------------------------------------------------------------


def test_no_two_layers_are_drawn_alike() -> None:
    adapters = unet_adapters(tiny_model("sd1"), "lora", 2, 0, torch.float32, torch.device("cpu"))
    downs = [p.detach() for name, p in adapters.parameters.items() if name.endswith("lora_down.weight")]
    alike = [
        (i, j)
        for i, one in enumerate(downs)
        for j, other in enumerate(downs[:i])
        if one.shape == other.shape and torch.equal(one, other)
    ]
    assert len(downs) > 20
    assert not alike
    again = unet_adapters(tiny_model("sd1"), "lora", 2, 0, torch.float32, torch.device("cpu")).parameters
    assert all(torch.equal(again[name], p) for name, p in adapters.parameters.items()), "the seed decides"


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_words_rate_goes_with_its_encoders_embeddings(tmp_path: Path, family: str) -> None:
    with folders(tmp_path):
        world = World(tmp_path, family)
        job = a_job(world, word_rate=4e-3)
        training = Training(job, make_pairs(job))
    rates = {
        name: training.tuning.rates[i]
        for i, group in enumerate(training.tuning.optimizer.param_groups)
        for name, parameter in training.tuning.parameters.items()
        if any(parameter is p for p in group["params"])
    }
    ids = world.clip.tokenize("dog")
    for name, word in training.texts.words.items():
        table = getattr(world.clip.cond_stage_model, f"clip_{name}").transformer.get_input_embeddings().weight
        row = table[ids[name][0][1][0]].float()
        assert rates[f"word.{name}"] == pytest.approx(4e-3 * float(row.square().mean().sqrt()) / 0.014, rel=1e-5)
        torch.testing.assert_close(word.detach(), row)
    others = {rate for name, rate in rates.items() if not name.startswith("word.")}
    assert others == {SETTINGS["learning_rate"]}


def test_room_is_asked_for_gradients_and_both_moments(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = a_job(world)
    training, asked = Training(job, make_pairs(job)), {}
    monkeypatch.setattr(
        comfy.model_management, "load_models_gpu", lambda models, memory_required: asked.update(needed=memory_required)
    )
    training.load()
    learned = sum(p.numel() for p in training.tuning.parameters.values())
    passes = training.unet.patcher.model.memory_required([2, 4, 8, 10])
    assert asked["needed"] == pytest.approx(5 * passes + 4 * (learned + 2 * learned))


def test_samples_of_the_subject_differ_and_the_class_shares_a_seed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, seeds, words = a_job(world), [], []
    draw = tuning_train.draw

    def noted(model: Any, positive: Any, negative: Any, shape: Any, seed: int) -> Tensor:
        seeds.append(seed)
        words.append(positive[0][0])
        return draw(model, positive, negative, shape, seed)

    monkeypatch.setattr(tuning_train, "draw", noted)
    with Training(job, make_pairs(job)) as training:
        samples = training._sample()
    assert len(set(seeds)) == 2
    assert seeds[0] == seeds[2]
    assert torch.equal(words[0], words[1])
    assert not torch.equal(samples[0], samples[1])


# --- what a tuning is told apart by ----------------------------------------------------------------------------------


def test_all_that_the_outcome_depends_on_is_in_the_key(world: World) -> None:
    keys = {"as it is": a_job(world).key}
    given = world.clip, world.vae, world.subject, world.model
    world.clip = world.clip.clone()
    world.clip.clip_layer(-2)
    keys["clip skip"] = a_job(world).key
    world.clip = given[0]
    world.vae = TinyVAE()
    draw_weights(world.vae.first_stage_model, 8)
    keys["vae"] = a_job(world).key
    world.vae = given[1]
    world.subject = replace(given[2], mask=1 - given[2].mask)
    keys["mask"] = a_job(world).key
    world.subject = replace(given[2], noise_seed=5)
    keys["noise seed"] = a_job(world).key
    world.subject = given[2]
    world.model = tiny_model("sd1", v_prediction=True)
    keys["prediction"] = a_job(world).key
    world.model = given[3]
    other = {"rank": 3, "word_rate": 1e-4, "min_snr": 5.0, "prior_weight": 0.5, "text_encoder": False, "seed": 1}
    for name, value in (other | {"masked_loss": True, "accumulation": 2, "regular_from": "class"}).items():
        keys[name] = a_job(world, **{name: value}).key
    assert len(set(keys.values())) == len(keys)
    assert a_job(world, steps=7, checkpoint_interval=9, gradient_checkpointing=False).key == keys["as it is"]
