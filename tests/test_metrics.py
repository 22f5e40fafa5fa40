import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from retrieval import metrics
from retrieval.data.ground_truth import read_gnd
from retrieval.data.positives import Positives


def as_rows(*lists):
    return [np.array(rows, np.int64) for rows in lists]


def random_case(rng, queries=12, images=60):
    """A full random ranking, and random positives and junk; some queries have neither."""
    ranking = np.array([rng.permutation(images) for _ in range(queries)])
    positives, junk = [], []
    for query in range(queries):
        rows = rng.permutation(images)
        right, ignored = rng.integers(0, 12, 2) * (query % 5 > 0)
        positives.append(rows[:right])
        junk.append(rows[right : right + ignored])
    return ranking, Positives(positives, junk)


def slow_revisited(ranking, positives, ks):
    """The revisited protocol from its definition: strike out the junk, walk down the list."""
    precisions: list[float] = []
    at_k: dict[int, list[float]] = {k: [] for k in ks}
    for row, right, junk in zip(ranking, positives.positives, positives.junk, strict=True):
        wanted, struck = set(right.tolist()), set(junk.tolist())
        if not wanted:
            precisions.append(float("nan"))
            continue
        kept = [image for image in row.tolist() if image not in struck]
        area, recall, precision, found, last = 0.0, 0.0, 1.0, 0, 0
        for rank, image in enumerate(kept, start=1):
            if image in wanted:
                found, last = found + 1, rank
            area += (found / len(wanted) - recall) * (precision + found / rank) / 2
            recall, precision = found / len(wanted), found / rank
        precisions.append(100 * area)
        for k, values in at_k.items():
            cut = min(last, k)
            values.append(100 * len(wanted & set(kept[:cut])) / cut)
    return precisions, {k: np.mean(values) for k, values in at_k.items()}


def assert_agrees(ranking, positives):
    expected, expected_at_k = slow_revisited(ranking, positives, (1, 5, 10))
    mean, per_query = metrics.mean_average_precision(ranking, positives)
    at_k = metrics.precision_at_k(ranking, positives, (1, 5, 10))
    np.testing.assert_allclose(per_query, expected, rtol=0, atol=1e-9)
    assert mean == pytest.approx(np.nanmean(expected), abs=1e-9)
    assert at_k == pytest.approx(expected_at_k, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_map_and_precision_against_the_definition(seed):
    assert_agrees(*random_case(np.random.default_rng(seed)))


@pytest.mark.parametrize("name", ["gnd_roxford5k.pkl", "gnd_rparis6k.pkl"])
def test_map_and_precision_on_the_full_ground_truth(name):
    path = Path(os.environ.get("DELG_DATA", "unset")) / name
    if not path.is_file():
        pytest.skip(f"DELG_DATA does not name a folder with {name}")
    revisited = read_gnd(path)
    rng = np.random.default_rng(0)
    for protocol, positives in revisited.ground_truth.items():
        ranking = np.array([rng.permutation(len(revisited.imlist)) for _ in revisited.qimlist])
        if protocol != "E":  # half of the positives near the top, as a real ranking has them
            for row, right in zip(ranking, positives.positives, strict=True):
                top = right[: len(right) // 2]
                row[:] = np.concatenate([top, row[~np.isin(row, top)]])
        assert_agrees(ranking, positives)


# The official evaluation code of revisited Oxford/Paris (filipradenovic/revisitop), run on rankings
# made as `made_ranking` makes them: fractions, mAP and mP@1, 5, 10, by (seed, noise) and protocol.
SMALL_IMAGES = 120
SMALL_GND = [
    {"easy": [58], "hard": [110, 19, 28, 116], "junk": []},
    {"easy": [42, 75], "hard": [32, 34], "junk": [99]},
    {"easy": [], "hard": [], "junk": [90, 100, 24, 96, 86, 0]},
    {"easy": [55, 37, 39, 65, 58], "hard": [], "junk": [21]},
    {"easy": [90, 16, 91, 34], "hard": [56, 10, 2, 46, 112, 106], "junk": [40, 79, 24, 55, 71, 32]},
    {"easy": [101], "hard": [51, 98], "junk": [92, 31, 105, 74, 107, 112, 8, 89]},
]
GOLDEN = {
    (0, 0.2): {
        "E": (0.9417128205128206, [1.0, 0.9199999999999999, 0.8800000000000001]),
        "M": (0.7122706388335976, [1.0, 0.68, 0.4800000000000001]),
        "H": (0.4933366124268345, [0.75, 0.4, 0.325]),
    },
    (1, 0.6): {
        "E": (0.7664525655223329, [0.8, 0.76, 0.6799999999999999]),
        "M": (0.5242597425826314, [0.8, 0.4800000000000001, 0.32]),
        "H": (0.15812863914899655, [0.25, 0.15000000000000002, 0.1375]),
    },
    (2, 0.95): {
        "E": (0.016729387173162105, [0.0, 0.0, 0.0]),
        "M": (0.12025003204435283, [0.4, 0.12000000000000002, 0.06000000000000001]),
        "H": (0.17760651877788836, [0.5, 0.15000000000000002, 0.07500000000000001]),
    },
}


def made_ranking(entries, num_images, seed, noise):
    """A ranking of all images for each query, the worse the more noise there is."""
    scores = np.random.default_rng(seed).random((num_images, len(entries)))
    for query, entry in enumerate(entries):
        for kind, worth in (("easy", 1), ("hard", 1 / 2), ("junk", 0.7)):
            scores[entry[kind], query] += worth * (1 - noise)
    return np.argsort(-scores, axis=0).T


def assert_is_golden(path, case, golden):
    """The figures of a ground truth file on the ranking of a case (seed, noise)."""
    revisited = read_gnd(path)
    with path.open("rb") as file:
        entries = pickle.load(file)["gnd"]
    ranking = made_ranking(entries, len(revisited.imlist), *case)
    found = metrics.evaluate_revisited(ranking, revisited.ground_truth)
    for protocol, (mean, precisions) in golden.items():
        figures = np.array(list(found[protocol].values())) / 100
        np.testing.assert_allclose(figures, [mean, *precisions], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", GOLDEN)
def test_figures_of_the_official_code(tmp_path, case):
    names = {"imlist": [f"d{i}" for i in range(SMALL_IMAGES)], "qimlist": list("abcdef")}
    gnd = [{"bbx": [0.0, 0.0, 1.0, 1.0], **entry} for entry in SMALL_GND]
    path = tmp_path / "gnd_small.pkl"
    path.write_bytes(pickle.dumps({**names, "gnd": gnd}))
    assert_is_golden(path, case, GOLDEN[case])


@pytest.mark.parametrize("name", ["roxford5k", "rparis6k"])
def test_figures_of_the_official_code_on_the_full_ground_truth(real_photos, name):
    golden = json.loads((real_photos / "golden_revisited.json").read_text())
    for case in (case for case in golden["cases"] if case["set"] == name):
        figures = {p: (case[p]["mAP"], case[p]["mP"]) for p in "EMH"}
        assert_is_golden(real_photos / f"gnd_{name}.pkl", (case["seed"], case["noise"]), figures)


def test_average_precision_by_hand():
    # Ranked right, wrong, right: 1/2 · (1 + 1)/2 and 1/2 · (1/2 + 2/3)/2.
    assert metrics.average_precision(np.array([0, 2]), 2) == pytest.approx(100 * (1 / 2 + 7 / 24))
    assert metrics.average_precision(np.array([0, 1, 2]), 3) == 100
    assert metrics.average_precision(np.array([0]), 4) == 25
    assert metrics.average_precision(np.array([], np.int64), 4) == 0
    assert np.isnan(metrics.average_precision(np.array([], np.int64), 0))


def test_junk_moves_the_rest_up():
    positives = Positives(as_rows([4]), as_rows([7, 8]))
    ranking = np.array([[7, 8, 4, 1]])
    assert metrics.first_hit_rank(ranking, positives).tolist() == [1]
    assert metrics.mean_average_precision(ranking, positives)[0] == 100


@pytest.mark.parametrize("seed", range(4))
def test_recall_against_sets(seed):
    ranking, positives = random_case(np.random.default_rng(seed))
    recalls = metrics.recall_at_k(ranking, positives, [1, 5, 10, 20])
    for k, recall in recalls.items():
        hits = 0
        for row, right, junk in zip(ranking, positives.positives, positives.junk, strict=True):
            kept = [image for image in row if image not in set(junk)]
            hits += bool(set(kept[:k]) & set(right))
        assert recall == pytest.approx(100 * hits / len(ranking))


def test_queries_without_positives_count_as_misses():
    positives = Positives(as_rows([0], []), as_rows([], []))
    ranking = np.array([[0, 1], [0, 1]])
    assert metrics.recall_at_k(ranking, positives, [1]) == {1: 50.0}
    assert metrics.first_hit_rank(ranking, positives).tolist() == [1, np.inf]
    mean, per_query = metrics.mean_average_precision(ranking, positives)
    assert mean == 100
    assert np.isnan(per_query[1])
    assert metrics.precision_at_k(ranking, positives, [5]) == {5: 100.0}


def test_a_cut_ranking_counts_the_rest_as_not_found():
    positives = Positives(as_rows([3, 9]), as_rows([]))
    ranking = np.array([[3, 1]])
    assert metrics.mean_average_precision(ranking, positives)[0] == 50
    assert metrics.precision_at_k(ranking, positives, [1, 2, 10]) == {1: 100, 2: 50, 10: 10}
    assert metrics.recall_at_k(ranking, positives, [20]) == {20: 100.0}


def test_padding_is_no_candidate_and_no_repeat():
    positives = Positives(as_rows([3]), as_rows([]))
    assert metrics.first_hit_rank(np.array([[1, 3, -1, -1]]), positives).tolist() == [2]


def test_nothing_to_judge():
    nothing = Positives([], [])
    ranking = np.empty((0, 5), np.int64)
    assert np.isnan(metrics.recall_at_k(ranking, nothing, [1])[1])
    assert np.isnan(metrics.mean_average_precision(ranking, nothing)[0])
    assert np.isnan(metrics.precision_at_k(ranking, nothing, [1])[1])
    empty = np.empty((1, 0), np.int64)
    assert metrics.recall_at_k(empty, Positives(as_rows([2]), as_rows([])), [1]) == {1: 0.0}


def test_bad_rankings():
    positives = Positives(as_rows([0], [1]), as_rows([], []))
    with pytest.raises(ValueError, match="query 1 holds a row more than once"):
        metrics.recall_at_k(np.array([[0, 1, 2], [2, 1, 2]]), positives, [1])
    with pytest.raises(ValueError, match="2 queries"):
        metrics.recall_at_k(np.array([[0, 1]]), positives, [1])
    with pytest.raises(ValueError, match="integers"):
        metrics.recall_at_k(np.zeros((2, 1)), positives, [1])
    with pytest.raises(ValueError, match="at least 1"):
        metrics.recall_at_k(np.zeros((2, 1), int), positives, [0])


def test_positives_are_distinct_sorted_rows():
    positives = Positives(as_rows([5, 2, 5]), as_rows([]))
    assert positives.positives[0].tolist() == [2, 5]
    assert len(positives) == 1
    with pytest.raises(ValueError, match="query 1 has rows that are both positive and junk"):
        Positives(as_rows([1], [2, 3]), as_rows([], [3]))
    with pytest.raises(ValueError, match="not negative"):
        Positives(as_rows([-1]), as_rows([]))
    with pytest.raises(ValueError, match="1 lists of positives, 2 of junk"):
        Positives(as_rows([1]), as_rows([], []))


def test_evaluate_revisited_gathers_the_figures():
    ranking, positives = random_case(np.random.default_rng(3))
    figures = metrics.evaluate_revisited(ranking, {"E": positives, "H": positives})
    assert list(figures) == ["E", "H"]
    assert figures["E"]["mAP"] == metrics.mean_average_precision(ranking, positives)[0]
    assert figures["E"]["mP@5"] == metrics.precision_at_k(ranking, positives, [5])[5]


def test_paired_interval():
    rng = np.random.default_rng(0)
    before = rng.normal(50, 20, 400)
    after = before + rng.normal(2, 10, 400)
    mean, low, high = metrics.paired_interval(after, before)
    assert mean == pytest.approx((after - before).mean())
    # The normal approximation of the same interval, from the paired differences.
    half = 1.96 * (after - before).std(ddof=1) / np.sqrt(400)
    assert low == pytest.approx(mean - half, abs=0.1)
    assert high == pytest.approx(mean + half, abs=0.1)
    assert metrics.paired_interval(after, before) == (mean, low, high)
    gaps = np.append(after, [np.nan, 3.0]), np.append(before, [1.0, np.nan])
    assert metrics.paired_interval(*gaps) == (mean, low, high)
    assert metrics.paired_interval(before, before) == (0, 0, 0)
    assert np.isnan(metrics.paired_interval(np.array([]), np.array([]))).all()
    with pytest.raises(ValueError, match="equally long"):
        metrics.paired_interval(before, before[:3])


def test_paired_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        differences = rng.normal(1, 5, 60)
        _, low, high = metrics.paired_interval(differences, np.zeros(60), 0.9, 400, seed=trial)
        covered += low <= 1 <= high
    assert 165 <= covered <= 193
