"""Bad input: each has a sentence of its own, in the name of the node that was given it, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from families import text
from graph import attend, guide, hard_mask, sample, shared_model, subject
from images import encode, mask, picture, vae
from strangers import cascade, flux, video

NAN = torch.tensor([[[math.nan]]])


def without_pooled(caption: list) -> list:
    return [[context, {}] for context, _ in caption]


def sd1(**inputs: Any) -> ModelPatcher:
    return attend(shared_model("sd1"), **{"subject": subject("sd1")} | inputs)


def captioned(family: str, caption: list) -> Any:
    from dataclasses import replace

    return replace(subject(family), caption=caption)


ENCODE = {
    "an empty mask": (lambda: encode(picture(), mask=torch.zeros(1, 48, 40)), "the mask is empty"),
    "a mask of no size": (lambda: encode(picture(), mask=torch.zeros(1, 0, 0)), "the mask is empty"),
    "an all-white mask": (lambda: encode(picture(), mask=torch.ones(1, 48, 40)), "mask_marks is 'auto'"),
    "everything background": (
        lambda: encode(picture(), mask=torch.ones(1, 48, 40), mask_marks="background"),
        "mask_marks is 'background'",
    ),
    "hardly a mask": (lambda: encode(picture(), mask=0.01 * mask()), "leaves nothing of the picture"),
    "a mask of another size": (lambda: encode(picture(), mask=mask(20, 10)), "the mask is 10x20.* picture is 40x48"),
    "a mask on its side": (lambda: encode(picture(), mask=mask(40, 48)), "the mask is 48x40.* picture is 40x48"),
    "several masks": (lambda: encode(picture(), mask=mask().expand(3, -1, -1)), "one mask, but got a batch of 3"),
    "NaN in the mask": (lambda: encode(picture(), mask=mask() + NAN), "the mask has NaN or infinite values"),
    "several pictures": (lambda: encode(picture().expand(2, -1, -1, -1)), "one picture, but got a batch of 2"),
    "no picture": (lambda: encode(picture()[:0]), r"RGB pictures.* shape \(0, 48, 40, 3\)"),
    "a picture of no size": (lambda: encode(picture()[:, :0]), r"RGB pictures.* shape \(1, 0, 40, 3\)"),
    "one channel": (lambda: encode(picture()[..., :1]), r"RGB pictures.* shape \(1, 48, 40, 1\)"),
    "values of 0 to 255": (
        lambda: encode(255 * picture()),
        r"must be in 0\.\.1, .*divide them by 255",
    ),
    "bytes": (lambda: encode((255 * picture()).byte()), r"must be in 0\.\.1, .*divide them by 255"),
    "NaN in the picture": (lambda: encode(picture() + NAN), "the picture has NaN or infinite values"),
    "infinity in the picture": (lambda: encode(picture() / 0), "the picture has NaN or infinite values"),
    "a combined caption": (
        lambda: encode(picture(), caption=text("sd1", 1) + text("sd1", 2)),
        "one caption, but got 2",
    ),
    "no caption at all": (lambda: encode(picture(), caption=[]), "one caption, but got 0"),
}
ATTEND = {
    "a VAE of another family": (
        lambda: sd1(subject=encode(picture(), vae=vae(16))[0]),
        "latent has 16 channels, but this model works on 4",
    ),
    "an SDXL subject on SD1": (lambda: sd1(subject=subject("sdxl")), "caption has 80 features.* reads 48"),
    "an SD1 subject on SDXL": (
        lambda: attend(shared_model("sdxl"), subject("sd1")),
        "caption has 48 features.* reads 80",
    ),
    "another text encoder": (lambda: sd1(subject=subject("sd2")), "caption has 64 features.* reads 48"),
    "no pooled text on SDXL": (
        lambda: attend(shared_model("sdxl"), captioned("sdxl", without_pooled(text("sdxl", 1)))),
        "has no pooled text",
    ),
    "an empty region": (lambda: sd1(region=torch.zeros(1, 64, 64)), "the region is empty"),
    "a region of no size": (lambda: sd1(region=torch.zeros(1, 0, 0)), "the region is empty"),
    "NaN in the region": (lambda: sd1(region=hard_mask() + NAN), "region mask has NaN or infinite values"),
    "start after end": (lambda: sd1(start=0.6, end=0.4), "start_percent must not be above end_percent.* 0.6 and 0.4"),
    "start below 0": (lambda: sd1(start=-0.5), "start_percent must be between 0 and 1, but is -0.5"),
    "end above 1": (lambda: sd1(end=1.5), "end_percent must be between 0 and 1, but is 1.5"),
    "start is NaN": (lambda: sd1(start=math.nan), "start_percent must be between 0 and 1, but is nan"),
    "a negative weight": (lambda: sd1(weight=-1.0), "reference_weight must be between 0 and 100, but is -1"),
    "an absurd weight": (lambda: sd1(weight=1e6), r"reference_weight must be between 0 and 100, but is 1e\+06"),
    "an infinite weight": (lambda: sd1(weight=math.inf), "reference_weight must be between 0 and 100, but is inf"),
    "weight NaN": (lambda: sd1(weight=math.nan), "reference_weight must be between 0 and 100, but is nan"),
    "a negative side above 1": (lambda: sd1(negative_weight=1.5), "negative_weight must be between 0 and 1, .*1.5"),
    "a negative side NaN": (lambda: sd1(negative_weight=math.nan), "negative_weight must be between 0 and 1, .*nan"),
    "a diffusion transformer": (lambda: attend(flux(), subject()), "kind, but this model is a Flux"),
    "a cascade": (lambda: attend(cascade(), subject()), "kind, but this model is a StableCascade_C"),
    "a video U-Net": (lambda: attend(video(), subject()), "kind, but this model is a SVD_img2vid"),
}
GUIDE = {
    "a diffusion transformer": (lambda: guide(flux()), "kind, but this model is a Flux"),
    "a cascade": (lambda: guide(cascade()), "kind, but this model is a StableCascade_C"),
    "a video U-Net": (lambda: guide(video()), "kind, but this model is a SVD_img2vid"),
    "scale NaN": (lambda: guide(shared_model("sd1"), scale=math.nan), "reference_scale must be between 0 and 100"),
    "a negative scale": (lambda: guide(shared_model("sd1"), scale=-1.0), "reference_scale must be between 0 and 100"),
    "probability 2": (
        lambda: guide(shared_model("sd1"), probability=2.0),
        "reference_probability must be between 0 and 1",
    ),
    "dt beyond all timesteps": (lambda: guide(shared_model("sd1"), dt=1e4), "dt must be between 0 and 1000"),
    "dt_uncond below 0": (lambda: guide(shared_model("sd1"), dt_uncond=-1.0), "dt_uncond must be between 0 and 1000"),
}
NODES = {"Encode Subject Image": ENCODE, "Apply Self-Subject Attention": ATTEND, "Reference Guidance": GUIDE}
CASES = {f"{node}: {name}": (node, *case) for node, cases in NODES.items() for name, case in cases.items()}


@pytest.mark.parametrize(("node", "use", "sentence"), CASES.values(), ids=CASES.keys())
def test_is_refused_in_one_sentence(node: str, use: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as raised:
        use()
    message = str(raised.value)
    assert message.startswith(f"{node}: ")
    assert "\n" not in message
    assert len(message) < 300


def test_a_model_on_several_gpus_is_refused() -> None:
    """By the newest hosts' MultiGPU nodes, which call the U-Nets from threads of their own."""
    model = attend(shared_model("sd1"), subject())
    model.set_additional_models("multigpu", [shared_model("sd1").clone()])
    with pytest.raises(ValueError, match=r"^DreamTuner: expected a model on one GPU.*take the MultiGPU node out\.$"):
        sample(model, text("sd1", 1), text("sd1", 2))
