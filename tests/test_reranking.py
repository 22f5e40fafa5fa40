from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retrieval import progress
from retrieval.configs.rank import Geometry, MatchConfig, RerankConfig, VerifyConfig
from retrieval.data.positives import Positives
from retrieval.errors import InputError
from retrieval.features import LocalFeatures
from retrieval.geometry import verify
from retrieval.matching import match_descriptors
from retrieval.metrics import first_hit_rank
from retrieval.reranking import (
    Evidence,
    Found,
    measure_chance,
    random_pairs,
    reorder,
    rerank,
    summed,
)
from retrieval.search import Ranking
from retrieval.verification import by_matching, count_inliers

NUM_PLACES = 8


def photos(rng, shift):
    """One photo of each place; the same places with another shift are other views of them."""
    scene = np.random.default_rng(99)
    taken = []
    for _ in range(NUM_PLACES):
        points, looks = scene.uniform(0, 500, (60, 2)), scene.normal(size=(60, 32))
        looks[30:] = rng.normal(size=(30, 32))  # half of the view is hidden
        looks = (looks / np.linalg.norm(looks, axis=1, keepdims=True)).astype(np.float32)
        points = (points + shift).astype(np.float32)
        order = rng.permutation(60)
        taken.append(LocalFeatures(points[order], looks[order], np.ones(60), (600, 600)))
    return taken


@pytest.fixture
def city():
    """Queries, database (two views of each place), rankings with the positives in columns 5, 6."""
    rng = np.random.default_rng(0)
    database = photos(rng, 20) + photos(rng, -10)
    queries = photos(rng, 0)
    ids = np.arange(2 * NUM_PLACES)
    positives = [np.array([q, q + NUM_PLACES]) for q in range(NUM_PLACES)]
    negatives = [rng.permutation(np.setdiff1d(ids, p)) for p in positives]
    ranking = np.stack([np.insert(n, 5, p) for n, p in zip(negatives, positives, strict=True)])
    similarity = np.sort(rng.random(ranking.shape), axis=1)[:, ::-1]
    return queries, database, ranking, similarity, positives


def run(city, threads=None, **settings):
    queries, database, ranking, similarity, _ = city
    ranked = Ranking(ranking, similarity)
    config = RerankConfig(**settings)
    return rerank(ranked, [Evidence(queries, database, config.geometry)], config, threads)


def test_positives_come_first(city):
    *_, ranking, _, positives = city
    found = run(city)
    assert 0 < found.kinds[0].floor < 20
    for row, positive in zip(found.ranking.rows, positives, strict=True):
        assert set(row[:2]) == set(positive)
    truth = Positives(positives, [[]] * len(positives))
    assert (first_hit_rank(found.ranking.rows, truth) < first_hit_rank(ranking, truth)).all()
    assert set(found.kinds[0].seconds) == {"loading", "matching", "verification", "elapsed"}
    assert found.kinds[0].ms_per_pair > 0


def test_equals_the_obvious_loop(city):
    queries, database, ranking, similarity, _ = city
    config = RerankConfig(top_k=9, floor=2.0)
    found = run(city, top_k=9, floor=2.0)
    for q, row in enumerate(ranking):
        counts = []
        for d in row[:9]:
            pairs = match_descriptors(queries[q].descriptors, database[d].descriptors, config.match)
            points = queries[q].keypoints[pairs[:, 0]], database[d].keypoints[pairs[:, 1]]
            counts.append(verify(*points, config.verify).num_inliers)
        np.testing.assert_array_equal(found.kinds[0].num_inliers[q], counts)
        keys = [(-max(n - 2.0, 0), -s) for n, s in zip(counts, similarity[q, :9], strict=True)]
        head = [int(row[i]) for i in sorted(range(9), key=keys.__getitem__)]
        assert found.ranking.rows[q].tolist() == head + row[9:].tolist()
        by_id = dict(zip(row, similarity[q], strict=True))
        assert found.ranking.similarity[q].tolist() == [by_id[d] for d in found.ranking.rows[q]]


def test_threads_change_nothing_and_leave_nothing_behind(city):
    before = torch.get_num_threads(), cv2.getNumThreads()
    first, second = (run(city, threads=threads) for threads in (1, 4))
    np.testing.assert_array_equal(first.kinds[0].num_inliers, second.kinds[0].num_inliers)
    np.testing.assert_array_equal(first.ranking.rows, second.ranking.rows)
    assert first.kinds[0].floor == second.kinds[0].floor
    assert (torch.get_num_threads(), cv2.getNumThreads()) == before


def test_progress_counts_every_pair(city):
    with progress.bar("pairs", 1000, "pairs"):
        bar = progress._open[-1]
        run(city, top_k=5, floor=0.0)
    drawn = random_pairs(city[2], RerankConfig(top_k=5))
    assert bar.done == 5 * NUM_PLACES + len(drawn)


class Asked(list):
    """Features that remember the rows they were asked for."""

    def __getitem__(self, row):
        self.rows = [*getattr(self, "rows", []), row]
        return super().__getitem__(row)


def test_only_the_features_of_the_shortlist_are_asked_for(city):
    queries, database, ranking, similarity, _ = city
    asked = Asked(database)
    config = RerankConfig(top_k=3)
    kinds = [Evidence(queries, asked, config.geometry)]
    rerank(Ranking(ranking[:2], similarity[:2]), kinds, config)
    assert set(asked.rows) <= set(ranking[:2, :3].ravel())
    assert len(asked.rows) == len(set(asked.rows))  # each is read once


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (3, 0)])
def test_empty_rankings(shape):
    empty = Ranking(np.empty(shape, np.int64), np.empty(shape, np.float32))
    found = rerank(empty, [Evidence([], [], RerankConfig().geometry)], RerankConfig())
    assert found.ranking.rows.shape == found.kinds[0].num_inliers.shape == shape
    assert found.kinds[0].floor == 0


def test_queries_that_could_not_be_read_stay(city):
    queries, database, ranking, similarity, positives = city
    ranking, similarity = ranking.copy(), similarity.copy()
    whole = run(city, floor=0.0)
    ranking[2], similarity[2] = -1, -np.inf
    found = run((queries, database, ranking, similarity, positives), floor=0.0)
    assert (found.ranking.rows[2] == -1).all()
    assert (found.kinds[0].num_inliers[2] == 0).all()
    others = np.arange(NUM_PLACES) != 2
    np.testing.assert_array_equal(found.ranking.rows[others], whole.ranking.rows[others])


def test_images_without_features_stay_behind(city):
    queries, database, ranking, similarity, positives = city
    nothing = LocalFeatures(np.empty((0, 2)), np.empty((0, 32)), np.empty(0), (9, 9))
    database[int(positives[0][0])] = nothing
    queries[1] = nothing
    found = run((queries, database, ranking, similarity, positives), floor=8.0)
    assert found.ranking.rows[0, 0] == positives[0][1]
    np.testing.assert_array_equal(found.ranking.rows[1], ranking[1])


def test_other_models_are_passed_on(city):
    found = run(city, verify=VerifyConfig("homography"), floor=0.0, top_k=16)
    assert (found.kinds[0].num_inliers[:, 5:7] >= 25).all()


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_reorder_permutes_the_head_only_and_is_stable(data):
    q, k_all = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 8))
    k = data.draw(st.integers(0, k_all))
    floor = data.draw(st.sampled_from([0.0, 3.0, 5.5]))
    fusion = data.draw(st.sampled_from([0.0, 1.5, 40.0]))
    counts = data.draw(arrays(np.int64, (q, k), elements=st.integers(0, 9)))
    similarity = data.draw(
        arrays(np.float32, (q, k_all), elements=st.sampled_from([-1, 0, 0.5, 1]))
    )
    ranking = np.array([np.random.default_rng(i).permutation(k_all) for i in range(q)], np.int64)
    ranking = ranking.reshape(q, k_all)
    new, order = reorder(ranking, similarity, counts, floor, fusion)
    assert new.shape == ranking.shape
    np.testing.assert_array_equal(new[:, k:], ranking[:, k:])
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(k_all), (q, 1)))
    for row in range(q):
        best = max(similarity[row, :k], default=0)
        shares = [s / (best if best > 0 else 1) for s in similarity[row, :k].tolist()]
        gains = [max(n - floor, 0) + fusion * s for n, s in zip(counts[row], shares, strict=True)]
        keys = [(-gain, -similarity[row, i]) for i, gain in enumerate(gains)]
        assert order[row, :k].tolist() == sorted(range(k), key=keys.__getitem__)
        assert new[row].tolist() == ranking[row, order[row]].tolist()


def test_inliers_below_the_floor_change_nothing():
    ranking, similarity = np.array([[4, 2, 7]]), np.array([[0.9, 0.8, 0.7]])
    new, _ = reorder(ranking, similarity, np.array([[0, 5, 6]]), floor=6)
    np.testing.assert_array_equal(new, ranking)
    new, _ = reorder(ranking, similarity, np.array([[0, 5, 6]]), floor=0)  # DELG's order
    np.testing.assert_array_equal(new, [[7, 2, 4]])


def test_fusion_is_what_the_best_similarity_is_worth_in_inliers():
    ranking, similarity = np.array([[4, 2, 7]]), np.array([[0.8, 0.4, 0.2]])
    inliers = np.array([[0, 5, 9]])  # worth 1, 1/2 and 1/4 of the fusion more
    for fusion, expected in ((0, [7, 2, 4]), (11, [7, 4, 2]), (13, [4, 7, 2]), (100, [4, 2, 7])):
        new, _ = reorder(ranking, similarity, inliers, floor=0, fusion=fusion)
        np.testing.assert_array_equal(new, [expected])


def test_the_strongest_features_are_a_slice(city):
    queries, database, *rest = city
    by_hand = [
        [
            LocalFeatures(f.keypoints[:40], f.descriptors[:40], f.scores[:40], f.image_size)
            for f in side
        ]
        for side in (queries, database)
    ]
    sliced, whole = run((*by_hand, *rest)), run(city)
    found = run(city, num_features=40)
    np.testing.assert_array_equal(found.kinds[0].num_inliers, sliced.kinds[0].num_inliers)
    np.testing.assert_array_equal(found.ranking.rows, sliced.ranking.rows)
    assert (found.kinds[0].num_inliers != whole.kinds[0].num_inliers).any()
    np.testing.assert_array_equal(
        run(city, num_features=99).kinds[0].num_inliers, whole.kinds[0].num_inliers
    )


def test_geometries_counted_together_are_those_counted_alone(city):
    queries, database, ranking, *_ = city
    geometries = [
        Geometry(num_features, MatchConfig(rule, 0.95, limit), verify)
        for num_features in (None, 45)
        for rule in ("mutual", "one_way")
        for limit in (None, 0.9, 0.3)
        for verify in (VerifyConfig(), VerifyConfig("homography", residual=4.0))
    ]
    pairs = [(q, int(d)) for q, row in enumerate(ranking) for d in row]
    with progress.bar("pairs", 10**9, "pairs"):
        bar = progress._open[-1]
        counted = count_inliers(pairs, queries, database, geometries)
    assert len(by_matching(geometries)) == 4
    assert bar.done == len(pairs) * len(geometries)
    assert (counted.seconds > 0).all()
    assert len({tuple(row) for row in counted.num_inliers.tolist()}) > 8
    for geometry, counts in zip(geometries, counted.num_inliers, strict=True):
        alone = run(
            city, floor=0.0, num_features=geometry.num_features, match=geometry.match,
            verify=geometry.verify,
        )  # fmt: skip
        np.testing.assert_array_equal(counts, alone.kinds[0].num_inliers.ravel())


def test_random_pairs_avoid_the_own_ranking_and_repeat_by_seed():
    ranking = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    config = RerankConfig(floor_pairs=9)
    pairs = random_pairs(ranking, config)
    assert len(pairs) == len(set(pairs)) == 9
    assert all(d not in ranking[q] for q, d in pairs)
    assert pairs == random_pairs(ranking, config)
    assert pairs != random_pairs(ranking, RerankConfig(floor_pairs=9, seed=1))
    # With one query there is only the end of its own ranking.
    assert random_pairs(ranking[:1], config) == [(0, 2)]


def test_the_floor_is_a_quantile():
    counts = np.arange(101)
    assert measure_chance(counts, 0.95).floor == 95
    assert measure_chance(np.array([4, 0, 5, 6]), 1.0).floor == 6
    assert measure_chance(np.array([], int)).floor == 0


@pytest.mark.parametrize(
    ("ranking", "message"),
    [([[1, 2, 1]], "query 0.*twice"), ([[1, -1, 0]], "id -1"), ([1, 2], r"\(Q, K\)")],
)
def test_bad_rankings_are_named(ranking, message):
    ranking = np.array(ranking)
    kinds = [Evidence([], [], RerankConfig().geometry)]
    with pytest.raises(InputError, match=message):
        rerank(Ranking(ranking, ranking * 1.0), kinds, RerankConfig())


@pytest.mark.parametrize(
    "settings_",
    [
        {"top_k": 0},
        {"num_features": 0},
        {"floor_quantile": 2.0},
        {"floor_pairs": 0},
        {"floor": -1.0},
        {"fusion": -1.0},
        {"fusion": float("nan")},
    ],
)
def test_settings_are_checked(settings_):
    with pytest.raises(InputError):
        RerankConfig(**settings_)


@pytest.mark.parametrize(("jitter", "expected"), [(1.0, 15.0), (40.0, 60.0)])
def test_the_residual_follows_how_exactly_features_lie(jitter, expected):
    """Forty places whose features lie again where they were, to within ``jitter`` pixels."""
    rng = np.random.default_rng(7)

    def shown(looks, points):
        points = points + rng.normal(0, jitter, points.shape)
        looks = looks + rng.normal(0, 0.2, looks.shape)  # some matches are wrong, too
        looks /= np.linalg.norm(looks, axis=1, keepdims=True)
        return LocalFeatures(points, looks.astype(np.float32), np.ones(len(looks)), (640, 480))

    places = [(rng.normal(0, 0.2, (150, 16)), rng.uniform(0, 480, (150, 2))) for _ in range(40)]
    queries, database = ([shown(*place) for place in places] for _ in range(2))
    rows = np.array([np.roll(np.arange(40), -place) for place in range(40)])
    ranked = Ranking(rows, np.linspace(1, 0, rows.size).reshape(rows.shape).astype(np.float32))
    config = RerankConfig(top_k=20)
    (kind,) = rerank(ranked, [Evidence(queries, database, config.geometry)], config).kinds
    assert kind.geometry.verify.residual == expected
    fixed = replace(config.geometry, verify=replace(config.geometry.verify, residual=9.0))
    (kind,) = rerank(ranked, [Evidence(queries, database, fixed)], config).kinds
    assert kind.geometry == fixed


def test_a_set_too_small_to_measure_takes_the_default_and_says_so(city):
    queries, database, ranking, similarity, _ = city
    config = RerankConfig(floor_pairs=50)
    evidence = [Evidence(queries, database, config.geometry)]
    found = rerank(Ranking(ranking, similarity), evidence, config)
    assert found.kinds[0].geometry.verify.residual == 15
    assert "random pairs of photos to measure chance on" in found.notes[0]


def test_belief_is_what_one_random_pair_in_a_hundred_reaches():
    counts = np.random.default_rng(0).geometric(0.3, 20_000)
    chance = measure_chance(counts)
    assert chance.floor == np.quantile(counts, 0.95, method="higher")
    assert (counts >= chance.belief).mean() == pytest.approx(0.01, rel=0.5)
    looser = measure_chance(3 * counts)  # as a larger residual lets more matches agree
    assert looser.belief > 2 * chance.belief


def test_few_random_pairs_make_cautious():
    """Of a dozen pairs none can say what one in a hundred reaches."""
    for counts in (np.zeros(12, int), np.full(12, 5), np.arange(12)):
        chance = measure_chance(counts)
        assert chance.belief > counts.max()
    assert measure_chance(np.zeros(1000, int)).belief == 0  # any inlier is then beyond chance


def kinds_of(city, *more):
    queries, database, *_ = city
    return [Evidence(queries, database, RerankConfig().geometry), *more]


def test_one_kind_twice_changes_nothing_in_the_order(city):
    _, _, ranking, similarity, _ = city
    ranked, config = Ranking(ranking, similarity), RerankConfig()
    one, two = (rerank(ranked, kinds, config) for kinds in (kinds_of(city), 2 * kinds_of(city)))
    np.testing.assert_array_equal(one.ranking.rows, two.ranking.rows)
    np.testing.assert_array_equal(one.kinds[0].num_inliers, two.kinds[1].num_inliers)
    np.testing.assert_allclose(two.strength, 2 * one.strength)


def test_a_kind_of_noise_changes_little(city):
    queries, database, ranking, similarity, positives = city
    rng = np.random.default_rng(5)

    def noise(features):
        looks = rng.normal(size=features.descriptors.shape).astype(np.float32)
        looks /= np.linalg.norm(looks, axis=1, keepdims=True)
        return LocalFeatures(features.keypoints, looks, features.scores, features.image_size)

    sides = [[noise(each) for each in side] for side in (queries, database)]
    kinds = kinds_of(city, Evidence(*sides, RerankConfig().geometry))
    found = rerank(Ranking(ranking, similarity), kinds, RerankConfig())
    for row, positive in zip(found.ranking.rows, positives, strict=True):
        assert set(row[:2]) == set(positive)


def test_kinds_are_summed_in_units_of_their_own_chance():
    rng = np.random.default_rng(1)
    loose, strict = rng.geometric(0.05, 5000), rng.geometric(0.4, 5000)
    made = [
        Found(
            RerankConfig().geometry,
            np.array([[n]]),
            measure_chance(counts),
            measure_chance(counts).floor,
            {},
            0.0,
        )
        for n, counts in ((200, loose), (25, strict))
    ]
    scales = [kind.chance.scale for kind in made]
    slow = sum(
        np.mean(scales) * max(n - kind.floor, 0) / scale
        for n, kind, scale in zip((200, 25), made, scales, strict=True)
    )
    assert summed(made, [kind.num_inliers for kind in made])[0, 0] == pytest.approx(slow)
    (one,) = (summed(made[:1], [np.array([[12, 0, 200]])]),)
    np.testing.assert_array_equal(one, np.maximum(np.array([[12, 0, 200]]) - made[0].floor, 0))
