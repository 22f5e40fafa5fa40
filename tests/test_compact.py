"""Local features in fewer bytes: what the forms keep, what they cost, and how codes are matched."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.made_up import evaluation_of

from retrieval import comparison
from retrieval.commands import eval_flags
from retrieval.compact.forms import packed, unpacked
from retrieval.compact.store import chosen_form, coded, compacted, read_codes
from retrieval.comparison import side_by_side
from retrieval.configs.describe import CompactConfig
from retrieval.configs.rank import MatchConfig, RerankConfig
from retrieval.data.photo_sets import PhotoSet
from retrieval.data.positives import Positives
from retrieval.drawing.html_report.charts import bytes_chart
from retrieval.drawing.html_report.compare_page import write_comparison
from retrieval.errors import InputError
from retrieval.feature_folders import SetFeatures, StoredFeatures, check_not_binary
from retrieval.features import FeatureStore, LocalFeatures, MadeBy
from retrieval.matching import match_descriptors, match_distances, match_many
from retrieval.verification import count_inliers, match
from retrieval.whitening import learn_signs

SIZE = (4000, 3000)
DIM = 128


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def features(seed, count=300, dim=DIM):
    """Features with all fields, strongest first."""
    rng = np.random.default_rng(seed)
    return LocalFeatures(
        (rng.random((count, 2)) * SIZE - 0.5).astype(np.float32),
        unit(rng.normal(size=(count, dim))),
        np.sort(rng.random(count).astype(np.float32))[::-1],
        SIZE,
        rng.uniform(2, 90, count).astype(np.float32),
        rng.uniform(-np.pi, np.pi, count).astype(np.float32),
    )


@pytest.fixture
def stored(tmp_path):
    """Three queries and five database photos in a store of halves; the last has no features."""
    store = FeatureStore.open(tmp_path / "set", MadeBy("sift", {"root": True}, {"source": None}))
    names = [f"q{row}" for row in range(3)], [f"d{row}" for row in range(5)]
    with store.writer() as writer:
        for seed, name in enumerate(names[0] + names[1]):
            writer.put(name, LocalFeatures.nothing() if name == "d4" else features(seed))
    return SetFeatures(store, *(StoredFeatures(store, part) for part in names))


# ---- codes, against counting bits one by one


def differing(one, other):
    """The bits in which two codes differ, counted by Python."""
    return sum((int(a) ^ int(b)).bit_count() for a, b in zip(one, other, strict=True))


def slow_match(query, database, config):
    """The definition: of equal neighbours, and of equal claims to one neighbour, the first."""
    distances = np.array([[differing(q, d) for d in database] for q in query])
    pairs, claimed = [], set()
    for i, row in enumerate(distances.tolist()):
        j = row.index(min(row))
        mutual = row[j] == distances[:, j].min() and j not in claimed
        if config.rule == "one_way" or mutual:
            claimed.add(j)
            near = [np.sin(np.pi * h / (16 * query.shape[1])) for h in sorted(row)[:2]]
            if config.ratio is None or len(near) < 2 or near[0] < config.ratio * near[1]:
                pairs.append((i, j))
    return pairs


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def codes(rng, count, close_to=None):
    """Random codes of 64 bits; or some with a few bits of others changed."""
    if close_to is None:
        return rng.integers(0, 256, (count, 8), np.uint8)
    changed = np.packbits(rng.random((count, 64)) < 0.1, axis=1)
    return close_to[rng.integers(0, len(close_to), count)] ^ changed


@pytest.mark.parametrize("rule", ["mutual", "one_way"])
@pytest.mark.parametrize("ratio", [None, 0.8])
def test_codes_match_as_counting_bits_says(rng, rule, ratio):
    config = MatchConfig(rule, ratio)
    query = codes(rng, 60)
    databases = [codes(rng, size, query) for size in (50, 2, 70)]
    for found, database in zip(match_many(query, databases, config), databases, strict=True):
        assert [tuple(pair) for pair in found] == slow_match(query, database, config)
        np.testing.assert_array_equal(found, match_descriptors(query, database, config))
        assert 0 < len(found) <= 60


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_of_equally_near_codes_the_lowest_row_wins(data):
    near = st.lists(st.integers(0, 3), min_size=1, max_size=8)  # few values, full of ties
    query, database = (np.zeros((len(data.draw(near)), 8), np.uint8) for _ in range(2))
    for side in (query, database):
        side[:, 3] = [data.draw(st.integers(0, 3)) for _ in side]
    for rule in ("mutual", "one_way"):
        found = match_descriptors(query, database, MatchConfig(rule))
        assert [tuple(pair) for pair in found] == slow_match(query, database, MatchConfig(rule))


def test_the_distance_of_codes_is_that_of_the_angle_they_tell_of(rng):
    query, database = codes(rng, 20), codes(rng, 20)
    matches = np.stack([np.arange(20), rng.permutation(20)], axis=1)
    angles = [np.pi * differing(query[q], database[d]) / 64 for q, d in matches]
    corners = [2 * np.sin(angle / 2) for angle in angles]
    np.testing.assert_allclose(match_distances(query, database, matches), corners)
    near = match_descriptors(query, database, MatchConfig("one_way", max_distance=1.2))
    every = match_descriptors(query, database, MatchConfig("one_way"))
    kept = match_distances(query, database, every) < 1.2
    np.testing.assert_array_equal(near, every[kept])


def test_codes_are_matched_with_codes_of_their_length_alone(rng):
    some = codes(rng, 5)
    with pytest.raises(InputError, match="binary codes, the other's are not"):
        match_descriptors(some, np.ones((5, 8), np.float32), MatchConfig())
    with pytest.raises(InputError, match="have 8 bytes, database descriptors 16"):
        match_descriptors(some, np.zeros((5, 16), np.uint8), MatchConfig())
    none = np.empty((0, 1), np.float32)  # as of a photo that could not be decoded
    assert [len(each) for each in match_many(some, [none, some], MatchConfig())] == [0, 5]
    assert len(match_descriptors(none, some, MatchConfig())) == 0


def test_signs_are_bits_of_a_rotation(rng):
    sample = rng.normal(size=(500, 40)) * np.linspace(1, 4, 40) + 3
    for bits in (24, 40, 64):
        learned = learn_signs(sample, bits)
        gram = (
            learned.matrix.T @ learned.matrix if bits <= 40 else learned.matrix @ learned.matrix.T
        )
        np.testing.assert_allclose(gram, np.eye(min(bits, 40)), atol=1e-5)
        expected = (sample - sample.mean(axis=0)) @ learned.matrix.astype(float) > 0
        agree = np.unpackbits(learned.signs(sample), axis=1) == expected
        assert agree.mean() > 0.999  # but for roundings of what is nearly zero


def test_the_learned_rotation_loses_less_than_the_first_one(rng):
    """What ITQ minimises: the distance of the turned samples from the corners of a cube."""
    directions = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    sample = rng.choice([-1.0, 1.0], (2000, 16)) @ directions + 0.1 * rng.normal(size=(2000, 16))
    turned = (sample - sample.mean(axis=0)) @ learn_signs(sample, 16).matrix
    first = (sample - sample.mean(axis=0)) @ np.linalg.qr(rng.normal(size=(16, 16)))[0]
    loss = [((each - np.sign(each)) ** 2).sum(axis=1).mean() for each in (turned, first)]
    assert loss[0] < 0.8 * loss[1]


# ---- forms


@pytest.mark.parametrize("form", ["8bit", "binary"])
def test_compact_forms_keep_places_scales_and_angles(form):
    full = features(0)
    given = full.arrays() | (
        {"descriptors": codes(np.random.default_rng(0), 300)} if form == "binary" else {}
    )
    kept = packed(given, form, SIZE)
    back = unpacked(kept, form, SIZE)
    assert np.abs(back["keypoints"] - full.keypoints).max() < 0.04
    np.testing.assert_allclose(back["scales"], full.scales, rtol=1e-3)
    np.testing.assert_allclose(back["scores"], full.scores, rtol=1e-3, atol=1e-7)
    turn = np.angle(np.exp(1j * (back["orientations"] - full.orientations)))
    assert np.abs(turn).max() <= np.pi / 256 + 1e-6
    if form == "binary":
        np.testing.assert_array_equal(back["descriptors"], given["descriptors"])
    else:
        np.testing.assert_allclose(np.linalg.norm(back["descriptors"], axis=1), 1, rtol=1e-5)
        assert (back["descriptors"] * full.descriptors).sum(axis=1).min() > 0.999


def test_numbers_too_large_for_halves_and_places_outside_are_bounded():
    fields = {"keypoints": np.array([[-9.0, 1e6]]), "scores": np.array([1e9])}
    back = unpacked(packed(fields | {"descriptors": np.zeros((1, 4))}, "8bit", SIZE), "8bit", SIZE)
    np.testing.assert_allclose(back["keypoints"], [[-0.5, SIZE[1] - 0.5]])
    assert back["scores"][0] == np.finfo(np.float16).max
    assert not back["descriptors"].any()


# ---- stores


@pytest.mark.parametrize("form", ["half", "8bit", "binary"])
@pytest.mark.parametrize("most", [2000, 8000])
def test_a_photo_costs_at_most_what_is_asked(stored, form, most):
    store = compacted(stored, CompactConfig(form, most))
    assert store.form == form
    assert store.names() == stored.store.names()
    files = [path for path in store.folder.iterdir() if path.name.startswith("shard")]
    assert store.bytes_per_image == sum(path.stat().st_size for path in files) / len(store)
    headers = sum(path.stat().st_size for path in files if path.suffix == ".json") + 1000
    assert store.bytes_per_image * len(store) <= len(store) * most + headers
    count = len(store["d0"])
    cost = {"half": 2 * DIM + 20, "8bit": DIM + 9, "binary": 24 + 9}[form]
    assert (most - 100) // cost - 1 <= count <= most // cost or count == 300
    np.testing.assert_allclose(store["d0"].scores, stored.store["d0"].scores[:count], rtol=1e-3)
    assert len(store["d4"]) == 0
    assert f"{form}, " in store.cost


def test_the_form_is_the_first_in_which_all_fits(stored):
    found = [
        chosen_form(stored.store, CompactConfig(bytes_per_image=most))
        for most in (300 * 276, 300 * 276 - 1, 300 * 137, 300 * 137 - 1, 500)
    ]
    assert found == ["half", "8bit", "8bit", "binary", "binary"]
    assert chosen_form(stored.store, CompactConfig()) == "half"
    assert chosen_form(stored.store, CompactConfig("8bit", 10)) == "8bit"


def test_without_a_wish_the_store_is_what_it_was(stored):
    assert compacted(stored, CompactConfig()) is stored.store
    assert compacted(stored, CompactConfig("half")) is stored.store
    assert stored.store.form == "half"


def test_a_compact_store_is_made_once_and_codes_other_photos_alike(stored):
    store = compacted(stored, CompactConfig("binary"))
    shards = sorted(store.folder.iterdir())
    again = compacted(stored, CompactConfig("binary"))
    assert again.folder == store.folder
    assert sorted(again.folder.iterdir()) == shards
    learned = read_codes(FeatureStore(store.folder))
    live = coded(stored.store["d0"], learned)
    np.testing.assert_array_equal(live.descriptors, again["d0"].descriptors)
    assert coded(LocalFeatures.nothing(), learned).descriptors.shape == (0, 24)


def test_codes_go_through_the_same_verifier(stored):
    store = compacted(stored, CompactConfig("binary"))
    own, other = store["q0"], store["d0"]
    geometry = RerankConfig().geometry
    assert match(own, own).num_inliers == 300
    counts = count_inliers([(0, 0), (0, 1), (0, 2)], [own], [own, other, store["d4"]], [geometry])
    assert counts.num_inliers[0].tolist() == [300, match(own, other).num_inliers, 0]


def test_what_takes_no_codes_says_so(stored):
    check_not_binary(stored, "visual words")
    store = compacted(stored, CompactConfig("binary"))
    with pytest.raises(InputError, match="has binary codes, and visual words take none: name the"):
        check_not_binary(SetFeatures(store, stored.queries, stored.database), "visual words")


def test_what_cannot_be_made_smaller_is_an_error(stored, tmp_path):
    with pytest.raises(InputError, match="--bytes_per_image 50: the entry of a photo and one feat"):
        compacted(stored, CompactConfig("binary", 50))
    small = compacted(stored, CompactConfig("8bit"))
    there = SetFeatures(
        small, *(StoredFeatures(small, part.names) for part in (stored.queries, stored.database))
    )
    with pytest.raises(InputError, match="is compact already: name the store"):
        compacted(there, CompactConfig("binary"))
    with small.writer() as writer, pytest.raises(ValueError, match="binary codes go into"):
        writer.put(
            "x", LocalFeatures(np.zeros((1, 2)), np.zeros((1, 16), np.uint8), np.ones(1), SIZE)
        )
    odd = MadeBy("sift", {"compact": {"form": "ternary"}}, {})
    with pytest.raises(InputError, match="ternary: expected half, 8bit, binary"):
        FeatureStore.open(tmp_path / "odd", odd)
    empty = FeatureStore.open(tmp_path / "empty", MadeBy("sift", {}, {}))
    nobody = SetFeatures(empty, StoredFeatures(empty, ["q"]), StoredFeatures(empty, ["d"]))
    with empty.writer() as writer:
        writer.put("d", LocalFeatures.nothing())
    with pytest.raises(InputError, match="no features of the database to learn codes on"):
        compacted(nobody, CompactConfig("binary"))


@pytest.mark.parametrize(
    "flags", ["--form 8bit", "--bytes_per_image 8192", "--form binary --code_bits 128"]
)
def test_the_flags_go_with_stored_features(flags):
    line = f"--pretrained none --database_folder a --queries_folder b --no_labels {flags}".split()
    with pytest.raises(InputError, match=f"{flags.split()[0]} makes a smaller store of one that"):
        eval_flags.read_evaluation("", line)
    asked = eval_flags.read_evaluation("", [*line, "--local_features", "STORE"]).compact
    assert asked.asked
    expected = [CompactConfig("8bit"), CompactConfig(bytes_per_image=8192)]
    assert asked in (*expected, CompactConfig("binary", code_bits=128))
    with pytest.raises(InputError, match="--code_bits 100: expected a multiple of 64"):
        CompactConfig("binary", code_bits=100)


# ---- what comparisons say of them


def test_a_comparison_draws_accuracy_against_bytes(tmp_path):
    photos = PhotoSet(
        tmp_path,
        [tmp_path / f"q{row}.jpg" for row in range(2)],
        [tmp_path / f"d{row}.jpg" for row in range(3)],
        {"R": Positives([np.array([0]), np.array([1])], [np.array([], int)] * 2)},
    )
    runs = []
    for form, cost, second in (("half", 1000.0, 1), ("binary", 100.0, 0), ("binary", 400.0, 1)):
        steps = {"global": [[1, 0, 2]] * 2, "reranked": [[0, 1, 2], [second, 2, 1 - second]]}
        run = evaluation_of(photos, steps, num_inliers=np.zeros((2, 3), np.int64))
        kind = dataclasses.replace(run.evidence[0], form=form, bytes_per_image=cost)
        runs.append((f"{form} {cost:.0f}", dataclasses.replace(run, evidence=(kind,))))
    rows = side_by_side([(name, run, run.last) for name, run in runs])
    assert [row.bytes_per_image for row in rows] == [1000, 100, 400]
    assert comparison.header(rows)[-4] == "bytes a photo"
    assert [comparison.cells(row)[-4] for row in rows] == ["1,000", "100", "400"]
    chart = bytes_chart(rows)
    assert [tick for _, tick in chart.x_ticks] == ["64", "128", "256", "512", "1 KB"]
    assert [percent for _, percent, _ in chart.curves["binary"]] == [50, 100]
    assert chart.curves["half"][0][0] == pytest.approx(np.log2(1000 / 64) / 4)
    write_comparison(tmp_path / "compare.html", rows, 0.95)
    assert "R@1 over bytes" in (tmp_path / "compare.html").read_text()
    _, run = runs[0]
    ranked = side_by_side([("ranking", run, run.first), ("half", run, run.last)])
    assert [row.bytes_per_image for row in ranked] == [None, 1000]
    assert bytes_chart(ranked) is None
