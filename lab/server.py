"""A real ComfyUI server: started on a free port of 127.0.0.1, driven over its API, always stopped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.client import ComfyClient, ComfyError
from lab.host import HOME, ROOT

LAUNCHER = Path(__file__).with_name("launch.py")
ALWAYS = ("--listen", "127.0.0.1", "--disable-api-nodes", "--database-url", "sqlite:///:memory:")


class ComfyServer(ComfyClient):
    """`with ComfyServer(tree) as server: server.queue(graph)`.

    tree          the ComfyUI to start
    custom_nodes  node folders to link beside the pack, or a mapping of names to folders
    models        model files to link, by kind: {"checkpoints": [path, ...]}
    arguments     further arguments of main.py
    pack          whether this repository is linked as custom_nodes/DreamTuner
    threads       of torch; one is fastest for small models, because more wait for each other if a core is busy
    base          the folder for the server's input, output, user and model folders; it is not removed at the end

    Without `base` a temporary folder is used, and removed when the server stops. So is its `log`; that of a server that
    failed is copied to .lab/failed_server.log.
    """

    def __init__(
        self,
        tree: Path,
        custom_nodes: Sequence[Path] | Mapping[str, Path] = (),
        models: Mapping[str, Sequence[Path]] | None = None,
        arguments: Sequence[str] = ("--cpu",),
        pack: bool = True,
        threads: int = 1,
        python: str = sys.executable,
        start_timeout: float = 600.0,
        base: Path | None = None,
    ) -> None:
        self.port = _free_port()
        super().__init__(f"http://127.0.0.1:{self.port}")
        self.tree = tree
        links = dict(custom_nodes) if isinstance(custom_nodes, Mapping) else {path.name: path for path in custom_nodes}
        self.custom_nodes = links | ({"DreamTuner": ROOT} if pack else {})
        self.models = models or {}
        self.command = [python, str(LAUNCHER), str(tree), "--port", str(self.port), *ALWAYS, *arguments]
        self.variables = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
        self.start_timeout = start_timeout
        self.kept = base
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        died = self.process is None or self.process.poll() is not None
        self.stop()
        if died and isinstance(error, ComfyError):
            raise self._failure(str(error)) from error
        self.log.unlink(missing_ok=True)

    def start(self) -> None:
        HOME.mkdir(exist_ok=True)
        _sweep()
        self.base = self.kept or Path(tempfile.mkdtemp(prefix=f"server-{os.getpid()}-", dir=HOME))
        self.log = HOME / f"server-{os.getpid()}-{self.port}.log"
        try:
            self._furnish()
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    [*self.command, "--base-directory", str(self.base)],
                    cwd=self.tree,
                    env=os.environ | self.variables,
                    stdin=subprocess.PIPE,  # never written to: the server ends when it closes, see launch.py
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server, its children and its folder. Safe to call twice."""
        if self.process is not None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(self.process.pid, number)
                    self.process.wait(5)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process = None
        if self.kept is None:
            shutil.rmtree(self.base, ignore_errors=True)

    def _failure(self, what: str, lines: int = 30) -> ComfyError:
        """Keep the log, and show its end."""
        self.log = self.log.replace(HOME / "failed_server.log")
        tail = self.log.read_text(errors="replace").splitlines()[-lines:]
        return ComfyError("\n".join([what, f"The end of the server's log, {self.log}:", *tail]))

    def _furnish(self) -> None:
        for name in ("custom_nodes", "input", "output", "temp", "user", "models"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        for name, folder in self.custom_nodes.items():
            if not folder.is_dir():
                raise ComfyError(f"The node folder {folder} does not exist.")
            _link(self.base / "custom_nodes" / name, folder)
        for kind, files in self.models.items():
            (self.base / "models" / kind).mkdir(exist_ok=True)
            for file in files:
                if not file.is_file():
                    raise ComfyError(f"The model file {file} does not exist.")
                _link(self.base / "models" / kind / file.name, file)

    def _wait_until_ready(self) -> None:
        assert self.process is not None
        end = time.monotonic() + self.start_timeout
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise self._failure("ComfyUI stopped while starting.")
            try:
                self.get_json("/system_stats")
                return
            except ComfyError:
                time.sleep(0.2)
        raise self._failure(f"ComfyUI did not answer within {self.start_timeout:.0f} s.")


def _link(path: Path, target: Path) -> None:
    """Link `path` to `target`; an older link, in a base that was used before, is replaced."""
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _sweep() -> None:
    """Remove the temporary folders of processes that were killed before they could."""
    for base in HOME.glob("server-*-*"):
        try:
            os.kill(int(base.name.split("-")[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(base) if base.is_dir() else base.unlink()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
