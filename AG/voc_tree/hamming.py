"""Hamming embedding: a binary signature tells apart the descriptors of one visual word.

Jégou, Douze, Schmid, "Hamming embedding and weak geometric consistency", ECCV 2008. Aggregated
signatures, one for an image and word, are those of Tolias, Avrithis, Jégou, "To aggregate or not to
aggregate: selective match kernels", ICCV 2013 (ASMK*).
"""

from dataclasses import dataclass

import numpy as np
import torch

from retrieval.configs.rank import ScoreConfig
from retrieval.errors import InputError
from voc_tree.grouped import padded_groups
from voc_tree.tree import Tree

# A median of fewer descriptors says less than the word's own centroid.
_LEAST_FOR_MEDIAN = 5


@dataclass(frozen=True)
class Embedding:
    """A rotation and a threshold for each word and bit.

    rotation (d, bits): a random orthogonal projection; thresholds (N, bits): for each word the
    median of its projected training descriptors. Both float32.
    """

    rotation: np.ndarray
    thresholds: np.ndarray

    def offsets(self, descriptors: np.ndarray, words: np.ndarray) -> np.ndarray:
        """(n, bits) float32: projected descriptors (n, d), less the thresholds of words (n,).

        Their signs are the signatures; the sum over an image's descriptors in a word is its
        aggregated residual.
        """
        return descriptors.astype(np.float32) @ self.rotation - self.thresholds[words]


def learn_embedding(
    tree: Tree, descriptors: np.ndarray, words: np.ndarray, bits: int, seed: int = 0
) -> Embedding:
    """Medians of descriptors (n, d) in words (n,); words of few descriptors take the centroid's."""
    if bits < 64 or bits % 64:
        raise InputError(f"--bits {bits}: expected a multiple of 64")
    rotation = random_rotation(tree.dim, bits, seed)
    thresholds = tree.centroids.numpy() @ rotation
    projected = torch.from_numpy(descriptors.astype(np.float32) @ rotation)
    groups = padded_groups(torch.from_numpy(words), len(tree), at_least=_LEAST_FOR_MEDIAN)
    for batch in groups:
        values = projected[batch.rows].masked_fill(~batch.valid[..., None], torch.inf)
        values = values.sort(dim=1).values
        count = batch.valid.sum(dim=1)
        middle = torch.stack([(count - 1) // 2, count // 2], dim=1)[..., None]
        medians = values.gather(1, middle.expand(-1, -1, bits)).mean(dim=1)
        thresholds[batch.group.numpy()] = medians.numpy()
    return Embedding(rotation, thresholds)


def random_rotation(dim: int, bits: int, seed: int) -> np.ndarray:
    """(dim, bits) float32 with orthonormal columns, or rows where ``bits`` is above ``dim``."""
    tall = np.random.default_rng(seed).normal(size=(max(dim, bits), min(dim, bits)))
    basis = np.linalg.qr(tall)[0].astype(np.float32)
    return basis if bits <= dim else basis.T.copy()


def signatures(offsets: np.ndarray) -> np.ndarray:
    """(n, bits / 64) uint64: a bit for each positive offset (n, bits)."""
    packed = np.packbits(offsets > 0, axis=1)
    return np.ascontiguousarray(packed).view(np.uint64)


def aggregate(words: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct words, ascending, and for each the sum (m, bits) of its offsets (n, bits)."""
    order = np.argsort(words, kind="stable")
    distinct, starts = np.unique(words[order], return_index=True)
    if len(distinct) == 0:
        return distinct, offsets
    return distinct, np.add.reduceat(offsets[order], starts, axis=0)


def distance_weights(config: ScoreConfig) -> np.ndarray:
    """(bits + 1,) float32: the weight of each Hamming distance h; 0 beyond ``config.most``.

    hard: 1 (delf_pytorch's ``ht``). soft: exp(−h²/σ²). power: (1 − 2h/bits) ** power where that is
    positive, else 0 (ASMK*).
    """
    distance = np.arange(config.bits + 1)
    if config.weight == "hard":
        weights = np.ones(len(distance))
    elif config.weight == "power":
        weights = np.maximum(1 - 2 * distance / config.bits, 0) ** config.power
    else:
        sigma = config.bits / 4 if config.sigma is None else config.sigma
        weights = np.exp(-((distance / sigma) ** 2))
    return np.where(distance <= config.most, weights, 0).astype(np.float32)
