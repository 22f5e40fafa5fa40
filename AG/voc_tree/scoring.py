"""Scores: how much the words of a query and of each database image have in common."""

from dataclasses import dataclass

import numpy as np

from retrieval.configs.rank import ScoreConfig
from voc_tree import hamming
from voc_tree.inverted_file import Hits, InvertedFile


@dataclass(frozen=True)
class Terms:
    """The words of a query: m terms.

    words (m,) int64; counts (m,) how often; feature (m,) which query feature a term stems from;
    signatures (m, W) uint64, W = 0 for none.
    """

    words: np.ndarray
    counts: np.ndarray
    feature: np.ndarray
    signatures: np.ndarray


def score(file: InvertedFile, query: Terms, config: ScoreConfig) -> np.ndarray:
    """(number of images,) float32: higher is more alike.

    Images without entries get -1, below all others.
    """
    scores = np.zeros(len(file))
    weighted = query.counts * file.idf[query.words]
    for segment in file.segments:
        if config.score == "hamming":
            hits = segment.near_hits(query.words, query.signatures, config.most)
            value = _hamming_values(hits, query, weighted * file.idf[query.words], config)
        elif config.score == "cosine":
            hits = segment.hits(query.words)
            value = (weighted * file.idf[query.words])[hits.term] * _counts(hits)
        else:
            hits = segment.hits(query.words)
            share = file.idf[query.words[hits.term]] * _counts(hits) / file.norm(1)[hits.image]
            value = np.minimum((weighted / max(weighted.sum(), 1e-12))[hits.term], share)
        scores += np.bincount(hits.image, value, minlength=len(scores))
    if config.score != "l1":
        squared = file.norm(2) if config.norm == "self" else file.num_features
        scores /= np.sqrt(np.maximum(squared, 1e-12))
    scores[file.num_features == 0] = -1
    return scores.astype(np.float32)


def _counts(hits: Hits) -> np.ndarray | int:
    return 1 if hits.count is None else hits.count


def _hamming_values(
    hits: Hits, query: Terms, idf_squared: np.ndarray, config: ScoreConfig
) -> np.ndarray:
    assert hits.distance is not None
    value = hamming.distance_weights(config)[hits.distance] * idf_squared[hits.term].astype(
        np.float32
    )
    if config.burst and len(value):
        pair = query.feature[hits.term] * np.int64(hits.image.max() + 1) + hits.image
        order = np.argsort(pair)
        starts = np.flatnonzero(np.diff(pair[order], prepend=-1))
        sizes = np.diff(np.append(starts, len(pair)))
        value[order] /= np.sqrt(np.repeat(sizes, sizes), dtype=np.float32)
    return value


def best(scores: np.ndarray, k: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The k best images (all by default) and their scores, best first, equal ones by number."""
    there = np.arange(len(scores))
    if k is not None:
        matched = np.flatnonzero(scores > 0)
        there = matched if len(matched) >= k else there  # the others are equal, and many
    kept = scores[there]
    if k is not None and k < len(kept):
        near = kept >= np.partition(kept, -k)[-k]
        there, kept = there[near], kept[near]
    order = np.lexsort((there, -kept))[:k]
    return there[order], kept[order]
