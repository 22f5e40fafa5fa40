"""Evaluations of one photo set side by side: figures, paired differences, who wins which query."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval import evaluation
from retrieval.errors import InputError
from retrieval.evaluation import Comparison, Evaluation, Step

# Of revisited sets, the figures that fit a line.
_REVISITED = ("mAP E", "mAP M", "mAP H", "mP@1 M", "mP@5 M", "mP@10 M")


@dataclass(frozen=True)
class Row:
    """One line of a comparison: a step of a run, against the first row and against the one above.

    Both are None in the first row, and without labels.
    """

    name: str
    run: Evaluation
    step: Step
    to_first: Comparison | None
    to_above: Comparison | None

    @property
    def form(self) -> str:
        """How the local features that had a say in it were kept: binary, half + 8bit, …"""
        return " + ".join(kind.form for kind in self.run.evidence)

    @property
    def bytes_per_image(self) -> float | None:
        """What they cost on disk for each photo; None where none had a say, or it is not known."""
        costs = [kind.bytes_per_image for kind in self.run.evidence]
        known = [cost for cost in costs if cost is not None]
        if self.step is self.run.first or not costs or len(known) < len(costs):
            return None
        return sum(known)


@dataclass(frozen=True)
class Moved:
    """A query whose figure (R@1 or AP, in percent) two rows do not agree on."""

    query: int
    name: str
    before: float
    after: float


def side_by_side(runs: Sequence[tuple[str, Evaluation, Step]], level: float = 0.95) -> list[Row]:
    """Rows of (name, run, step of it). InputError where the runs are not of the same photos."""
    rows: list[Row] = []
    for name, run, step in runs:
        first = rows[0].run if rows else run
        if run.protocol.fingerprint != first.protocol.fingerprint:
            raise InputError(
                f"{run.place} is of other photos ({run.photos.folder}) than {first.place} "
                f"({first.photos.folder}), or of other positives: nothing to compare"
            )
        differences: list[Comparison | None] = [None, None]
        if rows and run.photos.truth is not None:
            differences = [
                evaluation.compare(run.photos.truth, run.metric, other.step, step, level)
                for other in (rows[0], rows[-1])
            ]
        rows.append(Row(name, run, step, *differences))
    return rows


def winners_and_losers(row: Row, against: Row) -> tuple[list[Moved], list[Moved]]:
    """The queries that a row does better, and worse, than another; those that differ most first."""
    before, after = against.step.per_query, row.step.per_query
    order = np.argsort(-np.nan_to_num(after - before), kind="stable")
    photos = row.run.photos.query_photos
    moved = [Moved(q, photos[q].shown, before[q], after[q]) for q in order.tolist()]
    better = [each for each in moved if each.after > each.before]
    return better, [each for each in reversed(moved) if each.after < each.before]


def header(rows: Sequence[Row]) -> list[str]:
    """The names of the columns: figures, the two differences and their level, the row's name."""
    levels = [row.to_first.level for row in rows if row.to_first is not None]
    interval = f" [{100 * levels[0]:g} % interval]" if levels else ""
    differences = [f"to first{interval}", f"to row above{interval}"]
    return [*_figures(rows[0]), "bytes a photo", *differences, "settings"]


def cells(row: Row) -> list[str]:
    """A row as texts, in the order of `header`."""
    figures = [f"{row.step.figures.get(name, np.nan):.2f}" for name in _figures(row)]
    cost = "" if row.bytes_per_image is None else f"{row.bytes_per_image:,.0f}"
    return [*figures, cost, *_differences(row), row.name]


def table(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    names = header(rows)
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        *rest, name = cells(row)
        lines.append(f"| {' | '.join([*rest, f'`{name}`'])} |")
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The table with each query's figure and each row's protocol, as plain values."""
    return {
        "metric": rows[0].run.metric,
        "rows": [
            {
                "settings": row.name,
                "figures": dict(row.step.figures),
                "per_query": row.step.per_query.tolist(),
                "form": row.form,
                "bytes_per_image": row.bytes_per_image,
                **dict(zip(("to_first", "to_row_above"), _differences(row), strict=True)),
                "protocol": row.run.protocol.settings,
            }
            for row in rows
        ],
    }


def _figures(row: Row) -> list[str]:
    if row.run.photos.protocol == "M":
        return [name for name in _REVISITED if name in row.step.figures]
    return list(row.step.figures)


def _differences(row: Row) -> list[str]:
    return ["" if each is None else each.gain.in_words() for each in (row.to_first, row.to_above)]
