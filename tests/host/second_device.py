"""A device beside the CPU for machines that have none: tensors on `meta` that do hold their values.

They refuse to be mixed with the CPU's, as CUDA's do. While `SecondDevice` lasts, what is sent to META is such a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CPU, META = torch.device("cpu"), torch.device("meta")
BETWEEN_DEVICES = ("copy_", "_to_copy", "to", "index", "index_put", "index_put_")  # may name tensors of both


class OnSecondDevice(Tensor):
    """Says that it is on META. values: where they really are."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> OnSecondDevice:
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        tensor = Tensor._make_wrapper_subclass(cls, values.shape, device=META, requires_grad=False, **layout)
        tensor.values = values
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.values.tolist()


class SecondDevice(TorchDispatchMode):
    """Every operation, also those that only make tensors, as a machine with META would do it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    name = func.__name__.split(".")[0]
    if name == "_has_compatible_shallow_copy_type":
        return False
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = any(isinstance(x, OnSecondDevice) for x in tensors)
    here = [tuple(x.shape) for x in tensors if not isinstance(x, OnSecondDevice) and x.ndim]
    if there and here and (name not in BETWEEN_DEVICES or _indexes_the_cpu(name, tensors)):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {here} are on the CPU ({name}).")
    if asked := [x for x in (*args, kwargs.get("device")) if isinstance(x, torch.device)]:
        there = asked[-1].type == META.type
    real = lambda x: x.values if isinstance(x, OnSecondDevice) else CPU if isinstance(x, torch.device) else x  # noqa: E731
    found = func(*tree_map(real, args), **tree_map(real, dict(kwargs)))
    if name.endswith("_") and isinstance(args[0], Tensor):
        return args[0]  # in place
    if not there or name == "_local_scalar_dense":
        return found
    label = lambda x: OnSecondDevice(x) if isinstance(x, Tensor) and not isinstance(x, OnSecondDevice) else x  # noqa: E731
    return tree_map(label, found)


def _indexes_the_cpu(name: str, tensors: Sequence[Tensor]) -> bool:
    return name == "index" and not isinstance(tensors[0], OnSecondDevice)
