"""Re-ranking: matches and verifies every query with the head of its ranking, and reorders that.

It is made to be safe. Even photos of different places share some inliers by chance; the floor is
what such pairs reach, and only inliers above it count. Without any, the old order stays.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby

import cv2
import numpy as np
import torch

from retrieval.errors import InputError
from retrieval.features import LocalFeatures
from retrieval.geometry import VerifyConfig, verify_matches
from retrieval.matching import MatchConfig, match_many
from retrieval.ransac import load_backend

# Candidates of one query that one task of the thread pool matches and verifies.
_BATCH = 25

FeatureLookup = Callable[[int], LocalFeatures]


@dataclass(frozen=True)
class RerankConfig:
    """How rankings are verified.

    top_k:          entries at the head of each ranking that are verified and reordered.
    match, verify:  of every pair of images.
    floor:          inliers that count for nothing; None: measured on random pairs. S1: 0.
    floor_pairs:    random pairs to measure it on.
    floor_quantile: of their inlier counts that is the floor. A quantile as high as 0.99 rests on
                    the few pairs that happen to show one place; 0.95 hardly moves with them.
    seed:           of the draw of the random pairs.
    threads:        None: as many as torch uses.
    """

    top_k: int = 100
    match: MatchConfig = field(default_factory=MatchConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    floor: float | None = None
    floor_pairs: int = 400
    floor_quantile: float = 0.95
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("top_k", "floor_pairs"):
            if getattr(self, name) < 1:
                raise InputError(f"re-ranking {name} {getattr(self, name)}: expected at least 1")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"re-ranking threads {self.threads}: expected at least 1")
        if not 0 <= self.floor_quantile <= 1:
            raise InputError(f"floor quantile {self.floor_quantile}: expected a number in [0, 1]")


@dataclass(frozen=True)
class Reranking:
    """What re-ranking found.

    ranking:     (Q, K) int64, the new order of each row.
    similarity:  (Q, K), of the same entries (so no longer sorted).
    num_inliers: (Q, k) int64, of the first k entries of the *old* ranking.
    floor:       inliers that counted for nothing.
    seconds:     of "loading" features, "matching" and "verification", summed over threads, and
                 "elapsed", the whole by the clock.
    ms_per_pair: elapsed milliseconds per verified pair (random pairs of the floor included).
    """

    ranking: np.ndarray
    similarity: np.ndarray
    num_inliers: np.ndarray
    floor: float
    seconds: dict[str, float]
    ms_per_pair: float


@dataclass(frozen=True)
class Effect:
    """Query rows by what re-ranking did to the rank of their first positive."""

    helped: np.ndarray
    hurt: np.ndarray
    unchanged: np.ndarray


def rerank(
    ranking: np.ndarray,
    similarity: np.ndarray,
    query_features: FeatureLookup,
    database_features: FeatureLookup,
    config: RerankConfig,
    progress: Callable[[int], object] | None = None,
) -> Reranking:
    """Verify the first `top_k` of each row of a (Q, K) ranking and reorder them by `reorder`.

    query_features and database_features give the features of a row of either set, and are called
    from several threads. progress is called with the number of pairs just done. The result is the
    same for every number of threads. While it runs, torch and OpenCV are set to one thread each
    (the pairs are what is spread over threads), and set back at the end.
    Raises InputError for a ranking with repeats or negative ids, and as `match`, `verify_matches`.
    """
    ranking, similarity = np.asarray(ranking), np.asarray(similarity)
    _check_ranking(ranking, similarity)
    head = ranking[:, : config.top_k]
    pairs = [(q, int(d)) for q, row in enumerate(head) for d in row]
    chance: list[tuple[int, int]] = []
    if config.floor is None:
        chance = random_pairs(ranking, config)

    start = time.perf_counter()
    counts, seconds = _count_inliers(
        pairs + chance, query_features, database_features, config, progress
    )
    seconds["elapsed"] = time.perf_counter() - start

    num_inliers = counts[: len(pairs)].reshape(head.shape)
    floor = config.floor
    if floor is None:
        floor = measure_floor(counts[len(pairs) :], config.floor_quantile)
    new_ranking, order = reorder(ranking, similarity, num_inliers, floor)
    return Reranking(
        ranking=new_ranking,
        similarity=np.take_along_axis(similarity, order, axis=1),
        num_inliers=num_inliers,
        floor=floor,
        seconds=seconds,
        ms_per_pair=1000 * seconds["elapsed"] / max(len(counts), 1),
    )


def reorder(
    ranking: np.ndarray, similarity: np.ndarray, num_inliers: np.ndarray, floor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Sort the first k of each row by the inliers above the floor, then by similarity.

    ranking, similarity (Q, K); num_inliers (Q, k). Returns (the new ranking (Q, K) int64, order
    (Q, K): the old column of each entry). Stable; columns from k on stay. Floor 0 is S1's order.
    """
    k = num_inliers.shape[1]
    gain = np.maximum(num_inliers - floor, 0)
    order = np.tile(np.arange(ranking.shape[1]), (len(ranking), 1))
    order[:, :k] = np.lexsort((-similarity[:, :k], -gain), axis=1)
    return np.take_along_axis(ranking, order, axis=1).astype(np.int64, copy=False), order


def random_pairs(ranking: np.ndarray, config: RerankConfig) -> list[tuple[int, int]]:
    """Draw (query row, database row) pairs that hardly show one place, for `measure_floor`.

    The database rows come from the other queries' shortlists (their features are needed anyway),
    far from the query's own ranking; or, where that holds them all, from the last half of it. The
    draw is seeded. Fewer pairs, or none, where there are not enough.
    """
    head = ranking[:, : config.top_k]
    shortlisted = np.unique(head)
    rng = np.random.default_rng(config.seed)
    pairs: set[tuple[int, int]] = set()
    if len(ranking) == 0 or len(shortlisted) == 0:
        return []
    each = -(-config.floor_pairs // len(ranking))
    for q in rng.permutation(len(ranking))[: config.floor_pairs]:
        far = np.setdiff1d(shortlisted, ranking[q])
        if len(far) < each:
            far = np.setdiff1d(shortlisted, head[q])
        if len(far) < each:
            far = head[q, (head.shape[1] + 1) // 2 :]
        pairs |= {(int(q), int(d)) for d in rng.permutation(far)[:each]}
    return sorted(pairs)


def measure_floor(num_inliers: np.ndarray, quantile: float = RerankConfig.floor_quantile) -> float:
    """The floor: a quantile of the inlier counts of random pairs; 0 if there are none."""
    if len(num_inliers) == 0:
        return 0.0
    return float(np.quantile(num_inliers, quantile, method="higher"))


def effect(
    old_ranking: np.ndarray, new_ranking: np.ndarray, positives: Sequence[np.ndarray]
) -> Effect:
    """Compare the rank of each query's first positive before and after; none at all ranks last."""
    change = np.array(
        [
            _first_hit(new, positive) - _first_hit(old, positive)
            for old, new, positive in zip(old_ranking, new_ranking, positives, strict=True)
        ],
        dtype=np.int64,
    )
    return Effect(*(np.flatnonzero(rows) for rows in (change < 0, change > 0, change == 0)))


def _first_hit(row: np.ndarray, positives: np.ndarray) -> int:
    hits = np.flatnonzero(np.isin(row, positives))
    return int(hits[0]) if len(hits) else len(row)


def _check_ranking(ranking: np.ndarray, similarity: np.ndarray) -> None:
    if ranking.ndim != 2 or ranking.shape != similarity.shape:
        raise InputError(
            f"ranking and similarity must both be (Q, K), not {ranking.shape}, {similarity.shape}"
        )
    if ranking.size and ranking.min() < 0:
        raise InputError(f"the ranking holds the id {ranking.min()}: ids are database rows from 0")
    ordered = np.sort(ranking, axis=1)
    repeats = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    if len(repeats):
        raise InputError(f"the ranking of query {repeats[0]} names a database image twice")


def _count_inliers(
    pairs: list[tuple[int, int]],
    query_features: FeatureLookup,
    database_features: FeatureLookup,
    config: RerankConfig,
    progress: Callable[[int], object] | None,
) -> tuple[np.ndarray, dict[str, float]]:
    """The inliers of each (query, database) pair, and the seconds of each stage over all threads.

    A task is one query with a batch of its candidates, so that one query alone fills the pool.
    """

    def count(task: tuple[int, list[int]]) -> tuple[list[int], tuple[float, float, float, float]]:
        query_row, candidate_rows = task
        t0 = time.perf_counter()
        query = query_features(query_row)
        candidates = [database_features(row) for row in candidate_rows]
        t1 = time.perf_counter()
        descriptors = [candidate.descriptors for candidate in candidates]
        matches = match_many(query.descriptors, descriptors, config.match)
        t2 = time.perf_counter()
        counts = [
            verify_matches(query, candidate, found, config.verify).num_inliers
            for candidate, found in zip(candidates, matches, strict=True)
        ]
        return counts, (t0, t1, t2, time.perf_counter())

    load_backend(config.verify.backend)  # here in the caller's thread, see there
    counts: list[int] = []
    times: list[tuple[float, float, float, float]] = []
    with _one_thread_each() as threads, ThreadPoolExecutor(config.threads or threads) as pool:
        for batch, stamps in pool.map(count, list(_tasks(pairs))):
            counts += batch
            times.append(stamps)
            if progress is not None:
                progress(len(batch))
    stages = np.diff(np.array(times).reshape(-1, 4), axis=1).sum(axis=0).tolist()
    seconds = dict(zip(("loading", "matching", "verification"), stages, strict=True))
    return np.array(counts, np.int64), seconds


def _tasks(pairs: list[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    """Runs of pairs with one query, as (query row, at most _BATCH database rows)."""
    for query_row, run in groupby(pairs, key=lambda pair: pair[0]):
        rows = [database_row for _, database_row in run]
        for start in range(0, len(rows), _BATCH):
            yield query_row, rows[start : start + _BATCH]


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """Keep torch and OpenCV from starting threads inside the pool's; gives torch's old number."""
    torch_threads, opencv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield torch_threads
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(opencv_threads)
