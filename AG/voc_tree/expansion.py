"""Query expansion: verified images lend their features to the query, and it is asked again.

Chum, Philbin, Sivic, Isard, Zisserman, "Total recall", ICCV 2007.
"""

import numpy as np

from retrieval.configs.rank import ExpandConfig, RerankConfig
from retrieval.features import LocalFeatures
from retrieval.reranking import Reranking
from retrieval.search import Ranking
from retrieval.verification import match


def believed(reranked: Reranking, ranked: Ranking, config: ExpandConfig) -> list[np.ndarray]:
    """For each query the images with enough inliers, in the order of the new ranking.

    ranked: the ranking (Q, K) before.
    """
    k = reranked.num_inliers.shape[1]
    rows = []
    for new, old, inliers in zip(
        reranked.ranking.rows[:, :k], ranked.rows[:, :k], reranked.num_inliers, strict=True
    ):
        rows.append(new[np.isin(new, old[inliers >= config.expand_inliers])])
    return rows


def expanded(
    query: LocalFeatures, images: "list[LocalFeatures]", config: RerankConfig
) -> np.ndarray:
    """(n, d): descriptors of the query, and of those features of images that lie in it.

    An image's features are taken back by its transform (fitted as ``config`` says) into the box
    of the query's own keypoints.
    """
    parts = [query.descriptors]
    low, high = query.keypoints.min(axis=0), query.keypoints.max(axis=0)
    for image in images:
        model = match(query, image, config.geometry).verification.model
        if model is not None and abs(np.linalg.det(model)) > 1e-12:
            points = _transformed(image.keypoints, np.linalg.inv(model))
            parts.append(image.descriptors[((points >= low) & (points <= high)).all(axis=1)])
    return np.concatenate(parts)


def _transformed(points: np.ndarray, model: np.ndarray) -> np.ndarray:
    """(n, 2) points by a (3, 3) transform; what is sent to infinity becomes nan."""
    lifted = np.column_stack([points, np.ones(len(points))]) @ model.T
    depth = np.where(lifted[:, 2] > 0, lifted[:, 2], np.nan)
    return lifted[:, :2] / depth[:, None]


def verified_first(verified: np.ndarray, ranking: np.ndarray) -> np.ndarray:
    """(n,): the verified images in their order, then the rest of a ranking (n,)."""
    return np.concatenate([verified, ranking[~np.isin(ranking, verified)]])
