"""Signatures against bits counted one by one."""

import numpy as np
import pytest

from retrieval.configs.rank import ScoreConfig, TreeConfig
from retrieval.errors import InputError
from voc_tree import hamming
from voc_tree.inverted_file import make_segment
from voc_tree.tree import build

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(300, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def tree():
    return build(POINTS, TreeConfig(tree_height=1, tree_branch=12))


@pytest.mark.parametrize(("dim", "bits"), [(128, 64), (64, 64), (40, 64), (128, 128)])
def test_the_rotation_is_orthogonal(dim, bits):
    rotation = hamming.random_rotation(dim, bits, 0)
    assert rotation.shape == (dim, bits)
    product = rotation.T @ rotation if bits <= dim else rotation @ rotation.T
    np.testing.assert_allclose(product, np.eye(min(dim, bits)), atol=1e-5)


def test_thresholds_are_medians_and_the_centroid_where_few_say_so(tree):
    words = tree.quantise(POINTS)[:, 0]
    words[:3] = 1
    words[words == 2] = 3
    words[:2] = 2
    embedding = hamming.learn_embedding(tree, POINTS, words, 64)
    projected = POINTS @ embedding.rotation
    for word in range(1, 13):
        inside = projected[words == word]
        few = tree.centroids[word].numpy() @ embedding.rotation
        expected = np.median(inside, axis=0) if len(inside) >= 5 else few
        np.testing.assert_allclose(embedding.thresholds[word], expected, atol=1e-5)


@pytest.mark.parametrize("bits", [64, 128])
def test_distances_count_differing_bits(bits):
    offsets = RNG.normal(size=(50, bits)).astype(np.float32)
    query = RNG.normal(size=(4, bits)).astype(np.float32)
    words = RNG.integers(0, 3, 50)
    images = np.arange(50)
    segment = make_segment(words, images, np.ones(50), hamming.signatures(offsets))
    terms = np.array([0, 1, 2, 7])
    most = bits // 2
    hits = segment.near_hits(terms, hamming.signatures(query), most)
    found = {
        (int(t), int(i)): int(h)
        for t, i, h in zip(hits.term, hits.image, hits.distance, strict=True)
    }
    expected = {}
    for term in range(4):
        for image in range(50):
            differing = sum(
                bool(a > 0) != bool(b > 0) for a, b in zip(offsets[image], query[term], strict=True)
            )
            if words[image] == terms[term] and differing <= most:
                expected[term, image] = differing
    assert found == expected
    assert len(found) > 5


def test_aggregation_sums_the_offsets_of_a_word():
    words = RNG.integers(0, 5, 40)
    offsets = RNG.normal(size=(40, 64)).astype(np.float32)
    distinct, sums = hamming.aggregate(words, offsets)
    for word, total in zip(distinct, sums, strict=True):
        np.testing.assert_allclose(total, offsets[words == word].sum(axis=0), rtol=1e-4, atol=1e-5)
    assert distinct.tolist() == sorted(set(words.tolist()))
    nothing, none = hamming.aggregate(words[:0], offsets[:0])
    assert len(nothing) == 0
    assert hamming.signatures(none).shape == (0, 1)


def test_weights():
    soft, hard, power = (
        hamming.distance_weights(ScoreConfig(weight=weight, ht=most))
        for weight, most in (("soft", 24), ("hard", 20), ("power", 64))
    )
    for h in range(65):
        assert soft[h] == pytest.approx(np.exp(-h * h / 256) if h <= 24 else 0)
        assert hard[h] == (h <= 20)
        assert power[h] == pytest.approx(max(1 - h / 32, 0) ** 3)


def test_bits_are_words_of_64(tree):
    with pytest.raises(InputError, match="multiple of 64"):
        hamming.learn_embedding(tree, POINTS, np.ones(300, np.int64), 60)
