"""Training tuples with mined negatives, as Radenovic et al. 2018 make them.

A tuple is a query, a positive, and the negatives that the present network finds most similar to
the query, each of another cluster (3D model).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from retrieval import search
from retrieval.configs.learn import MiningConfig
from retrieval.data import images
from retrieval.data.sfm_pairs import SfmPairs
from retrieval.errors import InputError
from retrieval.training.processes import mix_seed


@dataclass(frozen=True)
class Tuples:
    """Rows of images: queries (Q,), positives (Q,) and negatives (Q, n), all int64."""

    queries: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray

    def __len__(self) -> int:
        return len(self.queries)

    def rows(self, index: int) -> list[int]:
        """The images of one tuple: its query, its positive, its negatives."""
        return [self.queries[index], self.positives[index], *self.negatives[index]]


def mine_tuples(
    pairs: SfmPairs,
    config: MiningConfig,
    describe: Callable[[Sequence[Path]], np.ndarray],
    *seed: int,
) -> Tuples:
    """Tuples of ``config.query_size`` random pairs with negatives from a random pool.

    describe: photos -> (N, D) descriptors of unit norm. ``seed`` decides the draws. Raises
    InputError where the pool has too few clusters.
    """
    rng = np.random.default_rng(mix_seed(*seed))
    chosen = rng.permutation(len(pairs.queries))[: config.query_size]
    pool = rng.permutation(len(pairs.paths))[: config.pool_size]
    queries = pairs.queries[chosen]
    needed, places = np.unique(np.concatenate([queries, pool]), return_inverse=True)
    descriptors = describe([pairs.paths[row] for row in needed])[places]
    negatives = hard_negatives(
        descriptors[: len(queries)],
        descriptors[len(queries) :],
        pairs.clusters[queries],
        pairs.clusters[pool],
        config.neg_num,
    )
    return Tuples(queries, pairs.positives[chosen], pool[negatives])


def hard_negatives(
    queries: np.ndarray,
    pool: np.ndarray,
    query_clusters: np.ndarray,
    pool_clusters: np.ndarray,
    count: int,
) -> np.ndarray:
    """(Q, count) rows of the pool most similar to each query, best first.

    At most one of a cluster, and none of the query's. queries (Q, D), pool (P, D) of unit norm.
    Raises InputError where the pool has fewer than ``count`` clusters beside the query's.
    """
    found = np.empty((len(queries), count), np.int64)
    open_queries = np.arange(len(queries))
    depth = 4 * (count + 1)
    while len(open_queries):
        ranking, _ = search.knn(queries[open_queries], pool, depth)
        unfinished = []
        for query, row in zip(open_queries, ranking, strict=True):
            first = _first_of_clusters(row, pool_clusters, query_clusters[query])[:count]
            if len(first) == count:
                found[query] = first
            else:
                unfinished.append(query)
        if unfinished and depth >= len(pool):
            raise InputError(
                f"--neg-num {count}: the pool of {len(pool)} images has too few clusters beside "
                "the query's; raise --pool-size or lower --neg-num"
            )
        open_queries, depth = np.array(unfinished, np.int64), 4 * depth
    return found


def _first_of_clusters(ranked: np.ndarray, clusters: np.ndarray, own: int) -> np.ndarray:
    """The best row of each cluster but ``own``, in order of the ranking."""
    _, first = np.unique(clusters[ranked], return_index=True)
    best = ranked[np.sort(first)]
    return best[clusters[best] != own]


class TuplePhotos(Dataset):
    """The photos of each tuple as (3, h, w) uint8, larger ones reduced to ``longest_side``."""

    def __init__(self, pairs: SfmPairs, tuples: Tuples, longest_side: int) -> None:
        self._pairs, self._tuples, self._longest_side = pairs, tuples, longest_side

    def __len__(self) -> int:
        return len(self._tuples)

    def __getitem__(self, index: int) -> list[torch.Tensor] | str:
        """The query, the positive and the negatives; or what is wrong with one of them."""
        paths = [self._pairs.paths[row] for row in self._tuples.rows(index)]
        try:
            photos = [images.read_image(path, self._longest_side) for path in paths]
        except images.ImageError as error:
            return str(error)
        return [torch.from_numpy(photo).permute(2, 0, 1) for photo in photos]
