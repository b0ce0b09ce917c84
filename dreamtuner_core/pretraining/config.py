"""The settings of a pre-training: one frozen dataclass, read from a TOML file."""

from __future__ import annotations

import hashlib
import math
import re
import sys
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..ranges import check_settings, setting

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRECISIONS = ("bf16", "fp32")
TAR = re.compile(r"[^/\\\s'\"&=:@]+\.tar(?:\.\w+)?")  # the name of a shard in its path, address or command
RUN_UNCHANGED = (
    *("folder", "checkpoint", "controlnet", "clip_vision", "tower", "steps", "accumulation", "gradient_checkpointing"),
    *("workers", "allow_commands", "save_every", "keep", "log_every", "sheet_every", "sheet_rows", "licence"),
)
"""Fields that may change when a run is resumed: where the files are, and how far or how it runs."""


@dataclass(frozen=True)
class PretrainingConfig:
    """Settings of one pre-training. Raises ValueError, in one sentence, for an invalid value.

    Files. checkpoint: the base model. controlnet: the layout's, frozen; empty trains without one (an ablation: the
    reference's layout leaks). clip_vision or tower: the image tower, the host's or a file of `save_tower` that becomes
    part of the encoder's file. shards: WebDataset names, braces expanded. folder: checkpoints, log and sheets. family:
    of the base model, written to the encoder's file. licence: of the trained file, in words.

    Steps. batch: rows of one optimiser step over all processes, each from its own stream; accumulation: parts in which
    a process computes its rows. warm_up: steps; decay_from: the share of the steps after which the rate falls linearly
    to zero, 1 is never. ema: decay of the averaged weights that are exported, 0 is none. min_snr: gamma, 0 is none.

    Probabilities for a row. drop_text: its caption is empty; drop_subject: the subject is not read; drop_both. A row
    without its subject trains nothing, because only the frozen base computes it, so these two are 0 by default. flip,
    elastic, blur: probabilities; rotation: degrees either way; scale_low, scale_high: of the framed subject.

    Data. side: pixels of the square picture. latents: whether the samples hold its latent, so that no VAE is run.
    shuffle: samples in the shuffle buffer of each stream. workers: reading processes of each training process.
    allow_commands: whether shards may name commands to run (`pipe:`, and the addresses that WebDataset opens with one).
    """

    checkpoint: str
    shards: tuple[str, ...]
    folder: str
    family: str
    controlnet: str = ""
    clip_vision: str = ""
    tower: str = ""
    licence: str = ""
    steps: int = setting(100_000, low=1, high=10**9)
    seed: int = setting(0, low=0, high=2**63 - 1)
    side: int = setting(512, low=8, high=4096)
    latents: bool = False
    batch: int = setting(16, low=1, high=65_536)
    accumulation: int = setting(1, low=1, high=4096)
    learning_rate: float = setting(1e-5, low=0, high=1)
    warm_up: int = setting(500, low=1, high=10**9)
    decay_from: float = setting(1.0, low=0, high=1)
    weight_decay: float = setting(0.01, low=0, high=1)
    precision: str = setting("bf16", options=PRECISIONS)
    gradient_checkpointing: bool = True
    ema: float = setting(0.0, low=0, high=0.999999)
    min_snr: float = setting(0.0, low=0, high=1000)
    drop_text: float = setting(0.05, low=0, high=1)
    drop_subject: float = setting(0.0, low=0, high=1)
    drop_both: float = setting(0.0, low=0, high=1)
    flip: float = setting(0.5, low=0, high=1)
    rotation: float = setting(15.0, low=0, high=180)
    scale_low: float = setting(0.8, low=0.1, high=1)
    scale_high: float = setting(1.1, low=1, high=2)
    elastic: float = setting(0.5, low=0, high=1)
    blur: float = setting(0.3, low=0, high=1)
    res_blocks: int = setting(2, low=1, high=16)
    shuffle: int = setting(100, low=1, high=10**6)
    allow_commands: bool = False
    workers: int = setting(4, low=0, high=256)
    save_every: int = setting(1000, low=1, high=10**9)
    keep: int = setting(3, low=1, high=10**6)
    log_every: int = setting(50, low=1, high=10**9)
    sheet_every: int = setting(1000, low=0, high=10**9)
    sheet_rows: int = setting(4, low=1, high=64)

    def __post_init__(self) -> None:
        check_settings(self)
        for name in ("checkpoint", "folder", "family", "controlnet", "clip_vision", "tower", "licence"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be text, but is {getattr(self, name)!r:.60}.")
        for name in ("checkpoint", "folder", "family", "shards"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty.")
        if not isinstance(self.shards, tuple) or not all(isinstance(shard, str) for shard in self.shards):
            raise ValueError(f"shards must be a list of names, but is {self.shards!r:.60}.")
        if bool(self.clip_vision) == bool(self.tower):
            raise ValueError("set exactly one of clip_vision and tower, the image tower.")
        if self.drop_text + self.drop_subject + self.drop_both > 1:
            raise ValueError("the sum of drop_text, drop_subject and drop_both must be at most 1.")
        if self.side % 8:
            raise ValueError(f"side must be a multiple of 8, but is {self.side}.")

    def outcome(self) -> dict[str, Any]:
        """The settings that the result of a step depends on; two runs with the same ones take the same steps."""
        settings = {name: value for name, value in asdict(self).items() if name not in RUN_UNCHANGED}
        if self.decay_from < 1:
            settings["steps"] = self.steps
        return settings | {"layout": bool(self.controlnet), "shards": [_name_of(shard) for shard in self.shards]}

    def rows_of(self, processes: int) -> int:
        """Rows per step for each of so many processes. Raises ValueError if the batch cannot be divided."""
        if self.batch % (parts := processes * self.accumulation):
            raise ValueError(
                f"batch {self.batch} cannot be divided among {processes} processes with accumulation "
                f"{self.accumulation}; make it a multiple of {parts}."
            )
        return self.batch // processes

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        left = 1.0 if self.decay_from == 1 else (1 - step / self.steps) / (1 - self.decay_from)
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up, max(0.0, left))


def _name_of(shard: str) -> str:
    """A shard's name without its folder, which may change, and without a command's or an address's secrets."""
    found = TAR.findall(shard.partition("?")[0])
    return found[-1] if found else hashlib.sha256(shard.encode()).hexdigest()[:16]


def read_config(path: Path, **changed: Any) -> PretrainingConfig:
    """Read the settings from a TOML file; paths in it are relative to it. changed: fields to override.

    Raises ValueError, in one sentence, for an invalid file.
    """
    try:
        settings = tomllib.loads(path.read_text()) | changed
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as TOML ({error}).") from error
    known = {field.name for field in fields(PretrainingConfig)}
    if unknown := sorted(settings.keys() - known):
        raise ValueError(
            f"{path} sets {unknown[0]!r:.60}, which is not a setting; the settings are {', '.join(sorted(known))}."
        )
    needed = {field.name for field in fields(PretrainingConfig) if field.default is MISSING}
    if missing := sorted(needed - settings.keys()):
        raise ValueError(f"{path} must set {missing[0]}.")
    if isinstance(settings["shards"], list):  # TOML and JSON have no tuples
        settings["shards"] = tuple(settings["shards"])
    config = PretrainingConfig(**settings)
    files: dict[str, Any] = {"shards": tuple(_beside(path, shard) for shard in config.shards)}
    for name in ("checkpoint", "controlnet", "clip_vision", "tower", "folder"):
        files[name] = _beside(path, getattr(config, name))
    return replace(config, **files)


def _beside(path: Path, name: str) -> str:
    """A path relative to the file at `path`; unchanged if empty, absolute or an address (s3:, pipe:, https:)."""
    address = ":" in name and not Path(name).drive
    return name if not name or address else str(path.absolute().parent / name)


def stratified_level(step: int, row: int, batch: int, levels: int, chance: float) -> int:
    """The noise level of a row, stratified: each row of a batch draws from its own part of the levels, which rotates.

    Over the steps it is uniform. Ours: less variance between steps than independent draws. chance: uniform on 0..1.
    """
    return min(levels - 1, math.floor(((row + step) % batch + chance) / batch * levels))
