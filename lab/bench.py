"""Speed and memory of self-subject attention, compared with plain sampling, in one run.

A full-size U-Net with random weights, built from the host's own classes, is sampled by the host's own sampler, with and
without the pack's patch in turns (lab/bench_rounds.py): in rounds between two plain runs, until the intervals of all
ratios are narrower than 5 %. If the rounds or the time end before that, the output shows it.

  reference "computed"  nothing of the reference is cached: a new subject's first picture
  reference "kept"      its keys and values are cached from a run before: another seed or prompt
  other names           other packs' methods, in a plain form in lab/bench_peers.py; they read the whole picture
  foreground            the share of the reference picture inside the mask, a disc in the middle
  wall, cpu             multiples of plain sampling: of the clock, and of all threads' time; medians over the rounds
  interval              the 95 % confidence interval of the wall ratio
  again                 plain sampling over plain sampling: the noise
  floor                 the ratio of the arithmetic, counted: plain + reference pass + attention to the foreground
  peak                  most memory in use in a patched run: the process's own on a CPU, PyTorch's on a GPU

Then follow a step of the subject encoder's pre-training, and with --all one of Subject Tuning, relative to the U-Net's
own forward and backward pass; the ways to compute Eq. 3; and the reference pass for several noise levels at once.

Without a GPU the latents are 32x32 (256 pixels); with one they are 64x64 (512), and SDXL is measured as well, at
128x128 (1024). --quick uses fewer steps and rounds; without a GPU, latents of 24x24.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab import bench_lines as lines
from lab.bench_rounds import Limits
from lab.bench_run import PART, Bench, Plan
from lab.bench_training import training_row
from lab.bench_tuning import tuning_row
from lab.bench_unet import TINY_MODELS
from lab.host import say
from lab.inside import import_host, import_pack

IDLE = 0.25  # load of a core, above which other work disturbs the figures
TUNING_STEPS = 300


def main(argv: Sequence[str]) -> int:
    options = _options(argv)
    if options.json is not None and not _can_write(options.json):
        say(f"{options.json} cannot be written; choose another file.")
        return 2
    on_cpu = _host_on_cpu(options.device)
    if on_cpu is None:
        say("There is no GPU here that PyTorch can use: leave out --device cuda, or use --device cpu.")
        return 2
    figures: dict[str, Any] = {"command": " ".join(["python3 -m lab bench", *argv])}
    _measure([_plan(name, options, on_cpu) for name in _models(options, on_cpu)], options, on_cpu, figures)
    if options.json is not None:
        _write(options.json, json.dumps(figures, indent=1) + "\n")
        say(f"figures in {options.json}")
    print(figures["command"])
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m lab bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer steps and rounds")
    parser.add_argument("--all", action="store_true", help="also Subject Tuning and the choices; 9 minutes on a GPU")
    parser.add_argument("--tuning", action="store_true", help="a step of Subject Tuning and its parts, nothing else")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--sdxl", action="store_true", help="SDXL too without a GPU (at 512 pixels; 12 GB)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="the device; else a GPU if there is one")
    parser.add_argument(
        "--latent", type=_count, metavar="N", help="side of the latents, instead of the model's default"
    )
    parser.add_argument("--steps", type=_count, metavar="N", help="sampling steps of one run")
    parser.add_argument("--rounds", type=_count, metavar="N", help="exactly this many rounds")
    parser.add_argument("--seconds", type=_count, metavar="N", help="time for the rounds of a cell, about")
    parser.add_argument("--model", choices=("sd15", "sdxl"), help="only this model")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to test the bench; the figures mean nothing")
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, but got {number}")
    return number


def _models(options: argparse.Namespace, on_cpu: bool) -> list[str]:
    if options.tiny:
        return list(TINY_MODELS)
    if options.model:
        return [options.model]
    return ["sd15", "sdxl"] if options.sdxl or not on_cpu else ["sd15"]


def _plan(model: str, options: argparse.Namespace, on_cpu: bool) -> Plan:
    """The default plan, changed by --quick or --all, then by the other options."""
    if model in TINY_MODELS:
        plan = Plan(model, latent=8, steps=1, limits=Limits(fewest=1, most=1), cells=((1, PART),))
    elif on_cpu:
        plan = Plan(model, 64 if model == "sdxl" else 32, steps=2)
        plan = replace(plan, latent=24, limits=Limits(most=8)) if options.quick else plan
    else:
        plan = Plan(model, 128 if model == "sdxl" else 64, steps=10)
        plan = replace(plan, limits=Limits(seconds=20)) if options.quick or options.all else plan
    given = {name: getattr(options, name) for name in ("latent", "steps") if getattr(options, name)}
    limits = plan.limits if options.seconds is None else replace(plan.limits, seconds=options.seconds)
    limits = limits if options.rounds is None else replace(limits, fewest=options.rounds, most=options.rounds)
    return replace(plan, limits=limits, **given)


def _host_on_cpu(device: str | None) -> bool | None:
    """Make the host importable. Returns whether it is on the CPU; None if a GPU is wanted but missing."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return None
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if "comfy" not in sys.modules:  # in a test it is already imported
        import_host(cpu=on_cpu)
    import_pack()
    return on_cpu


def _machine() -> dict[str, Any]:
    """The machine and versions that the figures were measured with."""
    import comfy.ldm.modules.attention as attention
    import comfyui_version
    import torch
    from comfy.model_management import get_torch_device

    device = get_torch_device()
    on_cpu = device.type == "cpu"
    return {
        "device": f"cpu, {_processor()}" if on_cpu else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "host": f"ComfyUI {comfyui_version.__version__}",
        "torch": torch.__version__,
        "attention": attention.optimized_attention.__name__,
        "load_before": os.getloadavg()[0],
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _measure(plans: Sequence[Plan], options: argparse.Namespace, on_cpu: bool, figures: dict[str, Any]) -> None:
    """Measure everything that the options select, print each row at once, and add it to the figures."""
    figures |= _machine()
    print(lines.heading(figures), flush=True)
    parts: dict[str, list[dict[str, Any]]] = {"rows": [], "training": [], "tuning": [], "ways": [], "levels": []}
    figures |= parts
    for plan in plans:
        if not options.tuning:
            _sampling(plan, options, parts)
        trainable = plan.model != "sdxl" or not on_cpu  # its gradients alone are 10 GB
        if trainable and not (options.quick or options.tuning):
            parts["training"] += _shown([training_row(plan)], lines.training)
        if trainable and (options.all or options.tuning):
            parts["tuning"] += _shown([tuning_row(plan, 2 if options.tiny else TUNING_STEPS)], lines.tuning)
    figures["load_after"] = os.getloadavg()[0]
    if figures["load_before"] > IDLE * figures["cores"]:
        print(f"Other work was running (load {figures['load_before']:.1f}): these figures are less reliable.")


def _sampling(plan: Plan, options: argparse.Namespace, parts: dict[str, list[dict[str, Any]]]) -> None:
    import torch

    with torch.inference_mode():
        bench = Bench(plan)
        parts["rows"] += _cells(bench)
        if options.all:
            _choices(bench, parts)
        bench.close()


def _cells(bench: Bench) -> Iterator[dict[str, Any]]:
    """The rows of one model."""
    plan = bench.plan
    print(lines.head(plan, bench.dtype))
    for number, (batch, foreground) in enumerate(plan.cells):
        yield from _shown(bench.cell(batch, foreground, peers=number == 0), lines.row)


def _shown(rows: Iterable[dict[str, Any]], line: Callable[[dict[str, Any]], str]) -> Iterator[dict[str, Any]]:
    for row in rows:
        print(line(row), flush=True)
        yield row


def _choices(bench: Bench, parts: dict[str, list[dict[str, Any]]]) -> None:
    from lab.bench_ways import level_rows, way_rows  # imports torch

    parts["ways"] += _shown(way_rows(bench), lines.way)
    parts["levels"] += _shown(level_rows(bench), lines.level)


def _can_write(path: Path) -> bool:
    """Checked first, so that minutes of measuring are not lost."""
    try:
        _write(_part(path), "")
        _part(path).unlink()
    except OSError:
        return False
    return not path.is_dir()


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _write(path: Path, text: str) -> None:
    """Write the file completely or not at all, so that an interrupted run leaves no part of a file."""
    part = _part(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(text)
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
