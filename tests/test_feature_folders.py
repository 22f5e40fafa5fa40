"""Where features and their test set are found, and what is said when they are not."""

import json

import numpy as np
import pytest

from retrieval import feature_folders
from retrieval.errors import InputError
from retrieval.features import FeatureStore, LocalFeatures

FEATURES = LocalFeatures(np.zeros((2, 2)), np.ones((2, 4)), np.ones(2), (8, 8))


@pytest.fixture
def data(tmp_path):
    for place in ("test/one", "two"):
        (tmp_path / "data" / place / "jpg").mkdir(parents=True)
        (tmp_path / "data" / place / f"gnd_{place[-3:]}.json").write_text("{}")
    return tmp_path / "data"


@pytest.fixture
def root(tmp_path, data):
    root = tmp_path / "features" / "sift"
    store = FeatureStore.open(root / "one", {"a": 1})
    with store.writer() as writer:
        writer.put("query/x", FEATURES)
    folder = feature_folders.find_test_set(data, "one")
    feature_folders.write_feature_folder(root, "one", store, folder, {"a": 1})
    return root


def test_both_layouts_of_test_sets_are_found(data):
    assert feature_folders.find_test_set(data, "one") == data / "test" / "one"
    assert feature_folders.find_test_set(data, "two") == data / "two"
    with pytest.raises(InputError, match=r"no test set 'three'.*are one, two"):
        feature_folders.find_test_set(data, "three")
    with pytest.raises(InputError, match="there is nothing"):
        feature_folders.find_test_set(data / "none", "one")


def test_what_is_written_is_read(root, data):
    folder = feature_folders.open_feature_folder(root, "one")
    assert folder.store.ids() == ["query/x"]
    assert folder.gnd == (data / "test/one/gnd_one.json").resolve()
    assert folder.settings == {"a": 1}


def test_ids_have_no_extension():
    assert feature_folders.query_ids(["a.jpg", "b.c"]) == ["query/a", "query/b.c"]
    assert feature_folders.database_ids(["a"]) == ["database/a"]


def test_a_photo_searched_with_two_boxes_has_two_ids():
    assert feature_folders.query_ids(["a", "b", "a.jpg"]) == ["query/a", "query/b", "query/a#2"]


def test_missing_features_are_told_with_what_is_there(root):
    with pytest.raises(InputError, match="no features of 'two'; there are one"):
        feature_folders.open_feature_folder(root, "two")
    with pytest.raises(InputError, match=r"no such folder.*there are sift"):
        feature_folders.open_feature_folder(root.parent / "sft", "one")


def test_missing_ground_truth(root, data):
    (data / "test/one/gnd_one.json").unlink()
    with pytest.raises(InputError, match=r"no ground truth.*there are jpg"):
        feature_folders.open_feature_folder(root, "one")


def test_a_damaged_file(root):
    path = root / "one" / "store.json"
    content = json.loads(path.read_text())
    path.write_text("{")
    with pytest.raises(InputError, match="damaged"):
        feature_folders.open_feature_folder(root, "one")
    path.write_text(json.dumps(content | {"store": "gone"}))
    with pytest.raises(InputError, match="gone, which is missing"):
        feature_folders.open_feature_folder(root, "one")


def test_a_store_of_another_folder_is_refused(root, data):
    store = FeatureStore.open(root / "two", {"a": 1})
    with pytest.raises(ValueError, match="not opened in"):
        feature_folders.write_feature_folder(root, "one", store, data / "two", {})
