"""The kinds of things: one file each, a table of attributes and a painter."""

from collections.abc import Callable
from typing import Any

from ..kind import Kind
from . import car, monster, mug, robot

MODULES = (robot, monster, car, mug)
KINDS: dict[str, Kind] = {module.KIND.word: module.KIND for module in MODULES}
PAINTERS: dict[str, Callable[[Any, Any, Any], None]] = {module.KIND.word: module.paint for module in MODULES}
