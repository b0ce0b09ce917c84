"""Whatever is linked to any socket of any node: it is taken, or refused in one sentence in the node's name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_api.latest import io
from dreamtuner_pack.dreamtuner_core.host.encoder.load import load_encoder
from dreamtuner_pack.dreamtuner_core.tuned_subject import TunedSubject
from dreamtuner_pack.nodes.combine_subjects import CombineSubjects
from dreamtuner_pack.nodes.reference_guidance import ReferenceGuidance
from dreamtuner_pack.nodes.saved_subject import LoadSubject, SaveSubject
from dreamtuner_pack.nodes.score_pictures import ScorePictures
from dreamtuner_pack.nodes.self_subject_attention import ApplySelfSubjectAttention
from dreamtuner_pack.nodes.storyboard import DrawStoryboard
from dreamtuner_pack.nodes.subject import EncodeSubjectImage, FindSubject
from dreamtuner_pack.nodes.subject_encoder import ApplySubjectEncoder, LoadSubjectEncoder
from dreamtuner_pack.nodes.subject_tuning import SubjectTuning
from families import text
from graph import hard_mask, subject
from images import ball, disc, encode, mask, picture, vae
from plain_encoder import FILES, file_name
from tuning_world import ENCODERS, World, folders

ONE = torch.zeros(1, 8, 8)
THINGS: dict[str, Any] = {
    "nothing": None,
    "a text": "rex",
    "no text": "",
    "half a letter": "\ud800",
    "a long text": "x " * 5000,
    "a number": 7,
    "below 0": -0.5,
    "a huge number": 10**30,
    "NaN": float("nan"),
    "infinity": float("-inf"),
    "true": True,
    "no list": [],
    "a list": [1, None],
    "a dict": {"samples": "x", "pooled_output": 3},
    "an object": object(),
    "a type": dict,
    "bytes": b"\0\xff",
    "a path": Path("/etc/passwd"),
    "a single number": torch.tensor(0.5),
    "a row": torch.ones(3),
    "no rows": torch.zeros(0, 8),
    "rows and columns": torch.ones(8, 8),
    "a mask": ONE + 1,
    "an empty mask": ONE,
    "a mask below 0": ONE - 1,
    "true and false": ONE[0] == 0,
    "a picture of whole numbers": torch.ones(1, 8, 8, 3, dtype=torch.int64),
    "a picture of halves": torch.rand(1, 16, 8, 3).half(),
    "a picture of bytes": torch.ones(2, 8, 8, 4, dtype=torch.uint8),
    "float8": torch.rand(1, 8, 8, 3).to(torch.float8_e4m3fn),
    "a grey picture": torch.rand(1, 8, 8, 1),
    "five dimensions": torch.rand(1, 2, 8, 8, 3),
    "complex numbers": torch.ones(1, 8, 8, 3, dtype=torch.complex64),
    "a picture of NaN": torch.full((1, 8, 8, 3), float("nan")),
    "half a text": [[torch.zeros(1, 77, 48)]],
    "a text of another width": [[torch.zeros(1, 7, 5), {}]],
    "a text with odd parts": [[torch.zeros(1, 7, 48), {"pooled_output": "x"}]],
    "a text of no tokens": [[torch.zeros(1, 0, 48), {}]],
    "a latent of another kind": {"samples": torch.zeros(1, 16, 3, 8, 8)},
    "a latent of no size": {"samples": torch.zeros(1, 4, 0, 8)},
    "latents": {"samples": torch.zeros(2, 4, 8, 8)},
    "a latent of other channels": {"samples": torch.ones(1, 16, 8, 8)},
    "a latent of whole numbers": {"samples": torch.zeros(1, 4, 8, 8, dtype=torch.int64)},
    "a latent of NaN": {"samples": torch.full((1, 4, 8, 8), float("nan"))},
    "a latent with an odd mask": {"samples": torch.zeros(1, 4, 8, 8), "noise_mask": "x"},
    "a latent with an odd place": {"samples": torch.zeros(1, 4, 8, 8), "batch_index": "x"},
    "a picture of 0 to 255": 255 * torch.rand(1, 16, 8, 3),
    "bytes of a picture": torch.full((1, 16, 16, 3), 200, dtype=torch.uint8),
    "a picture of one pixel": torch.rand(1, 1, 1, 3),
}


class Fit:
    """Good inputs of every node, from one tiny checkpoint."""

    def __init__(self, base: Path) -> None:
        self.world = World(base)
        FILES["own tower"](base / ENCODERS / file_name("own tower", "sd1"), "sd1")
        self.encoder = load_encoder(file_name("own tower", "sd1"))
        self.seen = encode(picture(), mask=mask(), subject_encoder=self.encoder)[0]
        self.tuned = TunedSubject(self.seen, "dog", "rex", "0" * 64, 4, {"l": torch.zeros(48)})
        SaveSubject.execute(self.seen, "pot")

    def inputs(self, node: type[io.ComfyNode]) -> dict[str, Any]:
        world, one, other = self.world, subject("sd1", hard_mask()), subject("sd1")
        drawn = {"model": world.model, "clip": world.clip, "vae": world.vae}
        when = {"start_percent": 0.0, "end_percent": 1.0}
        return {
            LoadSubjectEncoder: {"subject_encoder": self.encoder.name, "clip_vision": None},
            EncodeSubjectImage: {"image": picture(), "vae": vae(), "mask": mask(), "resolution": 64},
            FindSubject: {"image": ball(disc()), "threshold": 0.1, "grow": 0, "keep": "all"},
            ApplySubjectEncoder: {"model": world.model, "subject": self.seen, "strength": 0.2, **when},
            ApplySelfSubjectAttention: {"model": world.model, "subject": one, "reference_weight": 3.0, **when},
            ReferenceGuidance: {
                "model": world.model, "reference_scale": 1.5, "reference_probability": 0.9, "dt": 0.0, "dt_uncond": 0.0
            },
            SubjectTuning: {
                **drawn, "subject": one, "class_word": "dog", "name": "rex", "steps": 1, "seed": 0,
                "regular_pictures": 0, "rank": 1,
            },
            SaveSubject: {"subject": self.seen, "name": "pot", "tuned_subject": self.tuned},
            LoadSubject: {"file": "pot.safetensors", "subject_encoder": self.encoder},
            ScorePictures: {
                "images": ball(disc()), "subject": one, "model": world.model, "vae": world.vae
            },
            CombineSubjects: {"subject_1": one, "subject_2": other},
            DrawStoryboard: {
                **drawn, "subject": one, "negative": text("sd1", 2), "prompts": "a dog", "always": "",
                "first_weight": 3.0, "previous_weight": 1.5, "seed": 0, "seeds": "same", "steps": 1, "cfg": 2.0,
                "sampler_name": "euler", "scheduler": "normal", "width": 64, "height": 64,
            },
        }[node]  # fmt: skip


NODES = [
    LoadSubjectEncoder, EncodeSubjectImage, FindSubject, ApplySubjectEncoder, ApplySelfSubjectAttention,
    ReferenceGuidance, SubjectTuning, SaveSubject, LoadSubject, ScorePictures, CombineSubjects, DrawStoryboard,
]  # fmt: skip


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fit]:
    base = tmp_path_factory.mktemp("fit")
    with folders(base):
        yield Fit(base)


def outcome(node: type[io.ComfyNode], inputs: dict[str, Any]) -> str:
    """The sentence by which the node refuses them; empty where it takes them; what else is raised, by its name."""
    try:
        node.PREPARE_CLASS_CLONE(None).execute(**inputs)
        return ""
    except ValueError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_is_taken_or_refused_in_one_sentence(node: type[io.ComfyNode], fit: Fit) -> None:
    name = node.define_schema().display_name
    good = fit.inputs(node)
    assert outcome(node, good) == ""
    found = {
        (one.id, what): outcome(node, good | {one.id: thing})
        for one in node.define_schema().inputs
        if not hasattr(one, "default")  # a widget: test_linked_values
        for what, thing in (THINGS | {"a sparse tensor": torch.ones(1, 8, 8, 3).to_sparse()}).items()
    }
    plain = {k: said for k, said in found.items() if said.startswith(f"{name}: ") and said.isprintable()}
    assert not {k: said for k, said in found.items() if said and (k not in plain or len(said) > 400)}
    assert len(plain) >= len(found) / 2  # most of these things fit no socket
