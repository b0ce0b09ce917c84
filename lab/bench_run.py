"""The runs of the bench: one U-Net sampled through the host, with and without the pack's patch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lab.bench_peers import PEERS
from lab.bench_rounds import MIB, Limits, take
from lab.bench_unet import pack, random_text, random_unet

PART = 0.35  # share of the reference picture that is foreground; 1 is all of it
CFG = 7.0
WEIGHT = 3.0  # w_ref, of both sides of guidance: the dearest case
PIXELS = 8  # to one latent
CELLS = ((1, PART), (1, 1.0), (4, PART))


@dataclass(frozen=True)
class Plan:
    """What is measured on one model. latent: its side. cells: (batch, foreground), with the peers in the first."""

    model: str
    latent: int
    steps: int
    limits: Limits = field(default_factory=Limits)
    cells: tuple[tuple[int, float], ...] = CELLS


class Bench:
    """One U-Net, its conds, and the runs over it."""

    def __init__(self, plan: Plan) -> None:
        import torch

        self.plan = plan
        self.patcher = random_unet(plan.model)
        self.device = self.patcher.load_device
        self.dtype = str(self.patcher.model.get_dtype()).removeprefix("torch.")
        self.texts = [random_text(plan.model, seed) for seed in (1, 2, 3)]  # positive, negative, the reference's
        self.latent = torch.zeros(1, 4, plan.latent, plan.latent)
        self.costs = self._count()

    def cell(self, batch: int, foreground: float, peers: bool = False) -> Iterator[dict[str, Any]]:
        """The rows "computed" and "kept" of one batch and foreground, and those of the peers."""
        subject = self.subject(foreground)
        patched = pack("host.apply").apply_subject(self.patcher, subject, WEIGHT, negative_weight=1.0)
        kept_bank = pack("host.memory").kept_features(patched).model

        def computed() -> None:
            kept_bank.clear()
            self._run(patched, batch)

        def kept() -> None:  # always after `computed`, which fills the bank
            self._run(patched, batch)

        runs: dict[str, Callable[[], None]] = {"computed": computed, "kept": kept}
        if peers:
            runs |= {name: self._peer(name, subject.latent, batch) for name in PEERS}
        rounds = take(lambda: self._run(self.patcher, batch), runs, self.plan.limits, self.device)
        for name in runs:
            ours = name not in PEERS
            yield {
                "model": self.plan.model,
                "batch": batch,
                "foreground": foreground if ours else 1.0,
                "reference": name,
                **rounds.row(name),
                "floor": self._floor(batch, subject, name) if ours else None,
                "levels_kept": len(kept_bank) if ours else 0,
                "kept_mib": kept_bank.nbytes() / MIB if ours else 0.0,
                "latent": self.plan.latent,
                "steps": self.plan.steps,
                "dtype": self.dtype,
            }

    def close(self) -> None:
        """Free the memory for the next model."""
        from comfy import model_management

        model_management.unload_all_models()

    def _peer(self, name: str, reference: Any, batch: int) -> Callable[[], None]:
        peer = PEERS[name](self.patcher, reference)
        return lambda: self._run(peer.patcher, batch, peer)

    def _run(self, patcher: Any, batch: int, peer: Any = None, steps: int | None = None) -> None:
        import comfy.sample

        latent = self.latent.expand(batch, -1, -1, -1).contiguous()
        latent = latent if peer is None else peer.start(latent)
        noise = comfy.sample.prepare_noise(latent, 0)
        positive, negative, _ = self.texts
        how = (steps or self.plan.steps, CFG, "euler", "normal", positive, negative)
        comfy.sample.sample(patcher, noise, *how, latent, disable_pbar=True, seed=0)

    def subject(self, foreground: float) -> Any:
        """A subject as Encode Subject Image makes it, from a random picture of the size that is sampled."""
        import torch

        side = self.plan.latent * PIXELS
        return pack("subject").Subject(
            picture=torch.rand(1, side, side, 3),
            mask=None if foreground == 1 else disc(side, foreground),
            latent=torch.randn(self.latent.shape, generator=torch.Generator().manual_seed(0)),
            caption=self.texts[2],
        )

    # --- the floor -------------------------------------------------------------------------------------------------

    def _count(self) -> dict[str, Any]:
        """FLOPs of one plain step (CFG) at batch 1 and of one reference pass; tokens and channels of each layer."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        reference, unet = pack("host.sampling.reference"), pack("host.unet")
        plain, passed = FlopCounterMode(display=False), FlopCounterMode(display=False)
        with plain:
            self._run(self.patcher, 1, steps=1)
        subject, device = self.subject(1.0), self.device
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
        """The arithmetic that Eq. 3 needs, relative to a plain step: without overhead and padding."""
        token_grid, side = pack("subject").token_grid, self.plan.latent
        rows, plain = 2 * batch, batch * self.costs["plain"]
        more = 0 if reference == "kept" else self.costs["reference"]
        for tokens, channels in self.costs["layers"]:
            foreground = int((subject.foreground(*token_grid(side, side, tokens)) > 0).sum())
            more += 2 * 2 * rows * tokens * foreground * channels  # q k^T and its product with v
        return (plain + more) / plain


def disc(side: int, area: float) -> Any:
    """A MASK [1, side, side] with a disc in the middle. area: its share of the mask, 0..1."""
    import torch

    way = torch.arange(side) - (side - 1) / 2
    return (way[:, None] ** 2 + way**2 <= area * side**2 / torch.pi).float()[None]
