from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from retrieval import matching
from retrieval.configs.rank import MatchConfig
from retrieval.errors import InputError
from retrieval.matching import match_descriptors, match_distances, match_many

EXACT = MatchConfig(precision="float32")
FAST = MatchConfig()


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def two_views(rng, num_query=300, num_database=280, shared=120, dim=128, noise=0.05):
    query, database = rng.normal(size=(num_query, dim)), rng.normal(size=(num_database, dim))
    database[rng.permutation(num_database)[:shared]] = unit(query[:shared]) * np.sqrt(dim)
    return unit(query), unit(database + noise * rng.normal(size=database.shape))


def slow_match(similarity, mutual):
    """The definition: of equal neighbours, and of equal claims to one neighbour, the first."""
    pairs = []
    for i, row in enumerate(similarity):
        j = min(np.flatnonzero(row == row.max()))
        claimed = j in [taken for _, taken in pairs]
        if not mutual or (row[j] == similarity[:, j].max() and not claimed):
            pairs.append((i, j))
    return pairs


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("rule", ["mutual", "one_way"])
def test_planted_matches_are_those_of_the_exact_distances(rng, rule, precision):
    query, database = two_views(rng)
    expected = set(slow_match(query.astype(float) @ database.T.astype(float), rule == "mutual"))
    found = {
        tuple(pair)
        for pair in match_descriptors(query, database, MatchConfig(rule, precision=precision))
    }
    if precision == "float32":
        assert found == expected
    assert len(found & expected) >= 0.97 * max(len(found), len(expected))


@pytest.mark.parametrize("precision", ["int8", "float32"])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_ties_go_to_the_lowest_row(precision, data):
    # Rows of ±1 and 0 have integer similarities, full of ties, exact in both precisions.
    values = st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=3, max_size=3)
    query = np.array(data.draw(st.lists(values, min_size=1, max_size=8)), np.float32)
    database = np.array(data.draw(st.lists(values, min_size=1, max_size=8)), np.float32)
    similarity = query @ database.T
    for rule in ("mutual", "one_way"):
        found = match_descriptors(query, database, MatchConfig(rule, precision=precision))
        assert [tuple(pair) for pair in found] == slow_match(similarity, rule == "mutual")


def test_the_distance_bound_equals_the_kd_tree_of_s1(rng):
    query, database = two_views(rng)
    distance, nearest = cKDTree(database).query(query, distance_upper_bound=0.65)
    rows = np.flatnonzero(np.isfinite(distance))
    config = MatchConfig("one_way", max_distance=0.65, precision="float32")
    found = match_descriptors(query, database, config)
    assert 0 < len(rows) < len(query)
    np.testing.assert_array_equal(found, np.stack([rows, nearest[rows]], axis=1))


@pytest.mark.parametrize("rule", ["mutual", "one_way"])
def test_the_ratio_test_equals_sorted_distances(rng, rule):
    query, database = two_views(rng, noise=0.12)
    distance = np.sort(np.linalg.norm(query[:, None] - database[None], axis=2), axis=1)
    passes = distance[:, 0] < 0.85 * distance[:, 1]
    plain = match_descriptors(query, database, MatchConfig(rule, precision="float32"))
    found = match_descriptors(query, database, MatchConfig(rule, ratio=0.85, precision="float32"))
    np.testing.assert_array_equal(found, plain[passes[plain[:, 0]]])
    assert 0 < len(found) < len(plain)


def test_a_single_database_row_has_no_rival_for_the_ratio_test(rng):
    query, database = two_views(rng, 5, 1, 1)
    assert len(match_descriptors(query, database, MatchConfig("one_way", ratio=0.1))) == 5


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("ratio", [None, 0.9])
def test_many_sets_of_any_size_match_as_one_by_one(rng, monkeypatch, precision, ratio):
    query, _ = two_views(rng, 90, 90, 0)
    # Opposite descriptors: padding of similarity 0 would win if it took part.
    databases = [-query[:40], query[:0], query[10:90], two_views(rng, 90, 33, 0)[1], query[5:6]]
    for block in (1, 90 * 90 * 3, 1 << 20):
        monkeypatch.setattr(matching, "_BLOCK", block)
        for rule in ("mutual", "one_way"):
            config = MatchConfig(rule, ratio=ratio, precision=precision)
            for found, database in zip(
                match_many(query, databases, config), databases, strict=True
            ):
                np.testing.assert_array_equal(found, match_descriptors(query, database, config))


def test_int8_is_the_same_by_every_engine(rng, monkeypatch):
    query, database = two_views(rng)
    answers = []
    for fast in (True, False):
        monkeypatch.setattr(matching, "_has_fast_int8", lambda fast=fast: fast)
        answers.append(match_descriptors(query, database, FAST))
    np.testing.assert_array_equal(answers[0], answers[1])


@pytest.mark.parametrize("config", [EXACT, FAST, MatchConfig("one_way", ratio=0.9)])
def test_empty_sets_give_no_matches(rng, config):
    some, none = two_views(rng, 4, 4, 0)[0], np.empty((0, 128), np.float32)
    for query, database in ((some, none), (none, some), (none, none)):
        found = match_descriptors(query, database, config)
        assert found.shape == (0, 2)
        assert found.dtype == np.int64
    assert match_many(some, [], config) == []


def test_halves_are_taken(rng):
    query, database = (side.astype(np.float16) for side in two_views(rng))
    found = match_descriptors(query, database, EXACT)
    expected = match_descriptors(query.astype(np.float32), database.astype(np.float32), EXACT)
    np.testing.assert_array_equal(found, expected)


def test_threads_give_the_same_matches(rng):
    views = [two_views(rng, 100, 100, 30) for _ in range(20)]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda view: match_descriptors(view[0], view[1], FAST), views))
    for found, view in zip(threaded, views, strict=True):
        np.testing.assert_array_equal(found, match_descriptors(view[0], view[1], FAST))


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_an_error(rng, precision, value):
    query, database = two_views(rng, 5, 5, 0)
    database[3, 7] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        match_descriptors(query, database, MatchConfig(precision=precision))


def test_dimensions_must_agree(rng):
    with pytest.raises(InputError, match=r"64 dimensions.*32"):
        match_descriptors(unit(rng.normal(size=(5, 64))), unit(rng.normal(size=(5, 32))), FAST)
    with pytest.raises(InputError, match=r"\(N, d\)"):
        match_descriptors(np.zeros(5), np.zeros((5, 1)), FAST)


@pytest.mark.parametrize(
    "settings_",
    [{"rule": "both"}, {"ratio": 0.0}, {"ratio": 1.5}, {"max_distance": -1}, {"precision": "fp16"}],
)
def test_settings_are_checked(settings_):
    with pytest.raises(InputError, match=str(next(iter(settings_.values())))):
        MatchConfig(**settings_)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("rule", ["mutual", "one_way"])
def test_thresholds_are_filters_of_one_matching(rng, rule, kind):
    query, database = (side.astype(kind) for side in two_views(rng))
    every = match_descriptors(query, database, MatchConfig(rule, 0.98))
    distances = match_distances(query, database, every)
    first, second = every[0]
    apart = query[first].astype(np.float32) - database[second].astype(np.float32)
    assert distances[0] == pytest.approx(np.linalg.norm(apart))
    for limit in (np.median(distances), distances[3], 9.0):  # one that is met exactly
        found = match_descriptors(query, database, MatchConfig(rule, 0.98, float(limit)))
        np.testing.assert_array_equal(found, every[distances < limit])
    assert match_distances(query, database, every[:0]).shape == (0,)
