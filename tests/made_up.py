"""Evaluations put together in memory, for tests of what takes one."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retrieval.configs.rank import RerankConfig
from retrieval.data.photo_sets import PhotoSet
from retrieval.evaluation import Evaluation, Verified, score
from retrieval.feature_folders import SetFeatures
from retrieval.features import LocalFeatures, MadeBy
from retrieval.protocol import Protocol
from retrieval.search import Ranking


class Store(NamedTuple):
    """What is known of a store of features that lies nowhere."""

    folder: Path = Path("nowhere")
    made_by: MadeBy = MadeBy("made up", {}, {})
    form: str = "half"
    bytes_per_image: float = 1000.0


class Looked(Sequence[LocalFeatures]):
    """Features by a function of the row."""

    def __init__(self, lookup: Callable[[int], LocalFeatures], count: int) -> None:
        self._lookup, self._count = lookup, count

    def __len__(self):
        return self._count

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self._lookup(each) for each in range(*row.indices(self._count))]
        return self._lookup(row)

    def described_sizes(self):
        return [self._lookup(row).image_size for row in range(self._count)]


def set_features(queries, database, photos: PhotoSet) -> SetFeatures:
    """The features of a photo set by two functions of the row."""
    made: Any = (
        Store(), Looked(queries, len(photos.queries)), Looked(database, len(photos.database))
    )  # fmt: skip
    return SetFeatures(*made)


def ranking_of(rows) -> Ranking:
    """A ranking with falling similarities."""
    rows = np.asarray(rows, np.int64)
    similarity = np.tile(-np.arange(rows.shape[1], dtype=np.float32), (len(rows), 1))
    return Ranking(rows, similarity)


def evaluation_of(
    photos: PhotoSet,
    rankings: Mapping[str, Any],
    *,
    settings: Mapping[str, Any] | None = None,
    num_inliers: np.ndarray | None = None,
    config: RerankConfig | None = None,
    features: SetFeatures | None = None,
    **more: Any,
) -> Evaluation:
    """An evaluation of these rankings (Q, K) by step; verified where ``num_inliers`` are given."""
    count = len(photos.queries), len(photos.database)
    evidence: tuple[Verified, ...] = ()
    if num_inliers is not None:
        seconds = dict.fromkeys(("loading", "matching", "verification"), 0.1)
        evidence = (
            Verified(config or RerankConfig(floor=0.0), num_inliers, 0.5, seconds, features),
        )
    return Evaluation(
        **{
            "title": "a title",
            "photos": photos,
            "steps": tuple(score(name, ranking_of(r), photos) for name, r in rankings.items()),
            "protocol": Protocol(str(photos.folder), "abc", *count, settings or {}, {}, "unknown"),
            "evidence": evidence,
            **more,
        }
    )
