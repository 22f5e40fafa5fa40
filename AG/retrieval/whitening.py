"""Linear projections of descriptors: PCA and whitening, and the rotation before signs are taken."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from retrieval.errors import InputError

# Rounds of `learn_signs`, as many as in its paper.
_ROUNDS = 50


@dataclass(frozen=True)
class Projection:
    """``x`` becomes ``(x - mean) @ matrix``, then unit norm; mean (d,), matrix (d, k), float32."""

    mean: np.ndarray
    matrix: np.ndarray

    def __call__(self, descriptors: torch.Tensor) -> torch.Tensor:
        """(..., d) to (..., k) float32 of unit norm."""
        mean = torch.from_numpy(self.mean).to(descriptors.device)
        matrix = torch.from_numpy(self.matrix).to(descriptors.device)
        return torch.nn.functional.normalize((descriptors.float() - mean) @ matrix, dim=-1)

    def signs(self, descriptors: np.ndarray) -> np.ndarray:
        """(N, d) to (N, k / 8) uint8: a bit for each number of the projection, 1 above zero."""
        centred = descriptors.astype(np.float32) - self.mean
        return np.packbits(centred @ self.matrix > 0, axis=1)

    def fingerprint(self) -> str:
        """A hash of the numbers."""
        return hashlib.sha256(self.mean.tobytes() + self.matrix.tobytes()).hexdigest()[:16]


def learn_pca(descriptors: np.ndarray, dim: int, power: float) -> Projection:
    """PCA to ``dim`` with each axis scaled by its eigenvalue to the ``-power``.

    Raises InputError where (N, d) ``descriptors`` are too few or too short for ``dim``.
    """
    count, width = descriptors.shape
    if dim > min(count - 1, width):
        raise InputError(
            f"a projection to {dim} dimensions cannot be learned from {count} descriptors of "
            f"{width} dimensions: lower --pca_dim or give more --pca_photos"
        )
    samples = descriptors.astype(np.float64)
    mean = samples.mean(axis=0)
    covariance = np.cov(samples, rowvar=False)
    eigenvalues, vectors = np.linalg.eigh(covariance)
    largest = np.argsort(eigenvalues)[::-1][:dim]
    scales = np.maximum(eigenvalues[largest], 1e-12) ** -power
    return Projection(mean.astype(np.float32), (vectors[:, largest] * scales).astype(np.float32))


def learn_signs(descriptors: np.ndarray, bits: int, seed: int = 0) -> Projection:
    """The projection (d, bits) whose signs keep most of (N, d) ``descriptors``.

    Iterative quantisation: PCA, then the rotation R that brings the projected V nearest to corners
    of a cube, from a random one on: B = sign(V R), and R from the singular vectors of Bᵀ V, in turn
    (Gong and Lazebnik, "Iterative Quantization: A Procrustean Approach to Learning Binary Codes",
    CVPR 2011). Of fewer dimensions than bits, a random one of orthonormal rows. N is at least 1.
    """
    samples = descriptors.astype(np.float64)
    mean = samples.mean(axis=0)
    centred = samples - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :bits]
    tall = np.random.default_rng(seed).normal(size=(bits, axes.shape[1]))
    rotation = np.linalg.qr(tall)[0].T
    projected = (centred @ axes).astype(np.float32)
    for _ in range(_ROUNDS if axes.shape[1] == bits else 0):
        signs = np.where(projected @ rotation.astype(np.float32) > 0, np.float32(1), np.float32(-1))
        left, _, right = np.linalg.svd(signs.T @ projected)
        rotation = right.T @ left.T
    return Projection(mean.astype(np.float32), (axes @ rotation).astype(np.float32))


def learn_whitening(
    descriptors: np.ndarray, queries: np.ndarray, positives: np.ndarray
) -> Projection:
    """Learned whitening (Mikolajczyk and Matas 2007; cirtorch's Lw) from matching pairs.

    Whitens the differences of matching descriptors, then turns to the axes of largest variance.
    descriptors (N, D); queries, positives (P,): rows that match. Raises InputError without pairs,
    and for values that are not finite.
    Fewer pairs than dimensions are regularised by as little as makes the covariance invertible.
    """
    if len(queries) == 0:
        raise InputError("a whitening cannot be learned without matching pairs")
    samples = descriptors.astype(np.float64)
    if not np.isfinite(samples).all():
        raise InputError(
            "descriptors have NaN or infinite values; check the weights that made them"
        )
    mean = samples[queries].mean(axis=0)
    differences = samples[queries] - samples[positives]
    inverse = np.linalg.inv(_cholesky(differences.T @ differences / len(differences)))
    whitened = (samples - mean) @ inverse.T
    _, vectors = np.linalg.eigh(whitened.T @ whitened)
    matrix = inverse.T @ vectors[:, ::-1]
    return Projection(mean.astype(np.float32), matrix.astype(np.float32))


def _cholesky(covariance: np.ndarray) -> np.ndarray:
    """The lower factor of a covariance, its diagonal raised in powers of ten where need be."""
    ridge, identity = 0.0, np.eye(len(covariance))
    step = 1e-10 * max(np.trace(covariance) / len(covariance), 1e-30)
    while True:
        try:
            return np.linalg.cholesky(covariance + ridge * identity)
        except np.linalg.LinAlgError:
            ridge = max(10 * ridge, step)
