"""The report of an evaluation: one HTML file with its pictures inside, which works offline.

What is in it is made here and in `charts` and `gallery` as plain values; how it looks
is said in templates/ (report.html.jinja, with the CSS and the script that it takes in).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from retrieval.drawing import figures
from retrieval.drawing.html_report import charts, gallery
from retrieval.drawing.html_report.content import Outcomes, ReportContent, outcomes
from retrieval.files import write_atomically

_TEMPLATES = Path(__file__).parent / "templates"
# Of the protocol, what is shown without unfolding it.
_STAMP = ("weights", "weights_sha256", "dataset", "photos_fingerprint", "seed", "commit")
_HASH, _TEXT = 12, 48  # characters of a hash and of other entries


@dataclass(frozen=True)
class Cell:
    """A figure of the table as text; ``best``: no other step has a better one."""

    text: str
    best: bool


@dataclass(frozen=True)
class Stage:
    """A bar of the times: ``share`` is the bar's length in percent of the longest."""

    name: str
    seconds: float
    share: float


def write_report(path: Path, content: ReportContent, most_queries: int) -> None:
    """Write the report to ``path``, whole or not at all, with at most ``most_queries`` queries."""
    page = render(content, most_queries)
    # File names may hold bytes that are no UTF-8, which Python keeps as lone surrogates.
    write_atomically(path, page.encode("utf-8", "replace"))


def render(content: ReportContent, most_queries: int) -> str:
    """The report's HTML."""
    found = outcomes(content)
    chosen = gallery.choose(found, len(content.photos.queries), most_queries)
    cards = gallery.cards(content, found, chosen)
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            content=content,
            num_queries=len(content.photos.queries),
            num_database=len(content.photos.database),
            columns=columns(content.figures),
            table=table(content.figures),
            stamp=stamp(content.protocol),
            charts=charts.charts(content),
            stages=stages(content.seconds),
            map=charts.place_map(content, found),
            counts=None if found is None else counts(found),
            cards=cards,
            shown={card.query for card in cards},
            selection=selection(content, found, cards),
            without_pictures=without_pictures(content),
            colours={"right": figures.RIGHT, "wrong": figures.WRONG, "neutral": figures.NEUTRAL},
        )
    )


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def columns(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The names of all figures, in order."""
    return list(dict.fromkeys(name for of in figures.values() for name in of))


def table(figures: Mapping[str, Mapping[str, float]]) -> dict[str, list[Cell]]:
    """For each step the cells of the table; the best of a column stand out where steps differ."""
    names = columns(figures)
    texts = {step: [_percent(of.get(name)) for name in names] for step, of in figures.items()}
    rows: dict[str, list[Cell]] = {step: [] for step in figures}
    for column in range(len(names)):
        shown = {step: texts[step][column] for step in figures}
        best = max((text for text in shown.values() if text != "–"), key=float, default=None)
        differ = len(set(shown.values())) > 1
        for step, text in shown.items():
            rows[step].append(Cell(text, differ and text == best))
    return rows


def _percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.1f}"


def stamp(protocol: Mapping[str, Any]) -> dict[str, str]:
    """The few entries of the protocol that stand above the rest, shortened."""
    short = {}
    for name in _STAMP:
        if protocol.get(name) is not None:
            text = str(protocol[name])
            length = _HASH if name in ("weights_sha256", "commit") else _TEXT
            changes = "+changes" if text.endswith("+changes") else ""
            short[name] = text if len(text) <= length else text[:length] + "…" + changes
    return short


def stages(seconds: Mapping[str, float]) -> list[Stage]:
    """The stages as bars, in their order."""
    longest = max([*seconds.values(), 1e-9])
    return [Stage(name, spent, 100 * spent / longest) for name, spent in seconds.items()]


def counts(found: Outcomes) -> dict[str, int]:
    """How many of all queries, shown or not, are right, wrong, helped and hurt."""
    return {
        "right": int(found.right.sum()),
        "wrong": int(found.wrong.sum()),
        "helped": int(found.helped.sum()),
        "hurt": int(found.hurt.sum()),
    }


def selection(content: ReportContent, found: Outcomes | None, cards: Sequence[gallery.Card]) -> str:
    """Which queries the gallery shows, in words."""
    total = len(content.photos.queries)
    if not cards:
        return f"0 of {total} queries shown: no gallery was asked for (--report_queries 0)"
    if found is None:
        return f"{len(cards)} of {total} queries shown, in their order: no labels tell right ones"
    every = counts(found)
    parts = [
        f"{sum(card.outcome == outcome for card in cards)} of {every[outcome]} {outcome}"
        for outcome in ("wrong", "right")
    ]
    return f"{len(cards)} of {total} queries shown, wrong ones first: {', '.join(parts)}"


def without_pictures(content: ReportContent) -> str:
    """Why there are no pictures of attention or matches; nothing where there are."""
    if content.local is None:
        return "No pictures of attention and matches: this run has no local features (--no_rerank)."
    if content.rerank is None:
        return "No pictures of matches: this run verified none (--no-ransac)."
    return ""
