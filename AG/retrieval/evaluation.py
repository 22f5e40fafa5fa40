"""Evaluation: descriptors, nearest neighbours, re-ranking, figures; and what they were made by."""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from retrieval import checkpoint, extraction, metrics, progress, rerank, search
from retrieval.configs.describe import ExtractConfig, PcaConfig
from retrieval.configs.rank import RerankConfig
from retrieval.data import images
from retrieval.data.photo_sets import PhotoSet
from retrieval.data.positives import Positives
from retrieval.errors import InputError
from retrieval.features import FeatureStore, LocalFeatures
from retrieval.networks.interface import GlobalNetwork, Network
from retrieval.progress import Clock
from retrieval.rerank import Reranking
from retrieval.whitening import Projection, learn_pca

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranked:
    """The global ranking of an `PhotoSet`: (Q, K) rows, best first, and similarities.

    A query that could not be decoded has the row -1 throughout and similarity -inf.
    """

    ranking: np.ndarray
    similarity: np.ndarray
    queries: np.ndarray
    database: np.ndarray


def rank(
    model: GlobalNetwork,
    photos: PhotoSet,
    config: ExtractConfig,
    k: int,
    *,
    skipped: list[str] | None = None,
    clock: Clock | None = None,
) -> Ranked:
    """Global descriptors of all images, then exact k nearest neighbours."""
    clock = clock or Clock()
    count = len(photos.queries) + len(photos.database)
    with (
        clock.stage("global descriptors", count),
    ):
        describe = functools.partial(
            extraction.global_descriptors, model, skipped=skipped, progress=progress.advance
        )
        database = describe(photos.database, config)
        queries = describe(photos.queries, config, photos.query_boxes)
    with clock.stage("nearest neighbours"):
        ranking, similarity = _knn_of_sound(queries, database, k)
    return Ranked(ranking, similarity, queries, database)


def _knn_of_sound(
    queries: np.ndarray, database: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """`try_settings.knn` without the images that were skipped, whose descriptors are zero."""
    rows = np.flatnonzero(database.any(axis=1))
    if len(rows) == 0:
        raise InputError(f"none of the {len(database)} database images could be decoded")
    asked = queries.any(axis=1)
    found, near = search.knn(queries[asked], database[rows], k)
    ranking = np.full((len(queries), found.shape[1]), -1, np.int64)
    similarity = np.full(ranking.shape, -np.inf, np.float32)
    ranking[asked], similarity[asked] = rows[found], near
    return ranking, similarity


def learn_projection(
    model: Network, pca: PcaConfig, config: ExtractConfig, clock: Clock
) -> Projection | None:
    """The projection of local descriptors that ``pca`` asks for, if it names photos."""
    if pca.pca_photos is None:
        return None
    paths = images.list_images(pca.pca_photos)
    with clock.stage("projection", len(paths)):
        samples = extraction.local_descriptors(model, paths, config, progress=progress.advance)
    return learn_pca(samples, pca.pca_dim, pca.pca_power)


def open_store(
    folder: Path,
    model: Network,
    photos: PhotoSet,
    config: ExtractConfig,
    projection: Projection | None = None,
) -> FeatureStore:
    """The store of the local features of these photos by this model in this setting."""
    key = {
        "weights": checkpoint.weights_hash(model.state_dict()),
        "photos": photos.fingerprint(),
        "folder": str(photos.folder.resolve()),
        "resize": [config.resize, config.size],
        "local_scales": list(config.local_scales),
        "max_features": config.max_features,
        "min_score": config.min_score,
        "precision": config.precision,
        "projection": None if projection is None else projection.fingerprint(),
    }
    return FeatureStore.open(folder, key)


@dataclass(frozen=True)
class LocalSource:
    """Local features of an `PhotoSet` by row, out of a store; none for skipped images."""

    queries: Callable[[int], LocalFeatures]
    database: Callable[[int], LocalFeatures]


def local_features(
    model: Network,
    photos: PhotoSet,
    candidates: np.ndarray,
    store: FeatureStore,
    config: ExtractConfig,
    projection: Projection | None = None,
    *,
    skipped: list[str] | None = None,
    clock: Clock | None = None,
) -> LocalSource:
    """Local features of the queries and of the database rows in ``candidates``, each image once."""
    rows = np.unique(candidates[candidates >= 0])
    query_ids, database_ids = photos.query_ids, photos.database_ids
    total = len(query_ids) + len(rows)
    with (
        (clock or Clock()).stage("local features", total),
    ):
        extract = functools.partial(
            extraction.extract_local_features,
            model,
            store=store,
            config=config,
            projection=projection,
            skipped=skipped,
            progress=progress.advance,
        )
        extract(photos.queries, query_ids, boxes=photos.query_boxes)
        extract([photos.database[row] for row in rows], [database_ids[row] for row in rows])
    return local_source(photos, store)


def local_source(photos: PhotoSet, store: FeatureStore) -> LocalSource:
    """The local features that a store has of these photos."""
    query_ids, database_ids = photos.query_ids, photos.database_ids
    nothing = LocalFeatures(
        np.empty((0, 2), np.float32), np.empty((0, 1), np.float32), np.empty(0, np.float32), (1, 1)
    )

    def lookup(ids: Sequence[str], row: int) -> LocalFeatures:
        return store[ids[row]] if ids[row] in store else nothing

    # A database image is a candidate of many queries; a query is asked for once.
    return LocalSource(
        functools.partial(lookup, query_ids),
        functools.lru_cache(maxsize=4096)(functools.partial(lookup, database_ids)),
    )


def score(
    ranking: np.ndarray, truth: dict[str, Positives], recall_values: Sequence[int] = (1, 5, 10, 20)
) -> dict[str, float]:
    """Recalls ``R@k``, or ``mAP E``, ``mP@1 E`` … of revisited sets; empty without labels."""
    if "R" in truth:
        recalls = metrics.recall_at_k(ranking, truth["R"], recall_values)
        return {f"R@{k}": value for k, value in recalls.items()}
    figures = metrics.evaluate_revisited(ranking, truth)
    return {
        f"{name} {protocol}": value
        for protocol, values in figures.items()
        for name, value in values.items()
    }


def per_query(ranking: np.ndarray, truth: dict[str, Positives]) -> np.ndarray:
    """(Q,) what a paired comparison compares: 100 where R@1 hits, or the AP of protocol M."""
    if "R" in truth:
        return 100.0 * (metrics.first_hit_rank(ranking, truth["R"]) == 1)
    return metrics.mean_average_precision(ranking, truth["M"])[1]


def compare(
    before: np.ndarray, after: np.ndarray, truth: dict[str, Positives], names: Sequence[str]
) -> dict[str, Any]:
    """What re-ranking did: paired difference with 95 % interval; whom it helped and hurt."""
    mean, low, high = metrics.paired_interval(per_query(after, truth), per_query(before, truth))
    effect = rerank.effect(before, after, truth["R" if "R" in truth else "M"])
    return {
        "metric": "R@1" if "R" in truth else "mAP M",
        "difference": mean,
        "interval_95": [low, high],
        "helped": [names[query] for query in effect.helped],
        "hurt": [names[query] for query in effect.hurt],
        "unchanged": len(effect.unchanged),
    }


def rerank_locally(
    ranked: Ranked, local: LocalSource, config: RerankConfig, clock: Clock | None = None
) -> Reranking:
    """Re-rank the first ``config.top_k`` of each query by geometry, with a progress bar."""
    asked = np.flatnonzero(ranked.ranking[:, 0] >= 0)
    pairs = len(asked) * min(config.top_k, ranked.ranking.shape[1])
    with (
        (clock or Clock()).stage("re-ranking", pairs, "pairs"),
    ):
        found = rerank.rerank(
            ranked.ranking[asked],
            ranked.similarity[asked],
            lambda row: local.queries(int(asked[row])),
            local.database,
            config,
            progress=progress.advance,
        )
    ranking, similarity = ranked.ranking.copy(), ranked.similarity.copy()
    ranking[asked], similarity[asked] = found.ranking, found.similarity
    inliers = np.zeros((len(ranking), found.num_inliers.shape[1]), np.int64)
    inliers[asked] = found.num_inliers
    return replace(found, ranking=ranking, similarity=similarity, num_inliers=inliers)
