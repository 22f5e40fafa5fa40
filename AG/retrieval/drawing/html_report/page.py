"""The report of an evaluation: one HTML file with its pictures inside, which works offline.

What is in it is made here and in `charts` and `gallery` as plain values; how it looks
is said in templates/ (report.html.jinja, with the CSS and the script that it takes in).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2

from retrieval import report
from retrieval.drawing import palette
from retrieval.drawing.html_report import charts, gallery
from retrieval.drawing.html_report.outcomes import Outcomes, outcomes
from retrieval.evaluation import Evaluation
from retrieval.files import write_atomically

_TEMPLATES = Path(__file__).parent / "templates"
# Of the protocol, what is shown without unfolding it.
_STAMP = ("weights", "weights_sha256", "fingerprint", "seed", "commit")
_HASH, _TEXT = 12, 48  # characters of a hash and of other entries


@dataclass(frozen=True)
class Cell:
    """A figure of the table as text; ``best``: no other step has a better one."""

    text: str
    best: bool


def write_report(path: Path, run: Evaluation, most_queries: int) -> None:
    """Write the report to ``path``, whole or not at all, with at most ``most_queries`` queries."""
    page = render(run, most_queries)
    # File names may hold bytes that are no UTF-8, which Python keeps as lone surrogates.
    write_atomically(path, page.encode("utf-8", "replace"))


def render(run: Evaluation, most_queries: int) -> str:
    """The report's HTML."""
    found = outcomes(run)
    chosen = gallery.choose(found, len(run.photos.queries), most_queries)
    cards = gallery.cards(run, found, chosen)
    protocol = protocol_as_told(run)
    return template("report.html.jinja").render(
        run=run,
        num_queries=len(run.photos.queries),
        num_database=len(run.photos.database),
        columns=columns(run.figures),
        table=table(run.figures),
        protocol=protocol,
        notes=report.notes(run),
        stamp=stamp(protocol),
        charts=charts.charts(run),
        map=charts.place_map(run, found),
        counts=None if found is None else counts(found),
        cards=cards,
        shown={card.query for card in cards},
        selection=selection(run, found, cards),
        without_pictures=without_pictures(run),
        palette=palette,
    )


def template(name: str) -> jinja2.Template:
    """A template of this folder; it refuses what it is not given, and escapes what it is."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def columns(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The names of all figures, in order."""
    return list(dict.fromkeys(name for of in figures.values() for name in of))


def table(figures: Mapping[str, Mapping[str, float]]) -> dict[str, list[Cell]]:
    """For each step the cells of the table; the best of a column stand out where steps differ."""
    rows: dict[str, list[Cell]] = {step: [] for step in figures}
    for name in columns(figures):
        texts = [_percent(of.get(name)) for of in figures.values()]
        numbers = [text for text in texts if text != "–"] if len(set(texts)) > 1 else []
        best = max(numbers, key=float, default=None)
        for row, text in zip(rows.values(), texts, strict=True):
            row.append(Cell(text, text == best))
    return rows


def _percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.1f}"


def protocol_as_told(run: Evaluation) -> dict[str, Any]:
    """The protocol as plain values, the method's settings first, with the command."""
    told = asdict(run.protocol)
    return {**told.pop("settings"), **told, "command": run.command}


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


def counts(found: Outcomes) -> dict[str, int]:
    """How many of all queries, shown or not, are right, wrong, helped and hurt."""
    return {name: int(getattr(found, name).sum()) for name in ("right", "wrong", "helped", "hurt")}


def selection(run: Evaluation, found: Outcomes | None, cards: Sequence[gallery.Card]) -> str:
    """Which queries the gallery shows, in words."""
    total = len(run.photos.queries)
    if not cards:
        return f"0 of {total} queries shown: no gallery was asked for (--report_queries 0)"
    if found is None:
        return f"{len(cards)} of {total} queries shown, in their order, as there are no labels"
    every = counts(found)
    parts = [
        f"{sum(card.outcome == outcome for card in cards)} of {every[outcome]} {outcome}"
        for outcome in ("wrong", "right")
    ]
    return f"{len(cards)} of {total} queries shown, wrong ones first: {', '.join(parts)}"


def without_pictures(run: Evaluation) -> str:
    """Why there are no pictures of attention or matches; nothing where there are."""
    if run.features is None:
        return "No pictures of attention and matches: this run has no local features (--no_rerank)."
    return ""
