"""Looking into a network: attention over a photo, matches of two photos, a query re-ranked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from retrieval import extraction, images, places, plots
from retrieval.errors import InputError
from retrieval.evaluation_sets import EvaluationSet
from retrieval.extraction import ExtractConfig
from retrieval.features import LocalFeatures
from retrieval.geometry import VerifyConfig, verify_matches
from retrieval.html_report.pictures import heat_map
from retrieval.matching import MatchConfig, match
from retrieval.network import Network
from retrieval.one_query import QueryReranking, check_index

THUMBNAIL = 256


@dataclass(frozen=True)
class Photo:
    """A photo and its local features, in pixels of the photo."""

    path: Path
    features: LocalFeatures


@torch.inference_mode()
def features_of(model: Network, path: Path, config: ExtractConfig) -> LocalFeatures:
    """The local features of one photo; ImageError if it cannot be read."""
    model.eval()
    (batch,) = extraction.load_batches([path], replace(config, num_workers=0))
    return extraction.local_features_of_batch(model, batch, config)[0]


def attention(model: Network, path: Path, config: ExtractConfig, count: int = 20) -> Figure:
    """The attention at scale 1 as a heat map over the photo, with the ``count`` best keypoints."""
    every_cell = replace(config, local_scales=(1.0,), max_features=10**6, min_score=0.0)
    cells = features_of(model, path, every_cell)
    heat, extent = _as_grid(cells)
    best = features_of(model, path, config)
    return plots.attention_map(images.read_image(path), best.keypoints[:count], heat, extent)


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
    return plots.attention_map(image, best, heat, extent, "attention, from lowest to highest")


def matches(
    query: Photo, database: Photo, match_config: MatchConfig, verify_config: VerifyConfig
) -> Figure:
    """The matches of two photos, those that the geometric model keeps over the rest."""
    found = match(query.features.descriptors, database.features.descriptors, match_config)
    verified = verify_matches(query.features, database.features, found, verify_config)
    title = (
        f"{verified.num_inliers} inliers of {len(found)} matches "
        f"({verify_config.model}, within {verify_config.residual_px:g} px)"
    )
    return plots.matches(
        images.read_image(query.path),
        images.read_image(database.path),
        query.features.keypoints[found[:, 0]],
        database.features.keypoints[found[:, 1]],
        verified.inliers,
        title if len(found) else "no matches",
    )


def reranking(photos: EvaluationSet, query: int, found: QueryReranking, count: int = 5) -> Figure:
    """A query's first predictions before and after re-ranking, and where its positives went."""
    truth = photos.truth

    def strip(ranking: np.ndarray) -> list[plots.Prediction]:
        strip = []
        for row in ranking[:count]:
            old, new = found.rank_before(row), found.rank_after(row)
            right = None
            if truth is not None and row not in truth.junk[query]:
                right = bool(row in truth.positives[query])
            title = str(new) if old == new else f"{old} → {new}"
            photo = images.read_image(photos.database[row], THUMBNAIL)
            strip.append(plots.Prediction(photo, title, right))
        return strip

    return plots.reranked_query(
        images.read_image(photos.queries[query], THUMBNAIL),
        {"before": strip(found.before), "after": strip(found.after)},
        found.positive_ranks,
        len(found.before),
        f"query {query}: {found.in_words()}",
    )


def positives(photos: EvaluationSet, queries: Sequence[int]) -> Figure:
    """Queries (rows) above a positive each, to see what is asked of a network.

    Of several positives the one is shown that looks the most alike way, if the names tell.
    """
    truth = photos.truth
    columns = []
    for query in queries:
        check_index("query", query, len(photos.queries))
        right = [] if truth is None else [photos.database[row] for row in truth.positives[query]]
        above = images.read_image(photos.queries[query], THUMBNAIL)
        below = None
        if right:
            turns = [_turn(photos.queries[query], path) for path in right]
            below = images.read_image(right[int(np.argmin(turns))], THUMBNAIL)
        columns.append((f"query {query}", above, below))
    return plots.pairs(columns)


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
