"""Speed and memory of self-subject attention against plain sampling, in one run.

A full-size U-Net with random weights, built by the host's own classes, is sampled by the host's own sampler, with and
without the pack's patch in turns: plain, computed, kept, plain, ... Each ratio is one patched run over the mean of the
plain runs before and after it; the figure is their median, the spread their largest less their smallest.

  reference "computed"  nothing of the reference is kept: a new subject's first picture
  reference "kept"      its keys and values are kept from a run before: another seed or prompt
  foreground            the part of the reference picture inside the mask, a disc in the middle
  floor                 the ratio of arithmetic alone, counted: plain + reference pass + attention to the foreground
  peak                  most memory in use in a patched run: the process's own on a CPU, PyTorch's on a GPU

Without a GPU the latents are 32x32 (256 pixels), with one 64x64 (512), and SDXL at 128x128 (1024) is measured as well.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lab.bench_unet import MODELS, random_text, random_unet
from lab.host import say
from lab.inside import PACK, import_host, import_pack

MIB = 2**20
PART = 0.35  # of the reference picture; the whole is 1
CFG = 7.0
PIXELS = 8  # to one latent
WATCH_EVERY = 0.005  # seconds between two looks at the process's memory

@dataclass(frozen=True)
class Plan:
    """What is measured on one model. latent: side, in latents. cells: (batch, foreground)."""

    model: str
    latent: int
    steps: int
    repeats: int
    cells: tuple[tuple[int, float], ...] = ((1, PART), (1, 1.0), (4, PART), (4, 1.0))


@dataclass(frozen=True)
class Measured:
    """One sampling run."""

    seconds: float
    peak_mib: float


def main(argv: Sequence[str]) -> int:
    options = _options(argv)
    on_cpu = _host_on_cpu(options.cpu)
    plans = [_plan(name, options, on_cpu) for name in _models(options, on_cpu)]
    figures: dict[str, Any] = {"command": " ".join(["python3 -m lab bench", *argv])}
    import torch

    with torch.inference_mode():
        figures |= _machine()
        print(_heading(figures), flush=True)
        figures["rows"] = [row for plan in plans for row in _measure(plan)]
    figures["load_after"] = os.getloadavg()[0]
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
    parser.add_argument("--latent", type=int, help="side of the latents, instead of what the model's row says")
    parser.add_argument("--steps", type=int, help="sampling steps of one run")
    parser.add_argument("--repeats", type=int, help="patched runs of each kind")
    parser.add_argument("--model", choices=MODELS, help="this one alone; tiny is for the bench's own test")
    return parser.parse_args(argv)


def _models(options: argparse.Namespace, on_cpu: bool) -> list[str]:
    if options.model:
        return [options.model]
    return ["sd15", "sdxl"] if options.sdxl or not on_cpu else ["sd15"]


def _plan(model: str, options: argparse.Namespace, on_cpu: bool) -> Plan:
    """The rows by default, then with --quick, then with what the options say."""
    if on_cpu:
        plan = Plan(model, 64 if model == "sdxl" else 32, steps=4, repeats=3)
        quick = replace(plan, steps=2, repeats=3, cells=((1, PART), (1, 1.0), (4, PART)))
    else:
        plan = Plan(model, 128 if model == "sdxl" else 64, steps=20, repeats=7)
        quick = replace(plan, steps=10, repeats=5, cells=((1, PART), (1, 1.0), (4, PART)))
    given = {name: getattr(options, name) for name in ("latent", "steps", "repeats") if getattr(options, name)}
    return replace(quick if options.quick else plan, **given)


def _host_on_cpu(wanted: bool) -> bool:
    """Make the host importable, on the CPU where that is wanted or nothing else is there."""
    import torch

    on_cpu = wanted or not torch.cuda.is_available()
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


class Bench:
    """One U-Net, what it is told, and the runs over it."""

    def __init__(self, plan: Plan) -> None:
        import torch

        self.plan = plan
        self.patcher = random_unet(plan.model)
        self.dtype = str(self.patcher.model.get_dtype()).removeprefix("torch.")
        self.texts = [random_text(plan.model, seed) for seed in (1, 2, 3)]  # positive, negative, the reference's
        self.latent = torch.zeros(1, 4, plan.latent, plan.latent)
        self.costs = self._count()

    def cell(self, batch: int, foreground: float) -> Iterator[dict[str, Any]]:
        """The rows "computed" and "kept" of one batch and foreground."""
        apply_subject = _pack("host.apply").apply_subject
        subject = self._subject(foreground)
        patched = apply_subject(self.patcher, subject, 3.0)

        def plain() -> Measured:
            return self._run(self.patcher, batch)

        def computed() -> Measured:
            subject.bank.clear()
            return self._run(patched, batch)

        def kept() -> Measured:  # always after `computed`, which fills the bank
            return self._run(patched, batch)

        for warm_up in (plain, computed, kept):
            warm_up()
        levels, bank_mib = len(subject.bank), subject.bank.nbytes() / MIB
        plains, runs = [plain()], []
        for _ in range(self.plan.repeats):
            runs.append({"computed": computed(), "kept": kept()})
            plains.append(plain())
        between = [(a.seconds + b.seconds) / 2 for a, b in zip(plains, plains[1:])]
        for reference in ("computed", "kept"):
            measured = [run[reference] for run in runs]
            ratios = [m.seconds / p for m, p in zip(measured, between)]
            yield {
                "model": self.plan.model,
                "batch": batch,
                "foreground": foreground,
                "reference": reference,
                "ratio": statistics.median(ratios),
                "spread": max(ratios) - min(ratios),
                "floor": self._floor(batch, subject, reference),
                "peak_mib": max(m.peak_mib for m in measured),
                "plain_peak_mib": max(m.peak_mib for m in plains),
                "plain_seconds": statistics.median(m.seconds for m in plains),
                "ratios": ratios,
                "levels_kept": levels,
                "kept_mib": bank_mib,
                "latent": self.plan.latent,
                "steps": self.plan.steps,
                "dtype": self.dtype,
            }

    def _run(self, patcher: Any, batch: int, steps: int | None = None) -> Measured:
        import comfy.sample

        latent = self.latent.expand(batch, -1, -1, -1).contiguous()
        noise = comfy.sample.prepare_noise(latent, 0)
        positive, negative, _ = self.texts
        with _peak(patcher.load_device) as peak_mib:
            start = time.perf_counter()
            comfy.sample.sample(
                patcher,
                noise,
                steps or self.plan.steps,
                CFG,
                "euler",
                "normal",
                positive,
                negative,
                latent,
                disable_pbar=True,
                seed=0,
            )
            seconds = time.perf_counter() - start
        return Measured(seconds, peak_mib())

    def _subject(self, foreground: float) -> Any:
        """What Encode Subject Image makes of a random picture at the size of the picture being made."""
        import torch

        side = self.plan.latent * PIXELS
        bank = _pack("bank").ReferenceBank()
        return _pack("subject").Subject(
            picture=torch.rand(1, side, side, 3),
            mask=None if foreground == 1 else _disc(side, foreground),
            latent=torch.randn(self.latent.shape, generator=torch.Generator().manual_seed(0)),
            caption=self.texts[2],
            bank=bank,
            keeper=_pack("host.memory").BankKeeper(bank),
        )

    # --- the floor -------------------------------------------------------------------------------------------------

    def _count(self) -> dict[str, Any]:
        """FLOPs of one plain step (CFG) at batch 1 and of one reference pass; tokens and channels of each layer."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        reference, unet = _pack("host.reference"), _pack("host.unet")
        plain, passed = FlopCounterMode(display=False), FlopCounterMode(display=False)
        with plain:
            self._run(self.patcher, 1, steps=1)
        subject, device = self._subject(1.0), self.patcher.load_device
        with passed:
            features = reference.reference_features(
                self.patcher.model,
                subject,
                reference.text_conditions(self.patcher, subject, device),
                list(unet.self_attentions(self.patcher)),
                sigma=1.0,
                timestep=torch.tensor([300.0], device=device),
            )
        layers = [(layer.k.shape[1], layer.k.shape[2]) for layer in features.values()]
        return {"plain": plain.get_total_flops(), "reference": passed.get_total_flops(), "layers": layers}

    def _floor(self, batch: int, subject: Any, reference: str) -> float:
        """The arithmetic that Eq. 3 cannot do without, over that of a plain step: no overhead, no padding."""
        token_grid, side = _pack("subject").token_grid, self.plan.latent
        rows, plain = 2 * batch, batch * self.costs["plain"]
        more = 0 if reference == "kept" else self.costs["reference"]
        for tokens, channels in self.costs["layers"]:
            foreground = int((subject.foreground(*token_grid(side, side, tokens)) > 0).sum())
            more += 2 * 2 * rows * tokens * foreground * channels  # q k^T and its product with v
        return (plain + more) / plain


def _disc(side: int, area: float) -> Any:
    """A MASK [1, side, side] with a disc of that part of it in the middle."""
    import torch

    way = torch.arange(side) - (side - 1) / 2
    return (way[:, None] ** 2 + way**2 <= area * side**2 / torch.pi).float()[None]


@contextlib.contextmanager
def _peak(device: Any) -> Iterator[Callable[[], float]]:
    """Gives a function that says, afterwards, the most MiB in use while this was open."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device) / MIB
        return
    import psutil

    process, done = psutil.Process(), threading.Event()
    most = [process.memory_info().rss]

    def watch() -> None:
        while not done.wait(WATCH_EVERY):
            most.append(max(most.pop(), process.memory_info().rss))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: most[0] / MIB
    finally:
        done.set()
        watcher.join()


def _pack(module: str) -> Any:
    """A module of the method, of the one copy of the pack that is loaded."""
    return importlib.import_module(f"{PACK}.dreamtuner_core.{module}")


def _write(path: Path, text: str) -> None:
    """All of it or nothing: an interrupted run leaves no half file."""
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(text)
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
