"""The trial's page: one HTML file with everything in it, for the screen and for paper."""

from __future__ import annotations

import base64
import datetime
import html
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from lab.trial import figures
from lab.trial.figures import Way
from lab.trial.plan import Page, Plan
from lab.trial.record import Record, Shot
from lab.trial.studio import sizes

THUMBNAIL, QUALITY = 320, 82
HERE = Path(__file__).parent


def written(plan: Plan, page: Page, record: Record) -> str:
    """The complete page, in its language."""
    return Writer(plan, page, record).html()


class Writer:
    def __init__(self, plan: Plan, page: Page, record: Record) -> None:
        self.plan, self.page, self.record = plan, page, record
        self.words: dict[str, Any] = json.loads((HERE / f"{page.language}.json").read_text(encoding="utf-8"))
        self.ways = {name: figures.way(name, record, plan) for name in plan.ways}
        self.chosen = self.ways[plan.ways[-1]]

    def say(self, key: str, **values: Any) -> str:
        return html.escape(self.words[key].format(**values))

    def html(self) -> str:
        parts = [
            f"<h1>{self.say('title', word=self.plan.class_word)}</h1>",
            f"<p class=made>{self._made()}</p>",
            f"<section class=answer><h2>{self.say('answer')}</h2>{self._answer()}</section>",
            *(
                f"<section><h2>{self.say(name)}</h2>{make()}</section>"
                for name, make in {
                    "pictures": self._pictures,
                    "quality": self._quality,
                    "costs": self._costs,
                    "saves": self._saves,
                    "rights": self._rights,
                    "risks": self._risks,
                    "all": self._all,
                    "check": self._check,
                    "how": self._how,
                }.items()
            ),
        ]
        title = self.say("title", word=self.plan.class_word)
        head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{title}</title>"
        body = "\n".join(parts)
        head += f"<style>{(HERE / 'page.css').read_text()}</style>"
        return f"<!doctype html><html lang={self.page.language}><head>{head}</head><body>{body}</body></html>"

    # --- sections ----------------------------------------------------------------------------------------------------

    def _made(self) -> str:
        day, model = datetime.date.today().isoformat(), Path(self.plan.checkpoint).name
        return self.say("made", day=day, model=model, count=len(self.plan.references))

    def _answer(self) -> str:
        rate = self.chosen.rate
        share = {"good": len(self.chosen.good), "all": len(self.chosen.shots), "rate": _percent(rate.mean)}
        counted = "good_of" if self.plan.min_likeness else "closer_of"
        lines = [self.say(counted, **share, low=_percent(rate.low), high=_percent(rate.high))]
        if self.plan.min_likeness:
            before = self.ways["before"]
            lines.append(
                self.say("plain_of", good=len(before.good), all=len(before.shots), rate=_percent(before.rate.mean))
            )
        lines.append(f"{self.say('per_picture')}: {self._seconds()}")
        lines.append(self._saved())
        step = html.escape(self.words["steps"][figures.next_step(self.chosen, self.plan)])
        return _list(lines) + f"<p><strong>{self.say('next')}:</strong> {step}</p>"

    def _pictures(self) -> str:
        ranked = figures.by_likeness(self.chosen.shots)
        seen = [self._figure(self._seen(), self.say("reference"))]
        rows = []
        for name, shot in (("best", ranked[0]), ("worst", ranked[-1])):
            plain = next(s for s in self.record.of("before", shot.prompt) if s.seed == shot.seed)
            caption = f"<strong>{self.say(name)}</strong>: {html.escape(self.plan.prompts[shot.prompt])}"
            rows += [self._shot(shot, caption), self._shot(plain, self.say("same"), judged=False)]
        return f"<div class=pictures>{''.join(seen + rows)}</div>"

    def _quality(self) -> str:
        names = [name for name in self.ways if name != "before" or self.plan.min_likeness]
        head = [self.say("prompt"), *(self.say(name) for name in names)]
        rows = [
            [html.escape(text), *(self._share(name, number) for name in names)]
            for number, text in enumerate(self.plan.prompts)
        ]
        total = ["", *(self._interval(self.ways[name]) for name in names)]
        return _table(head, [*rows, total]) + f"<p class=note>{self._rule()} {self.say('interval')}</p>"

    def _rule(self) -> str:
        luck, tower = figures.chance(self.plan), Path(self.plan.clip_vision).name
        if luck is None:
            return self.say("count_rule_tower", tower=tower, limit=f"{self.plan.min_likeness:g}")
        rule = "count_rule_faults" if tower else "count_rule_keys"
        return self.say(rule, tower=tower, chance=_percent(luck))

    def _costs(self) -> str:
        record, none = self.record, self.say("no_figure")
        rows = [
            [self.say("setup"), f"{record.setup:.0f} s"],
            [self.say("per_picture"), self._seconds()],
            *([[self.say("tuning"), f"{record.tuning / 60:.1f} min"]] if self.plan.tune else []),
            [self.say("memory"), _size(record.memory) if record.memory else none],
            *([[self.say("gpu"), _size(record.gpu_memory)]] if record.gpu_memory else []),
            [self.say("disk"), f"{_size(Path(self.plan.checkpoint).stat().st_size)}; {_size(sizes(record.folder))}"],
            [self.say("device"), html.escape(record.device)],
        ]
        return _table([], rows) + f"<p class=note>{self.say('licence')}</p>"

    def _saves(self) -> str:
        minutes = figures.machine_minutes(self.chosen)
        if minutes is None or self.page.minutes_by_hand is None:
            return f"<p>{self._saved()}</p>"
        hand = self.say("by_hand", minutes=_minutes(self.page.minutes_by_hand))
        lines = [hand, self.say("by_machine", minutes=_minutes(minutes)), self._saved()]
        return _list(lines + ([] if self.plan.min_likeness else [self.say("agree")]))

    def _saved(self) -> str:
        minutes, hand = figures.machine_minutes(self.chosen), self.page.minutes_by_hand
        if minutes is None:
            return self.say("no_good")
        if hand is None:
            return self.say("no_saving", minutes=_minutes(minutes))
        return self.say("saving", minutes=_minutes(hand - minutes))

    def _rights(self) -> str:
        plan, day = self.plan, datetime.date.today().isoformat()
        given = [
            (name, value)
            for name, value in (("owner", plan.owner), ("uses", plan.uses), ("until", plan.until))
            if value
        ]
        if not given:
            return f"<p class=warning>{self.say('no_rights')}</p>"
        ended = f"<p class=warning>{self.say('ended')}</p>" if plan.until and plan.until < day else ""
        rows = [[self.say(name), html.escape(value)] for name, value in given]
        return _table([], rows) + ended + f"<p class=note>{self.say('rights_note')}</p>"

    def _risks(self) -> str:
        return _list([html.escape(risk) for risk in self.words["risk_list"]])

    def _all(self) -> str:
        rows = []
        for number, text in enumerate(self.plan.prompts):
            ways = []
            for name in self.ways:
                shots = sorted(self.record.of(name, number), key=lambda s: s.seed)
                drawn = "".join(
                    self._shot(shot, judged=name != "before" or bool(self.plan.min_likeness)) for shot in shots
                )
                ways.append(f"<div class=row><p>{self.say(name)}</p><div class=shots>{drawn}</div></div>")
            rows.append(f"<div class=prompt><h3>{html.escape(text)}</h3>{''.join(ways)}</div>")
        return "".join(rows)

    def _check(self) -> str:
        lines = [self.say("check_note"), self.say("would_publish", all=len(self.chosen.shots)), self.say("signed")]
        return "".join(f"<p>{text}</p>" for text in lines)

    def _how(self) -> str:
        plan = self.plan
        values = {"side": plan.side, "steps": plan.steps, "seeds": plan.seeds, "prompts": len(plan.prompts)}
        return f"<p>{self.say('how_text', host=self.record.host, **values)}</p>"

    # --- parts -------------------------------------------------------------------------------------------------------

    def _seconds(self) -> str:
        return self.say("plus", seconds=f"{self.chosen.seconds:.1f}", before=f"{self.ways['before'].seconds:.1f}")

    def _share(self, name: str, prompt: int) -> str:
        shots = self.record.of(name, prompt)
        return f"{sum(shot in self.ways[name].good for shot in shots)} / {len(shots)}"

    def _interval(self, of: Way) -> str:
        rate = of.rate
        return f"<strong>{_percent(rate.mean)}</strong> ({_percent(rate.low)}-{_percent(rate.high)})"

    def _seen(self) -> Path:
        """The reference as the model sees it; the picture itself if that file is missing."""
        kept = self.record.folder / "seen0.png"
        return kept if kept.is_file() else Path(self.plan.references[0])

    def _shot(self, shot: Shot, caption: str = "", judged: bool = True) -> str:
        good = judged and figures.is_good(shot, self.record, self.plan)
        mark = f"<span class={'good' if good else 'bad'}>{'✓' if good else '✕'}</span>" if judged else ""
        faults = (
            html.escape(", ".join(self.words["faults"][fault] for fault in shot.score["faults"]))
            if shot.score and judged
            else ""
        )
        return self._figure(self.record.folder / shot.file, caption + (f" <em>{faults}</em>" if faults else ""), mark)

    def _figure(self, path: Path, caption: str = "", mark: str = "") -> str:
        text = f"<figcaption>{caption}</figcaption>" if caption else ""
        return f"<figure>{mark}<img alt='' src='{_inlined(path)}'>{text}</figure>"


def _inlined(path: Path) -> str:
    picture = Image.open(path).convert("RGB")
    picture.thumbnail((3 * THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _table(head: list[str], rows: list[list[str]]) -> str:
    top = "<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>" if head else ""
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{top}{body}</table>"


def _list(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{text}</li>" for text in lines) + "</ul>"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _minutes(minutes: float) -> str:
    if 0 < minutes < 0.1:
        return "< 0.1"  # escaped later, with the sentence
    return f"{minutes:.0f}" if abs(minutes) >= 10 else f"{minutes:.1f}"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
