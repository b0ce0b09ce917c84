"""The kinds of things: one file each, a table of attributes and a painter."""

from collections.abc import Callable
from typing import Any

from ..kind import Kind
from . import bottle, car, cat, house, monster, mug, robot, shirt

MODULES = (robot, monster, cat, car, house, mug, bottle, shirt)
KINDS: dict[str, Kind] = {module.KIND.word: module.KIND for module in MODULES}
PAINTERS: dict[str, Callable[[Any, Any, Any], None]] = {module.KIND.word: module.paint for module in MODULES}
