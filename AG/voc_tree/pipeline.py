"""The method, step by step: codebook, index, ranking, verification, expansion.

``progress`` is called with the number of images, queries or pairs just done.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from retrieval import rerank as reranking
from retrieval.configs.rank import ExpandConfig, RerankConfig, ScoreConfig, TreeConfig
from retrieval.errors import InputError
from retrieval.rerank import Reranking
from voc_tree import expansion, hamming, scoring, tree
from voc_tree.index import Index, nearest_words
from voc_tree.test_set import TestSet, sample_images
from voc_tree.tree import Tree

# Descriptors from which the medians of Hamming embedding are learned.
_EMBEDDING_SAMPLE = 2_000_000
# Images that are quantised and indexed at a time.
_IMAGES = 128

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Ranked:
    """ranking (Q, N) int64, best first; similarity (Q, N) float32 of the same entries."""

    ranking: np.ndarray
    similarity: np.ndarray


def train_tree(photos: TestSet, config: TreeConfig) -> Tree:
    """A tree of the database's own descriptors, as in S2."""
    images = sample_images(photos.database, config.train_features, config.tree_seed)
    if not sum(map(len, images)):
        raise InputError(f"no image of {photos.dataset} has any features: extract them again")
    return tree.build(np.concatenate(images), config, photos.settings)


def index_database(
    photos: TestSet, codebook: Tree, config: ScoreConfig, progress: Progress | None = None
) -> Index:
    """The database of a test set in an inverted file."""
    embedding = None
    if config.score == "hamming":
        sample = sample_images(photos.database, _EMBEDDING_SAMPLE, codebook.config.tree_seed)
        words = np.concatenate(nearest_words(codebook, sample))
        embedding = hamming.learn_embedding(
            codebook, np.concatenate(sample), words, config.bits, codebook.config.tree_seed
        )
    index = Index(codebook, config, embedding)
    for start in range(0, len(photos.database), _IMAGES):
        part = photos.database[start : start + _IMAGES]
        index.add([image.descriptors for image in part])
        if progress is not None:
            progress(len(part))
    index.file.refresh_idf()
    return index


def rank(photos: TestSet, index: Index, progress: Progress | None = None) -> Ranked:
    """All database images for each query, by the score of their words."""
    rows = []
    for query in photos.queries:
        rows.append(scoring.best(index.scores(query.descriptors)))
        if progress is not None:
            progress(1)
    return _stacked(rows, len(photos.database))


def _stacked(rows: list[tuple[np.ndarray, np.ndarray]], width: int) -> Ranked:
    ranking, similarity = ([row[i] for row in rows] for i in (0, 1))
    shape = (len(rows), width)
    return Ranked(np.reshape(ranking, shape).astype(np.int64), np.reshape(similarity, shape))


def verify(
    photos: TestSet, ranked: Ranked, config: RerankConfig, progress: Progress | None = None
) -> Reranking:
    """Re-rank by geometry, as eval.py does."""
    return reranking.rerank(
        *(ranked.ranking, ranked.similarity),
        *(photos.queries.__getitem__, photos.database.__getitem__),
        config,
        progress,
    )


def expand(
    photos: TestSet,
    index: Index,
    ranked: Ranked,
    verified: Reranking,
    config: ExpandConfig,
    rerank: RerankConfig,
) -> Ranked:
    """Ask again with the features of verified images, which stay first."""
    rows = []
    believed = expansion.believed(verified, ranked.ranking, config)
    for row, (query, images) in enumerate(zip(photos.queries, believed, strict=True)):
        if len(images) == 0:
            rows.append((verified.ranking[row], verified.similarity[row]))
            continue
        friends = [photos.database[int(image)] for image in images[: config.expand_num]]
        scores = index.scores(expansion.expanded(query, friends, rerank))
        ranking = expansion.verified_first(images, scoring.best(scores)[0])
        rows.append((ranking, scores[ranking]))
    return _stacked(rows, len(photos.database))
