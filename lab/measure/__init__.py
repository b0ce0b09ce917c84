"""The proving ground: what is kept of individuals that no training showed, and what is obeyed of the text.

Every row is a way of making pictures, and draws the same individuals, texts and seeds with the mini base, through the
host. Writes figures (JSON) and one HTML page with sheets. A stopped run goes on where it was: the figures of each
individual of each row are kept under .lab/measure.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.demo import CHECKPOINT
from lab.host import HOME, say

if TYPE_CHECKING:
    from lab.measure.bench import Bench, Result

QUICK = 4  # individuals


def main(argv: Sequence[str]) -> int:
    options = _options(argv)
    if not options.weights.exists():
        say(f"{options.weights} is missing: `python3 -m lab mini` makes it.")
        return 1
    one_thread()
    import torch

    try:
        with torch.inference_mode():
            _measure(options, "python3 -m lab measure " + shlex.join(argv))
    except (ValueError, OSError) as error:
        say(f"measure stopped: {error}")
        return 1
    return 0


def one_thread() -> None:
    """Threads that wait for each other stall as soon as anything else runs on a small machine."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m lab measure", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the few rows that tell most, on fewer individuals")
    parser.add_argument("--individuals", type=int, help="how many (56; with --quick 4)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    parser.add_argument("--rows", nargs="*", help="only rows of these names, or with these in their name")
    parser.add_argument(
        "--gate", action="store_true", help="also the proof of Score Pictures: its order, by the reader"
    )
    parser.add_argument("--list", action="store_true", help="print the rows and what is stated of them, and stop")
    parser.add_argument("--weights", type=Path, default=CHECKPOINT, help="the base's checkpoint")
    parser.add_argument("--clip", type=Path, metavar="FOLDER", help="a CLIP model for transformers: CLIP-T and CLIP-I")
    parser.add_argument("--dino", type=Path, metavar="FOLDER", help="a DINO model for transformers: DINO-I")
    parser.add_argument("--out", type=Path, default=HOME / "measure", help="folder of measure.json and measure.html")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write measure.json there")
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="also write what docs/measure shows")
    return parser.parse_args(argv)


def _measure(options: argparse.Namespace, command: str) -> None:
    from lab.measure.bench import Bench, Settings, run_rows
    from lab.measure.gate import prove
    from lab.measure.local_models import LocalModels
    from lab.measure.report import figures, page
    from lab.measure.rows import ATTENTION
    from lab.measure.studio import Sampling
    from lab.measure.table import chosen
    from lab.measure.verdicts import ABSENT, verdicts
    from lab.mini.checkpoint import write_whole

    rows = chosen(options.rows, options.quick)
    if options.list:
        for row in rows:
            print(row.name, *(f"  {e.measure} {e.relation} than in {e.than}" for e in row.expects), sep="\n")
        return
    many = options.individuals or (QUICK if options.quick else Settings().individuals)
    others = LocalModels(options.clip, options.dino) if options.clip or options.dino else None
    settings = Settings(many, options.seed, Sampling(steps=options.steps))
    bench = Bench(options.weights, settings, others)
    results = run_rows(bench, rows)
    for verdict in verdicts({result.row.name: result for result in results}):
        if verdict.said != ABSENT:
            say(str(verdict))
    found = figures(bench, results, command)
    if options.gate:
        found["gate"] = prove(bench, chosen([ATTENTION], False)[0])
    told = options.json or options.out / "measure.json"
    for folder in (options.out, told.parent):
        folder.mkdir(parents=True, exist_ok=True)
    write_whole(told, lambda part: part.write_text(json.dumps(found, indent=1) + "\n"))
    write_whole(options.out / "measure.html", lambda part: part.write_text(page(results, found)))
    if options.docs:
        _docs(options.docs, bench, results, found)
    print((options.out / "measure.html").resolve())


def _docs(folder: Path, bench: Bench, results: Sequence[Result], found: dict[str, Any]) -> None:
    """The figures, the table for the README, the reader's confusion and the sheet."""
    from lab.measure.report import markdown, sheet
    from lab.measure.table import SHOWN

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "measure.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "reader.json").write_text(json.dumps(bench.taught.confusion) + "\n")
    (folder / "table.md").write_text(markdown(found))
    sheet(bench, results, SHOWN).save(folder / "sheet.webp", quality=80)
