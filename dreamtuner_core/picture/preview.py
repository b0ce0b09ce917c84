"""The preview of a subject: the picture with the outline, the framed subject, and the background without it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .framing import resized

OUTLINE = (1.0, 0.2, 0.4)  # a colour that few pictures have
EMPTY = 0.5  # grey, where the subject was
WIDEST = 2  # panels, by their height


def preview(image: Tensor, mask: Tensor | None, picture: Tensor) -> Tensor:
    """Panels side by side, as high as the framed picture [1, H', W', 3] -> [1, H', W'', 3].

    image: [1, H, W, 3] and mask: [1, H, W], 1 = subject, before framing.
    """
    first, *rest = panels(image, mask, picture.shape[1])
    return torch.cat([first, picture, *rest], dim=2)


def panels(image: Tensor, mask: Tensor | None, height: int) -> list[Tensor]:
    """Pictures [B, H, W, 3] with the outlines of masks [B, H, W], and their backgrounds: each [B, height, W', 3].

    Without a mask only the pictures.
    """
    shape = _fitted(image.shape[1], image.shape[2], height)
    seen = resized(image, *shape)
    if mask is None:
        return [_panel(seen, height)]
    inside = resized(mask[..., None], *shape)
    line = outline(inside[..., 0], max(1, height // 160))[..., None]
    outlined = torch.lerp(seen, torch.tensor(OUTLINE).expand_as(seen), line)
    rest = torch.lerp(seen, torch.full_like(seen, EMPTY), inside)
    return [_panel(outlined, height), _panel(rest, height)]


def outline(mask: Tensor, width: int) -> Tensor:
    """The line along the outside of masks [B, H, W]: [B, H, W] of zeros and ones. width: in pixels."""
    inside = (mask > 0.5).float()
    return F.max_pool2d(inside, 2 * width + 1, stride=1, padding=width) - inside


def _fitted(height: int, width: int, side: int) -> tuple[int, int]:
    scale = min(side / height, WIDEST * side / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _panel(picture: Tensor, height: int) -> Tensor:
    """Put picture [B, H, W, 3] in the middle of a white panel of that height."""
    free = height - picture.shape[1]
    return F.pad(picture.movedim(-1, 1), (0, 0, free // 2, free - free // 2), value=1.0).movedim(1, -1)
