"""Combine Subjects: several pictures weigh together what one would, and their rights add up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from coarse import bring, fresh
from dreamtuner_pack.dreamtuner_core.host import fingerprint
from dreamtuner_pack.dreamtuner_core.host.subject.saved import load_subject, save_subject
from dreamtuner_pack.dreamtuner_core.rights import OwnedSubject, Rights
from dreamtuner_pack.dreamtuner_core.subject import Subject
from dreamtuner_pack.nodes.combine_subjects import CombineSubjects
from families import text
from graph import attend, difference, guide, hard_mask, sample, shared_model, soft_mask, subject
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tuning_world import folders

pytestmark = pytest.mark.usefixtures("encoder_files")
FAMILIES = ("sd1", "sdxl")


def combine(*subjects: Subject) -> Subject:
    return CombineSubjects.execute(*subjects).args[0]


def texts(family: str) -> tuple[list, list]:
    return text(family, 1), text(family, 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("guided", [False, True])
def test_one_picture_twice_is_that_picture(family: str, guided: bool) -> None:
    one = subject(family, soft_mask())
    whole = combine(one, replace(one))
    model = guide(shared_model(family)) if guided else shared_model(family)
    wanted = sample(attend(model, one), *texts(family))
    assert difference(sample(attend(model, whole), *texts(family)), wanted) < 1e-5
    assert difference(sample(shared_model(family), *texts(family)), wanted) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_two_pictures_are_two_subjects_of_half_the_weight(family: str) -> None:
    front, side = subject(family, hard_mask(), 9), subject(family, soft_mask(), 19, size=(8, 10), noise_seed=3)
    model = shared_model(family)
    apart = attend(attend(model, front, 1.5), side, 1.5)
    together = sample(attend(model, combine(front, side), 3.0), *texts(family))
    assert torch.equal(together, sample(apart, *texts(family)))
    assert difference(together, sample(attend(model, front, 3.0), *texts(family))) > 1e-3


def test_kept_features_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from dreamtuner_pack.dreamtuner_core.host.sampling import features

    passes = []
    whole, model = combine(subject(mask=hard_mask()), subject(mask=soft_mask(), seed=19)), shared_model("sd1")
    compute = features.reference_features
    monkeypatch.setattr(features, "reference_features", lambda *a, **k: (passes.append(1), compute(*a, **k))[1])
    first = sample(attend(model, whole), *texts("sd1"))
    assert len(passes) == 2 * 3  # pictures, steps
    assert torch.equal(sample(attend(model, whole), *texts("sd1"), seed=3), first)
    assert len(passes) == 2 * 3


@pytest.mark.parametrize("undone", ["weight", "bypass"])
def test_weight_zero_leaves_no_trace(undone: str) -> None:
    model, whole = shared_model("sd1"), combine(subject(), subject(seed=19))
    wanted = sample(model, *texts("sd1"))
    sample(attend(model, whole), *texts("sd1"))
    assert torch.equal(sample(attend(model, whole, 0.0) if undone == "weight" else model, *texts("sd1")), wanted)


def test_what_was_combined_combines_again() -> None:
    a, b, c, d = (subject(seed=seed) for seed in (1, 2, 3, 4))
    whole = combine(combine(a, b), combine(c, d))
    assert [p.latent for p in whole.pictures()] == [a.latent, b.latent, c.latent, d.latent]
    assert all(not picture.views for picture in whole.pictures())
    assert [p.latent for p in combine(a, b, c, d).pictures()] == [p.latent for p in whole.pictures()]


def test_another_view_is_another_subject() -> None:
    a, b, c = (subject(seed=seed) for seed in (1, 2, 3))
    prints = {fingerprint.of_subject(s) for s in (a, combine(a, b), combine(a, c), combine(b, a))}
    assert len(prints) == 4


# --- with a subject encoder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["own tower", "IP-Adapter plus"])
def test_encoded_tokens_share_one_softmax(kind: str) -> None:
    one, other = fresh(kind), fresh(kind, seed=19)
    model = shared_model("sd1")
    wanted = sample(bring(model, one), *texts("sd1"))
    twice = sample(bring(model, combine(one, fresh(kind))), *texts("sd1"))
    assert difference(twice, wanted) < 1e-5
    both = sample(attend(bring(model, combine(one, other)), combine(one, other)), *texts("sd1"))
    assert difference(both, sample(attend(bring(model, one), one), *texts("sd1"))) > 1e-4


def test_each_reference_is_seen_with_the_encoding_of_all() -> None:
    whole = combine(fresh(), fresh(seed=19))
    assert all(picture.encoding is whole.encoding for picture in whole.pictures())
    assert whole.encoding.tokens.shape[1] == 2 * fresh().encoding.tokens.shape[1]


# --- in a file --------------------------------------------------------------------------------------------------------


def saved(whole: Subject, base: Path) -> tuple[dict[str, Tensor], dict[str, str], Path]:
    """Tensors, metadata and path of the file."""
    path = save_subject(whole, "whole")
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata(), path


def test_all_pictures_come_back_with_the_very_same_effect(tmp_path: Path) -> None:
    whole = combine(subject(mask=hard_mask(), noise_seed=5), subject(seed=19, size=(6, 9), captioned=False))
    model = shared_model("sd1")
    with folders(tmp_path):
        assert saved(whole, tmp_path)[1]["version"] == "2"
        loaded, _ = load_subject("whole.safetensors")
    assert [p.noise_seed for p in loaded.pictures()] == [5, 0]
    assert fingerprint.of_subject(loaded) == fingerprint.of_subject(whole)
    wanted = sample(attend(model, whole), *texts("sd1"))
    assert torch.equal(sample(attend(model, loaded), *texts("sd1")), wanted)


def test_the_encoding_of_all_comes_back(tmp_path: Path) -> None:
    whole = combine(fresh(), fresh(seed=19))
    with folders(tmp_path):
        save_subject(whole, "whole")
        loaded, _ = load_subject("whole.safetensors", whole.encoding.encoder)
    assert torch.equal(loaded.encoding.tokens, whole.encoding.tokens)
    assert all(picture.encoding is loaded.encoding for picture in loaded.pictures())


def test_a_single_picture_is_still_a_file_of_version_1(tmp_path: Path) -> None:
    with folders(tmp_path):
        tensors, metadata, _ = saved(subject(), tmp_path)
    assert metadata["version"] == "1"
    assert "views" not in json.loads(metadata["subject"])
    assert not any(name.startswith("view") for name in tensors)


def test_a_strangers_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with folders(tmp_path):
        tensors, metadata, path = saved(combine(subject(), subject(seed=19)), tmp_path)
        plain = json.loads(metadata["subject"])
        for sentence, changed, told in (
            ("has 'view1.", tensors, plain | {"views": []}),
            ("lacks its picture", tensors, plain | {"views": [{"noise_seed": 0}] * 2}),
            ("its other pictures", tensors, plain | {"views": [3]}),
            ("noise seed", tensors, plain | {"views": [{}]}),
            ("more than a picture", tensors | {"view1.word.l": torch.zeros(8)}, plain),
            ("different VAEs", tensors | {"view1.latent": tensors["view1.latent"].repeat(1, 2, 1, 1)}, plain),
            ("NaN or infinite values", tensors | {"view1.latent": tensors["view1.latent"] * float("nan")}, plain),
        ):
            save_file(changed, path, metadata | {"subject": json.dumps(told)})
            with pytest.raises(ValueError, match=sentence):
                load_subject(path.name)


# --- rights and bad input ---------------------------------------------------------------------------------------------


def owned(seed: int, *rights: str) -> OwnedSubject:
    plain = subject(seed=seed)
    return OwnedSubject(**{**vars(plain)}, name=f"file_{seed}", rights=Rights(*rights))


def test_rights_add_up() -> None:
    ada, bob = owned(1, "Ada", "posters", "2031-01-01"), owned(2, "Bob", "posters", "2030-06-30")
    whole: Any = combine(subject(seed=3), ada, bob)
    assert isinstance(whole, OwnedSubject)
    assert whole.rights == Rights("Ada; Bob", "posters", "2030-06-30")
    assert torch.equal(whole.latent, subject(seed=3).latent)
    assert combine(ada, subject(seed=3)).rights == ada.rights  # type: ignore[attr-defined]
    assert not isinstance(combine(subject(seed=3), subject(seed=4)), OwnedSubject)


def test_every_bad_input_has_a_sentence() -> None:
    plain = subject()
    wrong = [
        ("picture 2 has a latent of 16 channels", (plain, replace(plain, latent=plain.latent.repeat(1, 4, 1, 1)))),
        ("picture 2 has a caption of 80 features", (plain, subject("sdxl"))),
        ("1 of 2 subjects were read by a subject encoder", (plain, fresh())),
        ("different ones", (fresh(), fresh("IP-Adapter plus"))),
    ]
    for sentence, given in wrong:
        with pytest.raises(ValueError, match=f"^Combine Subjects: .*{sentence}"):
            combine(*given)
    with pytest.raises(ValueError, match="caption"):
        attend(shared_model("sdxl"), combine(plain, subject(seed=2)))
