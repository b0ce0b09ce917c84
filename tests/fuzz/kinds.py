"""Every kind of file that the pack reads: a good one, small, and how it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch.nn import Parameter

from dreamtuner_core.encoder import file as encoder_file
from dreamtuner_core.encoder.ip_adapter import IPAdapter, IPAdapterConfig, ResamplerConfig
from dreamtuner_core.encoder.model import AttentionShape, EncoderConfig, SubjectEncoder
from dreamtuner_core.encoder.tower import ImageTower, TowerConfig
from dreamtuner_core.files import metadata_of_file, plain_json, read_whole
from dreamtuner_core.picture.u2net import U2NetP, read_network
from dreamtuner_core.pretraining import checkpoint
from dreamtuner_core.pretraining.config import PretrainingConfig, read_config
from dreamtuner_core.pretraining.tower_file import read_tower, save_tower
from dreamtuner_core.saved_subject import SavedSubject
from dreamtuner_core.subject_file import from_file, to_file
from dreamtuner_core.tuning.config import TuningConfig
from dreamtuner_core.tuning.loop import Group, Tuning

TOWER = TowerConfig(width=8, layers=2, heads=2, patch=4, side=8)
SETTINGS = PretrainingConfig(shards=("a.tar",), checkpoint="a", folder="b", family="sd1", tower="t")


class Kind(NamedTuple):
    """read raises ValueError, in one sentence, for what is no such file."""

    suffix: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]


def _subject(path: Path) -> None:
    one = {"picture": torch.full((1, 16, 8, 3), 0.5), "mask": torch.ones(1, 16, 8), "latent": torch.zeros(1, 4, 2, 1)}
    view = SavedSubject(**one, caption=None, noise_seed=3)
    tuning = {"class_word": "dog", "name": "rex", "lora_hash": "0" * 64, "steps": 4}
    caption = torch.zeros(1, 3, 4), torch.zeros(1, 2)
    whole = SavedSubject(
        **one, caption=caption, noise_seed=1, tuning=tuning, words={"l": torch.zeros(4)}, views=(view,)
    )
    tensors, metadata = to_file(whole)
    save_file(tensors, path, metadata)


def _encoder(path: Path) -> None:
    blocks = {"middle_0_0": AttentionShape(8, 1, 8)}
    config = EncoderConfig("sd1", 8, 8, 2, TOWER.tokens, (1, 2), blocks, tower=TOWER)
    encoder_file.save(path, SubjectEncoder(config))


def _ip_adapter(path: Path) -> None:
    config = IPAdapterConfig(8, 8, 4, {1: 8}, ResamplerConfig(64, 1, 64, 8))
    save_file(IPAdapter(config).state_dict(), path)


def _tuning() -> Tuning:
    return Tuning(
        TuningConfig(steps=2),
        [Group({"a": Parameter(torch.zeros(2, 3))}, 1e-3)],
        None,
        torch.ones(2),
        "eps",
        None,  # type: ignore[arg-type]
    )


def _state(path: Path) -> None:
    tuning = _tuning()
    tuning.parameters["a"].grad = torch.ones(2, 3)
    tuning.optimizer.step()
    tuning.losses = [0.5]
    save_file(tuning.state(), path, {"dreamtuner.tuning": json.dumps({"key": "x", "steps": 1})})


def _take_up(path: Path) -> None:
    """As a tuning of that name does: settings first, then the state."""
    plain_json(metadata_of_file(path).get("dreamtuner.tuning"))
    _tuning().load_state(read_whole(path)[0])


def _write_config(path: Path) -> None:
    paths = 'shards = ["a.tar", "b.tar"]\ncheckpoint = "a"\nfolder = "b"\ntower = "t"\n'
    path.write_text(f'{paths}family = "sd1"\nbatch = 4\nlearning_rate = 1e-5\n')


KINDS = {
    "saved subject": Kind(".safetensors", _subject, from_file),
    "subject encoder": Kind(".safetensors", _encoder, encoder_file.read),
    "IP-Adapter": Kind(".safetensors", _ip_adapter, encoder_file.read),
    "tuning's state": Kind(".safetensors", _state, _take_up),
    "LoRA or embedding": Kind(".safetensors", lambda p: save_file({"emb_params": torch.zeros(1, 4)}, p), read_whole),
    "image tower": Kind(".safetensors", lambda path: save_tower(path, ImageTower(TOWER)), read_tower),
    "checkpoint": Kind(
        ".safetensors",
        lambda path: checkpoint.save(path.parent, 1, {"step": torch.tensor(1)}, SETTINGS).replace(path),
        lambda path: checkpoint.load(path, SETTINGS),
    ),
    "settings of a pre-training": Kind(".toml", _write_config, read_config),
    "U2-Net's weights": Kind(".safetensors", lambda path: save_file(U2NetP().half().state_dict(), path), read_network),
}
