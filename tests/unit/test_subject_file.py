"""Whatever saves, loads equal, and whatever would not load is refused when it is saved."""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dreamtuner_core.rights import Rights
from dreamtuner_core.saved_subject import SavedSubject
from dreamtuner_core.subject_file import from_file, to_file

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402

PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)
ANY = st.one_of(PLAIN, st.text(max_size=30), st.just("x" * 4001), st.none(), st.integers())
SIDES = st.sampled_from([8, 16, 24, 4104, 16384, 16392, 0, 12])
NAMES = st.sampled_from(["rex", "blue_teapot", "犬", "../x", "CON", "a b", "", "x" * 101])


def tensor(*shape: int, fill: float = 0.5, dtype: torch.dtype = torch.float32) -> Tensor:
    """As large as it likes, at the cost of one number: a view."""
    return torch.full((1,) * len(shape), fill, dtype=dtype).expand(shape)


@st.composite
def contents(draw: Any) -> dict[str, Any]:
    """What Save Subject might be given, mostly fit, at times not."""
    height, width = draw(SIDES), draw(st.sampled_from([8, 16, 24]))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]))
    fill = draw(st.sampled_from([0.0, 0.5, 1.0, 1.5, float("nan")]))
    grid = (height // 8 + draw(st.sampled_from([0, 0, 0, 1])), width // 8)
    some = st.booleans()
    return {
        "picture": tensor(1, height, width, 3, fill=fill, dtype=dtype),
        "mask": tensor(1, height, width, dtype=dtype) if draw(some) else None,
        "latent": tensor(1, draw(st.sampled_from([4, 16, 64, 65])), *grid, dtype=dtype),
        "caption": (tensor(1, 77, 8), tensor(1, 5) if draw(some) else None) if draw(some) else None,
        "noise_seed": draw(st.sampled_from([0, 7, 2**64 - 1, 2**64, -1, True, 1.5])),
        "rights": (draw(ANY), draw(ANY), draw(st.sampled_from(["", "2030-12-31", "soon", "2030-13-01"]))),
        "caption_text": draw(ANY),
        "words": {draw(st.sampled_from(["l", "g", "h.x", ""])): tensor(8)} if draw(some) else {},
        "tuning": draw(
            st.one_of(
                st.none(),
                st.fixed_dictionaries(
                    {
                        "class_word": st.sampled_from(["dog", "", "teddy bear"]),
                        "name": NAMES,
                        "lora_hash": st.sampled_from(["0" * 64, "x" * 65]),
                        "steps": st.sampled_from([0, 400, -1, "400", 2.5]),
                    }
                ),
            )
        ),
        "encoding": (tensor(1, 4, 8), None) if draw(some) else None,
        "encoder_name": draw(PLAIN),
        "views": tuple(
            SavedSubject(
                picture=tensor(1, 16, 8, 3),
                mask=tensor(1, 16, 8) if draw(some) else None,
                latent=tensor(1, draw(st.sampled_from([4, 16])), 2, 1),
                caption=(tensor(1, 77, 8), None) if draw(some) else None,
                noise_seed=number,
            )
            for number in range(draw(st.sampled_from([0, 0, 1, 2, 65])))
        ),
    }


def built(given: dict[str, Any]) -> tuple[SavedSubject | None, str]:
    """The content, or why there is none."""
    try:
        return SavedSubject(**{**given, "rights": Rights(*given["rights"])}), ""
    except ValueError as refusal:
        return None, str(refusal)


def equal(one: SavedSubject, other: SavedSubject) -> bool:
    tensors, others = one.tensors(), other.tensors()
    return tensors.keys() == others.keys() and all(
        x.dtype == others[name].dtype and torch.equal(x, others[name]) for name, x in tensors.items()
    )


@hypothesis.settings(max_examples=150, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(contents())
def test_whatever_saves_loads_equal(given: dict[str, Any]) -> None:
    content, refusal = built(given)
    if content is None:
        assert refusal.isprintable()
        assert len(refusal) < 400
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pot.safetensors"
        tensors, metadata = to_file(content)
        save_file(tensors, path, metadata)
        loaded = from_file(path)
    assert equal(content, loaded)
    assert [view.noise_seed for view in loaded.views] == [view.noise_seed for view in content.views]
    plain = ("noise_seed", "rights", "caption_text", "tuning", "encoder_name", "encoder_identity")
    assert [getattr(loaded, name) for name in plain] == [getattr(content, name) for name in plain]


FIT: dict[str, Any] = {"picture": tensor(1, 16, 16, 3), "mask": None, "latent": tensor(1, 4, 2, 2), "caption": None}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"noise_seed": -1}, r"the noise seed must be a whole number in 0\.\.2\^64-1, but is -1"),
        ({"picture": tensor(1, 16392, 16, 3)}, r"the picture's sides must be multiples of 8 in 8\.\.16384 pixels"),
        ({"caption_text": "x" * 4001}, "caption_text must have at most 4000 characters, but has 4001"),
        ({"latent": tensor(1, 4, 3, 2)}, "the latent must have 1/8 of the picture's sides"),
        ({"picture": tensor(1, 16, 16, 3, fill=2.0)}, r"outside 0\.\.1"),
        ({"latent": tensor(*[1] * 3000)}, "the latent must have 1/8 of the picture's sides"),
        ({"latent": tensor(1, 4, 2, 2, fill=float("nan"))}, "'latent' has NaN or infinite values"),
        ({"caption": (tensor(1, 77, 8, fill=float("inf")), None)}, "'caption.cross' has NaN or infinite values"),
        ({"latent": tensor(1, 4, 2, 2, dtype=torch.float64)}, "type torch.float64"),
    ],
)
def test_what_would_not_load_is_refused_when_it_is_saved(change: dict[str, Any], sentence: str) -> None:
    assert SavedSubject(**FIT, noise_seed=0)
    with pytest.raises(ValueError, match=sentence) as refusal:
        SavedSubject(**{**FIT, "noise_seed": 0, **change})
    assert len(str(refusal.value)) < 300


def test_a_last_day_is_allowed_to_its_end() -> None:
    rights, last = Rights(until="2030-12-31"), datetime.date(2030, 12, 31)
    assert not rights.ended(last)
    assert rights.ended(last + datetime.timedelta(days=1))
    assert not Rights().ended(datetime.date.max)


def test_rights_of_a_stranger_are_one_line_each() -> None:
    spoof = Rights("Eve\nAllowed: everything", "none\r\nUntil: 2099-01-01 \u202etxt")
    assert (
        spoof.as_text(datetime.date.min) == "Owner: Eve Allowed: everything\nAllowed: none Until: 2099-01-01 \ufffdtxt"
    )


def test_a_file_that_is_gone_is_told_without_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^'pot\.safetensors' cannot be loaded as a subject: No such file") as error:
        from_file(tmp_path / "pot.safetensors")
    assert str(tmp_path) not in str(error.value)


def test_another_picture_whose_latent_is_a_row_is_refused() -> None:
    view = SavedSubject(**FIT, noise_seed=0)
    with pytest.raises(ValueError, match="are of different VAEs"):
        SavedSubject(**FIT | {"latent": tensor(4)}, noise_seed=0, views=(view,))
