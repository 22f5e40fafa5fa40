import numpy as np
import pytest

from make_toy_sfm import main
from retrieval.data.images import image_size
from retrieval.data.photo_sets import open_revisited
from retrieval.data.sfm_pairs import read_pairs
from retrieval.errors import InputError
from toy_city.config import ToySfmConfig
from toy_city.sfm import EASY_ANGLE, make_toy_sfm, photograph

TINY = ToySfmConfig(
    image_size=64, train_streets=1, val_streets=1, test_streets=1, images_per_landmark=4
)


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    folder = tmp_path_factory.mktemp("town") / "data"
    assert make_toy_sfm(folder, TINY, ["toytown"])
    return folder


def test_pairs_show_one_landmark(town):
    train = read_pairs(town / "train" / "retrieval-SfM-120k", "train")
    assert len(train.paths) == 4 * len(set(train.clusters))
    assert np.array_equal(train.clusters[train.queries], train.clusters[train.positives])
    assert not np.any(train.queries == train.positives)
    val = read_pairs(town / "train" / "retrieval-SfM-120k", "val")
    assert {path.name for path in train.paths}.isdisjoint(path.name for path in val.paths)
    whiten = read_pairs(town / "train" / "retrieval-SfM-120k", "whiten")
    assert np.array_equal(whiten.queries, train.queries)


def test_the_test_set_is_in_the_revisited_form(town):
    photos = open_revisited(town / "test" / "toytown")
    assert set(photos.ground_truth) == {"E", "M", "H"}
    assert len(photos.database) == 4 * len(photos.queries)
    for path, (left, top, right, bottom) in zip(photos.queries, photos.query_boxes, strict=True):
        width, height = image_size(path)
        assert max(width, height) == 64
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    # A query's positives are photos of its landmark or of the same street's next ones.
    medium = photos.ground_truth["M"]
    assert sum(map(len, medium.positives)) > 2 * len(photos.queries)
    for query, rows in zip(photos.queries, medium.positives, strict=True):
        street = query.name.split("_")[1]
        assert all(photos.database[row].name.split("_")[1] == street for row in rows)


def test_easy_positives_are_seen_from_near_the_query(town):
    photos = photograph(TINY, 2, 0)
    queries = [photo for photo in photos if photo.is_query]
    database = [photo for photo in photos if not photo.is_query]
    easy = open_revisited(town / "test" / "toytown").ground_truth["E"].positives
    for query, rows in zip(queries, easy, strict=True):
        own = query.landmark
        turned = [abs(database[row].bearings[own] - query.bearings[own]) for row in rows]
        assert max(turned, default=0) <= EASY_ANGLE


def test_a_town_is_written_once_and_nothing_is_overwritten(town, tmp_path):
    assert not make_toy_sfm(town, TINY, ["toytown"])
    with pytest.raises(InputError, match="holds something else"):
        make_toy_sfm(town, TINY, ["another"])
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="holds something else"):
        make_toy_sfm(tmp_path, TINY, ["toytown"])
    with pytest.raises(InputError, match="--num_workers 0"):
        main([str(tmp_path / "new"), "--workers", "0"])
    with pytest.raises(InputError, match="--images_per_landmark 1"):
        main([str(tmp_path / "new"), "--images_per_landmark", "1"])
