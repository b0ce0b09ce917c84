"""Mutants of what a layer reads: Eq. 3 and its weights, guidance, kept features, and a subject's own grid."""

from __future__ import annotations

from .mutant import Mutant

CORE, SAMPLING = "dreamtuner_core", "dreamtuner_core/host/sampling"
ATTENTION, GUIDANCE, BANK = (f"{CORE}/{name}.py" for name in ("attention", "guidance", "bank"))
OF_ATTENTION, OF_GUIDANCE, OF_BANK = (f"tests/unit/test_{name}.py" for name in ("attention", "guidance", "bank"))
PATCH, REGIONS, ROWS = f"{SAMPLING}/patch.py", f"{SAMPLING}/regions.py", f"{CORE}/host/rows.py"
MATH, NO_TRACE, STACKING = (f"tests/host/test_{name}.py" for name in ("sampling_math", "no_trace", "stacking"))
OF_ROWS, PACKS, COMBINED = (f"tests/host/test_{name}.py" for name in ("rows", "other_packs", "combine_subjects"))

MUTANTS = [
    Mutant("products scaled for the narrow head", ATTENTION, "q * math.sqrt(wide / head_size)", "q", OF_ATTENTION),
    Mutant("a region's zero is seen a little", ATTENTION, "LOG_ZERO = -1000.0", "LOG_ZERO = -10.0", OF_ATTENTION),
    Mutant("another pack's output is not diminished", ATTENTION, "* (1 - out[..., head_size : head_size + 1])", "",
           OF_ATTENTION),
    Mutant("another pack's values count twice", ATTENTION, "v if own is None else torch.zeros_like(v)", "v",
           OF_ATTENTION),
    Mutant("the first reference token is no reference", ATTENTION, ">= own_keys", "> own_keys", OF_ATTENTION),
    Mutant("a region hides the picture too", ATTENTION, "subject[:, start:stop]", "subject[:, :stop]", OF_ATTENTION),
    Mutant("the second subject in the first one's region", ATTENTION, "start = stop", "start = own_keys",
           OF_ATTENTION),
    Mutant("a half's weight is rounded", ATTENTION, "(exact - rounded.to(precise)).to(q.dtype)",
           "torch.zeros_like(rounded)", OF_ATTENTION),
    Mutant("the weight as if heads were not widened", ATTENTION, "root = math.sqrt(head_size + extra)",
           "root = math.sqrt(head_size)", OF_ATTENTION),
    Mutant("Eq. 4 and 5 swapped", GUIDANCE, "lam < self", "lam > self", OF_GUIDANCE),
    Mutant("lambda without the seed", GUIDANCE, 'f"{seed}:{step_sigma:.5e}"', 'f"{step_sigma:.5e}"', OF_GUIDANCE),
    Mutant("lambda without the step", GUIDANCE, 'f"{seed}:{step_sigma:.5e}"', 'f"{seed}"', OF_GUIDANCE),
    Mutant("a step that began with the first", GUIDANCE, "min(begun)", "max(begun)", OF_GUIDANCE),
    Mutant("a step's own sigma is not its beginning", GUIDANCE, "s >= sigma * (1 - 1e-4)", "s > sigma * (1 + 1e-4)",
           OF_GUIDANCE),
    Mutant("dt the other way", GUIDANCE, "sigmas) + timesteps", "sigmas) - timesteps", OF_GUIDANCE),
    Mutant("dt in levels of a short table", GUIDANCE, " * len(sigmas) / TIMESTEPS", "", OF_GUIDANCE),
    Mutant("between two levels: the lower", GUIDANCE, "(shifted - below) * (high - low)", "0", OF_GUIDANCE),
    Mutant("position between two levels: the lower", GUIDANCE, "(math.log(sigma) - low) / (high - low)", "0",
           OF_GUIDANCE),
    Mutant("what the last run used makes room", BANK, ">= self._run - 1", ">= self._run", OF_BANK),
    Mutant("what is read is not used", BANK, "entry.last_run = self._run", "pass", OF_BANK),
    Mutant("the newest makes room first", BANK, "key=lambda k: self._entries[k].last_run",
           "key=lambda k: -self._entries[k].last_run", OF_BANK),
    Mutant("what is replaced still counts", BANK, "self._entries.pop(key, None)", "pass", OF_BANK),
    Mutant("more is kept than allowed", BANK, "if self.nbytes() + needed > self.limit:", "if False:", OF_BANK),
    Mutant("kept on one device, given on the other", BANK, "if entry.device == device:", "if True:", OF_BANK),
    Mutant("moved, and counted where it was", BANK, "entry.device = target", "pass", OF_BANK),
    Mutant("more is moved than asked", BANK, "if freed >= amount:", "if False:", OF_BANK),
    Mutant("m_r's soft values count as 1", PATCH, "weight * mask", "weight * mask.ceil()", MATH),
    Mutant("every part of the U-Net reads", PATCH, "layer.block in self.subjects[read.subject].blocks", "True", NO_TRACE),
    Mutant("log m of other regions", PATCH, "key = (reading, regions, tokens", "key = (reading, tokens", MATH),
    Mutant("log m of other weights", PATCH, "key = (reading, regions, tokens",
           "key = (tuple(r[:2] for r in reading), regions, tokens", MATH),
    Mutant("folded keys are not folded", PATCH, "if k.shape[0] != q.shape[0]:", "if False:", STACKING),
    Mutant("a region does not follow folded tokens", PATCH, "if before and self.call.spots:", "if False:", STACKING),
    Mutant("a region follows others' rows", PATCH, "index = self.index[part]",
           "index = self.index.roll(1, 0)[part]", STACKING),
    Mutant("another pack's attention is replaced", PATCH, "None if standing is None else standing(q, k, v, options)",
           "None", STACKING),
    Mutant("every picture in the first one's region", REGIONS, "region[spot.picture][None]", "region[0][None]", OF_ROWS),
    Mutant("an area sees the whole region", REGIONS, "return cut(whole, *spot[1:])", "return whole", STACKING),
    Mutant("rows and columns of a tile swapped", ROWS, "cut(pictures[picture], height, width, top, left), tile",
           "cut(pictures[picture], height, width, left, top), tile", OF_ROWS),
    Mutant("a tile stops at the edge", ROWS, "(left + torch.arange(width, device=x.device)) % x.shape[-1]",
           "(left + torch.arange(width, device=x.device)).clamp(max=x.shape[-1] - 1)", OF_ROWS),
    Mutant("tiles are taken for sides", ROWS, "return True  # where the texts", "return False  # where the texts", OF_ROWS),
    Mutant("folded rows in turn", ROWS, "[i // times for i in range(x.shape[0])]",
           "[i % len(self.rows) for i in range(x.shape[0])]", STACKING),
    Mutant("joined in the order that was read", ROWS, "joined if order == sorted(order) else joined[", "joined or joined[",
           OF_ROWS),
    Mutant("a part named by its caller is not looked at", ROWS, "and torch.equal(whole[named], x)", "", OF_ROWS),
    Mutant("weight at the end from the first step", "dreamtuner_core/host/settings.py",
           "min(max((percent - self.start)", "min(max((1 - self.start)", NO_TRACE),
    Mutant("each of several pictures with the whole weight", "dreamtuner_core/host/settings.py",
           "weight=self.weight / len(pictures)", "weight=self.weight", COMBINED),
    Mutant("a reference of odd sides, on another grid", "dreamtuner_core/subject.py",
           "F.adaptive_avg_pool2d(mask.float(), (height, width))", "F.adaptive_max_pool2d(mask.float(), (height, width))",
           "tests/unit/test_to_grid.py"),
]  # fmt: skip
