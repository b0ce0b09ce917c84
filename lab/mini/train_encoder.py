"""The mini base's subject encoder: the inputs of the pack's pre-training, and then that pre-training."""

import argparse
import importlib
import json
import os
from pathlib import Path
from types import ModuleType

from lab import inside

from .checkpoint import require, same_options
from .config import Preset
from .encoder_data import write_shards
from .sheet import import_host
from .shipped import CONTROL, ENCODER
from .train_tower import train_tower

CONFIG = Path(__file__).parent / "encoder.toml"


def pack(module: str) -> ModuleType:
    """A module of the method, from the one loaded copy of the pack."""
    return importlib.import_module(f"{inside.PACK}.dreamtuner_core.{module}")


def train_encoder(args: argparse.Namespace, preset: Preset) -> None:
    """Shards, image tower, pre-training; the encoder's file is written beside the base's weights.

    As one of several processes (torchrun -m lab.mini encoder), it needs existing shards and tower.
    """
    control = None if args.without_layout else args.weights.with_name(CONTROL)
    for needed in filter(None, (args.weights, control)):  # now, not after minutes of training the tower
        require(needed, "export")
    import_host(args.host)
    inside.import_pack()
    shards, tower = args.folder / "encoder_shards", args.folder / "tower.safetensors"
    options = {"preset": args.preset, "samples": args.samples, "repeated": preset.repeated}
    same_options(args.folder / "shards.json", options, made=shards.is_dir())
    if not shards.is_dir():
        write_shards(shards, args.folder, preset, args.samples)
    if not tower.is_file():
        train_tower(tower, pack)
    files = {
        "checkpoint": args.weights,
        "controlnet": control,
        "tower": tower,
        "folder": args.folder / ("encoder_without_layout" if args.without_layout else "encoder"),
    }
    changed: dict[str, object] = {name: str(path.absolute()) if path else "" for name, path in files.items()}
    changed["side"] = preset.side
    changed["shards"] = sorted(str(path.absolute()) for path in shards.glob("*.tar"))
    if args.encoder_steps:
        changed["steps"] = args.encoder_steps
    settings = [part for name, value in changed.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    code = pack("pretraining.__main__").main([str(CONFIG), "--comfyui", str(args.host), *settings])
    trained = Path(files["folder"]) / "subject_encoder.safetensors"
    if not args.without_layout and int(os.environ.get("RANK", "0")) == 0 and trained.is_file():
        publish(trained, args.weights.with_name(ENCODER))  # also if the training was stopped
    if code:
        raise SystemExit(code)


def publish(trained: Path, path: Path) -> None:
    """Write the encoder in fp16."""
    encoder, origin = pack("encoder.file").read(trained)
    pack("encoder.file").save(path, encoder.half(), origin)
    print(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)")
