"""Query expansion: verified images lend their features to the query, and it is asked again.

Chum, Philbin, Sivic, Isard, Zisserman, "Total recall", ICCV 2007.
"""

from collections.abc import Sequence

import numpy as np

from retrieval.configs.rank import ExpandConfig, Geometry
from retrieval.features import LocalFeatures
from retrieval.reranking import Reranking
from retrieval.search import Ranking
from retrieval.verification import match


def believed(found: Reranking, ranked: Ranking, config: ExpandConfig) -> list[np.ndarray]:
    """For each query the images with enough inliers, in the order of the new ranking.

    Enough are those that chance hardly gives, unless ``config`` says how many (of one kind of
    features). ranked: the ranking (Q, K) before.
    """
    k = found.strength.shape[1]
    if config.expand_inliers is None:
        enough = (found.strength > 0) & (found.strength >= found.belief)
    else:
        enough = np.any([kind.num_inliers >= config.expand_inliers for kind in found.kinds], axis=0)
    return [
        new[np.isin(new, old[row])]
        for new, old, row in zip(found.ranking.rows[:, :k], ranked.rows[:, :k], enough, strict=True)
    ]


def expanded(
    query: LocalFeatures, images: Sequence[LocalFeatures], geometry: Geometry
) -> np.ndarray:
    """(n, d): descriptors of the query, and of those features of images that lie in it.

    An image's features are taken back by its transform (fitted as ``geometry`` says) into the box
    of the query's own keypoints.
    """
    parts = [query.descriptors]
    low, high = query.keypoints.min(axis=0), query.keypoints.max(axis=0)
    for image in images:
        model = match(query, image, geometry).verification.model
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
