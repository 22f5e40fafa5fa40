"""A data set seen from above: where its photos were taken, and which queries have right answers."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retrieval.data.manifest import Manifest, Part
from retrieval.data.photo_sets import PhotoSet
from retrieval.data.places import Positions
from retrieval.drawing.palette import NEUTRAL, RIGHT, WRONG

_MOST_ARROWS = 400  # more headings than these hide each other
_MOST_PLACES = 40
_TRAINED = "#009E73"  # green of the same palette


def draw(manifest: Manifest, opened: Mapping[str, PhotoSet]) -> Figure:
    """A map of each split in metres; of frames and places a chart; else the numbers of positives.

    Photos to train on, and those held out from them, are on one map. opened: the sets of the splits
    that have queries.
    """
    parts = manifest.parts or dict.fromkeys(opened)
    maps = {split: part for split, part in manifest.parts.items() if _is_map(part)}
    panels = [split for split in parts if split not in maps] + ["map"] * bool(maps)
    figure = Figure(figsize=(7 * len(panels), 6.5), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, split in zip(axes, panels, strict=True):
        if split == "map":
            _map(axis, maps, opened)
        else:
            _chart(axis, split, parts[split], opened.get(split))
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="best", fontsize=8)
    figure.suptitle(manifest.folder.name)
    return figure


def _is_map(part: Part) -> bool:
    return part.database.taken is not None and part.database.taken.kind == "metres"


def _chart(axis: Axes, split: str, part: Part | None, photos: PhotoSet | None) -> None:
    taken = None if part is None else part.database.taken
    if taken is None:
        _counts(axis, split, photos)
    elif taken.kind == "labels":
        _places(axis, split, taken.labels)
    else:
        _frames(axis, split, taken.positions, photos)


def _map(axis: Axes, parts: Mapping[str, Part], opened: Mapping[str, PhotoSet]) -> None:
    """Metres from the south-western corner; of several zones, that of most photos."""
    database = {split: part.database.taken for split, part in parts.items()}
    taken = {split: each.positions for split, each in database.items() if each is not None}
    every = np.concatenate([each.zones for each in taken.values()])
    zones, counts = np.unique(every, return_counts=True)
    zone = zones[counts.argmax()]
    here = {split: each.zones == zone for split, each in taken.items()}
    corner = np.concatenate([each.utm[here[split]] for split, each in taken.items()]).min(axis=0)
    for split, each in taken.items():
        name, colour = ("train", _TRAINED) if split == "train" else (f"{split} database", NEUTRAL)
        _photos(axis, each, here[split], corner, colour, f"{name} ({here[split].sum()})")
        if split in opened:
            _queries(axis, split, opened[split], zone, corner)
    axis.set_aspect("equal", adjustable="datalim")
    axis.set_xlabel("metres east")
    axis.set_ylabel("metres north")
    elsewhere = int((every != zone).sum())
    more = f"; {elsewhere} photos are in other zones" if elsewhere else ""
    axis.set_title(f"zone {zone} of UTM{more}" if zone else "metres of a local grid", fontsize=9)


def _queries(axis: Axes, split: str, photos: PhotoSet, zone: int, corner: np.ndarray) -> None:
    """A ring for each query, whose colour says whether it has a right answer."""
    queries, _ = photos.whereabouts
    if queries is None or photos.truth is None:
        return
    found = np.array([len(rows) > 0 for rows in photos.truth.positives])
    shown = queries.positions.zones == zone
    for some, colour, words in ((found, RIGHT, "with"), (~found, WRONG, "without")):
        points = queries.positions.utm[some & shown] - corner
        if len(points):
            label = f"{split} queries {words} right answers ({len(points)})"
            axis.plot(*points.T, "o", mfc="none", color=colour, ms=7, label=label)


def _photos(
    axis: Axes, taken: Positions, here: np.ndarray, corner: np.ndarray, colour: str, label: str
) -> None:
    points, heading = taken.utm[here] - corner, np.radians(taken.heading[here])
    axis.plot(*points.T, ".", color=colour, ms=5, label=label)
    known = np.isfinite(heading)
    if 0 < known.sum() <= _MOST_ARROWS:
        east, north = np.sin(heading[known]), np.cos(heading[known])
        axis.quiver(
            *points[known].T,
            east,
            north,
            color=colour,
            alpha=0.6,
            scale=30,
            width=0.002,
            pivot="tail",
        )


def _frames(axis: Axes, split: str, taken: Positions, photos: PhotoSet | None) -> None:
    """Which frames of the database are right for which queries; without queries, the frames."""
    frames = taken.utm[:, 0]
    if photos is None or photos.truth is None or photos.whereabouts[0] is None:
        axis.plot(np.sort(frames), ".", color=_TRAINED)
        axis.set_xlabel(f"{split} photos, by frame")
        axis.set_ylabel("frame")
        return
    asked = photos.whereabouts[0].positions.utm[:, 0]
    pairs = [
        (asked[q], frames[row]) for q, rows in enumerate(photos.truth.positives) for row in rows
    ]
    axis.plot(*np.array(pairs).reshape(-1, 2).T, ".", color=RIGHT, ms=3)
    axis.set_xlabel(f"frame of the {split} query")
    axis.set_ylabel("frames that are right answers")


def _places(axis: Axes, split: str, labels: tuple[str, ...]) -> None:
    """How many photos each place has, the largest first."""
    names, counts = np.unique(np.array(labels, str), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MOST_PLACES]
    axis.barh(names[order][::-1], counts[order][::-1], color=NEUTRAL)
    axis.set_xlabel("photos")
    more = f" (the largest {_MOST_PLACES})" if len(names) > _MOST_PLACES else ""
    axis.set_title(f"{split}: {len(names)} places{more}", fontsize=9)


def _counts(axis: Axes, split: str, photos: PhotoSet | None) -> None:
    """How many right answers the queries have, by protocol."""
    truths = {} if photos is None else photos.ground_truth
    for name, truth in truths.items():
        counts = sorted((len(rows) for rows in truth.positives), reverse=True)
        axis.step(range(len(counts)), counts, where="mid", label=name)
    axis.set_xlabel(f"{split} queries, by their number of right answers")
    axis.set_ylabel("right answers" if truths else "no right answers are known")
