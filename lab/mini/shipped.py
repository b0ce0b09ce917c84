"""Where the mini base's weights are: 8 bits each in the repository, expanded under `.lab/weights` for a host to read.

The folder of the expanded files is named by the digest of the packed ones, so that new weights get a new folder.
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
    """Whether weights must still be expanded, with `packed.unpack_all`, which needs torch."""
    return any((PACKED / name).exists() and not (FOLDER / name).exists() for name in NAMES)
