"""The inverted file and its scores against sums over all pairs of features."""

import dataclasses

import numpy as np
import pytest

from retrieval.configs.rank import ScoreConfig, TreeConfig
from retrieval.errors import InputError
from voc_tree import hamming, scoring
from voc_tree.index import Index
from voc_tree.tree import build

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(12, 16)) * 2
SIZES = (30, 0, 25, 40, 33, 8, 21)
IMAGES = [
    (CENTRES[RNG.integers(12, size=n)] + RNG.normal(size=(n, 16)) * 0.7).astype(np.float32)
    for n in SIZES
]
QUERY = (CENTRES[RNG.integers(12, size=20)] + RNG.normal(size=(20, 16)) * 0.7).astype(np.float32)
TREE = build(np.concatenate(IMAGES), TreeConfig(tree_height=2, tree_branch=4))
# Of other points than the images': a median's own offset is 0, and rounding decides on its bit.
OTHERS = (CENTRES[RNG.integers(12, size=300)] + RNG.normal(size=(300, 16)) * 0.7).astype(np.float32)
EMBEDDING = hamming.learn_embedding(TREE, OTHERS, TREE.quantise(OTHERS)[:, 0], 64)
L1 = ScoreConfig(score="l1", words=1)
HE = ScoreConfig(ht=30)


def make(config: ScoreConfig, images=IMAGES) -> Index:
    index = Index(TREE, config, EMBEDDING if config.score == "hamming" else None)
    index.add(images)
    index.file.refresh_idf()
    return index


def vector(descriptors: np.ndarray, nodes: str, words: int = 1) -> dict[int, int]:
    """How often each word is in an image, by going down the tree for each descriptor."""
    counts: dict[int, int] = {}
    for row in TREE.quantise(descriptors, words):
        for word in row:
            while word > 0:
                counts[int(word)] = counts.get(int(word), 0) + 1
                word = TREE.parent[word] if nodes == "all" else 0
    return counts


def idf(nodes: str) -> dict[int, float]:
    vectors = [vector(image, nodes) for image in IMAGES]
    return {
        word: float(np.log(len(IMAGES) / sum(word in each for each in vectors)))
        for word in set().union(*vectors)
    }


@pytest.mark.parametrize("nodes", ["leaves", "all"])
def test_l1_orders_as_the_score_of_s2(nodes):
    weight = idf(nodes)
    found = make(dataclasses.replace(L1, nodes=nodes)).scores(QUERY)
    q = {w: n * weight.get(w, 0) for w, n in vector(QUERY, nodes).items()}
    q = {w: value / sum(q.values()) for w, value in q.items()}
    for image, got in zip(IMAGES, found, strict=True):
        if len(image) == 0:
            assert got == -1
            continue
        d = {w: n * weight[w] for w, n in vector(image, nodes).items()}
        d = {w: value / sum(d.values()) for w, value in d.items()}
        distance = 2 + sum(abs(q[w] - d[w]) - q[w] - d[w] for w in q.keys() & d.keys())
        assert got == pytest.approx(1 - distance / 2, abs=1e-6)


@pytest.mark.parametrize("norm", ["self", "features"])
@pytest.mark.parametrize("words", [1, 3])
def test_cosine(norm, words):
    weight = idf("leaves")
    found = make(ScoreConfig(score="cosine", words=words, norm=norm)).scores(QUERY)
    q = vector(QUERY, "leaves", words)
    for image, got in zip(IMAGES, found, strict=True):
        if len(image):
            d = vector(image, "leaves")
            total = sum(q[w] * d[w] * weight[w] ** 2 for w in q.keys() & d.keys())
            length = (
                len(image)
                if norm == "features"
                else sum((n * weight[w]) ** 2 for w, n in d.items())
            )
            assert got == pytest.approx(total / np.sqrt(length), rel=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        HE,
        dataclasses.replace(HE, words=1, burst=False, norm="self"),
        dataclasses.replace(HE, weight="hard", ht=20),
        dataclasses.replace(HE, weight="power", ht=32),
    ],
)
def test_hamming_embedding(config):
    weight, table = idf("leaves"), hamming.distance_weights(config)
    found = make(config).scores(QUERY)
    near = TREE.quantise(QUERY, config.words)
    for image, got in zip(IMAGES, found, strict=True):
        if len(image) == 0:
            continue
        words = TREE.quantise(image)[:, 0]
        bits = EMBEDDING.offsets(image, words) > 0
        total = 0.0
        for feature, row in zip(QUERY, near, strict=True):
            matches = []
            for word in row[row >= 0]:
                own = EMBEDDING.offsets(feature[None], np.array([word]))[0] > 0
                for other in np.flatnonzero(words == word):
                    h = int((own != bits[other]).sum())
                    if h <= config.most:
                        matches.append(table[h] * weight[int(word)] ** 2)
            if matches:
                total += sum(matches) / (np.sqrt(len(matches)) if config.burst else 1)
        length = len(image) if config.norm == "features" else sum(weight[w] ** 2 for w in words)
        assert got == pytest.approx(total / np.sqrt(length), rel=1e-4)


def test_aggregated_signatures():
    config = ScoreConfig(words=1, aggregate=True, weight="power", ht=64, burst=False)
    index = make(config)
    near, weight, found = TREE.quantise(QUERY)[:, 0], idf("leaves"), index.scores(QUERY)
    for image, got in zip(IMAGES, found, strict=True):
        words, total = TREE.quantise(image)[:, 0] if len(image) else [], 0.0
        for word in np.intersect1d(near, words):
            one = EMBEDDING.offsets(QUERY[near == word], near[near == word]).sum(axis=0) > 0
            two = EMBEDDING.offsets(image[words == word], words[words == word]).sum(axis=0) > 0
            total += max(1 - 2 * (one != two).sum() / 64, 0) ** 3 * weight[int(word)] ** 2
        expected = total / np.sqrt(len(np.unique(words))) if len(image) else -1
        assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("config", [L1, HE, ScoreConfig(score="cosine", norm="self")])
def test_added_later_is_added_at_once(config):
    index = make(config, IMAGES[:3])
    assert index.add(IMAGES[3:]).tolist() == [3, 4, 5, 6]
    index.file.refresh_idf()
    assert len(index.file) == len(IMAGES)
    np.testing.assert_allclose(index.scores(QUERY), make(config).scores(QUERY), rtol=1e-5)


def test_one_by_one_is_all_at_once():
    index = Index(TREE, HE, EMBEDDING)
    for image in IMAGES:
        index.add([image])
    assert len(index.file.segments) <= 4
    index.file.refresh_idf()
    np.testing.assert_allclose(index.scores(QUERY), make(HE).scores(QUERY), rtol=1e-5)


def test_images_without_features_rank_last_and_none_are_lost():
    for config in (L1, HE):
        ranking, similarity = scoring.best(make(config).scores(QUERY))
        assert ranking[-1] == 1
        assert sorted(ranking) == list(range(len(IMAGES)))
        assert (np.diff(similarity) <= 0).all()
        assert len(scoring.best(make(config).scores(QUERY[:0]))[0]) == len(IMAGES)


@pytest.mark.parametrize("k", [1, 3, 7, 50, 200])
def test_the_best_are_the_head_of_the_whole_ranking(k):
    scores = np.round(np.maximum(RNG.normal(size=100), 0), 1).astype(np.float32)
    scores[[4, 90]] = -1
    ranking, similarity = scoring.best(scores, k)
    whole = sorted(range(100), key=lambda row: (-scores[row], row))
    assert ranking.tolist() == whole[:k]
    np.testing.assert_array_equal(similarity, scores[ranking])


def test_an_empty_file_answers():
    index = Index(TREE, HE, EMBEDDING)
    assert index.scores(QUERY).shape == (0,)
    index.file.refresh_idf()
    index.add([IMAGES[1]])
    assert index.scores(QUERY).tolist() == [-1]


def test_bad_input():
    index = make(L1)
    with pytest.raises(InputError, match="--ht"):
        ScoreConfig(ht=65)
    with pytest.raises(InputError, match="--words"):
        ScoreConfig(words=0)
    with pytest.raises(InputError, match="16 dimensions"):
        index.scores(QUERY[:, :5])
    with pytest.raises(ValueError, match="embedding"):
        Index(TREE, HE)
