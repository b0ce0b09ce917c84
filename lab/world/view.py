"""One view of an individual: pose, turn, tilt, light and softness; and the drawing of it."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from .individual import Individual
from .kinds import KINDS, PAINTERS
from .palette import INK
from .pen import SUPERSAMPLING, Pen

SOFT = 0.15  # of the views are soft


@dataclass(frozen=True)
class View:
    pose: str = ""  # one of the kind's poses, empty where it has none
    limbs: tuple[float, float] = (0.0, 0.0)  # degrees added to the pose, left and right
    mirrored: bool = False  # letters never are
    tilt: float = 0.0  # degrees clockwise
    squeeze: float = 1.0  # width over height, as a slight turn shows
    skew: float = 0.0  # degrees
    light: float = 0.0  # where the light comes from: degrees clockwise from the right
    shade: float = 0.0  # how much darker the far side is, 0..1
    brightness: float = 1.0
    softness: float = 0.0  # radius of blur in hundredths of the size


def sample_view(rng: np.random.Generator, kind: str, pose: str | None = None) -> View:
    """A view of a thing of `kind`; without `pose` any of its poses."""
    poses = KINDS[kind].poses
    if pose is None:
        pose = str(rng.choice(poses)) if poses else ""
    elif pose and pose not in poses:
        raise ValueError(f"a {kind} has the poses {', '.join(poses) or 'none'}, not {pose!r}: choose one of them.")
    u = rng.uniform
    return View(
        pose=pose,
        limbs=(float(u(-14, 14)), float(u(-14, 14))),
        mirrored=bool(rng.random() < 0.5),
        tilt=float(u(-8, 8)),
        squeeze=float(u(0.88, 1.0)),
        skew=float(u(-5, 5)),
        light=float(u(0, 360)),
        shade=float(u(0.05, 0.25)),
        brightness=float(u(0.9, 1.06)),
        softness=float(u(0.25, 0.5)) if rng.random() < SOFT else 0.0,
    )


def draw(individual: Individual, view: View, size: int) -> np.ndarray:
    """[size, size, 4] uint8, straight alpha, antialiased."""
    large = size * SUPERSAMPLING
    image = Image.new("RGBA", (large, large), (*INK, 0))
    tilt, skew = np.radians(view.tilt), np.tan(np.radians(view.skew))
    turn = np.array([(np.cos(tilt), -np.sin(tilt)), (np.sin(tilt), np.cos(tilt))])
    matrix = turn @ np.array([(view.squeeze, skew), (0, 1)]) @ np.diag((-1.0 if view.mirrored else 1.0, 1.0))
    PAINTERS[individual.kind](Pen(image, matrix * large / 100, np.full(2, large / 2)), individual, view)
    image = image.reduce(SUPERSAMPLING)
    if view.softness:
        blur = ImageFilter.GaussianBlur(view.softness * size / 100)
        image = Image.merge("RGBa", [band.filter(blur) for band in image.convert("RGBa").split()]).convert("RGBA")
    return _lit(np.array(image), view)


def _lit(pixels: np.ndarray, view: View) -> np.ndarray:
    """Brighter towards the light, darker away from it: a linear ramp over the picture."""
    across = np.linspace(-1, 1, len(pixels), dtype=np.float32)
    light = np.radians(view.light)
    ramp = (np.cos(light) * across[None, :] + np.sin(light) * across[:, None]).clip(-1, 1)  # 1 at the light
    factor = view.brightness * (1 + view.shade / 2 * (ramp - 1))
    pixels[..., :3] = (pixels[..., :3] * factor[..., None]).clip(0, 255).round()
    return pixels
