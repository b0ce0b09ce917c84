"""Subject encoders in the host: loading files from models/subject_encoders, and encoding an image with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import comfy.clip_vision
import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.nn import functional as F

from ...encoder.file import Origin, read
from ...encoder.ip_adapter import IPAdapter
from ...encoder.model import SubjectEncoder
from ...encoder.tower import ImageTower
from ...picture.framing import resized
from ..files import ModelFolder

ENCODERS = ModelFolder("subject_encoders", also=("ipadapter",))
LONGEST = 3072  # pixels of a square's side: a long, thin picture would make a huge one


@dataclass(frozen=True, eq=False)
class LoadedEncoder:
    """A loaded encoder. The type of the socket DREAMTUNER_SUBJECT_ENCODER.

    patcher: its weights, for the host's model management. clip_vision: the host's, unless the file has its own tower.
    """

    name: str
    patcher: ModelPatcher
    origin: Origin
    clip_vision: Any | None = None

    @property
    def model(self) -> SubjectEncoder | IPAdapter:
        return self.patcher.model


@dataclass(frozen=True, eq=False)
class SubjectEncoding:
    """An image encoded by a subject encoder. tokens: [1, T, C], SE(r).

    without: [1, T, C], an IP-Adapter's tokens for "no image"; None for a subject encoder, which then reads nothing.
    """

    encoder: LoadedEncoder
    tokens: Tensor
    without: Tensor | None = None


# --- files -----------------------------------------------------------------------------------------------------------


def load_encoder(name: str, clip_vision: Any | None = None) -> LoadedEncoder:
    """Load the encoder of that name. Raises ValueError, in one sentence, for a bad file or a wrong clip_vision."""
    with torch.inference_mode(False):  # tuning may learn from these weights
        model, origin = read(ENCODERS.path(name), comfy.ops.manual_cast)
    _check_tower(name, model, clip_vision)
    patcher = ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    return LoadedEncoder(name, patcher, origin, clip_vision)


def _check_tower(name: str, model: SubjectEncoder | IPAdapter, clip_vision: Any) -> None:
    if isinstance(model, SubjectEncoder) and model.tower is not None:
        return
    needed = _needed_tower(model)
    if clip_vision is None:
        raise ValueError(f"'{name}' carries no image tower; link a clip_vision of {needed}.")
    vision = getattr(getattr(clip_vision, "model", None), "vision_model", None)
    if vision is None or not hasattr(vision, "encoder"):
        raise ValueError(f"'{name}' reads a CLIP vision model, but got another kind; load one of {needed}.")
    depth = len(vision.encoder.layers)
    tokens, width = vision.embeddings.position_embedding.weight.shape
    if isinstance(model, SubjectEncoder):
        seen: tuple[int, ...] = (depth, width, tokens)
        expected = _tower_of(model)
    else:
        projection = getattr(clip_vision.model.visual_projection, "weight", None)
        embedding = width if projection is None else projection.shape[0]
        seen, expected = (width if model.config.resampler else embedding,), (model.config.embedding_width,)
    if seen != expected:
        raise ValueError(
            f"'{name}' reads an image tower of {needed}, but this clip_vision has {depth} layers of width {width} and "
            f"{tokens} tokens; load the one that the file was trained with."
        )


def _tower_of(model: SubjectEncoder) -> tuple[int, ...]:
    return model.config.tower_layers, model.config.tower_width, model.config.tokens


def _needed_tower(model: SubjectEncoder | IPAdapter) -> str:
    if isinstance(model, SubjectEncoder):
        return "{} layers of width {} and {} tokens".format(*_tower_of(model))
    what = "hidden states" if model.config.resampler else "an image embedding"
    return f"{what} of width {model.config.embedding_width}"


# --- pictures --------------------------------------------------------------------------------------------------------


def encode_picture(encoder: LoadedEncoder, picture: Tensor) -> SubjectEncoding:
    """SE(r) of one framed picture [1, H, W, 3] in 0..1, on the host's own devices."""
    model, kept = encoder.model, comfy.model_management.intermediate_device()
    if isinstance(model, SubjectEncoder):
        return SubjectEncoding(encoder, _finite(model.tokens(tower_states(encoder, picture)), encoder).to(kept))

    comfy.model_management.load_models_gpu([encoder.patcher])
    device, clip_vision = encoder.patcher.load_device, cast(Any, encoder.clip_vision)
    pixels = clip_pixels(clip_vision, on_a_square(picture))
    if model.config.resampler is None:
        embedding = clip_states(clip_vision, pixels, ())[1]
        seen = torch.cat([embedding, torch.zeros_like(embedding)])  # [2, E]
    else:
        before_last = len(clip_vision.model.vision_model.encoder.layers) - 1
        both = torch.cat([pixels, torch.zeros_like(pixels)])
        seen = clip_states(clip_vision, both, (before_last,))[0][:, 0]  # [2, T, W]
    tokens, without = _finite(model.tokens(seen.to(device)), encoder).to(kept).split(1)
    return SubjectEncoding(encoder, tokens, without)


def joined(encodings: Sequence[SubjectEncoding]) -> SubjectEncoding:
    """The encodings of several images by one encoder, concatenated: their tokens share one softmax."""
    first, *_ = encodings
    without = [e.without for e in encodings if e.without is not None]
    tokens = torch.cat([e.tokens for e in encodings], dim=1)  # [1, T + T + ..., C]
    return SubjectEncoding(first.encoder, tokens, torch.cat(without, dim=1) if without else None)


def tower_states(encoder: LoadedEncoder, picture: Tensor) -> Tensor:
    """The image tower's hidden states of one framed image, the input of the ResBlocks: [1, L, T, W]."""
    model, square, device = encoder.model, on_a_square(picture), encoder.patcher.load_device
    assert isinstance(model, SubjectEncoder)
    comfy.model_management.load_models_gpu([encoder.patcher])
    if model.tower is not None:
        return own_states(model.tower, square.to(device), model.config.layers)
    clip_vision: Any = encoder.clip_vision
    return clip_states(clip_vision, clip_pixels(clip_vision, square), model.config.layers)[0].to(device)


def on_a_square(picture: Tensor) -> Tensor:
    """[1, H, W, 3] -> [1, S, S, 3], padded with white to a square, because CLIP's preprocessing crops to one.

    An image longer than LONGEST is resized to that first.
    """
    if (longest := max(picture.shape[1:3])) > LONGEST:
        picture = resized(picture, *(max(1, round(side * LONGEST / longest)) for side in picture.shape[1:3]))
    height, width = picture.shape[1:3]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    around = (left, side - width - left, top, side - height - top)
    return F.pad(picture.movedim(-1, 1), around, value=1.0).movedim(1, -1)


def own_states(tower: ImageTower, square: Tensor, layers: Sequence[int]) -> Tensor:
    """Hidden states [1, L, T, W] of the file's own tower for an image [1, S, S, 3] in 0..1."""
    size = [tower.config.side] * 2
    pixels = F.interpolate(square.movedim(-1, 1), size, mode="bilinear", antialias=True, align_corners=False)
    return tower.hidden_states(pixels.clamp(0, 1), layers)


def clip_pixels(clip_vision: Any, square: Tensor) -> Tensor:
    """The host's own CLIP preprocessing: [1, S, S, 3] in 0..1 -> [1, 3, s, s], normalised."""
    return comfy.clip_vision.clip_preprocess(
        square.to(clip_vision.load_device),
        size=clip_vision.image_size,
        mean=clip_vision.image_mean,
        std=clip_vision.image_std,
    ).float()


def clip_states(clip_vision: Any, pixels: Tensor, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Pixels [B, 3, s, s] -> hidden states [B, L, T, W] of these layers, and the image embedding [B, E]."""
    comfy.model_management.load_model_gpu(clip_vision.patcher)
    with _noted(clip_vision.model.vision_model.encoder.layers, layers) as found:
        embedding = clip_vision.model(pixel_values=pixels, intermediate_output=-2)[2]
    states = torch.stack([found[i] for i in layers], dim=1) if layers else embedding.new_zeros(len(pixels), 0)
    return states.float(), embedding.float()


@contextmanager
def _noted(modules: nn.ModuleList, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """A context that records the outputs of these layers: not every host version returns all of them itself.

    They are copied, because the host's layers add to their input in place.
    """
    found: dict[int, Tensor] = {}
    with ExitStack() as hooks:
        for i in layers:
            if i == 0:
                handle = modules[0].register_forward_pre_hook(lambda _, args: found.update({0: args[0].clone()}))
            else:
                handle = modules[i - 1].register_forward_hook(lambda _, args, out, i=i: found.update({i: out.clone()}))
            hooks.callback(handle.remove)
        yield found


def _finite(tokens: Tensor, encoder: LoadedEncoder) -> Tensor:
    if not torch.isfinite(tokens).all():
        raise ValueError(
            f"'{encoder.name}' gives NaN or infinite values for this picture; run the image tower in fp32."
        )
    return tokens
