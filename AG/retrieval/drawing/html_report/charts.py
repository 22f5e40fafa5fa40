"""The curves and the map of a report, as numbers that its template draws as SVG.

Drawn there rather than by matplotlib, they take the page's fonts and its light or dark colours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval import metrics
from retrieval.comparison import Row
from retrieval.confidence.coverage import precisions
from retrieval.confidence.odds import first_is_right
from retrieval.data.positives import Positives
from retrieval.drawing.html_report.outcomes import Outcomes
from retrieval.evaluation import Evaluation

# Curves show recall@N up to this N.
MOST_RECALLS = 100
# The map's largest and least height, as shares of its width, and its least width in metres.
_HIGHEST, _LOWEST, _LEAST_METRES = 0.7, 0.4, 20.0
# Positions of the database that fall together at this share of the map's width are one dot.
_DISTINCT = 1 / 1800


@dataclass(frozen=True)
class Chart:
    """Curves of percentages.

    x_ticks: where on the x axis, from 0 (left) to 1 (right), and the text there.
    curves:  for each step its points: where on the x axis, percent, and what to say of it.
    """

    title: str
    x_label: str
    y_label: str
    note: str
    x_ticks: list[tuple[float, str]]
    curves: dict[str, list[tuple[float, float, str]]]


def charts(run: Evaluation) -> list[Chart]:
    """Recall@N and precision-recall, a line for each step; none without labels or queries."""
    truth = run.photos.truth
    if truth is None or run.last.ranking.rows.size == 0:
        return []
    protocol = "" if run.photos.protocol == "R" else f", protocol {run.photos.protocol}"
    return [
        _recall_chart(run, truth, f"Recall@N{protocol}"),
        _precision_chart(run, truth, f"Precision-recall curve{protocol}"),
        *_confidence_chart(run),
    ]


def bytes_chart(rows: Sequence[Row]) -> Chart | None:
    """The first figure of rows over the bytes that their local features cost, a line for each form.

    None where fewer than two rows have both.
    """
    metric = rows[0].run.metric
    points = [
        (row.form, row.bytes_per_image, row.step.figures[metric], row.name)
        for row in rows
        if row.bytes_per_image and metric in row.step.figures
    ]
    if len(points) < 2:
        return None
    octaves = [float(np.log2(cost)) for _, cost, _, _ in points]
    least = int(np.floor(min(octaves)))
    span = max(1, int(np.ceil(max(octaves))) - least)
    curves: dict[str, list[tuple[float, float, str]]] = {form: [] for form, *_ in points}
    for form, cost, figure, name in sorted(points, key=lambda point: point[1]):
        text = f"{name}: {metric} {figure:.1f} at {cost:,.0f} bytes a photo ({form})"
        curves[form].append(((float(np.log2(cost)) - least) / span, figure, text))
    ticks = [(each / span, _size(2 ** (least + each))) for each in range(span + 1)]
    return Chart(f"{metric} over bytes", "bytes a photo", f"{metric}, %", "", ticks, curves)


def _size(count: int) -> str:
    """``8 KB`` of 8192."""
    return f"{count // 1024} KB" if count >= 1024 else str(count)


def _recall_chart(run: Evaluation, truth: Positives, title: str) -> Chart:
    ns = np.arange(1, min(run.last.ranking.rows.shape[1], MOST_RECALLS) + 1)
    # The first few N matter most: a logarithmic axis gives them room.
    across = np.log(ns) / max(np.log(len(ns)), 1e-9)
    curves = {}
    for step, ranking in run.rankings.items():
        recalls = metrics.recall_at_k(ranking, truth, ns.tolist()).values()
        curves[step] = [
            (x, recall, f"{step}: recall@{n} is {recall:.1f} %")
            for x, recall, n in zip(across.tolist(), recalls, ns, strict=True)
        ]
    ticks = [(across[n - 1], str(n)) for n in (1, 2, 5, 10, 20, 50, 100) if n <= len(ns)]
    label = "queries with a positive among them, %"
    return Chart(title, "N predictions", label, "", ticks, curves)


def _precision_chart(run: Evaluation, truth: Positives, title: str) -> Chart:
    across = np.linspace(0, 1, 101)
    curves = {}
    for step, ranking in run.rankings.items():
        precisions = metrics.precision_at_recalls(ranking, truth, across).tolist()
        curves[step] = [
            (x, precision, f"{step}: precision at recall {x:.0%} is {precision:.1f} %")
            for x, precision in zip(across.tolist(), precisions, strict=True)
            if not np.isnan(precision)
        ]
    ticks = [(share / 100, str(share)) for share in (0, 20, 40, 60, 80, 100)]
    depth, without = run.last.ranking.rows.shape[1], sum(len(rows) == 0 for rows in truth.positives)
    left_out = f" but the {without} without positives" if without else ""
    note = f"Interpolated precision, averaged over all queries{left_out}."
    if depth < len(run.photos.database):
        note += f" Positives beyond the first {depth} predictions count as not found."
    return Chart(title, "recall, %", "precision, %", note, ticks, curves)


def _confidence_chart(run: Evaluation) -> list[Chart]:
    """Risk against coverage: wrong answers among those given, by how many are."""
    right = first_is_right(run)
    known = right == right
    if run.confidence is None or not known.any():
        return []
    risk = 100 - precisions(run.confidence[known], right[known])
    shares = np.arange(1, len(risk) + 1) / len(risk)
    shown = np.unique(np.linspace(0, len(risk) - 1, 101).astype(int)).tolist()
    points = [
        (float(shares[n]), float(risk[n]), f"{100 * shares[n]:.0f} % given: {risk[n]:.1f} % wrong")
        for n in shown
    ]
    ticks = [(share / 100, str(share)) for share in (0, 20, 40, 60, 80, 100)]
    title, label = "Risk against coverage", "wrong among the first answers given, %"
    note = "The answers that are surest are given first."
    return [Chart(title, "first answers given, %", label, note, ticks, {run.last.name: points})]


@dataclass(frozen=True)
class MapMark:
    """A query on the map; ``outcome`` right, wrong or none; ``effect`` helped, hurt or nothing."""

    query: int
    name: str
    x: float
    y: float
    outcome: str
    effect: str


@dataclass(frozen=True)
class PlaceMap:
    """Queries and database of a report seen from above, north up; all in metres, y down.

    size: of a mark, in pixels of the screen; database: an SVG path with a dot at each position.
    """

    width: float
    height: float
    size: float
    database: str
    marks: list[MapMark]


def place_map(run: Evaluation, found: Outcomes | None) -> PlaceMap | None:
    """The map; None where it is not known in metres where the queries were taken."""
    photos = run.photos
    queries, database = (None if taken is None else taken.metres for taken in photos.whereabouts)
    if queries is None or len(queries) == 0:
        return None
    if database is None:
        database = np.empty((0, 2))
    everything = np.concatenate([queries, database])
    low, high = everything.min(axis=0), everything.max(axis=0)
    across, down = np.maximum(1.1 * (high - low), _LEAST_METRES).tolist()
    width = max(across, down / _HIGHEST)
    height = max(down, width * _LOWEST)
    corner = (low + high + [-width, height]) / 2  # north-west
    placed = ((queries - corner) * [1, -1]).round(2).tolist()
    marks = []
    for query, (photo, (x, y)) in enumerate(zip(photos.query_photos, placed, strict=True)):
        outcome = "none" if found is None else found.outcome(query)
        effect = "" if found is None else found.effect(query)
        marks.append(MapMark(query, photo.shown, x, y, outcome, effect))
    # The wrong ones come last, so that they are drawn over the right ones.
    marks.sort(key=lambda mark: (mark.outcome == "wrong", bool(mark.effect)))
    size = 5.5 if len(marks) <= 100 else 4.5 if len(marks) <= 400 else 3.5
    dots = _dots((database - corner) * [1, -1], width * _DISTINCT)
    return PlaceMap(round(width, 2), round(height, 2), size, dots, marks)


def _dots(points: np.ndarray, distinct: float) -> str:
    """An SVG path of dots, one for all points (N, 2) that lie within ``distinct``."""
    kept = np.unique(np.rint(points / distinct), axis=0) * distinct
    return "".join(f"M{x:.2f} {y:.2f}h0" for x, y in kept.tolist())
