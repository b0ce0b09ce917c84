"""`python3 -m lab.find_subject`: how well the subject is found in the world's pictures, and their light corrected.

Prints the overlap (IoU) with the true masks, and the effect of `light: auto` on good pictures and on dark ones.
"""

from __future__ import annotations

import argparse
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from lab.inside import import_host, import_pack
from lab.world import compose

SIDE, FRAMED = 512, 256
DARK = torch.tensor([0.3, 0.3, 0.3]), torch.tensor([0.6, 0.5, 0.4])  # of the light; the second is warm


def pictures(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Pictures [1, SIDE, SIDE, 3] and their true masks [1, SIDE, SIDE]."""
    made = (compose(np.random.default_rng([seed, i]), SIDE) for i in range(count))
    return [(torch.from_numpy(p.pixels)[None] / 255, torch.from_numpy(p.mask)[None] / 255) for p in made]


def overlap(one: Tensor, other: Tensor) -> float:
    """Intersection over union of two masks [1, H, W]."""
    a, b = one > 0.5, other > 0.5
    return float((a & b).sum() / (a | b).sum())


def mended(core: ModuleType, picture: Tensor, mask: Tensor, image: Tensor, image_mask: Tensor) -> Tensor:
    """A framed picture [1, h, w, 3] as `light: auto` corrects it; the same tensor if it needs no correction.

    mask: of the picture, [1, h, w]; image and image_mask: unframed, [1, H, W, 3] and [1, H, W].
    """
    of = core.picture.light
    pixels = of.subject_pixels(picture, mask)
    light = of.measured(pixels, of.scene_pixels(image, image_mask, pixels))
    return picture if light is None else of.mended(picture, mask, light)


def regained(core: ModuleType, image: Tensor, mask: Tensor, light: Tensor) -> float:
    """Share of the light's effect on the subject that `light: auto` removes, by the mean difference. light: [3]."""
    good, framed_mask = core.subject.frame(image, mask, FRAMED)
    dark, _ = core.subject.frame(image * light, mask, FRAMED)
    inside = framed_mask[0] > core.picture.light.INSIDE
    lost, left = (
        float((x - good)[0][inside].abs().mean()) for x in (dark, mended(core, dark, framed_mask, image * light, mask))
    )
    return 1 - left / lost


def main() -> None:
    parser = argparse.ArgumentParser(prog="lab.find_subject", description=__doc__)
    parser.add_argument("--count", type=int, default=80)
    parser.add_argument("--seed", type=int, default=13)
    given = parser.parse_args()
    import_host()
    core = import_pack().dreamtuner_core
    seen = pictures(given.count, given.seed)
    overlaps = np.array([overlap(core.host.subject.find.find_subject(image), mask) for image, mask in seen])
    print(f"overlap: median {np.median(overlaps):.3f}, {(overlaps >= 0.85).mean():.0%} at 0.85 or more")
    framed = [core.subject.frame(image, mask, FRAMED) for image, mask in seen]
    left = [mended(core, good, m, image, mask) is good for (good, m), (image, mask) in zip(framed, seen)]
    print(f"good pictures left as they are: {np.mean(left):.0%}")
    for light in DARK:
        shares = [regained(core, image, mask, light) for image, mask in seen]
        shown = " ".join(f"{share:.1f}" for share in light)
        print(f"in light {shown}: {np.median(shares):.0%} regained in the median")


if __name__ == "__main__":
    main()
