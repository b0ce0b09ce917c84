"""A tiny checkpoint to tune: U-Net, text encoders and VAE of any family, and folders of its own for what is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models_base
import folder_paths
import pytest
import torch
from dreamtuner_pack.dreamtuner_core.host.apply import apply_encoder
from dreamtuner_pack.dreamtuner_core.host.encoder.load import encode_picture, load_encoder
from dreamtuner_pack.dreamtuner_core.host.tuning.tune import tune_subject
from dreamtuner_pack.dreamtuner_core.tuning.config import TuningConfig
from families import draw_weights, tiny_model
from graph import hard_mask, subject
from plain_encoder import FILES, file_name
from plain_encoder import tiny_clip as tiny_clip_vision
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = {"sd1": {"l": 48}, "sd2": {"h": 64}, "sdxl": {"l": 48, "g": 32}}
STEPS = 4
ENCODERS = "subject_encoders"
SETTINGS = {"rank": 2, "regular_pictures": 2, "learning_rate": 1e-2, "checkpoint_interval": 2}


def tiny_encoder(width: int) -> type:
    """A CLIP text encoder of two layers."""

    config = {
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
        "hidden_act": "quick_gelu",
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
    }

    class Encoder(comfy.sd1_clip.SDClipModel):
        def __init__(self, **params: Any) -> None:
            super().__init__(textmodel_json_config=dict(config), **params)

    return Encoder


class TinyXL(nn.Module):
    """SDXL's pair of text encoders, tiny: the host's own joins them."""

    def __init__(self, **params: Any) -> None:
        super().__init__()
        self.clip_l, self.clip_g = (tiny_encoder(WIDTHS["sdxl"][n])(**params) for n in "lg")
        self.dtypes = {params["dtype"]}

    set_clip_options = comfy.sdxl_clip.SDXLClipModel.set_clip_options
    reset_clip_options = comfy.sdxl_clip.SDXLClipModel.reset_clip_options
    encode_token_weights = comfy.sdxl_clip.SDXLClipModel.encode_token_weights


def tiny_tokenizer(family: str, embeddings: str) -> Any:
    def of(name: str) -> type:
        class Tokenizer(comfy.sd1_clip.SDTokenizer):
            def __init__(self, **_: Any) -> None:
                super().__init__(
                    embedding_directory=embeddings,
                    embedding_size=WIDTHS[family][name],
                    embedding_key=f"clip_{name}",
                )

        return Tokenizer

    if family == "sdxl":
        tokenizer = comfy.sdxl_clip.SDXLTokenizer.__new__(comfy.sdxl_clip.SDXLTokenizer)
        tokenizer.clip_l, tokenizer.clip_g = of("l")(), of("g")()
        return tokenizer
    name = next(iter(WIDTHS[family]))
    return comfy.sd1_clip.SD1Tokenizer(clip_name=name, tokenizer=of(name))


def tiny_clip(family: str, embeddings: str) -> comfy.sd.CLIP:
    """A CLIP of that family, every weight drawn, as a checkpoint's loader gives it."""
    name = next(iter(WIDTHS[family]))
    if family == "sdxl":
        text: Any = TinyXL
    else:
        text = lambda **params: comfy.sd1_clip.SD1ClipModel(  # noqa: E731
            clip_name=name, clip_model=tiny_encoder(WIDTHS[family][name]), **params
        )
    target = comfy.supported_models_base.ClipTarget(lambda **_: tiny_tokenizer(family, embeddings), text)
    clip = comfy.sd.CLIP(target)
    draw_weights(clip.cond_stage_model, 5)
    return clip


class TinyVAE:
    """Pictures and latents by averaging and a fixed map of the colours; deterministic, as the host's VAE is."""

    def __init__(self) -> None:
        self.first_stage_model = nn.Conv2d(3, 4, 1, bias=False)
        draw_weights(self.first_stage_model, 7)

    def encode(self, picture: Tensor) -> Tensor:
        return 3 * self.first_stage_model(F.avg_pool2d(picture.movedim(-1, 1), 8) * 2 - 1)

    def decode(self, latent: Tensor) -> Tensor:
        back = torch.linalg.pinv(self.first_stage_model.weight[:, :, 0, 0])  # [3, 4]
        pixels = torch.einsum("ij,bjhw->bihw", back, latent / 3) / 2 + 0.5
        return F.interpolate(pixels, scale_factor=8).movedim(1, -1)


@cache
def shared_clip(family: str) -> comfy.sd.CLIP:
    """Tokenizers are slow to build; its embeddings' folder is a list that `folders` fills."""
    return tiny_clip(family, EMBEDDINGS)  # type: ignore[arg-type]


EMBEDDINGS: list[str] = []


class World:
    """What a tuning node gets, and where it writes."""

    def __init__(self, base: Path, family: str = "sd1", **model: Any) -> None:
        self.base, self.family = base, family
        self.model, self.clip, self.vae = tiny_model(family, **model), shared_clip(family), TinyVAE()
        self.subject = subject(family, hard_mask())
        self.loras, self.embeddings, self.encoders = (base / name for name in ("loras", "embeddings", ENCODERS))
        self.own = base / "user" / "__dreamtuner"

    def see(self, kind: str = "own tower", strength: float = 0.5, start: float = 0.0, end: float = 1.0) -> None:
        """Load Subject Encoder, the subject encoded with it, and Apply Subject Encoder."""
        file = file_name(kind, self.family)
        if not (self.encoders / file).exists():
            FILES[kind](self.encoders / file, self.family)
        encoder = load_encoder(file, tiny_clip_vision())
        self.subject = replace(self.subject, encoding=encode_picture(encoder, self.subject.picture))
        self.model = apply_encoder(self.model, self.subject, strength, start, end)

    def tune(self, name: str = "rex", class_word: str = "dog", steps: int = STEPS, **settings: Any) -> Any:
        config = TuningConfig(steps=steps, **{**SETTINGS, **settings})
        return tune_subject(self.model, self.clip, self.vae, self.subject, class_word, name, config)


def refuse_mapped(patch: pytest.MonkeyPatch) -> None:
    """Be as strict as Windows: no file is replaced while this process has it mapped or open."""
    replace = Path.replace

    def strict(self: Path, target: Path) -> Path:
        kept = str(Path(target).resolve())
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(kept)]
        opened = [link for link in Path("/proc/self/fd").iterdir() if link.exists() and str(link.resolve()) == kept]
        if mapped or opened:
            raise PermissionError(13, "Access is denied", kept)
        return replace(self, target)

    patch.setattr(Path, "replace", strict)


@contextmanager
def folders(base: Path) -> Iterator[None]:
    """The host's folders for loras, embeddings, encoders, subjects and the user, moved to base for a while."""
    patch = pytest.MonkeyPatch()
    refuse_mapped(patch)
    try:
        for name in ("loras", "embeddings", "subjects", ENCODERS):
            (base / name).mkdir(parents=True, exist_ok=True)
            extensions = folder_paths.supported_pt_extensions
            patch.setitem(folder_paths.folder_names_and_paths, name, ([str(base / name)], extensions))
        patch.setattr(folder_paths, "user_directory", str(base / "user"))
        patch.setattr(folder_paths, "models_dir", str(base))
        EMBEDDINGS[:] = [str(base / "embeddings")]
        yield
    finally:
        patch.undo()
