"""Building the vocabulary tree against delf_pytorch's way: MiniBatchKMeans of scikit-learn, nested.

Both build a tree of the same height and branches on the same features, and both are asked how far
features then lie from their leaf, so that speed is not bought with quality.

    python3 benchmarks/tree.py [--features 400000] [--height 6] [--branch 10]
"""

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from sklearn.cluster import MiniBatchKMeans

from retrieval.configs.rank import TreeConfig
from voc_tree import tree
from voc_tree.tree import Tree

Result = TypeVar("Result")


def synthetic(count: int, dim: int = 128, centres: int = 20_000) -> np.ndarray:
    """(count, dim) float32 of unit norm, in clusters as dense as those of photos are not."""
    rng = np.random.default_rng(0)
    means = rng.gamma(0.5, size=(centres, dim)).astype(np.float32)
    points = means[rng.integers(centres, size=count)]
    points += rng.gamma(0.3, size=points.shape).astype(np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def recursive(features: np.ndarray, height: int, branch: int) -> np.ndarray:
    """(n,) the squared distance of each feature to its leaf, in a tree built delf_pytorch's way."""
    if height == 0 or len(features) < branch:
        return ((features - features.mean(axis=0)) ** 2).sum(axis=1)
    found = MiniBatchKMeans(n_clusters=branch, random_state=0).fit(features)
    labels = found.labels_
    error = np.zeros(len(features), np.float32)
    for child in range(branch):
        inside = labels == child
        if inside.any():
            error[inside] = recursive(features[inside], height - 1, branch)
    return error


def timed(work: Callable[[], Result]) -> tuple[Result, float, float]:
    """What it returns, wall seconds and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def error_of(built: Tree, features: np.ndarray) -> float:
    """The mean squared distance of features to the mean of their leaf."""
    words = built.quantise(features)[:, 0]
    counts = np.bincount(words, minlength=len(built))
    order = np.argsort(words, kind="stable")
    starts = np.flatnonzero(np.diff(words[order], prepend=-1))
    means = np.add.reduceat(features[order], starts, axis=0) / counts[counts > 0, None]
    row = np.cumsum(counts > 0) - 1
    return float(((features - means[row[words]]) ** 2).sum(axis=1).mean())


def main() -> None:
    """Build both; print seconds, errors and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--features", type=int, default=400_000)
    parser.add_argument("--height", type=int, default=6)
    parser.add_argument("--branch", type=int, default=10)
    asked = parser.parse_args()
    features = synthetic(asked.features)
    config = TreeConfig(asked.height, asked.branch)
    built, wall, cpu = timed(lambda: tree.build(features, config))
    print(
        f"levels together: {wall:.1f} s ({cpu:.1f} s of CPU), {built.num_leaves} leaves, "
        f"mean squared distance {error_of(built, features):.4f}",
        flush=True,
    )
    error, slow_wall, slow_cpu = timed(lambda: recursive(features, asked.height, asked.branch))
    print(
        f"recursive MiniBatchKMeans: {slow_wall:.1f} s ({slow_cpu:.1f} s of CPU), "
        f"mean squared distance {error.mean():.4f}"
    )
    print(f"ratio: {slow_wall / wall:.1f} by the clock, {slow_cpu / cpu:.1f} of CPU")


if __name__ == "__main__":
    main()
