"""Teaches the reader on true pictures of training individuals, crisp and softened.

How often it is right is counted on true pictures of held-out individuals as the base's own autoencoder leaves them, for
no picture that the base draws can be crisper: its confusion, kept beside its weights.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from lab.host import ROOT, say
from lab.measure.reader import (
    COUNT,
    GRID,
    KIND,
    POSE,
    SCENE,
    SIDE,
    SPOTS,
    UNASKED,
    Reader,
    asked_of,
    asked_table,
    questions,
)
from lab.mini.checkpoint import save_tensors, write_whole
from lab.world import KINDS, Picture, compose

Leaves = Callable[[Tensor], Tensor]
"""What the autoencoder leaves of pictures [B, H, W, 3] in 0..1."""

PICTURES, TEST_PICTURES, STEPS, BATCH = 8_000, 800, 2_600, 64
WHITE = "a white background"
RATE, DECAY = 1.5e-3, 0.02
PAIRS, SPLICED = 0.1, 0.25  # shares of pictures of two, and of those with two backgrounds
SMALLEST, LARGEST, SHIFT = 0.7, 1.15, 0.08  # what augmentation does to size and place
NOISE, GAIN = 0.04, 0.1


@dataclass(frozen=True)
class Lessons:
    """Pictures with the answers to their questions.

    pictures: [N, 3, 128, 128] uint8. kinds: N words. labels: [N, M], UNASKED where there is no answer. spots:
    [N, 32, 32] uint8, numbers of SPOTS.
    """

    pictures: Tensor
    kinds: list[str]
    labels: Tensor
    spots: Tensor


def composed(count: int, seed: int, held_out: bool = False, leaves: Leaves | None = None) -> Lessons:
    """True pictures, some of two things, some with a part of another scene, or of white, behind the subject."""
    rng = np.random.default_rng(seed)
    pictures, kinds, labels, spots, before = [], [], [], [], None
    for _ in range(count):
        picture = compose(rng, SIDE, count=2 if rng.random() < PAIRS else 1, held_out=held_out)
        pixels, spot, answers = picture.pixels, _spots(picture), _answers(picture)
        if before is not None and rng.random() < SPLICED:
            pixels, spot = _spliced(rng, picture, before)
            answers[SCENE] = ""
        before = picture
        kind = picture.subjects[0].individual.kind
        pictures.append(pixels)
        kinds.append(kind)
        labels.append([_number(q, answers) for q in asked_of(kind)])
        spots.append(spot)
    most = max(map(len, labels))
    padded = torch.tensor([row + [UNASKED] * (most - len(row)) for row in labels])
    seen = torch.from_numpy(np.stack(pictures))
    if leaves is not None:
        seen = torch.cat([(leaves(part.float() / 255) * 255).round().byte() for part in seen.split(64)])
    return Lessons(seen.movedim(-1, 1), kinds, padded, torch.from_numpy(np.stack(spots)))


def _answers(picture: Picture) -> dict[str, str]:
    """By question; of a picture of two only what is asked of every picture."""
    individual = picture.subjects[0].individual
    general = {KIND: individual.kind, SCENE: picture.scene, COUNT: str(len(picture.subjects))}
    if len(picture.subjects) > 1:
        return general
    own = {a.name: individual[a.name] for a in KINDS[individual.kind].attributes}
    return general | own | {POSE: picture.subjects[0].view.pose}


def _number(question: int, answers: dict[str, str]) -> int:
    asked = questions()[question]
    answer = answers.get(asked.name, "")
    return asked.answers.index(answer) if answer in asked.answers else UNASKED


def _spots(picture: Picture) -> np.ndarray:
    """[32, 32] uint8."""
    inside = picture.mask.reshape(GRID, SIDE // GRID, GRID, SIDE // GRID).mean((1, 3)) > 127
    return np.where(inside, 0, SPOTS.index(picture.scene)).astype(np.uint8)


def _spliced(rng: np.random.Generator, picture: Picture, other: Picture) -> tuple[np.ndarray, np.ndarray]:
    """The picture, beyond a random straight line with the background of another, or with white."""
    across = np.linspace(-1, 1, SIDE)
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5)
    beyond = np.cos(angle) * across[None] + np.sin(angle) * across[:, None] > offset
    white = rng.random() < 0.5
    free = beyond & (picture.mask == 0) & (white | (other.mask == 0))
    pixels = np.where(free[..., None], 255 if white else other.pixels, picture.pixels).astype(np.uint8)
    changed = free[2::4, 2::4]
    return pixels, np.where(changed, SPOTS.index(WHITE if white else other.scene), _spots(picture)).astype(np.uint8)


# --- teaching --------------------------------------------------------------------------------------------------------


def taught(lessons: Lessons, steps: int = STEPS, seed: int = 0) -> Reader:
    """A reader taught on those pictures, under bf16 autocast."""
    torch.manual_seed(seed)
    reader = Reader().train()
    optimiser = torch.optim.AdamW(reader.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    asked, order, begun = asked_table(lessons.kinds), torch.empty(0, dtype=torch.long), time.monotonic()
    for step in range(steps):
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(lessons.kinds))])
        rows, order = order[:BATCH], order[BATCH:]
        pictures, spots = augmented(lessons.pictures[rows].float() / 255, lessons.spots[rows])
        with torch.autocast("cpu", torch.bfloat16):
            logits, seen = reader(pictures, asked[rows])
        labels = lessons.labels[rows]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=UNASKED)
        loss = loss + 0.5 * F.cross_entropy(seen, spots.long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 25 == 24:
            say(f"  step {step + 1} of {steps}, loss {loss.item():.3f}, {time.monotonic() - begun:.0f} s")
    return reader.eval()


def augmented(pictures: Tensor, spots: Tensor) -> tuple[Tensor, Tensor]:
    """Other sizes, places, softness, brightness; a little noise. pictures: [B, 3, H, W]; spots: [B, 32, 32]."""
    count = len(pictures)
    size = torch.empty(count).uniform_(SMALLEST, LARGEST)
    place = torch.empty(count, 2).uniform_(-SHIFT, SHIFT)
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1 / size
    matrix[:, :, 2] = place
    x = _moved(pictures, matrix, "bilinear")
    spots = _moved(spots[:, None].float(), matrix, "nearest")[:, 0]
    soft = F.interpolate(F.interpolate(x, scale_factor=0.5, mode="area"), list(x.shape[-2:]), mode="bilinear")
    x = torch.lerp(x, soft, (torch.rand(count, 1, 1, 1) * 1.5 - 0.5).clamp(0))
    noise = torch.randn(x.shape[1:]) * NOISE * torch.rand(count, 1, 1, 1)
    x = x * torch.empty(count, 3, 1, 1).uniform_(1 - GAIN, 1 + GAIN) + noise
    return x.clamp(0, 1), spots


def _moved(x: Tensor, matrix: Tensor, mode: str) -> Tensor:
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode=mode, padding_mode="reflection", align_corners=False)


# --- how often it is right -------------------------------------------------------------------------------------------

Confusion = dict[str, dict[str, dict[str, int]]]
"""Question ("robot, head") -> true answer -> what was read -> how often."""


def title(kind: str, name: str) -> str:
    return f"{kind}, {name}" if kind else name


def confusion(reader: Reader, lessons: Lessons) -> Confusion:
    found: Confusion = {}
    for start in range(0, len(lessons.kinds), 64):
        rows = slice(start, start + 64)
        pictures = lessons.pictures[rows].movedim(1, -1).float() / 255
        for kind, labels, answers in zip(
            lessons.kinds[rows], lessons.labels[rows].tolist(), reader.read(pictures, lessons.kinds[rows]).answers
        ):
            for number, label in zip(asked_of(kind), labels):
                if label != UNASKED:
                    question = questions()[number]
                    read = found.setdefault(title(question.kind, question.name), {})
                    row = read.setdefault(question.answers[label], {})
                    row[answers[question.name]] = row.get(answers[question.name], 0) + 1
    return found


def right(found: Confusion, question: str) -> float:
    """Share of true pictures in which that question is answered right."""
    rows = found[question]
    return sum(row.get(answer, 0) for answer, row in rows.items()) / sum(sum(row.values()) for row in rows.values())


def frequency(found: Confusion, question: str, answer: str) -> float:
    """How often that answer is read in true pictures of any individual: what chance gets right."""
    rows = found[question].values()
    return sum(row.get(answer, 0) for row in rows) / sum(sum(row.values()) for row in rows)


# --- kept ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taught:
    """A reader with its confusion on true pictures of held-out individuals. key: what both depend on."""

    reader: Reader
    confusion: Confusion
    key: str


def kept_reader(
    folder: Path,
    autoencoder: str,
    leaves: Leaves,
    pictures: int = PICTURES,
    steps: int = STEPS,
    tests: int = TEST_PICTURES,
) -> Taught:
    """The reader, taught once for this world, and tested once for that autoencoder: its digest and what it leaves."""
    key = _key(pictures, steps)
    path = folder / f"reader-{key}.safetensors"
    if not path.exists():
        say(f"the reader is taught on {pictures} true pictures (once; minutes)")
        with torch.inference_mode(False), torch.enable_grad():
            learnt = taught(composed(pictures, 1), steps)
        save_tensors(path, {name: x.detach() for name, x in learnt.state_dict().items()})
    reader = Reader().eval()
    reader.load_state_dict(load_file(path))
    told = folder / f"reader-{key}-{autoencoder}-{tests}.json"
    if not told.exists():
        say(f"the reader is tested on {tests} true pictures, through the autoencoder")
        found = confusion(reader, composed(tests, 2, True, leaves))
        write_whole(told, lambda part: part.write_text(json.dumps(found)))
    return Taught(reader, json.loads(told.read_text()), told.stem)


def _key(*parts: object) -> str:
    files = [*sorted((ROOT / "lab" / "world").rglob("*.py")), Path(__file__), Path(__file__).with_name("reader.py")]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files))
    digest.update(repr(parts).encode())
    return digest.hexdigest()[:16]
