"""Curves: the losses of a training, the recalls of an evaluation before and after re-ranking."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from retrieval import metrics
from retrieval.data.positives import Positives
from retrieval.drawing.palette import NEUTRAL, RIGHT
from retrieval.errors import InputError


def read_losses(run: Path) -> dict[str, np.ndarray]:
    """The columns of a training's ``losses.csv``, (steps,) each: epoch, step, and every loss.

    Raises InputError for a folder that is no run folder of a training, or has no step yet.
    """
    file = run / "losses.csv"
    try:
        with file.open(newline="") as opened:
            rows = [row for row in csv.DictReader(opened) if all(row.values())]
        columns = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
        if not {"epoch", "step"} < columns.keys():
            found = ", ".join(columns)
            raise ValueError(f"its columns are {found}; expected epoch, step and losses")
    except (OSError, LookupError, ValueError, TypeError, csv.Error) as error:
        raise InputError(
            f"{file}: no losses to draw ({error}); name the run folder of a training"
        ) from error
    return columns


def loss_curves(run: Path, window: int = 20) -> Figure:
    """Every loss term of a training over its steps, with its running mean over ``window`` steps."""
    columns = read_losses(run)
    terms = {name: values for name, values in columns.items() if name not in ("epoch", "step")}
    starts = np.flatnonzero(np.diff(columns["epoch"])) + 1
    figure = Figure(figsize=(3.1 * len(terms), 2.6), layout="constrained")
    axes = figure.subplots(1, len(terms), squeeze=False)[0]
    for axis, (name, values) in zip(axes, terms.items(), strict=True):
        axis.plot(values, color=NEUTRAL, alpha=0.4, linewidth=0.8)
        axis.plot(_running_mean(values, window), color=RIGHT, linewidth=1.8)
        for start in starts:
            axis.axvline(start, color=NEUTRAL, linewidth=0.8, linestyle=":")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """(n,) the mean of each value and of those up to ``window`` − 1 before it."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def recall_curves(rankings: Mapping[str, np.ndarray], truth: Positives, most: int = 20) -> Figure:
    """Recall@N over N of each named ranking (Q, K), the last of them in colour."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    ns = np.arange(1, min(most, *(ranking.shape[1] for ranking in rankings.values())) + 1)
    for row, (name, ranking) in enumerate(rankings.items()):
        last = row == len(rankings) - 1
        recalls = metrics.recall_at_k(ranking, truth, ns.tolist())
        line, colour, mark = ("-", RIGHT, "o") if last else ("--", NEUTRAL, "s")
        label = f"{name}: R@1 {recalls[1]:.1f}"
        axis.plot(ns, list(recalls.values()), line, color=colour, marker=mark, ms=4, label=label)
    axis.set_xlabel("N predictions")
    axis.set_ylabel("recall@N, % of the queries")
    axis.set_xticks([1, *range(5, len(ns) + 1, 5)])
    axis.set_ylim(top=101)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower right", frameon=False)
    return figure
