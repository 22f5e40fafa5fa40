"""Looking into a network: attention over a photo, matches of two photos, a query re-ranked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from retrieval import extraction, metrics
from retrieval.configs.describe import ExtractConfig
from retrieval.configs.rank import Geometry
from retrieval.data import images, places
from retrieval.data.images import Box
from retrieval.data.photo_sets import PhotoSet
from retrieval.drawing import figures
from retrieval.drawing.html_report.pictures import heat_map
from retrieval.drawing.thumbnails import thumbnail_or_note
from retrieval.errors import InputError
from retrieval.features import LocalFeatures
from retrieval.metrics import rank_of
from retrieval.networks.interface import Network
from retrieval.query_reranking import QueryReranking, check_index
from retrieval.verification import match_pair


@dataclass(frozen=True)
class Photo:
    """A photo and its local features, in pixels of the photo."""

    path: Path
    features: LocalFeatures


@torch.inference_mode()
def features_of(
    model: Network, path: Path, config: ExtractConfig, box: Box | None = None
) -> LocalFeatures:
    """The local features of one photo, or of its ``box``; ImageError if it cannot be read."""
    model.eval()
    boxes = None if box is None else [box]
    (batch,) = extraction.load_batches([path], replace(config, num_workers=0), boxes)
    return extraction.local_features_of_batch(model, batch, config)[0]


def attention(
    model: Network, path: Path, config: ExtractConfig, count: int = 20, box: Box | None = None
) -> Figure:
    """The attention at scale 1 as a heat map over the photo, with the ``count`` best keypoints.

    box: the part that the network sees, as of a query of Oxford or Paris; None: all.
    """
    every_cell = replace(config, local_scales=(1.0,), max_features=10**6, min_score=0.0)
    cells = features_of(model, path, every_cell, box)
    heat, extent = _as_grid(cells)
    best = features_of(model, path, config, box)
    return figures.attention_map(images.read_image(path), best.keypoints[:count], heat, extent)


def _as_grid(cells: LocalFeatures) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The scores of all cells as an image (h, w), and its (left, right, bottom, top) in pixels."""
    (x, columns), (y, rows) = (
        np.unique(np.round(cells.keypoints[:, axis], 3), return_inverse=True) for axis in (0, 1)
    )
    heat = np.zeros((len(y), len(x)), np.float32)
    heat[rows, columns] = cells.scores
    half_x, half_y = (np.diff(axis).mean() / 2 if len(axis) > 1 else 8.0 for axis in (x, y))
    return heat, (x[0] - half_x, x[-1] + half_x, y[-1] + half_y, y[0] - half_y)


def stored_attention(photo: Photo, count: int = 20) -> Figure:
    """The scores of stored features as a heat map over their photo; no network is needed."""
    image = images.read_image(photo.path)
    height, width = image.shape[:2]
    heat = heat_map(photo.features, image)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    best = photo.features.keypoints[:count]
    return figures.attention_map(image, best, heat, extent, "attention, from lowest to highest")


def matches(query: Photo, database: Photo, geometry: Geometry) -> Figure:
    """The matches of two photos, those that the geometric model keeps over the rest."""
    found = match_pair(query.features, database.features, geometry)
    verification, count = found.verification, len(found.matches)
    title = (
        f"{verification.num_inliers} inliers of {count} matches "
        f"({geometry.verify.model}, within {geometry.verify.residual_px:g} px)"
    )
    return figures.matches(
        images.read_image(query.path),
        images.read_image(database.path),
        found.query.keypoints[found.matches[:, 0]],
        found.database.keypoints[found.matches[:, 1]],
        verification.inliers,
        title if count else "no matches",
    )


def reranking(photos: PhotoSet, query: int, found: QueryReranking, count: int = 5) -> Figure:
    """A query's first predictions before and after re-ranking, and where its positives went."""
    truth = photos.truth

    def strip(ranking: np.ndarray) -> list[figures.Prediction]:
        strip = []
        for row in ranking[:count].tolist():
            old, new = (rank_of(each, row) for each in (found.before, found.after))
            title = f"{new}" if old == new else f"{old} → {new}"
            mark = None if truth is None else truth.mark(query, row)
            photo = thumbnail_or_note(photos.database[row])
            strip.append(figures.Prediction(photo, title, mark))
        return strip

    none = _without_positives(photos)
    return figures.reranked_query(
        thumbnail_or_note(photos.queries[query], photos.box(query)),
        {"before": strip(found.before), "after": strip(found.after)},
        found.positive_ranks,
        len(found.before),
        f"query {query}: {found.in_words()}",
        "rank of each positive" if len(found.positives) else none,
    )


def positives(photos: PhotoSet, queries: Sequence[int]) -> Figure:
    """Queries (rows) above a positive each, to see what is asked of a network.

    Of several positives the one is shown that looks the most alike way, if the names tell.
    """
    truth = photos.truth
    columns = []
    for query in queries:
        check_index("query", query, len(photos.queries))
        right = [] if truth is None else [photos.database[row] for row in truth.positives[query]]
        above = thumbnail_or_note(photos.queries[query], photos.box(query))
        below = None
        if right:
            turns = [_turn(photos.queries[query], path) for path in right]
            below = thumbnail_or_note(right[int(np.argmin(turns))])
        columns.append((f"query {query}", above, below))
    return figures.pairs(columns, _without_positives(photos))


def _without_positives(photos: PhotoSet) -> str:
    return "no labels" if photos.truth is None else "no positives"


def _turn(first: Path, second: Path) -> float:
    """Degrees between the headings in two file names; 0 where a name tells none."""
    try:
        one, other = (places.parse_name(path).heading for path in (first, second))
    except InputError:
        return 0.0
    if one is None or other is None:
        return 0.0
    turn = abs(one - other) % 360
    return min(turn, 360 - turn)


def save_strips(
    folder: Path,
    photos: PhotoSet,
    ranking: np.ndarray,
    num_queries: int,
    *,
    num_predictions: int = 5,
    only_wrong: bool = False,
) -> list[Path]:
    """Draw queries with their first predictions, framed by right and wrong; returns the files."""
    truth = photos.truth
    rows = np.arange(len(ranking))
    if only_wrong and truth is not None:
        rows = rows[metrics.first_hit_rank(ranking, truth) > 1]
    files = []
    for query in rows[:num_queries]:
        predicted = [row for row in ranking[query, :num_predictions] if row >= 0]
        strip = []
        for rank, row in enumerate(predicted):
            photo = thumbnail_or_note(photos.database[row])
            mark = None if truth is None else truth.mark(query, row)
            strip.append(figures.Prediction(photo, str(rank + 1), mark))
        photo = thumbnail_or_note(photos.queries[query], photos.box(query))
        figure = figures.prediction_strip(photo, strip, query_title=f"query {query}")
        files.append(folder / f"{query:04d}.jpg")
        figures.save(figure, files[-1], dpi=90)
    return files
