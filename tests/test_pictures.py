"""Pictures have what is drawn on them at the right pixels."""

import numpy as np
import pytest

from retrieval.data import images
from retrieval.drawing import pictures
from retrieval.features import LocalFeatures
from retrieval.geometry import Verification
from retrieval.verification import Pair

NOTHING = LocalFeatures(
    np.empty((0, 2), np.float32), np.empty((0, 8), np.float32), np.empty(0, np.float32), (1, 1)
)


def test_thumbnails_show_the_box_of_a_query_and_stand_in_for_what_cannot_be_read(photo):
    path = photo("a.png", (400, 200))
    plain, boxed = pictures.thumbnail(path), pictures.thumbnail(path, (100, 50, 300, 150))
    changed = np.argwhere((plain != boxed).any(axis=2))
    low, high = changed.min(axis=0), changed.max(axis=0)  # rows, columns
    np.testing.assert_allclose([*low, *high], [32, 64, 96, 192], atol=3)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(images.ImageError):
        pictures.thumbnail(path)
    note = pictures.thumbnail_or_note(path)
    assert note.shape == (256, 256, 3)
    assert note.min() < 100 < note.max()


def test_points_are_scaled_about_pixel_corners():
    panel = np.zeros((240, 320, 3), np.uint8)  # five times 64×48
    points = pictures.scaled(np.array([[-0.5, -0.5], [63.5, 47.5], [0, 0]]), (64, 48), panel)
    assert points.tolist() == [[-0.5, -0.5], [319.5, 239.5], [2, 2]]


def test_the_heat_is_where_the_strong_features_are():
    photo = np.zeros((96, 128, 3), np.uint8)
    keypoints = np.array([[16, 24], [48, 24]], np.float32)
    scores = np.array([2, 1], np.float32)
    found = LocalFeatures(
        keypoints, np.eye(2, dtype=np.float32), scores, (64, 48), np.full(2, 8, np.float32)
    )
    heat = pictures.heat_map(found, photo)
    assert heat.shape == (96, 128)
    assert heat[49, 33] > 0.8
    assert 0.05 < heat[49, 97] < 0.2
    assert heat[5, 5] == 0
    assert pictures.heat_map(NOTHING, photo).max() == 0


def test_panels_are_as_large_as_a_page_takes(photo):
    wide, tall = photo("wide.png", (1000, 200)), photo("tall.png", (60, 200))
    assert pictures.panel(wide).shape == (88, 440, 3)
    assert pictures.panel(tall).shape == (560, 168, 3)
    assert pictures.panel(tall, enlarged=2).shape == (1120, 336, 3)


def test_lines_go_from_a_keypoint_to_its_match():
    photos = np.full((440, 440, 3), 110, np.uint8), np.full((330, 440, 3), 110, np.uint8)
    points = np.array([[20, 20], [20, 60]], np.float32)
    query, database = (
        LocalFeatures(points[order], np.eye(2, dtype=np.float32), np.ones(2, np.float32), size)
        for order, size in (([0, 1], (88, 88)), ([1, 0], (88, 66)))
    )
    pairs = np.array([[0, 1], [1, 0]])
    verified = Verification(1, np.array([True, False]), None)
    picture = pictures.matches(*photos, Pair(query, database, pairs, verified)).astype(int)
    assert picture.shape == (440, 888, 3)
    inlier, other = picture[102, 300], picture[302, 300]  # both lines are level
    assert inlier[2] > inlier[0] + 100  # blue
    assert other[0] > other[2] + 40  # orange
    apart = np.abs(picture - picture[200, 300]).max(axis=2)
    assert np.flatnonzero(apart[:, 300] > 9).tolist() == [*range(100, 105), *range(301, 304)]
    across = np.flatnonzero(apart[102, :440] > 9)
    assert abs(across[0] - 102) <= 5  # five times 20, and the dot


def test_without_matches_or_features_that_is_said():
    photo = np.full((440, 440, 3), 110, np.uint8)
    attention = pictures.attention(photo, NOTHING, NOTHING)
    assert (attention[:, :440] == photo).all()
    assert np.ptp(attention[:, 448:]) > 200
    unverified = Verification(0, np.empty(0, bool), None)
    nothing = Pair(NOTHING, NOTHING, np.empty((0, 2), int), unverified)
    assert np.ptp(pictures.matches(photo, photo, nothing)) > 200
