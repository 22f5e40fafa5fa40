"""The index: a codebook and an inverted file; descriptors in, scores out."""

from collections.abc import Iterable, Sequence

import numpy as np

from retrieval.configs.rank import ScoreConfig
from voc_tree import hamming, scoring
from voc_tree.hamming import Embedding
from voc_tree.inverted_file import InvertedFile, Postings
from voc_tree.scoring import Terms
from voc_tree.tree import Tree


class Index:
    """Images by their descriptors. The numbers that `add` returns are those in every ranking.

    embedding: for score "hamming" only.
    """

    def __init__(self, tree: Tree, config: ScoreConfig, embedding: Embedding | None = None) -> None:
        if (config.score == "hamming") != (embedding is not None):
            raise ValueError("score 'hamming', and no other, needs an embedding")
        self.tree = tree
        self.config = config
        self.embedding = embedding
        self.file = InvertedFile(len(tree))

    def add(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Add images by their (n, d) descriptors, and return their numbers.

        Scores count them by the idf of before, until `InvertedFile.refresh_idf`.
        """
        words = nearest_words(self.tree, images)
        return self.file.add(
            [self.postings(image, each) for image, each in zip(images, words, strict=True)]
        )

    def postings(self, descriptors: np.ndarray, words: np.ndarray) -> Postings:
        """What the inverted file keeps of an image of (n, d) descriptors with the words (n,)."""
        kept = self._terms(descriptors, words, np.arange(len(words)))
        return Postings(kept.words, kept.counts, kept.signatures)

    def terms(self, descriptors: np.ndarray) -> Terms:
        """What is looked up for a query of (n, d) descriptors: several words for each."""
        near = self.tree.quantise(descriptors, self.config.words)
        feature, column = np.nonzero(near >= 0)
        return self._terms(np.asarray(descriptors)[feature], near[feature, column], feature)

    def _terms(self, descriptors: np.ndarray, words: np.ndarray, feature: np.ndarray) -> Terms:
        """The words (n,) of descriptors (n, d) that stem from the features (n,) of an image."""
        if self.embedding is None:
            counted, counts = np.unique(self._nodes(words), return_counts=True)
            nothing = np.empty((len(counted), 0), np.uint64)
            return Terms(counted, counts, np.arange(len(counted)), nothing)
        offsets = self.embedding.offsets(descriptors, words)
        if self.config.aggregate:
            words, offsets = hamming.aggregate(words, offsets)
            feature = np.arange(len(words))
        return Terms(words, np.ones(len(words), np.int64), feature, hamming.signatures(offsets))

    def _nodes(self, words: np.ndarray) -> np.ndarray:
        """The words, or also the nodes that lead to them."""
        if self.config.nodes == "leaves":
            return words
        paths = []
        while len(words):
            paths.append(words)
            words = self.tree.parent[words]
            words = words[words > 0]  # the root is in every image
        return np.concatenate(paths) if paths else words

    def scores(self, descriptors: np.ndarray) -> np.ndarray:
        """(number of images,) float32: how alike each image is to a query's (n, d) descriptors."""
        return scoring.score(self.file, self.terms(descriptors), self.config)


def nearest_words(tree: Tree, images: Iterable[np.ndarray]) -> list[np.ndarray]:
    """The nearest word of each descriptor of each image, (n,) int64."""
    return [tree.quantise(descriptors)[:, 0] for descriptors in images]
