"""CLIP-T, CLIP-I and DINO-I, the paper's own figures, where an artist has those models in a folder.

Folders are in the layout of transformers (`config.json`, `model.safetensors`, and the preprocessor's and tokenizer's
files). Nothing is downloaded and no code of the folder is run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lab.measure.studio import enter_host


class LocalModels:
    """The figures of the models in the folders given; at least one of them."""

    def __init__(self, clip: Path | None, dino: Path | None) -> None:
        self.clip = None if clip is None else _load(clip, "CLIP", "CLIPModel", "AutoProcessor")
        self.dino = None if dino is None else _load(dino, "DINO", "AutoModel", "AutoImageProcessor")
        sizes = [(str(f), f.stat().st_size) for folder in (clip, dino) if folder for f in sorted(folder.iterdir())]
        self.key = hashlib.sha256(repr(sizes).encode()).hexdigest()[:16]
        self._kept: dict[Any, Tensor] = {}

    @torch.inference_mode()
    def score(self, picture: Tensor, reference: Tensor, text: str) -> dict[str, float]:
        """Cosines of a picture [H, W, 3] in 0..1 with its text, and with the reference's picture."""
        found = {}
        if self.clip is not None:
            seen, told = self._clip_image(picture), self._clip_text(text)
            found["CLIP-T"] = float((seen * told).sum())
            found["CLIP-I"] = float((seen * self._of("clip", reference, self._clip_image)).sum())
        if self.dino is not None:
            found["DINO-I"] = float((self._dino(picture) * self._of("dino", reference, self._dino)).sum())
        return found

    def _of(self, name: str, picture: Tensor, look: Any) -> Tensor:
        key = (name, hashlib.sha256(picture.numpy().tobytes()).digest())
        if key not in self._kept:
            self._kept[key] = look(picture)
        return self._kept[key]

    def _clip_image(self, picture: Tensor) -> Tensor:
        assert self.clip is not None
        model, processor = self.clip
        pixels = processor.image_processor(_bytes(picture), return_tensors="pt")["pixel_values"]
        return F.normalize(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output), dim=-1)

    def _clip_text(self, text: str) -> Tensor:
        assert self.clip is not None
        model, processor = self.clip
        tokens = processor.tokenizer([text], return_tensors="pt", truncation=True)
        hidden = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return F.normalize(model.text_projection(hidden.pooler_output), dim=-1)

    def _dino(self, picture: Tensor) -> Tensor:
        assert self.dino is not None
        model, processor = self.dino
        pixels = processor(_bytes(picture), return_tensors="pt")["pixel_values"]
        return F.normalize(model(pixel_values=pixels).last_hidden_state[:, 0], dim=-1)


def _bytes(picture: Tensor) -> Any:
    return (picture * 255).round().byte().numpy()


def _load(folder: Path, name: str, model: str, processor: str) -> tuple[Any, Any]:
    """The model and its processor. Raises ValueError, in one sentence, for what is no such folder."""
    enter_host()  # transformers imports torchvision, and the host knows how
    import transformers

    if not (folder / "config.json").exists():
        raise ValueError(
            f"--{name.lower()} expects the folder of a transformers model, but {folder} holds no config.json."
        )
    told = {"local_files_only": True, "trust_remote_code": False}
    try:
        loaded = getattr(transformers, model).from_pretrained(folder, use_safetensors=True, **told).eval()
        return loaded, getattr(transformers, processor).from_pretrained(folder, **told)
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"the {name} model in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
