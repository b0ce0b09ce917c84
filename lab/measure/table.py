"""The table: which rows there are, and what is stated of them beforehand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lab.demo import ENCODER
from lab.host import HOME
from lab.measure.changes import CHANGES
from lab.measure.peers import ReferenceOnly, TrainedLora
from lab.measure.rows import FULL, LESS, MORE, NO_LESS, NO_MORE, PLAIN, Expect, Plain, Row, WithEncoder, WithSubject
from lab.measure.tuned import Tuned

TRUE = "true pictures, through the autoencoder"
NO_MASK = "w_ref 3, no mask"
FORGIVEN = 0.02  # loss of prompt score that the method may cost, by the issue
DRIFTED = 0.1  # likeness that "a <class>" may gain by a tuning on one of its kind

WEIGHTS = (0.0, 1.0, 2.5, 3.0, 5.0, 10.0)
TUNING_STEPS = (100, 200, 400, 800)
STRENGTHS = (0.1, 0.2, 0.5)
WITHOUT_LAYOUT = HOME / "mini" / "cpu" / "encoder_without_layout" / "subject_encoder.safetensors"
"""For the ablation alone, and its row is there where it is: `python3 -m lab mini encoder --without-layout`."""
SCALES = ((1.0, 0.9), (1.5, 0.9), (2.0, 0.9), (3.0, 0.9), (1.5, 0.5), (3.0, 0.5), (1.5, 0.2), (3.0, 0.2))
SHIFTS = (
    (0.5, 20, 0),
    (0.5, 50, 0),
    (0.5, 0, 20),
    (0.5, 0, 50),
    (0.5, 50, 50),
    (0.5, 100, 100),
    (0.0, 100, 0),
    (0.0, 100, 100),
)
"""p_r, dt and dt'."""


HARD_ROWS = (TRUE, PLAIN, FULL, "w_r 1.5, p_r 0.5")


def table() -> list[Row]:
    """Every row, peers first."""
    return [
        *_peers(),
        *_weights(),
        *_encoder(),
        *_tuning(),
        *_guidance(),
        *_when_and_where(),
        *_captions(),
        *_robustness(),
    ]


def _peers() -> list[Row]:
    return [
        Row(TRUE, "Peers", Plain(), true=True, quick=True),
        Row(PLAIN, "Peers", Plain(), quick=True),
        Row("image-to-image 0.6", "Peers", Plain(), (Expect("leak", MORE), Expect("bleed", MORE)), denoise=0.6),
        Row("image-to-image 0.8", "Peers", Plain(), (Expect("leak", MORE), Expect("bleed", MORE)), denoise=0.8),
        Row("reference-only", "Peers", ReferenceOnly(), (Expect("bleed", MORE, FULL),), quick=True),
        Row("LoRA, 60 steps", "Peers", TrainedLora(), (Expect("identity", MORE),), slow=True),
    ]


def _weights() -> list[Row]:
    """More w_ref, more likeness until quality falls (4.4); no mask, the background bleeds (4.4)."""
    stated = {
        0.0: (),
        1.0: (Expect("colour", MORE),),
        2.5: (Expect("colour", MORE, "w_ref 1"),),
        3.0: (
            *(Expect(measure, MORE) for measure in ("identity", "patches", "colour", "detail")),
            Expect("prompt", NO_LESS, margin=FORGIVEN),
            Expect("bleed", NO_MORE, margin=FORGIVEN),
        ),
        5.0: (Expect("colour", MORE, "w_ref 2.5"),),
        10.0: (Expect("colour", MORE, "w_ref 2.5"), Expect("prompt", LESS, FULL)),
    }
    rows = [
        Row(f"w_ref {w:g}", "Weight and mask", WithSubject(w), stated[w], quick=w in (1.0, 3.0, 10.0)) for w in WEIGHTS
    ]
    unmasked = (Expect("bleed", MORE, FULL), Expect("leak", MORE, FULL))
    return [*rows, Row(NO_MASK, "Weight and mask", WithSubject(masked=False), unmasked, quick=True)]


def _encoder() -> list[Row]:
    """More beta, more likeness, up to 0.5; with self-subject attention above either alone (4.4)."""
    group, at = "Subject encoder", partial(_with_encoder, ENCODER)
    rows, before = [], PLAIN
    for strength in STRENGTHS:
        name = f"beta {strength:g}"
        stated = (Expect("colour", MORE, before), Expect("prompt", NO_LESS, margin=FORGIVEN))
        rows.append(Row(name, group, at(strength), stated))
        before = name
    both = tuple(Expect(measure, MORE, FULL) for measure in ("identity", "colour"))
    rows.append(Row("beta 0.2, w_ref 3", group, at(0.2, 3.0), both))
    rows.append(Row("beta 1", group, at(1.0)))  # as it was trained
    if WITHOUT_LAYOUT.exists():
        leaks = (Expect("leak", MORE, "beta 1"),)
        rows.append(Row("beta 1, trained without ControlNet", group, _with_encoder(WITHOUT_LAYOUT, 1.0), leaks))
    return rows


def _with_encoder(path: Path, strength: float, weight: float = 0.0) -> WithEncoder:
    return WithEncoder(path, _digest(path), strength, weight)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else ""


def _tuning() -> list[Row]:
    """More steps, more likeness (appendix C), quicker than plain DreamBooth; the class stays what it was.

    Minutes a subject: only when asked.
    """
    group, few, usual = "Subject tuning", TUNING_STEPS[0], TUNING_STEPS[2]
    rows, before = [], tuple(Expect(measure, MORE) for measure in ("identity", "colour"))
    for steps in TUNING_STEPS:
        name = f"tuned, {steps} steps"
        rows.append(Row(name, group, Tuned(steps), before, slow=True))
        before = (Expect("identity", MORE, name), Expect("prompt", NO_LESS, margin=FORGIVEN))
    seen = Tuned(few, encoder=ENCODER, digest=_digest(ENCODER))
    rows.append(Row(f"tuned, {few} steps, with the encoder", group, seen, slow=True))
    rows.append(Row(f"tuned, {usual} steps, rate 0.001", group, Tuned(usual, rate=1e-3), slow=True))
    both = (Expect("identity", MORE, f"tuned, {usual} steps"), Expect("identity", MORE, FULL))
    rows.append(Row(f"tuned, {usual} steps, w_ref 3", group, Tuned(usual, 3.0), both, slow=True))
    for steps in (few, usual):
        slower = tuple(Expect(m, NO_MORE, f"tuned, {steps} steps", FORGIVEN) for m in ("identity", "prompt", "variety"))
        rows.append(Row(f"DreamBooth, {steps} steps", group, Tuned(steps, regular_from="class"), slower, slow=True))
    kept = (
        *(Expect(measure, NO_LESS, margin=FORGIVEN) for measure in ("concept", "scene")),
        Expect("colour", NO_MORE, margin=DRIFTED),
    )
    rows.append(Row(f"half and half, {usual} steps", group, Tuned(usual, regular_from="both"), slow=True))
    for name, source in (("tuned", "subject"), ("DreamBooth", "class"), ("half and half", "both")):
        make = Tuned(usual, regular_from=source, named=False)
        rows.append(Row(f"its class, {name} {usual} steps", group, make, kept, slow=True))
    return rows


def guided(scale: float, probability: float, dt: float = 0, dt_uncond: float = 0) -> str:
    return f"w_r {scale:g}, p_r {probability:g}" + (f", dt {dt:g}, dt' {dt_uncond:g}" if dt or dt_uncond else "")


def _guidance() -> list[Row]:
    """A stronger pull, more likeness and less of the text."""
    rows = []
    for scale, probability in SCALES:
        stated = (Expect("colour", MORE, FULL), Expect("prompt", LESS, FULL)) if probability > 0.5 else ()
        name, make = guided(scale, probability), WithSubject(guidance=(scale, probability, 0, 0))
        rows.append(Row(name, "Reference guidance, on w_ref 3", make, stated, quick=(scale, probability) == (1.5, 0.5)))
    for probability, dt, dt_uncond in SHIFTS:
        make = WithSubject(guidance=(1.5, probability, dt, dt_uncond))
        rows.append(Row(guided(1.5, probability, dt, dt_uncond), "Reference guidance, on w_ref 3", make))
    return rows


def _when_and_where() -> list[Row]:
    """Reading in a part of the steps or blocks carries less than in all."""
    group = "When and where, on w_ref 3"
    less = (Expect("colour", LESS, FULL),)
    spans = [(0.0, 0.5), (0.5, 1.0), (0.0, 0.8), (0.2, 1.0)]
    rows = [Row(f"from {a:g} to {b:g}", group, WithSubject(start=a, end=b), less) for a, b in spans]
    blocks = [("input",), ("middle",), ("output",), ("middle", "output")]
    return rows + [Row(f"{' and '.join(names)} blocks", group, WithSubject(blocks=names), less) for names in blocks]


def _captions() -> list[Row]:
    group = "Caption of the reference, on w_ref 3 (there: concise)"
    return [
        Row("detailed caption", group, WithSubject(caption="detailed")),
        Row("empty caption", group, WithSubject(caption="empty"), (Expect("identity", LESS, FULL),)),
        Row("no caption", group, WithSubject(caption="none"), (Expect("identity", LESS, FULL),)),
    ]


def _robustness() -> list[Row]:
    """A reference that is a little worse costs no more than a little."""
    stated = (Expect("identity", NO_LESS, FULL, margin=0.1),)
    return [
        Row(f"reference {name}", "Another reference picture, on w_ref 3", WithSubject(change=name), stated)
        for name in CHANGES
    ]


def chosen(names: Sequence[str] | None, quick: bool) -> list[Row]:
    """The rows named, or whose name holds one of `names`; without names the quick ones, or all but the slow ones.

    Raises ValueError for a name that no row holds.
    """
    rows = table()
    if not names:
        return [row for row in rows if (row.quick if quick else not row.slow)]
    for name in names:
        if not any(name in row.name for row in rows):
            raise ValueError(f"no row's name holds {name!r}; there are: {'; '.join(row.name for row in rows)}.")
    exact = {row.name for row in rows} & set(names)
    parts = set(names) - exact
    return [row for row in rows if row.name in exact or any(part in row.name for part in parts)]
