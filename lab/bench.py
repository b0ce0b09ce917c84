"""Speed and memory of self-subject attention against plain sampling, in one run.

A full-size U-Net with random weights, built by the host's own classes, is sampled by the host's own sampler, with and
without the pack's patch in turns: plain, computed, kept, plain, ... Each ratio is one patched run over the mean of the
plain runs before and after it; the figure is their median, the spread their largest less their smallest.

  reference "computed"  nothing of the reference is kept: a new subject's first picture
  reference "kept"      its keys and values are kept from a run before: another seed or prompt
  foreground            the part of the reference picture inside the mask, a disc in the middle
  floor                 the ratio of arithmetic alone, counted: plain + reference pass + attention to the foreground
  peak                  most memory in use in a patched run: the process's own on a CPU, PyTorch's on a GPU

The last line of each model is a step of the subject encoder's pre-training over the U-Net's own forward and backward;
--quick leaves it out.

Without a GPU the latents are 32x32 (256 pixels); with one they are 64x64 (512), and SDXL is measured as well, at
128x128 (1024). --quick leaves out batch 4 with the whole picture as foreground, and takes fewer steps and repeats;
without a GPU, latents of 24x24.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab.bench_run import PART, Bench, Plan
from lab.bench_training import training_row
from lab.bench_unet import MODELS
from lab.host import say
from lab.inside import import_host, import_pack

IDLE = 0.25  # load of a core, above which other work disturbs the figures


def main(argv: Sequence[str]) -> int:
    options = _options(argv)
    if options.json is not None and not _can_write(options.json):
        say(f"{options.json} cannot be written; give another file.")
        return 2
    on_cpu = _host_on_cpu(options.cpu)
    plans = [_plan(name, options, on_cpu) for name in _models(options, on_cpu)]
    figures: dict[str, Any] = {"command": " ".join(["python3 -m lab bench", *argv])}
    import torch

    with torch.inference_mode():
        figures |= _machine()
        print(_heading(figures), flush=True)
        figures["rows"] = [row for plan in plans for row in _measure(plan)]
        # SDXL's gradients alone are 10 GB
        trainable = [plan for plan in plans if not options.quick and (plan.model != "sdxl" or not on_cpu)]
        figures["training"] = [_training(plan) for plan in trainable]
    figures["load_after"] = os.getloadavg()[0]
    if figures["load_before"] > IDLE * figures["cores"]:
        print(f"Other work was running (load {figures['load_before']:.1f}): take these figures with care.")
    if options.json is not None:
        _write(options.json, json.dumps(figures, indent=1) + "\n")
        say(f"figures in {options.json}")
    print(figures["command"])
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m lab bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rows, steps and repeats: two to three minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--sdxl", action="store_true", help="SDXL too where there is no GPU (at 512 pixels; 12 GB)")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    parser.add_argument(
        "--latent", type=_count, metavar="N", help="side of the latents, instead of what the model's row says"
    )
    parser.add_argument("--steps", type=_count, metavar="N", help="sampling steps of one run")
    parser.add_argument("--repeats", type=_count, metavar="N", help="patched runs of each kind")
    parser.add_argument("--model", choices=MODELS, help="this one alone; tiny is for the bench's own test")
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, but got {number}")
    return number


def _models(options: argparse.Namespace, on_cpu: bool) -> list[str]:
    if options.model:
        return [options.model]
    return ["sd15", "sdxl"] if options.sdxl or not on_cpu else ["sd15"]


def _plan(model: str, options: argparse.Namespace, on_cpu: bool) -> Plan:
    """The rows by default, then with --quick, then with what the options say."""
    if model == "tiny":
        plan = quick = Plan(model, latent=8, steps=1, repeats=1, cells=((1, PART),))
    elif on_cpu:
        plan = Plan(model, 64 if model == "sdxl" else 32, steps=2, repeats=4)
        quick = replace(plan, latent=24, steps=1, repeats=2, cells=((1, PART), (1, 1.0), (4, PART)))
    else:
        plan = Plan(model, 128 if model == "sdxl" else 64, steps=20, repeats=7)
        quick = replace(plan, steps=10, repeats=5, cells=((1, PART), (1, 1.0), (4, PART)))
    given = {name: getattr(options, name) for name in ("latent", "steps", "repeats") if getattr(options, name)}
    return replace(quick if options.quick else plan, **given)


def _host_on_cpu(wanted: bool) -> bool:
    """Make the host importable, on the CPU where that is wanted or nothing else is there."""
    import torch

    on_cpu = wanted or not torch.cuda.is_available()
    if "comfy" not in sys.modules:  # it is there already in a test
        import_host(cpu=on_cpu)
    import_pack()
    return on_cpu


def _machine() -> dict[str, Any]:
    """What the figures were taken on."""
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


def _heading(figures: dict[str, Any]) -> str:
    return (
        "S-S-A against plain sampling (euler, CFG), full-size U-Nets with random weights\n"
        f"{figures['device']}, {figures['threads']} threads; {figures['host']}, torch {figures['torch']}, "
        f"{figures['attention']}; load before the run {figures['load_before']:.1f} on {figures['cores']} cores"
    )


def _measure(plan: Plan) -> Iterator[dict[str, Any]]:
    """The rows of one model, printed as they come."""
    say(f"building {plan.model}")
    bench = Bench(plan)
    print(
        f"{plan.model}: {bench.dtype}, {plan.latent}x{plan.latent} latents, {plan.steps} steps, "
        f"{plan.repeats} repeats after a warm-up\n"
        "batch  foreground  reference  ratio  spread  floor  plain s    peak MiB (plain)  levels kept"
    )
    for batch, foreground in plan.cells:
        for row in bench.cell(batch, foreground):
            print(
                f"{row['batch']:5}  {row['foreground']:10.0%}  {row['reference']:9}  {row['ratio']:5.2f}  "
                f"{row['spread']:6.2f}  {row['floor']:5.2f}  {row['plain_seconds']:7.2f}  "
                f"{row['peak_mib']:10.0f} ({row['plain_peak_mib']:.0f})  {row['levels_kept']} of {plan.steps}",
                flush=True,
            )
            yield row
    bench.close()


def _training(plan: Plan) -> dict[str, Any]:
    row = training_row(plan)
    print(
        f"{plan.model}: a pre-training step of the subject encoder over the U-Net's own forward and backward, batch "
        f"{row['batch']}: {row['ratio']:.2f} (spread {row['spread']:.2f}, arithmetic alone {row['floor']:.2f}, plain "
        f"{row['plain_seconds']:.2f} s)",
        flush=True,
    )
    return row


def _can_write(path: Path) -> bool:
    """Asked first, so that minutes of measuring are not lost."""
    try:
        _write(_part(path), "")
        _part(path).unlink()
    except OSError:
        return False
    return not path.is_dir()


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _write(path: Path, text: str) -> None:
    """All of it or nothing: an interrupted run leaves no half file."""
    part = _part(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(text)
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
