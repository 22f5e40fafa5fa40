"""Tuning on planted photos: positives share a query's plane; decoys share its looks, elsewhere."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from retrieval import metrics, progress
from retrieval.commands.tune_flags import read_tuning
from retrieval.configs.rank import MatchConfig, RerankConfig, VerifyConfig
from retrieval.data.photo_sets import PhotoSet
from retrieval.data.positives import Positives
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation, Verified, score
from retrieval.feature_folders import SetFeatures
from retrieval.features import LocalFeatures, MadeBy
from retrieval.protocol import Protocol
from retrieval.reranking import Evidence, rerank
from retrieval.search import Ranking
from retrieval.tuning import saved_counts, search_space, tables, try_settings
from retrieval.tuning.search_space import Axes
from retrieval.tuning.tuning_figure import panels

QUERIES, DEPTH = 12, 6
MADE_BY = MadeBy("planted", {}, {})
AXES = Axes(
    top_k=(6, 3),
    num_features=(None, 25),
    rule=("mutual", "one_way"),
    max_distance=(None, 0.9),
    residual=(None, 5.0),
    model=("affine", "homography"),
    fusion=(0.0, 8.0),
)


def config_of(run):
    return run.verified.config


def with_config(run, **values):
    changed = replace(run.verified, config=replace(config_of(run), **values))
    return replace(run, evidence=(changed,))


def with_store(run, store):
    features = replace(run.features, store=store)
    return replace(run, evidence=(replace(run.verified, features=features),))


def reranked(run, config):
    """What eval.py's re-ranking by ``config`` gives: its figures by query, and the floor."""
    features = run.features
    evidence = [Evidence(features.queries, features.database, config.geometry)]
    found = rerank(run.first.ranking, evidence, config)
    return score("reranked", found.ranking, run.photos).per_query, found.kinds[0].floor


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def view(rng, points, looks, keep):
    """A photo of a place: ``keep`` of its points as they are, the others with other looks."""
    looks = looks.copy()
    looks[keep:] = rng.normal(size=looks[keep:].shape)
    shifted = points + rng.uniform(-20, 20, 2) + rng.uniform(-2, 2, points.shape)
    return LocalFeatures(shifted.astype(np.float32), unit(looks), np.ones(len(points)), (600, 600))


def planted(seed=0, helps=True, skipped=()):
    """A run of 12 queries, of each a decoy, another, the positive and others; or that one first."""
    rng = np.random.default_rng(seed)
    queries, database, positives = [], [], []
    for place in range(QUERIES):
        points, looks = rng.uniform(0, 500, (50, 2)), rng.normal(size=(50, 16))
        queries.append(view(rng, points, looks, 30))
        database.append(view(rng, points, looks, 30))
        database.append(view(rng, rng.permutation(points), looks, 30))  # its looks elsewhere
        positives.append(np.array([2 * place]))
    ranking = np.empty((QUERIES, DEPTH + 2), np.int64)
    for place in range(QUERIES):
        others = np.setdiff1d(np.arange(len(database)), [2 * place, 2 * place + 1])
        row = [2 * place + 1, *rng.permutation(others)[:DEPTH]]
        ranking[place] = np.insert(row, 2 if helps else 0, 2 * place)
    similarity = np.tile(np.linspace(0.9, 0.4, DEPTH + 2, dtype=np.float32), (QUERIES, 1))
    for query in skipped:
        ranking[query], similarity[query] = -1, -np.inf
    truth = {"R": Positives(positives, [np.array([], int)] * QUERIES)}
    names = [Path(f"{i}.png") for i in range(len(database))]
    photos = PhotoSet(Path("photos"), names[:QUERIES], names, truth)
    config = RerankConfig(top_k=DEPTH, floor_pairs=40, verify=VerifyConfig(trials=200))
    store = Store(Path(f"store {seed}"), MADE_BY)
    run = Evaluation(
        title="run",
        photos=photos,
        steps=(score("global", Ranking(ranking, similarity), photos),),
        protocol=Protocol("photos", f"{seed}", QUERIES, len(names), {}, {}, ""),
        evidence=(
            Verified(
                config,
                np.zeros((QUERIES, DEPTH), int),
                1.0,
                {},
                SetFeatures(store, Asked(queries), database),
            ),
        ),
        folder=Path("run"),
    )
    return run, run.features.queries.rows


class Store(NamedTuple):
    """What tuning knows of a store."""

    folder: Path
    made_by: MadeBy


class Asked(list):
    """Features that remember the rows they were asked for."""

    def __init__(self, features):
        super().__init__(features)
        self.rows = []

    def __getitem__(self, row):
        self.rows.append(row)
        return super().__getitem__(row)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    run, _ = planted()
    settings = search_space.grid(AXES, config_of(run))
    return run, settings, try_settings.try_all(run, settings, tmp_path_factory.mktemp("counts"))


def test_the_grid_is_every_combination_once():
    settings = search_space.grid(AXES, RerankConfig(top_k=6))
    # Of rule and max_distance three pairs: one_way is always bounded.
    assert len(settings) == len(set(settings)) == 2 * 2 * 3 * 2 * 2 * 2 * 2
    assert len(search_space.geometries(settings)) == 2 * 3 * 2 * 2
    assert settings[0] == RerankConfig(top_k=6, verify=VerifyConfig(residual=15.0))
    assert not any(s.match == MatchConfig("one_way") for s in settings)
    base = RerankConfig(match=MatchConfig(ratio=0.9), verify=VerifyConfig(trials=7), seed=5)
    for setting in search_space.grid(Axes(), base):
        assert (setting.match.ratio, setting.verify.trials, setting.seed) == (0.9, 7, 5)
    only = Axes(rule=("one_way", "one_way"), max_distance=(None,))
    assert {s.match for s in search_space.grid(only, RerankConfig())} == {MatchConfig("one_way")}


def test_the_default_grid_keeps_to_thirty_geometries():
    settings = search_space.grid(Axes(), RerankConfig())
    assert len(search_space.geometries(settings)) <= 30
    assert 200 <= len(settings) <= 600
    assert {s.top_k for s in settings} == {100, 20, 10, 5}
    assert {s.top_k for s in search_space.grid(Axes(), RerankConfig(top_k=5))} == {5}
    for name in search_space.NAMES:
        assert len({search_space.value_of(setting, name) for setting in settings}) > 1


def test_every_outcome_is_that_of_eval(searched):
    # A setting whose floor is written out gives what eval.py's re-ranking with it gives.
    run, settings, outcomes = searched
    for outcome, setting in list(zip(outcomes, settings, strict=True))[::7]:
        assert outcome.setting == setting
        np.testing.assert_array_equal(outcome.per_query, reranked(run, outcome.settled)[0])
        if setting.floor is None and setting.top_k == DEPTH:
            assert reranked(run, setting)[1] == outcome.floor


@pytest.mark.parametrize("protocol", ["R", "M"])
def test_scores_of_another_order_are_those_of_the_metrics(protocol):
    rng = np.random.default_rng(0)
    run, _ = planted(skipped=(3,))
    drawn = [rng.permutation(2 * QUERIES) for _ in range(QUERIES)]
    positives = Positives([d[:4] for d in drawn], [d[4:12] for d in drawn])
    truth = {"R": positives} if protocol == "R" else dict.fromkeys("EMH", positives)
    run = replace(run, photos=replace(run.photos, ground_truth=truth))
    scored = try_settings._scorer(run)
    for _ in range(20):
        order = np.array([rng.permutation(DEPTH + 2) for _ in range(QUERIES)])
        rows = np.take_along_axis(run.first.ranking.rows, order, axis=1)
        expected = score("", Ranking(rows, rows), run.photos).per_query
        np.testing.assert_array_equal(scored(order), expected)


def test_skipped_queries_stay_as_they_are(tmp_path):
    run, asked = planted(skipped=(0, 5))
    settings = [RerankConfig(top_k=DEPTH, floor_pairs=20), RerankConfig(top_k=3, floor=4.0)]
    for outcome in try_settings.try_all(run, settings, tmp_path):
        assert (outcome.per_query[[0, 5]] == 0).all()
        np.testing.assert_array_equal(outcome.per_query, reranked(run, outcome.settled)[0])
    assert not {0, 5} & set(asked)


def test_the_planted_setting_is_found(tmp_path):
    # Within 500 pixels everything agrees with one plane; 9 tell a decoy from a positive. Three
    # features are no evidence, two predictions too few, and similarity is wrong.
    run, _ = planted()
    axes = Axes(
        top_k=(DEPTH, 2), num_features=(None, 3), rule=("mutual",), max_distance=(None,),
        residual=(500.0, 9.0), model=("affine",), floor=(0.0,), fusion=(0.0, 1000.0),
    )  # fmt: skip
    outcomes = try_settings.try_all(run, search_space.grid(axes, config_of(run)), tmp_path)
    best = try_settings.best_first(outcomes)[0]
    assert (best.setting.top_k, best.setting.num_features) == (DEPTH, None)
    assert (best.setting.verify.residual, best.setting.fusion) == (9.0, 0.0)
    assert best.figure == 100.0
    before = run.first.per_query
    assert before.mean() == 0
    gained = metrics.paired_interval(best.per_query, before)
    assert gained == metrics.Gain(100.0, 100.0, 100.0)
    assert try_settings.choose(best, gained) == replace(best.setting, floor=0.0)


def test_a_gain_that_may_be_none_means_no_reranking(tmp_path):
    run, _ = planted(helps=False)  # the positive is first already
    outcomes = try_settings.try_all(run, search_space.grid(Axes(), config_of(run)), tmp_path)
    gained = try_settings.gain_of_choosing(outcomes, run.first.per_query)
    assert gained.low <= 0
    assert try_settings.choose(try_settings.best_first(outcomes)[0], gained) is None
    assert "no re-ranking" in tables.verdict("R@1", gained)


def outcomes_of(figures):
    return [try_settings.Outcome(RerankConfig(), 0.0, row, 0.0) for row in figures]


def test_the_gain_of_choosing_is_none_among_settings_of_noise():
    """Chosen among 40 settings that are all noise, the best looks good; this interval covers 0."""
    covered, fooled = 0, 0
    for seed in range(200):
        noise = np.random.default_rng(seed).choice(
            [-100.0, 0.0, 100.0], (40, 60), p=[0.1, 0.8, 0.1]
        )
        gained = try_settings.gain_of_choosing(outcomes_of(noise), np.zeros(60), 200)
        covered += gained.low <= 0 <= gained.high
        best = noise[noise.mean(axis=1).argmax()]
        fooled += metrics.paired_interval(best, np.zeros(60), resamples=200).low > 0
    assert covered >= 180
    assert fooled > 100  # as the interval of the best on its own queries would say


def test_the_gain_of_choosing_finds_what_is_there():
    figures = np.random.default_rng(0).choice([0.0, 100.0], (10, 200), p=[0.5, 0.5])
    figures[3] = np.random.default_rng(1).choice([0.0, 100.0], 200, p=[0.1, 0.9])
    before = np.where(np.arange(200) % 2, 0.0, 100.0)
    before[:5] = np.nan
    gained = try_settings.gain_of_choosing(outcomes_of(figures), before)
    real = (figures[3] - before)[5:].mean()
    assert gained.low < real < gained.high
    assert gained.low > 20
    assert np.isnan(try_settings.gain_of_choosing(outcomes_of([[1.0]]), np.zeros(1)).difference)


@pytest.mark.parametrize("times", [(1, 1, 1, 1, 1), (5, 4, 3, 2, 1), (1, 2, 3, 4, 5)])
def test_of_equal_settings_the_smaller_wins_then_the_first_whatever_the_times(times):
    settings = [(50, 1, 9, 0.0), (70, 8, 9, 0.0), (70, 7, None, 0.0), (70, 7, 20, 2.0)]
    settings.append((70, 7, 20, 0.0))
    given = [
        try_settings.Outcome(
            RerankConfig(top_k=top_k, num_features=features, fusion=fusion),
            *(0.0, np.full(4, figure), ms),
        )
        for (figure, top_k, features, fusion), ms in zip(settings, times, strict=True)
    ]
    expected = [given[row].setting for row in (3, 4, 2, 1, 0)]
    assert [outcome.setting for outcome in try_settings.best_first(given)] == expected


def test_models_are_those_that_the_back_end_of_the_run_knows():
    base = RerankConfig(verify=VerifyConfig("homography", "poselib"))
    assert {s.verify.model for s in search_space.grid(Axes(), base)} == {"homography"}
    fundamental = replace(base, verify=VerifyConfig("fundamental", "poselib"))
    asked = Axes(model=("fundamental", "homography"))
    assert {s.verify.model for s in search_space.grid(asked, fundamental)} == set(asked.model)
    both = {s.verify.model for s in search_space.grid(Axes(), RerankConfig())}
    assert both == {"affine", "homography"}
    message = "--model affine: the run's back-end poselib does not know it.*--backend opencv"
    with pytest.raises(InputError, match=message):
        search_space.grid(Axes(model=("homography", "affine")), base)
    skimage = RerankConfig(verify=VerifyConfig(backend="skimage"))
    with pytest.raises(InputError, match="--model similarity: the run's back-end skimage"):
        search_space.grid(Axes(model=("similarity",)), skimage)


def test_the_pareto_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    for _ in range(50):
        ms, figures = rng.integers(0, 6, (2, 12)).astype(float)
        points = list(zip(ms, figures, strict=True))
        expected = [
            not any(
                (m <= ms[i] and f >= figures[i]) and ((m, f) != points[i] or j < i)
                for j, (m, f) in enumerate(points)
            )
            for i in range(len(points))
        ]
        assert try_settings.pareto_front(ms, figures).tolist() == expected


def test_the_global_ranking_is_on_the_front_at_no_cost():
    worse, better = (
        try_settings.Outcome(RerankConfig(), 0.0, np.full(3, figure), 1.0)
        for figure in (40.0, 60.0)
    )
    assert try_settings.on_front([worse, better], before=50.0) == [False, True]


def test_times_follow_top_k_and_shared_matching_counts_for_each(searched):
    _, settings, outcomes = searched
    ms = {outcome.setting: outcome.ms for outcome in outcomes}
    for setting in settings:
        assert ms[setting] > 0
        assert ms[setting] == pytest.approx(ms[replace(setting, top_k=3)] * setting.top_k / 3)


def test_a_killed_search_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_counts, "_PAIRS", 30)
    run, asked = planted()
    settings = search_space.grid(replace(AXES, model=("affine",), residual=(None,)), config_of(run))
    whole = try_settings.try_all(run, settings, tmp_path / "whole")
    calls = len(asked)

    class Killed(Exception):
        pass

    done = 0

    def stop(count):
        nonlocal done
        done += count
        if done > 150:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(progress, "advance", stop)
        with pytest.raises(Killed):
            try_settings.try_all(run, settings, tmp_path / "killed")
    asked.clear()
    with progress.bar("all", 10**9):
        bar = progress._open[-1]
        again = try_settings.try_all(run, settings, tmp_path / "killed")
    assert 0 < len(asked) < calls
    pairs = try_settings.shortlists(run, settings).pairs
    assert bar.done == len(pairs) * len(search_space.geometries(settings))
    for first, second in zip(whole, again, strict=True):
        np.testing.assert_array_equal(first.per_query, second.per_query)
        assert first.floor == second.floor
    # Once more: nothing is counted, and the times are the same too. Nor for another order.
    asked.clear()
    other_order = [replace(setting, fusion=3.0, floor=1.0) for setting in settings]
    try_settings.try_all(run, [*other_order, *settings], tmp_path / "killed")
    once_more = try_settings.try_all(run, settings, tmp_path / "killed")
    assert asked == []
    assert [o.ms for o in once_more] == [o.ms for o in again]


def test_counts_are_kept_by_all_they_depend_on(tmp_path):
    run, asked = planted()
    few = replace(AXES, top_k=(3,), num_features=(None,), residual=(None,), floor=(0.0,))
    one, two = (replace(few, model=m) for m in (("affine",), ("affine", "homography")))
    settings = search_space.grid(one, config_of(run))
    try_settings.try_all(run, settings, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # one for each matching
    rows, similarity = run.first.ranking.rows, run.first.ranking.similarity
    reversed_rows = Ranking(rows[:, ::-1], similarity)
    for other in (
        with_store(run, Store(Path("another"), MADE_BY)),
        replace(run, steps=(replace(run.first, ranking=reversed_rows),)),
        with_config(run, match=MatchConfig(precision="float32")),
        with_config(run, verify=VerifyConfig(trials=9)),
    ):
        asked.clear()
        try_settings.try_all(other, search_space.grid(one, config_of(other)), tmp_path)
        assert asked
    # A new model is added to the matchings that are there.
    asked.clear()
    try_settings.try_all(run, settings, tmp_path)
    assert not asked
    with_models = try_settings.try_all(run, search_space.grid(two, config_of(run)), tmp_path)
    assert asked
    alone = try_settings.try_all(run, search_space.grid(two, config_of(run)), tmp_path / "alone")
    for first, second in zip(with_models, alone, strict=True):
        np.testing.assert_array_equal(first.per_query, second.per_query)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut short"])
def test_damaged_counts_are_named(tmp_path, damage):
    run, _ = planted()
    settings = [RerankConfig(top_k=2, floor=0.0)]
    try_settings.try_all(run, settings, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    with pytest.raises(InputError, match=rf"{file.name} cannot be read .*delete it"):
        try_settings.try_all(run, settings, tmp_path)


def test_bad_input_is_said():
    run, _ = planted()
    without = replace(run, photos=replace(run.photos, ground_truth={}))
    with pytest.raises(InputError, match="run: tuning needs labels"):
        try_settings.check_labels(without)
    with pytest.raises(InputError, match="without --no_rerank"):
        try_settings.try_all(replace(run, evidence=()), [RerankConfig()], Path("nowhere"))
    settings = search_space.grid(replace(AXES, top_k=(5, 50)), config_of(run))
    with pytest.raises(InputError, match=r"--top_k 50: run has .*first 6 .*again with --top_k 50"):
        try_settings.check_depth(run, settings)
    with pytest.raises(InputError, match="the photos of run"):
        try_settings.check_comparable(run, run)
    other, _ = planted(seed=1)
    try_settings.check_comparable(run, other)
    stamp = replace(other.protocol, settings={"extraction": {"local_scales": [1]}})
    with pytest.raises(InputError, match="another extraction"):
        try_settings.check_comparable(run, replace(other, protocol=stamp))
    store = Store(Path("sift"), replace(MADE_BY, extractor="sift"))
    sift = with_store(other, store)
    with pytest.raises(InputError, match="another local features than run"):
        try_settings.check_comparable(run, sift)
    with pytest.raises(InputError, match="residual -1"):
        search_space.grid(replace(AXES, residual=(-1.0,)), config_of(run))


def test_flags_are_the_axes():
    asked = read_tuning("", ["logs/val/1"])
    assert asked.axes == Axes()
    assert asked.output == Path("logs/val/1/tuning")
    words = (
        "run --num_features all 50 --max-distance none 0.5 --floor measured 3 "
        "--residual measured 4 --rule mutual --model affine fundamental --fusion 0 2 "
        "--top_k 9 4 --threads 3 --output_dir out --test_run other"
    )
    asked = read_tuning("", words.split())
    expected = Axes(
        (9, 4), (None, 50), ("mutual",), (None, 0.5), (None, 4.0), ("affine", "fundamental"),
        (None, 3.0), (0.0, 2.0),
    )  # fmt: skip
    assert asked.axes == expected
    assert asked.resources.threads == 3
    assert (asked.output, asked.test_run) == (Path("out"), Path("other"))


def test_weights_that_are_no_file_are_named_by_their_flag(tmp_path):
    with pytest.raises(InputError, match=r"--resume_model .*none.pth: no such file"):
        read_tuning("", ["run", "--resume_model", str(tmp_path / "none.pth")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run --num_features none", "'none': expected a whole number, or all"),
        ("run --fusion measured", "'measured': expected a number"),
        ("run --rule nearest", "--rule"),
        ("--fusion 1", "VAL_RUN"),
    ],
)
def test_bad_flags_are_named(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        read_tuning("", words.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_report_and_picture_show_every_setting(searched):
    run, settings, outcomes = searched
    outcomes = try_settings.best_first(outcomes)
    best = tables.measured(outcomes[0], run.first.per_query)
    lines = tables.best_table(outcomes, "R@1").splitlines()
    assert lines[0].split() == ["R@1", "ms", *search_space.NAMES]
    assert lines[1].split()[0] == f"{best.outcome.figure:.1f}"
    front = tables.front_table(outcomes, "R@1", best.before).splitlines()
    assert "no re-ranking" in front[1]
    told = tables.as_json(outcomes, "R@1", best, best.gain, {"defaults": best})
    assert len(told["settings"]) == told["num_settings"] == len(settings)
    assert sum(setting["pareto"] for setting in told["settings"]) == len(front) - 2
    assert told["test"]["defaults"]["difference"] == best.gain.difference
    figure = panels(outcomes, best.before, "R@1")
    titles = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    assert len(titles) == len(search_space.NAMES) + 1
    dots = [len(c.get_offsets()) for axis in figure.axes[:-1] for c in axis.collections[:1]]
    assert set(dots) == {len(settings)}
