"""The table: which rows there are, the ones that tell most first, and what is stated of them beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from lab.host import HOME
from lab.measure.changes import CHANGES
from lab.measure.peers import ReferenceOnly, TrainedLora
from lab.measure.rows import (
    ALL,
    ATTENTION,
    CHANCE,
    LESS,
    MORE,
    NO_LESS,
    NO_MORE,
    OTHER,
    PLAIN,
    SAME,
    TRUE,
    TUNED,
    Expect,
    Guided,
    Plain,
    Row,
    WithSubject,
)  # fmt: skip
from lab.measure.tuned import Tuned

WEIGHT, NEGATIVE = 1.0, 0.0
"""The defaults of Apply Self-Subject Attention; chosen by this table."""
GUIDANCE = Guided(1.5, 0.2)
BETA = 0.2
FORGIVEN, FORGIVEN_TUNED = 0.02, 0.05  # of the text, by the issue
SWEEP, SHARES = (1.0, 2.0, 3.0), (0.0, 0.25, 0.5, 1.0)
SHIFTS = ((0, 100), (0, 300), (0, 1000), (50, 0), (100, 0), (50, 300))  # dt, dt'
STRENGTHS = (0.1, 0.2, 0.5)
SHOWN = (TRUE, PLAIN, "reference-only, bare", "ACN, fidelity 1, cut-out", ATTENTION, ALL, TUNED)  # in the sheet
FEW, SLOW = 12, 3  # individuals, in rows that matter less and in slow ones
WITHOUT_LAYOUT = HOME / "mini" / "encoder_without_layout" / "subject_encoder.safetensors"
"""For the ablation alone, and its row is there where it is: `python3 -m lab mini encoder --without-layout`."""


def ours(**settings: object) -> WithSubject:
    """Self-subject attention at the defaults, but for what is given."""
    return WithSubject(**({"weight": WEIGHT, "negative": NEGATIVE} | settings))  # type: ignore[arg-type]


def table() -> list[Row]:
    """Every row."""
    return [*_main(), *_peers(), *_sweep(), *_guidance(), *_encoder(), *_tuning(), *_where(), *_references()]


def _main() -> list[Row]:
    group = "Chapter by chapter"
    more = (Expect("kept", MORE), Expect("text", NO_LESS, margin=FORGIVEN))
    whole = ours(encoder=BETA, guidance=GUIDANCE)
    return [
        Row(TRUE, group, Plain(), true=SAME, quick=True),
        Row(CHANCE, group, Plain(), true=OTHER, quick=True),
        Row(PLAIN, group, Plain(), quick=True),
        Row(ATTENTION, group, ours(), more, quick=True),
        Row(ALL, group, whole, (*more, Expect("kept", MORE, ATTENTION)), quick=True),
        Row("S-S-A + guidance", group, ours(guidance=GUIDANCE), (Expect("kept", MORE, ATTENTION),), most=FEW),
        Row("S-S-A + encoder", group, ours(encoder=BETA), (Expect("kept", MORE, ATTENTION),)),
        Row("S-S-A, no mask", group, ours(masked=False), (Expect("bleed", MORE, ATTENTION),), most=FEW, quick=True),
    ]


def _peers() -> list[Row]:
    """Each with the bare reference, and with our own cut-out on white."""
    group, behind = "Peers", (Expect("kept", LESS, ATTENTION), Expect("text", NO_MORE, ATTENTION, FORGIVEN))
    rows = []
    for name, cut_out in (("bare", False), ("cut-out", True)):
        peers = {"reference-only": ReferenceOnly(cut_out)}
        peers |= {f"ACN, fidelity {f:g}": ReferenceOnly(cut_out, f, anew=True) for f in (0.5, 1.0)}
        rows += [Row(f"{p}, {name}", group, make, behind, most=FEW, quick=not cut_out) for p, make in peers.items()]
    leaks = (Expect("leak", MORE), Expect("bleed", MORE))
    rows += [Row(f"image-to-image {d:g}", group, Plain(), leaks, denoise=d, most=FEW) for d in (0.6, 0.8)]
    return [*rows, Row("DreamBooth LoRA, 60 steps", group, TrainedLora(), most=SLOW)]


def _sweep() -> list[Row]:
    """w_ref by the unwanted side's share of it."""
    group, rows = "Weight by negative weight", []
    for weight in SWEEP:
        for share in SHARES:
            more = (Expect("kept", MORE, sweep(weight, 1.0)),) if share < 1 else (Expect("kept", MORE),)
            rows.append(Row(sweep(weight, share), group, WithSubject(weight, share), more, most=FEW))
    rows.append(Row(sweep(10, 1.0), group, WithSubject(10), (Expect("text", LESS, sweep(3.0, 1.0)),), most=FEW))
    return rows


def sweep(weight: float, share: float) -> str:
    return f"w_ref {weight:g}, negative {share:g}"


def _guidance() -> list[Row]:
    """On S-S-A at its defaults, but for shifts: those on both sides reading alike, and on the defaults."""
    group = "Guidance"
    rows = [
        Row(f"guidance {w:g}, p_r {p:g}", group, ours(guidance=Guided(w, p)), most=FEW)
        for w, p in ((1.5, 0.2), (1.5, 0.5), (1.5, 0.9), (3.0, 0.2))
    ]
    for dt, dt_uncond in SHIFTS:
        shifted = Guided(1.5, 0.0, dt, dt_uncond)
        name = f"dt {dt:g}, dt' {dt_uncond:g}"
        rows.append(Row(f"{name}, negative 1", group, ours(negative=1.0, guidance=shifted), most=FEW))
        if not dt_uncond:
            rows.append(Row(name, group, ours(guidance=shifted), most=FEW))
    return rows


def _encoder() -> list[Row]:
    """More beta, more likeness, up to 0.5 (4.4); trained without ControlNet it leaks the layout."""
    group, before, rows = "Subject encoder", PLAIN, []
    for strength in STRENGTHS:
        name = f"beta {strength:g}"
        rows.append(Row(name, group, WithSubject(0, encoder=strength), (Expect("kept", MORE, before),), most=FEW))
        before = name
    rows.append(Row("beta 1", group, WithSubject(0, encoder=1.0), most=FEW))  # as it was trained
    if WITHOUT_LAYOUT.exists():
        make = WithSubject(0, encoder=1.0, file=WITHOUT_LAYOUT)
        rows.append(Row("beta 1, trained without ControlNet", group, make, (Expect("leak", MORE, "beta 1"),), most=FEW))
    return rows


def _tuning() -> list[Row]:
    """More steps, more likeness (appendix C), quicker than plain DreamBooth."""
    group = "Subject tuning"
    cost = Expect("text", NO_LESS, margin=FORGIVEN_TUNED)
    rows = [
        Row(TUNED, group, Tuned(300, WEIGHT, NEGATIVE), (Expect("kept", MORE, ATTENTION), cost), most=SLOW),
        Row("tuned at 1e-3", group, Tuned(300, WEIGHT, NEGATIVE, rate=1e-3), most=SLOW),
        Row("tuned, 800 steps", group, Tuned(800, WEIGHT, NEGATIVE), most=SLOW),
        Row("tuned, 100 steps, no S-S-A", group, Tuned(100), (Expect("kept", MORE),), most=SLOW),
        Row("tuned, 300 steps, no S-S-A", group, Tuned(300), (Expect("kept", MORE), cost), most=SLOW),
    ]
    for steps in (100, 300):
        slower = (Expect("kept", NO_MORE, f"tuned, {steps} steps, no S-S-A", FORGIVEN),)
        rows.append(Row(f"DreamBooth, {steps} steps", group, Tuned(steps, regular_from="class"), slower, most=SLOW))
    return rows


def _where() -> list[Row]:
    """Reading in a part of the steps or blocks; captions of the reference."""
    group, less = "When and where", (Expect("kept", LESS, ATTENTION),)
    rows = [Row(f"{' and '.join(b)} blocks", group, ours(blocks=b), most=FEW) for b in (("output",), ("input",))]
    output = ours(weight=3.0, blocks=("output",))
    rows.append(Row("output blocks, w_ref 3", group, output, most=FEW))
    spans = ((0.0, 0.5), (0.5, 1.0), (0.0, 0.8), (0.2, 1.0))
    rows += [Row(f"from {a:g} to {b:g}", group, ours(start=a, end=b), less, most=FEW) for a, b in spans]
    captions = ("detailed", "empty", "none")
    return rows + [
        Row(f"{name} caption", "Caption of the reference", ours(caption=name), most=FEW) for name in captions
    ]


def _references() -> list[Row]:
    """A reference that is a little worse costs no more than a little; its light is mended, its subject found."""
    group, stated = "Another reference picture", (Expect("kept", NO_LESS, ATTENTION, margin=0.1),)
    rows = [Row(f"reference {name}", group, ours(change=name), stated, most=FEW) for name in CHANGES]
    mended, good, found = (
        (Expect("kept", MORE, "reference dark"),),
        (Expect("kept", NO_LESS, ATTENTION),),
        (Expect("kept", NO_LESS, ATTENTION, margin=0.02),),
    )
    return [
        *rows,
        Row("reference dark, light auto", group, ours(change="dark", light="auto"), mended, most=FEW),
        Row("light auto", group, ours(light="auto"), good, most=FEW),
        Row("found mask", group, ours(found=True), found, most=FEW),
    ]


def chosen(names: Sequence[str] | None, quick: bool) -> list[Row]:
    """The rows named, or whose name holds one of `names`; without names all, or the quick ones.

    Raises ValueError for a name that no row holds.
    """
    rows = table()
    if not names:
        return [row for row in rows if row.quick or not quick]
    for name in names:
        if not any(name in row.name for row in rows):
            raise ValueError(f"no row's name holds {name!r}; there are: {'; '.join(row.name for row in rows)}.")
    exact = {row.name for row in rows} & set(names)
    parts = set(names) - exact
    return [row for row in rows if row.name in exact or any(part in row.name for part in parts)]
