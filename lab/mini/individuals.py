"""Individuals of a concept: a drawing in other colours, bent, and sometimes with a pattern on it.

A handful of drawings a concept would be known by heart, and then there is nothing for a reference to decide. So each
training picture shows an individual of its own, of which the caption says nothing; where a picture shows it twice,
only the other copy tells what it looks like.
"""

import numpy as np
from PIL import Image

TURNED, BENT, PATTERNED = 0.5, 0.7, 0.2  # shares of the individuals
STRETCH, BEND = 1.25, 0.09  # at most: width to height, and each node's shift as a share of the drawing
NODES = 4  # of the bent grid, each way


def individual(drawing: Image.Image, rng: np.random.Generator) -> Image.Image:
    """One individual, from an RGBA drawing cropped to its alpha; cropped likewise."""
    if rng.random() < TURNED:
        drawing = turn_hue(drawing, rng.random(), rng.uniform(0, 0.25))
    if rng.random() < PATTERNED:
        drawing = paint_pattern(drawing, rng)
    if rng.random() < BENT:
        drawing = bend(drawing, rng)
    return drawing.crop(drawing.getchannel("A").getbbox())


def turn_hue(image: Image.Image, turn: float, spread: float = 0.0) -> Image.Image:
    """Rotate the hue of an RGBA image by `turn` of the circle, some hues by up to `spread` more and others less."""
    hue, saturation, value = image.convert("RGB").convert("HSV").split()
    hue = hue.point([int(h + 256 * (turn + spread * np.sin(2 * np.pi * h / 256))) % 256 for h in range(256)])
    turned = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    turned.putalpha(image.getchannel("A"))
    return turned


def bend(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Stretch, and shift the nodes of a coarse grid: another shape of the same kind of thing."""
    ratio = STRETCH ** rng.uniform(-0.5, 0.5)
    image = image.resize((round(image.width * ratio), round(image.height / ratio)), Image.Resampling.BILINEAR)
    margin = round(2 * BEND * max(image.size))
    canvas = Image.new("RGBA", (image.width + 2 * margin, image.height + 2 * margin))
    canvas.paste(image, (margin, margin))
    x, y = (np.linspace(0, extent, NODES).round().astype(int) for extent in canvas.size)
    nodes = np.stack(np.meshgrid(x, y), axis=-1)
    shifts = rng.uniform(-BEND, BEND, nodes.shape) * max(image.size)
    shifts[[0, -1]] = shifts[:, [0, -1]] = 0  # the rim stays, so nothing is drawn in from outside
    sources = nodes + shifts
    mesh = []
    for row in range(NODES - 1):
        for column in range(NODES - 1):
            box = (x[column], y[row], x[column + 1], y[row + 1])
            corners = [(0, 0), (1, 0), (1, 1), (0, 1)]  # as PIL goes round a quad: down, right, up
            quad = [value for down, right in corners for value in sources[row + down, column + right]]
            mesh.append((tuple(map(int, box)), tuple(map(float, quad))))
    return canvas.transform(canvas.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def paint_pattern(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Bands or dots of one colour, lit and shaded as the drawing is."""
    y, x = np.mgrid[: image.height, : image.width] / max(image.size)
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.16, 0.34)
    u, v = ((np.cos(angle) * x + np.sin(angle) * y) / period, (np.cos(angle) * y - np.sin(angle) * x) / period)
    if rng.random() < 0.5:
        painted = (u % 1) < rng.uniform(0.35, 0.6)
    else:
        painted = np.hypot(u % 1 - 0.5, v % 1 - 0.5) < rng.uniform(0.25, 0.38)
    pixels = np.asarray(image).astype(np.float32)
    brightness = pixels[..., :3].max(axis=-1, keepdims=True)
    colour = rng.uniform(0, 1, 3) ** 0.5
    pixels[..., :3] = np.where(painted[..., None], colour * brightness, pixels[..., :3])
    return Image.fromarray(pixels.round().astype(np.uint8))
