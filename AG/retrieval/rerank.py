"""Re-ranking: matches and verifies every query with the head of its ranking, and reorders that.

It is made to be safe. Even photos of different places share some inliers by chance; the floor is
what such pairs reach, and only inliers above it count. Without any, the old order stays.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from retrieval import metrics
from retrieval.configs.rank import RerankConfig
from retrieval.data.positives import Positives
from retrieval.errors import InputError
from retrieval.verification import STAGES, FeatureLookup, count_inliers


@dataclass(frozen=True)
class Reranking:
    """What re-ranking found.

    ranking:     (Q, K) int64, the new order of each row.
    similarity:  (Q, K), of the same entries (so no longer sorted).
    num_inliers: (Q, k) int64, of the first k entries of the *old* ranking.
    floor:       inliers that counted for nothing.
    seconds:     of processor for "loading" features, "matching" and "verification", summed over
                 threads, and "elapsed", the whole by the clock.
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
    counted = count_inliers(
        *(pairs + chance, query_features, database_features, [config.geometry]),
        threads=config.threads,
        progress=progress,
    )
    seconds = dict(zip(STAGES, counted.seconds[0].tolist(), strict=True))
    seconds["elapsed"] = time.perf_counter() - start

    counts = counted.num_inliers[0]
    num_inliers = counts[: len(pairs)].reshape(head.shape)
    floor = config.floor
    if floor is None:
        floor = measure_floor(counts[len(pairs) :], config.floor_quantile)
    new_ranking, order = reorder(ranking, similarity, num_inliers, floor, config.fusion)
    return Reranking(
        ranking=new_ranking,
        similarity=np.take_along_axis(similarity, order, axis=1),
        num_inliers=num_inliers,
        floor=floor,
        seconds=seconds,
        ms_per_pair=1000 * seconds["elapsed"] / max(len(counts), 1),
    )


def reorder(
    ranking: np.ndarray,
    similarity: np.ndarray,
    num_inliers: np.ndarray,
    floor: float,
    fusion: float = RerankConfig.fusion,
) -> tuple[np.ndarray, np.ndarray]:
    """Sort the first k of each row by the inliers above the floor, then by similarity.

    With ``fusion`` every entry gains fusion * similarity / (the best similarity among the k), so
    that a look-alike of far less similarity needs that many more inliers.

    ranking, similarity (Q, K); num_inliers (Q, k). Returns (the new ranking (Q, K) int64, order
    (Q, K): the old column of each entry). Stable; columns from k on stay. Floor 0 is S1's order.
    """
    k = num_inliers.shape[1]
    head = similarity[:, :k]
    gain = np.maximum(num_inliers - floor, 0)
    if fusion and head.size:
        best = head.max(axis=1, keepdims=True).astype(np.float64)
        gain = gain + fusion * (head / np.where(best > 0, best, 1))
    order = np.tile(np.arange(ranking.shape[1]), (len(ranking), 1))
    order[:, :k] = np.lexsort((-head, -gain), axis=1)
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


def effect(old_ranking: np.ndarray, new_ranking: np.ndarray, truth: Positives) -> Effect:
    """Compare the rank of each query's first positive before and after; none at all ranks last."""
    old, new = (metrics.first_hit_rank(ranking, truth) for ranking in (old_ranking, new_ranking))
    return Effect(*(np.flatnonzero(rows) for rows in (new < old, new > old, new == old)))


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
