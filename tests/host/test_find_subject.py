"""Find Subject on the host."""

from __future__ import annotations

import comfy.model_management
import pytest
import torch
from dreamtuner_pack.dreamtuner_core.host.subject import find
from images import ball, disc, overlap

from lab.u2netp import picture


def test_a_ball_is_found_in_every_picture_of_a_batch() -> None:
    places = [disc(), disc(centre=(90, 200), radius=50)]
    masks = find.find_subject(torch.cat([ball(place) for place in places]))
    assert masks.shape == (2, 200, 300)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    for mask, place in zip(masks, places):
        assert overlap(mask, place) > 0.93


def test_a_picture_is_found_alike_alone_and_in_a_batch() -> None:
    batch = torch.cat([ball(disc()), ball(disc(radius=40))])
    assert torch.equal(find.find_subject(batch)[1:], find.find_subject(batch[1:]))


def test_nothing_stands_out_of_a_plain_picture() -> None:
    assert find.find_subject(torch.full((1, 90, 120, 3), 0.5)).max() == 0


def test_the_host_knows_the_network_and_forgets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list = []
    load = comfy.model_management.load_models_gpu
    monkeypatch.setattr(
        comfy.model_management, "load_models_gpu", lambda models, **more: loaded.extend(models) or load(models, **more)
    )
    find.find_subject(picture())
    assert [type(patcher.model).__name__ for patcher in loaded] == ["U2NetP"]
    assert loaded[0].model_size() == pytest.approx(4.5e6, rel=0.05)


def test_an_interruption_stops_it() -> None:
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        find.find_subject(picture())
    find.find_subject(picture())  # and only that once
