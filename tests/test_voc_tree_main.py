"""SIFT, tree, verification and expansion by their commands, on photos of painted walls."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import compare
import show
from retrieval import metrics
from retrieval.commands import tree_flags
from retrieval.configs.describe import SiftConfig
from retrieval.configs.rank import ExpandConfig, TreeConfig
from retrieval.data.photo_sets import open_revisited
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation, score
from retrieval.feature_folders import made_from, open_features, open_kinds, point_to
from retrieval.features import FeatureStore, LocalFeatures
from retrieval.files import read_json, sealed, write_json
from retrieval.global_search import DESCRIPTOR_FILES, open_descriptors
from retrieval.protocol import protocol_of
from retrieval.reranking import Evidence, rerank
from retrieval.search import Ranking
from voc_tree import expansion, grid, main, pipeline
from voc_tree.SIFT import get_descriptor
from voc_tree.SIFT.sift import Sift

PLACES, VIEWS = 4, 4


def wall(place: int) -> np.ndarray:
    """A painted wall (240, 320, 3) uint8."""
    rng = np.random.default_rng(place)
    picture = np.full((240, 320, 3), 128, np.uint8)
    for _ in range(60):
        corner, size = rng.integers(0, (300, 220)), rng.integers(8, 50, 2)
        colour = rng.integers(0, 256, 3).tolist()
        cv2.rectangle(picture, corner.tolist(), (corner + size).tolist(), colour, -1)
    return cv2.GaussianBlur(picture, (0, 0), 1)


def view(place: int, number: int) -> np.ndarray:
    """The wall seen a little differently each time."""
    rng = np.random.default_rng((place, number))
    affine = np.eye(2, 3) + rng.normal(size=(2, 3)) * [0.04, 0.04, 6]
    return cv2.warpAffine(wall(place), affine, (320, 240), borderMode=cv2.BORDER_REFLECT)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A test set in the layout of revisited Oxford; one database image shows nothing."""
    folder = tmp_path_factory.mktemp("data") / "test" / "walls"
    (folder / "jpg").mkdir(parents=True)
    imlist = [f"p{place}_{number}" for number in range(1, VIEWS) for place in range(PLACES)]
    qimlist = [f"p{place}_0" for place in range(PLACES)]
    for name in [*imlist, *qimlist]:
        place, number = int(name[1]), int(name[3])
        cv2.imwrite(str(folder / "jpg" / f"{name}.jpg"), view(place, number))
    cv2.imwrite(str(folder / "jpg" / "fog.jpg"), np.full((240, 320, 3), 200, np.uint8))
    gnd = [
        {
            "easy": [row for row, name in enumerate(imlist) if name.startswith(f"p{place}_1")],
            "hard": [row for row, name in enumerate(imlist) if re.match(f"p{place}_[23]", name)],
            "junk": [],
            "bbx": [10, 10, 310, 230],
        }
        for place in range(PLACES)
    ]
    content = {"imlist": [*imlist, "fog"], "qimlist": qimlist, "gnd": gnd}
    (folder / "gnd_walls.json").write_text(json.dumps(content))
    return folder.parent.parent


@pytest.fixture(scope="module")
def features(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    get_descriptor.main([str(folder), "--data-root", str(data), "--test-datasets", "walls"])
    return folder


def search(folder, features, *flags):
    arguments = [str(folder), "--root-directory", str(features / "sift"), "--test-datasets=walls"]
    arguments += ["--tree-height", "3", "--tree-branch", "6", "--output", str(folder / "out.txt")]
    main.main([*arguments, *flags])
    return Evaluation.open(folder / "walls")


def test_the_chain_finds_the_walls(features, tmp_path, caplog):
    caplog.set_level("INFO")
    result = search(tmp_path, features, "--rerank-num", "10", "--expand")
    assert [step.name for step in result.steps] == ["words", "verified", "expanded"]
    for step in result.steps:
        assert step.figures["mAP M"] > 90
    assert "1 database images without features rank last" in result.notes
    assert result.protocol.settings["tree"]["tree_branch"] == 6
    assert result.protocol.settings["features"]["settings"]["feature_num"] == 500
    assert result.verified.num_inliers.shape == (PLACES, 10)
    assert len(result.local()[1].queries[0]) > 100
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert any(re.fullmatch(r">> Training finished in [\d.]+ s", line) for line in lines)
    form = r">> walls: mAP E: [\d.]+, M: [\d.]+, H: [\d.]+"
    assert sum(bool(re.fullmatch(form, line)) for line in lines) == 3
    assert any(line.startswith(">> walls: mP@k[1, 5, 10] E: [") for line in lines)
    assert result.seconds.keys() == {"tree", "index", "search", "verification", "expansion"}
    assert (tmp_path / "command.txt").is_file()
    assert "# voctree" in (tmp_path / "info.log").read_text()
    page = (tmp_path / "walls" / "report.html").read_text()
    for text in ("expanded", "mP@10 H", "4 of 4 queries shown", "1 database images without"):
        assert text in page


def test_the_search_of_another_set_is_not_overwritten(features, tmp_path):
    search(tmp_path, features, "--no-ransac")
    file = tmp_path / "walls" / "result.json"
    content = read_json(file)
    content["protocol"]["photos"] = "/other/walls"
    write_json(file, sealed(content))
    with pytest.raises(InputError, match=r"walls has a search of /other/walls, not .*another DIR"):
        search(tmp_path, features, "--no-ransac")


def test_no_train_takes_the_saved_tree(features, tmp_path):
    first = search(tmp_path, features, "--no-ransac")
    again = search(tmp_path, features, "--no-ransac", "--no-train")
    assert first.first.figures == again.first.figures
    assert [step.name for step in first.steps] == ["words"]
    assert "Training finished" not in (tmp_path / "out.txt").read_text()
    with pytest.raises(InputError, match="tree_branch 6, not 7"):
        search(tmp_path, features, "--no-train", "--tree-branch", "7")
    with pytest.raises(InputError, match="no such tree"):
        search(tmp_path / "other", features, "--no-train")


def test_no_homo_verifies_by_the_fundamental_matrix(features, tmp_path):
    result = search(tmp_path, features, "--no-homo", "--rerank-num", "5")
    assert result.verified.config.verify.model == "fundamental"
    assert result.verified.config.top_k == 5


def settings_of(words):
    return tree_flags.read_row(words).settings


def test_lowes_test_is_for_sift():
    ratios = [each.match.ratio for each in settings_of("").reranks(["sift", "delf"])]
    assert ratios == [0.9, None]
    assert settings_of("--ratio 1").reranks(["sift"])[0].match.ratio == 1
    assert settings_of("--no-ransac").reranks(["sift"]) == []


@pytest.mark.parametrize("flag", ["--original", "--s2"])
def test_the_original_is_every_setting_of_delf_pytorch(features, tmp_path, flag):
    result = search(tmp_path, features, flag, "--rerank-num", "5")
    assert result.protocol.settings["score"]["score"] == "l1"
    assert result.verified.config.match.rule == "one_way"
    assert result.verified.config.verify.residual == 4
    assert result.verified.config.floor == 0


def test_pictures_and_comparisons_take_its_runs(features, tmp_path):
    search(tmp_path / "few", features, "--rerank-num", "5")
    search(tmp_path / "more", features, "--rerank-num", "12", "--expand")
    runs = [str(tmp_path / name / "walls") for name in ("few", "more")]
    for picture, *words in (
        ("recalls",),
        ("positives",),
        ("rerank", "--query", "1"),
        ("matches", "--query", "1"),
        ("attention", "--query", "1"),
    ):
        output = tmp_path / f"{picture}.png"
        show.main([picture, "--run", runs[1], *words, "--output", str(output)])
        assert output.stat().st_size > 10_000
    compare.main([*runs, f"{runs[1]}:words", "--output_dir", str(tmp_path / "both")])
    lines = (tmp_path / "both" / "compare.csv").read_text().splitlines()
    assert len(lines) == 1 + PLACES
    table = (tmp_path / "both" / "compare.md").read_text()
    for text in (*runs, "mAP M", "to row above [95 % interval]"):
        assert text in table
    assert "Better" in (tmp_path / "both" / "compare.html").read_text()
    with pytest.raises(InputError, match=r"no step nothing; it has words, verified, expanded"):
        compare.main([runs[1], f"{runs[1]}:nothing"])


def test_commands_run_as_written(data, tmp_path):
    words = ["voc_tree.SIFT.get_descriptor", "./features", "--test-datasets", "walls"]
    words += ["--data-root", str(data)]
    subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, check=True)
    words = "voc_tree.main ./trees --root-directory ./features/sift --test-datasets walls "
    words += "--tree-height 6 --tree-branch 10 --output output_sift.txt --rerank-num 5"
    command = [sys.executable, "-m", *words.split()]
    said = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert ">> walls: mAP E: " in said


def test_bad_input(features, data, tmp_path):
    with pytest.raises(InputError, match="exclude each other"):
        search(tmp_path, features, "--no-homo", "--model", "affine")
    with pytest.raises(InputError, match="--expand"):
        search(tmp_path, features, "--expand", "--no-ransac")
    with pytest.raises(InputError, match=r"no such folder of features.*there are sift"):
        main.main([str(tmp_path), "--root-directory", str(features / "nothing")])
    with pytest.raises(InputError, match="a name comes twice"):
        search(tmp_path, features, "--test-datasets", "walls,walls")
    with pytest.raises(InputError, match="names between commas"):
        search(tmp_path, features, "--test-datasets", ",")
    with pytest.raises(InputError, match=r"no test set 'wall'.*are walls"):
        get_descriptor.main([str(tmp_path), "--data-root", str(data), "--test-datasets", "wall"])


def test_a_broken_photo_is_an_error_or_has_no_features(data, tmp_path, caplog):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data/test/walls/jpg/p1_1.jpg").write_text("<html>")
    words = [str(tmp_path / "f"), "--data-root", str(tmp_path / "data"), "--test-datasets", "walls"]
    with pytest.raises(InputError, match=r"1 photos could not be decoded.*--skip_bad_images"):
        get_descriptor.main(words)
    get_descriptor.main([*words, "--skip_bad_images"])
    assert any("skipped" in line and "p1_1.jpg" in line for line in caplog.messages)
    found = search(tmp_path / "trees", tmp_path / "f")
    assert "2 database images without features rank last" in found.notes  # one is blank


def test_missing_features_of_a_photo(features, data, tmp_path):
    photos = open_revisited(data / "test" / "walls")
    store = FeatureStore.open(tmp_path / "walls", made_from(photos, "sift", {}))
    nothing = LocalFeatures(np.zeros((0, 2)), np.zeros((0, 4)), np.zeros(0), (8, 8))
    with store.writer() as writer:
        writer.put("query/p0_0.jpg", nothing)
    point_to(store)
    with pytest.raises(InputError, match=r"no features of 16 of 17 photos \(the first is query/p1"):
        pipeline.WordSearch(*open_kinds([tmp_path], "walls"))


def test_a_grid(features, tmp_path):
    root = f"--root-directory {features / 'sift'} --tree-height 2 --tree-branch 8 --rerank-num 5"
    arguments = [str(tmp_path), "--test-datasets", "walls", "--row", f"{root} --original"]
    grid.main([*arguments, "--row", root, "--vary", "--ht 16 24", "--vary", "--words 1 2"])
    lines = (tmp_path / "grid_walls.txt").read_text().splitlines()
    assert "| to first [90 % interval] | to row above [90 % interval] |" in lines[0]
    assert len(lines) == 2 + 8
    assert "--original --ht 16 --words 1" in lines[2]
    rows = json.loads((tmp_path / "grid_walls.json").read_text())["rows"]
    assert len(rows[0]["per_query"]) == PLACES
    assert rows[7]["protocol"]["score"]["words"] == 2
    mean, low, high = metrics.paired_interval(
        np.array(rows[5]["per_query"]), np.array(rows[4]["per_query"]), 0.9
    )
    assert f"{mean:+.1f} [{low:+.1f}, {high:+.1f}] | `{root} --ht 16 --words 2`" in lines[7]
    with pytest.raises(InputError, match="--vary"):
        grid.main([*arguments, "--vary", "16"])


def test_sift_is_that_of_delf_pytorch_by_default():
    picture = wall(0)
    found = Sift(SiftConfig())(picture)
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    detector = cv2.SIFT.create(nfeatures=500, contrastThreshold=0.01, edgeThreshold=30, sigma=1.6)
    points, descriptors = detector.detectAndCompute(gray, None)
    order = np.argsort([-point.response for point in points], kind="stable")[:500]
    np.testing.assert_allclose(found.keypoints, [points[row].pt for row in order])
    expected = descriptors[order] / np.linalg.norm(descriptors[order], axis=1, keepdims=True)
    np.testing.assert_allclose(found.descriptors, expected, rtol=1e-5)


def test_upright_root_sift():
    found = Sift(SiftConfig(feature_num=50, root=True, upright=True))(wall(1))
    assert len(found) == 50
    assert not found.orientations.any()
    np.testing.assert_allclose((found.descriptors**2).sum(axis=1), 1, rtol=1e-5)
    places = np.column_stack([found.keypoints, found.scales])
    assert len(np.unique(places, axis=0)) == 50
    assert (np.diff(found.scores) <= 0).all()


def test_no_features_on_a_blank_photo():
    for config in (SiftConfig(), SiftConfig(upright=True)):
        found = Sift(config)(np.full((60, 80, 3), 90, np.uint8))
        assert found.descriptors.shape == (0, 128)


def test_features_of_a_resized_part_in_pixels_of_the_photo():
    keypoints = np.float32([[-0.5, -0.5], [99.5, 49.5]])  # outer corners of a part of 100 × 50
    features = LocalFeatures(keypoints, np.ones((2, 4)), np.ones(2), (100, 50), np.float32([1, 2]))
    found = get_descriptor.in_photo(features, (10, 20, 210, 120), (400, 300))
    np.testing.assert_allclose(found.keypoints, [[9.5, 19.5], [209.5, 119.5]])
    assert found.scales.tolist() == [2, 4]
    assert found.image_size == (400, 300)


def test_directories_tell_settings_apart():
    assert SiftConfig().directory == "sift"
    assert SiftConfig(2000, root=True, upright=True).directory == "rootsift_upright_2000"


def test_expansion_takes_what_lies_in_the_query(features):
    _, stored = open_features(features / "sift", "walls")
    settings = settings_of("--model affine --floor 0 --rerank-num 12")
    query, image = stored.queries[0], stored.database[0]
    found = expansion.expanded(query, [image], settings.rerank.geometry)
    assert len(query) < len(found) <= len(query) + len(image)
    np.testing.assert_array_equal(found[: len(query)], query.descriptors)
    tree = pipeline.train_tree(stored, TreeConfig(2, 8))
    index = pipeline.index_database(stored.database, tree, settings.score)
    ranked = pipeline.rank(stored.queries, index)
    kinds = [Evidence(stored.queries, stored.database, settings.rerank.geometry)]
    verified = rerank(ranked, kinds, settings.rerank)
    config = ExpandConfig(expand_inliers=10_000)
    same = pipeline.expand([stored], [index], ranked, verified, config)
    np.testing.assert_array_equal(same.rows, verified.ranking.rows)
    config = ExpandConfig()
    grown = pipeline.expand([stored], [index], ranked, verified, config)
    np.testing.assert_array_equal(np.sort(grown.rows), np.sort(ranked.rows))


def test_verified_images_come_first():
    found = expansion.verified_first(np.array([4, 1]), np.array([0, 1, 2, 3, 4]))
    assert found.tolist() == [4, 1, 0, 2, 3]


@pytest.fixture(scope="module")
def two_kinds(data, features):
    """SIFT, and upright RootSIFT beside it."""
    words = [
        "--data-root",
        "DATA",
        "--test-datasets",
        "walls",
        "--root",
        "--upright",
        "--max_features",
        "300",
    ]
    words = [str(data) if word == "DATA" else word for word in words]
    get_descriptor.main([str(features), *words])
    return [features / "sift", features / "rootsift_upright_300"]


def test_two_kinds_of_features_are_searched_together(two_kinds, tmp_path):
    roots = [str(root) for root in two_kinds]
    words = ["--test-datasets=walls", "--tree-height", "2", "--tree-branch", "8", "--expand"]
    words += ["--rerank-num", "8", "--output", str(tmp_path / "out.txt")]
    main.main([str(tmp_path), "--root-directory", *roots, *words])
    run = Evaluation.open(tmp_path / "walls")
    assert [step.name for step in run.steps] == ["words", "verified", "expanded"]
    assert run.last.figures["mAP M"] > 90
    assert [kind.num_inliers.shape for kind in run.evidence] == [(PLACES, 8)] * 2
    stores = [kind.features.store.folder.parent.parent for kind in run.evidence]
    assert stores == two_kinds
    assert (tmp_path / "walls" / "tree_2.safetensors").is_file()
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "walls", again / "walls")
    main.main([str(again), "--root-directory", *roots, *words, "--no-train"])
    found = Evaluation.open(again / "walls")
    np.testing.assert_array_equal(found.last.ranking.rows, run.last.ranking.rows)


def test_one_kind_named_twice_gives_its_order(two_kinds, tmp_path):
    rows = []
    for name, roots in (("one", two_kinds[:1]), ("two", [two_kinds[0], two_kinds[0]])):
        words = ["--tree-height", "2", "--tree-branch", "8", "--test-datasets=walls"]
        words += ["--output", str(tmp_path / "out.txt")]
        main.main([str(tmp_path / name), "--root-directory", *map(str, roots), *words])
        rows.append(Evaluation.open(tmp_path / name / "walls").last.ranking.rows)
    np.testing.assert_array_equal(*rows)


def test_kinds_of_other_photos_are_refused(two_kinds, data, tmp_path):
    (tmp_path / "q").mkdir()
    (tmp_path / "d").mkdir()
    for folder in ("q", "d"):
        cv2.imwrite(str(tmp_path / folder / f"{folder}.png"), view(0, 0))
    folders = ["--database_folder", str(tmp_path / "d"), "--queries_folder", str(tmp_path / "q")]
    get_descriptor.main([str(tmp_path / "f"), *folders, "--no_labels"])
    (other,) = (tmp_path / "f" / "sift").glob("*/store.json")
    with pytest.raises(InputError, match="has features of other photos than"):
        open_kinds([two_kinds[0] / "walls", other.parent])


def test_sift_is_verified_by_its_scales_unless_a_flag_names_a_model():
    def models(words):
        return [each.verify.model for each in settings_of(words).reranks(["sift", "delf"])]

    assert models("") == ["similarity", "affine"]
    assert models("--model homography") == ["homography", "homography"]
    assert models("--model affine") == ["affine", "affine"]
    assert models("--no-homo") == ["fundamental", "fundamental"]
    assert models("--original") == ["homography", "homography"]
    assert models("--backend skimage") == ["affine", "affine"]


def global_run(folder, photos):
    """A run of eval.py --save_descriptors, by a network that is right half the time."""
    rng = np.random.default_rng(0)
    places = rng.normal(size=(PLACES, 8))
    arrays = []
    for side in (photos.query_photos, photos.database_photos):
        names = [Path(photo.name).name for photo in side]
        mean = [places[int(name[1])] if name[1].isdigit() else 0 * places[0] for name in names]
        arrays.append(np.array(mean) + rng.normal(0, 0.5, (len(side), 8)))
        arrays[-1] /= np.linalg.norm(arrays[-1], axis=1, keepdims=True)
    rows = np.argsort(-arrays[0] @ arrays[1].T, axis=1)
    step = score("global", Ranking(rows, np.zeros(rows.shape, np.float32)), photos)
    Evaluation("a run", photos, (step,), protocol_of(photos, {"weights": "made up"})).save(folder)
    for name, array in zip(DESCRIPTOR_FILES, arrays, strict=True):
        np.save(folder / name, array.astype(np.float32))
    return arrays


def test_global_descriptors_are_one_more_index(features, tmp_path):
    alone = search(tmp_path / "alone", features, "--no_rerank")
    queries, database = global_run(tmp_path / "run", alone.photos)
    flags = ("--global_run", str(tmp_path / "run"))
    both = search(tmp_path / "both", features, "--no_rerank", *flags)
    for query, row in enumerate(both.first.ranking.rows):
        words = np.empty(len(database))
        words[alone.first.ranking.rows[query]] = alone.first.ranking.similarity[query]
        cosine = database @ queries[query]
        cosine = cosine - cosine.mean()
        parts = [part / np.sort(part)[-10:].mean() for part in (words, cosine)]
        expected = np.sum(parts, axis=0)
        np.testing.assert_allclose(
            both.first.ranking.similarity[query], expected[row], rtol=1e-4, atol=1e-4
        )
        assert (np.diff(both.first.ranking.similarity[query]) <= 0).all()
    assert both.protocol.settings["descriptors"] == {"weights": "made up"}
    expanded = search(tmp_path / "expanded", features, "--expand", "--rerank-num", "8", *flags)
    assert expanded.last.figures["mAP M"] > 90


def test_descriptors_that_cannot_be_had_are_refused(features, tmp_path):
    photos = open_kinds([features / "sift"], "walls")[0]
    global_run(tmp_path / "run", photos)
    (tmp_path / "run" / DESCRIPTOR_FILES[1]).write_bytes(b"no array")
    with pytest.raises(InputError, match=r"database_descriptors.npy cannot be read.*eval\.py"):
        open_descriptors(tmp_path / "run", photos)
    np.save(tmp_path / "run" / DESCRIPTOR_FILES[1], np.ones((2, 8)))
    with pytest.raises(InputError, match=r"not what eval\.py writes"):
        open_descriptors(tmp_path / "run", photos)
    fewer = replace(photos, queries=photos.queries[:-1], ground_truth={})
    with pytest.raises(InputError, match="of other photos"):
        open_descriptors(tmp_path / "run", fewer)
