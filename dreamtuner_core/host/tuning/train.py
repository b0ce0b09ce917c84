"""One tuning under way in the host: networks, steps, samples, and the state on disk that survives any end of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import comfy.model_management
import torch
from torch import Tensor
from torch.nn import Parameter

from ...tuning.config import milestones
from ...tuning.loop import Group, Tuning
from ...tuning.pairs import Draw, Pairs
from ..calls import Text
from ..files import read, write
from ..unet import self_attentions
from .adapters import Adapters, on_host, predict, recomputed, text_adapters, unet_adapters
from .encoder import LearningEncoder
from .files import TuningFiles, settings_of
from .regular import draw
from .texts import Tokens, tokenize

if TYPE_CHECKING:
    from .job import Job

SAMPLE_SEEDS = (1, 2)  # of the report's pictures of the subject; the first one also draws the bare class
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
STATE_OF_FULL = ("losses", "samples.")  # what stays of a finished full tuning: the rest is gigabytes

log = logging.getLogger(__name__)


class Training:
    """The networks while they learn; a context that leaves them as they were."""

    def __init__(self, job: Job, pairs: Pairs) -> None:
        self.job, self.config, self.texts = job, job.config, job.texts
        config = self.config
        caption = job.caption if config.regular_from == "both" else None
        self.exits = ExitStack()
        self.layers = list(self_attentions(job.model))
        self.encoder = None if job.encoder is None else LearningEncoder(job.model, job.encoder, self.layers)
        with torch.inference_mode(False):
            self.unet = unet_adapters(
                job.model, config.method, config.rank, config.seed, PRECISIONS[config.precision], job.device
            )
            device, method = job.clip.patcher.load_device, config.method if config.text_encoder else None
            self.text = text_adapters(job.clip, method, config.rank, config.seed, device)
            words = {name: Parameter(word.to(device, copy=True)) for name, word in self.texts.words.items()}
            self.texts.words.update(words)
            self.caption = None if caption is None else Text.of(caption).clone()
            sigmas = job.model.get_model_object("model_sampling").sigmas
            self.tuning = Tuning(
                config,
                [
                    Group(self.unet.parameters, config.rate),
                    Group(self.text.parameters, config.rate),
                    *(
                        Group({f"word.{name}": word}, config.word_rate * self.texts.scales[name])
                        for name, word in words.items()
                    ),
                    *([] if self.encoder is None else [Group(self.encoder.adapters.parameters, config.encoder_rate)]),
                ],
                pairs,
                torch.tensor(sigmas.tolist()),
                job.parametrisation,
                self._predict,
                job.device,
            )
        self.latent_shape = torch.Size((1, *pairs.reference.shape[1:]))
        self.samples: dict[int, Tensor] = {}
        self.saved_at = 0
        self.class_text: Text | None = None

    def __enter__(self) -> Training:
        self.exits.enter_context(on_host(self._networks()))
        if self.config.gradient_checkpointing:
            self.exits.enter_context(recomputed(self.unet.patcher.model.diffusion_model))
            self.exits.enter_context(recomputed(self.text.patcher.model))
        return self

    def __exit__(self, *error: Any) -> None:
        self.exits.close()

    def _networks(self) -> list[Adapters]:
        return [self.unet, self.text, *([] if self.encoder is None else [self.encoder.adapters])]

    def run(self) -> None:
        """From where the state on disk left off to the last step, and to the files."""
        self._take_up()
        self.load()
        rows = milestones(self.config.steps)
        while True:
            if self.tuning.step in rows and self.tuning.step not in self.samples:
                self.samples[self.tuning.step] = self._sample()
                self.load()
            if self.tuning.step >= self.config.steps:
                break
            comfy.model_management.throw_exception_if_processing_interrupted()
            loss = self.tuning.advance()
            self.job.progress.step(self.tuning.step, loss, self._newest_sample())
            if self.tuning.step % self.config.checkpoint_interval == 0:
                self._save_state()
        self._save_state()
        self._save_result(self.job.files)
        if self.config.method == "full":
            self._save_state(only=STATE_OF_FULL)

    def load(self) -> None:
        """Both networks onto their devices, as far as the host has room beside what learning needs."""
        model, shape = self.unet.patcher.model, self.latent_shape
        passes = 5 if self.config.gradient_checkpointing else 12  # of drawing one picture; 5: see lab.tuning_memory
        learned = sum(p.numel() for p in self.tuning.parameters.values())
        needed = passes * model.memory_required([2, *shape[1:]]) + 3 * 4 * learned  # gradient and two moments
        with torch.inference_mode():
            patchers = [network.patcher for network in self._networks()]
            comfy.model_management.load_models_gpu(patchers, memory_required=needed)

    def _predict(self, noisy: Tensor, sigma: Tensor, draw: Draw) -> Tensor:
        texts = [self._encode_with_grad(self.texts.with_word())]
        if len(noisy) > 1:
            texts.append(self._regular_text(draw.regular))
        encoder = self.encoder
        joined = None if encoder is None else encoder.joined(float(sigma[0]), int(draw.flip[0]), len(noisy))
        return predict(self.unet.patcher.model, noisy, sigma, texts, self.layers, joined)

    def _regular_text(self, regular: int) -> Text:
        """What that regular picture is told: "a <class>"; where half of them are of the class, the others' caption."""
        if self.caption is not None and regular < self.config.shares[0]:
            return self.caption
        if self.config.text_encoder or self.class_text is None:
            self.class_text = self._encode_with_grad(self.texts.tokens)
        return self.class_text

    def _encode(self, tokens: Tokens) -> Text:
        return self.texts.encode(self.text.patcher.model, tokens)

    def _encode_with_grad(self, tokens: Tokens) -> Text:
        # The host's CLIP adds in place to what its layer norms have kept for the way back: states of [1, 77, D]
        kept = torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone() if x.ndim == 3 else x, lambda x: x)
        with kept:
            return self._encode(tokens)

    @torch.inference_mode()
    def _sample(self) -> Tensor:
        """[3, h, w, 3] in 0..255: the subject twice and the bare class, by the model as it is now."""
        self.load()
        texts = [self.texts.with_word()] * len(SAMPLE_SEEDS) + [self.texts.tokens]
        positives = [self._encode(tokens).conditioning() for tokens in texts]
        negative = self._encode(tokenize(self.job.clip, "")).conditioning()
        bare = self.unet.patcher
        shown = bare if self.encoder is None else self.encoder.on(bare)
        models, drawn = [*[shown] * len(SAMPLE_SEEDS), bare], []
        for model, positive, seed in zip(models, positives, (*SAMPLE_SEEDS, SAMPLE_SEEDS[0]), strict=True):
            latent = draw(model, positive, negative, self.latent_shape, seed)
            drawn.append((self.job.vae.decode(latent)[0].clamp(0, 1) * 255).round().byte().cpu())
        return torch.stack(drawn)

    def _newest_sample(self) -> Tensor | None:
        return self.samples[max(self.samples)] if self.samples else None

    # --- the state on disk -------------------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """Go on from the state on disk, where it is of these very settings."""
        found = read(self.job.files.state)
        if found is None or settings_of(self.job.files.state).get("key") != self.job.key:
            return
        state, _ = found
        if not any(name.startswith("parameter.") for name in state):
            raise ValueError(
                f"'{self.job.files.name}' is a finished full tuning, which cannot be gone on with; take another name."
            )
        with torch.inference_mode(False):
            self.tuning.load_state({name: x.clone() for name, x in state.items() if not name.startswith("samples.")})
        self.samples, self.saved_at = samples_of(state), self.tuning.step
        if self.tuning.step:
            log.info("DreamTuner: '%s' goes on at step %d", self.job.files.name, self.tuning.step)

    def _save_state(self, only: tuple[str, ...] = ("",)) -> None:
        state = self.tuning.state() | {f"samples.{step}": x for step, x in self.samples.items()}
        state = {name: x for name, x in state.items() if name.startswith(only)}
        write(self.job.files.state, state, self.job.settings(steps=self.tuning.step))
        self.saved_at = self.tuning.step

    def _save_result(self, files: TuningFiles) -> None:
        """The embedding, the subject encoder and, at last, the LoRA: in the layouts that the nodes read."""
        kind = torch.float32 if self.config.method == "lora" else torch.float16
        settings = self.job.settings(steps=self.tuning.step)
        phrase = {"modelspec.title": files.name, "modelspec.trigger_phrase": f"{self.texts.class_word} {files.name}"}
        words = {name: word.detach().cpu()[None].clone() for name, word in self.texts.words.items()}  # [1, D]
        write(files.embedding, {embedding_key(name, len(words)): word for name, word in words.items()}, settings)
        if self.encoder is not None:
            said = {"class_word": self.texts.class_word, "steps": self.tuning.step}
            self.encoder.save(files.encoder, settings, said)
        write(files.lora, self.unet.saved(kind) | self.text.saved(kind), settings | phrase)

    def keep(self) -> str:
        """Before an early end: write what was learned; says where, or nothing where nothing was learned."""
        step, name = self.tuning.step, self.job.files.name
        if step == 0:
            return ""
        early = TuningFiles(f"{name}_step{step}")
        with suppress(ValueError), torch.inference_mode(False):
            if self.saved_at != step:
                self._save_state()
            early.check(self.job.key, with_encoder=self.encoder is not None, with_state=False)
            self._save_result(early)
            usable = f"loras/{early.lora.name}, embedding:{early.name}"
            usable += "" if self.encoder is None else f", subject_encoders/{early.encoder.name}"
            log.info("DreamTuner: '%s' stopped at step %d; usable now: %s", name, step, usable)
            return f"stopped at step {step}: queue again to go on, or use {usable}"
        return ""


def samples_of(state: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """The sample pictures in a state, by step: [3, h, w, 3] in 0..255."""
    return {int(name.removeprefix("samples.")): x for name, x in state.items() if name.startswith("samples.")}


def embedding_key(name: str, encoders: int) -> str:
    """What an embedding's file calls the word of that text encoder: by the encoder where there are several."""
    return "emb_params" if encoders == 1 else f"clip_{name}"
