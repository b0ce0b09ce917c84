"""The training itself: networks, steps and samples, from the state on disk to the result files."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

import comfy.model_management
import torch
from torch import Tensor
from torch.nn import Parameter

from ...tuning.config import milestones
from ...tuning.loop import Group, Tuning
from ...tuning.pairs import Draw, Pairs
from ..calls import Text
from ..unet import self_attentions
from .adapters import Adapters, text_adapters, unet_adapters
from .encoder import LearningEncoder
from .files import TuningFiles
from .job import Job
from .networks import on_host, recomputed
from .pairs import caption
from .predict import predict
from .regular import draw
from .store import SAMPLE_SEEDS, Learned, samples_of, store_result, store_state, stored_state
from .texts import Tokens, tokenize

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
STATE_OF_FULL = ("losses", "samples.")  # what is left of a finished full tuning's state: the rest takes gigabytes

log = logging.getLogger(__name__)


class Training:
    """The networks during training; a context that restores them."""

    def __init__(self, job: Job, pairs: Pairs) -> None:
        config = job.config
        self.job, self.config, self.texts = job, config, job.texts
        self.layers = list(self_attentions(job.model))
        self.latent_shape = torch.Size((1, *pairs.reference.shape[1:]))
        self.samples: dict[int, Tensor] = {}
        self.saved_at = 0
        with torch.inference_mode(False):
            self._build_networks()
            text = caption(job) if config.regular_from == "both" else None
            self.caption = None if text is None else Text.of(text).clone()
            self.class_text = None if config.text_encoder else Text.of(job.encoded(self.texts.a_class)).clone()
            self.tuning = Tuning(
                config=config,
                groups=self._groups(),
                pairs=pairs,
                levels=torch.tensor(job.model.get_model_object("model_sampling").sigmas.tolist()),
                parametrisation=job.parametrisation,
                predict=self._predict,
                device=job.device,
            )

    def _build_networks(self) -> None:
        job, config = self.job, self.config
        self.encoder = None if job.encoder is None else LearningEncoder(job.model, job.encoder, self.layers)
        self.unet = unet_adapters(
            model=job.model,
            method=config.method,
            rank=config.rank,
            seed=config.seed,
            dtype=PRECISIONS[config.precision],
            device=job.device,
        )
        self.text = text_adapters(
            clip=job.clip,
            method=config.method if config.text_encoder else None,
            rank=config.rank,
            seed=config.seed,
            device=job.clip.patcher.load_device,
        )
        device = job.clip.patcher.load_device
        self.words = {name: Parameter(word.to(device, copy=True)) for name, word in self.texts.words.items()}
        self.texts.words.update(self.words)

    def _groups(self) -> list[Group]:
        """The trained parameters and their learning rates; a word's rate is scaled to its text encoder's embeddings."""
        config = self.config
        groups = [Group(network.parameters, config.rate) for network in (self.unet, self.text)]
        for name, scale in self.texts.scales.items():
            groups.append(Group({f"word.{name}": self.words[name]}, config.word_rate * scale))
        if self.encoder is not None:
            groups.append(Group(self.encoder.adapters.parameters, config.encoder_rate))
        return groups

    def __enter__(self) -> Training:
        with ExitStack() as entered:  # if one of these fails, those already entered are left
            entered.enter_context(on_host(self._networks()))
            if self.config.gradient_checkpointing:
                entered.enter_context(recomputed(self.unet.patcher.model.diffusion_model))
                entered.enter_context(recomputed(self.text.patcher.model))
            self.exits = entered.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self.exits.close()

    def _networks(self) -> list[Adapters]:
        return [self.unet, self.text, *([] if self.encoder is None else [self.encoder.adapters])]

    # --- the steps ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train from the state on disk to the last step, and write the files.

        If a state cannot be written during training, that is logged, and no step is lost.
        """
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
        self.job.files.check(self.job.key)  # another ComfyUI that shares the folders may have taken the name meanwhile
        store_result(self.job, self.job.files, self._learned())
        if self.config.method == "full":
            self._save_state(only=STATE_OF_FULL)

    def load(self) -> None:
        """Load both networks to their devices, as far as the memory for training leaves room."""
        model, shape = self.unet.patcher.model, self.latent_shape
        passes = 5 if self.config.gradient_checkpointing else 12  # times the memory of sampling; 5: lab.tuning_memory
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
        """The text of that regular image: "a <class>", or the caption for one that resembles the subject."""
        if self.caption is not None and regular < self.config.shares[0]:
            return self.caption
        return self.class_text or self._encode_with_grad(self.texts.tokens)

    def _encode(self, tokens: Tokens) -> Text:
        return self.texts.encode(self.text.patcher.model, tokens)

    def _encode_with_grad(self, tokens: Tokens) -> Text:
        # The host's CLIP adds in place to what its layer norms have saved for the backward pass: states of [1, 77, D]
        saved = torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone() if x.ndim == 3 else x, lambda x: x)
        with saved:
            return self._encode(tokens)

    def _without_word(self, text: str) -> list:
        """A text without S* as the host's CONDITIONING, by the text encoder as it is now."""
        if not (self.config.text_encoder and self.tuning.step):
            return self.job.encoded(text)
        return self._encode(tokenize(self.job.clip, text)).conditioning()

    @torch.inference_mode()
    def _sample(self) -> Tensor:
        """Samples of the current model, [3, h, w, 3] in 0..255: the subject twice, and the plain class."""
        self.load()
        word = self._encode(self.texts.with_word()).conditioning()
        positives = [*[word] * len(SAMPLE_SEEDS), self._without_word(self.texts.a_class)]
        negative = self._without_word("")
        bare = self.unet.patcher
        shown = bare if self.encoder is None else self.encoder.on(bare)
        models, drawn = [*[shown] * len(SAMPLE_SEEDS), bare], []
        for model, positive, seed in zip(models, positives, (*SAMPLE_SEEDS, SAMPLE_SEEDS[0]), strict=True):
            latent = draw(model, positive, negative, self.latent_shape, seed)
            drawn.append((self.job.vae.decode(latent)[0].clamp(0, 1) * 255).round().byte().cpu())
        return torch.stack(drawn)

    def _newest_sample(self) -> Tensor | None:
        return self.samples[max(self.samples)] if self.samples else None

    # --- saving and resuming -----------------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """Resume from the state on disk, if there is one with the same settings."""
        state, name = stored_state(self.job), self.job.files.name
        if state is None:
            return
        if not any(key.startswith("parameter.") for key in state):
            raise ValueError(f"'{name}' is a finished full tuning, which cannot go on; use another name.")
        with torch.inference_mode(False):
            self.tuning.load_state({key: x.clone() for key, x in state.items() if not key.startswith("samples.")})
        self.samples, self.saved_at = samples_of(state), self.tuning.step
        if self.tuning.step:
            log.info("DreamTuner: '%s' goes on at step %d", name, self.tuning.step)

    def _save_state(self, only: tuple[str, ...] = ("",)) -> bool:
        state = self.tuning.state() | {f"samples.{step}": x for step, x in self.samples.items()}
        state = {name: x for name, x in state.items() if name.startswith(only)}
        stored = store_state(self.job, state, self.tuning.step)
        self.saved_at = self.tuning.step if stored else self.saved_at
        return stored

    def _learned(self) -> Learned:
        kind = torch.float32 if self.config.method == "lora" else torch.float16
        what = {"class_word": self.texts.class_word, "steps": self.tuning.step}
        return Learned(
            steps=self.tuning.step,
            lora=self.unet.saved(kind) | self.text.saved(kind),
            words={name: word.detach().cpu().clone() for name, word in self.words.items()},
            encoder=None if self.encoder is None else self.encoder.saved(what),
        )

    def keep(self) -> str:
        """Save what was learned, when training stops early. Returns a line for the artist; empty if nothing was saved.

        Raises nothing, because the caller already handles an error; failed writes are logged.
        """
        step, name = self.tuning.step, self.job.files.name
        if step == 0:
            return ""
        ways = []
        try:
            with torch.inference_mode(False):
                if self.saved_at == step or (self.tuning.whole and self._save_state()):
                    ways.append("queue again to go on")
                elif self.saved_at:
                    ways.append(f"queue again to go on from step {self.saved_at}")
                early = TuningFiles(f"{name}_step{step}", self.job.files.with_encoder).free(self.job.key)
                store_result(self.job, early, self._learned())
                ways.append(f"use {early.words()}")
        except Exception as error:
            log.warning("DreamTuner: not everything of '%s' after step %d was written: %s", name, step, error)
        line = f"stopped at step {step}: {', or '.join(ways)}" if ways else ""
        log.info("DreamTuner: '%s' %s", name, line)
        return line
