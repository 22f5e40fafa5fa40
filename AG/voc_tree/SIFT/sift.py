"""SIFT descriptors of one image: delf_pytorch's 500, and the variants that retrieve better."""

from collections.abc import Sequence
from functools import cached_property

import cv2
import numpy as np

from retrieval.configs.describe import SiftConfig
from retrieval.features import LocalFeatures


class Sift:
    """The extractor of a `SiftConfig`."""

    def __init__(self, config: SiftConfig) -> None:
        self.config = config

    @cached_property
    def _detector(self) -> cv2.SIFT:
        config = self.config
        # Upright features are counted after several angles of one place have become one.
        return cv2.SIFT.create(
            nfeatures=0 if config.upright else config.feature_num,
            contrastThreshold=config.contrast_threshold,
            edgeThreshold=config.edge_threshold,
            sigma=config.sigma,
        )

    def __call__(self, pixels: np.ndarray) -> LocalFeatures:
        """The features of (H, W, 3) uint8 RGB, in its own pixels; descriptors of unit L2 norm."""
        gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        points = list(self._detector.detect(gray, None))
        if self.config.upright:
            points = _upright(points, self.config.feature_num)
        found, descriptors = self._detector.compute(gray, points)
        if descriptors is None:
            found, descriptors = (), np.empty((0, 128), np.float32)
        # OpenCV keeps more than was asked for where responses are equal.
        responses = np.array([point.response for point in found], np.float32)
        strongest = np.argsort(-responses, kind="stable")[: self.config.feature_num]
        points = [found[row] for row in strongest]
        return LocalFeatures(
            keypoints=np.array([point.pt for point in points], np.float32).reshape(-1, 2),
            descriptors=_normalized(descriptors[strongest], self.config.root),
            scores=responses[strongest],
            image_size=(gray.shape[1], gray.shape[0]),
            scales=np.array([point.size for point in points], np.float32),
            orientations=np.deg2rad(np.array([point.angle for point in points], np.float32)),
        )


def _upright(points: Sequence[cv2.KeyPoint], count: int) -> list[cv2.KeyPoint]:
    """The ``count`` strongest keypoints, one for each place and scale, with angle 0."""
    by_place = {(point.pt, point.size): point for point in points}
    kept = sorted(by_place.values(), key=lambda point: -point.response)[:count]
    for point in kept:
        point.angle = 0.0
    return kept


def _normalized(descriptors: np.ndarray, root: bool) -> np.ndarray:
    """(N, 128) of unit L2 norm; with ``root`` the square roots of what has unit L1 norm."""
    descriptors = descriptors.astype(np.float32)
    if root:
        return np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12))
    norm = np.linalg.norm(descriptors, axis=1, keepdims=True)
    return descriptors / np.maximum(norm, 1e-12)
