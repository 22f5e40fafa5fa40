"""The curves and the map of a report, as numbers that its template draws as SVG.

Drawn there rather than by matplotlib, they take the page's fonts and its light or dark colours.
All positions are in units of the SVG's view box, y down.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval import metrics
from retrieval.data import places
from retrieval.data.positives import Positives
from retrieval.drawing.html_report.content import Outcomes, ReportContent
from retrieval.errors import InputError

# Curves show recall@N up to this N.
MOST_RECALLS = 100
# Largest width and height of the map, its least height, and its margin.
_MAP, _LEAST_HEIGHT = (900, 640), 360
_MARGIN = 40
# A map of one spot only still shows this many metres.
_LEAST_METRES = 20.0


@dataclass(frozen=True)
class Line:
    """A curve: for each point x, y and what to say of it."""

    name: str
    points: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """Curves in a frame from (left, top) to (right, bottom); ticks are (position, text)."""

    title: str
    x_label: str
    y_label: str
    note: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    width: int = 480
    height: int = 310
    left: int = 48
    right: int = 466
    top: int = 12
    bottom: int = 262


def charts(content: ReportContent) -> list[Chart]:
    """Recall@N and precision-recall, a line for each step; none without labels or queries."""
    truth = content.truth
    if truth is None or content.last.size == 0:
        return []
    protocol = "" if content.protocol_name == "R" else f", protocol {content.protocol_name}"
    return [_recall_chart(content, truth, protocol), _precision_chart(content, truth, protocol)]


def _recall_chart(content: ReportContent, truth: Positives, protocol: str) -> Chart:
    ns = np.arange(1, min(content.last.shape[1], MOST_RECALLS) + 1)
    curves = {
        step: np.array(list(metrics.recall_at_k(ranking, truth, ns.tolist()).values()))
        for step, ranking in content.rankings.items()
    }
    # The first few N matter most: a logarithmic axis gives them room.
    ticks = [n for n in (1, 2, 5, 10, 20, 50, 100) if n <= len(ns)]
    return _chart(
        f"Recall@N{protocol}",
        ("N predictions", "queries with a positive among them, %"),
        "",
        np.log(ns),
        curves,
        [(math.log(n), str(n)) for n in ticks],
        [f"recall@{n}" for n in ns],
    )


def _precision_chart(content: ReportContent, truth: Positives, protocol: str) -> Chart:
    recalls = np.linspace(0, 1, 101)
    curves = {
        step: metrics.precision_at_recalls(ranking, truth, recalls)
        for step, ranking in content.rankings.items()
    }
    depth = content.last.shape[1]
    without = sum(len(rows) == 0 for rows in truth.positives)
    notes = ["Interpolated, mean over the queries."]
    if without:
        notes = [f"Interpolated, mean over the queries but the {without} without positives."]
    if depth < len(content.photos.database):
        notes.append(f"Positives beyond the first {depth} predictions count as not found.")
    return _chart(
        f"Precision-recall curve{protocol}",
        ("recall, %", "precision, %"),
        " ".join(notes),
        recalls,
        curves,
        [(share / 100, str(share)) for share in (0, 20, 40, 60, 80, 100)],
        [f"precision at recall {share:.0%}" for share in recalls],
    )


def _chart(
    title: str,
    labels: tuple[str, str],
    note: str,
    x: np.ndarray,
    curves: dict[str, np.ndarray],
    x_ticks: list[tuple[float, str]],
    texts: Sequence[str],
) -> Chart:
    """A chart of percentages over x (n,) ascending; ``texts`` (n,) name the points."""
    frame = Chart
    span = max(float(x[-1] - x[0]), 1e-9)

    def across(value: float) -> float:
        return round(frame.left + (value - x[0]) / span * (frame.right - frame.left), 1)

    def down(percent: float) -> float:
        return round(frame.bottom - percent / 100 * (frame.bottom - frame.top), 1)

    lines = [
        Line(
            step,
            [
                (across(position), down(value), f"{step}: {text} is {value:.1f} %")
                for position, value, text in zip(x.tolist(), curve.tolist(), texts, strict=True)
                if not math.isnan(value)
            ],
        )
        for step, curve in curves.items()
    ]
    return Chart(
        title,
        *labels,
        note,
        lines,
        [(across(position), text) for position, text in x_ticks],
        [(down(percent), str(percent)) for percent in range(0, 101, 20)],
    )


@dataclass(frozen=True)
class Mark:
    """A query on the map; ``outcome`` right, wrong or none; ``effect`` helped, hurt or nothing."""

    query: int
    name: str
    x: float
    y: float
    outcome: str
    effect: str


@dataclass(frozen=True)
class PlaceMap:
    """Queries and database of a report seen from above, north up.

    size: of a mark, in pixels of the screen; database: an SVG path with a dot at each position;
    bar: the scale bar's length in percent of the width, and its text.
    """

    width: int
    height: int
    metres_per_unit: float
    size: float
    database: str
    marks: list[Mark]
    bar: tuple[float, str]


def place_map(content: ReportContent, found: Outcomes | None) -> PlaceMap | None:
    """The map; None where the queries' names tell no coordinates."""
    photos = content.photos
    queries = _positions(photos.queries)
    if queries is None or len(queries) == 0:
        return None
    database = _positions(photos.database)
    everything = queries if database is None else np.concatenate([queries, database])
    low, high = everything.min(axis=0), everything.max(axis=0)
    extent = np.maximum(high - low, _LEAST_METRES)
    inner = np.array(_MAP) - 2 * _MARGIN
    scale = float((inner / extent).min())  # one for both axes
    height = max(round(extent[1] * scale) + 2 * _MARGIN, _LEAST_HEIGHT)
    corner = (low + high - np.array([_MAP[0], height]) / scale) / 2  # bottom left, in metres

    def placed(utm: np.ndarray) -> np.ndarray:
        x, y = ((utm - corner) * scale).T
        return np.column_stack([x, height - y])

    names = photos.query_ids
    marks = [
        Mark(
            query,
            names[query].removeprefix("query/"),
            round(x, 1),
            round(y, 1),
            "none" if found is None else found.outcome(query),
            "" if found is None else found.effect(query),
        )
        for query, (x, y) in enumerate(placed(queries).tolist())
    ]
    # The wrong ones come last, so that they are drawn over the right ones.
    marks.sort(key=lambda mark: (mark.outcome == "wrong", bool(mark.effect)))
    dots = np.empty((0, 2)) if database is None else placed(database)
    return PlaceMap(
        *(_MAP[0], height, round(1 / scale, 6), _mark_size(len(marks))),
        *(_dots(dots), marks, _scale_bar(scale)),
    )


def _positions(paths: Sequence) -> np.ndarray | None:
    """Metres east and north (N, 2); None if a name tells none."""
    try:
        return places.positions(paths)[0]
    except InputError:  # not an error here: most sets have no coordinates
        return None


def _mark_size(count: int) -> float:
    return 5.5 if count <= 100 else 4.5 if count <= 400 else 3.5


def _dots(points: np.ndarray) -> str:
    """An SVG path of dots, one for all that lie within half a unit."""
    distinct = np.unique(np.rint(points * 2), axis=0) / 2
    return "".join(f"M{x:g} {y:g}h0" for x, y in distinct.tolist())


def _scale_bar(scale: float) -> tuple[float, str]:
    """A round number of metres that takes at most a quarter of the map's width."""
    most = _MAP[0] / 4 / scale
    power = 10.0 ** math.floor(math.log10(most))
    metres = next(step * power for step in (5, 2, 1) if step * power <= most)
    text = f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
    return round(100 * metres * scale / _MAP[0], 2), text
