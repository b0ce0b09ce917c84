"""The recipe of the mini base, from nothing, at a size that says nothing of quality; and what it says to bad input."""

import errno
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lab.mini import pictures, shipped, train_autoencoder, train_encoder, train_unet
from lab.mini.__main__ import main
from lab.mini.autoencoder import Autoencoder
from lab.mini.checkpoint import load_checkpoint, save_checkpoint, save_tensors
from lab.mini.compiled import compile_checked
from lab.mini.config import PRESETS
from lab.mini.diffusion import alphas_cumprod
from lab.mini.packed import metadata, pack, pack_all, unpack, unpack_all

STEPS, AUTOENCODER_STEPS = 200, 20
ROOT = Path(__file__).resolve().parents[2]


def arguments(folder: Path, stage: str = "train", steps: int = STEPS) -> list[str]:
    return [stage, "--preset", "tiny", "--folder", str(folder), "--steps", str(steps), "--device", "cpu"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, autoencoder and latents of the tiny preset, made from nothing, and two steps of training."""
    folder = tmp_path_factory.mktemp("mini")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(arguments(folder, steps=2)) == 0
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A work folder that has everything but a U-Net."""
    for path in prepared.iterdir():
        if path.name != "unet.pt":
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


def same(a: object, b: object) -> bool:
    """Bit-equal, all the way down."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_from_nothing_to_a_checkpoint_of_the_hosts_layout(prepared: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mini.safetensors"
    assert main([*arguments(prepared, "export"), "--weights", str(weights)]) == 0
    exported = load_file(weights)
    assert {key.split(".")[0] for key in exported} == {"model", "cond_stage_model", "first_stage_model"}
    assert exported["model.diffusion_model.input_blocks.0.0.weight"].shape == (32, 16, 3, 3)
    assert all(torch.isfinite(weight.float()).all() for weight in exported.values())
    assert load_step(prepared / "unet.pt") == 2
    assert not list(prepared.glob("*.part*"))


@pytest.fixture
def saved_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """Trains with a checkpoint after each step, and gives the one of a certain step; ends there if told so."""

    def run(folder: Path, step: int, steps: int, stop: bool) -> dict:
        caught = []

        def save(path: Path, state: dict) -> None:
            save_checkpoint(path, state)
            if state["step"] == step:
                caught.append(load_checkpoint(path, "train"))
                if stop:
                    raise KeyboardInterrupt

        monkeypatch.setattr(train_unet, "SAVE_SECONDS", 0)
        monkeypatch.setattr(train_unet, "save_checkpoint", save)
        with pytest.raises(KeyboardInterrupt) if stop else nullcontext():
            main(arguments(folder, steps=steps))
        monkeypatch.undo()
        return caught[0]

    return run


@pytest.mark.slow
def test_loss_falls_and_a_killed_run_goes_on_bit_equal(
    folder: Path, saved_at: Callable[..., dict], capfd: pytest.CaptureFixture[str]
) -> None:
    unbroken = saved_at(folder, 40, STEPS, stop=False)
    losses = [float(x) for x in re.findall(r"unet \d+/\d+ loss ([\d.]+)", capfd.readouterr().out)]
    assert len(losses) == 4
    assert losses[-1] < 0.9 * losses[0]
    (folder / "unet.pt").unlink()

    told = f"from lab.mini import __main__ as m, train_unet; train_unet.SAVE_SECONDS = 0; m.main({arguments(folder)})"
    running = subprocess.Popen([sys.executable, "-c", told], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (load_step(folder / "unet.pt") or 0) < 5:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    killed_at = load_step(folder / "unet.pt")
    assert killed_at is not None
    assert 5 <= killed_at < 40
    assert same(saved_at(folder, 40, STEPS, stop=True), unbroken)


def load_step(path: Path) -> int | None:
    saved = load_checkpoint(path, "train")
    return saved and saved["step"]


def test_a_resumed_run_is_bit_equal(folder: Path, saved_at: Callable[..., dict]) -> None:
    unbroken = saved_at(folder, 4, 4, stop=False)
    (folder / "unet.pt").unlink()
    saved_at(folder, 2, 4, stop=True)
    assert load_step(folder / "unet.pt") == 2
    assert same(saved_at(folder, 4, 4, stop=False), unbroken)


def test_minutes_stop_a_run_that_goes_on_bit_equal(folder: Path) -> None:
    main(arguments(folder, steps=3))
    unbroken = load_checkpoint(folder / "unet.pt", "train")
    (folder / "unet.pt").unlink()
    for done in (1, 2, 3):
        main([*arguments(folder, steps=3), "--minutes", "0"])
        assert load_step(folder / "unet.pt") == done
    assert same(load_checkpoint(folder / "unet.pt", "train"), unbroken)
    with pytest.raises(SystemExit, match="--minutes is for one worker, but --workers is 2"):
        main([*arguments(folder, steps=3), "--minutes", "1", "--workers", "2"])


def test_minutes_stop_the_autoencoder_and_what_needs_it(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_autoencoder, "held_out_psnr", lambda *_: 0.0)
    for path in prepared.iterdir():
        if path.suffix != ".pt":
            (tmp_path / path.name).symlink_to(path)
    steps = ["--autoencoder-steps", "3"]
    main([*arguments(tmp_path, "autoencoder"), *steps])
    unbroken = load_checkpoint(tmp_path / "autoencoder.pt", "autoencoder")
    (tmp_path / "autoencoder.pt").unlink()
    capsys.readouterr()
    for done in (1, 2):
        main([*arguments(tmp_path), *steps, "--minutes", "0"])
        assert load_step(tmp_path / "autoencoder.pt") == done
        assert capsys.readouterr().out == "the autoencoder is not finished: run the same command again to go on\n"
    assert not (tmp_path / "latents.pt").exists()
    main([*arguments(tmp_path, "autoencoder"), *steps, "--minutes", "0"])
    assert same(load_checkpoint(tmp_path / "autoencoder.pt", "autoencoder"), unbroken)


# --- compiling -----------------------------------------------------------------------------------------------------


def whole(model: train_unet.MiniBase, *given: torch.Tensor) -> torch.Tensor:
    return model.forward(*given)


def all_but_the_last_layer_lost(model: train_unet.MiniBase, *given: torch.Tensor) -> torch.Tensor:
    """The right output, and the gradients that torch 2.13 was seen to make on a CPU."""
    hook = model.unet.out.register_forward_pre_hook(lambda _, x: x[0].register_hook(torch.zeros_like) and None)
    made = model.forward(*given)
    hook.remove()
    return made


def lost_in_wide(model: train_unet.MiniBase, *given: torch.Tensor) -> torch.Tensor:
    shape = given[0].shape
    return (all_but_the_last_layer_lost if shape[3] > shape[2] else whole)(model, *given)


def no_compiler(model: train_unet.MiniBase, *given: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("Failed to find\nC compiler.")


@pytest.mark.parametrize(
    ("compiled", "told"),
    [
        (whole, ""),
        (all_but_the_last_layer_lost, r"compiled gradients are wrong \(by .*is not compiled\n"),
        (lost_in_wide, r"compiled gradients are wrong .*is not compiled\n"),
        (no_compiler, r"compiling failed \(RuntimeError: Failed to find C compiler\.\): this run is not compiled\n"),
    ],
)
def test_compiled_gradients_of_fresh_weights_are_held_against_plain_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], compiled: Callable, told: str
) -> None:
    def compile_so(model: train_unet.MiniBase, dynamic: bool) -> None:
        model._compiled_call_impl = partial(compiled, model)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_so)
    torch.manual_seed(0)
    model = train_unet.MiniBase(PRESETS["tiny"], Path(), vocabulary_rows=9)
    fresh = {name: x.clone() for name, x in model.state_dict().items()}
    compile_checked(model, lambda batch: model.loss(batch, alphas_cumprod()), [noise(8, 8), noise(8, 16)])
    assert (model._compiled_call_impl is None) == bool(told)
    assert re.fullmatch(told, capsys.readouterr().out)
    assert same(dict(model.state_dict()), fresh)
    assert all(p.grad is None for p in model.parameters())


def noise(height: int, width: int) -> dict[str, torch.Tensor]:
    latents = torch.randn(2, 16, height, width)
    tokens = torch.randint(9, (2, 77))
    return {"latents": latents, "noise": torch.randn_like(latents), "t": torch.tensor([300, 600]), "tokens": tokens}


# --- disks that fill -----------------------------------------------------------------------------------------------


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """To the writer as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_fills_while_weights_are_exported(prepared: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mini.safetensors"
    weights.write_bytes(b"those before")
    with no_file_beyond(500 * 1024), pytest.raises(SystemExit, match=r"Cannot write .*mini\.safetensors: .*untouched"):
        main([*arguments(prepared, "export"), "--weights", str(weights)])
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"those before"]


def test_the_room_for_pictures_is_taken_before_they_are_composed(tmp_path: Path) -> None:
    array, path = pictures.reserved(tmp_path / "a.npy", (50, 64, 64, 3)), tmp_path / "a.npy"
    assert path.stat().st_blocks * 512 >= array.nbytes
    assert not array.any()
    array[:] = 7
    array.flush()
    assert np.array_equal(np.load(path), array)


def test_a_stop_while_composing_leaves_no_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        assert len(list(tmp_path.glob("*.part.npy"))) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "ProcessPoolExecutor", stop)
    with pytest.raises(KeyboardInterrupt):
        main(arguments(tmp_path, "data"))
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]


def test_a_full_disk_leaves_the_last_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(arguments(folder, steps=2))

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"the first half of a checkpo")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SystemExit, match=r"Cannot write .*unet\.pt: .*No space left.*one before it is untouched"):
        main(arguments(folder, steps=3))
    assert load_step(folder / "unet.pt") == 2
    assert not list(folder.glob("*.part*"))


def test_a_full_disk_is_told_before_pictures_are_composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    monkeypatch.setattr(pictures, "compose_chunk", None)
    with pytest.raises(SystemExit, match=r"Cannot write .*npy \(\d+ MiB\): .*No space left"):
        main(arguments(tmp_path, "data"))
    assert not list(tmp_path.glob("*.npy"))


# --- files that are not what they should be ------------------------------------------------------------------------


def test_a_checkpoint_of_another_shape_is_refused(folder: Path) -> None:
    other = Autoencoder((8, 8, 8, 8)).state_dict()
    save_checkpoint(folder / "unet.pt", {"model": other, "average": {}, "step": 1, "optimisers": []})
    before = (folder / "unet.pt").read_bytes()
    with pytest.raises(SystemExit, match=r"unet\.pt has another model than this preset"):
        main(arguments(folder, steps=3))
    assert (folder / "unet.pt").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 half a checkpoint"])
def test_a_broken_checkpoint_is_refused(folder: Path, content: bytes) -> None:
    (folder / "unet.pt").write_bytes(content)
    with pytest.raises(SystemExit, match=r"unet\.pt cannot be read .*remove it, and the `train` stage makes it again"):
        main(arguments(folder, steps=3))


@pytest.mark.parametrize("stage", ["train", "controlnet", "export"])
@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("unet.pt", "autoencoder.pt", r"unet\.pt is something else than the `train` stage saves"),
        ("unet.pt", b"not a checkpoint", r"unet\.pt cannot be read .*remove it, and the `train` stage makes it again"),
        ("latents.pt", "autoencoder.pt", r"latents\.pt is something else than the `latents` stage saves"),
        ("latents.pt", 0.9, r"latents\.pt cannot be read .*remove it, and the `latents` stage makes it again"),
        ("latents.pt", 0.1, r"latents\.pt cannot be read .*remove it, and the `latents` stage makes it again"),
    ],
)
def test_one_stages_file_in_anothers_place(
    prepared: Path, tmp_path: Path, stage: str, name: str, spoil: str | bytes | float, said: str
) -> None:
    folder = spoilt(prepared, tmp_path, name, spoil)
    with pytest.raises(SystemExit, match=said):
        main([*arguments(folder, stage, steps=3), "--weights", str(folder / "mini.safetensors")])


@pytest.mark.parametrize(
    ("stage", "name", "spoil", "said"),
    [
        ("autoencoder", "pictures.npy", 0.5, r"pictures\.npy cannot be read \(mmap.*the `data` stage makes it again"),
        ("autoencoder", "pictures.npy", b"", r"pictures\.npy cannot be read .*the `data` stage makes it again"),
        ("export", "autoencoder.pt", "latents.pt", r"autoencoder\.pt is something else than the `autoencoder` stage"),
        ("latents", "wide_captions.json", None, r"no .*wide_captions\.json yet: run the `data` stage first"),
        ("latents", "captions.json", 0.5, r"/captions\.json cannot be read .*the `data` stage makes it again"),
        ("controlnet", "silhouettes.npy", 0.5, r"/silhouettes\.npy cannot be read .*the `data` stage makes it again"),
        ("controlnet", "latents.pt", None, r"no .*latents\.pt yet: run the `latents` stage first"),
        ("controlnet", "unet.pt", None, r"no .*unet\.pt yet: run the `train` stage first"),
        ("export", "unet.pt", None, r"no .*unet\.pt yet: run the `train` stage first"),
        ("export", "controlnet.pt", "unet.pt", r"controlnet\.pt has another model than this preset"),
    ],
)
def test_a_missing_or_broken_file_of_an_earlier_stage(
    prepared: Path, tmp_path: Path, stage: str, name: str, spoil: str | bytes | float | None, said: str
) -> None:
    folder = spoilt(prepared, tmp_path, name, spoil)
    if stage == "latents":
        (folder / "latents.pt").unlink()
    with pytest.raises(SystemExit, match=said):
        main([*arguments(folder, stage, steps=3), "--weights", str(folder / "mini.safetensors")])


def spoilt(prepared: Path, folder: Path, name: str, spoil: str | bytes | float | None) -> Path:
    """A work folder of which one file is another's content, other bytes, the first part of itself, or not there."""
    for path in prepared.iterdir():
        if path.name != name:
            (folder / path.name).symlink_to(path)
    if isinstance(spoil, str):
        shutil.copy(prepared / spoil, folder / name)
    elif isinstance(spoil, float):
        content = (prepared / name).read_bytes()
        (folder / name).write_bytes(content[: round(spoil * len(content))])
    elif spoil is not None:
        (folder / name).write_bytes(spoil)
    return folder


@pytest.mark.parametrize("stage", ["encoder", "sheet"])
def test_stages_that_need_weights_say_so_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.setattr(train_encoder, "write_shards", None)
    monkeypatch.setattr(train_encoder, "train_tower", None)
    missing = folder / "none.safetensors"
    with pytest.raises(SystemExit, match=r"There is no .*none\.safetensors yet: run the `export` stage first"):
        main([*arguments(folder, stage), "--weights", str(missing)])
    missing.touch()
    if stage == "encoder":
        with pytest.raises(SystemExit, match=r"There is no .*mini_control\.safetensors yet: run the `export` stage"):
            main([*arguments(folder, stage), "--weights", str(missing)])


def test_a_host_that_is_not_there(folder: Path) -> None:
    (folder / "a.safetensors").touch()
    with pytest.raises(SystemExit, match=r"There is no ComfyUI at .*none"):
        main([*arguments(folder, "sheet"), "--weights", str(folder / "a.safetensors"), "--host", str(folder / "none")])


def test_a_module_that_is_not_installed(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(SystemExit, match=r"The `export` stage needs safetensors\.torch, which is not installed"):
        main([*arguments(prepared, "export"), "--weights", str(tmp_path / "mini.safetensors")])


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"The `data` stage stopped: .*File exists: .*file"):
        main(arguments(tmp_path / "file", "data"))


@pytest.mark.parametrize("option", ["--pictures 65", "--wide-pictures 0", "--repeated 0.3", "--preset cpu"])
def test_options_that_the_data_was_not_made_with(folder: Path, option: str) -> None:
    (folder / "pictures.npy").unlink()  # the latents alone are data still
    name, value = option.split()
    with pytest.raises(SystemExit, match=rf"The data in .* was made with .*{name} .*, not .*{option}.*give --folder"):
        main([*arguments(folder), name, value])
    (folder / "data.json").unlink()
    if name != "--preset":
        main([*arguments(folder, steps=1), name, value])  # as it is in older folders
        assert not (folder / "data.json").exists()


def test_the_encoders_samples_are_as_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And its pre-training sees pictures of the preset's size."""
    told: list[str] = []
    fake = {"pretraining.__main__": SimpleNamespace(main=lambda argv: told.extend(argv) or 0)}
    monkeypatch.setattr(train_encoder, "import_host", lambda host: None)
    monkeypatch.setattr(train_encoder.inside, "import_pack", lambda: None)
    monkeypatch.setattr(train_encoder, "write_shards", lambda shards, *_: shards.mkdir())
    monkeypatch.setattr(train_encoder, "train_tower", lambda *_: None)
    monkeypatch.setattr(train_encoder, "pack", fake.__getitem__)
    for name in ("mini.safetensors", "mini_control.safetensors"):
        (folder / name).touch()
    asked = [*arguments(folder, "encoder"), "--weights", str(folder / "mini.safetensors"), "--samples"]
    main([*asked, "4"])
    assert {"side=64", "shards=[]"} < set(told)
    main([*asked, "4"])
    with pytest.raises(SystemExit, match=r"was made with --samples 4, not --samples 5: ask for that, or give --folder"):
        main([*asked, "5"])


# --- packed weights ------------------------------------------------------------------------------------------------


def test_packed_weights_are_off_by_half_a_step_at_most() -> None:
    kernel, bias, ids = torch.randn(48, 32, 3, 3), torch.randn(48).half(), torch.arange(70, dtype=torch.int32)
    kernel[5] *= 100  # each row has a scale of its own
    kernel[7] = 0
    packed = pack({"kernel": kernel, "bias": bias, "ids": ids})
    assert packed["kernel"].dtype == torch.int8
    again = unpack(packed)
    assert again.keys() == {"kernel", "bias", "ids"}
    assert torch.equal(again["bias"], bias)
    assert torch.equal(again["ids"], ids)
    step = kernel.flatten(1).abs().amax(1) / 127
    off = (again["kernel"].float() - kernel).flatten(1).abs().amax(1)
    assert (off <= 0.5 * step + 1e-3 * kernel.flatten(1).abs().amax(1)).all()  # fp16 rounds too


def test_padding_is_left_out_and_comes_back() -> None:
    kernel = torch.zeros(64, 64, 3, 3)
    kernel[:40, :48] = torch.randn(40, 48, 3, 3, generator=torch.Generator().manual_seed(0))
    packed = pack({"kernel": kernel})
    assert packed["kernel"].shape == (40, 48, 3, 3)
    again = unpack(packed)["kernel"]
    assert again.shape == kernel.shape
    assert not again[40:].any()
    assert not again[:, 48:].any()
    assert float((again.float() - kernel).abs().max()) < 0.02


def test_a_copy_keeps_what_it_changed_in_half_the_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(96, 96, generator=generator)
    changed = start + 0.01 * torch.randn(96, 96, generator=generator)
    packed = pack({"w": changed, "new": changed}, {"w": start})
    assert packed["w.change"].nbytes == changed.numel() // 2
    again = unpack(packed, {"w": start})
    assert float((again["w"].float() - changed).abs().max()) < 0.005
    assert float((again["new"].float() - changed).abs().max()) < 0.05


def test_packed_files_are_expanded_once_and_those_of_16_bits_as_they_are(tmp_path: Path) -> None:
    told, weight = {"steps": "3"}, torch.randn(64, 64)
    for name in shipped.NAMES:
        save_tensors(tmp_path / "trained" / name, {"weight": weight.half()}, told)
    pack_all(tmp_path / "trained", tmp_path / "kept")
    unpack_all(tmp_path / "kept", tmp_path / "expanded")
    base = tmp_path / "expanded" / shipped.BASE
    assert metadata(base) == told
    assert load_file(base)["weight"].dtype == torch.float16
    unpack_all(tmp_path / "trained", tmp_path / "as they are")
    assert torch.equal(load_file(tmp_path / "as they are" / shipped.BASE)["weight"], weight.half())
    base.write_bytes(b"here already")
    unpack_all(tmp_path / "kept", tmp_path / "expanded")
    assert base.read_bytes() == b"here already"
    (tmp_path / "trained" / shipped.ENCODER).unlink()
    with pytest.raises(SystemExit, match=r"no .*mini_encoder\.safetensors yet: run the `encoder` stage first"):
        pack_all(tmp_path / "trained", tmp_path / "kept")
