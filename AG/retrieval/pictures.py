"""Looking into a network: the attention over a photo, the matches of two photos."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from retrieval import extraction, images, plots
from retrieval.delg import Delg
from retrieval.extraction import ExtractConfig
from retrieval.features import LocalFeatures
from retrieval.geometry import VerifyConfig, verify_matches
from retrieval.matching import MatchConfig, match


@torch.inference_mode()
def features_of(model: Delg, path: Path, config: ExtractConfig) -> LocalFeatures:
    """The local features of one photo; ImageError if it cannot be read."""
    (batch,) = extraction.load_batches([path], config)
    return extraction.local_features_of_batch(model.eval(), batch, config)[0]


def attention(model: Delg, path: Path, config: ExtractConfig, count: int = 20) -> Figure:
    """The attention at scale 1 as a heat map over the photo, with the ``count`` best keypoints."""
    one_scale = ExtractConfig(
        **{**vars(config), "local_scales": (1.0,), "max_features": 10**6, "min_score": 0.0}
    )
    cells = features_of(model, path, one_scale)
    heat, extent = _as_grid(cells)
    best = features_of(model, path, config)
    return plots.attention_map(
        images.read_image(path), best.keypoints[:count], heat, extent, "attention"
    )


def _as_grid(cells: LocalFeatures) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The scores of all cells as an image (h, w), and its (left, right, bottom, top) in pixels."""
    (x, columns), (y, rows) = (
        np.unique(np.round(cells.keypoints[:, axis], 3), return_inverse=True) for axis in (0, 1)
    )
    heat = np.zeros((len(y), len(x)), np.float32)
    heat[rows, columns] = cells.scores
    half_x, half_y = (np.diff(axis).mean() / 2 if len(axis) > 1 else 8.0 for axis in (x, y))
    return heat, (x[0] - half_x, x[-1] + half_x, y[-1] + half_y, y[0] - half_y)


def matches(
    model: Delg,
    query: Path,
    database: Path,
    config: ExtractConfig,
    match_config: MatchConfig,
    verify_config: VerifyConfig,
) -> Figure:
    """The matches of two photos, those that the geometric model keeps over the rest."""
    query_features = features_of(model, query, config)
    database_features = features_of(model, database, config)
    found = match(query_features.descriptors, database_features.descriptors, match_config)
    verified = verify_matches(query_features, database_features, found, verify_config)
    title = (
        f"{verified.num_inliers} inliers of {len(found)} matches "
        f"({verify_config.model}, {verify_config.residual_px:g} px)"
    )
    return plots.matches(
        images.read_image(query),
        images.read_image(database),
        query_features.keypoints[found[:, 0]],
        database_features.keypoints[found[:, 1]],
        verified.inliers,
        title,
    )
