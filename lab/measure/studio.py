"""Where the pictures are drawn: the mini base in the host, and the subjects as an artist would give them."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.host import HOME
from lab.inside import import_host, import_pack
from lab.measure.cast import REFERENCE_SCENE, WHITE, Case
from lab.measure.changes import CHANGES
from lab.world import caption_of

KEPT = HOME / "measure"
MOST_READ = (True, "concise", None, "as it is", False)  # masked, caption, change, light, found
TUNING = KEPT / "tuning"  # what the rows of subject tuning write
EMBEDDINGS = TUNING / "embeddings"


def enter_host() -> None:
    """Make the host importable, once."""
    if "comfy.cli_args" not in sys.modules:
        import_host()


@dataclass(frozen=True)
class Sampling:
    """How every picture of a table is made."""

    side: int = 128
    steps: int = 20
    cfg: float = 4.0
    sampler: str = "dpmpp_2m"
    scheduler: str = "karras"


@dataclass(eq=False)
class Reference:
    """One subject's picture, before any pack has seen it.

    picture: [1, H, W, 3] in 0..1, the subject on REFERENCE_SCENE. mask: [1, H, W], 1 on the subject.
    """

    case: Case
    picture: Tensor
    mask: Tensor
    studio: Studio
    _encoded: dict[Any, Any] = field(default_factory=dict)

    def subject(
        self,
        masked: bool = True,
        caption: str = "concise",
        change: str | None = None,
        light: str = "as it is",
        found: bool = False,
    ) -> Any:
        """As Encode Subject Image gives it; kept, so that its features are too."""
        key = (masked, caption, change, light, found)
        if key not in self._encoded:
            picture, mask = (self.picture, self.mask) if change is None else CHANGES[change](self.picture, self.mask)
            text = self.caption(caption, WHITE if masked else REFERENCE_SCENE)
            encode = self.studio.pack.dreamtuner_core.host.subject.encode
            self._encoded[key] = encode.encode_subject(
                picture,
                self.studio.vae,
                mask if masked and not found else None,
                None if text is None else self.studio.text([text]),
                mask_marks="subject",
                resolution=self.studio.sampling.side,
                find_subject=encode.WHEN_NO_MASK if found else encode.NEVER,
                light=light,
            )
        return self._encoded[key][0]

    def encoded(self, encoder: Path) -> Any:
        """The subject as most rows read it, seen by that subject encoder too."""
        subject, studio = self.subject(), self.studio
        encoding = studio.core.host.encoder.load.encode_picture(studio.encoder(encoder), subject.picture)
        return replace(subject, encoding=encoding)

    def caption(self, kind: str, scene: str) -> str | None:
        """`concise` names kind and scene, `detailed` the colour and the pose too; `empty` is "", `none` no caption."""
        view, individual = self.case.reference.subjects[0].view, self.case.individual
        texts = {
            "concise": caption_of(self.case.kind, scene),
            "detailed": caption_of(self.case.kind, scene, individual.colour, view.pose),
            "empty": "",
        }
        return texts.get(kind)

    def forget(self) -> None:
        """Free what was kept of the encoded subjects, but for the one that most rows read: its features serve again."""
        self._encoded = {key: kept for key, kept in self._encoded.items() if key == MOST_READ}


class Studio:
    """A checkpoint in the host."""

    def __init__(self, checkpoint: Path, sampling: Sampling) -> None:
        enter_host()
        importlib.import_module("lab.mini_family")
        import comfy.sd

        self.sampling = sampling
        self.weights = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:16]
        self.pack = import_pack()
        self._encoders: dict[Path, Any] = {}
        self.model, self.clip, self.vae, _ = comfy.sd.load_checkpoint_guess_config(
            str(checkpoint), embedding_directory=[str(EMBEDDINGS)]
        )
        self.vae.first_stage_model.to(memory_format=torch.channels_last)

    @property
    def autoencoder(self) -> str:
        """A digest of the autoencoder's weights."""
        weights = self.vae.first_stage_model.state_dict()
        digest = hashlib.sha256(b"".join(x.detach().cpu().contiguous().numpy().tobytes() for x in weights.values()))
        return digest.hexdigest()[:16]

    @property
    def core(self) -> Any:
        return self.pack.dreamtuner_core

    def encoder(self, path: Path) -> Any:
        """A subject encoder, through the host's own folders."""
        import folder_paths

        if path not in self._encoders:
            rooms = self.core.host.encoder.load
            folder_paths.add_model_folder_path(rooms.ENCODERS.name, str(path.parent))
            self._encoders[path] = rooms.load_encoder(path.name)
        return self._encoders[path]

    def reference(self, case: Case) -> Reference:
        shown = case.reference
        return Reference(case, as_floats(shown.pixels)[None], as_floats(shown.mask)[None], self)

    def left_by_autoencoder(self, pictures: Tensor) -> Tensor:
        """[B, H, W, 3] in 0..1, encoded and decoded; in bf16, four times quicker on a CPU that has it."""
        with torch.autocast("cpu", torch.bfloat16):
            parts = [self.vae.decode(self.vae.encode(part)).float() for part in pictures.split(16)]
        return torch.cat(parts).clamp(0, 1)

    def text(self, texts: Sequence[str], clip: Any = None) -> Any:
        """One conditioning whose rows are the texts."""
        clip = clip or self.clip
        told = [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0] for text in texts]
        return [[torch.cat([rows for rows, _ in told]), told[0][1]]]

    def draw(
        self,
        model: Any,
        clip: Any,
        prompts: Sequence[str],
        seeds: Sequence[int],
        start: Tensor | None = None,
        denoise: float = 1.0,
    ) -> Tensor:
        """[B, side, side, 3] in 0..1, a picture for each prompt, each with the noise of its own seed.

        start: [1, C, h, w] that is noised and denoised, or None to begin from nothing. The guidance's draws are those
        of the first seed, as in any batch.
        """
        import comfy.sample

        s = self.sampling
        channels = self.model.model.latent_format.latent_channels
        empty = torch.zeros(1, channels, s.side // 8, s.side // 8)
        noise = torch.cat([comfy.sample.prepare_noise(empty, seed) for seed in seeds])
        latent = (empty if start is None else start).repeat(len(prompts), 1, 1, 1)
        drawn = comfy.sample.sample(
            model,
            noise,
            s.steps,
            s.cfg,
            s.sampler,
            s.scheduler,
            self.text(prompts, clip),
            self.text([""], clip),
            latent,
            denoise=denoise,
            disable_pbar=True,
            seed=seeds[0],
        )
        return self.vae.decode(drawn).clamp(0, 1)


def as_floats(pixels: np.ndarray) -> Tensor:
    """uint8 -> 0..1."""
    return torch.from_numpy(pixels.copy()).float() / 255
