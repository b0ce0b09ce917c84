"""Train a subject encoder: `python -m dreamtuner_core.pretraining CONFIG.toml --comfyui PATH`.

See docs/pretraining.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from .config import PretrainingConfig, read_config

RESUMABLE = 75  # the exit code of a run that can be resumed (EX_TEMPFAIL)
PATIENCE = timedelta(hours=1)  # how long the others wait while the first process draws a sheet or writes a checkpoint


def main(argv: Sequence[str]) -> int:
    options = _options(argv)
    try:
        config = read_config(options.config, **dict(options.set))
        encoder_file = pretrain(config, options.comfyui)
    except ValueError as error:
        print(f"pretraining: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        from .run import Unfinished

        if not isinstance(error, Unfinished):
            raise
        print(f"pretraining: {error}", file=sys.stderr)
        return RESUMABLE
    print(f"pretraining: done, {encoder_file}")
    return 0


def pretrain(config: PretrainingConfig, comfyui: Path) -> Path:
    """Train with the ComfyUI at that path and return the encoder's file.

    Raises ValueError, in one sentence, for an invalid file, and run.Unfinished if the run stopped and can be resumed.
    """
    accelerator = processes(config)
    use_comfyui(comfyui, accelerator.device)
    from .frozen_base import FrozenBase
    from .loop import Pretraining
    from .run import run
    from .tower_file import read_tower

    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    base = FrozenBase(config.checkpoint, dtype, config.controlnet, config.clip_vision)
    torch.manual_seed(config.seed)
    encoder = base.encoder(config.family, read_tower(config.tower) if config.tower else None, config.res_blocks)
    return run(Pretraining(config, base, encoder.to(accelerator.device), accelerator))


def processes(config: PretrainingConfig) -> Any:
    """The Accelerator of this process: one of those that torchrun or `accelerate launch` started, or the only one.

    Raises ValueError, in one sentence, if accelerate is not installed.
    """
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed; run pip install 'dreamtuner[pretraining]'.") from error
    return Accelerator(
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        cpu=not torch.cuda.is_available(),  # without it, several processes on a CPU would not find each other
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )


def use_comfyui(path: Path, device: torch.device) -> None:
    """Make the host importable, on that device; does nothing if it is imported already.

    Raises ValueError, in one sentence, if there is no ComfyUI at that path.
    """
    if "comfy" in sys.modules:
        return
    if not (path / "comfy").is_dir():
        raise ValueError(f"there is no ComfyUI at {path}; give the folder that holds its main.py.")
    sys.path[:] = [str(path.resolve()), *(p for p in sys.path if p), str(Path.cwd())]  # its `nodes` before ours
    from comfy.cli_args import args

    args.cpu = device.type == "cpu"  # read when comfy.model_management is first imported
    args.use_pytorch_cross_attention = True  # its backward pass does not store the attention matrix


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dreamtuner_core.pretraining", description=__doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    parser.add_argument("--comfyui", type=Path, required=True, metavar="PATH", help="the folder of ComfyUI's main.py")
    parser.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override a setting of the file; the value is JSON: steps=200, precision='\"fp32\"'",
    )
    return parser.parse_args(argv)


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
