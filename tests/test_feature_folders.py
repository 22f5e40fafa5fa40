"""Where features and their photo set are found, and what is said when they are not."""

import json

import numpy as np
import pytest
from PIL import Image

from retrieval import feature_folders
from retrieval.data.photo_sets import PhotoSet, contents, open_revisited
from retrieval.errors import InputError
from retrieval.feature_folders import (
    check_complete,
    features_of_set,
    find_store,
    made_from,
    open_features,
    open_store,
    point_to,
    stored_features,
)
from retrieval.features import FeatureStore, LocalFeatures

GND = {"easy": [0], "hard": [], "junk": [], "bbx": [0, 0, 8, 8]}


def features(seed):
    vectors = np.random.default_rng(seed).normal(size=(2, 4))
    return LocalFeatures(np.zeros((2, 2)), vectors, np.ones(2), (8, 8))


@pytest.fixture
def photos(photo, tmp_path):
    """A revisited set of two queries with one photo and two database photos."""
    for name in ("q", "a", "b"):
        photo(f"data/test/one/jpg/{name}.jpg", (8, 8))
    gnd = {"imlist": ["a", "b"], "qimlist": ["q", "q"], "gnd": [GND, GND]}
    (tmp_path / "data/test/one/gnd_one.json").write_text(json.dumps(gnd))
    return open_revisited(tmp_path / "data/test/one")


@pytest.fixture
def root(tmp_path, photos):
    """A folder of features of that set."""
    root = tmp_path / "features" / "sift"
    store = FeatureStore.open(root / "one", made_from(photos, "sift", {"feature_num": 2}))
    with store.writer() as writer:
        for seed, each in enumerate([*photos.query_photos, *photos.database_photos]):
            writer.put(each.name, features(seed))
    point_to(store)
    return root


def test_what_is_written_is_read(root, photos):
    opened, found = open_features(root, "one")
    assert opened.fingerprint() == photos.fingerprint()
    assert found.store.made_by.extractor == "sift"
    assert found.store.made_by.settings == {"feature_num": 2}
    assert found.store.dimensions == 4
    check_complete(found)
    assert len(found.queries) == len(found.database) == 2
    expected = features(1).descriptors.astype(np.float16)
    np.testing.assert_array_equal(found.queries[1].descriptors, expected)
    assert [len(each) for each in found.database[1:]] == [2]


def test_a_photo_searched_with_two_boxes_has_two_names(photos):
    assert [each.name for each in photos.query_photos] == ["query/q.jpg", "query/q.jpg#2"]


def test_a_store_is_found_by_itself_and_by_its_pointer(root):
    store = find_store(root / "one")
    assert find_store(store.folder).folder == store.folder
    photos, found = open_features(store.folder)
    assert photos.name == "one"
    assert len(found.database[0]) == 2
    with pytest.raises(InputError, match=r"holds no local features.*there are one"):
        find_store(root)


def test_the_photos_may_have_gone(root, photos):
    for path in photos.queries:
        path.unlink(missing_ok=True)
    opened, _ = open_features(root, "one")
    assert len(opened.queries) == 2


def test_missing_features_are_told_with_what_is_there(root):
    with pytest.raises(InputError, match="no features of 'two'; there are one"):
        open_features(root, "two")
    with pytest.raises(InputError, match=r"no such folder.*there are sift"):
        open_features(root.parent / "sft", "one")


def test_a_photo_without_features_is_empty_or_an_error(root, photos):
    settings = made_from(photos, "sift", {"other": 1})
    store = FeatureStore.open(root / "one", settings)
    with store.writer() as writer:
        writer.put("query/q.jpg", features(0))
    found = features_of_set(photos, store)
    assert len(found.queries[0]) == 2
    assert len(found.queries[1]) == len(found.database[0]) == 0
    assert found.database.missing([1]) == ["database/b.jpg"]
    with pytest.raises(InputError, match=r"no features of 3 of 4 photos \(the first is query/q"):
        check_complete(found)
    stored_features(photos, store)
    heads = np.array([[1], [-1]])  # database/b.jpg is to be verified, and has no features
    with pytest.raises(InputError, match=r"no features of 1 of 4 photos .*database/b\.jpg"):
        stored_features(photos, store, heads)


def test_features_of_other_photos_are_refused(root, photos, photo):
    store = find_store(root / "one")
    stored_features(photos, store)
    photo("data/test/one/jpg/a.jpg", (16, 8), seed=5)
    changed = open_revisited(photos.folder.parent)
    with pytest.raises(InputError, match=r"features of other photos \(.*one\), or .* changed"):
        stored_features(changed, store)


def test_missing_ground_truth(root, photos):
    (photos.folder.parent / "gnd_one.json").unlink()
    with pytest.raises(InputError, match="queries"):
        open_features(root, "one")


def test_a_damaged_file(root):
    path = root / "one" / "store.json"
    content = json.loads(path.read_text())
    path.write_text("{")
    with pytest.raises(InputError, match="damaged"):
        open_features(root, "one")
    path.write_text(json.dumps(content | {"store": "gone"}))
    with pytest.raises(InputError, match="gone, which is missing"):
        open_features(root, "one")


def test_a_source_survives_json(photos):
    told = json.loads(json.dumps(feature_folders.source_as_json(photos.source)))
    assert feature_folders.source_from_json(told) == photos.source


def fill(photos, folder) -> list[str]:
    """Put features of all photos that the store lacks; their names."""
    store = open_store(photos, "sift", {"feature_num": 2}, folder)
    every = [*photos.query_photos, *photos.database_photos]
    missing = [photo for photo in every if photo.name not in store]
    with store.writer() as writer:
        for photo, content in zip(missing, contents(missing), strict=True):
            writer.put(photo.name, features(abs(hash(content))), content)
    return [photo.name for photo in missing]


def test_a_photo_that_changed_is_extracted_again_alone(photos, photo, tmp_path):
    folder = tmp_path / "features"
    names = ["query/q.jpg", "query/q.jpg#2", "database/a.jpg", "database/b.jpg"]
    assert fill(photos, folder) == names
    assert fill(photos, folder) == []
    photo("data/test/one/jpg/a.jpg", (8, 8), 7)
    changed = open_revisited(tmp_path / "data/test/one")
    assert fill(changed, folder) == ["database/a.jpg"]


def test_photos_that_changed_their_names_are_noticed(photo, tmp_path):
    for seed, name in enumerate(("q", "a", "b")):
        Image.fromarray(np.full((8, 8, 3), seed, np.uint8)).save(tmp_path / f"{name}.bmp")
    photos = PhotoSet(tmp_path, [tmp_path / "q.bmp"], [tmp_path / "a.bmp", tmp_path / "b.bmp"])
    before = photos.fingerprint()
    assert fill(photos, tmp_path / "features") == [
        "query/q.bmp",
        "database/a.bmp",
        "database/b.bmp",
    ]
    (tmp_path / "a.bmp").rename(tmp_path / "c.bmp")
    (tmp_path / "b.bmp").rename(tmp_path / "a.bmp")
    (tmp_path / "c.bmp").rename(tmp_path / "b.bmp")
    assert photos.fingerprint() != before
    assert fill(photos, tmp_path / "features") == ["database/a.bmp", "database/b.bmp"]
