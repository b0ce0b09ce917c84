"""Make torchvision importable beside a CPU build of torch. Only for the test host, never for the pack.

The registry has no CPU build of torchvision: beside a CPU torch its compiled operators cannot be loaded, and
`import torchvision` stops because it registers kernels for operators that nobody declared. Declaring them is
enough for ComfyUI, which never calls them.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

_DECLARATIONS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list[Any] = []  # a torch.library.Library removes its declarations when it is garbage collected


class _TorchvisionWatcher:
    """Acts at the first `import torchvision`, so that torch is not imported before ComfyUI has set its options."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            declare_missing_operators()
        return None


def install() -> None:
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _TorchvisionWatcher())


def declare_missing_operators() -> None:
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    try:
        torch.ops.load_library(str(Path(spec.origin).parent / "_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for declaration in _DECLARATIONS:
            library.define(declaration)
        _kept.append(library)
