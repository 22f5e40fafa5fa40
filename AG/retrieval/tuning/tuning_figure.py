"""Picture of a tuning: the figure over each parameter, and against time."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retrieval.drawing.palette import NEUTRAL, RIGHT, WRONG
from retrieval.tuning import try_settings
from retrieval.tuning.search_space import NAMES, in_words, value_of
from retrieval.tuning.try_settings import Outcome

TITLES = {
    "top_k": "predictions re-ranked (top_k)",
    "num_features": "features per image (num_features)",
    "rule": "match rule (rule)",
    "max_distance": "largest L2 distance of a match (max_distance)",
    "residual": "largest residual in pixels (residual)",
    "model": "geometric model (model)",
    "floor": "inliers that count for nothing (floor)",
    "fusion": "inliers that the best similarity adds (fusion)",
}
_COLUMNS = 3


def panels(outcomes: Sequence[Outcome], before: float, metric: str) -> Figure:
    """One panel for each parameter with several values, and one of the figure against time.

    outcomes: best first; before: the figure of the global ranking.
    """
    varied = [name for name in NAMES if len(_values(outcomes, name)) > 1]
    rows = math.ceil((len(varied) + 1) / _COLUMNS)
    figure = Figure(figsize=(3.9 * _COLUMNS, 2.9 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, sharey=True, squeeze=False).ravel()
    for name, axis in zip(varied, axes[: len(varied)], strict=True):
        _over_parameter(axis, outcomes, name)
    _over_time(axes[len(varied)], outcomes, before)
    for number, axis in enumerate(axes):
        axis.set_visible(number <= len(varied))
        axis.axhline(before, color=NEUTRAL, linestyle="--", linewidth=1, label="global ranking")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.25)
        if number % _COLUMNS == 0:
            axis.set_ylabel(f"{metric} (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _values(outcomes: Sequence[Outcome], name: str) -> list:
    """The values of a parameter, ascending; then None."""
    values = {value_of(outcome.setting, name) for outcome in outcomes}
    return sorted(values - {None}) + ([None] if None in values else [])


def _over_parameter(axis: Axes, outcomes: Sequence[Outcome], name: str) -> None:
    """All settings as dots, the best for each value as a line."""
    values = _values(outcomes, name)
    places = np.array([values.index(value_of(outcome.setting, name)) for outcome in outcomes])
    spread = np.random.default_rng(0).uniform(-0.16, 0.16, len(outcomes))
    figures = _dots(axis, outcomes, places, spread)
    best = [figures[places == place].max() for place in range(len(values))]
    axis.plot(range(len(values)), best, "-o", color=RIGHT, ms=5, label="best with this value")
    axis.set_xticks(range(len(values)), [in_words(name, value) for value in values])
    axis.set_xlim(-0.5, len(values) - 0.5)
    axis.set_title(TITLES[name], fontsize=10)


def _over_time(axis: Axes, outcomes: Sequence[Outcome], before: float) -> None:
    """All settings as dots, the Pareto front as steps from the global ranking at 0 ms."""
    ms = np.array([outcome.ms for outcome in outcomes])
    figures = _dots(axis, outcomes, ms)
    front = np.flatnonzero(try_settings.on_front(outcomes, before))
    order = front[np.argsort(ms[front])]
    x, y = np.append(0.0, ms[order]), np.append(before, figures[order])
    axis.step(x, y, "-o", where="post", color=RIGHT, ms=4)
    axis.set_title("milliseconds per query, with the Pareto front", fontsize=10)


def _dots(
    axis: Axes, outcomes: Sequence[Outcome], x: np.ndarray, spread: np.ndarray | float = 0.0
) -> np.ndarray:
    """A dot for each setting at ``x + spread`` (S,), the first of them marked; their figures."""
    figures = np.array([outcome.figure for outcome in outcomes])
    axis.scatter(x + spread, figures, s=8, color=RIGHT, alpha=0.25, linewidths=0, label="a setting")
    best = axis.scatter(x[:1], figures[:1], 60, marker="D", zorder=3, label="best setting")
    best.set(facecolors="none", edgecolors=WRONG, linewidths=1.8)
    return figures
