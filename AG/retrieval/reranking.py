"""Re-ranking: matches and verifies every query with the head of its ranking, and reorders that.

It is made to be safe. Even photos of different places share some inliers by chance; the floor is
what such pairs reach, and only inliers above it count. Without any, the old order stays.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.configs.rank import RerankConfig
from retrieval.errors import InputError
from retrieval.features import LocalFeatures
from retrieval.search import Ranking
from retrieval.verification import STAGES, count_inliers


@dataclass(frozen=True)
class Reranking:
    """What re-ranking found.

    ranking:     the new order of each row, and the similarity of the same entries.
    num_inliers: (Q, k) int64, of the first k entries of the *old* ranking.
    floor:       inliers that counted for nothing.
    seconds:     of processor for "loading" features, "matching" and "verification", summed over
                 threads, and "elapsed", the whole by the clock.
    ms_per_pair: elapsed milliseconds per verified pair (random pairs of the floor included).
    """

    ranking: Ranking
    num_inliers: np.ndarray
    floor: float
    seconds: dict[str, float]
    ms_per_pair: float


def rerank(
    ranked: Ranking,
    query_features: Sequence[LocalFeatures],
    database_features: Sequence[LocalFeatures],
    config: RerankConfig,
    threads: int | None = None,
) -> Reranking:
    """Verify the first `top_k` of each row of a ranking and reorder them by `reorder`.

    query_features and database_features give the features of a row of either set, and are asked
    from several threads (None: as many as torch uses). The result is the same for every number of
    threads. While it runs, torch and OpenCV are set to one thread each (the pairs are what is
    spread over threads), and set back at the end. Rows of queries that could not be read stay.
    Raises InputError for a ranking with repeats or negative rows, and as `match`, `verify_matches`.
    """
    _check_ranking(ranked)
    asked = np.flatnonzero(ranked.rows[:, 0] >= 0) if ranked.rows.size else np.empty(0, np.int64)
    rows, similarity = ranked.rows[asked], ranked.similarity[asked]
    head = rows[:, : config.top_k]
    pairs = [(int(q), int(d)) for q, row in zip(asked, head, strict=True) for d in row]
    drawn = random_pairs(rows, config) if config.floor is None else []
    chance = [(int(asked[q]), d) for q, d in drawn]

    start = time.perf_counter()
    counted = count_inliers(
        pairs + chance, query_features, database_features, [config.geometry], threads
    )
    seconds = dict(zip(STAGES, counted.seconds[0].tolist(), strict=True))
    seconds["elapsed"] = time.perf_counter() - start

    counts = counted.num_inliers[0]
    num_inliers = np.zeros((len(ranked.rows), head.shape[1]), np.int64)
    num_inliers[asked] = counts[: len(pairs)].reshape(head.shape)
    measured = measure_floor(counts[len(pairs) :], config.floor_quantile)
    floor = measured if config.floor is None else config.floor
    new_rows, order = reorder(rows, similarity, num_inliers[asked], floor, config.fusion)
    new = Ranking(ranked.rows.astype(np.int64), ranked.similarity.copy())
    new.rows[asked] = new_rows
    new.similarity[asked] = np.take_along_axis(similarity, order, axis=1)
    ms_per_pair = 1000 * seconds["elapsed"] / max(len(counts), 1)
    return Reranking(new, num_inliers, floor, seconds, ms_per_pair)


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
    (Q, K): the old column of each entry). Stable; columns from k on stay. Floor 0 is DELG's order.
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


def _check_ranking(ranked: Ranking) -> None:
    rows, similarity = ranked.rows, ranked.similarity
    if rows.ndim != 2 or rows.shape != similarity.shape:
        raise InputError(
            f"ranking and similarity must both be (Q, K), not {rows.shape}, {similarity.shape}"
        )
    read = rows[(rows >= 0).any(axis=1)]
    if read.size and read.min() < 0:
        raise InputError(f"the ranking holds the id {read.min()}: ids are database rows from 0")
    ordered = np.sort(rows, axis=1)
    repeated = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    if repeated.any():
        raise InputError(f"the ranking of query {repeated.argmax()} names a database photo twice")
