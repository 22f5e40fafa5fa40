"""prepare.py: what it understands, what the doctor finds, and the manifest that scripts take."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from tests.gps_photos import METRES_A_DEGREE, shot

from eval import main as evaluate
from prepare import main as prepare_script
from retrieval.configs.judge import PositivesConfig, Source
from retrieval.configs.learn import GroupConfig
from retrieval.data.doctor import examine
from retrieval.data.manifest import Manifest, read_manifest
from retrieval.data.photo_sets import open_part, open_set
from retrieval.data.preparing import prepare
from retrieval.data.training_photos import load_groups
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation
from train import main as train


def north(metres: float) -> float:
    return 48 + metres / METRES_A_DEGREE


@pytest.fixture
def street(tmp_path):
    """Thirty photos of a street 20 m apart, three at each place, with GPS data."""
    for i in range(30):
        shot(tmp_path / f"street/{i:02d}.jpg", north(20 * (i // 3) + i % 3), 6.0, 90.0)
    return tmp_path / "street"


def found_in(
    folder, *, hold_out=False, classes=None, positives=None, **config
) -> dict[str, list[str]]:
    """What the doctor finds in a folder: the photos by what is odd about them."""
    asked = PositivesConfig(**config)
    manifest, _ = prepare(folder, asked, positives, hold_out=hold_out)
    opened = {
        split: open_part(manifest, Source(folder, positives=asked, split=split))
        for split in manifest.parts or ["test"]
        if split != "train"
    }
    least = classes or GroupConfig(M=10, alpha=360, min_images_per_class=3)
    return dict(examine(manifest, opened, least))


def run(words: str) -> None:
    prepare_script(words.split())


# ---- what is understood


def test_photos_with_gps(street, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    run("street")
    assert "test: 30 photos, each searched among the others" in caplog.text
    assert "positions: exif, 7 × 182 m, zones of UTM: 32; headings: 30 of 30" in caplog.text
    assert "odd: nothing" in caplog.text
    with Image.open("manifests/street.png") as picture:
        assert min(picture.size) > 300
    by_manifest = open_set(Source(tmp_path / "manifests/street.json"))
    by_folder = open_set(Source(street))
    assert by_manifest.fingerprint() == by_folder.fingerprint()
    assert by_manifest.query_photos == by_folder.query_photos
    for one, other in zip(by_manifest.whereabouts, by_folder.whereabouts, strict=True):
        np.testing.assert_array_equal(one.positions.utm, other.positions.utm)


def test_names_and_headings(photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(8):
        photo(f"campus/database/@{10 * i}@0@44@Q@@@@@{45 * i}@.png", seed=i)
    photo("campus/queries/@31@0@44@Q@@@@@100@.png", seed=9)
    (tmp_path / "campus/positives.csv").write_text("whatever")
    run("campus --positive_angle 60")
    manifest = read_manifest(tmp_path / "manifests/campus.json")
    assert (manifest.right.positions, manifest.right.positive_angle) == ("names", 60)
    photos = open_set(Source(tmp_path / "manifests/campus.json"))
    near = [i for i in range(8) if abs(10 * i - 31) <= 25 and abs(45 * i - 100) <= 60]
    names = [photos.database[row].name for row in photos.ground_truth["R"].positives[0]]
    assert sorted(names) == sorted(f"@{10 * i}@0@44@Q@@@@@{45 * i}@.png" for i in near)
    wider = Source(
        tmp_path / "manifests/campus.json", positives=PositivesConfig(positive_angle=150)
    )
    assert len(open_set(wider).ground_truth["R"].positives[0]) > len(near)


def test_frames(photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(12):
        photo(f"walk/ref/{i:04d}.jpg", seed=i)
        photo(f"walk/query/{i:04d}.jpg", seed=50 + i)
    run("walk --frame_tolerance 1 --output walk.json")
    found = open_set(Source(tmp_path / "walk.json")).ground_truth["R"].positives
    assert [rows.tolist() for rows in found] == [
        [row for row in range(12) if abs(row - i) <= 1] for i in range(12)
    ]
    manifest = read_manifest(tmp_path / "walk.json")
    assert manifest.folder == tmp_path / "walk"
    assert json.loads((tmp_path / "walk.json").read_text())["folder"] == "walk"


def test_nordlands_kind_of_ground_truth(photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(4):
        photo(f"line/database/{i}.jpg", seed=i)
        photo(f"line/queries/{i}.jpg", seed=50 + i)
    np.save(tmp_path / "line/positives.npy", np.array([[1], [0], [3], [2]]))
    run("line")
    found = open_set(Source(tmp_path / "manifests/line.json")).ground_truth["R"].positives
    assert [rows.tolist() for rows in found] == [[1], [0], [3], [2]]


def test_places_are_folders(photo, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    for place in ("castle", "tower"):
        for i in range(3):
            photo(f"scenes/{place}/{i}.jpg", seed=10 * len(place) + i)
    photo("scenes/alone/0.jpg", seed=99)
    run("scenes")
    assert "positions: folders; 3 places" in caplog.text
    assert "1 test: of 3 places, fewer than 2 photos in: alone" in caplog.text
    found = open_set(Source(tmp_path / "manifests/scenes.json")).ground_truth["R"].positives
    assert [rows.tolist() for rows in found] == [
        [],
        *([2, 3], [1, 3], [1, 2]),
        [5, 6],
        [4, 6],
        [4, 5],
    ]


def test_a_revisited_set(photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        photo(f"mini/jpg/d{i}.jpg", seed=i)
    entry = {"bbx": [0, 0, 20, 20], "easy": [1], "hard": [2], "junk": [0]}
    gnd = {"imlist": ["d0", "d1", "d2"], "qimlist": ["d0"], "gnd": [entry]}
    (tmp_path / "mini/gnd_mini.json").write_text(json.dumps(gnd))
    run("mini")
    photos = open_set(Source(tmp_path / "manifests/mini.json"))
    assert photos.ground_truth["M"].positives[0].tolist() == [1, 2]
    assert photos.query_boxes == [(0, 0, 20, 20)]


def test_nothing_is_known(photo, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    for i in range(3):
        photo(f"holiday/{i}.jpg", seed=i)
    run("holiday")
    assert "positions: none" in caplog.text
    photos = open_set(Source(tmp_path / "manifests/holiday.json"))
    assert photos.truth is None
    assert len(photos.queries) == 3


def test_splits_and_held_out_photos(street, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val", "test"):
        shutil.copytree(street, tmp_path / "city" / split)
    assert list(prepare(tmp_path / "city", PositivesConfig()).manifest.parts) == [
        "train", "val", "test"
    ]  # fmt: skip
    run("street --hold_out")
    manifest = read_manifest(tmp_path / "manifests/street.json")
    assert [len(part.database.paths) for part in manifest.parts.values()] == [21, 6]
    with pytest.raises(InputError, match="has parts already"):
        prepare(tmp_path / "city", PositivesConfig(), hold_out=True)
    with pytest.raises(InputError, match=r"street\.json has no test photos \(it has train, val\)"):
        open_set(Source(tmp_path / "manifests/street.json"))


# ---- the doctor


def test_a_sound_set_is_not_odd(street):
    assert found_in(street) == {}


def test_unreadable_photos_and_those_without_position_are_left_out(street):
    whole = (street / "03.jpg").read_bytes()
    (street / "03.jpg").write_bytes(whole[: len(whole) // 2])
    shot(street / "07.jpg", None)
    found = found_in(street)
    assert found == {"left out: unreadable": ["03.jpg"], "left out: no position": ["07.jpg"]}
    manifest, _ = prepare(street, PositivesConfig())
    assert len(manifest.parts["test"].database.paths) == 28


def test_duplicates_across_and_within(street, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "city" / split).mkdir(parents=True)
    for i, path in enumerate(sorted(street.iterdir())):
        shutil.copy(path, tmp_path / "city" / ("train" if i < 20 else "val") / path.name)
    shutil.copy(street / "04.jpg", tmp_path / "city/val/renamed.jpg")
    shutil.copy(street / "05.jpg", tmp_path / "city/train/again.jpg")
    found = found_in(tmp_path / "city")
    assert found["the same file in train and val"] == ["train/04.jpg"]
    assert found["the same file as another of train"] == ["train/again.jpg"]


def test_database_and_queries_that_share_a_photo(street, tmp_path):
    shutil.copytree(street, tmp_path / "set/database")
    (tmp_path / "set/queries").mkdir()
    shutil.copy(street / "11.jpg", tmp_path / "set/queries/q.jpg")
    found = found_in(tmp_path / "set")
    assert found == {"the same file in test database and test queries": ["database/11.jpg"]}


def test_photos_astray_and_queries_outside(street, tmp_path):
    shutil.copytree(street, tmp_path / "set/database")
    shot(tmp_path / "set/database/astray.jpg", north(60_000), 6.0)
    shot(tmp_path / "set/database/abroad.jpg", -33.0, 151.0)
    shot(tmp_path / "set/queries/inside.jpg", north(41), 6.0)
    shot(tmp_path / "set/queries/outside.jpg", north(-2000), 6.0)
    found = found_in(tmp_path / "set")
    astray = "test database: more than 10 times as far from the middle as most"
    assert found[astray] == ["database/abroad.jpg", "database/astray.jpg"]
    assert found["test queries: outside the database's area"] == ["queries/outside.jpg"]
    (without,) = (names for what, names in found.items() if "without a right answer" in what)
    assert without == ["queries/outside.jpg"]
    assert any("the nearest photo is 2000 m away" in what or "1999 m" in what for what in found)


def test_classes_that_are_too_small(street):
    assert found_in(street, hold_out=True, positive_dist_threshold=22.0) == {}
    for path in sorted(street.iterdir())[:2]:  # of the three at the first place
        path.unlink()
    found = found_in(street, hold_out=True, positive_dist_threshold=22.0)
    (names,) = found.values()
    assert names == ["02.jpg"]
    assert "of fewer than 3 photos" in next(iter(found))


# ---- the manifest


def saved(street, tmp_path) -> dict:
    manifest, _ = prepare(street, PositivesConfig())
    manifest.save(tmp_path / "m.json")
    return json.loads((tmp_path / "m.json").read_text())


def test_a_manifest_is_read_as_it_was_written(street, tmp_path):
    shot(street / "31.jpg", None)
    written, _ = prepare(street, PositivesConfig(positive_dist_threshold=12))
    written.save(tmp_path / "m.json")
    again = read_manifest(tmp_path / "m.json")
    assert (again.folder, again.right, again.left_out) == (
        written.folder, written.right, {"31.jpg": "no position"}
    )  # fmt: skip
    one, other = again.parts["test"].database, written.parts["test"].database
    assert one.paths == other.paths
    np.testing.assert_array_equal(one.taken.positions.utm, other.taken.positions.utm)
    np.testing.assert_array_equal(one.taken.positions.heading, other.taken.positions.heading)
    lines = (tmp_path / "m.json").read_text().splitlines()
    assert sum('"path"' in line for line in lines) == 30  # a line each


def test_a_folder_that_moves_with_its_manifest(street, tmp_path):
    saved(street, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    street.rename(tmp_path / "elsewhere/street")
    with pytest.raises(InputError, match="names 30 photos that are missing"):
        open_set(Source(tmp_path / "m.json"))
    (tmp_path / "m.json").rename(tmp_path / "elsewhere/m.json")
    assert len(open_set(Source(tmp_path / "elsewhere/m.json")).database) == 30


@pytest.mark.parametrize(
    "breaks",
    [
        lambda content: content.pop("parts"),
        lambda content: content.update(version=2),
        lambda content: content["parts"]["test"]["database"][0].pop("east"),
        lambda content: content["parts"]["test"]["database"][0].update(north="x"),
        lambda content: content["parts"]["test"].update(kind="miles"),
        lambda content: content["right"].update(positive_dist_threshold=-1),
        lambda content: content["right"].update(unknown=1),
        lambda content: content.update(folder=None),
        lambda content: content.update(parts=[]),
    ],
)
def test_a_file_that_is_no_manifest_is_one_error(street, tmp_path, breaks):
    content = saved(street, tmp_path)
    breaks(content)
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"m\.json: no manifest.*AG/prepare\.py"):
        open_set(Source(tmp_path / "m.json"))


def test_flags_win_over_the_manifest_but_not_its_source(street, tmp_path):
    saved(street, tmp_path)
    far = Source(tmp_path / "m.json", positives=PositivesConfig(positive_dist_threshold=500))
    assert [len(rows) for rows in open_set(far).ground_truth["R"].positives] == [29] * 30
    with pytest.raises(InputError, match="--positions names: the manifest has them from exif"):
        open_set(Source(tmp_path / "m.json", positives=PositivesConfig(positions="names")))


@pytest.mark.parametrize("word", ["nowhere", "empty"])
def test_a_folder_without_photos_is_one_error(tmp_path, word):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=word):
        prepare(tmp_path / word, PositivesConfig())


# ---- the scripts


def test_scripts_take_the_manifest(street, tmp_path, monkeypatch):
    """Train on one, evaluate on another; the run folder opens again."""
    monkeypatch.chdir(tmp_path)
    run("street --hold_out --output train.json")
    run("street --output test.json --positive_dist_threshold 15")
    network = "--backbone resnet18 --fc_output_dim 16 --fm_reduction_dim 8 --num_workers 0"
    train(
        "--dataset_folder train.json --M 10 --N 1 --alpha 360 --L 1 --groups_num 1 "
        f"--min_images_per_class 2 {network} --pretrained none --epochs 1 --iterations_per_epoch 1 "
        "--batch_size 4 --image_size 32 --device cpu --lr 1e-3".split()
    )
    (folder,) = (tmp_path / "logs/default").iterdir()
    evaluate(
        f"--dataset_folder test.json --resume_model {folder}/best_model.pth --no_rerank "
        "--num_workers 0 --device cpu --save_dir test".split()
    )
    (folder,) = (tmp_path / "logs/test").iterdir()
    photos = Evaluation.open(folder).photos
    assert [len(rows) for rows in photos.ground_truth["R"].positives] == [2] * 30
    config = GroupConfig(M=10, N=1, alpha=360, L=1, groups_num=1, min_images_per_class=2)
    by_file = load_groups(Source(tmp_path / "train.json", split="train"), config, tmp_path / "c")
    by_folder = load_groups(Source(street, split="train"), config, tmp_path / "c")
    assert by_file[0] == by_folder[0]
    for one, other in zip(by_file[1][0].classes, by_folder[1][0].classes, strict=True):
        np.testing.assert_array_equal(one, other)


# ---- real photos


@pytest.mark.parametrize(
    ("words", "source", "median"),
    [
        ("gps_walk", "exif", 6),
        ("campus --positive_angle 45", "names", 2),
        ("corridor --frame_tolerance 2", "frames", 5),
        ("scenes", "folders", 9),
        ("mini_rparis", "auto", 45.5),
    ],
)
def test_real_sets_by_one_command(real_photos, tmp_path, monkeypatch, words, source, median):
    monkeypatch.chdir(tmp_path)
    run(f"{real_photos}/{words}")
    file = tmp_path / f"manifests/{words.split()[0]}.json"
    manifest: Manifest = read_manifest(file)
    assert manifest.right.positions == source
    photos = open_set(Source(file))
    assert np.median([len(rows) for rows in photos.truth.positives]) == pytest.approx(median, abs=1)
    assert file.with_suffix(".png").stat().st_size > 10_000


def test_the_real_campus_agrees_with_its_list(real_photos, tmp_path):
    manifest, listed = prepare(real_photos / "campus", PositivesConfig(positive_angle=45))
    by_names = open_part(manifest, Source(tmp_path / "m.json"))
    campus = real_photos / "campus"
    source = Source(
        None, campus / "database", campus / "queries", positives_file=campus / "positives.csv"
    )
    assert listed == campus / "positives.csv"
    for one, other in zip(by_names.truth.positives, open_set(source).truth.positives, strict=True):
        np.testing.assert_array_equal(one, other)
