"""Pictures: a query with its predictions, an attention map, the matches of two photos.

Right and wrong differ in colour and in mark; the colours are ones that colour-blind people tell
apart. Every function returns a matplotlib Figure; `save` writes it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

RIGHT, WRONG, NEUTRAL = "#0072B2", "#D55E00", "#666666"  # blue, vermilion (Okabe and Ito), grey


def save(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write the figure as an image file; the ending of ``path`` names the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=dpi, bbox_inches="tight", pad_inches=0.08)


def prediction_strip(
    query: np.ndarray,
    predictions: Sequence[np.ndarray],
    titles: Sequence[str],
    right: Sequence[bool | None],
    query_title: str = "query",
) -> Figure:
    """The query and its first predictions, each framed by whether it is right (None: unknown)."""
    columns = 1 + len(predictions)
    figure = Figure(figsize=(2.1 * columns, 2.5), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, columns))
    _show(axes[0], query, query_title, NEUTRAL)
    for axis, image, title, is_right in zip(axes[1:], predictions, titles, right, strict=True):
        mark = {True: "✓ ", False: "✗ ", None: ""}[is_right]
        colour = {True: RIGHT, False: WRONG, None: NEUTRAL}[is_right]
        _show(axis, image, mark + title, colour)
    return figure


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
    title: str = "attention",
) -> Figure:
    """A photo beside itself under its attention, with the strongest keypoints marked.

    heat: (h, w) scores of the cells; extent: (left, right, bottom, top) of the cells' outer edges
    in pixels of ``image``; keypoints: (K, 2) x, y.
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
    over.set_title(f"{title}, {len(keypoints)} strongest keypoints", fontsize=10)
    figure.colorbar(shown, ax=over, shrink=0.8, label="attention")
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
