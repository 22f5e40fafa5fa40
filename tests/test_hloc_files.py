"""hloc's files: what we write is read back by h5py as hloc reads it, and taken in again."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from tests.made_up import evaluation_of

import hloc_files
from retrieval import verification
from retrieval.data import hloc_h5
from retrieval.data.photo_sets import open_revisited
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation, score
from retrieval.feature_folders import features_of_set, find_store, open_store, point_to
from retrieval.features import LocalFeatures
from retrieval.reranking import Evidence, rerank
from retrieval.search import Ranking

SIZE = (64, 48)


def features(seed, count=12):
    """Features that a store gives back to the bit, in the box of the queries."""
    rng = np.random.default_rng(seed)
    scene = np.random.default_rng(seed % 2).normal(size=(count, 8))  # two scenes
    vectors = scene + 0.1 * rng.normal(size=scene.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    place = np.random.default_rng(seed % 2 + 10).uniform(4, 30, (count, 2))
    place[:3] = rng.uniform(4, 30, (3, 2))  # matches that are no inliers
    return LocalFeatures(
        keypoints=(place + seed % 3).astype(np.float32),
        descriptors=vectors.astype(np.float16),
        scores=np.sort(rng.random(count).astype(np.float32))[::-1],
        image_size=SIZE,
        scales=rng.uniform(1, 9, count).astype(np.float32),
        orientations=rng.uniform(-3, 3, count).astype(np.float32),
        unit=0.125,
    )


@pytest.fixture
def photos(tmp_path, photo):
    """Two queries, of which one is in the database too, and three photos in a folder of it."""
    gnd = [
        {"easy": [i], "hard": [], "junk": [], "bbx": [1, 1, 60, 40]} for i in range(2)
    ]  # fmt: skip
    content = {"imlist": ["in/a", "in/b", "in/c"], "qimlist": ["q", "in/a"], "gnd": gnd}
    for i, name in enumerate(("in/a", "in/b", "in/c", "q")):
        photo(f"set/jpg/{name}.jpg", SIZE, i)
    (tmp_path / "set/gnd_set.json").write_text(json.dumps(content))
    return open_revisited(tmp_path / "set")


@pytest.fixture
def store(photos, tmp_path):
    store = open_store(photos, "made up", {}, tmp_path / "features/made_up/set")
    with store.writer() as writer:
        for seed, each in enumerate([*photos.query_photos, *photos.database_photos]):
            writer.put(each.name, features(seed))
    point_to(store)
    return store


@pytest.fixture
def run_folder(photos, store, tmp_path):
    """A run that ranked by random descriptors and re-ranked by the features."""
    rng = np.random.default_rng(0)
    queries, database = (rng.normal(size=(n, 4)).astype(np.float32) for n in (2, 3))
    for part in (queries, database):
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    similarity = queries @ database.T
    rows = np.argsort(-similarity, axis=1)
    ranked = Ranking(rows, np.take_along_axis(similarity, rows, axis=1))
    local = features_of_set(photos, store)
    made = evaluation_of(photos, {"global": rows}, num_inliers=np.zeros((2, 3), np.int64))
    assert made.verified is not None
    kinds = [Evidence(local.queries, local.database, made.verified.config.geometry)]
    found = rerank(ranked, kinds, made.verified.config)
    protocol = replace(made.protocol, fingerprint=photos.fingerprint())
    steps = (score("global", ranked, photos), score("reranked", found.ranking, photos))
    folder = tmp_path / "run"
    evidence = (replace(made.verified, features=local),)
    replace(made, steps=steps, evidence=evidence, protocol=protocol).save(folder)
    for name, rows in (("queries", queries), ("database", database)):
        np.save(folder / f"{name}_descriptors.npy", rows)
    return folder


def export(*words):
    hloc_files.main(["export", *map(str, words)])


def take_in(*words):
    hloc_files.main(["import", *map(str, words)])


def names_of(path):
    """As hloc lists the photos of a file."""
    names = []
    with h5py.File(path, "r") as file:
        file.visititems(
            lambda _, each: (
                names.append(each.parent.name.strip("/"))
                if isinstance(each, h5py.Dataset)
                else None
            )
        )
    return sorted(set(names))


def matches_of(path, first, second):
    """As hloc reads the matches of a pair: rows (M, 2) and scores (M,)."""
    with h5py.File(path, "r") as file:
        group = file[f"{first.replace('/', '-')}/{second.replace('/', '-')}"]
        matches = group["matches0"].__array__()
        scores = group["matching_scores0"].__array__()
    (rows,) = np.where(matches != -1)
    return np.stack([rows, matches[rows]], -1), scores[rows]


def test_features_are_written_as_hloc_reads_them(store, tmp_path):
    export(tmp_path / "features/made_up/set", tmp_path / "out")
    path = tmp_path / "out/features.h5"
    # The query of which only a box is described is not the database photo of its name.
    assert names_of(path) == ["in/a.jpg", "in/b.jpg", "in/c.jpg", "q.jpg", "query/in/a.jpg"]
    ours = store["database/in/b.jpg"]
    with h5py.File(path, "r") as file:
        group = {key: torch.from_numpy(each.__array__()) for key, each in file["in/b.jpg"].items()}
        assert file["in/b.jpg"]["keypoints"].attrs["uncertainty"] == 0.125
    assert group["image_size"].tolist() == list(SIZE)
    assert group["descriptors"].shape == (8, 12)
    assert np.array_equal(group["descriptors"].T, ours.descriptors)
    assert np.array_equal(group["keypoints"], ours.keypoints)  # no half pixel: hloc adds it later
    assert np.array_equal(group["scores"], ours.scores)


def test_features_come_back_to_the_bit(store, photos, tmp_path):
    export(store.folder, tmp_path / "out")
    take_in(tmp_path / "out/features.h5", tmp_path / "again", "--dataset_folder", tmp_path / "set")
    again = find_store(tmp_path / "again/features/set")
    assert again.names() == store.names()
    for name in store.names():
        for field in ("keypoints", "descriptors", "scores", "scales", "orientations"):
            assert np.array_equal(getattr(again[name], field), getattr(store[name], field)), field
        assert (again[name].image_size, again[name].unit) == (SIZE, 0.125)
        assert again.content(name) is not None
    assert again.made_by.photos["fingerprint"] == photos.fingerprint()


def test_a_ranking_becomes_pairs_and_matches(run_folder, tmp_path):
    export(run_folder, tmp_path / "out", "--num_matched", "2")
    run = Evaluation.open(run_folder)
    pairs = [line.split() for line in (tmp_path / "out/pairs.txt").read_text().splitlines()]
    database = ["in/a.jpg", "in/b.jpg", "in/c.jpg"]
    assert pairs == [
        [name, database[row]]
        for name, rows in zip(("q.jpg", "query/in/a.jpg"), run.last.ranking.rows, strict=True)
        for row in rows[:2]
    ]
    verified, local = run.local()
    for query, (first, second) in zip((0, 0, 1, 1), pairs, strict=True):
        pair = verification.match(
            local.queries[query], local.database[database.index(second)], verified.config.geometry
        )
        found, scores = matches_of(tmp_path / "out/matches.h5", first, second)
        assert np.array_equal(found, pair.matches)
        cosines = [
            float(pair.query.descriptors[i].astype(float) @ pair.database.descriptors[j])
            for i, j in found
        ]
        assert np.allclose(scores, (np.array(cosines) + 1) / 2, atol=2e-3)


def test_only_inliers_leaves_out_the_other_matches(run_folder, tmp_path):
    export(run_folder, tmp_path / "out", "--num_matched", "3", "--only_inliers")
    run = Evaluation.open(run_folder)
    verified, local = run.local()
    less = 0
    for row, name in enumerate(("in/a.jpg", "in/b.jpg", "in/c.jpg")):
        pair = verification.match(local.queries[0], local.database[row], verified.config.geometry)
        found, _ = matches_of(tmp_path / "out/matches.h5", "q.jpg", name)
        assert np.array_equal(found, pair.matches[pair.inliers])
        less += len(found) < len(pair.matches)
    assert less


def test_more_pairs_than_were_verified_are_refused(photos, run_folder, tmp_path):
    content = (run_folder / "result.json").read_text()
    assert '"top_k": 100' in content
    with pytest.raises(InputError, match=r"--num_matched 101: .* verified the first 100"):
        export(run_folder, tmp_path / "out", "--num_matched", "101")


def test_global_descriptors_rank_as_before(run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(run_folder, "out", "--num_matched", "2")
    take_in(
        *("out/features.h5", "again", "--dataset_folder", "set"),
        *("--global_feats", "out/global-feats.h5", "--save_dir", "hloc_run"),
    )
    (folder,) = Path("logs/hloc_run").iterdir()
    again, run = Evaluation.open(folder), Evaluation.open(run_folder)
    assert np.array_equal(again.first.ranking.rows, run.first.ranking.rows)
    assert np.allclose(again.first.ranking.similarity, run.first.ranking.similarity, atol=1e-6)
    assert again.local()[0].num_inliers.max() == 9
    assert again.last.name == "reranked"
    assert (folder / "report.html").is_file()


def write(path, **arrays):
    """A file in which every photo has these arrays."""
    content = {
        "keypoints": np.array([[0, 0], [20, 20], [63, 47]], np.float16),
        "descriptors": np.array([[3, 0, 0], [0, 1, 0], [4, 0, 1]], np.float32),
        "scores": np.array([0.1, 0.3, 0.2], np.float16),
        "image_size": np.array(SIZE),
    } | arrays
    with h5py.File(path, "w") as file:
        for name in ("in/a.jpg", "in/b.jpg", "in/c.jpg", "q.jpg", "query/in/a.jpg"):
            for key, array in content.items():
                if array is not None:
                    file[f"{name}/{key}"] = array
    return path


def test_foreign_features_are_sorted_normalised_and_cut_to_the_box(photos, tmp_path):
    path = write(tmp_path / "feats-x.h5")
    take_in(path, tmp_path / "again", "--dataset_folder", tmp_path / "set")
    store = find_store(tmp_path / "again/feats-x/set")
    whole, box = store["database/in/c.jpg"], store["query/q.jpg"]
    assert whole.keypoints.tolist() == [[20, 20], [63, 47], [0, 0]]
    assert np.allclose(whole.descriptors, [[0, 1, 0], [0, 0, 1], [0.6, 0, 0.8]], atol=1e-3)
    assert box.keypoints.tolist() == [[20, 20]]
    assert whole.unit == 1
    assert store.made_by.extractor == "feats-x"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"descriptors": None}, "has no descriptors"),
        ({"image_size": None}, "has no image_size"),
        ({"keypoints": np.zeros((3, 4))}, r"keypoints of shape \(3, 4\)"),
        ({"descriptors": np.zeros((3, 8))}, "not as many keypoints as descriptors"),
        ({"scores": np.zeros((3, 1))}, r"scores of shape \(3, 1\)"),
        ({"image_size": np.array([48, 64])}, "48×64 pixels, the photo has 64×48"),
        ({"oris": np.zeros(2)}, "not as many keypoints"),
        ({"keypoints": h5py.SoftLink("/nowhere")}, "has no keypoints|not laid out"),
    ],
)
def test_another_layout_is_one_error(photos, tmp_path, arrays, message):
    path = write(tmp_path / "other.h5", **arrays)
    with pytest.raises(InputError, match=message):
        take_in(path, tmp_path / "again", "--dataset_folder", tmp_path / "set")


def test_a_file_that_is_none_is_one_error(photos, tmp_path):
    (tmp_path / "text.h5").write_text("no HDF5")
    for name, message in (("text.h5", "no HDF5 file"), ("nowhere.h5", "no such file")):
        with pytest.raises(InputError, match=message):
            take_in(tmp_path / name, tmp_path / "again", "--dataset_folder", tmp_path / "set")


def test_names_are_relative_to_hlocs_folder(photos, tmp_path):
    path = tmp_path / "deeper.h5"
    write(path)
    with h5py.File(path, "a") as file:
        for name in ("in", "q.jpg"):
            file.move(name, f"jpg/{name}")
        file.move("query/in", "query/jpg/in")
    flags = ("--dataset_folder", tmp_path / "set")
    with pytest.raises(InputError, match=r"(?s)the first is q.jpg; .* begins with jpg/in/a.jpg"):
        take_in(path, tmp_path / "again", *flags)
    take_in(path, tmp_path / "again", *flags, "--image_dir", tmp_path / "set")
    assert len(find_store(tmp_path / "again/deeper/set")) == 5


def test_without_h5py_there_is_one_error(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[hloc\]'"):
        export(store.folder, tmp_path / "out")
    assert not (tmp_path / "out/features.h5").exists()


def test_names_that_hloc_would_cut_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"'b c\.jpg' has white space"):
        hloc_h5.write_pairs(tmp_path / "pairs.txt", [("a.jpg", "b c.jpg")])


def test_a_file_that_cannot_be_finished_is_none(tmp_path):
    with pytest.raises(KeyboardInterrupt), hloc_h5.written(tmp_path / "x.h5"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_comes_twice_is_refused(tmp_path):
    with hloc_h5.written(tmp_path / "x.h5") as file:
        file.put("a", {"global_descriptor": np.zeros(2)})
        with pytest.raises(InputError, match="rename the photo"):
            file.put("a", {"global_descriptor": np.zeros(2)})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "x", "y", "--global_feats", __file__], "--global_feats is none of export's"),
        (["import", "x", "y", "--num_matched", "3"], "--num_matched is none of import's"),
        (["import", "x", "y"], "where are the images"),
    ],
)
def test_flags_of_the_other_way_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        hloc_files.main(words)


def test_photos_that_were_turned_by_their_exif_data_are_told(photos, tmp_path):
    path = tmp_path / "set/jpg/in/b.jpg"
    turned = Image.open(path)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(path, exif=exif)
    with pytest.raises(InputError, match="EXIF"):
        take_in(write(tmp_path / "f.h5"), tmp_path / "again", "--dataset_folder", tmp_path / "set")
