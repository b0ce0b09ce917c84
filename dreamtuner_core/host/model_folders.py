"""Folders of models that the pack adds to the host's own, extra_model_paths honoured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import folder_paths

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ModelFolder:
    """models/<name>, and every other folder that the host has of that kind."""

    name: str

    def folders(self) -> list[Path]:
        """Registered as the host's own are: when first asked for, beside what extra_model_paths already gave."""
        folder_paths.add_model_folder_path(self.name, str(Path(folder_paths.models_dir) / self.name))
        return [Path(folder) for folder in folder_paths.get_folder_paths(self.name)]

    def files(self) -> list[str]:
        """Names of the files in them."""
        self.folders()
        return [name for name in folder_paths.get_filename_list(self.name) if name.endswith(SUFFIX)]

    def path(self, file: str) -> Path:
        """Where that file is. Raises ValueError for a name that is none of `files`."""
        path = folder_paths.get_full_path(self.name, file) if file in self.files() else None
        if path is None:
            raise ValueError(
                f"there is no '{file!s:.80}' in models/{self.name}; choose one of the list, or put the file there."
            )
        return Path(path)

    def fingerprint(self, file: str) -> str:
        """What changes when the file does; empty where there is none."""
        try:
            found = self.path(file).stat()
        except (ValueError, OSError):
            return ""
        return f"{found.st_mtime_ns} {found.st_size}"
