"""The recipe of the mini base, from nothing, at a size that says nothing of quality; and what it says to bad input."""

import errno
import io
import json
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lab.mini import artwork, pictures, train_unet
from lab.mini.__main__ import main
from lab.mini.autoencoder import Autoencoder
from lab.mini.checkpoint import load_checkpoint, save_checkpoint

STEPS, AUTOENCODER_STEPS = 200, 20
ROOT = Path(__file__).resolve().parents[2]


def arguments(folder: Path, stage: str = "train", steps: int = STEPS) -> list[str]:
    return [stage, "--preset", "tiny", "--folder", str(folder), "--steps", str(steps), "--device", "cpu"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings, pictures, autoencoder and latents of the tiny preset, made from nothing, and two steps of training."""
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
    assert exported["model.diffusion_model.input_blocks.0.0.weight"].shape == (32, 4, 3, 3)
    assert all(torch.isfinite(weight.float()).all() for weight in exported.values())
    assert load_checkpoint(prepared / "unet.pt")["step"] == 2
    assert not list(prepared.glob("*.part*"))


@pytest.fixture
def saved_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """Trains with a checkpoint after each step, and gives the one of a certain step; ends there if told so."""

    def run(folder: Path, step: int, steps: int, stop: bool) -> dict:
        caught = []

        def save(path: Path, state: dict) -> None:
            save_checkpoint(path, state)
            if state["step"] == step:
                caught.append(load_checkpoint(path))
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
    saved = load_checkpoint(path)
    return saved and saved["step"]


def test_a_resumed_run_is_bit_equal(folder: Path, saved_at: Callable[..., dict]) -> None:
    unbroken = saved_at(folder, 4, 4, stop=False)
    (folder / "unet.pt").unlink()
    saved_at(folder, 2, 4, stop=True)
    assert load_step(folder / "unet.pt") == 2
    assert same(saved_at(folder, 4, 4, stop=False), unbroken)


def test_minutes_stop_a_run_that_goes_on_bit_equal(folder: Path) -> None:
    main(arguments(folder, steps=3))
    unbroken = load_checkpoint(folder / "unet.pt")
    (folder / "unet.pt").unlink()
    for done in (1, 2, 3):
        main([*arguments(folder, steps=3), "--minutes", "0"])
        assert load_step(folder / "unet.pt") == done
    assert same(load_checkpoint(folder / "unet.pt"), unbroken)
    with pytest.raises(SystemExit, match="--minutes is for one worker, but --workers is 2"):
        main([*arguments(folder, steps=3), "--minutes", "1", "--workers", "2"])


@pytest.mark.parametrize(("factor", "kept"), [(1.0, True), (0.5, False)])
def test_compiled_gradients_are_held_against_plain_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], factor: float, kept: bool
) -> None:
    class Model(torch.nn.Linear):
        learns = property(lambda self: self)

        def loss(self, batch: dict[str, torch.Tensor], alpha_bars: torch.Tensor) -> torch.Tensor:
            return self(batch["x"]).square().mean()

    def compile_badly(self: Model, dynamic: bool) -> None:
        self._compiled_call_impl = lambda x: self.forward(x) * factor

    monkeypatch.setattr(torch.nn.Module, "compile", compile_badly)
    model = Model(3, 3)
    train_unet.compile_checked(model, {"x": torch.ones(2, 3)}, torch.ones(1))
    assert (model._compiled_call_impl is not None) == kept
    assert ("goes on uncompiled" in capsys.readouterr().out) != kept


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
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_shape_is_refused(folder: Path) -> None:
    other = Autoencoder((8, 8, 8, 8)).state_dict()
    save_checkpoint(folder / "unet.pt", {"model": other, "average": {}, "step": 1, "optimisers": []})
    before = (folder / "unet.pt").read_bytes()
    with pytest.raises(SystemExit, match=r"unet\.pt holds another model than this preset's"):
        main(arguments(folder, steps=3))
    assert (folder / "unet.pt").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 half a checkpoint"])
def test_a_broken_checkpoint_is_refused(folder: Path, content: bytes) -> None:
    (folder / "unet.pt").write_bytes(content)
    with pytest.raises(SystemExit, match=r"unet\.pt cannot be read .*remove it to train from nothing"):
        main(arguments(folder, steps=3))


def test_export_before_training(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"There is no trained U-Net in .*run the `train` stage first"):
        main([*arguments(tmp_path, "export"), "--weights", str(tmp_path / "mini.safetensors")])


# --- drawings ------------------------------------------------------------------------------------------------------

GOOD = '<circle cx="8" cy="8" r="6" fill="red"/>'
BROKEN = '<circle cx="8" cy="8" r='
EMPTY = "<g/>"


def tarball(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as package:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            package.addfile(entry, io.BytesIO(content))


@pytest.fixture
def npm(tmp_path: Path) -> Path:
    """The recipe's packages with three concepts: one drawn well, one in broken SVG, one empty."""
    bodies = {"good": GOOD, "broken": BROKEN, "empty": EMPTY}
    emoji = dict(zip("😀😁😂", bodies))
    names = {e: {"name": name, "group": artwork.GROUPS[0]} for e, name in emoji.items()}
    icons = {"icons": {name: {"body": body} for name, body in bodies.items()}, "width": 16, "height": 16}
    chars = {f"{ord(e):x}": name for e, name in emoji.items()}
    picture = io.BytesIO()
    Image.new("RGBA", (64, 64), "blue").save(picture, "WEBP")

    def path(spec: str) -> Path:
        name, version = spec.rsplit("@", 1)
        return tmp_path / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"

    tarball(path(artwork.NAMES_PACKAGE), {"data-by-emoji.json": json.dumps(names).encode()})
    for drawing, spec in artwork.DRAWINGS.items():
        if drawing == "fluent-3d":
            tarball(path(spec), {f"assets/{next(iter(chars))}.webp": picture.getvalue()})
        else:
            files = {"chars.json": json.dumps(chars).encode(), "icons.json": json.dumps(icons).encode()}
            tarball(path(spec), files)
    return tmp_path


def test_broken_drawings_are_counted_and_left_out(npm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = npm / "artwork.zip"
    artwork.build_archive(archive, npm, None)
    assert {concept for concept, _ in artwork.load_artwork(archive)} == {"good"}
    assert len(artwork.load_artwork(archive)) == len(artwork.DRAWINGS)
    said = capsys.readouterr().out
    left_out = 2 * len(artwork.DRAWINGS)
    assert f"\n{left_out} drawings are missing or broken and were left out: broken/noto" in said
    good = np.asarray(artwork.load_artwork(archive)["good", "noto"])
    centre = [int(x) for x in good[good.shape[0] // 2, good.shape[1] // 2]]
    assert centre == pytest.approx([255, 0, 0, 255], abs=6)


def test_a_concept_is_held_out_in_every_drawing_or_in_one_design() -> None:
    """A set of drawings that joins the recipe later must not show what the hard case keeps from training."""
    withheld: dict[str, set[str]] = {}
    for concept, drawing in artwork.load_held_out():
        withheld.setdefault(concept, set()).add(drawing)
    whole = [concept for concept, drawings in withheld.items() if drawings == set(artwork.DRAWINGS)]
    assert len(whole) == 42
    designs = {frozenset(d) for concept, d in withheld.items() if concept not in whole}
    assert all(len(design - {"fluent-3d"}) == 1 for design in designs)


def test_a_missing_renderer(npm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(SystemExit, match="rendered with resvg_py, which is not installed: pip install resvg_py"):
        artwork.build_archive(npm / "artwork.zip", npm, None)
    assert not list(npm.glob("artwork.*"))


def test_a_package_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=r"Cannot fetch unicode-emoji-json@.* Put its tarball at"):
        artwork.list_concepts(tmp_path, None)


def test_a_broken_package_and_a_broken_archive(npm: Path) -> None:
    broken = npm / "unicode-emoji-json-0.9.0.tgz"
    broken.write_bytes(b"half a tarball")
    with pytest.raises(SystemExit, match=r"unicode-emoji-json-0\.9\.0\.tgz is no npm tarball"):
        artwork.list_concepts(npm, None)
    (npm / "artwork.zip").write_bytes(b"half an archive")
    with pytest.raises(SystemExit, match=r"artwork\.zip is no archive of drawings"):
        artwork.load_artwork(npm / "artwork.zip")


def test_an_unknown_concept(npm: Path) -> None:
    with pytest.raises(SystemExit, match="No emoji is named dragon in unicode-emoji-json"):
        artwork.list_concepts(npm, ("dragon",))
