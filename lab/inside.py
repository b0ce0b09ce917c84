"""Use ComfyUI inside this process: for the tests under tests/host, the bench and the measurements.

    from lab.inside import import_host, import_pack
    import_host()                     # now `import comfy`, `import nodes` are the host's
    pack = import_pack()              # this repository, as the host would load it

The pack is the module `dreamtuner_pack`, so its parts are `dreamtuner_pack.nodes`, `dreamtuner_pack.dreamtuner_core`.
Take its classes from there: a bare `import dreamtuner_core` is a second copy whose classes are not the same objects.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from lab import shim
from lab.host import DEFAULT_HOST, HOME, ROOT

TREE_VARIABLE = "DREAMTUNER_HOST_TREE"  # set by `python3 -m lab` for the processes that it starts
PACK = "dreamtuner_pack"


def host_tree() -> Path:
    return Path(os.environ.get(TREE_VARIABLE) or HOME / f"comfyui-{DEFAULT_HOST}").resolve()


def import_host(tree: Path | None = None, cpu: bool = True) -> Path:
    """Make the host's modules importable, set its options, and return the tree. Safe to call twice.

    The tree comes before this repository on sys.path: both have a top-level `nodes`, and the host's must be used.
    """
    tree = tree or host_tree()
    if not (tree / "comfy").is_dir():
        raise RuntimeError(f"There is no ComfyUI at {tree}: run `python3 -m lab test` once, or set {TREE_VARIABLE}.")
    elsewhere = [path for path in sys.path if path and Path(path).resolve() not in (tree, ROOT)]
    sys.path[:] = [str(tree), *elsewhere, str(ROOT)]
    shim.install()
    from comfy.cli_args import args

    args.cpu = cpu  # read when comfy.model_management is first imported
    args.disable_api_nodes = True
    return tree


def import_pack() -> ModuleType:
    """This repository as a custom node pack, under the name `dreamtuner_pack`."""
    if PACK not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[PACK] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[PACK]
            raise
    return sys.modules[PACK]
