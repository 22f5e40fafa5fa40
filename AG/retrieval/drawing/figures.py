"""What figures are put together from, and `save`, which writes them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from retrieval.drawing.palette import COLOURS, NEUTRAL, RIGHT, SIGNS, WRONG
from retrieval.files import write_atomically


def save(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write the figure as an image file; the ending of ``path`` names the format."""
    FigureCanvasAgg(figure)
    data = io.BytesIO()
    kind = path.suffix.lstrip(".") or None
    figure.savefig(data, format=kind, dpi=dpi, bbox_inches="tight", pad_inches=0.08)
    write_atomically(path, data.getbuffer())


def of_picture(picture: np.ndarray, title: str) -> tuple[Figure, Axes]:
    """A figure of one picture (H, W, 3) under its title."""
    height, width = picture.shape[:2]
    figure = Figure(figsize=(11, 0.6 + 11 * height / width), layout="constrained")
    axis = figure.subplots()
    axis.imshow(picture)
    axis.set_title(title, fontsize=11)
    axis.axis("off")
    return figure, axis


def framed(axis: Axes, photo: np.ndarray, title: str, colour: str = NEUTRAL) -> None:
    """A photo (H, W, 3) in a frame, under its title."""
    height, width = photo.shape[:2]
    axis.imshow(photo)
    axis.set_title(title, fontsize=9, color=colour)
    axis.axis("off")
    frame = Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor=colour, linewidth=4)
    axis.add_patch(frame)


class Prediction(NamedTuple):
    """A photo of the database (H, W, 3), what stands over it, and its mark.

    mark: right, wrong, junk, or none where that is not known.
    """

    photo: np.ndarray
    title: str
    mark: str


def strip(
    axes: Sequence[Axes], query: np.ndarray, title: str, predictions: Sequence[Prediction]
) -> None:
    """A query and its first predictions, each framed and marked as right or wrong."""
    framed(axes[0], query, title)
    for axis, (photo, text, mark) in zip(axes[1:], predictions, strict=True):
        framed(axis, photo, f"{SIGNS[mark]} {text}".strip(), COLOURS[mark])


def slopes(axis: Axes, ranks: np.ndarray, depth: int, title: str) -> None:
    """A line from the old to the new rank of each positive; up is better.

    ranks: (P, 2), from 1, before and after; depth + 1 where it is further back than ``depth``.
    """
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
