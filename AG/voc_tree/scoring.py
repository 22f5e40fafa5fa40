"""Scores: how much the words of a query and of each database image have in common."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from retrieval.errors import InputError
from voc_tree import hamming
from voc_tree.inverted_file import Hits, InvertedFile

Score = Literal["l1", "cosine", "hamming"]
Weight = Literal["power", "soft", "hard"]
Nodes = Literal["leaves", "all"]
Norm = Literal["self", "features"]


@dataclass(frozen=True)
class ScoreConfig:
    """How shared words are scored.

    score:     "l1": Σ min(q, d) over the L1-normalised tf-idf vectors, which orders as S2's
               2 + Σ (|q − d| − |q| − |d|) does, upside down; "cosine": their inner product;
               "hamming": Σ idf² · weight(distance of signatures) over pairs of features.
    words:     nearest words of a query feature that are looked up.
    bits:      of a signature.
    aggregate: one signature for all features of an image in a word (ASMK*).
    weight:    of a Hamming distance h up to ``ht``: "power" (1 − 2h/bits) ** power, "soft"
               exp(−h²/sigma²), or "hard" 1. None: ht is 3/8 of the bits ("power": 7/16, beyond
               which the weight is below 0.002), sigma a quarter.
    burst:     several features of an image that match one query feature count as the square root of
               their number (Jégou et al., "On the burstiness of visual elements", CVPR 2009).
    nodes:     words are the "leaves" of the tree, or "all" nodes down to them (l1 and cosine only).
    norm:      what cosine and Hamming scores are divided by: "self", the square root of the image's
               score with itself, or "features", the square root of its number of features.
    """

    score: Score = "hamming"
    words: int = 5
    bits: int = 64
    aggregate: bool = False
    weight: Weight = "power"
    ht: int | None = None
    sigma: float | None = None
    power: float = 3.0
    burst: bool = True
    nodes: Nodes = "leaves"
    norm: Norm = "features"

    def __post_init__(self) -> None:
        if self.words < 1:
            raise InputError(f"--words {self.words}: at least 1 is needed")
        if self.ht is not None and not 0 <= self.ht <= self.bits:
            raise InputError(f"--ht {self.ht}: expected 0 to {self.bits}, the bits of a signature")

    @property
    def most(self) -> int:
        """The largest Hamming distance that counts."""
        if self.ht is not None:
            return self.ht
        return self.bits * 7 // 16 if self.weight == "power" else self.bits * 3 // 8

    def weights(self) -> np.ndarray:
        """(bits + 1,) float32: the weight of each Hamming distance."""
        if self.weight == "hard":
            return hamming.hard_weights(self.bits, self.most)
        if self.weight == "power":
            return hamming.power_weights(self.bits, self.power, self.most)
        sigma = self.bits / 4 if self.sigma is None else self.sigma
        return hamming.soft_weights(self.bits, sigma, self.most)


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

    Images without entries get -1, below all others; removed ones −inf.
    """
    scores = np.zeros(len(file.alive))
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
    scores[~file.alive] = -np.inf
    return scores.astype(np.float32)


def _counts(hits: Hits) -> np.ndarray | int:
    return 1 if hits.count is None else hits.count


def _hamming_values(
    hits: Hits, query: Terms, idf_squared: np.ndarray, config: ScoreConfig
) -> np.ndarray:
    assert hits.distance is not None
    value = config.weights()[hits.distance] * idf_squared[hits.term].astype(np.float32)
    if config.burst and len(value):
        pair = query.feature[hits.term] * np.int64(hits.image.max() + 1) + hits.image
        order = np.argsort(pair)
        starts = np.flatnonzero(np.diff(pair[order], prepend=-1))
        sizes = np.diff(np.append(starts, len(pair)))
        value[order] /= np.sqrt(np.repeat(sizes, sizes), dtype=np.float32)
    return value


def best(scores: np.ndarray, k: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The k best images (all by default) and their scores, best first, equal ones by number.

    Removed images are left out.
    """
    there = np.flatnonzero(scores > -np.inf)
    if k is not None:
        matched = np.flatnonzero(scores > 0)
        there = matched if len(matched) >= k else there  # the others are equal, and many
    kept = scores[there]
    if k is not None and k < len(kept):
        near = kept >= np.partition(kept, -k)[-k]
        there, kept = there[near], kept[near]
    order = np.lexsort((there, -kept))[:k]
    return there[order], kept[order]
