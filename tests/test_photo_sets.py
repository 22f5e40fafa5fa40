"""What is searched and with what."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from retrieval.configs.judge import PositivesConfig
from retrieval.data import images
from retrieval.data.photo_sets import (
    PhotoSet,
    Source,
    find_test_set,
    open_revisited,
    open_set,
)
from retrieval.errors import InputError


def name(east: float, north: float, heading: str = "") -> str:
    return f"@{east}@{north}@10@S@@@@@{heading}@@@@@@.png"


@pytest.fixture
def places(photo, tmp_path):
    """Three places 100 m apart, three database images each; queries 10 m beside."""
    for place in range(3):
        for i in range(3):
            photo(f"set/database/{name(100 * place, i)}", (96, 96), place)
        photo(f"set/queries/{name(100 * place + 10, 0)}", (96, 96), place)
    return tmp_path / "set"


def photos(folder: Path, name: bytes) -> PhotoSet:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
    try:
        path.write_bytes(b"photo")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    return PhotoSet(folder, [path], [path])


def test_a_fingerprint_stays_what_it_was(tmp_path):
    assert photos(tmp_path, "café.jpg".encode()).fingerprint() == "d3306616df96746e"


def test_a_file_name_need_not_be_utf8(tmp_path):
    names = (b"caf\xe9.jpg", b"caf\xe8.jpg", "café.jpg".encode())
    assert len({photos(tmp_path, name).fingerprint() for name in names}) == 3


def test_positives_of_a_split_are_those_within_the_distance(places):
    photos = open_set(Source(places, positives=PositivesConfig()))
    found = photos.ground_truth["R"].positives
    assert [rows.tolist() for rows in found] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    near = open_set(Source(places, positives=PositivesConfig(positive_dist_threshold=10.04)))
    assert [len(rows) for rows in near.ground_truth["R"].positives] == [1, 1, 1]


def test_two_folders_with_a_file_of_positives(places):
    database = sorted(path.name for path in (places / "database").iterdir())
    queries = sorted(path.name for path in (places / "queries").iterdir())
    file = places / "positives.json"
    file.write_text(json.dumps({query: [database[-1]] for query in queries}))
    photos = open_set(
        Source(database=places / "database", queries=places / "queries", positives_file=file)
    )
    assert [rows.tolist() for rows in photos.ground_truth["R"].positives] == [[8], [8], [8]]


def revisited(folder, photo):
    for i in range(4):
        photo(f"{folder}/jpg/d{i}.jpg", (64, 64), i // 2)
    photo(f"{folder}/jpg/q0.jpg", (64, 64), 1)
    return {
        "imlist": ["d0", "d1", "d2", "d3"],
        "qimlist": ["q0"],
        "gnd": [{"bbx": [8, 8, 64, 64], "easy": [2], "hard": [3], "junk": [0]}],
    }


def test_a_revisited_set_is_recognised(photo, tmp_path):
    gnd = revisited("mini", photo)
    (tmp_path / "mini" / "gnd_mini.json").write_text(json.dumps(gnd))
    photos = open_set(Source(dataset=tmp_path / "mini"))
    assert photos.query_boxes == [(8, 8, 64, 64)]
    assert photos.name == "mini"
    assert photos.protocol == "M"
    assert photos.truth is photos.ground_truth["M"]
    assert photos.query_photos[0].box == (8, 8, 64, 64)
    assert photos.database_photos[1].name == "database/d1.jpg"


def test_missing_images_of_a_revisited_set_are_named(photo, tmp_path):
    gnd = revisited("mini", photo)
    (tmp_path / "mini" / "gnd_mini.json").write_text(json.dumps(gnd))
    (tmp_path / "mini" / "jpg" / "d1.jpg").unlink()
    with pytest.raises(InputError, match=r"1 images that are missing.*d1\.jpg"):
        open_set(Source(dataset=tmp_path / "mini"))


def test_a_fingerprint_knows_the_photos_and_the_truth(places):
    photos = open_set(Source(places, positives=PositivesConfig()))
    before = photos.fingerprint()
    assert open_set(Source(places, positives=PositivesConfig())).fingerprint() == before
    other = open_set(Source(places, positives=PositivesConfig(positive_dist_threshold=10.04)))
    assert other.fingerprint() != before
    Image.new("RGB", (8, 8)).save(photos.database[0])
    assert open_set(Source(places, positives=PositivesConfig())).fingerprint() != before


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (lambda folder: (folder / "database").rename(folder / "photos"), "database"),
        (lambda folder: (folder / "queries").rename(folder / "q"), "no folder queries"),
        (lambda folder: [p.unlink() for p in (folder / "queries").iterdir()], "no images"),
        (lambda folder: next((folder / "queries").iterdir()).rename(folder / "queries/a.png"),
         "no coordinates"),
    ],
)  # fmt: skip
def test_a_broken_data_set_is_one_clear_error(places, breaks, message):
    breaks(places)
    with pytest.raises(InputError, match=message) as error:
        open_set(Source(places, positives=PositivesConfig()))
    assert str(places) in str(error.value)


def test_a_set_without_positions_is_told_what_to_do(photo, tmp_path):
    for seed, folder in enumerate(("db", "q")):
        photo(f"{folder}/holiday.png", seed=seed)
    source = Source(database=tmp_path / "db", queries=tmp_path / "q")
    with pytest.raises(InputError, match=r"no coordinates.*--positives FILE.*--no_labels"):
        open_set(source)
    photos = open_set(replace(source, labels=False))
    assert photos.protocol is photos.truth is None


def test_both_layouts_of_test_sets_are_found(tmp_path):
    for place in ("test/one", "two"):
        (tmp_path / place / "jpg").mkdir(parents=True)
        (tmp_path / place / f"gnd_{place[-3:]}.json").write_text("{}")
    assert find_test_set(tmp_path, "one") == tmp_path / "test" / "one"
    assert find_test_set(tmp_path, "two") == tmp_path / "two"
    with pytest.raises(InputError, match=r"no test set 'three'.*are one, two"):
        find_test_set(tmp_path, "three")
    with pytest.raises(InputError, match="there is nothing"):
        find_test_set(tmp_path / "none", "one")


@pytest.fixture
def with_selves(photo, tmp_path):
    """Three places; queries: two photos of the database themselves, and one of another."""
    for place in range(3):
        photo(f"db/@{100 * place}@0@.png", (16, 16), place)
    (tmp_path / "q").mkdir()
    (tmp_path / "q/@0@0@.png").symlink_to(tmp_path / "db/@0@0@.png")
    shutil.copy(tmp_path / "db/@100@0@.png", tmp_path / "q/@100@0@.png")
    photo("q/@0200@0@.png", (16, 16), 9)
    photo("q/@200@0@.png", (16, 16), 8)  # of the same name, but another photo
    return Source(database=tmp_path / "db", queries=tmp_path / "q")


def test_a_query_is_no_answer_to_itself(with_selves, caplog):
    photos = open_set(with_selves)
    assert photos.selves is not None
    assert [path.name for path in photos.queries] == [
        "@0200@0@.png", "@0@0@.png", "@100@0@.png", "@200@0@.png"
    ]  # fmt: skip
    assert [rows.tolist() for rows in photos.selves] == [[], [0], [1], []]
    assert photos.truth is not None
    assert [rows.tolist() for rows in photos.truth.positives] == [[2], [], [], [2]]
    assert [rows.tolist() for rows in photos.truth.junk] == [[], [0], [1], []]
    assert any("2 of 4 queries are in the database themselves" in each for each in caplog.messages)
    kept = open_set(replace(with_selves, keep_self=True))
    assert kept.selves is None
    assert kept.truth is not None
    assert [rows.tolist() for rows in kept.truth.positives] == [[2], [0], [1], [2]]


def test_labels_by_which_nothing_is_right_are_an_error(with_selves):
    nowhere = replace(with_selves, positives=PositivesConfig(1e-3))
    shutil.rmtree(with_selves.queries)
    (with_selves.queries).mkdir()
    (with_selves.queries / "@5000@0@.png").write_bytes(b"a photo")
    with pytest.raises(InputError, match=r"no query has a right answer.*--positive_dist_threshold"):
        open_set(nowhere)
    open_set(replace(nowhere, labels=False))


def test_names_of_revisited_sets_may_have_folders_and_any_ending(photo, tmp_path):
    names = ["a/d0.jpg", "b/d0.png", "c.JPG", "d.jpeg", "q/one.webp"]
    for seed, each in enumerate(names):
        photo(f"mine/jpg/{each}", seed=seed)
    imlist = ["a/d0", "b/d0", "c", "d.jpeg"]
    entry = {"bbx": None, "easy": [1], "hard": [], "junk": []}
    gnd = {"imlist": imlist, "qimlist": ["q/one", "q/one"], "gnd": [entry, entry]}
    file = tmp_path / "mine" / "gnd_mine.json"
    file.write_text(json.dumps(gnd))
    photos = open_revisited(tmp_path / "mine")
    assert [str(path.relative_to(tmp_path / "mine/jpg")) for path in photos.database] == names[:4]
    assert [each.name for each in photos.query_photos] == ["query/q/one.webp", "query/q/one.webp#2"]
    assert len({each.name for each in photos.database_photos}) == 4
    file.write_text(json.dumps({**gnd, "imlist": ["a/d0", "b/d0", "c", "a/d0"]}))
    with pytest.raises(InputError, match=r"gnd_mine\.json: 'a/d0' is 2 times in imlist"):
        open_revisited(tmp_path / "mine")


@pytest.mark.parametrize(("unit", "told"), [(1.0, False), (1e-3, True)])
def test_kilometres_for_metres_are_warned_of(photo, tmp_path, caplog, unit, told):
    for place in range(20):
        photo(f"database/{name(100 * place * unit, 0)}", seed=place)
    for place in range(4):
        photo(f"queries/{name((100 * place + 3) * unit, 0)}", seed=20 + place)
    images.warn_once.cache_clear()
    photos = open_set(Source(tmp_path, positives=PositivesConfig()))
    assert all(map(len, photos.ground_truth["R"].positives))
    assert ("right for 100 % of the queries" in caplog.text) is told
