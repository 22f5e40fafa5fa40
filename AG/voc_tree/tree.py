"""The codebook: hierarchical k-means (Nistér and Stewénius, CVPR 2006).

A node of the tree is a visual word, its leaves are what descriptors are quantised to. Height 1 is a
flat codebook, height 2 with 256 branches has 65,536 words at the cost of 512 comparisons.
"""

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from retrieval.configs.rank import TreeConfig
from retrieval.errors import InputError
from retrieval.files import sealed, unsealed, write_atomically
from voc_tree.grouped import kmeans, padded_groups, squared_distances

# Distances held at a time while descriptors go down the tree.
_BATCH_DISTANCES = 1 << 24


class Tree:
    """A trained tree of N nodes; node 0 is the root, the children of a node are consecutive.

    centroids:   (N, d) float32.
    first_child: (N,) int64, -1 for a leaf.
    features:    what the descriptors were that it was trained on, as plain values.
    """

    def __init__(
        self,
        config: TreeConfig,
        centroids: torch.Tensor,
        first_child: torch.Tensor,
        features: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.features = dict(features or {})
        self.centroids = centroids
        self.first_child = first_child

    def __len__(self) -> int:
        """The number of nodes: words are numbers below it."""
        return len(self.centroids)

    @property
    def num_leaves(self) -> int:
        """The number of leaves."""
        return int((self.first_child < 0).sum())

    @property
    def dim(self) -> int:
        """The dimension of the descriptors it was trained on."""
        return self.centroids.shape[1]

    @cached_property
    def parent(self) -> np.ndarray:
        """(N,) the parent of each node, -1 for the root."""
        parent = np.full(len(self), -1, np.int64)
        inner = np.flatnonzero(self.first_child.numpy() >= 0)
        children = self.first_child.numpy()[inner, None] + np.arange(self.config.tree_branch)
        parent[children] = inner[:, None]
        return parent

    @torch.inference_mode()
    def quantise(self, descriptors: np.ndarray, words: int = 1) -> np.ndarray:
        """(n, words) int64: leaves near each of (n, d) descriptors, nearest first.

        On each level the ``words`` nearest nodes are followed, so that the answer is approximate,
        as a tree's is. -1 where the tree has fewer leaves than ``words``.
        Raises InputError for descriptors of another dimension than the tree's.
        """
        descriptors = np.asarray(descriptors, np.float32)
        if descriptors.ndim != 2 or (len(descriptors) and descriptors.shape[1] != self.dim):
            raise InputError(
                f"descriptors of shape {descriptors.shape} do not fit a tree of {self.dim} "
                "dimensions: was it built from other features? build it again (no --no-train)"
            )
        found = np.full((len(descriptors), words), -1, np.int64)
        step = max(1, _BATCH_DISTANCES // (words * self.config.tree_branch))
        for start in range(0, len(descriptors), step):
            batch = torch.from_numpy(descriptors[start : start + step])
            nodes = self._descend(batch, words).numpy()
            found[start : start + step, : nodes.shape[1]] = nodes
        return found

    def _descend(self, descriptors: torch.Tensor, beam: int) -> torch.Tensor:
        """(n, at most beam) leaves, nearest first, -1 for none."""
        n, branch = len(descriptors), self.config.tree_branch
        nodes = torch.zeros(n, 1, dtype=torch.int64)
        distance = torch.zeros(n, 1)
        for _ in range(self.config.tree_height):
            children = self.first_child[nodes.clamp(min=0)]
            inner = (children >= 0) & (nodes >= 0)
            # Each candidate gives way to its children; a leaf stays, as the first of them.
            candidates = torch.where(inner, children, nodes)[..., None] + torch.arange(branch)
            distances = torch.full(candidates.shape, torch.inf)
            distances[..., 0] = distance
            row, column = torch.nonzero(inner, as_tuple=True)
            distances[row, column] = self.to_children(descriptors, row, nodes[row, column])
            best = distances.flatten(1).topk(min(beam, distances[0].numel()), largest=False)
            distance = best.values
            nodes = candidates.flatten(1).gather(1, best.indices)
            nodes[distance == torch.inf] = -1
        return nodes

    def to_children(
        self, descriptors: torch.Tensor, rows: torch.Tensor, nodes: torch.Tensor
    ) -> torch.Tensor:
        """(P, branch): squared distances, less |x|², of descriptors[rows] to their node's children.

        All pairs (row, node) of one node are one matrix product.
        """
        branch = self.config.tree_branch
        distances = torch.empty(len(rows), branch)
        visited, group_of_pair = torch.unique(nodes, return_inverse=True)
        for batch in padded_groups(group_of_pair, len(visited)):
            children = self.first_child[visited[batch.group], None] + torch.arange(branch)
            found = squared_distances(descriptors[rows[batch.rows]], self.centroids[children])
            distances[batch.rows[batch.valid]] = found[batch.valid]
        return distances

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, atomically; its metadata are the settings."""
        tensors = {"centroids": self.centroids, "first_child": self.first_child}
        settings = sealed(
            {"tree": asdict(self.config), "features": self.features, "crc32": _crc32(**tensors)}
        )
        metadata = {"settings": json.dumps(settings)}
        write_atomically(os.fspath(path), safetensors.torch.save(tensors, metadata))

    def check(self, config: TreeConfig, features: Mapping[str, Any]) -> None:
        """Raise InputError unless it was built by ``config`` from such features."""
        asked = {**asdict(config), "features": json.loads(json.dumps(dict(features)))}
        built = {**asdict(self.config), "features": self.features}
        differing = [name for name in asked if asked[name] != built[name]]
        if differing:
            told = "; ".join(f"{name} {built[name]}, not {asked[name]}" for name in differing)
            raise InputError(f"the tree was built with {told}; build it again (no --no-train)")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tree":
        """What `save` wrote; InputError if there is none, or a byte of it has changed."""
        try:
            tensors = safetensors.torch.load_file(path)
            with safetensors.safe_open(path, "pt") as file:
                settings = unsealed(json.loads(file.metadata()["settings"]))
            if settings["crc32"] != _crc32(**tensors):
                raise ValueError("its checksum is wrong")
            return cls(TreeConfig(**settings["tree"]), **tensors, features=settings["features"])
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such tree; build it (without --no-train)") from error
        except (
            *(OSError, safetensors.SafetensorError, LookupError, TypeError, ValueError),
            AttributeError,
        ) as error:
            raise InputError(
                f"{path}: not a tree ({error}); build it again (without --no-train)"
            ) from error


def _crc32(centroids: torch.Tensor, first_child: torch.Tensor) -> int:
    return zlib.crc32(first_child.numpy().data, zlib.crc32(centroids.numpy().data))


@torch.inference_mode()
def build(
    descriptors: np.ndarray, config: TreeConfig, source: Mapping[str, Any] | None = None
) -> Tree:
    """Train a tree on (n, d) descriptors, cast to float32: all nodes of a level together.

    source: what they are, to be kept with the tree.

    Raises InputError where not even the root has enough descriptors to be divided.
    """
    if len(descriptors) < config.tree_branch:
        raise InputError(
            f"{len(descriptors)} descriptors are too few for a tree of --tree-branch "
            f"{config.tree_branch}"
        )
    # In random order, the first rows of any node are a random sample of it.
    order = np.random.default_rng(config.tree_seed).permutation(len(descriptors))
    features = torch.from_numpy(np.asarray(descriptors, np.float32)[order[: config.train_features]])
    tree = Tree(config, features.mean(dim=0, keepdim=True), torch.tensor([-1]), source)
    rows = torch.arange(len(features))  # of the features that are still on their way down
    node = torch.zeros(len(features), dtype=torch.int64)  # where they are
    first = 0  # node of this level
    for _ in range(config.tree_height):
        end = len(tree)
        _divide(tree, features, rows, node, first)
        children = tree.first_child[node]
        rows, node, children = (each[children >= 0] for each in (rows, node, children))
        node = children + _nearest_child(tree, features, rows, node)
        first = end
    return tree


def _divide(
    tree: Tree, features: torch.Tensor, rows: torch.Tensor, node: torch.Tensor, first: int
) -> None:
    """Give children to the nodes from ``first`` on that have enough features, in place."""
    branch, config = tree.config.tree_branch, tree.config
    at_most = config.samples_per_child * branch
    next_node, born = len(tree), [tree.centroids]
    for batch in padded_groups(node - first, len(tree) - first, branch, at_most):
        children = kmeans(features[rows[batch.rows]], batch.valid, branch, config.iterations)
        born.append(children.flatten(0, 1))
        tree.first_child[first + batch.group] = next_node + branch * torch.arange(len(children))
        next_node += len(born[-1])
    leaves = torch.full((next_node - len(tree),), -1)
    tree.first_child = torch.cat([tree.first_child, leaves])
    tree.centroids = torch.cat(born)


def _nearest_child(
    tree: Tree, features: torch.Tensor, rows: torch.Tensor, node: torch.Tensor
) -> torch.Tensor:
    """(P,) which child, from 0, of each node is nearest to features[rows]."""
    nearest = torch.empty_like(node)
    # Sorted, so that the parts hold whole nodes rather than a little of each.
    for part in torch.argsort(node).split(max(1, _BATCH_DISTANCES // tree.config.tree_branch)):
        nearest[part] = tree.to_children(features, rows[part], node[part]).argmin(dim=1)
    return nearest
