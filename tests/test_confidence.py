"""How sure first answers are: signals, odds, abstention, conformal thresholds, what is told."""

from dataclasses import replace

import numpy as np
import pytest

from retrieval import report
from retrieval.commands.eval_flags import read_evaluation
from retrieval.confidence import odds
from retrieval.confidence.coverage import calibration_error, precisions, reliability
from retrieval.configs.judge import ConfidenceConfig
from retrieval.configs.rank import RerankConfig
from retrieval.data.photo_sets import Source, open_set
from retrieval.drawing.html_report import charts, gallery, page
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation, Verified, score
from retrieval.protocol import protocol_of
from retrieval.search import Ranking

PLACES, DEPTH = 40, 8


def run_of(folder, photo, seed):
    """A run on 40 places 100 m apart; the first answers with few inliers are wrong."""
    rng = np.random.default_rng(seed)
    for place in range(PLACES):
        photo(folder / f"database/@{100 * place}@{seed}@.png", (8, 8), place + seed)
        photo(folder / f"queries/@{100 * place + 10}@{seed}@.png", (8, 8), place + seed + 100)
    photos = open_set(Source(dataset=folder))
    at = [int(path.name.split("@")[1]) // 100 for path in photos.database]
    row_of = np.argsort(at)
    rows, counts = [], rng.poisson(5, (PLACES, DEPTH))
    for query, path in enumerate(photos.queries):
        mine = row_of[int(path.name.split("@")[1]) // 100]
        others = rng.permutation(np.setdiff1d(np.arange(PLACES), mine))
        hidden = rng.random() < 0.4
        rows.append([*others, mine] if hidden else [mine, *others])
        counts[query, 0] += 0 if hidden else 15
    ranking = Ranking(
        np.array(rows), np.sort(rng.random((PLACES, PLACES)).astype(np.float32))[:, ::-1]
    )
    verified = Verified(RerankConfig(top_k=DEPTH), counts, 1.0, dict.fromkeys(
        ("loading", "matching", "verification"), 0.0
    ))  # fmt: skip
    step = score("global", ranking, photos)
    return Evaluation("a run", photos, (step,), protocol_of(photos, {}), evidence=(verified,))


@pytest.fixture
def runs(photo, tmp_path):
    return [run_of(tmp_path / name, photo, seed) for seed, name in enumerate(("val", "test"))]


def test_the_evidence_of_an_answer_is_how_rare_its_inliers_are(runs):
    _, run = runs
    counts = run.evidence[0].num_inliers
    alike = counts[:, DEPTH // 2 :].ravel()
    for query, found in enumerate(odds.signals(run)):
        rare = [-np.log((1 + (alike >= n).sum()) / (1 + len(alike))) for n in counts[query]]
        assert found[0] == pytest.approx(rare[0])
        assert found[1] == pytest.approx(rare[0] - max(rare[1:]))
        assert found[4] == 1
    twice = odds.signals(replace(run, evidence=2 * run.evidence))
    np.testing.assert_allclose(twice[:, :2], 2 * odds.signals(run)[:, :2])


def test_surprise_is_the_logarithm_of_a_p_value():
    rng = np.random.default_rng(3)
    counts, chance = rng.integers(0, 30, 50), rng.integers(0, 20, 200)
    slow = [-np.log((1 + sum(other >= n for other in chance)) / (1 + len(chance))) for n in counts]
    np.testing.assert_allclose(odds.surprise(counts, chance), slow)


def test_chance_alone_tells_right_from_wrong_and_says_nothing_without_inliers(runs):
    _, run = runs
    right = odds.first_is_right(run)
    sure = odds.by_chance(run)
    assert ((sure >= 0) & (sure <= 1)).all()
    assert reliability(sure, right).auroc > 0.95
    assert odds.by_chance(replace(run, evidence=())) is None


def test_odds_of_another_run_are_calibrated_and_withhold_what_is_wrong(runs):
    val, test = runs
    asked = ConfidenceConfig(min_confidence=0.5)
    found = odds.with_confidence(test, val, asked)
    right = odds.first_is_right(test)
    told = reliability(found.confidence, right)
    assert told.auroc > 0.95
    assert told.ece < 15
    np.testing.assert_array_equal(found.withheld, found.confidence < 0.5)
    assert right[~found.withheld].mean() > 0.9 > right.mean()
    lines = report.notes(found)
    assert any(f"withheld: {found.withheld.sum()} of {PLACES}" in line for line in lines)
    assert any("AUROC" in line for line in lines)


def test_confidence_is_saved_told_and_drawn(runs, tmp_path):
    val, test = runs
    saved = odds.with_confidence(test, val, ConfidenceConfig(min_confidence=0.5)).save(
        tmp_path / "run"
    )
    again = Evaluation.open(tmp_path / "run")
    np.testing.assert_array_equal(again.confidence, saved.confidence)
    assert again.min_confidence == 0.5
    report.write_predictions(tmp_path / "p.csv", again, 2)
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0].endswith(",mark,confidence")
    assert lines[1].endswith(f",{again.confidence[0]:.4f}")
    assert lines[2].endswith(",")
    risk = charts.charts(again)[-1]
    assert risk.title == "Risk against coverage"
    all_given = risk.curves["global"][-1]
    assert all_given[:2] == (1.0, pytest.approx(100 - again.last.figures["R@1"]))
    (query, *_) = np.flatnonzero(again.withheld)
    (card,) = gallery.cards(again, page.outcomes(again), np.array([query]))
    assert any(note.startswith("withheld: confidence 0.") for note in card.notes)
    # Runs of before have neither.
    assert Evaluation.open(test.save(tmp_path / "old").folder).confidence is None


def test_reliability_by_hand():
    confidence, right = np.array([0.9, 0.8, 0.7, 0.35, np.nan]), np.array([1, 0, 1, 0, np.nan])
    np.testing.assert_allclose(precisions(confidence[:4], right[:4]), [100, 50, 200 / 3, 50])
    told = reliability(confidence, right)
    assert told.precision == {50: 50.0, 80: pytest.approx(200 / 3), 90: 50.0, 95: 50.0, 100: 50.0}
    assert told.answered[99][0] == 25
    assert told.auroc == 3 / 4
    assert told.ece == pytest.approx(25 * (0.1 + 0.8 + 0.3 + 0.35))
    empty = reliability(np.empty(0), np.empty(0))
    assert np.isnan([empty.auroc, empty.ece, empty.precision[50]]).all()


def test_calibrated_odds_have_no_calibration_error():
    rng = np.random.default_rng(0)
    confidence = rng.random(50_000)
    assert calibration_error(confidence, rng.random(50_000) < confidence) < 1
    assert calibration_error(confidence, rng.random(50_000) < confidence**2) > 10


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_conformal_thresholds_let_at_most_that_share_of_wrong_answers_pass(share):
    rng = np.random.default_rng(1)
    passed = []
    for _ in range(2000):
        least = odds.conformal_threshold(rng.random(59), share)
        passed.append((rng.random(50) >= least).mean())
    assert share - 0.03 < np.mean(passed) <= share + 0.003
    assert odds.conformal_threshold(rng.random(5), 0.05) == np.inf


def test_a_share_of_wrong_answers_is_kept_to(runs):
    val, test = runs
    asked = ConfidenceConfig(confidence_from=val.photos.folder, max_wrong=0.3)
    found = odds.with_confidence(test, val, asked)
    right = odds.first_is_right(val)
    half = np.arange(PLACES) % 2 == 0
    learned = odds.Odds(val, np.where(half, right, np.nan))  # what teaches sets no threshold
    wrong = learned.of(val)[~half & (right == 0)]
    assert found.min_confidence == odds.conformal_threshold(wrong, 0.3)
    np.testing.assert_array_equal(found.confidence, learned.of(test))
    with pytest.raises(InputError, match=r"in half of .* are too few"):
        odds.with_confidence(test, val, replace(asked, max_wrong=0.01))


def test_nothing_is_withheld_by_a_confidence_that_is_not_there(runs):
    _, run = runs
    with pytest.raises(InputError, match="without re-ranking needs --confidence_from"):
        odds.with_confidence(replace(run, evidence=()), None, ConfidenceConfig(min_confidence=0.5))


def test_what_cannot_teach_is_refused(runs):
    val, test = runs
    with pytest.raises(InputError, match="the same photos"):
        odds.with_confidence(test, test, ConfidenceConfig())
    with pytest.raises(InputError, match="1 kinds of local features, this by 2"):
        odds.with_confidence(replace(test, evidence=2 * test.evidence), val, ConfidenceConfig())
    rows = np.array([[int(right[0]), *np.setdiff1d(np.arange(PLACES), right[0])]
                     for right in val.photos.truth.positives])  # fmt: skip
    always = score("global", Ranking(rows, val.first.ranking.similarity), val.photos)
    with pytest.raises(InputError, match="40 right and 0 wrong"):
        odds.with_confidence(test, replace(val, steps=(always,)), ConfidenceConfig())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--max_wrong 0.1", "--max_wrong needs --confidence_from"),
        ("--max_wrong 0.1 --confidence_from r --min_confidence 0.5", "exclude each other"),
        ("--min_confidence 2", "min_confidence 2"),
    ],
)
def test_flags_that_contradict_are_named(words, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_evaluation(
            "", ["--pretrained=none", "--dataset_folder", str(tmp_path), *words.split()]
        )
