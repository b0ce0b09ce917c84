"""Training pictures: one drawing (sometimes the same one twice, sometimes two subjects) on a scene.

The same drawing repeated at other sizes and places is what teaches self-attention to look for the same
thing elsewhere. A wide picture shows it twice at the size of a lone one, and its caption does not say so: there only
looking can tell. Each picture's drawings are individuals of their own (individuals.py), so that "a cat" leaves
open which cat; repeated ones are the same individual.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .individuals import individual
from .scenes import SCENES

TWO_SUBJECTS = 0.05  # of the square pictures show two things
MAX_ROTATION = 6  # degrees
ALONE, TOGETHER = (0.65, 0.95), (0.42, 0.6)  # longer side of a subject, as a share of the picture's
NAMED = 0.25  # of the wide pictures show a concept of the preset, the others one of the other kinds
MAX_OVERLAP = 0.15  # of the smaller of two boxes


@dataclass(frozen=True)
class Picture:
    pixels: np.ndarray  # [side, width, 3] uint8
    mask: np.ndarray  # [side, width] uint8, 255 where a subject is
    caption: str


def pose(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """One view of a drawing: flipped or not, rotated a little, its longer side `size` pixels."""
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = float(rng.uniform(-MAX_ROTATION, MAX_ROTATION))
    scale = 2 * size / max(image.size)  # rotate at twice the size, then reduce
    image = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BILINEAR
    )
    image = image.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    image = image.crop(image.getchannel("A").getbbox())
    scale = size / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BOX)


def overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Shared area of two boxes (left, top, right, bottom) as a share of the smaller one."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))


def place(canvas: Image.Image, mask: Image.Image, views: list[Image.Image], rng: np.random.Generator) -> int:
    """Paste views at random places where they hardly overlap; returns how many found a place."""
    side, boxes = canvas.width, []
    for view in views:
        for _ in range(20):
            left, top = (int(rng.integers(0, side - extent + 1)) for extent in view.size)
            box = (left, top, left + view.width, top + view.height)
            if all(overlap(box, other) <= MAX_OVERLAP for other in boxes):
                canvas.paste(view, box[:2], view)
                mask.paste(view.getchannel("A"), box[:2], view)
                boxes.append(box)
                break
        else:
            break
    return len(boxes)


def one(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def many(noun: str) -> str:
    if noun.endswith("fish"):
        return noun
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def caption_of(subjects: list[str], scene: str) -> str:
    """ "a cat, on grass"; "two cats, on grass"; "a cat and a car, on grass"."""
    if len(subjects) > 1 and len(set(subjects)) == 1:
        what = f"two {many(subjects[0])}"
    else:
        what = " and ".join(one(subject) for subject in subjects)
    return f"{what}, on {scene}"


def compose(
    artwork: dict[str, list[Image.Image]],
    side: int,
    rng: np.random.Generator,
    repeated: float,
    individuals: bool = True,
) -> Picture:
    """One training picture, or one of held-out drawings.

    artwork: {concept: drawings}; without `individuals` they are shown as they are. repeated: the share of pictures that
    show a drawing twice.
    """
    concepts = list(artwork)
    scene = list(SCENES)[rng.integers(len(SCENES))]
    subjects = [concepts[rng.integers(len(concepts))]]
    kind = rng.random()
    if kind < repeated:
        subjects *= 2
    elif kind < repeated + TWO_SUBJECTS and len(concepts) > 1:
        subjects.append(concepts[rng.integers(len(concepts))])
    drawings = {}
    for subject in subjects:
        if subject not in drawings:
            drawing = artwork[subject][rng.integers(len(artwork[subject]))]
            drawings[subject] = individual(drawing, rng) if individuals else drawing
    return arrange([drawings[subject] for subject in subjects], subjects, scene, side, rng)


def arrange(
    drawings: list[Image.Image], subjects: list[str], scene: str, side: int, rng: np.random.Generator
) -> Picture:
    """These drawings of these subjects on that scene."""
    size_range = ALONE if len(subjects) == 1 else TOGETHER
    sizes = sorted((round(side * rng.uniform(*size_range)) for _ in subjects), reverse=True)
    views = [pose(drawing, size, rng) for drawing, size in zip(drawings, sizes)]
    canvas, mask = paint_scene(scene, side, side, rng), Image.new("L", (side, side))
    placed = place(canvas, mask, views, rng)
    return Picture(np.asarray(canvas), np.asarray(mask), caption_of(subjects[:placed], scene))


def paint_scene(scene: str, side: int, width: int, rng: np.random.Generator) -> Image.Image:
    return Image.fromarray((SCENES[scene](side, width, rng).clip(0, 1) * 255).astype(np.uint8))


def compose_wide(
    artwork: dict[str, list[Image.Image]], others: dict[str, list[Image.Image]], side: int, rng: np.random.Generator
) -> Picture:
    """A picture twice as wide as high: one individual twice, each in a half of its own, captioned as one."""
    kinds = artwork if rng.random() < NAMED or not others else others
    subject, scene = list(kinds)[rng.integers(len(kinds))], list(SCENES)[rng.integers(len(SCENES))]
    drawing = individual(kinds[subject][rng.integers(len(kinds[subject]))], rng)
    canvas, mask = paint_scene(scene, side, 2 * side, rng), Image.new("L", (2 * side, side))
    for left in (0, side):
        view = pose(drawing, round(side * rng.uniform(*ALONE)), rng)
        corner = (left + int(rng.integers(0, side - view.width + 1)), int(rng.integers(0, side - view.height + 1)))
        canvas.paste(view, corner, view)
        mask.paste(view.getchannel("A"), corner, view)
    return Picture(np.asarray(canvas), np.asarray(mask), caption_of([subject], scene))
