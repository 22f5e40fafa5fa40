"""Nearest neighbours between descriptors, by faiss."""

from typing import Any

import faiss
import numpy as np

from retrieval.errors import InputError


def knn(
    queries: np.ndarray,
    database: np.ndarray,
    k: int,
    index: str = "Flat",
    effort: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of the database with the largest inner product with each query, best first.

    For rows of unit norm the inner product is the cosine similarity and orders as L2 distance does.

    queries (Q, D), database (N, D): cast to float32. ``index`` is a faiss index_factory string:
    "Flat" is exact; "IVF1024,Flat", "HNSW32", "PQ32" and the like are trained on the database and
    approximate, their similarity too where they keep codes. ``effort`` sets their search, as in
    "nprobe=32" or "efSearch=128". A query for which an index finds fewer than k rows is searched
    exactly.

    Returns (ranking (Q, k) int64, similarity (Q, k) float32); k is cut at N. Rows of equal
    similarity come in ascending order; equal database rows may differ in their last bit, and which
    of several equal rows are the last of k is not defined. Repeatable for a number of threads; the
    graph of an HNSW index is repeatable for one thread alone (OMP_NUM_THREADS=1).

    Raises InputError for values that are not finite, for widths that differ, and for an index that
    faiss does not know or cannot train on so few rows.
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
    if index == "Flat":
        return _in_order(*_exact(queries, database, k))
    similarity, ranking = _built(database, index, effort).search(queries, k)
    short = (ranking < 0).any(axis=1)
    if short.any():
        ranking[short], similarity[short] = _exact(queries[short], database, k)
    return _in_order(ranking, similarity)


def _exact(queries: np.ndarray, database: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    similarity, ranking = faiss.knn(queries, database, k, metric=faiss.METRIC_INNER_PRODUCT)
    return ranking, similarity


def _built(database: np.ndarray, index: str, effort: str) -> faiss.Index:
    """A trained and filled index."""
    try:
        built = faiss.index_factory(database.shape[1], index, faiss.METRIC_INNER_PRODUCT)
        built.train(database)
        built.add(database)
        if effort:
            space: Any = faiss.ParameterSpace()  # its type stub knows one of two forms
            space.set_index_parameters(built, effort)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise InputError(
            f"index {index!r} {effort!r} does not work for {len(database)} descriptors of "
            f"{database.shape[1]} dimensions: {reason}; 'Flat' always does"
        ) from error
    return built


def _in_order(ranking: np.ndarray, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best first in each row; equal ones by database row."""
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
            f"{(~finite).sum()} of {len(finite)} {what} descriptors hold values that are not "
            f"finite (the first in row {finite.argmin()}); check the weights that made them"
        )
    return descriptors
