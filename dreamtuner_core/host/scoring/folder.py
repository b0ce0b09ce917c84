"""Image towers in folders of the library transformers: CLIP and DINO, in models/clip_vision.

Nothing is downloaded, and no code in a folder is run.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
import transformers
from comfy.clip_vision import clip_preprocess
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...files import LONGEST_JSON, plain_json
from ...texts import reason, shown

FOLDERS, CONFIG, PIXELS = "clip_vision", "config.json", "preprocessor_config.json"
CLIP = "clip"
DINO = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")
LARGEST_SIDE = 4096  # pixels
MEMORY = 300 * 2**20  # bytes that one picture's pass needs besides the weights
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)


def tower_folders() -> list[str]:
    """Names of the folders that hold a model of transformers."""
    parents = map(Path, folder_paths.get_folder_paths(FOLDERS))
    return sorted(
        {config.parent.name for parent in parents for config in parent.glob(f"*/{CONFIG}") if config.is_file()}
    )


class FolderTower:
    """The image tower of one of these folders (a towers.Tower).

    Raises ValueError, in one sentence, if it is neither CLIP nor DINO, or cannot be loaded completely.
    """

    def __init__(self, name: str) -> None:
        self.path, config = _described(name)
        kind = config.get("model_type")
        if kind != CLIP and kind not in DINO:
            raise ValueError(
                f"the model in '{shown(name)}' is a {shown(str(kind), 40)}, which is neither CLIP nor DINO; choose "
                "another tower_folder."
            )
        self.is_clip = kind == CLIP
        self.name = "CLIP" if self.is_clip else "DINO"
        self._side, self._mean, self._deviation = _checked_pixels(self.path / PIXELS)
        model = _loaded(transformers.CLIPModel if self.is_clip else transformers.AutoModel, self.path)
        network = torch.nn.ModuleList([model.eval()])  # the host sets a `device`, which transformers' models forbid
        management = comfy.model_management
        self._patcher = ModelPatcher(network, management.get_torch_device(), management.text_encoder_offload_device())

    def picture(self, picture: Tensor) -> Tensor:
        """The embedding [C] of the middle square of a picture [1, H, W, 3] in 0..1."""
        model = self._ready()
        pixels = clip_preprocess(picture.float(), self._side, self._mean, self._deviation).to(self._patcher.load_device)
        with torch.inference_mode():
            if self.is_clip:
                return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)[0].float().cpu()
            return model(pixel_values=pixels).last_hidden_state[0, 0].float().cpu()

    def text(self, text: str) -> Tensor:
        """The embedding [C] of the text, cut at the model's length. Raises ValueError, in one sentence, for a DINO."""
        if not self.is_clip:
            raise ValueError(
                f"'{shown(self.path.name)}' is a DINO, which cannot read text; choose the folder of a CLIP, or leave "
                "text empty and min_text at 0."
            )
        tokens = _loaded(transformers.AutoTokenizer, self.path)(text, return_tensors="pt", truncation=True)
        model, device = self._ready(), self._patcher.load_device
        with torch.inference_mode():
            output = model.text_model(**{k: tokens[k].to(device) for k in ("input_ids", "attention_mask")})
            return model.text_projection(output.pooler_output)[0].float().cpu()

    def _ready(self) -> Any:
        comfy.model_management.load_models_gpu([self._patcher], memory_required=MEMORY)
        return self._patcher.model[0]


def _described(name: str) -> tuple[Path, dict[str, Any]]:
    """The folder's path, and its config.json."""
    if name not in tower_folders():
        raise ValueError(
            f"tower_folder: there is no folder '{shown(name)}' with a {CONFIG} in models/{FOLDERS}; choose one from "
            "the list, or put the folder of a CLIP or DINO there."
        )
    parents = map(Path, folder_paths.get_folder_paths(FOLDERS))
    path = next(parent / name for parent in parents if (parent / name / CONFIG).is_file())
    return path, _read(path / CONFIG)


def _checked_pixels(path: Path) -> tuple[int, list[float], list[float]]:
    """Side in pixels of the square that the model reads (224 if the file has none), and the mean and deviation."""
    found = _read(path, "image_mean", "image_std")
    side = found.get("crop_size") or found.get("size") or 224
    side = next(iter(side.values()), None) if isinstance(side, dict) else side
    mean, deviation = found["image_mean"], found["image_std"]
    if type(side) is not int or not 0 < side <= LARGEST_SIDE or not (_three(mean) and _three(deviation, above=0)):
        raise ValueError(_not_valid(path))
    return side, mean, deviation


def _three(values: Any, above: float = -math.inf) -> bool:
    plain = isinstance(values, list) and len(values) == 3 and all(type(x) in (int, float) for x in values)
    return plain and all(math.isfinite(x) and x > above for x in values)


def _read(path: Path, *keys: str) -> dict[str, Any]:
    """The JSON object in that file. Raises ValueError, in one sentence, unless it has these keys."""
    try:
        fits = path.is_file() and path.stat().st_size <= LONGEST_JSON  # a pipe would never end
        found = plain_json(path.read_text(encoding="utf-8")) if fits else None
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not found.keys() >= set(keys):
        raise ValueError(_not_valid(path))
    return found


def _not_valid(path: Path) -> str:
    folder = shown(path.parent.name)
    return f"'{folder}' has no valid {path.name}; copy the complete folder, as transformers saves it."


def _loaded(kind: Any, path: Path) -> Any:
    try:
        more = {"use_safetensors": True} if hasattr(kind, "base_model_prefix") or kind is transformers.AutoModel else {}
        return kind.from_pretrained(path, local_files_only=True, trust_remote_code=False, **more)
    except UNREADABLE as error:
        raise ValueError(
            f"'{shown(path.name)}' cannot be loaded ({reason(error, 120)}); copy the complete "
            "folder, with model.safetensors and the tokenizer's files."
        ) from error
