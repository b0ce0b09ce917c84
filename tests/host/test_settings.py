"""What the nodes note on a model, and what a run makes of it: ranges, weights that change, parts of the U-Net."""

from __future__ import annotations

import uuid
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from dreamtuner_pack.dreamtuner_core.guidance import Guidance
from dreamtuner_pack.dreamtuner_core.host.apply import with_subject
from dreamtuner_pack.dreamtuner_core.host.fingerprint import of_patches
from dreamtuner_pack.dreamtuner_core.host.sampling.guided import draw_step
from dreamtuner_pack.dreamtuner_core.host.settings import BLOCKS, AppliedSubject, NoiseRange
from graph import attend, draw, shared_model, soft_mask, subject
from torch import Tensor

STEPS = 4


def drawn(**settings: object) -> Tensor:
    applied = AppliedSubject(subject(mask=soft_mask()), **{"weight": 3.0} | settings)
    return draw(with_subject(shared_model("sd1"), applied), steps=STEPS)


def test_a_range_holds_its_first_and_its_last_level() -> None:
    levels = NoiseRange(5.0, 1.0)
    assert [sigma for sigma in (5.1, 5.0, 3.0, 1.0, 0.9) if levels.holds(sigma)] == [5.0, 3.0, 1.0]


@pytest.mark.parametrize(("percent", "weight"), [(0.0, 4.0), (0.2, 4.0), (0.4, 3.0), (0.6, 2.0), (1.0, 2.0)])
def test_the_weight_changes_in_a_straight_line_within_the_range(percent: float, weight: float) -> None:
    applied = AppliedSubject(subject(), 4.0, 0.2, 0.6, end_weight=2.0)
    assert applied.weight_at(percent) == pytest.approx(weight)
    assert replace(applied, end_weight=None).weight_at(percent) == 4.0


def test_a_weight_that_rises_and_one_that_falls_are_read_when_they_are_above_zero() -> None:
    """From 0 on, the first step reads nothing; down to 0, the last levels read next to nothing."""
    plain, whole = draw(shared_model("sd1"), steps=STEPS), drawn()
    rising, falling = drawn(weight=0.0, end_weight=3.0), drawn(end_weight=0.0)
    pictures = [plain, whole, rising, falling]
    assert not [1 for one, other in combinations(pictures, 2) if torch.allclose(one, other, rtol=1e-3, atol=1e-3)]
    # the first step is the noisiest and decides most: what falls from 3 lies nearer to what is 3 throughout
    assert (falling - whole).norm() < (rising - whole).norm()
    assert torch.equal(drawn(end_weight=3.0), whole)


def test_only_the_named_parts_of_the_unet_read() -> None:
    whole, plain = drawn(), draw(shared_model("sd1"), steps=STEPS)
    assert torch.equal(drawn(blocks=BLOCKS), whole)
    assert torch.equal(drawn(blocks=()), plain)
    parts = [drawn(blocks=(part,)) for part in BLOCKS]
    assert not [1 for one, other in combinations([plain, whole, *parts], 2) if torch.allclose(one, other, rtol=1e-4)]


def test_settings_and_masks_are_in_a_models_fingerprint() -> None:
    model, one = shared_model("sd1"), subject(mask=soft_mask())
    variants = [
        {}, {"weight": 2.0}, {"start": 0.1}, {"end": 0.9}, {"region": torch.ones(1, 8, 8)}, {"negative_weight": 0.5},
        {"end_weight": 1.0}, {"blocks": ("output",)}, {"subject": replace(one, mask=None)},
        {"subject": replace(one, mask=one.mask / 2)}, {"subject": replace(one, noise_seed=4)},
    ]  # fmt: skip
    found = {of_patches(with_subject(model, AppliedSubject(**{"subject": one, "weight": 3.0} | v))) for v in variants}
    assert len(found) == len(variants)
    assert of_patches(attend(model, one)) in found


def test_eq_4_asks_under_ids_of_its_own_and_always_the_same() -> None:
    """What caches by id never takes the answer to one equation for that to the other."""
    conds = {side: [{"uuid": uuid.uuid4()}] for side in ("positive", "negative")}
    call = {"model_options": {"transformer_options": {}}, "timestep": torch.tensor([1.0]), "seed": 3}
    steps = [draw_step(Guidance(2.0, 0.5, 0.0, 0.0), conds, call) for _ in range(2)]
    asked = [*conds.values(), steps[0].with_reference, steps[0].without]
    assert len({cond["uuid"] for side in asked for cond in side}) == 4
    assert steps[0] == steps[1]
    assert set(steps[0].wanted) == {conds["positive"][0]["uuid"], steps[0].with_reference[0]["uuid"]}


def test_a_regional_text_that_the_host_copies_to_the_other_side_is_wanted_on_its_own_alone() -> None:
    """It copies it with its id."""
    one = {"uuid": uuid.uuid4()}
    conds = {"positive": [one], "negative": [{**one}]}
    call = {"model_options": {"transformer_options": {}}, "timestep": torch.tensor([1.0]), "seed": 3}
    step = draw_step(Guidance(2.0, 0.5, 0.0, 0.0), conds, call)
    assert conds["positive"][0]["uuid"] in step.wanted
    assert conds["negative"][0]["uuid"] not in step.wanted
