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
import tarfile
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lab.host import ROOT
from lab.mini import encoder_data
from lab.mini.config import PRESETS
from lab.mini.encoder_data import samples
from lab.mini.train_tower import train_tower
from lab.world import KINDS

sys.path.append(str(Path(__file__).parent))

from small_pretraining import LARGEST_GRADIENT, SmallBase, png, sample, small_config, training, write_shards

from dreamtuner_core.encoder import file as encoder_file
from dreamtuner_core.lock import locked
from dreamtuner_core.pretraining import checkpoint
from dreamtuner_core.pretraining.__main__ import RESUMABLE
from dreamtuner_core.pretraining.data import Place, batches, decoded, stream, usable
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


def losses_of(folder: Path) -> list[float]:
    return [float(line.split(",")[1]) for line in (folder / LOG).read_text().splitlines()[1:]]


def same_but_for_sums(one: Path, other: Path) -> None:
    """In float32: the gradients of the first step, and how far each weight has come in the end.

    Adam divides a gradient by its own size, so where one is about zero the rounding of its sum decides: a hundredth at
    most of what was learned. In float64 (below) nothing of the kind is left.
    """
    assert losses_of(one) == pytest.approx(losses_of(other), rel=1e-4)
    first = [load_file(checkpoint.checkpoints(folder)[0]) for folder in (one, other)]
    for name in (name for name in first[0] if name.endswith("exp_avg")):  # a tenth of the first gradient
        a, b = (state[name].double() for state in first)
        assert float((a - b).norm()) <= 1e-5 * float(a.norm())
    a, b = last(one), last(other)
    assert torch.equal(a["places"], b["places"])
    moved = learned(a)
    for kind in ("parameter.", "average."):
        parts = [{name: x for name, x in state.items() if name.startswith(kind)} for state in (a, b)]
        assert difference(*parts) < 0.01 * moved


def learned(state: dict[str, torch.Tensor]) -> float:
    """How far the zero projections have come."""
    moved = max(float(x.abs().max()) for n, x in state.items() if n.startswith("parameter.") and "to_out" in n)
    assert moved > 0.01
    return moved


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


def test_two_processes_take_the_steps_of_one(shards: list[str], tmp_path: Path) -> None:
    """Weights, averages and moments after some steps, in float64, where nothing hides behind rounding."""
    told = {"shards": shards, "steps": STEPS, "accumulation": 2}
    for process in started(2, told | {"folder": str(tmp_path / "two"), "exact": True}, tmp_path):
        assert process.returncode == 0, process.error
    run(training(small_config(shards, tmp_path / "one", steps=STEPS), exact=True))
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-12)
    one, two = last(tmp_path / "one"), last(tmp_path / "two")
    assert difference(one, two) < 1e-10 * learned(one)


def test_killed_and_resumed_is_unbroken_to_the_bit(shards: list[str], unbroken: Path, tmp_path: Path) -> None:
    told = {"shards": shards, "folder": str(tmp_path / "run"), "steps": STEPS, "save_every": 2}
    (process,) = started(1, told, tmp_path, kill=(0, 3))
    assert process.returncode == -signal.SIGKILL
    assert int(last(tmp_path / "run")["step"]) == 2
    (tmp_path / "run" / ".step_000000003.safetensors.1.unfinished").touch()  # as if killed while it was writing
    resumed = training(small_config(**told))
    run(resumed)
    assert difference(last(unbroken), last(tmp_path / "run")) == 0
    lines = (tmp_path / "run" / LOG).read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [str(step) for step in range(1, STEPS + 1)]
    assert (unbroken / LOG).read_text().count("\n") == len(lines)
    assert not list((tmp_path / "run").glob(".*"))


def test_a_lost_process_leaves_what_one_can_go_on_from(shards: list[str], unbroken: Path, tmp_path: Path) -> None:
    told = {"shards": shards, "folder": str(tmp_path / "run"), "steps": STEPS, "save_every": 1, "keep": 99}
    first, lost = started(2, told, tmp_path, kill=(1, 3))
    assert lost.returncode == -signal.SIGKILL
    assert first.returncode == RESUMABLE, first.error
    assert "Step 4 failed" in first.error
    assert "run the same command again to go on" in first.error
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


def test_what_fails_in_the_first_step_is_not_to_be_tried_again(shards: list[str], tmp_path: Path) -> None:
    small = training(small_config(shards, tmp_path, steps=STEPS))
    small.base.predict = lambda *told: torch.ones(2, 3) @ torch.ones(2, 3)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"^the first step failed \(.*shapes cannot be multiplied.*\); fix that"):
        run(small)


def test_a_sheet_that_fails_costs_nothing(
    shards: list[str], unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    told = {"shards": shards, "folder": str(tmp_path), "steps": STEPS, "save_every": 2, "sheet_every": 2}
    small = training(small_config(**told))
    small.base.sheet = full  # type: ignore[method-assign]
    run(small)
    assert "no sheet of step 2 (CUDA out of memory. Tried to allocate 2 GiB)" in capsys.readouterr().out
    assert int(last(tmp_path)["step"]) == STEPS
    assert not list(tmp_path.glob("sheet_*"))


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


def test_averages_follow_the_weights_and_quicker_at_the_start(shards: list[str], tmp_path: Path) -> None:
    small = training(small_config(shards, tmp_path, steps=STEPS, ema=0.15, learning_rate=1e-2))
    expected = {name: p.detach().clone() for name, p in small.parameters.items()}
    for decay in (0.1, 0.15, 0.15):  # 1/10, then 2/11 and 3/12 would be slower than what is asked for
        small.advance()
        for name, p in small.parameters.items():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach()
        torch.testing.assert_close(dict(small.learned()), expected)
    assert any(not torch.allclose(p, expected[name], rtol=1e-4) for name, p in small.parameters.items())


def test_each_step_has_its_rate_and_a_gradient_that_is_cut(shards: list[str], tmp_path: Path) -> None:
    config = small_config(shards, tmp_path, steps=STEPS)
    small, norms = training(config), []
    for step in range(STEPS):
        small.advance()
        assert small.optimizer.param_groups[0]["lr"] == config.rate(step)
        gradients = [p.grad for p in small.parameters.values() if p.grad is not None]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
    assert len({config.rate(step) for step in range(STEPS)}) > 1
    assert max(norms) == pytest.approx(LARGEST_GRADIENT, rel=1e-3)


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
        for workers in (0, 1):  # a worker's error would be a page
            config = small_config([str(tmp_path / name)], tmp_path, workers=workers)
            with pytest.raises(ValueError, match=r"^8 shards in a row have no usable sample \(.*check the shards\.$"):
                next(batches(config, 32, 0, range(4), [Place()] * 4))


def test_a_depth_map_of_16_bits_is_that_of_8_bits(tmp_path: Path) -> None:
    depth = np.arange(0, 256, 4).repeat(64).reshape(64, 64)
    hints = []
    for pixels in (depth.astype(np.uint8), (depth * 257).astype(np.uint16)):
        one = {"__key__": "0"} | sample(np.random.default_rng(0)) | {"hint.png": png(pixels)}
        hints.append(decoded(one, small_config(["0.tar"], tmp_path, side=64), 32).hint)
    assert hints[0] is not None
    assert torch.equal(*hints)
    assert len(hints[0].unique()) == 64


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
    with pytest.raises(ValueError, match=r"cannot be read: .* and the run resumes from the checkpoint before"):
        run(training(small_config(shards, tmp_path)))


def test_what_breaks_off_is_one_sample_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The last sample before a tar file's broken end lacks its mask: it is not taken with its transparency instead."""
    shard = tmp_path / "0.tar"
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(3):
            parts = sample(np.random.default_rng(number))
            for part, content in (parts | {"mask.png": parts["reference.png"]}).items():
                info = tarfile.TarInfo(f"{number}.{part}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    with tarfile.open(shard) as tar:
        end = tar.getmembers()[-1].offset_data + 20
    shard.write_bytes(shard.read_bytes()[:end])
    config = small_config([str(shard)], tmp_path)
    places = [row.place for row in islice(stream(config, 32, 0, 0, Place()), 8)]
    assert [place.shard for place in places] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all(place.skipped - place.shard in (0, 1) for place in places)  # shuffled among the others
    assert len(caplog.messages) == places[-1].skipped
    assert all(f"skipped a sample of {shard}: ReadError" in message for message in caplog.messages)


class HalfWay:
    """An autoencoder that averages; it fails when it is asked again so many times."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        if not self.calls:
            raise KeyboardInterrupt
        self.calls -= 1
        return torch.nn.functional.avg_pool2d(pictures.mean(1, keepdim=True).expand(-1, 4, -1, -1), 8)


def test_the_mini_bases_shards_are_whole_whenever_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read to the last sample by the trainer's own reader: while they are made, and in the end."""
    folder, preset = tmp_path / "shards", replace(PRESETS["cpu"], side=64)
    monkeypatch.setattr(encoder_data, "SHARD", 2)

    def write(calls: int, count: int) -> None:
        monkeypatch.setattr(encoder_data, "load_autoencoder", lambda *_: HalfWay(calls))
        encoder_data.write_shards(folder, tmp_path, preset, count)

    def check(shards: list[Path], count: int) -> None:
        assert len(shards) == count
        config = small_config([str(path) for path in shards], tmp_path, side=64, latents=True, sheet_rows=64)
        assert len(usable(config, 32)) == 2 * count
        for path in shards:
            alone = stream(small_config([str(path)], tmp_path, side=64, latents=True), 32, 0, 0, Place())
            assert [row.place for row in islice(alone, 3)] == [Place(0, 1, 0), Place(0, 2, 0), Place(1, 1, 0)]

    with pytest.raises(KeyboardInterrupt):
        write(calls=2, count=6)  # in the third shard
    check(sorted(folder.with_suffix(".part").glob("*.tar")), 2)
    assert not folder.exists()
    write(calls=9, count=2)  # less than what the stopped one left
    check(sorted(folder.iterdir()), 1)


def test_a_full_disk_is_one_sentence_and_keeps_the_step(
    shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(encoder_file, "save_file", full)
    with pytest.raises(ValueError, match=rf"{ENCODER} cannot be written \(No space left on device\); make room"):
        run(training(small_config(shards, tmp_path, steps=1)))
    assert {path.name for path in tmp_path.iterdir()} == {LOG, "lock", "step_000000001.safetensors"}


def test_two_runs_in_one_folder_are_refused(shards: list[str], tmp_path: Path) -> None:
    with locked(tmp_path / "lock", ""), pytest.raises(ValueError, match=r"another run writes to .*its own folder"):
        run(training(small_config(shards, tmp_path, steps=1)))
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_folder_that_is_none_is_one_sentence(shards: list[str], tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(ValueError, match=r"taken cannot be written .*let this run write there"):
        run(training(small_config(shards, tmp_path / "taken", steps=1)))


def test_a_log_that_cannot_be_written_or_read_costs_no_step(
    shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / LOG).write_bytes(b"step,loss\nx,1,2,3,4\n\xff\xfe\n1,2\n")
    first = training(small_config(shards, tmp_path, steps=1))
    opened = Path.open

    def full(self: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        if self.name == LOG and mode == "a":
            raise OSError("No space left on device")
        return opened(self, mode, *more, **named)

    monkeypatch.setattr(Path, "open", full)
    assert run(first).is_file()
    assert "no line in loss.csv (No space left on device)" in capsys.readouterr().out
    assert (tmp_path / LOG).read_text().split() == ["step,loss,rate,pictures_a_second,skipped"]


def test_a_damaged_state_is_one_sentence(shards: list[str], tmp_path: Path) -> None:
    one = training(small_config(shards, tmp_path, steps=1, ema=0.9))
    one.advance()
    state = one.state()
    moment, weight = (next(n for n in state if n.startswith(p)) for p in ("optimizer.", "parameter."))
    odd: list[dict[str, torch.Tensor]] = [
        {moment: state[moment].double()},
        {moment: state[moment][None]},
        {weight: torch.full_like(state[weight], float("nan"))},
        {weight: state[weight].to(torch.float8_e4m3fn)},
        {"step": torch.ones(2, dtype=torch.int64)},
        {"step": torch.tensor(-1)},
        {"places": state["places"].float()},
        {"places": -1 - state["places"]},
        {"strange": torch.zeros(1)},
    ]
    for change in odd:
        with pytest.raises(ValueError, match=r"is damaged, or has other parameters.*delete it"):
            one.load_state(state | change)
    for gone in ("step", "places", moment, weight):
        with pytest.raises(ValueError, match=r"is damaged, or has other parameters.*delete it"):
            one.load_state({name: x for name, x in state.items() if name != gone})
    one.load_state(state)


def test_the_mini_bases_samples_show_the_very_individual() -> None:
    """By mean colour, in spite of another light: nearer to the own reference than to the others'."""
    seen, subjects = [], []
    for made in samples(PRESETS["cpu"], 12):
        picture, hint = made["picture"], np.asarray(Image.open(io.BytesIO(made["hint.png"])))  # type: ignore[arg-type]
        reference = np.asarray(Image.open(io.BytesIO(made["reference.webp"])))  # type: ignore[arg-type]
        seen.append(picture[hint > 250].astype(float).mean(0))  # type: ignore[index]
        subjects.append(reference[reference[..., 3] > 250][:, :3].astype(float).mean(0))
        assert any(kind in str(made["txt"]) for kind in KINDS)
    distances = np.linalg.norm(np.array(seen)[:, None] - np.array(subjects)[None], axis=2)
    assert np.diag(distances).mean() < 0.4 * distances.mean()


def test_the_mini_bases_tower_is_trained_and_read(tmp_path: Path) -> None:
    def pack(module: str) -> Any:
        return importlib.import_module(f"dreamtuner_core.{module}")

    train_tower(tmp_path / "tower.safetensors", pack, steps=1, individuals=24)
    tower = read_tower(tmp_path / "tower.safetensors")
    assert tower.hidden_states(torch.rand(1, 3, 128, 128), [1, 4]).shape == (1, 2, 64, 96)
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_the_newest_few_checkpoints_are_kept(tmp_path: Path) -> None:
    config = small_config(["a.tar"], tmp_path, keep=2)
    for step in (1, 2, 3, 10):
        checkpoint.save(tmp_path, step, {"step": torch.tensor(step)}, config)
    assert [int(checkpoint.load(path, config)["step"]) for path in checkpoint.checkpoints(tmp_path)] == [3, 10]
