"""A file with something wrong in it: bytes anywhere, or one thing of a safetensors header."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

ODD: list[Any] = [
    None, True, "", "x",
    "\u202e\x1b[31m", "\\ud800", 0, -1, 2**63, 2**70, 1e308, [], [0], [-1], [2**40, 2**40], {}, {"a": {}},
    "9" * 5000, "[" * 3000, '{"a":' * 3000, "F8_E4M3", "I64", "BOOL", "2030-13-01", "/etc/passwd", "a" * 5000,
]  # fmt: skip


def mutated(content: bytes, chance: Random) -> bytes:
    """Another content, mostly broken; the same for one state of chance."""
    return chance.choice(MUTATIONS)(content, chance)


def cut(content: bytes, chance: Random) -> bytes:
    return content[: chance.randrange(len(content))]


def flipped(content: bytes, chance: Random) -> bytes:
    """Some bits, most of them where the header is."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(min(len(changed), chance.choice([8, 2000, len(changed)])))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def spliced(content: bytes, chance: Random) -> bytes:
    """A piece left out, doubled, or put where another was."""
    start, end, to = sorted(chance.randrange(len(content)) for _ in range(3))
    return content[:start] + content[end:to] * chance.choice([0, 1, 2]) + content[chance.choice([start, end, to]) :]


def with_odd_header(content: bytes, chance: Random) -> bytes:
    """One thing of the header odd, gone, or under another name; the header's length fits again."""
    header, tensors = _parted(content)
    if header is None:
        return flipped(content, chance)
    _change(header, chance)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def with_odd_metadata(content: bytes, chance: Random) -> bytes:
    """One thing odd in the metadata, or in a JSON text of it."""
    header, tensors = _parted(content)
    metadata = header and header.get("__metadata__")
    if not isinstance(metadata, dict) or not metadata:
        return with_odd_header(content, chance)
    key = chance.choice(sorted(metadata))
    try:
        inner = json.loads(metadata[key])
        _change(inner, chance)
        metadata[key] = json.dumps(inner)
    except (ValueError, TypeError):
        metadata[key] = str(chance.choice(ODD))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def with_odd_tensor(content: bytes, chance: Random) -> bytes:
    """A whole file, one of whose tensors is of another shape, type or value, or a stranger's."""
    try:
        tensors = load(content)
    except SafetensorError:
        return flipped(content, chance)
    header, _ = _parted(content)
    name = chance.choice(sorted(tensors))
    x = tensors[name]
    odd = [
        torch.tensor(1.0), x.double(), x.half(), x.to(torch.int64), x.bool(), torch.zeros(0), x.flatten(), x[None],
        torch.full(x.shape, chance.choice([float("nan"), float("inf"), 1e38, -1.0])), torch.zeros([1] * 12),
        x.float().to(torch.float8_e4m3fn), x.to(torch.complex64), torch.cat([x.flatten()] * 3),
    ]  # fmt: skip
    tensors[chance.choice([name, name, name, "strange", f"{name}.x"])] = chance.choice(odd).contiguous().clone()
    if chance.random() < 0.3:
        del tensors[chance.choice(sorted(tensors))]
    return save(tensors, header and header.get("__metadata__"))


MUTATIONS: list[Callable[[bytes, Random], bytes]] = [
    cut, flipped, spliced,
    *[with_odd_tensor] * 3, *[with_odd_header] * 2, *[with_odd_metadata] * 2,
]  # fmt: skip


def _parted(content: bytes) -> tuple[dict[str, Any] | None, bytes]:
    length = int.from_bytes(content[:8], "little")
    try:
        return json.loads(content[8 : 8 + length]), content[8 + length :]
    except ValueError:
        return None, b""


def _change(thing: Any, chance: Random) -> None:
    """Somewhere in a nest of dicts and lists."""
    if not isinstance(thing, (dict, list)) or not thing:
        raise TypeError("nothing to change")
    place: Any = chance.choice(sorted(thing)) if isinstance(thing, dict) else chance.randrange(len(thing))
    if isinstance(thing[place], (dict, list)) and thing[place] and chance.random() < 0.8:
        return _change(thing[place], chance)
    what = chance.randrange(4)
    if what == 0:
        del thing[place]
    elif what == 1 and isinstance(thing, dict):
        thing[chance.choice(["x", "", "view1.picture", "word.l", "parameter.a", *thing])] = thing.pop(place)
    else:
        thing[place] = chance.choice(ODD)
    return None
