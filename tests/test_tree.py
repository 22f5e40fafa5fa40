"""The tree against k-means and nearest neighbours done the slow way."""

import numpy as np
import pytest
import torch

from retrieval.configs.rank import TreeConfig
from retrieval.errors import InputError
from voc_tree.grouped import kmeans, padded_groups
from voc_tree.tree import Tree, build


def clustered(n: int = 400, d: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(20, d))[rng.integers(20, size=n)] * 5 + rng.normal(size=(n, d))
    ).astype(np.float32)


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    return clustered()


@pytest.fixture(scope="module")
def tree(points: np.ndarray) -> Tree:
    return build(points, TreeConfig(tree_height=3, tree_branch=4))


def leaves(tree: Tree) -> np.ndarray:
    return np.flatnonzero(tree.first_child.numpy() < 0)


def descend(tree: Tree, point: np.ndarray) -> int:
    node = 0
    while tree.first_child[node] >= 0:
        first = int(tree.first_child[node])
        children = tree.centroids[first : first + tree.config.tree_branch].numpy()
        node = first + int(((children - point) ** 2).sum(axis=1).argmin())
    return node


def test_every_row_is_in_its_group_once():
    group = torch.from_numpy(np.random.default_rng(0).integers(0, 9, 1000) ** 2 // 3)
    found = {}
    for batch in padded_groups(group, 30):
        for number, rows, valid in zip(batch.group, batch.rows, batch.valid, strict=True):
            found[int(number)] = rows[valid].tolist()
    expected = {g: np.flatnonzero(group.numpy() == g).tolist() for g in np.unique(group)}
    assert found == expected


def test_groups_are_cut_at_both_ends():
    group = torch.tensor([0, 0, 0, 0, 1, 2, 2])
    found = {}
    for batch in padded_groups(group, 4, 2, 3):
        found |= dict(zip(batch.group.tolist(), batch.valid.sum(dim=1).tolist(), strict=True))
    assert found == {0: 3, 2: 2}


def test_kmeans_of_many_sets_is_lloyd_on_each(points):
    sets = torch.from_numpy(np.stack([points[:60], points[60:120]]))
    valid = torch.ones(2, 60, dtype=torch.bool)
    valid[1, 45:] = False
    found = kmeans(sets, valid, 3, 4)
    for rows, kept, centroids in zip(sets.numpy(), valid.numpy(), found.numpy(), strict=True):
        rows = rows[kept]
        expected = rows[:3].copy()
        for _ in range(4):
            label = ((rows[:, None] - expected) ** 2).sum(axis=2).argmin(axis=1)
            assert len(np.unique(label)) == 3  # else this loop says nothing
            expected = np.stack([rows[label == k].mean(axis=0) for k in range(3)])
        np.testing.assert_allclose(centroids, expected, rtol=1e-4, atol=1e-4)


def test_an_empty_centroid_moves_to_the_farthest_point():
    points = torch.tensor([[[0.0], [0.0], [0.1], [9.0]]])
    found = kmeans(points, torch.ones(1, 4, dtype=torch.bool), 2, 5)
    np.testing.assert_allclose(found.flatten().sort().values, [0.1 / 3, 9.0], atol=1e-6)


def test_nodes_with_fewer_features_than_branches_are_leaves(tree, points):
    words = tree.quantise(points)[:, 0]
    assert set(words) <= set(leaves(tree))
    depth = {0: 0}
    for node in range(1, len(tree)):
        depth[node] = depth[int(tree.parent[node])] + 1
    for leaf in leaves(tree):
        assert depth[leaf] == 3 or (words == leaf).sum() < 4
    assert max(depth.values()) == 3


def test_quantise_goes_down_to_the_nearest_child(tree, points):
    other = clustered(seed=0)[:100] + 0.3
    expected = [descend(tree, point) for point in other]
    np.testing.assert_array_equal(tree.quantise(other)[:, 0], expected)


def test_several_words_of_a_flat_codebook_are_the_nearest(points):
    tree = build(points, TreeConfig(tree_height=1, tree_branch=32))
    centroids = tree.centroids[1:].numpy()
    distances = ((points[:, None] - centroids) ** 2).sum(axis=2)
    expected = np.argsort(distances, axis=1, kind="stable")[:, :5] + 1
    np.testing.assert_array_equal(tree.quantise(points, 5), expected)


def test_several_words_are_in_order_and_distinct(tree, points):
    words = tree.quantise(points, 4)
    centroids = tree.centroids.numpy()
    for point, row in zip(points, words, strict=True):
        assert set(row) <= set(leaves(tree))
        assert len(set(row)) == 4
        distances = ((centroids[row] - point) ** 2).sum(axis=1)
        assert (np.diff(distances) >= -1e-3).all()


def test_more_words_than_leaves_are_filled_up(points):
    tree = build(points, TreeConfig(tree_height=1, tree_branch=3))
    words = tree.quantise(points[:5], 5)
    assert (np.sort(words[:, :3]) == [1, 2, 3]).all()
    assert (words[:, 3:] == -1).all()


def test_centroids_are_means_of_what_comes_to_them(points):
    config = TreeConfig(tree_height=1, tree_branch=5, iterations=100, samples_per_child=1000)
    tree = build(points, config)
    words = tree.quantise(points)[:, 0]
    for word in np.unique(words):
        mean = points[words == word].mean(axis=0)
        np.testing.assert_allclose(tree.centroids[word], mean, atol=1e-4)


def test_the_same_seed_gives_the_same_tree(points):
    config = TreeConfig(tree_height=3, tree_branch=4)
    once, again = build(points, config), build(points, config)
    assert torch.equal(once.centroids, again.centroids)
    other = build(points, TreeConfig(tree_height=3, tree_branch=4, tree_seed=1))
    assert len(other) != len(once) or not torch.equal(once.centroids, other.centroids)


def test_save_and_load(tree, points, tmp_path):
    tree.features = {"extractor": "test"}
    tree.save(tmp_path / "tree.safetensors")
    loaded = Tree.load(tmp_path / "tree.safetensors")
    assert loaded.config == tree.config
    np.testing.assert_array_equal(loaded.quantise(points, 2), tree.quantise(points, 2))
    loaded.check(tree.config, {"extractor": "test"})
    with pytest.raises(InputError, match="tree_height 3, not 6"):
        loaded.check(TreeConfig(tree_branch=4), {"extractor": "test"})
    with pytest.raises(InputError, match="features"):
        loaded.check(tree.config, {"extractor": "other"})


def test_bad_input(tree, tmp_path):
    with pytest.raises(InputError, match="8 dimensions"):
        tree.quantise(np.zeros((3, 7), np.float32))
    with pytest.raises(InputError, match="no such tree"):
        Tree.load(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"no tree at all")
    with pytest.raises(InputError, match="not a tree"):
        Tree.load(tmp_path / "bad")
    with pytest.raises(InputError, match="too few"):
        build(np.zeros((3, 8), np.float32), TreeConfig())
    with pytest.raises(InputError, match="tree_branch 1"):
        TreeConfig(tree_branch=1)
    assert tree.quantise(np.zeros((0, 8), np.float32), 2).shape == (0, 2)


def test_equal_descriptors_make_a_tree():
    tree = build(np.ones((50, 4), np.float32), TreeConfig(tree_height=3, tree_branch=2))
    assert (tree.quantise(np.ones((2, 4), np.float32)) >= 0).all()
