"""Nearest neighbours between descriptors, by faiss."""

from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from retrieval.errors import InputError


@dataclass(frozen=True)
class Ranking:
    """The database as it is ranked for each query, whatever ranked it.

    rows:       (Q, K) int64, database rows, best first; -1 throughout for a query that could not be
                read.
    similarity: (Q, K) float32 of the same entries; higher is more alike.
    """

    rows: np.ndarray
    similarity: np.ndarray


def without(ranking: Ranking, left_out: Sequence[np.ndarray] | None) -> Ranking:
    """The ranking without some database rows of each query; narrower by the most that are taken.

    left_out: (Q,) arrays of rows, or None for nothing. A -1 is never taken.
    """
    if left_out is None:
        return ranking
    taken = [np.isin(row, out) for row, out in zip(ranking.rows, left_out, strict=True)]
    first = np.argsort(np.reshape(taken, ranking.rows.shape), axis=1, kind="stable")
    kept = first[:, : ranking.rows.shape[1] - max(map(len, left_out), default=0)]
    rows, similarity = ranking.rows, ranking.similarity
    return Ranking(np.take_along_axis(rows, kept, 1), np.take_along_axis(similarity, kept, 1))


# Scores of several indexes are compared with the mean of so many best ones of the same query.
_BEST = 10


def summed(scores: Sequence[np.ndarray]) -> np.ndarray:
    """One score (…, N) of those that several indexes give to the same N photos, higher is better.

    Each is divided by the mean of the query's ten best, since every index has a measure of its own.
    One index alone is left as it is.
    """
    if len(scores) == 1:
        return scores[0]
    return np.sum([each / _mean_of_best(each) for each in scores], axis=0)


def _mean_of_best(scores: np.ndarray) -> np.ndarray:
    """(…, 1): the mean of the ten best of the last axis; 1 where that is not above 0."""
    mean = np.sort(scores, axis=-1)[..., -_BEST:].mean(axis=-1, keepdims=True)
    return np.where(mean > 0, mean, 1)


def above_chance(query: np.ndarray, database: np.ndarray) -> np.ndarray:
    """(N,) float32: similarity of a descriptor (D,) with (N, D), above the mean of them all.

    Cosines of photos of different places are far from 0; their mean stands for chance, so that what
    is left can be summed with the scores of an index of words, which are near 0 by chance.
    """
    similarity = database @ query
    return similarity - similarity.mean()


def fused(rankings: Sequence[Ranking]) -> Ranking:
    """One ranking of several that each hold all N database photos, (Q, N), by `summed`."""
    if len(rankings) == 1:
        return rankings[0]
    scores = []
    for ranking in rankings:
        by_row = np.empty_like(ranking.similarity)
        np.put_along_axis(by_row, ranking.rows, ranking.similarity, axis=1)
        scores.append(by_row)
    total = summed(scores).astype(np.float32)
    rows = np.argsort(-total, axis=1, kind="stable")
    return Ranking(rows, np.take_along_axis(total, rows, axis=1))


def knn(queries: np.ndarray, database: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of the database with the largest inner product with each query, best first.

    For rows of unit norm the inner product is the cosine similarity and orders as L2 distance does.

    queries (Q, D), database (N, D): cast to float32.

    Returns (ranking (Q, k) int64, similarity (Q, k) float32); k is cut at N. Rows of equal
    similarity come in ascending order; equal database rows may differ in their last bit, and which
    of several equal rows are the last of k is not defined. Repeatable for a number of threads.

    Raises InputError for values that are not finite and for widths that differ.
    """
    queries, database = _checked(queries, "query"), _checked(database, "database")
    if queries.shape[1] != database.shape[1]:
        raise InputError(
            f"query descriptors have {queries.shape[1]} dimensions, database descriptors "
            f"{database.shape[1]}; both must come from one network and setting"
        )
    if k < 1:
        raise InputError(f"k = {k}: at least one neighbour must be asked for")
    k = min(k, len(database))
    if k == 0 or len(queries) == 0:
        return np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    similarity, ranking = faiss.knn(queries, database, k, metric=faiss.METRIC_INNER_PRODUCT)
    order = np.lexsort((ranking, -similarity), axis=1)
    return np.take_along_axis(ranking, order, 1), np.take_along_axis(similarity, order, 1)


def _checked(descriptors: np.ndarray, what: str) -> np.ndarray:
    descriptors = np.ascontiguousarray(descriptors, np.float32)
    if descriptors.ndim != 2:
        raise ValueError(f"{what} descriptors must be (N, D), not {descriptors.shape}")
    # A sum of squares is finite where all values are; it needs no array of their size.
    finite = np.isfinite(np.einsum("nd,nd->n", descriptors, descriptors))
    if not finite.all():
        raise InputError(
            f"{(~finite).sum()} of {len(finite)} {what} descriptors have NaN or infinite values "
            f"(the first in row {finite.argmin()}); check the weights that made them"
        )
    return descriptors
