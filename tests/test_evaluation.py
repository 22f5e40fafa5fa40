"""The value of an evaluation: figures, comparisons, what is written and read again."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retrieval import evaluation, report
from retrieval.configs.rank import RerankConfig
from retrieval.data.photo_sets import PhotoSet, Source, open_set
from retrieval.data.positives import Positives
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation, Step, Verified, compare, score
from retrieval.feature_folders import features_of_set, made_from
from retrieval.features import FeatureStore, LocalFeatures
from retrieval.files import read_json, sealed, write_json
from retrieval.protocol import protocol_of
from retrieval.saved_run import digest
from retrieval.search import Ranking

FEATURES = LocalFeatures(np.zeros((1, 2)), np.ones((1, 4)), np.ones(1), (16, 16))
ROWS = {"global": [[0, 1, 2], [2, 0, 1]], "reranked": [[0, 2, 1], [1, 2, 0]]}


@pytest.fixture
def photos(photo, tmp_path):
    """Three places 100 m apart; two queries 10 m beside the first two."""
    for place in range(3):
        photo(f"set/database/@{100 * place}@0@.png", (16, 16), place)
    for place in range(2):
        photo(f"set/queries/@{100 * place + 10}@0@.png", (16, 16), place)
    return open_set(Source(dataset=tmp_path / "set"))


def ranking(rows):
    rows = np.array(rows, np.int64)
    return Ranking(rows, np.linspace(1, 0, rows.size, dtype=np.float32).reshape(rows.shape))


@pytest.fixture
def run(photos, tmp_path):
    """An evaluation of two steps with local features, re-ranked without a floor."""
    settings = {"weights_sha256": "ab" * 32, "extraction": {"size": 512}}
    store = FeatureStore.open(tmp_path / "cache", made_from(photos, "test", {}))
    with store.writer() as writer:
        for each in [*photos.query_photos, *photos.database_photos]:
            writer.put(each.name, FEATURES)
    return Evaluation(
        title="a test",
        photos=photos,
        steps=tuple(score(name, ranking(rows), photos) for name, rows in ROWS.items()),
        protocol=protocol_of(photos, settings),
        seconds={"global descriptors": 1.5},
        evidence=(
            Verified(
                config=RerankConfig(top_k=3, floor=2.0),
                num_inliers=np.array([[5, 1, 4], [0, 0, 7]]),
                ms_per_pair=0.25,
                thread_seconds={"loading": 0.1, "matching": 0.2, "verification": 0.3},
                features=features_of_set(photos, store),
                form="8bit",
                bytes_per_image=123.5,
            ),
        ),
        notes=("noted",),
    )


def test_a_step_knows_its_recalls_by_query():
    positives = [np.array([0]), np.array([1]), np.array([], int)]
    truth = Positives(positives, [np.array([])] * 3)
    photos = PhotoSet(Path(), [Path("q")] * 3, [Path("a"), Path("b")], {"R": truth})
    step = score("global", ranking([[0, 1], [0, 1], [1, 0]]), photos, (1, 2))
    assert step.per_query.tolist() == [100, 0, 0]
    assert step.figures == {"R@1": pytest.approx(100 / 3), "R@2": pytest.approx(200 / 3)}


def test_what_the_last_step_changed(run):
    assert run.first.figures["R@1"] == 50
    assert run.last.figures["R@1"] == 100
    comparison = run.comparison()
    assert (comparison.metric, comparison.gain.difference) == ("R@1", 50)
    assert comparison.helped.tolist() == [1]
    assert len(comparison.hurt) == 0
    assert comparison.unchanged.tolist() == [0]
    assert comparison.in_words() == "R@1 +50.0 [+0.0, +100.0] (paired, 95 %)"
    assert compare(run.truth(), "R@1", run.last, run.first).gain.difference == -50


def test_what_is_saved_is_opened_again(run, tmp_path):
    saved = run.save(tmp_path / "run")
    opened = Evaluation.open(tmp_path / "run")
    assert opened.folder == saved.folder == tmp_path / "run"
    assert opened.command == saved.command
    for old, new in zip(run.steps, opened.steps, strict=True):
        assert (old.name, old.figures) == (new.name, new.figures)
        np.testing.assert_array_equal(old.ranking.rows, new.ranking.rows)
        np.testing.assert_array_equal(old.ranking.similarity, new.ranking.similarity)
        np.testing.assert_array_equal(old.per_query, new.per_query)
    assert opened.verified.config == run.verified.config
    np.testing.assert_array_equal(opened.verified.num_inliers, run.verified.num_inliers)
    assert opened.protocol == run.protocol
    assert opened.photos.source.dataset == run.photos.source.dataset.resolve()
    assert (opened.title, opened.notes, opened.seconds) == (run.title, run.notes, run.seconds)
    assert len(opened.local()[1].database[2]) == 1
    again = opened.save(tmp_path / "again")
    first, second = (
        json.loads((each.folder / "result.json").read_text()) for each in (saved, again)
    )
    assert first == second


def test_queries_without_a_figure_survive(run, tmp_path):
    step = replace(run.first, figures={"mAP E": np.nan}, per_query=np.array([np.nan, 3.0]))
    replace(run, steps=(step,)).save(tmp_path / "run")
    assert "NaN" not in (tmp_path / "run" / "result.json").read_text()
    opened = Evaluation.open(tmp_path / "run")
    assert np.isnan(opened.first.figures["mAP E"])
    np.testing.assert_array_equal(opened.first.per_query, step.per_query)
    assert opened.comparison() is None


def test_without_labels_nothing_is_right(photos, tmp_path):
    unlabelled = open_set(replace(photos.source, labels=False))
    step = score("global", ranking(ROWS["global"]), unlabelled)
    assert step.figures == {}
    run = Evaluation("t", unlabelled, (step, step), protocol_of(unlabelled, {}))
    assert run.comparison() is None
    with pytest.raises(InputError, match="has no labels"):
        run.truth()
    run.save(tmp_path / "run")
    assert Evaluation.open(tmp_path / "run").photos.ground_truth == {}


def test_weights_must_be_those_of_the_run(run, tmp_path):
    run.save(tmp_path / "run")
    assert Evaluation.open(tmp_path / "run", "ab" * 32).verified is not None
    with pytest.raises(InputError, match=r"features are of other weights \(abab.*, not 0000"):
        Evaluation.open(tmp_path / "run", "0" * 64)


def test_a_run_without_local_features(run, tmp_path):
    replace(run, evidence=()).save(tmp_path / "run")
    with pytest.raises(InputError, match="without --no_rerank"):
        Evaluation.open(tmp_path / "run").local()


def test_a_run_of_when_there_was_one_kind_of_features_opens(run, tmp_path):
    run.save(tmp_path / "run")
    result = tmp_path / "run" / "result.json"
    content = json.loads(result.read_text())
    del content["checksum"]
    (told,) = content.pop("evidence")
    content |= {"features": told.pop("features"), "verified": told}
    result.write_text(json.dumps(sealed(content)))
    opened = Evaluation.open(tmp_path / "run")
    np.testing.assert_array_equal(opened.verified.num_inliers, run.verified.num_inliers)
    assert opened.features.store.folder == run.features.store.folder
    del content["verified"]
    result.write_text(json.dumps(sealed({**content, "verified": None, "features": None})))
    assert Evaluation.open(tmp_path / "run").verified is None


def test_two_kinds_of_features_come_back(run, tmp_path):
    other = replace(run.verified, num_inliers=run.verified.num_inliers + 1, ms_per_pair=2.0)
    replace(run, evidence=(run.verified, other)).save(tmp_path / "run")
    first, second = Evaluation.open(tmp_path / "run").evidence
    np.testing.assert_array_equal(first.num_inliers, run.verified.num_inliers)
    np.testing.assert_array_equal(second.num_inliers, run.verified.num_inliers + 1)
    assert second.ms_per_pair == 2
    assert (first.form, first.bytes_per_image) == ("8bit", 123.5)


def test_features_that_are_gone(run, tmp_path):
    run.save(tmp_path / "run")
    for shard in run.features.store.folder.glob("shard-*"):
        shard.unlink()
    with pytest.raises(InputError, match=r"features .* are gone \(of 5 photos, such as query/"):
        Evaluation.open(tmp_path / "run")
    shutil.rmtree(run.features.store.folder)
    with pytest.raises(InputError, match=r"local features .* are gone: run the evaluation again"):
        Evaluation.open(tmp_path / "run")
    assert Evaluation.open(tmp_path / "run", with_features=False).figures == run.figures


@pytest.mark.parametrize(
    ("key", "value"), [("per_query", [100.0]), ("figures", {"R@1": "many"}), ("per_query", "all")]
)
def test_a_result_that_was_tampered_with(run, tmp_path, key, value):
    run.save(tmp_path / "run")
    file = tmp_path / "run" / "result.json"
    content = read_json(file)
    content["steps"]["global"][key] = value
    write_json(file, sealed(content))
    with pytest.raises(InputError, match="not what an evaluation writes"):
        Evaluation.open(tmp_path / "run")


def test_photos_that_were_put_together_in_python(run, tmp_path):
    replace(run, photos=replace(run.photos, source=None)).save(tmp_path / "run")
    with pytest.raises(InputError, match="put together in Python"):
        Evaluation.open(tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": {}}, {"protocol": []}, {"photos": {}}, {"photos": 3}, {"evidence": 3},
        {"steps": []}, {"steps": {}}, {"steps": {"global": {}}},
        {"evidence": [{"config": {"a": 1}}]}, {"title": None, "seconds": None, "notes": None},
    ],
)  # fmt: skip
def test_a_result_of_another_form(run, tmp_path, change):
    run.save(tmp_path / "run")
    file = tmp_path / "run" / "result.json"
    write_json(file, sealed({**read_json(file), **change}))
    with pytest.raises(InputError, match=r"result\.json: not what an evaluation writes"):
        Evaluation.open(tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"), ("[]", "cannot be read"), ('{"global": {}}', "older version"),
        ('{"version": 99}', "another version"), ("\xff", "cannot be read|older"),
    ],
)  # fmt: skip
def test_a_damaged_or_older_result(run, tmp_path, content, message):
    run.save(tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text(content)
    with pytest.raises(InputError, match=rf"({message}).*run the evaluation again"):
        Evaluation.open(tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        {"global": np.full((2, 3), 99)},
        {"global": np.full((2, 3), -2)},
        {"global": np.zeros((2, 3))},
        {"global": np.zeros((1, 3), int)},
        {"global similarity": np.zeros((2, 5))},
        {"reranked": np.zeros((2, 2), int)},
        {"reranked": None},
        {"inliers": np.zeros((2, 9), int)},
        {"inliers": np.zeros((1, 1), int)},
    ],
)
def test_rankings_of_something_else(run, tmp_path, change):
    run.save(tmp_path / "run")
    file = tmp_path / "run" / "rankings.npz"
    arrays = {**dict(np.load(file)), **change}
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    result = tmp_path / "run" / "result.json"
    content = json.loads(result.read_text()) | {"rankings": digest(file)}
    del content["checksum"]
    result.write_text(json.dumps(sealed(content)))
    with pytest.raises(InputError, match=r"rankings\.npz: \S+ .*is no ranking|no reranked|inliers"):
        Evaluation.open(tmp_path / "run")


def test_rankings_of_another_run_of_the_same_photos(run, tmp_path):
    run.save(tmp_path / "one")
    turned = Ranking(run.first.ranking.rows[:, ::-1].copy(), run.first.ranking.similarity)
    replace(run, steps=(replace(run.first, ranking=turned), *run.steps[1:])).save(tmp_path / "two")
    shutil.copy(tmp_path / "one" / "rankings.npz", tmp_path / "two")
    with pytest.raises(InputError, match=r"of another run than result\.json"):
        Evaluation.open(tmp_path / "two")


def test_a_run_of_before_rankings_were_tied_opens(run, tmp_path):
    run.save(tmp_path / "run")
    result = tmp_path / "run" / "result.json"
    content = json.loads(result.read_text())
    del content["checksum"], content["rankings"]
    result.write_text(json.dumps(sealed(content)))
    assert Evaluation.open(tmp_path / "run").figures == run.figures


def test_what_is_missing_or_has_changed_is_said(run, tmp_path, photo):
    run.save(tmp_path / "runs" / "one")
    with pytest.raises(InputError, match=r"no run folder.*the runs in it: one"):
        Evaluation.open(tmp_path / "runs")
    file = tmp_path / "runs" / "one" / "rankings.npz"
    data = file.read_bytes()
    for content in (data[:-30], b""):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"rankings\.npz cannot be read"):
            Evaluation.open(tmp_path / "runs" / "one")
    file.write_bytes(data)
    photo("set/database/@0@0@.png", (80, 80), 7)
    with pytest.raises(InputError, match="changed since this run"):
        Evaluation.open(tmp_path / "runs" / "one")
    shutil.rmtree(tmp_path / "set")
    with pytest.raises(InputError, match=r"does not exist|no such folder"):
        Evaluation.open(tmp_path / "runs" / "one")


def test_command_line_can_be_typed_and_a_notebook_has_none(monkeypatch):
    main = sys.modules["__main__"]
    monkeypatch.delattr(main, "__file__", raising=False)
    assert evaluation.command_line() == ""
    monkeypatch.setattr(main, "__file__", "AG/eval.py", raising=False)
    words = ["AG/eval.py", "--dataset_folder", "my photos"]
    monkeypatch.setattr("sys.orig_argv", ["/usr/bin/python3", *words])
    assert evaluation.command_line() == "python3 AG/eval.py --dataset_folder 'my photos'"
    monkeypatch.setattr("sys.orig_argv", ["python3", "-m", "voc_tree.main", "trees"])
    monkeypatch.setattr("sys.argv", ["/home/AG/voc_tree/main.py", "trees"])
    assert evaluation.command_line() == "python3 -m voc_tree.main trees"


def test_a_comparison_names_the_queries_whose_first_positive_moved():
    old = np.array([[1, 2, 3]] * 6)
    new = np.array([[2, 1, 3], [2, 1, 3], [1, 3, 2], [2, 1, 3], [3, 2, 1], [2, 1, 3]])
    positives = [np.array(rows) for rows in ([2], [1], [1], [], [3, 1], [2])]
    junk = [[]] * 5 + [[1]]  # junk has no rank, so that to pass it is nothing
    none = np.zeros(6)
    before, after = (Step("", ranking(rows), {}, none) for rows in (old, new))
    result = compare(Positives(positives, junk), "R@1", before, after)
    assert result.helped.tolist() == [0]
    assert result.hurt.tolist() == [1]
    assert result.unchanged.tolist() == [2, 3, 4, 5]


def test_photos_of_very_different_sizes_are_said(run, tmp_path):
    """An octave apart; what counts is the size at which a photo was described."""

    def said(*sizes_and_units):
        store = FeatureStore.open(
            tmp_path / str(sizes_and_units), made_from(run.photos, "test", {})
        )
        with store.writer() as writer:
            pairs = zip(run.photos.database_photos, sizes_and_units, strict=True)
            for photo, (size, unit) in pairs:
                writer.put(photo.name, replace(FEATURES, image_size=size, unit=unit))
        local = features_of_set(run.photos, store)
        notes = report.notes(replace(run, evidence=(replace(run.verified, features=local),)))
        return [note for note in notes if "described at" in note]

    assert said(((640, 480), 1.0), ((480, 640), 1.0), ((800, 600), 1.0)) == []
    assert said(((640, 480), 1.0), ((64, 48), 0.1), ((6400, 4800), 10.0)) == []
    (note,) = said(((640, 480), 1.0), ((64, 48), 1.0), ((800, 600), 1.0))
    assert "64×48 to 800×600" in note


def test_queries_without_a_right_answer_are_said_beside_the_recall_of_the_others(run):
    def told(positives):
        truth = Positives(positives, [np.array([])] * 2)
        photos = replace(run.photos, ground_truth={"R": truth})
        steps = tuple(score(name, ranking(rows), photos) for name, rows in ROWS.items())
        notes = report.notes(replace(run, photos=photos, steps=steps, evidence=()))
        return steps[-1].figures["R@1"], [note for note in notes if "no right answer" in note]

    assert told([np.array([0]), np.array([1])]) == (100, [])
    recall, (note,) = told([np.array([0]), np.array([])])
    assert recall == 50
    assert note.startswith("1 of 2 queries have no right answer in the database, and count")
    assert "of the others: R@1: 100.0" in note
