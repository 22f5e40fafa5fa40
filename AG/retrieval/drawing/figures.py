"""Pictures: a query with its predictions, an attention map, the matches of two photos.

Right and wrong differ in colour and in mark; the colours are ones that colour-blind people tell
apart. Every function returns a matplotlib Figure; `save` writes it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from retrieval.data.positives import Mark

RIGHT, WRONG, NEUTRAL = "#0072B2", "#D55E00", "#666666"  # blue, vermilion (Okabe and Ito), grey
_SIGNS: dict[Mark | None, tuple[str, str]] = {
    "right": ("✓ ", RIGHT),
    "wrong": ("✗ ", WRONG),
    "junk": ("junk ", NEUTRAL),
}


def save(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write the figure as an image file; the ending of ``path`` names the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=dpi, bbox_inches="tight", pad_inches=0.08)


class Prediction(NamedTuple):
    """An image of the database (H, W, 3), what is written over it, what it is (None: unknown)."""

    image: np.ndarray
    title: str
    mark: Mark | None


def prediction_strip(
    query: np.ndarray, predictions: Sequence[Prediction], query_title: str = "query"
) -> Figure:
    """The query and its first predictions, each framed by whether it is right (None: unknown)."""
    columns = 1 + len(predictions)
    figure = Figure(figsize=(2.1 * columns, 2.5), layout="constrained")
    _strip(np.atleast_1d(figure.subplots(1, columns)), query, query_title, predictions)
    return figure


def _strip(
    axes: np.ndarray, query: np.ndarray, query_title: str, predictions: Sequence[Prediction]
) -> None:
    _show(axes[0], query, query_title, NEUTRAL)
    shown = axes[1 : 1 + len(predictions)]
    for axis, (image, title, mark) in zip(shown, predictions, strict=True):
        sign, colour = _SIGNS.get(mark, ("", NEUTRAL))
        _show(axis, image, sign + title, colour)
    for axis in axes[1 + len(predictions) :]:
        axis.axis("off")


def _show(axis: Axes, image: np.ndarray, title: str, colour: str) -> None:
    height, width = image.shape[:2]
    axis.imshow(image)
    axis.set_title(title, fontsize=9, color=colour)
    axis.axis("off")
    frame = Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor=colour, linewidth=4)
    axis.add_patch(frame)


def attention_map(
    image: np.ndarray,
    keypoints: np.ndarray,
    heat: np.ndarray,
    extent: tuple[float, float, float, float],
    label: str = "attention",
) -> Figure:
    """A photo beside itself under its attention, with the strongest keypoints marked.

    heat: (h, w) scores of the cells; extent: (left, right, bottom, top) of the cells' outer edges
    in pixels of ``image``; keypoints: (K, 2) x, y; label: what the heat is.
    """
    height, width = image.shape[:2]
    figure = Figure(figsize=(9, 0.6 + 4.2 * height / width), layout="constrained")
    photo, over = figure.subplots(1, 2)
    for axis in (photo, over):
        axis.imshow(image)
        axis.axis("off")
    shown = over.imshow(heat, extent=extent, cmap="inferno", alpha=0.6, interpolation="bilinear")
    over.scatter(
        keypoints[:, 0],
        keypoints[:, 1],
        s=12,
        facecolors="none",
        edgecolors="white",
        linewidths=0.8,
    )
    for axis in (photo, over):
        axis.set_xlim(-0.5, width - 0.5)
        axis.set_ylim(height - 0.5, -0.5)
    photo.set_title("photo", fontsize=10)
    over.set_title(f"attention, {len(keypoints)} strongest keypoints", fontsize=10)
    figure.colorbar(shown, ax=over, shrink=0.8, label=label)
    return figure


def matches(
    query: np.ndarray,
    database: np.ndarray,
    query_keypoints: np.ndarray,
    database_keypoints: np.ndarray,
    inliers: np.ndarray,
    title: str,
) -> Figure:
    """Two photos side by side with their matches: inliers over the rest.

    query_keypoints, database_keypoints: (M, 2) x, y of the matches; inliers: (M,) bool.
    """
    height = max(query.shape[0], database.shape[0])
    gap = max(4, query.shape[1] // 50)
    shift = query.shape[1] + gap
    width = shift + database.shape[1]
    figure = Figure(figsize=(11, 0.6 + 11 * height / width), layout="constrained")
    axis = figure.subplots()
    canvas = np.full((height, width, 3), 255, np.uint8)
    canvas[: query.shape[0], : query.shape[1]] = query
    canvas[: database.shape[0], shift:] = database
    axis.imshow(canvas)
    segments = np.stack([query_keypoints, database_keypoints + (shift, 0)], axis=1)
    for chosen, colour, line, name in (
        (~inliers, WRONG, 0.5, "other matches"),
        (inliers, RIGHT, 1.2, "inliers"),
    ):
        label = f"{int(chosen.sum())} {name}"
        axis.add_collection(
            LineCollection(
                list(segments[chosen]), colors=colour, linewidths=line, alpha=0.8, label=label
            )
        )
        x, y = segments[chosen].reshape(-1, 2).T
        axis.scatter(x, y, s=6, c=colour, linewidths=0)
    axis.set_title(title, fontsize=11)
    axis.legend(loc="lower right", fontsize=9, framealpha=0.9)
    axis.axis("off")
    return figure


def reranked_query(
    query: np.ndarray,
    strips: Mapping[str, Sequence[Prediction]],
    ranks: np.ndarray,
    depth: int,
    title: str,
    slopes_title: str,
) -> Figure:
    """Predictions of a query before and after re-ranking, beside where its positives stood.

    ranks: (P, 2) of each positive, from 1, before and after; depth + 1 where it is further back.
    """
    columns = 1 + max(1, *(len(strip) for strip in strips.values()))
    figure = Figure(figsize=(1.9 * columns + 3.4, 2.35 * len(strips) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.add_gridspec(len(strips), columns + 1, width_ratios=[*[1.0] * columns, 3.4 / 1.9])
    for row, (name, strip) in enumerate(strips.items()):
        axes = [figure.add_subplot(grid[row, column]) for column in range(columns)]
        _strip(np.array(axes), query, name, strip)
    _slopes(figure.add_subplot(grid[:, columns]), ranks, depth, slopes_title)
    return figure


def _slopes(axis: Axes, ranks: np.ndarray, depth: int, title: str) -> None:
    """A line from the old to the new rank of each positive; up is better."""
    beyond = 1.5 * depth  # where ranks that are not known are drawn, clear of the last tick
    for before, after in ranks:
        colour = RIGHT if after < before else WRONG if after > before else NEUTRAL
        style = "--" if after > before else "-"
        heights = [rank if rank <= depth else beyond for rank in (before, after)]
        axis.plot([0, 1], heights, style, color=colour, marker="o", markersize=4)
    axis.set_yscale("log")
    axis.set_ylim(1.4 * beyond, 0.75)
    ticks = [rank for rank in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if rank <= depth]
    axis.set_yticks([*ticks, beyond], [*map(str, ticks), f"> {depth}"])
    axis.minorticks_off()
    axis.set_xticks([0, 1], ["before", "after"])
    axis.set_xlim(-0.15, 1.15)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.grid(axis="y", alpha=0.3)
    axis.set_title(title, fontsize=9)


def pairs(columns: Sequence[tuple[str, np.ndarray, np.ndarray | None]], without: str) -> Figure:
    """Columns of (title, image, the positive below it); where that is None, ``without`` is said."""
    count = max(1, len(columns))
    figure = Figure(figsize=(1.9 * count, 4.2), layout="constrained")
    axes = figure.subplots(2, count, squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    for (above, below), (title, first, second) in zip(axes.T[: len(columns)], columns, strict=True):
        _show(above, first, title, NEUTRAL)
        if second is not None:
            _show(below, second, "positive", RIGHT)
        else:
            below.set_title(without, fontsize=9, color=NEUTRAL)
    return figure
