"""The pre-training's settings, chances and weights, without a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamtuner_core.pretraining.augment import Augmentation
from dreamtuner_core.pretraining.config import PretrainingConfig, read_config, stratified_level
from dreamtuner_core.pretraining.objective import draw
from dreamtuner_core.tuning.losses import min_snr

NEEDED: dict[str, Any] = {
    "checkpoint": "base.safetensors",
    "shards": ("a.tar",),
    "folder": "out",
    "family": "sd1",
    "clip_vision": "vit-h.safetensors",
}


def test_the_papers_figures_are_the_defaults() -> None:
    config = PretrainingConfig(**NEEDED)
    assert (config.batch, config.learning_rate, config.precision) == (16, 1e-5, "bf16")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("batch", 0, "batch must be between 1 and 65536, but is 0"),
        ("batch", 2.5, "batch must be a whole number, but is 2.5"),
        ("steps", True, "steps must be a whole number, but is True"),
        ("learning_rate", float("nan"), "learning_rate must be between 0 and 1, but is nan"),
        ("learning_rate", "1e-5", "learning_rate must be a number, but is '1e-5'"),
        ("precision", "fp16", "precision must be one of bf16, fp32, but is 'fp16'"),
        ("side", 100, "side must be a multiple of 8, but is 100"),
        ("shards", (), "shards must not be empty"),
        ("shards", "a.tar", "shards must be a list of names"),
        ("tower", "t.safetensors", "set exactly one of clip_vision and tower"),
        ("clip_vision", "", "set exactly one of clip_vision and tower"),
        ("drop_text", 0.7, "the sum of drop_text, drop_subject and drop_both must be at most 1"),
        ("latents", 1, "latents must be true or false, but is 1"),
        ("family", 1, "family must be text, but is 1"),
    ],
)
def test_bad_settings_are_one_sentence(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PretrainingConfig(**NEEDED | {"drop_subject": 0.4, name: value})


@pytest.mark.parametrize(
    ("shard", "command"),
    [
        ("pipe:cat a.tar", True),
        ("PIPE:cat a.tar", True),
        (" \tpi\npe:cat a.tar", True),
        ("{pipe:rm -r x,a.tar}", True),
        ("a{b,pipe}:x", True),
        ("s3://bucket/a.tar", True),
        ("https://host/$(x).tar", True),
        ("https://host/a-{00..02}.tar", False),
        ("/data/{00..02}.tar", False),
        ("file:/data/a.tar", False),
        ("C:/data/a.tar", False),
    ],
)
def test_no_shard_runs_a_command_unless_allowed(shard: str, command: bool) -> None:
    data = pytest.importorskip("dreamtuner_core.pretraining.data")
    config = PretrainingConfig(**NEEDED | {"shards": ("a.tar", shard)})
    assert data.addresses(replace(config, allow_commands=True))
    if command:
        with pytest.raises(ValueError, match="set allow_commands = true"):
            data.addresses(config)
        with pytest.raises(ValueError, match="set allow_commands = true"):
            data.usable(config, 224)
    else:
        assert data.addresses(config)


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    config = PretrainingConfig(**NEEDED, accumulation=2)
    assert config.rows_of(4) == 4
    with pytest.raises(ValueError, match=r"batch 16 cannot be divided among 3 processes .*; make it a multiple of 6"):
        config.rows_of(3)


def test_a_file_of_settings(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'checkpoint = "base.safetensors"\nclip_vision = "/models/vit.safetensors"\nfamily = "sd1"\nfolder = "out"\n'
        'shards = ["data/{00..02}.tar", "https://host/a.tar"]\n'
    )
    config = read_config(file, steps=7)
    assert config.checkpoint == str(tmp_path / "base.safetensors")
    assert config.clip_vision == "/models/vit.safetensors"
    assert config.shards == (str(tmp_path / "data/{00..02}.tar"), "https://host/a.tar")
    assert (config.steps, config.controlnet) == (7, "")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("steps = ", "cannot be read as TOML"),
        ("stepz = 1", "sets 'stepz', which is not a setting; the settings are accumulation"),
        ("steps = 1", "must set checkpoint"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_config(tmp_path / "run.toml")
    with pytest.raises(ValueError, match="cannot be read as TOML"):
        read_config(tmp_path / "none.toml")


def test_the_rate_rises_stays_and_falls() -> None:
    config = PretrainingConfig(**NEEDED, steps=100, learning_rate=0.5, warm_up=10, decay_from=0.6)
    rates = [config.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[9:61] == pytest.approx([0.5] * 52)
    assert rates[80] == pytest.approx(0.25)
    assert rates[100] == pytest.approx(0)


def test_settings_that_change_no_step_may_change() -> None:
    config = PretrainingConfig(**NEEDED)
    assert PretrainingConfig(**NEEDED, steps=5, workers=0, save_every=3).outcome() == config.outcome()
    for other in ({"seed": 1}, {"batch": 8}, {"controlnet": "depth"}, {"decay_from": 0.5}, {"elastic": 0.1}):
        assert PretrainingConfig(**NEEDED, **other).outcome() != config.outcome()


def test_augmentation_is_the_seeds_alone() -> None:
    augmented, picture = Augmentation(32), torch.rand(3, 32, 32)
    state = torch.get_rng_state()
    first = augmented(picture, 1)
    torch.rand(5)
    assert torch.equal(augmented(picture, 1), first)
    assert not torch.equal(augmented(picture, 2), first)
    assert first.min() >= 0
    assert first.max() <= 1
    torch.set_rng_state(state)
    augmented(picture, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_augmentation_moves_the_subject_and_keeps_white() -> None:
    augmented = Augmentation(32)
    white, dark = torch.ones(3, 32, 32), torch.ones(3, 32, 32)
    dark[:, 8:24, 4:20] = 0.1  # left of the middle
    views = [augmented(dark, seed) for seed in range(40)]
    assert all(torch.allclose(augmented(white, seed), white, atol=1e-5) for seed in range(10))
    assert all(float(view[:, 0, 0].min()) > 0.95 for view in views)
    inks = [float((1 - view).sum()) / float((1 - dark).sum()) for view in views]
    assert min(inks) < 0.8 < 1.1 < max(inks)  # scaled down to 0.8^2 and up to 1.1^2
    lefts = [float((1 - view)[:, :, :16].sum() > (1 - view)[:, :, 16:].sum()) for view in views]
    assert 0.25 < sum(lefts) / len(lefts) < 0.75  # flipped or not


def test_dropout_of_text_and_subject() -> None:
    config = PretrainingConfig(**NEEDED, drop_text=0.2, drop_subject=0.1, drop_both=0.3)
    draws = [draw(config, step, row, (1,)) for step in range(250) for row in range(16)]
    kinds = [(d.keeps_text, d.keeps_subject) for d in draws]
    expected = {(False, True): 0.2, (True, False): 0.1, (False, False): 0.3, (True, True): 0.4}
    for kind, share in expected.items():
        assert kinds.count(kind) / len(kinds) == pytest.approx(share, abs=0.03)


def test_a_row_is_a_function_of_seed_step_and_number() -> None:
    config = PretrainingConfig(**NEEDED)
    one, other = draw(config, 3, 5, (4, 2, 2)), draw(config, 3, 5, (4, 2, 2))
    assert torch.equal(one.noise, other.noise)
    for step, row in ((4, 5), (3, 6)):
        assert not torch.equal(draw(config, step, row, (4, 2, 2)).noise, one.noise)


def test_levels_cover_all_evenly_and_each_row_takes_every_part() -> None:
    batch, levels = 8, 1000
    for step in range(3):
        parts = {stratified_level(step, row, batch, levels, 0.5) * batch // levels for row in range(batch)}
        assert parts == set(range(batch))
    assert {stratified_level(step, 0, batch, levels, 0.5) * batch // levels for step in range(batch)} == set(
        range(batch)
    )
    assert stratified_level(0, 7, batch, levels, 1 - 1e-12) == levels - 1


@pytest.mark.parametrize("parametrisation", ["eps", "v"])
def test_min_snr_is_the_published_weight(parametrisation: str) -> None:
    sigma, gamma = torch.logspace(-2, 2, 50, dtype=torch.float64), 5.0
    snr = sigma**-2
    plain = torch.minimum(snr, torch.tensor(gamma, dtype=torch.float64)) / (snr + (parametrisation == "v"))
    torch.testing.assert_close(min_snr(parametrisation, sigma, gamma), plain)
    assert torch.equal(min_snr(parametrisation, sigma, 0.0), torch.ones_like(sigma))


def test_what_goes_into_the_encoders_file_names_shards_without_folders_or_secrets() -> None:
    shards = (
        "/home/eve/a.tar",
        "C:\\Users\\eve\\b-{000..099}.tar",
        "https://user:pass@host/c.tar?token=secret/d",
        "pipe:curl https://host/d.tar.gz -H 'Authorization: Bearer secret'",
        "pipe:fetch --key secret",
    )
    config = PretrainingConfig(**NEEDED | {"shards": shards, "checkpoint": "/home/eve/base"}, allow_commands=True)
    named = config.outcome()["shards"]
    assert named[:4] == ["a.tar", "b-{000..099}.tar", "c.tar", "d.tar.gz"]
    assert not [word for word in ("eve", "secret", "pass") if word in str(config.outcome())]
    assert len(set(named)) == len(shards)
