"""A linked value passes by the page's limits: every input of every node refuses a bad one in one sentence."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import dreamtuner_pack
import pytest
import torch
from coarse import coarse_subject
from dreamtuner_pack.nodes.subject_tuning import SubjectTuning
from families import text
from graph import shared_model, subject
from images import picture, vae

pytestmark = pytest.mark.usefixtures("encoder_files")
NODES = asyncio.run(asyncio.run(dreamtuner_pack.comfy_entrypoint()).get_node_list())
SCHEMAS = {node: node.define_schema() for node in NODES}
OF_KIND: dict[str, list[Any]] = {
    "INT": ["3", "", 2.5, 3.0, math.nan, True, None, [1], torch.tensor(1)],
    "FLOAT": ["0.5", "x", math.nan, math.inf, -math.inf, True, None, [0.5], torch.ones(2)],
    "COMBO": ["no such thing", 5, None, ["auto"]],
    "BOOLEAN": ["yes", 1, None],
    "STRING": [5, None, ["a"], b"a"],
}
TEXTS_OF_TUNING = ("class_word", "name")  # with a clip at hand: test_tuning
TOO_LOW = {("resolution", 4)}  # between 0, which is auto, and what can be framed


def bad_values() -> Iterator[Any]:
    for node, schema in SCHEMAS.items():
        for one in schema.inputs:
            if one.id in TEXTS_OF_TUNING and node is SubjectTuning:
                continue
            values = list(OF_KIND.get(one.get_io_type(), []))
            if one.get_io_type() in ("INT", "FLOAT"):
                step = 1 if one.get_io_type() == "INT" else 1e-3
                values += [one.min - step, one.max + step]
            values += [value for name, value in TOO_LOW if name == one.id]
            for value in values:
                yield pytest.param(node, one.id, value, id=f"{schema.display_name}-{one.id}-{str(value)[:12]}")


def good(node: type) -> dict[str, Any]:
    """Inputs with which the node would run, as far as the check of its values."""
    of_socket = {
        "MODEL": shared_model("sd1"),
        "IMAGE": picture(),
        "VAE": vae(),
        "CLIP": SimpleNamespace(tokenize=str),
        "DREAMTUNER_SUBJECT": coarse_subject() if "Encoder" in node.__name__ else subject(),
        "CONDITIONING": text("sd1", 1),
    }
    given = {}
    for one in SCHEMAS[node].inputs:
        kind = one.get_io_type()
        if kind in OF_KIND:
            default = getattr(one, "default", None)
            given[one.id] = "words" if default in (None, "") and not one.optional else default
        elif not one.optional:
            given[one.id] = of_socket.get(kind)
    return given


@pytest.mark.parametrize(("node", "name", "value"), bad_values())
def test_a_bad_value_is_refused_by_name(node: type, name: str, value: Any) -> None:
    run = type(node.__name__, (node,), {"hidden": SimpleNamespace(unique_id="1", prompt=None, extra_pnginfo=None)})
    with pytest.raises(ValueError) as raised:
        run.execute(**good(node) | {name: value})
    message = str(raised.value)
    assert message.startswith(f"{SCHEMAS[node].display_name}: ")
    assert name in message
    assert "\n" not in message
    assert len(message) < 300


def test_every_number_of_the_pack_is_tried() -> None:
    tried = {(case.values[0], case.values[1]) for case in bad_values()}
    numbers = {(n, i.id) for n, s in SCHEMAS.items() for i in s.inputs if i.get_io_type() in ("INT", "FLOAT")}
    assert len(numbers) > 25
    assert numbers <= tried
