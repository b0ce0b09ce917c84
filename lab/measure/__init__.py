"""The proving ground: likeness and text of pictures of held-out subjects, one row a way of making them.

Every row draws the same subjects, scenes and seeds with the mini base, through the host. Writes figures (JSON) and one
HTML page with sheets. A stopped run goes on where it was: each row's result is kept under .lab/measure.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from lab.demo import CHECKPOINT
from lab.host import HOME, say


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
    parser.add_argument("--quick", action="store_true", help="the few rows that tell most, on fewer subjects")
    parser.add_argument("--subjects", type=int, help="held-out drawings of known concepts (10; with --quick 6)")
    parser.add_argument("--hard", type=int, help="drawings of concepts that no training showed (10; with --quick none)")
    parser.add_argument("--scenes", nargs="+", help="what the text asks for (grass, a night sky, snow)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    parser.add_argument("--rows", nargs="*", help="only rows of these names, or with these in their name")
    parser.add_argument("--list", action="store_true", help="print the rows and what is stated of them, and stop")
    parser.add_argument("--weights", type=Path, default=CHECKPOINT, help="the base's checkpoint")
    parser.add_argument("--clip", type=Path, metavar="FOLDER", help="a CLIP model for transformers: CLIP-T and CLIP-I")
    parser.add_argument("--dino", type=Path, metavar="FOLDER", help="a DINO model for transformers: DINO-I")
    parser.add_argument("--out", type=Path, default=HOME / "measure", help="folder of measure.json and measure.html")
    parser.add_argument("--sheet", type=Path, help="also write a small sheet of the main rows")
    return parser.parse_args(argv)


def _measure(options: argparse.Namespace, command: str) -> None:
    from lab.measure.bench import Bench, Settings, run_rows
    from lab.measure.local_models import LocalModels
    from lab.measure.report import docs_sheet, figures, page
    from lab.measure.rows import FULL, PLAIN
    from lab.measure.studio import Sampling
    from lab.measure.subjects import HARD, USUAL
    from lab.measure.table import HARD_ROWS, NO_MASK, chosen, guided
    from lab.measure.verdicts import ABSENT, verdicts
    from lab.mini.checkpoint import write_whole

    rows = chosen(options.rows, options.quick)
    if options.list:
        for row in rows:
            print(row.name, *(f"  {e.measure} {e.relation} than in {e.than}" for e in row.expects), sep="\n")
        return
    default = Settings()
    usual = options.subjects if options.subjects is not None else 6 if options.quick else default.usual
    hard = options.hard if options.hard is not None else 0 if options.quick else default.hard
    settings = Settings(
        usual, hard, tuple(options.scenes or default.scenes), options.seed, Sampling(steps=options.steps)
    )
    others = LocalModels(options.clip, options.dino) if options.clip or options.dino else None
    bench = Bench(options.weights, settings, others)
    asked = [(row, USUAL) for row in rows if usual]
    asked += [(row, HARD) for row in rows if hard and row.name in HARD_ROWS]
    results = run_rows(bench, asked)
    for case in (USUAL, HARD):
        for verdict in verdicts({r.row.name: r for r in results if r.case == case}):
            if verdict.said != ABSENT:
                say(f"{case}: {verdict}")
    found = figures(bench, results, command)
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(options.out / "measure.json", lambda part: part.write_text(json.dumps(found, indent=1) + "\n"))
    write_whole(options.out / "measure.html", lambda part: part.write_text(page(bench, results, found)))
    if options.sheet:
        docs_sheet(bench, results, options.sheet, [PLAIN, "reference-only", NO_MASK, FULL, guided(1.5, 0.5)])
    print((options.out / "measure.html").resolve())
