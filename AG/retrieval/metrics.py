"""How good a ranking is: recall for places; mAP and mP@k as the revisited Oxford/Paris protocol.

A ranking is (Q, K) int: the rows of the database for each query, best first, each at most once; -1
stands for no candidate. Junk is taken out before anything is counted. Every figure is in percent.
K below the size of the database is allowed: what lies beyond counts as not found, so that recall@k
with k > K, AP and precision at k > K are lower bounds of the full ranking's.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from retrieval.configs.judge import RECALL_VALUES
from retrieval.data.positives import Positives


def positive_ranks(ranking: np.ndarray, positives: Positives) -> list[np.ndarray]:
    """For each query the ranks of the positives found, counted from 0 with junk taken out.

    Raises ValueError for a ranking of another shape or number of queries, or with repeats.
    """
    ranking = np.asarray(ranking)
    if ranking.ndim != 2 or len(ranking) != len(positives):
        raise ValueError(
            f"expected a ranking for {len(positives)} queries, (Q, K), not {ranking.shape}"
        )
    if not np.issubdtype(ranking.dtype, np.integer):
        raise ValueError(f"a ranking holds integers, not {ranking.dtype}")
    ordered = np.sort(ranking, axis=1)
    repeated = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    if repeated.any():
        raise ValueError(f"the ranking of query {repeated.argmax()} holds a row more than once")
    ranks = []
    for row, right, junk in zip(ranking, positives.positives, positives.junk, strict=True):
        found = np.flatnonzero(np.isin(row, right))
        if len(junk):
            found = found - np.searchsorted(np.flatnonzero(np.isin(row, junk)), found)
        ranks.append(found)
    return ranks


def rank_of(ranking: np.ndarray, row: int) -> int | None:
    """The rank, from 1, of a database row in one query's ranking (K,); None if it is not there."""
    found = np.flatnonzero(ranking == row)
    return int(found[0]) + 1 if len(found) else None


def first_hit_rank(ranking: np.ndarray, positives: Positives) -> np.ndarray:
    """(Q,) float64: the rank, from 1, of each query's first positive; inf where none is found."""
    ranks = positive_ranks(ranking, positives)
    return np.array([found[0] + 1 if len(found) else np.inf for found in ranks], np.float64)


def recall_at_k(
    ranking: np.ndarray, positives: Positives, ks: Sequence[int] = RECALL_VALUES
) -> dict[int, float]:
    """Recall@k: percent of all queries with a positive among the first k.

    Queries without positives count as misses, as in CosPlace. Without queries: nan.
    """
    _check_ks(ks)
    first = first_hit_rank(ranking, positives)
    return {k: 100 * float(np.mean(first <= k)) if len(first) else float("nan") for k in ks}


def average_precision(ranks: np.ndarray, num_positives: int) -> float:
    """Average precision in percent, by the trapezoidal rule (Philbin et al. 2007).

    ranks (n,): ranks from 0 of the positives found, ascending, junk taken out; num_positives counts
    those not found too. Without positives: nan.
    """
    if num_positives == 0:
        return float("nan")
    before = np.arange(len(ranks))  # positives above each positive
    precision_before = np.where(ranks == 0, 1.0, before / np.maximum(ranks, 1))
    precision_after = (before + 1) / (ranks + 1)
    return 50 * float((precision_before + precision_after).sum()) / num_positives


def mean_average_precision(ranking: np.ndarray, positives: Positives) -> tuple[float, np.ndarray]:
    """mAP in percent, and the (Q,) AP of each query, nan for a query without positives.

    The mean is over the queries that have positives; nan if none has.
    """
    ranks = positive_ranks(ranking, positives)
    pairs = zip(ranks, positives.positives, strict=True)
    precision = np.array([average_precision(found, len(right)) for found, right in pairs])
    return _mean(precision), precision


def precision_at_recalls(
    ranking: np.ndarray, positives: Positives, recalls: np.ndarray
) -> np.ndarray:
    """The mean precision-recall curve: (R,) precisions in percent at ``recalls`` (R,) in [0, 1].

    Interpolated as in TREC: of each query the highest precision at that recall or beyond, 0 where
    the ranking does not get so far. The mean is over the queries with positives; nan without any.
    """
    curves = []
    pairs = zip(positive_ranks(ranking, positives), positives.positives, strict=True)
    for found, right in pairs:
        if len(right) == 0:
            continue
        precision = np.arange(1, len(found) + 1) / (found + 1)
        beyond = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        # 0.29 * 100 is 28.999…: rounded, so that a recall just reached counts as reached.
        needed = np.ceil(np.round(recalls * len(right), 6)).astype(int)
        curves.append(beyond[np.clip(needed - 1, 0, len(found))])
    return 100 * np.mean(curves, axis=0) if curves else np.full(len(recalls), np.nan)


def precision_at_k(
    ranking: np.ndarray, positives: Positives, ks: Sequence[int] = (1, 5, 10)
) -> dict[int, float]:
    """mP@k in percent over the queries that have positives, as the revisited protocol counts it.

    For a query k is cut at the rank of its last positive: no ranking could fill a longer list.
    """
    _check_ks(ks)
    ranks = positive_ranks(ranking, positives)
    queries = [pair for pair in zip(ranks, positives.positives, strict=True) if len(pair[1])]
    precisions = {}
    for k in ks:
        values = []
        for found, right in queries:
            last = found[-1] + 1 if len(found) == len(right) else np.inf
            values.append(100 * np.sum(found < k) / min(last, k))
        precisions[k] = _mean(np.array(values))
    return precisions


def evaluate_revisited(
    ranking: np.ndarray, protocols: Mapping[str, Positives], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, dict[str, float]]:
    """For each protocol (E, M, H) its ``mAP`` and ``mP@k``, in percent."""
    figures = {}
    for name, positives in protocols.items():
        precisions = precision_at_k(ranking, positives, ks)
        figures[name] = {"mAP": mean_average_precision(ranking, positives)[0]}
        figures[name] |= {f"mP@{k}": value for k, value in precisions.items()}
    return figures


class Gain(NamedTuple):
    """A paired difference with its bootstrap interval, in percent points; nan without queries."""

    difference: float
    low: float
    high: float

    def in_words(self) -> str:
        """``+35.8 [+30.8, +40.8]``."""
        return f"{self.difference:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def paired_interval(
    after: np.ndarray,
    before: np.ndarray,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Gain:
    """The mean of after − before over queries, and its bootstrap interval (percentile method).

    after, before (Q,): a figure of each query (AP, or 100 where recall@1 hits and 0 elsewhere).
    Queries that are nan in either are left out.
    """
    after, before = np.asarray(after, np.float64), np.asarray(before, np.float64)
    if after.shape != before.shape or after.ndim != 1:
        raise ValueError(f"expected two equally long rows, not {after.shape} and {before.shape}")
    differences = after - before
    differences = differences[~np.isnan(differences)]
    n = len(differences)
    if n == 0:
        return Gain(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, 2**22 // n)  # bounds the memory of the draws
    for start in range(0, resamples, step):
        draws = rng.integers(n, size=(min(step, resamples - start), n))
        means[start : start + step] = differences[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Gain(float(differences.mean()), float(low), float(high))


def _check_ks(ks: Sequence[int]) -> None:
    if any(k < 1 for k in ks):
        raise ValueError(f"k must be at least 1, not {list(ks)}")


def _mean(values: np.ndarray) -> float:
    """The mean of what is not nan; nan if nothing is left."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
