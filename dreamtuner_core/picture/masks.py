"""Reading a mask: which side of it is the subject, where that is, and which parts of it are specks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .areas import connected, grid

PRESENT = 0.05  # mask values below this are not part of the subject's outline
SPECK = 0.005  # an area with less than this share of the largest one's mass is a speck
RIM = 0.01  # of the picture's side: an area that is this close to the border everywhere is a stray line
NOISE = 0.001  # a clean mask is below this outside the subject
CLEAN = 0.99  # a pixel with this much of one side of the mask is completely on that side
SAMPLES = 512  # most rows and columns of a large picture that are read
CORNER = 0.01  # of the picture's shorter side
CLEAR = 0.1  # by how much one side must fit what was found better than the other


def what_is_marked(mask: Tensor, image: Tensor | None = None, find: Callable[[], Tensor] | None = None) -> str:
    """Whether the white of mask [1, H, W] is the "subject" or the "background".

    A side on which image [1, H, W, 3] is empty is the background. Otherwise corners and middle decide for most masks: a
    background has the corners, a subject the middle. If they are unclear, the side that fits what stands out in the
    picture is the subject: find returns a mask [1, H, W] of that.
    """
    if image is not None:
        within, beside = empty(image, mask > CLEAN), empty(image, mask < 1 - CLEAN)
        if within != beside:
            return "subject" if beside else "background"
    white = mask[0] > 0.5
    if not white.any() and mask.min() > PRESENT:  # a picture that is a little transparent all over
        return "background"
    corners, middle = _white_corners(mask[0]), _middle(white)
    if (corners == 0 and (middle or not _at_border(white))) or (corners == 1 and middle):
        return "subject"
    if (corners == 4 and (not middle or not _at_border(~white))) or (corners == 3 and not middle):
        return "background"
    found = None if find is None else find()[0] > 0.5
    if found is not None and found.any():
        as_subject, as_background = _overlap(found, white), _overlap(found, ~white)
        if abs(as_subject - as_background) > CLEAR:
            return "subject" if as_subject > as_background else "background"
    if corners in (0, 4):
        return "subject" if corners == 0 else "background"
    return "subject" if middle else "background"


def empty(image: Tensor, side: Tensor) -> bool:
    """Whether image [1, H, W, 3] is all black or all white on side [1, H, W], as it is under transparency."""
    rows, columns = (slice(None, None, max(1, length // SAMPLES)) for length in side.shape[1:])
    pixels = image[0, rows, columns][side[0, rows, columns]]
    return bool(len(pixels)) and (bool((pixels == 0).all()) or bool((pixels == 1).all()))


def box_of(mask: Tensor) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the present part of mask [1, H, W]; bottom and right exclusive, as in slices."""
    present = mask[0] > PRESENT
    rows, columns = (torch.nonzero(present.any(dim)).flatten() for dim in (1, 0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def without_specks(mask: Tensor) -> Tensor:
    """mask [1, H, W] in 0..1 without stray areas and lines, and without the noise all over a bad matte.

    A clean mask is returned unchanged.
    """
    cells = grid(mask[0])
    by_area = F.adaptive_avg_pool2d(mask, cells)[0]
    faint = by_area[by_area < by_area.max() / 2]
    noise = float(faint.median()) if faint.numel() else 0.0
    if noise > NOISE:
        labels = connected(by_area > min(2 * noise + PRESENT, float(by_area.max()) / 2))
    else:
        labels = connected(F.adaptive_max_pool2d(mask, cells)[0] > PRESENT)
    mass = torch.bincount(labels.flatten(), weights=by_area.flatten().double())[1:]
    specks = 1 + torch.nonzero((mass < SPECK * mass.max()) | _lines(labels)).flatten() if len(mass) else mass
    if noise <= NOISE and len(specks) == 0:
        return mask
    kept = (labels > 0) & ~torch.isin(labels, specks)
    kept = _near(kept) if noise > NOISE else ~_near(torch.isin(labels, specks)) | kept
    return mask * F.interpolate(kept[None, None].float(), mask.shape[1:], mode="nearest")[0]


def touched_sides(mask: Tensor, share: float = 0.2) -> list[str]:
    """The sides of the picture at which mask [1, H, W] is cut: it covers more than this share of its extent there."""
    top, bottom, left, right = box_of(mask)
    edges = {"top": mask[0, 0], "bottom": mask[0, -1], "left": mask[0, :, 0], "right": mask[0, :, -1]}
    extent = {"top": right - left, "bottom": right - left, "left": bottom - top, "right": bottom - top}
    return [name for name, edge in edges.items() if int((edge > 0.5).sum()) > share * extent[name]]


def _white_corners(mask: Tensor) -> int:
    side = max(1, round(min(mask.shape) * CORNER))
    near, far = slice(0, side), slice(-side, None)
    return sum(int(mask[rows, columns].mean() > 0.5) for rows in (near, far) for columns in (near, far))


def _middle(white: Tensor) -> bool:
    height, width = white.shape
    third = white[height // 3 : height - height // 3, width // 3 : width - width // 3]
    return bool(third.float().mean() > 0.5)


def _at_border(inside: Tensor) -> bool:
    return bool(inside[0].any() or inside[-1].any() or inside[:, 0].any() or inside[:, -1].any())


def _lines(labels: Tensor) -> Tensor:
    """Which of the areas 1.. of labels [H, W] are only along the border, as bool; none of them if all are."""
    rows, columns = (math.ceil(side * RIM) for side in labels.shape)
    inner = torch.unique(labels[rows:-rows, columns:-columns])
    lines = ~torch.isin(torch.arange(1, int(labels.max()) + 1), inner)
    return lines & ~lines.all()


def _overlap(one: Tensor, other: Tensor) -> float:
    """Intersection over union of two bool masks."""
    return float((one & other).sum() / (one | other).sum().clamp(min=1))


def _near(cells: Tensor) -> Tensor:
    """These cells [H, W] bool and their neighbours."""
    return F.max_pool2d(cells[None].float(), 3, stride=1, padding=1)[0] > 0
