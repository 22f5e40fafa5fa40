"""Re-ranking: matches and verifies every query with the head of its ranking, and reorders that.

It is made to be safe. Even photos of different places share some inliers by chance; the floor is
what such pairs reach, and only inliers above it count. Without any, the old order stays. Several
kinds of local features may have a say: each is held against its own chance, in its own measure.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from retrieval.configs.rank import Geometry, RerankConfig
from retrieval.errors import InputError
from retrieval.features import LocalFeatures
from retrieval.metrics import paired_interval
from retrieval.search import Ranking
from retrieval.verification import STAGES, count_inliers

# A photo is believed to show the query's place if one random pair in a hundred has its inliers.
BELIEVED = 0.01

# Residuals that are tried where none is given, as multiples of the model's default, which is first.
_RESIDUALS = (1.0, 0.5, 2.0, 4.0)
# What they are tried on: so many photos of each half of the heads of so many queries. Fewer heads
# or photos than that tell nothing.
_TRIED_PHOTOS, _TRIED_QUERIES = 10, 100


class Evidence(NamedTuple):
    """Local features of one kind, by the rows of queries and database, and how they verify."""

    queries: Sequence[LocalFeatures]
    database: Sequence[LocalFeatures]
    geometry: Geometry


@dataclass(frozen=True)
class Chance:
    """How many inliers photos of different places share, measured on random pairs.

    Above the floor chance is taken to fall off exponentially, as inlier counts do.

    floor: a quantile of their counts: up to it inliers are no evidence.
    scale: mean count of inliers above the floor, of the pairs that have more.
    share: of random pairs that have more than the floor.
    pairs: how many there were.
    """

    floor: float
    scale: float
    share: float
    pairs: int

    @property
    def belief(self) -> float:
        """The inliers that the share `BELIEVED` of random pairs reaches."""
        return self.floor + self.scale * max(float(np.log(self.share / BELIEVED)), 0.0)


@dataclass(frozen=True)
class Found:
    """What one kind of local features found.

    geometry:    how pairs were matched and verified; its residual is the one in force.
    num_inliers: (Q, k) int64, of the first k entries of the *old* ranking.
    chance:      what random pairs have.
    floor:       inliers that counted for nothing: chance's, or what was asked for.
    seconds:     of processor for "loading" features, "matching" and "verification", summed over
                 threads, and "elapsed", the whole by the clock.
    ms_per_pair: elapsed milliseconds per verified pair (random pairs of the floor included).
    """

    geometry: Geometry
    num_inliers: np.ndarray
    chance: Chance
    floor: float
    seconds: dict[str, float]
    ms_per_pair: float


@dataclass(frozen=True)
class Reranking:
    """What re-ranking found.

    ranking:  the new order of each row, and the similarity of the same entries.
    kinds:    what each kind of local features found, at least one.
    strength: (Q, k) float64 of the first k entries of the *old* ranking: inliers above the floor,
              summed over the kinds (`summed`).
    belief:   strength from which a photo is believed to show the query's place.
    """

    ranking: Ranking
    kinds: tuple[Found, ...]
    strength: np.ndarray
    belief: float

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of chance that was hardly measured."""
        pairs = self.kinds[0].chance.pairs
        if self.ranking.rows.size == 0 or pairs >= 1 / BELIEVED:
            return ()
        return (
            f"only {pairs} random pairs of photos to measure chance on, where one in a hundred "
            "counts: few photos are believed",
        )


def rerank(
    ranked: Ranking,
    evidence: Sequence[Evidence],
    config: RerankConfig,
    threads: int | None = None,
) -> Reranking:
    """Verify the first `top_k` of each row of a ranking and reorder them by `reorder`.

    evidence: at least one kind of local features; they are asked from several threads (None: as
    many as torch uses). ``config`` says all but the geometry, which each kind has of its own. The
    result is the same for every number of threads. While it runs, torch and OpenCV are set to one
    thread each (the pairs are what is spread over threads), and set back at the end. Rows of
    queries that could not be read stay. Raises InputError for a ranking with repeats or negative
    rows, and as `match`, `verify_matches`.
    """
    _check_ranking(ranked)
    asked = np.flatnonzero(ranked.rows[:, 0] >= 0) if ranked.rows.size else np.empty(0, np.int64)
    rows, similarity = ranked.rows[asked], ranked.similarity[asked]
    head = rows[:, : config.top_k]
    heads = [[(int(q), int(d)) for d in row] for q, row in zip(asked, head, strict=True)]
    pairs = list(itertools.chain.from_iterable(heads))
    chance = [(int(asked[q]), d) for q, d in random_pairs(rows, config)]
    kinds, by_chance = [], []
    for each in evidence:
        if each.geometry.verify.residual is None:
            each = each._replace(geometry=measure_residual(heads, each, threads))
        counts, seconds = _count(pairs + chance, each, threads)
        num_inliers = np.zeros((len(ranked.rows), head.shape[1]), np.int64)
        num_inliers[asked] = counts[: len(pairs)].reshape(head.shape)
        measured = measure_chance(counts[len(pairs) :], config.floor_quantile)
        floor = measured.floor if config.floor is None else config.floor
        ms_per_pair = 1000 * seconds["elapsed"] / max(len(counts), 1)
        kinds.append(Found(each.geometry, num_inliers, measured, floor, seconds, ms_per_pair))
        by_chance.append(counts[len(pairs) :])
    strength = summed(kinds, [kind.num_inliers for kind in kinds])
    belief = measure_chance(summed(kinds, by_chance), config.floor_quantile).belief
    new_rows, order = reorder(rows, similarity, strength[asked], 0, config.fusion)
    new = Ranking(ranked.rows.astype(np.int64), ranked.similarity.copy())
    new.rows[asked] = new_rows
    new.similarity[asked] = np.take_along_axis(similarity, order, axis=1)
    return Reranking(new, tuple(kinds), strength, belief)


def _count(
    pairs: list[tuple[int, int]], evidence: Evidence, threads: int | None
) -> tuple[np.ndarray, dict[str, float]]:
    start = time.perf_counter()
    counted = count_inliers(
        pairs, evidence.queries, evidence.database, [evidence.geometry], threads
    )
    seconds = dict(zip(STAGES, counted.seconds[0].tolist(), strict=True))
    return counted.num_inliers[0], seconds | {"elapsed": time.perf_counter() - start}


def measure_residual(
    heads: Sequence[Sequence[tuple[int, int]]], evidence: Evidence, threads: int | None
) -> Geometry:
    """The geometry with the residual at which a query's first photos stand out most.

    heads: of each query its (query row, database row) pairs, best first. Without labels nobody
    knows which photos are right, but most of these are among the first, and the second half of the
    same head looks as alike (random photos do not: of those a larger residual tells ever more
    photos that are alike but wrong). So the mean inliers of the first, above the mean of the second
    half, in its standard deviations (one inlier at least), tell, in the mean over some queries. The
    model's default stays where none is better beyond doubt, or queries or heads are too few.
    """
    geometry = evidence.geometry
    default = geometry.verify.residual_px
    tried = [
        replace(geometry, verify=replace(geometry.verify, residual=default * factor))
        for factor in _RESIDUALS
    ]
    some = heads[:: max(1, -(-len(heads) // _TRIED_QUERIES))]
    half = min((len(head) for head in some), default=0) // 2
    if half < _TRIED_PHOTOS or len(some) < _TRIED_PHOTOS:
        return tried[0]
    step = half // _TRIED_PHOTOS
    ends = [slice(_TRIED_PHOTOS), slice(half, half + _TRIED_PHOTOS * step, step)]
    sample = [pair for head in some for end in ends for pair in head[end]]
    counts = count_inliers(
        sample, evidence.queries, evidence.database, tried, threads
    ).num_inliers.reshape(len(tried), len(some), len(ends), _TRIED_PHOTOS)
    first, alike = counts[:, :, 0], counts[:, :, 1]
    stand_out = (first.mean(axis=2) - alike.mean(axis=2)) / np.maximum(alike.std(axis=2), 1)
    best = int(stand_out.mean(axis=1).argmax())
    return tried[best if paired_interval(stand_out[best], stand_out[0]).low > 0 else 0]


def summed(kinds: Sequence[Found], num_inliers: Sequence[np.ndarray]) -> np.ndarray:
    """Inliers above the floor of each kind, summed in one measure: float64, shaped as each count.

    An inlier of a kind counts the less, the more of them chance gives: each kind is divided by its
    scale, and the sum multiplied by their mean. So the inliers of one kind alone stay what they
    are. The measure is the logarithm of how rare such a count is by chance, and sums of those add
    up evidence that is independent, as in Fisher's combination of p-values.
    """
    mean = float(np.mean([kind.chance.scale for kind in kinds]))
    each = zip(kinds, num_inliers, strict=True)
    parts = [np.maximum(n - k.floor, 0) * (mean / k.chance.scale) for k, n in each]
    return np.sum(parts, axis=0)


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


def measure_chance(
    num_inliers: np.ndarray, quantile: float = RerankConfig.floor_quantile
) -> Chance:
    """What the inlier counts (P,) of random pairs say; floor 0 if there are none.

    Cautious where pairs are few: with P pairs no share below 1 / (P + 1) is claimed.
    """
    if len(num_inliers) == 0:
        return Chance(0.0, 1.0, 1.0, 0)
    floor = float(np.quantile(num_inliers, quantile, method="higher"))
    above = num_inliers[num_inliers > floor] - floor
    scale = float(above.mean()) if len(above) else float(num_inliers.mean()) + 1
    return Chance(floor, scale, (len(above) + 1) / (len(num_inliers) + 1), len(num_inliers))


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
