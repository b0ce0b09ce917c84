"""What a table leaves behind: figures as JSON, and one HTML page that needs no network."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lab.measure.bench import Bench, Result, measures
from lab.measure.statistics import Interval, interval
from lab.measure.subjects import HARD, USUAL
from lab.measure.verdicts import ABSENT, Lift, lift, verdicts

HARD_NOTE = (
    "Hard case: concepts that no picture of any training showed, in any drawing. What the base makes of their words is "
    "chance, so the text can ask for the scene alone, and no judge names the concept."
)
HOW_TO_READ = (
    "identity, patches, colour, edges, detail: 0 is another concept, 1 the same drawing placed anew, both on true "
    "pictures. concept, scene: share of pictures in which the judge names what was asked; prompt: their mean. bleed: "
    "share of the background that looks like the reference's own. leak: 1 where the subject stands exactly where it "
    "stood in the reference, 0 where it stands no nearer to that than by chance. variety: 1 where a subject's pictures "
    "place it as differently as true ones by chance, 0 where always in one place. Intervals: 95 %, Student's t over "
    "the drawings' means. Frechet: distance on EfficientNet-Lite0 features, 16 axes, to true pictures; no FID."
)
STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.45 sans-serif;max-width:1400px;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:3px 9px;text-align:right;"
    "border-bottom:1px solid #8884;white-space:nowrap}td:first-child,th:first-child,.said td:nth-child(2),"
    ".said th:nth-child(2){text-align:left}.rows th{min-width:5em}.rows th:first-child{min-width:17em}"
    "small{opacity:.6}img{display:block;max-width:100%}pre{white-space:pre-wrap;background:#8882;padding:.7em 1em}"
    "h2{margin-top:2em}[data-said=holds]{color:#2a8a4a}[data-said='does not hold']{color:#c33}"
)


def figures(bench: Bench, results: Sequence[Result], command: str) -> dict[str, Any]:
    """All that the table says, without pictures."""
    settings = bench.settings
    cases = {case: {r.row.name: r for r in results if r.case == case} for case in (USUAL, HARD)}
    found: dict[str, Any] = {
        "command": command,
        "weights": bench.studio.weights,
        "scenes": list(settings.scenes),
        "seed": settings.seed,
        "sampling": vars(settings.sampling),
        "how to read": HOW_TO_READ,
        "cases": {},
    }
    for case, rows in cases.items():
        if not rows:
            continue
        found["cases"][case] = {
            "subjects": [str(look) for look in bench.looks[case]],
            "calibration": bench.likeness(case).calibration(),
            "rows": [_figures_of(result) for result in rows.values()],
            "stated": [_verdict(v) for v in verdicts(rows) if v.said != ABSENT],
        }
        if case == HARD:
            found["cases"][case]["note"] = HARD_NOTE
        reached = [lift(rows, measure=name) for name in ("identity", "colour")]
        found["cases"][case]["lift of w_ref 3"] = [_lift_of(x) for x in reached if x]
    return found


def _figures_of(result: Result) -> dict[str, Any]:
    groups = [cell["group"] for cell in result.cells]
    told: dict[str, Any] = {"name": result.row.name, "group": result.row.group, "pictures": len(result.cells)}
    for name in measures([result]):
        told[name] = _interval(interval([cell[name] for cell in result.cells], groups))
    return told | {
        "frechet": result.frechet and round(result.frechet, 4),
        "seconds": round(result.seconds, 1),
    }


def _interval(x: Interval) -> list[float | None]:
    """Mean, low and high; None for what a single drawing cannot tell."""
    return [None if math.isnan(value) else round(value, 4) for value in (x.mean, x.low, x.high)]


def _verdict(v: Any) -> dict[str, Any]:
    stated = f"{v.stated.measure} {v.stated.relation} than in {v.stated.than}"
    if v.stated.margin:
        stated += f", but for {v.stated.margin:g}"
    return {"row": v.row, "stated": stated, "difference": _interval(v.difference), "said": v.said}


def _lift_of(x: Lift) -> dict[str, Any]:
    return {
        "measure": x.measure,
        "plain text": round(x.plain, 4),
        "w_ref 3": round(x.row, 4),
        "share of the gap": round(x.share, 4),
        "through the autoencoder": None if math.isnan(x.reachable) else round(x.reachable, 4),
        "prompt": _interval(x.prompt),
    }


# --- the page --------------------------------------------------------------------------------------------------------


def page(bench: Bench, results: Sequence[Result], found: Mapping[str, Any]) -> str:
    """One HTML file with its pictures inside."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>DreamTuner: measure</title>",
        f"<style>{STYLE}</style>", "<h1>DreamTuner: the proving ground</h1>", f"<p>{HOW_TO_READ}</p>",
        f"<p>Scenes: {', '.join(found['scenes'])}. Weights {found['weights']}, seed {found['seed']}.</p>",
        f"<h2>To repeat it</h2><pre>{html.escape(found['command'])}</pre>",
    ]  # fmt: skip
    for case, told in found["cases"].items():
        parts.append(f"<h2>{case} case</h2><p>{told.get('note', '')} Subjects: {', '.join(told['subjects'])}.</p>")
        parts.append(_calibration(told["calibration"]))
        of_case = [result for result in results if result.case == case]
        for group in dict.fromkeys(result.row.group for result in of_case):
            parts.append(f"<h3>{group}</h3>")
            parts.append(_table([row for row in told["rows"] if row["group"] == group]))
        parts.append("<h3>What was stated beforehand</h3>" + _stated(told["stated"]))
        parts += [_lift(x) for x in told["lift of w_ref 3"]]
        parts.append("<h3>Sheets</h3><p>A column for each subject, a row for each scene.</p>")
        parts.append(f"<h4>references</h4>{_picture(references(bench, case))}")
        parts += [f"<h4>{html.escape(r.row.name)}</h4>{_picture(Image.open(r.sheet))}" for r in of_case]
    return "\n".join(parts) + "\n"


def references(bench: Bench, case: str) -> Image.Image:
    """What each subject's reference looks like, side by side."""
    side = bench.settings.sampling.side
    strip = Image.new("RGB", (side * len(bench.looks[case]), side))
    for i, look in enumerate(bench.looks[case]):
        pixels = (bench.reference(look).picture[0] * 255).round().byte().numpy()
        strip.paste(Image.fromarray(pixels).resize((side, side)), (i * side, 0))
    return strip


def docs_sheet(bench: Bench, results: Sequence[Result], path: Path, names: Sequence[str]) -> None:
    """A small picture of the rows named, under their references: two scenes of each."""
    side, rows = bench.settings.sampling.side, [r for r in results if r.case == USUAL and r.row.name in names]
    strips = [references(bench, USUAL)]
    strips += [Image.open(r.sheet).convert("RGB").crop((0, 0, strips[0].width, 2 * side)) for r in rows]
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)))
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=80)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = [n for n in rows[0] if isinstance(rows[0][n], list)]
    head = "".join(f"<th>{name}" for name in ("", *names, "Frechet"))
    body = "".join(
        f"<tr><td>{html.escape(row['name'])}" + "".join(f"<td>{_cell(row.get(n))}" for n in names)
        + f"<td>{_number(row['frechet'], 3)}" for row in rows
    )  # fmt: skip
    return f"<table class=rows><tr>{head}{body}</table>"


def _cell(x: Sequence[float | None] | None) -> str:
    if x is None:
        return ""
    mean, low, high = (_number(value) for value in x)
    return f"{mean}<br><small>{low} to {high}</small>"


def _number(x: float | None, places: int = 2, sign: str = "") -> str:
    return "?" if x is None else f"{round(x, places) + 0.0:{sign}.{places}f}"  # no -0.00


def _calibration(told: Mapping[str, Mapping[str, float]]) -> str:
    kinds = list(next(iter(told.values())))
    head = "".join(f"<th>{name}" for name in ("true pictures of", *told))
    body = "".join(f"<tr><td>{kind}" + "".join(f"<td>{of[kind]:.2f}" for of in told.values()) for kind in kinds)
    return f"<table><tr>{head}{body}</table>"


def _stated(told: Sequence[Mapping[str, Any]]) -> str:
    body = "".join(
        f"<tr><td>{html.escape(v['row'])}<td>{html.escape(v['stated'])}<td>{_cell(v['difference'])}<td>"
        f"<b data-said='{v['said']}'>{v['said']}</b>"
        for v in told
    )
    return f"<table class=said><tr><th>row<th>stated<th>difference<th>{body}</table>"


def _lift(x: Mapping[str, Any]) -> str:
    prompt = "{} [{}, {}]".format(*(_number(value, 3, "+") for value in x["prompt"]))
    true = x["through the autoencoder"]
    reach = "" if true is None else f"The true pictures read {true:.2f} once they went through the base's autoencoder."
    return (
        f"<p>w_ref 3 covers {x['share of the gap']:.0%} of the gap in {x['measure']} between plain text and the same "
        f"drawing placed anew ({x['plain text']:.2f} to {x['w_ref 3']:.2f}; half is asked for), at a change of "
        f"{prompt} in prompt score (-0.02 is allowed). {reach}</p>"
    )


def _picture(image: Image.Image) -> str:
    data = io.BytesIO()
    image.convert("RGB").save(data, "WEBP", quality=85)
    return f"<img src='data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}'>"
