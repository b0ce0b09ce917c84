"""The model's subject encoder during tuning: its ResBlocks are trained too (section 3.3), the rest stays frozen.

The reference's row reads the subject through the frozen S-E-A, at the strength of Apply Subject Encoder, as after the
tuning. The regular image's row, which shows another individual, does not read it (ours: the paper leaves this open).
For a flipped reference the encoder reads the flipped image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import comfy.ldm.modules.attention as host
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...encoder.file import metadata_of
from ...encoder.model import KeysValues, SubjectEncoder, SubjectEncoderAttention
from ...subject import Subject
from ..apply import with_encoder, with_settings
from ..encoder.load import SubjectEncoding, encode_picture, joined, load_encoder, tower_states
from ..encoder.patch import EncoderAtWork, with_encoders
from ..options import Options
from ..settings import KEY, AppliedEncoder, NoiseRange, Settings
from ..unet import Layer
from .adapters import Adapters
from .predict import is_differentiable

LEARNED = ("res_blocks.", "norm.")  # of a subject encoder's weights; `norm` ends the ResBlocks
PREFIX = "encoder."  # of their names in a state


def applied_encoder(model: ModelPatcher, subject: Subject) -> AppliedEncoder:
    """The one subject encoder applied to the model. Raises ValueError, in one sentence, if there is none to train."""
    settings = model.get_attachment(KEY) or Settings()
    applied = [a for a in settings.encoders if a.strength > 0]
    off = "or turn encoder_resblocks off."
    if len(applied) != 1:
        raise ValueError(
            f"encoder_resblocks needs a model with one applied subject encoder, but this one has {len(applied)}; use "
            f"one Apply Subject Encoder with a strength above 0, {off}"
        )
    encoder = applied[0].encoding.encoder
    if not isinstance(encoder.model, SubjectEncoder):
        raise ValueError(
            f"encoder_resblocks trains the ResBlocks of a subject encoder, but '{encoder.name}' is an IP-Adapter, "
            f"which has none; load a subject encoder, {off}"
        )
    if not torch.equal(applied[0].subject.picture.cpu(), subject.picture.cpu()):
        raise ValueError(
            "encoder_resblocks needs the tuned subject on Apply Subject Encoder, but another subject is linked to it; "
            f"link the same one to both, {off}"
        )
    return applied[0]


class LearningEncoder:
    """An applied subject encoder whose ResBlocks are trained."""

    def __init__(self, model: ModelPatcher, applied: AppliedEncoder, layers: Sequence[Layer]) -> None:
        self.applied, self.layers = applied, layers
        encoder, picture = applied.encoding.encoder, applied.subject.picture
        with torch.no_grad():
            states = torch.cat([tower_states(encoder, each) for each in (picture, picture.flip(2))])
        self.range = NoiseRange.of(applied, model.get_model_object("model_sampling"))
        with torch.inference_mode(False):
            self.states = states.clone()  # [2, L, T, W], plain and flipped
            self.adapters = Adapters(encoder.patcher, None, encoder.patcher.load_device)
            self.adapters.add_differences({k for k in encoder.model.state_dict() if k.startswith(LEARNED)}, PREFIX)
            self.adapters.attach()

    def tokens(self, flip: int = 0) -> Tensor:
        """SE(r) with the current weights, [1, T, C]. flip: 1 for the flipped reference."""
        return self.applied.encoding.encoder.model.tokens(self.states[flip : flip + 1])

    def joined(self, sigma: float, flip: int, rows: int) -> Callable[[Options], Options]:
        """A function that adds the encoder to transformer_options, for the first row, if it is applied at sigma."""

        def join(options: Options) -> Options:
            if not self.range.holds(sigma):
                return options
            at_work = _Learning(self.applied, self.layers, self.tokens(flip))
            return with_encoders(options, [at_work], [True, *[False] * (rows - 1)], self.layers)

        return join

    def on(self, patcher: ModelPatcher) -> ModelPatcher:
        """A clone of the trained network with only the current encoder applied."""
        encoder = replace(self.applied.encoding.encoder, patcher=self.adapters.patcher)
        subject = replace(self.applied.subject, encoding=SubjectEncoding(encoder, self.tokens()))
        return with_encoder(with_settings(patcher, lambda _: Settings()), replace(self.applied, subject=subject))

    def saved(self, training: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata of the trained encoder's file. training: added to its metadata."""
        encoder = self.applied.encoding.encoder
        assert isinstance(encoder.model, SubjectEncoder)
        weights = {name: weight.detach().cpu() for name, weight in encoder.model.state_dict().items()}
        for file_key, difference in self.adapters.parameters.items():
            name = _weight_name(file_key)
            weights[name] = weights[name].float() + difference.detach().cpu()
        origin = replace(encoder.origin, training=dict(encoder.origin.training) | {"subject_tuning": training})
        return weights, metadata_of(encoder.model.config, origin)


class _Learning(EncoderAtWork):
    """The encoder in one step. Keys and values are projected before the U-Net runs, as its blocks may run twice."""

    def __init__(self, applied: AppliedEncoder, layers: Sequence[Layer], tokens: Tensor) -> None:
        super().__init__(applied, layers)
        self.projected: dict[Layer, KeysValues] = {at: s_e_a.keys_values(tokens) for at, s_e_a in self.layers.items()}
        if not is_differentiable():
            self.layers = {at: _through_torch(s_e_a) for at, s_e_a in self.layers.items()}

    def keys_values(self, layer: Layer, wanted: bool, like: Tensor) -> KeysValues:
        return KeysValues(*(x.to(like.device, like.dtype) for x in self.projected[layer]))


def _through_torch(s_e_a: SubjectEncoderAttention) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return host.attention_pytorch(q, k, v, heads)

    return lambda h, subject, _: s_e_a(h, subject, attend)


def _weight_name(file_key: str) -> str:
    """encoder.norm.diff_b -> norm.bias"""
    module, part = file_key.removeprefix(PREFIX).rpartition(".")[::2]
    return f"{module}.{'bias' if part == 'diff_b' else 'weight'}"


def with_tuned_encoder(
    model: ModelPatcher, applied: AppliedEncoder, subject: Subject, file: str
) -> tuple[ModelPatcher, Subject]:
    """Model and subject as the graph's nodes would return them with that file instead of the original encoder."""
    before = applied.encoding
    encoder = load_encoder(file, before.encoder.clip_vision)
    encoding = joined([encode_picture(encoder, one.picture) for one in subject.pictures()])
    shown = applied.subject.encoded(encoding)

    def again(settings: Settings) -> Settings:
        """Without the original encoder; the reference pass of its subject uses the new one."""
        subjects = tuple(
            replace(a, subject=replace(a.subject, encoding=encoding)) if a.subject.encoding is before else a
            for a in settings.subjects
        )
        return replace(settings, subjects=subjects, encoders=())

    model = with_encoder(with_settings(model, again), replace(applied, subject=shown))
    return model, subject.encoded(encoding)
