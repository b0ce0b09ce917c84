"""Files of a tuning: names that stay in their folder, writing whole or not at all, and where everything lies.

What an artist uses lies where the host's own nodes look: loras/<name>.safetensors and embeddings/<name>.safetensors,
and, where a subject encoder learned too, subject_encoders/<name>.safetensors.
What only the pack uses lies under the user folder's `__dreamtuner`, a name that the host's web server gives to nobody:
tuning/<name>/state.safetensors (to go on from, and the report) and regular/<key>/ (the regular pictures).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
from safetensors import SafetensorError, safe_open

from ..encoder.load import ENCODERS
from ..files import SUFFIX, check_writable

SETTINGS = "dreamtuner.tuning"  # key of a file's metadata


def settings_of(path: Path) -> dict[str, Any]:
    """What a file says of the tuning that made it; empty where it says nothing."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            settings = json.loads((file.metadata() or {}).get(SETTINGS, "{}"))
    except (OSError, SafetensorError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def own_folder() -> Path:
    return Path(folder_paths.get_user_directory()) / "__dreamtuner"


def regular_folder(key: str) -> Path:
    return own_folder() / "regular" / key


@dataclass(frozen=True)
class TuningFiles:
    """Where the tuning of that name is. Each kind of file goes to the first of its folders, as the host's do."""

    name: str

    @property
    def lora(self) -> Path:
        return Path(folder_paths.get_folder_paths("loras")[0]) / f"{self.name}.safetensors"

    @property
    def embedding(self) -> Path:
        return Path(folder_paths.get_folder_paths("embeddings")[0]) / f"{self.name}.safetensors"

    @property
    def encoder(self) -> Path:
        return ENCODERS.folders()[0] / f"{self.name}{SUFFIX}"

    @property
    def state(self) -> Path:
        return own_folder() / "tuning" / self.name / "state.safetensors"

    def check(self, key: str, with_encoder: bool = False, with_state: bool = True) -> None:
        """Raise ValueError where the folders cannot be written, or a file of the name is of something else.

        key: of this tuning's settings. A file of the same settings is one to go on with. with_encoder, with_state:
        whether a subject encoder and the state are written too.
        """
        more = [*([self.encoder] if with_encoder else []), *([self.state] if with_state else [])]
        for path in (self.lora, self.embedding, *more):
            check_writable(path.parent)
            if path.exists() and settings_of(path).get("key") != key:
                raise ValueError(
                    f"the name '{self.name}' is taken: {path} is of another tuning, or of something else; take "
                    "another name, or delete that file. To go on with a tuning leave all but `steps` as it was."
                )
