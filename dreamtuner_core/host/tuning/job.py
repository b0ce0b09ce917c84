"""Subject tuning in the host (section 3.3): regular pictures, a few hundred steps, and files for everybody.

The order of things, each of which can be stopped and gone on with: see whether the work is done already, draw what
regular pictures are missing, take the steps that are missing, write the files, and load them as the host loads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, NamedTuple

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn import functional as F

from ...saved_subject import OwnedSubject
from ...subject import Subject
from ...tuned_subject import TunedSubject
from ...tuning.config import TuningConfig, milestones
from ...tuning.pairs import Pairs
from ...tuning.report import report
from .. import fingerprint
from ..apply import check_fit
from ..files import checked_name, file_hash, read
from ..unet import context_size
from .adapters import parametrisation
from .encoder import applied_encoder, with_tuned_encoder
from .files import SETTINGS, TuningFiles, settings_of
from .progress import Progress
from .regular import flipped_pair, regular_latents
from .texts import ClassTexts, tokenize
from .train import SAMPLE_SEEDS, Training, embedding_key, samples_of


class Tuned(NamedTuple):
    """What a tuning gives. report: [1, H, W, 3] in 0..1."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    subject: TunedSubject
    report: Tensor


@torch.inference_mode()  # as in a node, whoever calls; what learns leaves it
def tune_subject(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: Any,
    subject: Subject,
    class_word: str,
    name: str,
    config: TuningConfig,
    node_id: str | None = None,
) -> Tuned:
    """Tune, or go on tuning, or take what is there. Raises ValueError, in one sentence, for what cannot be done.

    Unchanged settings never train again; more steps go on from where the name's tuning ended.
    """
    job = Job(model, clip, vae, subject, class_word, name, config, node_id)
    finished, begun = (settings_of(path).get("steps", 0) for path in (job.files.lora, job.files.state))
    if finished == config.steps and job.files_exist():
        return job.result()
    if max(finished, begun) > config.steps:
        raise ValueError(
            f"'{job.files.name}' has learned {max(finished, begun)} steps already, and {config.steps} are asked for; "
            f"take another name, or set steps to {max(finished, begun)} or more."
        )
    job.train()
    return job.result()


class Job:
    """One tuning of one name, from its settings to its files."""

    def __init__(
        self,
        model: ModelPatcher,
        clip: comfy.sd.CLIP,
        vae: Any,
        subject: Subject,
        class_word: str,
        name: str,
        config: TuningConfig,
        node_id: str | None = None,
    ) -> None:
        _check_fit(model, clip, vae, subject)
        self.model, self.clip, self.vae, self.subject = model, clip, vae, subject
        self.files, self.texts = TuningFiles(checked_name(name)), ClassTexts(clip, class_word)
        if self.texts.width != (expected := context_size(model)):
            raise ValueError(
                f"the clip makes text of width {self.texts.width}, but this model reads {expected}; link the CLIP of "
                "the model's own checkpoint."
            )
        self.encoder = applied_encoder(model, subject) if config.encoder_resblocks else None
        self.device = model.load_device
        self.config = replace(config, precision=_precision(config, self.device))
        self.parametrisation = parametrisation(model.get_model_object("model_sampling"))
        self.progress = Progress(node_id, self.config)
        self.key = self._key()
        self.files.check(self.key, with_encoder=self.encoder is not None)

    def _key(self) -> str:
        """Of everything that the outcome depends on, the number of steps apart."""
        key = fingerprint.Fingerprint().add(self.config.outcome(), self.texts.class_word)
        key.add(fingerprint.of_model(self.model), fingerprint.of_patches(self.model))
        key.add(fingerprint.of_model(self.clip.patcher), self.clip.layer_idx)
        if self.encoder is not None:
            key.add(fingerprint.of_network(self.encoder.encoding.encoder.model))
        return key.add(fingerprint.of_network(self.vae.first_stage_model), fingerprint.of_subject(self.subject)).text()

    # --- the steps ---------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Take the steps that are missing, and write the files. What was learned outlives any end of it."""
        try:
            pairs = self.pairs()
            with Training(self, pairs) as training:
                try:
                    training.run()
                except BaseException as error:
                    where = training.keep()
                    if where and isinstance(error, comfy.model_management.InterruptProcessingException):
                        self.progress.say(where)
                    raise
        except (torch.cuda.OutOfMemoryError, MemoryError) as error:
            comfy.model_management.unload_all_models()  # as the host does where it is told of this error itself
            raise ValueError(self._out_of_memory()) from error
        encoder = "" if self.encoder is None else f", subject_encoders/{self.files.encoder.name}"
        self.progress.say(f"done: loras/{self.files.lora.name}, embeddings/{self.files.embedding.name}{encoder}")

    def pairs(self) -> Pairs:
        """The latents of the reference and of the regular pictures, cached; as the U-Net takes them.

        First those that resemble the subject, then those of the bare class.
        """
        resembling, of_class = self.config.shares
        bare = self._encoded(f"a {self.texts.class_word}")
        regular = [
            self._regular(self.subject, self.caption or bare, resembling, 0),
            self._regular(None, bare, of_class, resembling),
        ]
        scale = self.model.model.process_latent_in
        reference = flipped_pair(self.vae, self.subject.latent, self.subject.picture)
        with torch.inference_mode(False):
            return Pairs(scale(reference.clone()), scale(torch.cat(regular)), self._mask())

    @cached_property
    def nothing(self) -> Any:
        """The empty text."""
        return self._encoded("")

    @property
    def caption(self) -> Any | None:
        """The subject's caption; None where it says nothing."""
        caption = self.subject.caption
        return None if caption is None or _same_text(caption, self.nothing) else caption

    def _regular(self, subject: Subject | None, text: Any, count: int, before: int) -> Tensor:
        """[count, 2, C, h, w], for which `before` pictures are there already."""
        return regular_latents(
            self.model,
            self.vae,
            subject,
            text,
            self.nothing,
            self.subject.latent.shape,
            count,
            lambda done, _: self.progress.regular(before + done, self.config.regular_pictures),
        )

    def _encoded(self, text: str) -> Any:
        return self.clip.encode_from_tokens_scheduled(tokenize(self.clip, text))

    def _mask(self) -> Tensor | None:
        """[2, 1, h, w]: the subject on the latent's grid, plain and flipped."""
        if self.subject.mask is None:
            return None
        height, width = self.subject.latent.shape[-2:]
        mask = F.adaptive_avg_pool2d(self.subject.mask.float(), (height, width))
        return torch.stack([mask, mask.flip(-1)]).clone()

    def _out_of_memory(self) -> str:
        height, width = self.subject.picture.shape[1:3]
        ways = [
            "" if self.config.gradient_checkpointing else "turn gradient_checkpointing on",
            "set method to lora" if self.config.method == "full" else "",
            "turn text_encoder off" if self.config.text_encoder else "",
            "turn encoder_resblocks off" if self.config.encoder_resblocks else "",
            "set precision to bf16" if self.config.precision == "fp32" and self.device.type == "cuda" else "",
            "lower the rank" if self.config.rank > 8 and self.config.method == "lora" else "",
            "encode the subject at a smaller resolution",
        ]
        return f"there is not enough memory to tune at {width}x{height}; {', or '.join(filter(None, ways))}."

    # --- the files ---------------------------------------------------------------------------------------------------

    def settings(self, **more: Any) -> dict[str, str]:
        """Metadata of a file of this tuning."""
        settings = {"key": self.key, "class_word": self.texts.class_word, **more, "config": asdict(self.config)}
        if isinstance(self.subject, OwnedSubject):
            settings["rights"] = asdict(self.subject.rights)  # they bind whoever has the file
        return {SETTINGS: json.dumps(settings, ensure_ascii=False)}

    def files_exist(self) -> bool:
        """Whether all that an artist uses is there; of how many steps, the LoRA says."""
        return self.files.embedding.exists() and (self.encoder is None or self.files.encoder.exists())

    def result(self) -> Tuned:
        """The files as the host's own nodes, and ours, load them."""
        lora = comfy.utils.load_torch_file(str(self.files.lora), safe_load=True)
        model, clip = comfy.sd.load_lora_for_models(self.model, self.clip, lora, 1.0, 1.0)
        subject = self.subject
        if self.encoder is not None:
            model, subject = with_tuned_encoder(model, self.encoder, subject, self.files.encoder.name)
        words, _ = read(self.files.embedding) or ({}, {})
        state, _ = read(self.files.state) or ({}, {})
        samples = samples_of(state)
        asked = milestones(self.config.steps) if samples else []
        shown = {min(samples, key=lambda step: abs(step - milestone)) for milestone in asked}
        title = f"{self.files.name}: a {self.texts.class_word}, {self.config.steps} steps, {self.config.method}"
        columns = [f"a {self.texts.class_word} {self.files.name}"] * len(SAMPLE_SEEDS) + [f"a {self.texts.class_word}"]
        losses = state["losses"].tolist()[: self.config.steps] if "losses" in state else []
        return Tuned(
            model,
            clip,
            TunedSubject(
                subject,
                self.texts.class_word,
                self.files.name,
                file_hash(self.files.lora),
                self.config.steps,
                _words(words, self.texts.words),
            ),
            report(title, losses, {step: samples[step] for step in shown}, columns),
        )


def _check_fit(model: ModelPatcher, clip: Any, vae: Any, subject: Subject) -> None:
    check_fit(model, subject)
    for what, thing, needed in (("clip", clip, "patcher"), ("vae", vae, "first_stage_model")):
        if getattr(thing, needed, None) is None:
            raise ValueError(f"expected the {what} of the model's own checkpoint, but got {type(thing).__name__}.")


def _precision(config: TuningConfig, device: torch.device) -> str:
    if config.precision != "auto":
        return config.precision
    if config.method == "full" or device.type == "cpu":  # a full tuning's steps are too small for bf16 to show
        return "fp32"
    return "bf16" if comfy.model_management.should_use_bf16(device) else "fp32"


def _same_text(caption: Any, other: Any) -> bool:
    return caption[0][0].shape == other[0][0].shape and torch.equal(caption[0][0].cpu(), other[0][0].cpu())


def _words(found: Mapping[str, Tensor], names: Mapping[str, Any]) -> dict[str, Tensor]:
    """S* of an embedding's file, by the text encoder's name."""
    return {name: found[embedding_key(name, len(names))][0] for name in names}
