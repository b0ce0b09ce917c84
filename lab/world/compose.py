"""Pictures: one individual on a scene, or the same one twice. Everything comes from the given generator."""

from dataclasses import dataclass

import numpy as np

from .captions import caption_of
from .individual import Individual, sample_individual
from .scenes import SCENES
from .view import View, draw, sample_view

NAMED = 0.3  # of the captions name the colour, and as many the pose
CUT = 0.12  # of the subjects are partly beyond the border
MAX_CUT = 0.18  # of the subject's box, then
PAIR = (0.44, 0.5)  # sizes of two subjects in one square

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; it may reach beyond the picture


@dataclass(frozen=True)
class Placed:
    individual: Individual
    view: View
    box: Box


@dataclass(frozen=True)
class Picture:
    pixels: np.ndarray  # [H, W, 3] uint8
    mask: np.ndarray  # [H, W] uint8: 255 where a subject is, 0 elsewhere
    caption: str
    scene: str
    subjects: tuple[Placed, ...]


def compose(
    rng: np.random.Generator,
    side: int,
    *,
    individual: Individual | None = None,
    kind: str | None = None,
    scene: str | None = None,
    pose: str | None = None,
    count: int = 1,
    held_out: bool = False,
    size: tuple[float, float] = (0.72, 0.98),
) -> Picture:
    """A square picture of `side` pixels; `size` is the range of the subject's box as a share of the side.

    What is None is drawn from `rng`. `count` 2 shows the same individual twice, side by side and smaller.
    """
    if count not in (1, 2):
        raise ValueError(f"compose draws one subject or the same one twice, not {count}: give count 1 or 2.")
    individual = individual or sample_individual(rng, kind, held_out)
    views = [sample_view(rng, individual.kind, pose) for _ in range(count)]
    slots = [(0, side)] if count == 1 else [(0, side // 2), (side - side // 2, side)]
    if count == 2:
        size = PAIR
    boxes = [_place(rng, side, slot, size) for slot in slots]
    return _picture(rng, (side, side), individual, views, boxes, scene, count)


def compose_wide(
    rng: np.random.Generator,
    side: int,
    *,
    individual: Individual | None = None,
    kind: str | None = None,
    scene: str | None = None,
    held_out: bool = False,
) -> Picture:
    """A picture [side, 2 side] that shows one individual twice, each as large as in a square, captioned as one."""
    individual = individual or sample_individual(rng, kind, held_out)
    views = [sample_view(rng, individual.kind) for _ in range(2)]
    boxes = [_place(rng, side, slot, (0.72, 0.98)) for slot in ((0, side), (side, 2 * side))]
    return _picture(rng, (side, 2 * side), individual, views, boxes, scene, count=1)


def _place(rng: np.random.Generator, side: int, slot: tuple[int, int], size: tuple[float, float]) -> Box:
    """A square box within a slot (left, right) of the picture, now and then a little beyond its borders."""
    edge = round(side * rng.uniform(*size))
    left, top = slot[0] + rng.uniform() * (slot[1] - slot[0] - edge), rng.uniform() * (side - edge)
    if rng.random() < CUT:
        cut = rng.uniform(0.05, MAX_CUT) * edge
        if rng.random() < 0.5:
            top = -cut if rng.random() < 0.5 else side - edge + cut
        else:
            left += cut if slot[0] > 0 else -cut
    return round(left), round(top), round(left) + edge, round(top) + edge


def _picture(
    rng: np.random.Generator,
    shape: tuple[int, int],
    individual: Individual,
    views: list[View],
    boxes: list[Box],
    scene: str | None,
    count: int,
) -> Picture:
    scene = scene or str(rng.choice(list(SCENES)))
    pixels = SCENES[scene](*shape, rng).astype(np.float32).clip(0, 1) * 255  # [H, W, 3]
    mask = np.zeros(shape, np.uint8)
    for view, box in zip(views, boxes, strict=True):
        _paste(pixels, mask, draw(individual, view, box[2] - box[0]), box)
    colour = individual.colour if rng.random() < NAMED else ""
    one_pose = len({view.pose for view in views}) == 1
    pose = views[0].pose if rng.random() < NAMED and one_pose else ""
    placed = tuple(Placed(individual, view, box) for view, box in zip(views, boxes, strict=True))
    caption = caption_of(individual.kind, scene, colour, pose, count)
    return Picture(pixels.round().astype(np.uint8), mask, caption, scene, placed)


def _paste(pixels: np.ndarray, mask: np.ndarray, subject: np.ndarray, box: Box) -> None:
    left, top, right, bottom = box
    height, width = mask.shape
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    subject = subject[y0 - top : y1 - top, x0 - left : x1 - left].astype(np.float32)
    alpha = subject[..., 3:] / 255
    pixels[y0:y1, x0:x1] += alpha * (subject[..., :3] - pixels[y0:y1, x0:x1])
    mask[y0:y1, x0:x1][alpha[..., 0] >= 0.5] = 255
