"""What a table leaves behind: figures as JSON, one HTML page that needs no network, and a small labelled sheet."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from lab.measure.bench import Bench, Result, measures, values
from lab.measure.rows import PLAIN
from lab.measure.statistics import Interval, interval
from lab.measure.teach import Confusion, right
from lab.measure.verdicts import ABSENT, Verdict, difference, verdicts

HOW_TO_READ = (
    "kept (and its groups shapes, colours, pattern, marks, letters): share of the individual's attributes that the "
    "reader finds, chance taken out: 0 another individual of its kind, 1 true pictures of it. text: share of what the "
    "text asked for that is there: kind, scene, count, pose, colour (where it is the individual's own). recolour: "
    "another colour than its own was asked for, and is there; in no mean. bleed: share of the background that looks "
    "like the reference's, or white. leak: 1 where the subject stands exactly as in the reference, 0 no nearer than by "
    "chance. size: its side, 1 as in true pictures. sharpness: 1 as in true pictures. outside: EfficientNet's opinion, "
    "0 others of its kind, 1 true pictures of it. Intervals: 95 %, Student's t over individuals."
)
TOLD = ("shapes", "colours", "pattern", "marks", "letters", "text", "bleed", "leak", "size", "sharpness", "outside")
SHEET_SIDE, SHEET_LABEL, SHEET_HEAD, COLUMNS = 96, 150, 18, 8
STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.45 sans-serif;max-width:1500px;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:3px 7px;text-align:right;"
    "border-bottom:1px solid #8884;white-space:nowrap}td:first-child,th:first-child,.said td:nth-child(2),"
    ".said th:nth-child(2){text-align:left}small{opacity:.6}img{display:block;max-width:100%}"
    "pre{white-space:pre-wrap;background:#8882;padding:.7em 1em}h2{margin-top:2em}"
    "[data-said=holds]{color:#2a8a4a}[data-said='does not hold']{color:#c33}"
)


def figures(bench: Bench, results: Sequence[Result], command: str) -> dict[str, Any]:
    """All that the table says, without pictures."""
    plain = next((result for result in results if result.row.name == PLAIN), None)
    return {
        "command": command,
        "weights": bench.studio.weights,
        "seed": bench.settings.seed,
        "sampling": vars(bench.settings.sampling),
        "how to read": HOW_TO_READ,
        "reader": reader_figures(bench.taught.confusion),
        "individuals": [str(case) for case in bench.cases],
        "rows": [_row(result, plain) for result in results],
        "stated": [_verdict(v) for v in verdicts({r.row.name: r for r in results}) if v.said != ABSENT],
    }


def reader_figures(confusion: Confusion) -> dict[str, Any]:
    """How often the reader is right on true pictures of held-out individuals."""
    found = {question: right(confusion, question) for question in confusion}
    worst = min(found, key=lambda question: found[question])
    letters = [share for question, share in found.items() if "letter" in question]
    of_kinds = [share for question, share in found.items() if ", " in question and not question.endswith(", pose")]
    return {
        "attributes": round(sum(of_kinds) / len(of_kinds), 4),
        "letters": round(sum(letters) / len(letters), 4) if letters else None,
        "worst": {worst: round(found[worst], 4)},
        "right": {question: round(share, 4) for question, share in found.items()},
    }


def _row(result: Result, plain: Result | None) -> dict[str, Any]:
    """Means, with their intervals and the paired differences from plain text beside them."""
    means, intervals, gaps = {}, {}, {}
    for name in measures([result]):
        of = values(result, name)
        found = interval(list(of.values()), list(of))
        means[name], intervals[name] = round(found.mean, 4), _ends(found)
        if plain is not None and result is not plain and values(plain, name):
            gap = difference(result, plain, name)
            gaps[name] = [round(gap.mean, 4), *_ends(gap)]
    told = {"row": result.row.name, "group": result.row.group, "individuals": len(result.cells)}
    return told | means | {"intervals": intervals, "against plain text": gaps, "seconds": round(result.seconds, 1)}


def _ends(x: Interval) -> list[float | None]:
    """Low and high; None for what a single individual cannot tell."""
    return [None if math.isnan(value) else round(value, 4) for value in (x.low, x.high)]


def _verdict(v: Verdict) -> dict[str, Any]:
    assert v.difference is not None
    stated = f"{v.stated.measure} {v.stated.relation} than in {v.stated.than}"
    stated += f", but for {v.stated.margin:g}" if v.stated.margin else ""
    gap = [round(v.difference.mean, 4), *_ends(v.difference)]
    return {"row": v.row, "stated": stated, "difference": gap, "said": v.said}


# --- the page --------------------------------------------------------------------------------------------------------


def page(results: Sequence[Result], found: Mapping[str, Any]) -> str:
    """One HTML file with its pictures inside."""
    reader = found["reader"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>DreamTuner: measure</title>",
        f"<style>{STYLE}</style>", "<h1>DreamTuner: the proving ground</h1>", f"<p>{HOW_TO_READ}</p>",
        f"<p>{len(found['individuals'])} individuals. Weights {found['weights']}, seed {found['seed']}. The reader is "
        f"right in {reader['attributes']:.1%} of the attributes of true pictures."
        f"</p><h2>To repeat it</h2><pre>{html.escape(found['command'])}</pre>",
    ]  # fmt: skip
    for group in dict.fromkeys(row["group"] for row in found["rows"]):
        parts.append(f"<h2>{group}</h2>")
        parts.append(_table([row for row in found["rows"] if row["group"] == group], measures(results)))
    parts.append("<h2>What was stated beforehand</h2>" + _stated(found["stated"]))
    if "gate" in found:
        parts.append("<h2>Score Pictures</h2>" + _proven(found["gate"]))
    for result in results:
        parts.append(f"<h3>{html.escape(result.row.name)}</h3>{_picture(_stacked(result))}")
    return "\n".join(parts) + "\n"


def _table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    head = "".join(f"<th>{name}" for name in ("", "n", *names))
    body = "".join(
        f"<tr><td>{html.escape(row['row'])}<td>{row['individuals']}" + "".join(f"<td>{_cell(row, n)}" for n in names)
        for row in rows
    )
    return f"<table><tr>{head}{body}</table>"


def _cell(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return ""
    low, high = row["intervals"][name]
    between = "" if low is None else f"<br><small>{low:.2f} to {high:.2f}</small>"
    return f"{row[name]:.2f}{between}"


def _stated(told: Sequence[Mapping[str, Any]]) -> str:
    body = "".join(
        f"<tr><td>{html.escape(v['row'])}<td>{html.escape(v['stated'])}<td>{v['difference'][0]:+.3f}<td>"
        f"<b data-said='{v['said']}'>{v['said']}</b>"
        for v in told
    )
    return f"<table class=said><tr><th>row<th>stated<th>difference<th>{body}</table>"


def _proven(gate: Mapping[str, Any]) -> str:
    asked = gate["asked"]
    body = "".join(
        f"<tr><td>{name}<td>{value:.2f}<td>{f'{asked[name]:g}' if name in asked else ''}"
        for name, value in gate["figures"].items()
    )
    many = len(gate["individuals"])
    return f"<table><tr><th>by the checkpoint's own keys, {many} individuals<th>found<th>asked{body}</table>"


def _picture(image: Image.Image) -> str:
    data = io.BytesIO()
    image.convert("RGB").save(data, "WEBP", quality=80)
    return f"<img src='data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}'>"


def _stacked(result: Result, most: int = 12) -> Image.Image:
    """Strips of the first individuals, two in a line."""
    strips = [Image.open(path).convert("RGB") for path in result.sheet[:most]]
    width, height = strips[0].size
    sheet = Image.new("RGB", (2 * width, -(-len(strips) // 2) * height))
    for i, strip in enumerate(strips):
        sheet.paste(strip, (i % 2 * width, i // 2 * height))
    return sheet


def markdown(found: Mapping[str, Any], names: Sequence[str] = TOLD) -> str:
    """The rows as a table for a README: means, and the interval of what was kept."""
    lines = [f"| row | n | kept | {' | '.join(names)} |", "| --- " * (len(names) + 3) + "|"]
    for row in found["rows"]:
        low, high = row["intervals"]["kept"]
        kept = f"{row['kept']:.2f}" + ("" if low is None else f" ({low:.2f} to {high:.2f})")
        cells = [f"{row[name]:.2f}" if name in row else "-" for name in names]
        lines.append(f"| {row['row']} | {row['individuals']} | {kept} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


# --- the sheet -------------------------------------------------------------------------------------------------------


def sheet(bench: Bench, results: Sequence[Result], names: Sequence[str], ask: int = 0) -> Image.Image:
    """A line for each row named, a column for each of the first individuals; the references above them."""
    cases = bench.cases[:COLUMNS]
    lines: list[tuple[str, list[Image.Image]]] = [
        ("reference", [Image.fromarray(case.reference.pixels) for case in cases])
    ]
    for result in sorted((r for r in results if r.row.name in names), key=lambda r: names.index(r.row.name)):
        strips = [Image.open(path) for path in result.sheet[:COLUMNS]]
        side = bench.settings.sampling.side
        pictures = [strip.crop((ask * side, 0, (ask + 1) * side, side)) for strip in strips]
        kept = sum(values(result, "kept").values()) / len(result.cells)
        lines.append((f"{result.row.name}\nkept {kept:.2f}", pictures))
    size = (SHEET_LABEL + COLUMNS * SHEET_SIDE, SHEET_HEAD + len(lines) * SHEET_SIDE)
    made, font = Image.new("RGB", size, "white"), ImageFont.load_default(12)
    draw = ImageDraw.Draw(made)
    for column, case in enumerate(cases):
        at = (SHEET_LABEL + column * SHEET_SIDE + 3, 2)
        draw.text(at, case.asks[ask].scene.removeprefix("a "), "black", ImageFont.load_default(10))
    for number, (label, pictures) in enumerate(lines):
        top = SHEET_HEAD + number * SHEET_SIDE
        draw.multiline_text((6, top + 30), label.replace(" + ", "\n+ ").replace(", ", "\n"), "black", font)
        for column, picture in enumerate(pictures):
            small = picture.convert("RGB").resize((SHEET_SIDE, SHEET_SIDE), Image.Resampling.LANCZOS)
            made.paste(small, (SHEET_LABEL + column * SHEET_SIDE, top))
    return made
