"""Start ComfyUI's main.py: `python launch.py TREE [main.py's arguments]`. ComfyServer runs this.

It adds two features to a plain `python main.py`: the shim of lab/shim.py, and the server ends when its standard input
closes. The parent process holds the other end of that pipe, so the server never outlives it, even after a kill -9.
"""

import os
import runpy
import sys
import threading
from pathlib import Path

import shim  # type: ignore[import-not-found]  # beside this script; `lab` is not on a server's path

tree = sys.argv[1]
sys.argv[:] = [str(Path(tree, "main.py")), *sys.argv[2:]]
sys.path[0] = tree  # as with `python main.py`, instead of this folder


def _end_with_the_starter() -> None:
    os.read(0, 1)  # blocks until the pipe closes: nothing is ever written to it
    os._exit(0)


if __name__ == "__main__":
    shim.install()
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    runpy.run_path(sys.argv[0], run_name="__main__")
