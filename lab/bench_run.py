"""The runs of the bench: one U-Net sampled through the host, with and without the pack's patch."""

from __future__ import annotations

import contextlib
import importlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lab.bench_unet import random_text, random_unet
from lab.inside import PACK

MIB = 2**20
PART = 0.35  # of the reference picture; the whole is 1
CFG = 7.0
WEIGHT = 3.0  # w_ref
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
    cpu_seconds: float  # of all threads
    peak_mib: float


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
        patched = apply_subject(self.patcher, subject, WEIGHT)

        def plain() -> Measured:
            return self._run(self.patcher, batch)

        def computed() -> Measured:
            subject.bank.clear()
            return self._run(patched, batch)

        def kept() -> Measured:  # always after `computed`, which fills the bank
            return self._run(patched, batch)

        plain(), computed()  # a warm-up of both
        levels, bank_mib = len(subject.bank), subject.bank.nbytes() / MIB
        plains, runs = [plain()], []
        for _ in range(self.plan.repeats):
            runs.append({"computed": computed(), "kept": kept()})
            plains.append(plain())
        for reference in ("computed", "kept"):
            measured = [run[reference] for run in runs]
            ratios = ratios_between([m.seconds for m in measured], [m.seconds for m in plains])
            cpu_ratios = ratios_between([m.cpu_seconds for m in measured], [m.cpu_seconds for m in plains])
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
                "cpu_ratio": statistics.median(cpu_ratios),
                "levels_kept": levels,
                "kept_mib": bank_mib,
                "latent": self.plan.latent,
                "steps": self.plan.steps,
                "dtype": self.dtype,
            }

    def close(self) -> None:
        """Give the memory back, for the next model."""
        from comfy import model_management

        model_management.unload_all_models()

    def _run(self, patcher: Any, batch: int, steps: int | None = None) -> Measured:
        import comfy.sample

        latent = self.latent.expand(batch, -1, -1, -1).contiguous()
        noise = comfy.sample.prepare_noise(latent, 0)
        positive, negative, _ = self.texts
        with _peak(patcher.load_device) as peak_mib:
            start, cpu_start = time.perf_counter(), time.process_time()
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
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        return Measured(seconds, cpu_seconds, peak_mib())

    def _subject(self, foreground: float) -> Any:
        """What Encode Subject Image makes of a random picture at the size of the picture being made."""
        import torch

        side = self.plan.latent * PIXELS
        bank = _pack("bank").ReferenceBank()
        return _pack("subject").Subject(
            picture=torch.rand(1, side, side, 3),
            mask=None if foreground == 1 else disc(side, foreground),
            latent=torch.randn(self.latent.shape, generator=torch.Generator().manual_seed(0)),
            caption=self.texts[2],
            bank=bank,
            keeper=_pack("host.subject.memory").BankKeeper(bank),
        )

    # --- the floor -------------------------------------------------------------------------------------------------

    def _count(self) -> dict[str, Any]:
        """FLOPs of one plain step (CFG) at batch 1 and of one reference pass; tokens and channels of each layer."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        reference, unet = _pack("host.sampling.reference"), _pack("host.unet")
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


def ratios_between(runs: Sequence[float], plains: Sequence[float]) -> list[float]:
    """Each run over the mean of the plain runs before and after it."""
    return [run / ((before + after) / 2) for run, before, after in zip(runs, plains, plains[1:])]


def disc(side: int, area: float) -> Any:
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
