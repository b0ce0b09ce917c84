"""Image towers that an artist has as folders of transformers: CLIP and DINO under models/clip_vision.

Nothing is downloaded, and no code of the folder is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
import transformers
from comfy.clip_vision import clip_preprocess
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...files import plain_json
from ...texts import shown

FOLDERS, CONFIG, PIXELS = "clip_vision", "config.json", "preprocessor_config.json"
CLIP = "clip"
DINO = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")
MEMORY = 300 * 2**20  # bytes that one picture's pass takes beside the weights
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)


def tower_folders() -> list[str]:
    """Names of the folders that hold a model of transformers."""
    rooms = map(Path, folder_paths.get_folder_paths(FOLDERS))
    return sorted({config.parent.name for room in rooms for config in room.glob(f"*/{CONFIG}")})


class FolderTower:
    """One of them. Raises ValueError, in one sentence, for what is no CLIP or DINO, or cannot be loaded whole."""

    def __init__(self, name: str) -> None:
        self.path, told = _described(name)
        kind = told.get("model_type")
        if kind != CLIP and kind not in DINO:
            raise ValueError(
                f"the model in '{shown(name)}' is a {shown(str(kind), 40)}, which is neither CLIP nor DINO; choose "
                "another tower_folder."
            )
        self.is_clip = kind == CLIP
        self.name = "CLIP" if self.is_clip else "DINO"
        self._pixels = _read(self.path / PIXELS, "image_mean", "image_std")
        self._side = _side(self._pixels)
        model = _loaded(transformers.CLIPModel if self.is_clip else transformers.AutoModel, self.path)
        room = torch.nn.ModuleList([model.eval()])  # the host sets a `device`, which models of transformers forbid
        management = comfy.model_management
        self._patcher = ModelPatcher(room, management.get_torch_device(), management.text_encoder_offload_device())

    def picture(self, picture: Tensor) -> Tensor:
        """Of the middle square of a picture [1, H, W, 3] in 0..1: [C]."""
        model = self._ready()
        mean, std = (self._pixels[name] for name in ("image_mean", "image_std"))
        pixels = clip_preprocess(picture.float(), self._side, mean, std).to(self._patcher.load_device)
        with torch.inference_mode():
            if self.is_clip:
                return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)[0].float().cpu()
            return model(pixel_values=pixels).last_hidden_state[0, 0].float().cpu()

    def text(self, text: str) -> Tensor:
        """[C], of the text cut at the model's length. Raises ValueError for a DINO."""
        if not self.is_clip:
            raise ValueError(
                f"'{shown(self.path.name)}' is a DINO, which knows no texts; choose the folder of a CLIP, or leave "
                "text and min_text empty."
            )
        tokens = _loaded(transformers.AutoTokenizer, self.path)(text, return_tensors="pt", truncation=True)
        model, device = self._ready(), self._patcher.load_device
        with torch.inference_mode():
            seen = model.text_model(**{k: tokens[k].to(device) for k in ("input_ids", "attention_mask")})
            return model.text_projection(seen.pooler_output)[0].float().cpu()

    def _ready(self) -> Any:
        comfy.model_management.load_models_gpu([self._patcher], memory_required=MEMORY)
        return self._patcher.model[0]


def _described(name: str) -> tuple[Path, dict[str, Any]]:
    """The folder, and its config.json."""
    if name not in tower_folders():
        raise ValueError(
            f"tower_folder: there is no folder '{shown(name)}' with a {CONFIG} in models/{FOLDERS}; choose one of the "
            "list, or put the folder of a CLIP or DINO there."
        )
    rooms = map(Path, folder_paths.get_folder_paths(FOLDERS))
    path = next(room / name for room in rooms if (room / name / CONFIG).is_file())
    return path, _read(path / CONFIG)


def _side(pixels: dict[str, Any]) -> int:
    """Pixels of the square that the model looks at; 224 where it does not say."""
    told = pixels.get("crop_size") or pixels.get("size") or 224
    return int(next(iter(told.values())) if isinstance(told, dict) else told)


def _read(path: Path, *keys: str) -> dict[str, Any]:
    """A file of plain values, which has these keys."""
    try:
        told = plain_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        told = None
    if not isinstance(told, dict) or not told.keys() >= set(keys):
        raise ValueError(
            f"'{shown(path.parent.name)}' has no {path.name} that can be read; get that folder whole, as transformers "
            "keeps it."
        )
    return told


def _loaded(kind: Any, path: Path) -> Any:
    try:
        told = {"use_safetensors": True} if hasattr(kind, "base_model_prefix") or kind is transformers.AutoModel else {}
        return kind.from_pretrained(path, local_files_only=True, trust_remote_code=False, **told)
    except UNREADABLE as error:
        raise ValueError(
            f"'{shown(path.name)}' cannot be loaded ({shown(str(error).splitlines()[0], 120)}); get that folder whole, "
            "with model.safetensors and the files of its tokenizer."
        ) from error
