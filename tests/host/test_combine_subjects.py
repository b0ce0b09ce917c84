"""Combine Subjects: several pictures weigh together what one would, and their rights add up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from dreamtuner_pack.dreamtuner_core.bank import ReferenceBank
from dreamtuner_pack.dreamtuner_core.host import fingerprint
from dreamtuner_pack.dreamtuner_core.saved_subject import OwnedSubject, Rights
from dreamtuner_pack.dreamtuner_core.subject import Subject
from dreamtuner_pack.nodes.combine_subjects import CombineSubjects
from families import text
from graph import attend, guide, hard_mask, sample, shared_model, soft_mask, subject
from test_subject_encoder import bring, difference, folder, fresh  # noqa: F401

FAMILIES = ("sd1", "sdxl")


def combine(*subjects: Subject) -> Subject:
    return CombineSubjects.execute(*subjects).args[0]


def texts(family: str) -> tuple[list, list]:
    return text(family, 1), text(family, 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("guided", [False, True])
def test_one_picture_twice_is_that_picture(family: str, guided: bool) -> None:
    one = subject(family, soft_mask())
    whole = combine(one, replace(one, bank=ReferenceBank(), keeper=None))
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
    from dreamtuner_pack.dreamtuner_core.host.sampling import run

    passes = []
    whole, model = combine(subject(mask=hard_mask()), subject(mask=soft_mask(), seed=19)), shared_model("sd1")
    compute = run.reference_features
    monkeypatch.setattr(run, "reference_features", lambda *a, **k: (passes.append(1), compute(*a, **k))[1])
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
