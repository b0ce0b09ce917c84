"""The pre-training's loop on a small torch U-Net: resumed, shared among processes, cut off, fed with broken files."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lab.host import ROOT
from lab.mini.artwork import ARCHIVE
from lab.mini.config import CPU_CONCEPTS
from lab.mini.encoder_data import samples
from lab.mini.train_tower import train_tower

sys.path.append(str(Path(__file__).parent))

from small_pretraining import SmallBase, small_config, training, write_shards

from dreamtuner_core import encoder_file
from dreamtuner_core.pretraining import checkpoint
from dreamtuner_core.pretraining.__main__ import RESUMABLE
from dreamtuner_core.pretraining.data import Place, batches, stream
from dreamtuner_core.pretraining.run import ENCODER, LOG, Unfinished, run
from dreamtuner_core.pretraining.tower_file import read_tower

STEPS = 6
SCRIPT = Path(__file__).with_name("small_pretraining.py")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def unbroken(shards: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one process, from the first step to the last."""
    folder = tmp_path_factory.mktemp("unbroken")
    run(training(small_config(shards, folder, steps=STEPS, save_every=1, keep=99)))
    return folder


def last(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.checkpoints(folder)[-1])


def same_but_for_sums(one: Path, other: Path) -> None:
    """Adam divides small gradients by their own size, and so enlarges how float sums differ: a hundredth at most of
    what was learned."""
    losses = [[float(line.split(",")[1]) for line in (f / LOG).read_text().splitlines()[1:]] for f in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    a, b = last(one), last(other)
    assert torch.equal(a["places"], b["places"])
    moved = max(float(a[n].abs().max()) for n in a if n.startswith("parameter.") and "to_out" in n)  # from zero
    assert moved > 0.01
    for kind in ("parameter.", "average."):
        parts = [{name: x for name, x in state.items() if name.startswith(kind)} for state in (a, b)]
        assert difference(*parts) < 0.01 * moved


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def started(processes: int, told: dict[str, Any], tmp_path: Path, kill: tuple[int, int] = (-1, 0)) -> list[Any]:
    """So many processes of one training, ended; kill: (process, step) at which it is killed."""
    (tmp_path / "config.json").write_text(json.dumps(told))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []
    for rank in range(processes):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        told_to_all = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT}
        shared = ranks | told_to_all if processes > 1 else {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": 1}
        command = [sys.executable, str(SCRIPT), str(tmp_path / "config.json"), *([str(kill[1])] * (rank == kill[0]))]
        environment = os.environ | {name: str(value) for name, value in shared.items()}
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT))
    for process in running:
        process.error = process.communicate(timeout=240)[1]  # type: ignore[attr-defined]
    return running


def test_two_processes_take_the_steps_of_one(shards: list[str], unbroken: Path, tmp_path: Path) -> None:
    told = {"shards": shards, "folder": str(tmp_path / "two"), "steps": STEPS, "accumulation": 2}
    for process in started(2, told, tmp_path):
        assert process.returncode == 0, process.error
    same_but_for_sums(unbroken, tmp_path / "two")


def test_killed_and_resumed_is_unbroken_to_the_bit(shards: list[str], unbroken: Path, tmp_path: Path) -> None:
    told = {"shards": shards, "folder": str(tmp_path / "run"), "steps": STEPS, "save_every": 2}
    (process,) = started(1, told, tmp_path, kill=(0, 3))
    assert process.returncode == -signal.SIGKILL
    assert int(last(tmp_path / "run")["step"]) == 2
    resumed = training(small_config(**told))
    run(resumed)
    assert difference(last(unbroken), last(tmp_path / "run")) == 0
    lines = (tmp_path / "run" / LOG).read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [str(step) for step in range(1, STEPS + 1)]
    assert (unbroken / LOG).read_text().count("\n") == len(lines)


def test_a_lost_process_leaves_what_one_can_go_on_from(shards: list[str], unbroken: Path, tmp_path: Path) -> None:
    told = {"shards": shards, "folder": str(tmp_path / "run"), "steps": STEPS}
    first, lost = started(2, told, tmp_path, kill=(1, 3))
    assert lost.returncode == -signal.SIGKILL
    assert first.returncode == RESUMABLE, first.error
    assert "lost in step 4" in first.error
    assert "the same command, given again, goes on" in first.error
    assert int(last(tmp_path / "run")["step"]) == 3
    run(training(small_config(**told)))  # one process takes it up
    same_but_for_sums(unbroken, tmp_path / "run")


def test_a_signal_ends_it_after_the_step(shards: list[str], tmp_path: Path) -> None:
    small = training(small_config(shards, tmp_path, steps=STEPS))
    advance = small.advance

    def signalled() -> Any:
        if small.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance()

    small.advance = signalled  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Unfinished, match="Stopped after step 2 of 6"):
        run(small)
    assert int(last(tmp_path)["step"]) == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_only_res_blocks_and_attention_learn(shards: list[str], tmp_path: Path) -> None:
    small = training(small_config(shards, tmp_path, steps=STEPS))
    base: SmallBase = small.base  # type: ignore[assignment]
    saved: set[int] = set()  # what autograd keeps for the way back
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.add(x.data_ptr()) or x, lambda x: x):  # type: ignore[func-returns-value]
        small.advance()
    assert all(p.grad is None for p in [*base.unet.parameters(), *base.tower.parameters()])
    learning = {name for name, p in small.encoder.named_parameters() if p.requires_grad}
    assert learning == set(small.parameters)
    assert {name.split(".")[0] for name in learning} == {"res_blocks", "norm", "attentions"}
    assert all(p.grad is not None for p in small.parameters.values())
    assert saved
    first = base.unet.input_blocks[0][0].weight, base.unet.input_blocks[1][0].in_layers[2].weight
    for before_any_subject in first:  # so nothing of it is kept for a backward pass
        assert before_any_subject.data_ptr() not in saved
    assert base.unet.out[2].weight.data_ptr() in saved  # while what comes after is
    assert base.tower.stem[1].weight.data_ptr() not in saved


def test_broken_samples_are_counted_and_skipped(shards: list[str], unbroken: Path, tmp_path: Path) -> None:
    config = small_config(shards, tmp_path)
    rows = list(islice(stream(config, 32, 0, 0, Place()), 40))
    assert rows[-1].place.skipped >= 2
    assert sum(row.place.skipped > before.place.skipped for before, row in pairwise(rows)) >= 2
    assert int(last(unbroken)["places"][:, 2].sum()) == int((unbroken / LOG).read_text().split(",")[-1])


@pytest.mark.parametrize("taken", [1, 7, 13])
def test_a_stream_goes_on_where_it_was_left(shards: list[str], tmp_path: Path, taken: int) -> None:
    config = small_config(shards, tmp_path)
    rows = list(islice(stream(config, 32, 2, 0, Place()), 20))
    again = list(islice(stream(config, 32, 2, taken, rows[taken - 1].place), 20 - taken))
    for a, b in zip(rows[taken:], again, strict=True):
        assert a.place == b.place
        assert torch.equal(a.reference, b.reference)
        assert torch.equal(a.picture, b.picture)


def test_readers_give_the_rows_in_order(shards: list[str], tmp_path: Path) -> None:
    alone = batches(small_config(shards, tmp_path), 32, 0, range(4), [Place()] * 4)
    shared = batches(small_config(shards, tmp_path, workers=3), 32, 0, range(4), [Place()] * 4)
    for (a,), (b,) in islice(zip(alone, shared), 3):
        assert torch.equal(a.places, b.places)
        assert torch.equal(a.references, b.references)


def test_nothing_usable_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    for name in ("a.tar", "missing.tar"):
        with pytest.raises(ValueError, match="8 shards in a row hold no usable sample"):
            next(stream(small_config([str(tmp_path / name)], tmp_path), 32, 0, 0, Place()))


def test_what_is_trained_is_what_is_loaded(unbroken: Path) -> None:
    encoder, origin = encoder_file.read(unbroken / ENCODER)
    assert origin.training["steps"] == STEPS
    assert origin.training["pictures"] == 4 * STEPS
    state = last(unbroken)
    for name, weight in encoder.state_dict().items():
        if not name.startswith("tower."):
            assert torch.equal(weight, state[f"average.{name}"])
    for name, weight in SmallBase().tower.state_dict().items():
        assert torch.equal(weight, encoder.state_dict()[f"tower.{name}"])


def test_a_run_of_other_settings_is_not_taken_up(shards: list[str], unbroken: Path) -> None:
    other = training(small_config(shards, unbroken, steps=STEPS, min_snr=1.0))
    with pytest.raises(ValueError, match=r"made with min_snr = 5\.0, but now it is 1\.0"):
        run(other)


def test_a_spoilt_checkpoint_is_one_sentence(shards: list[str], tmp_path: Path) -> None:
    (tmp_path / "step_000000001.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"cannot be read .* remove it, and the one before it is taken"):
        run(training(small_config(shards, tmp_path)))


def test_the_mini_bases_samples_show_the_drawing_in_its_own_hue() -> None:
    for made in samples(ARCHIVE, CPU_CONCEPTS, 64, 12):
        picture, hint = made["picture"], np.asarray(Image.open(io.BytesIO(made["hint.png"])))  # type: ignore[arg-type]
        reference = np.asarray(Image.open(io.BytesIO(made["reference.webp"])))  # type: ignore[arg-type]
        inside = picture[hint > 250].astype(float).mean(0)  # type: ignore[index]
        subject = reference[reference[..., 3] > 250][:, :3].astype(float).mean(0)
        assert np.abs(inside - subject).max() < 12
        assert any(word.rstrip("s") in str(made["txt"]) for word in CPU_CONCEPTS)


def test_the_mini_bases_tower_is_trained_and_read(tmp_path: Path) -> None:
    def pack(module: str) -> Any:
        return importlib.import_module(f"dreamtuner_core.{module}")

    train_tower(tmp_path / "tower.safetensors", ARCHIVE, pack, steps=1)
    tower = read_tower(tmp_path / "tower.safetensors")
    assert tower.hidden_states(torch.rand(1, 3, 128, 128), [1, 4]).shape == (1, 2, 64, 96)
    assert not any(parameter.requires_grad for parameter in tower.parameters())
