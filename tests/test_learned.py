"""Learned extractors by the command that makes SIFT features; skipped without their packages."""

import importlib.util
import sys

import cv2
import numpy as np
import pytest
import torch

from retrieval import verification
from retrieval.configs.describe import LearnedConfig, SiftConfig
from retrieval.errors import InputError
from retrieval.feature_folders import find_store
from voc_tree.learned import EXTRACTORS, Learned
from voc_tree.SIFT import get_descriptor

CPU = torch.device("cpu")


def with_package(name):
    there = importlib.util.find_spec(EXTRACTORS[name].package) is not None
    return pytest.param(name, marks=pytest.mark.skipif(not there, reason="optional packages"))


each_extractor = pytest.mark.parametrize("name", [with_package(each) for each in EXTRACTORS])


@pytest.fixture(scope="module")
def wall():
    """A painted wall (160, 224, 3) uint8."""
    rng = np.random.default_rng(0)
    picture = np.full((160, 224, 3), 128, np.uint8)
    for _ in range(60):
        corner, size = rng.integers(0, (200, 140)), rng.integers(8, 50, 2)
        colour = rng.integers(0, 256, 3).tolist()
        cv2.rectangle(picture, corner.tolist(), (corner + size).tolist(), colour, -1)
    return cv2.GaussianBlur(picture, (0, 0), 1)


@each_extractor
def test_features_are_those_of_the_table(name, wall):
    found = Learned(LearnedConfig(name, 50), CPU)(wall)
    assert 20 < len(found) <= 50
    assert found.descriptors.shape[1] == EXTRACTORS[name].dimensions
    assert np.allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-4)
    assert (np.diff(found.scores) <= 0).all()
    assert found.image_size == (224, 160)
    assert (found.keypoints >= 0).all()
    assert (found.keypoints <= (223, 159)).all()


@each_extractor
def test_a_shifted_photo_matches_where_it_was_shifted_to(name, wall):
    # By a multiple of all strides, so that a keypoint's place is told to the pixel.
    extractor = Learned(LearnedConfig(name, 200), CPU)
    pair = verification.match(extractor(wall), extractor(np.roll(wall, (0, -32), (0, 1))[:, :192]))
    moved = (
        pair.database.keypoints[pair.matches[:, 1]] - pair.query.keypoints[pair.matches[:, 0]]
    )[pair.inliers]
    assert len(moved) > 20
    assert np.allclose(np.median(moved, axis=0), (-32, 0), atol=0.2)


@each_extractor
def test_photos_of_a_few_pixels_are_described(name):
    for height, width in ((1, 1), (5, 90), (33, 40)):
        pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
        found = Learned(LearnedConfig(name, 50), CPU)(pixels)
        assert (found.keypoints <= (width - 0.5, height - 0.5)).all()
        assert found.image_size == (width, height)


@each_extractor
def test_the_command_fills_a_store(name, wall, tmp_path, capsys):
    for part in ("photos", "queries"):
        (tmp_path / part).mkdir()
        cv2.imwrite(str(tmp_path / part / f"{part}.png"), wall)
    folders = ["--database_folder", tmp_path / "photos", "--queries_folder", tmp_path / "queries"]
    flags = ["--no_labels", "--extractor", name, "--longest_side", "112", "--max_features", "40"]
    get_descriptor.main([*map(str, [tmp_path / "features", *folders]), *flags])
    store = find_store(tmp_path / f"features/{name}_40_112px" / tmp_path.name)
    assert store.made_by.extractor == name
    assert store.made_by.settings == {"extractor": name, "feature_num": 40, "longest_side": 112}
    for photo in store.names():
        found = store[photo]
        assert len(found) > 10
        assert (found.image_size, found.unit, found.scales) == ((224, 160), 2.0, None)
        assert found.keypoints.max() > 112  # in pixels of the photo
    assert capsys.readouterr().out == ""  # what the packages print


@pytest.mark.parametrize("name", EXTRACTORS)
def test_a_missing_package_is_named_with_its_remedy(name, monkeypatch):
    package = EXTRACTORS[name].package
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"--no-deps {package.replace('_', '-')}"):
        Learned(LearnedConfig(name), CPU)


@each_extractor
def test_damaged_weights_are_told(name, monkeypatch):
    def damaged(*_, **__):
        raise RuntimeError("PytorchStreamReader failed")

    monkeypatch.setattr(torch, "load", damaged)
    with pytest.raises(InputError, match="cannot be read"):
        Learned(LearnedConfig(name), CPU)


def test_flags_of_sift_are_refused():
    with pytest.raises(InputError, match="--extractor xfeat and --upright exclude each other"):
        get_descriptor.main(["features", "--extractor", "xfeat", "--upright"])


def test_folders_are_named_alike():
    assert LearnedConfig("disk").directory == "disk"
    assert LearnedConfig("disk", 9, 8).directory == "disk_9_8px"
    ours, theirs = LearnedConfig("disk"), SiftConfig()
    assert (ours.feature_num, ours.longest_side) == (theirs.feature_num, theirs.longest_side)
