"""What every test can ask for.

tests/unit     torch only: `from dreamtuner_core.attention import ...`; no host is imported.
tests/host     ComfyUI inside the test process. Ask for the fixture `host` (its value is the tree) or, at module level,

                   from lab.inside import import_host, import_pack
                   import_host()
                   import comfy.model_patcher, nodes      # the host's
                   pack = import_pack()                   # this repository, as module `dreamtuner_pack`

               and take the pack's classes from `dreamtuner_pack.dreamtuner_core...` there (see lab/inside.py).
tests/server   a real server with the pack, the lab-only nodes and the mini base: the fixture `server`, started once,
               when the first test asks for it.

The host is the tree of DREAMTUNER_HOST_TREE, else .lab/comfyui-0.3.75; `python3 -m lab test` sets it.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "1")  # quickest for small models; torch reads it when it is imported
sys.path.append(str(ROOT))  # last: the host's own `nodes` must be found before this repository's

from lab.demo import CHECKPOINT, ENCODER, FAMILY  # noqa: E402
from lab.inside import host_tree, import_host, import_pack  # noqa: E402
from lab.mini.packed import unpack_all  # noqa: E402
from lab.server import ComfyServer  # noqa: E402

unpack_all()


@pytest.fixture(scope="session")
def host() -> Path:
    """The host, importable in this process; its value is the tree."""
    return import_host()


@pytest.fixture(scope="session")
def pack(host: Path) -> ModuleType:
    """The pack, loaded in this process as the host would."""
    return import_pack()


@pytest.fixture(scope="session")
def server() -> Iterator[ComfyServer]:
    """A running ComfyUI with the pack in it."""
    folders = [FAMILY, ROOT / "tests" / "host_nodes"]
    with ComfyServer(
        host_tree(),
        custom_nodes=[folder for folder in folders if folder.is_dir()],
        models={"checkpoints": [CHECKPOINT], "subject_encoders": [ENCODER]},
        arguments=("--cpu", "--disable-metadata"),  # so that equal pictures are equal files
    ) as running:
        yield running
