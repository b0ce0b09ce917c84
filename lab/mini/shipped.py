"""Where the mini base's weights are: 8 bits each in the repository, expanded under `.lab/weights` for a host to read.

The expanded files' folder is named by the packed ones' digest: new weights are never taken for
old ones.
"""

import hashlib
from pathlib import Path

from lab.host import HOME

PACKED = Path(__file__).parent / "weights"
BASE, CONTROL, ENCODER = NAMES = ("mini_base.safetensors", "mini_control.safetensors", "mini_encoder.safetensors")


def expanded_folder() -> Path:
    digest = hashlib.sha256()
    for path in (PACKED / name for name in NAMES):
        if path.exists():
            digest.update(path.read_bytes())
    return HOME / "weights" / digest.hexdigest()[:12]


FOLDER = expanded_folder()


def missing() -> bool:
    """Whether weights are still to be expanded, by `packed.unpack_all`, which needs torch."""
    return any((PACKED / name).exists() and not (FOLDER / name).exists() for name in NAMES)
