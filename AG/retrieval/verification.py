"""How many inliers many pairs of images have, under several geometries at once.

Geometries that differ only in `max_distance` and in verification share one matching, of which each
takes what its threshold lets pass; the counts are those of each geometry alone, to the bit.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import cv2
import numpy as np
import torch

from retrieval import progress
from retrieval.configs.rank import Geometry, Matching, RerankConfig
from retrieval.features import LocalFeatures
from retrieval.geometry import Verification, verify_matches
from retrieval.matching import as_single, match_descriptors, match_distances, match_many
from retrieval.ransac import load_backend

STAGES = ("loading", "matching", "verification")

# Candidates of one query that one task of the thread pool matches and verifies.
_BATCH = 25

# Database photos whose features are kept in memory, in single precision.
_KEPT = 1024


@dataclass(frozen=True)
class Counts:
    """What G geometries find in P pairs.

    num_inliers: (G, P) int64.
    seconds:     (G, 3) of processor time in each of STAGES, summed over threads: what the geometry
                 costs alone, so that a shared matching counts for each.
    """

    num_inliers: np.ndarray
    seconds: np.ndarray


class Pair(NamedTuple):
    """Two photos matched: the features that took part, matches (M, 2), and what verifies them."""

    query: LocalFeatures
    database: LocalFeatures
    matches: np.ndarray
    verification: Verification

    @property
    def inliers(self) -> np.ndarray:
        """(M,) bool: the matches that one transform explains."""
        return self.verification.inliers

    @property
    def num_inliers(self) -> int:
        """How many matches one transform explains."""
        return self.verification.num_inliers

    @property
    def model(self) -> np.ndarray | None:
        """The transform (3, 3), query to database pixels; None where none was found."""
        return self.verification.model


def match(query: LocalFeatures, database: LocalFeatures, geometry: Geometry | None = None) -> Pair:
    """Match and verify two photos as `count_inliers` does, by default as re-ranking does."""
    geometry = geometry or RerankConfig().geometry
    ours, theirs = (each.strongest(geometry.num_features) for each in (query, database))
    matches = np.empty((0, 2), np.int64)
    if len(ours) and len(theirs):
        matches = match_descriptors(ours.descriptors, theirs.descriptors, geometry.match)
    return Pair(ours, theirs, matches, verify_matches(ours, theirs, matches, geometry.verify))


def by_matching(geometries: Sequence[Geometry]) -> dict[Matching, list[int]]:
    """The positions of the geometries that share a matching."""
    groups: dict[Matching, list[int]] = {}
    for position, geometry in enumerate(geometries):
        groups.setdefault(geometry.matching, []).append(position)
    return groups


def count_inliers(
    pairs: Sequence[tuple[int, int]],
    query_features: Sequence[LocalFeatures],
    database_features: Sequence[LocalFeatures],
    geometries: Sequence[Geometry],
    threads: int | None = None,
) -> Counts:
    """Match and verify (query row, database row) pairs in a thread pool.

    A task is one query with a batch of its candidates, so that one query alone fills the pool. The
    counts are the same for every number of ``threads`` (None: torch's). While it runs, torch and
    OpenCV are set to one thread each. `progress.advance` is told the number of (pair, geometry)
    just done. Raises InputError as `match` and `verify_matches`.
    """
    # A database photo is a candidate of many queries; a query comes once.
    candidate = lru_cache(_KEPT)(lambda row: _single(database_features[row]))

    def count(task: tuple[int, list[int]]) -> Counts:
        query_row, candidate_rows = task
        start = time.thread_time()
        query = _single(query_features[query_row])
        candidates = [candidate(row) for row in candidate_rows]
        loading = time.thread_time() - start
        counted = _count_of_query(query, candidates, geometries)
        counted.seconds[:, 0] = loading
        return counted

    for geometry in geometries:
        load_backend(geometry.verify.backend)  # here in the caller's thread, see there
    parts = [np.empty((len(geometries), 0), np.int64)]
    seconds = np.zeros((len(geometries), len(STAGES)))
    with _one_thread_each() as default, ThreadPoolExecutor(threads or default) as pool:
        for part in pool.map(count, list(_tasks(pairs))):
            parts.append(part.num_inliers)
            seconds += part.seconds
            progress.advance(part.num_inliers.size)
    return Counts(np.concatenate(parts, axis=1), seconds)


def _single(features: LocalFeatures) -> LocalFeatures:
    """Halves widened once, not for each geometry."""
    return replace(features, descriptors=as_single(features.descriptors))


def _count_of_query(
    query: LocalFeatures, candidates: Sequence[LocalFeatures], geometries: Sequence[Geometry]
) -> Counts:
    """The counts of one query with each candidate; loading is left at 0 s."""
    counts = np.zeros((len(geometries), len(candidates)), np.int64)
    seconds = np.zeros((len(geometries), len(STAGES)))
    for (num_features, how), members in by_matching(geometries).items():
        start = time.thread_time()
        ours = query.strongest(num_features)
        theirs = [candidate.strongest(num_features) for candidate in candidates]
        descriptors = [candidate.descriptors for candidate in theirs]
        matches = match_many(ours.descriptors, descriptors, how)
        matched = time.thread_time()
        limited = any(geometries[member].match.max_distance is not None for member in members)
        distances = []
        if limited:
            sides = zip(descriptors, matches, strict=True)
            distances = [match_distances(ours.descriptors, *side) for side in sides]
        measured = time.thread_time()
        for member in members:
            limit, verify = geometries[member].match.max_distance, geometries[member].verify
            begin = time.thread_time()
            for column, candidate in enumerate(theirs):
                found = matches[column]
                if limit is not None:
                    found = found[distances[column] < limit]
                counts[member, column] = verify_matches(ours, candidate, found, verify).num_inliers
            ready = matched if limit is None else measured
            seconds[member, 1:] = ready - start, time.thread_time() - begin
    return Counts(counts, seconds)


def _tasks(pairs: Sequence[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
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
