"""ComfyUI inside the test process; each test runs as a node runs there, in inference mode."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lab.inside import import_host, import_pack

import_host()
import_pack()  # as `dreamtuner_pack`
sys.path.append(str(Path(__file__).parent))  # the rooms that tests share

import comfy.utils  # noqa: E402

comfy.utils.PROGRESS_BAR_ENABLED = False
torch.set_num_threads(1)  # the models are tiny, and threads that wait for each other are slower than one


@pytest.fixture(autouse=True)
def _as_in_a_node() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def quick_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuning's regular pictures and samples in one step each."""
    from dreamtuner_pack.dreamtuner_core.host.tuning import regular as regular_pictures

    monkeypatch.setattr(regular_pictures, "STEPS", 1)
    monkeypatch.setattr(regular_pictures.draw, "__defaults__", (1,))


@pytest.fixture(scope="module")
def encoder_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of subject encoders of every kind and family (coarse.py)."""
    from coarse import encoder_folder

    with encoder_folder(tmp_path_factory.mktemp("subject_encoders")) as path:
        yield path
