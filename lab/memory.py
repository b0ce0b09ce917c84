"""The memory of a step of Subject Tuning, counted and not measured: SD1.5 at 512 pixels and SDXL at 1024, or one case.

It counts the node's own networks at their real sizes, as on a GPU: the base in fp16, what is trained in fp32. CUDA's
own memory (about half a gigabyte) is not counted. See `lab/tuning_memory.py`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

SIDES = {"sd15": 512, "sdxl": 1024}
OTHERS: tuple[dict, ...] = (  # besides the node's defaults
    {},
    {"text_encoder": False},
    {"rank": 128},
    {"checkpointing": False},
    {"precision": "fp32"},
    {"method": "full"},
)


def main(argv: Sequence[str]) -> int:
    options = _options(argv)
    from lab.inside import import_host, import_pack

    import_host()
    import_pack()
    from lab.tuning_memory import Case, counted

    if options.model:
        side, text = options.side or SIDES[options.model], not options.no_text_encoder
        ways = (options.method, options.rank, text, not options.no_checkpointing, options.precision)
        cases = [Case(options.model, side, *ways)]
    else:
        cases = [Case(model, side, **other) for model, side in SIDES.items() for other in OTHERS]
    figures = []
    for case in cases:
        count = counted(case)
        print(f"{case}: {count}", flush=True)
        figures.append({**vars(case), **vars(count)})
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m lab memory", description=__doc__)
    parser.add_argument("model", nargs="?", choices=tuple(SIDES), help="only this model, with the options below")
    parser.add_argument("--side", type=int, help="of the pictures, in pixels")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--no-text-encoder", action="store_true")
    parser.add_argument("--no-checkpointing", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, in bytes, to this file")
    return parser.parse_args(argv)
