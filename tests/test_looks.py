"""Figures show what they say, at the right pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageColor
from tests.made_up import evaluation_of, set_features

from retrieval.configs.describe import DelgConfig, ExtractConfig
from retrieval.configs.rank import Geometry, MatchConfig, VerifyConfig
from retrieval.data import images
from retrieval.data.photo_sets import PhotoSet
from retrieval.data.positives import Positives
from retrieval.drawing import figures, looks, pictures
from retrieval.drawing.looks import DescribedPhoto
from retrieval.drawing.palette import RIGHT, WRONG
from retrieval.errors import InputError
from retrieval.extraction import describe
from retrieval.features import LocalFeatures
from retrieval.global_search import rerank
from retrieval.networks.delg import Delg
from retrieval.query_reranking import reranking_of

EXTRACT = ExtractConfig(precision="fp32")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = DelgConfig(fc_output_dim=16, attention="norm", norm_window=1)
    return Delg(config, "none").eval()


def save(path: Path, pixels: np.ndarray, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def picture_of(figure: Figure) -> np.ndarray:
    """The picture that a figure shows."""
    return np.asarray(figure.axes[0].images[0].get_array())


@pytest.mark.parametrize("size", [(320, 240), (250, 333)])
@pytest.mark.parametrize("patch", [(60, 60), (200, 180)])
def test_the_attention_map_lies_on_the_photo(model, tmp_path, size, patch):
    pixels = np.full((size[1], size[0], 3), 110, np.uint8)
    x, y = patch
    noise = np.random.default_rng(0).integers(0, 2, (24, 24, 3), np.uint8) * 255
    pixels[y - 12 : y + 12, x - 12 : x + 12] = noise
    path = save(tmp_path / "a.png", pixels)
    cells = looks.every_cell(model, path, EXTRACT)
    heat = pictures.heat_map(cells, pixels)
    hot = np.argwhere(heat > 0.9 * heat.max()).mean(axis=0)
    assert np.abs(hot - (y - 0.5, x - 0.5)).max() <= 16
    assert np.abs(cells.keypoints[0] - (x - 0.5, y - 0.5)).max() <= 16
    assert cells.keypoints.min(axis=0).tolist() == [0, 0]  # cells of 16 pixels, the first at 0
    assert set(cells.scales) == {16}
    assert len(cells) == -(-size[0] // 16) * -(-size[1] // 16)
    figure = looks.attention(model, path, EXTRACT, 5)
    assert figure.axes[0].get_title() == "photo, and its attention with the 5 strongest keypoints"
    low, high = figure.axes[1].get_ylim()
    np.testing.assert_allclose([low, high], pictures.score_range(cells), rtol=1e-6)


def stored(keypoints, size, seed=0) -> LocalFeatures:
    keypoints = np.array(keypoints, np.float32).reshape(-1, 2)
    rng = np.random.default_rng(seed)
    descriptors = rng.normal(size=(len(keypoints), 8)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    scores = np.linspace(1, 0.5, len(keypoints), dtype=np.float32)
    return LocalFeatures(keypoints, descriptors, scores, size, np.full(len(keypoints), 16.0))


def test_stored_attention_has_its_rings_on_the_strongest_keypoints(photo):
    features = stored([[200, 50], [40, 100], [120, 130]], (256, 160))
    path = photo("a.png", (256, 160))
    ringed, plain = (
        picture_of(looks.stored_attention(DescribedPhoto(path, features), count))
        for count in (2, 0)
    )
    panel = pictures.panel(path, 2)
    np.testing.assert_array_equal(plain[:, : panel.shape[1]], panel)
    changed = np.argwhere((ringed != plain).any(axis=2))[:, ::-1]  # x, y
    shift = plain.shape[1] - panel.shape[1]
    centres = pictures.scaled(features.keypoints[:2], (256, 160), panel) + (shift, 0)
    distances = np.linalg.norm(changed[:, None] - centres, axis=2)
    assert distances.min(axis=1).max() <= 17  # nothing is drawn elsewhere
    for centre in centres:
        around = changed[np.linalg.norm(changed - centre, axis=1) <= 17]
        np.testing.assert_allclose(around.mean(axis=0), centre, atol=0.6)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_keypoints_lie_on_the_photo_turned_upright(model, tmp_path, orientation):
    rng = np.random.default_rng(1)
    upright = rng.integers(0, 255, (96, 144, 3), np.uint8)
    turn = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]  # quarter turns that the camera made
    as_stored = np.ascontiguousarray(np.rot90(upright, turn))
    paths = [
        save(tmp_path / "upright.png", upright),
        save(tmp_path / "turned.png", as_stored, orientation),
    ]
    first, second = (looks.attention(model, path, EXTRACT, 9) for path in paths)
    np.testing.assert_array_equal(picture_of(first), picture_of(second))
    best = [describe(model, path, EXTRACT).features.keypoints[:9] for path in paths]
    np.testing.assert_array_equal(*best)


def test_matches_are_drawn_at_their_keypoints(photo):
    rng = np.random.default_rng(2)
    query = stored(rng.uniform(0, 150, (30, 2)), (200, 150))
    moved = query.keypoints * 1.2 + (5, 8)
    moved[24:] = rng.uniform(0, 150, (6, 2))  # wrong ones
    database = LocalFeatures(moved, query.descriptors, query.scores, (260, 200))
    photos = [
        DescribedPhoto(photo("q.png", (200, 150)), query),
        DescribedPhoto(photo("d.png", (260, 200)), database),
    ]
    figure = looks.matches(*photos, Geometry(None, MatchConfig(), VerifyConfig(residual=4)))
    (axis,) = figure.axes
    assert axis.get_title() == "24 inliers of 30 matches (affine, within 4 px)"
    legend = [text.get_text() for text in axis.get_legend().get_texts()]
    assert legend == ["24 inliers", "6 other matches"]
    picture = picture_of(figure).astype(int)
    left, right = (pictures.panel(each.path, 2) for each in photos)
    blue, orange = (np.array(ImageColor.getrgb(colour)) for colour in (RIGHT, WRONG))
    shift = picture.shape[1] - right.shape[1]
    ends = [
        pictures.scaled(query.keypoints, (200, 150), left),
        pictures.scaled(database.keypoints, (260, 200), right) + (shift, 0),
    ]
    for points in ends:
        x, y = np.rint(points[:24]).astype(int).T
        assert np.abs(picture[y, x] - blue).max() <= 40
    x, y = np.rint(np.concatenate([points[24:] for points in ends])).astype(int).T
    bare = picture_of(looks.matches(*photos, Geometry(1, MatchConfig(), VerifyConfig())))[y, x]
    veiled = 0.6 * bare + 0.4 * orange
    seen = np.abs(picture[y, x] - veiled).max(axis=1) <= 1  # where no inlier runs over it
    assert seen.sum() >= 8


def test_only_the_strongest_features_are_matched_if_that_is_how_it_was_ranked(photo):
    query = stored(np.random.default_rng(2).uniform(0, 150, (30, 2)), (200, 150))
    photos = [DescribedPhoto(photo(f"{name}.png", (200, 150)), query) for name in "qd"]
    figure = looks.matches(*photos, Geometry(12, MatchConfig(), VerifyConfig()))
    assert figure.axes[0].get_title().startswith("12 inliers of 12 matches")


def test_nothing_to_match_is_drawn_and_said(photo, tmp_path):
    nothing = stored([], (64, 48))
    paths = photo("a.png"), photo("b.png")
    geometry = Geometry(None, MatchConfig(), VerifyConfig())
    figure = looks.matches(*(DescribedPhoto(path, nothing) for path in paths), geometry)
    assert figure.axes[0].get_title() == "no matches"
    figures.save(figure, tmp_path / "matches.png")
    attention = looks.stored_attention(DescribedPhoto(paths[0], nothing))
    figures.save(attention, tmp_path / "attention.png")
    assert images.image_size(tmp_path / "attention.png")[0] > 300


@pytest.fixture
def city(photo):
    """Three queries; the positive of the first stands fourth, and has all the inliers."""
    rng = np.random.default_rng(3)
    scene = stored(rng.uniform(0, 60, (40, 2)), (64, 48))
    others = [stored(rng.uniform(0, 60, (40, 2)), (64, 48), seed) for seed in range(1, 7)]
    photos = PhotoSet(
        Path("/"),
        [photo(f"q{i}.png", seed=i) for i in range(3)],
        [photo(f"d{i}.png", seed=i) for i in range(6)],
        {"R": Positives([np.array([3, 5]), np.array([], np.int64), np.array([0])], [[]] * 3)},
    )
    ranking = np.tile(np.arange(5), (3, 1))
    ranking[2] = -1
    features = set_features(
        lambda row: scene, lambda row: scene if row == 3 else others[row], photos
    )
    none = np.zeros((3, 5), int)
    run = evaluation_of(photos, {"global": ranking}, num_inliers=none, features=features)
    return rerank(run, floor=8, verify=VerifyConfig(residual=2))


def test_one_query_reranked(city, tmp_path):
    found = reranking_of(city, 0)
    assert found.before.tolist() == [0, 1, 2, 3, 4]
    assert found.after.tolist() == [3, 0, 1, 2, 4]
    assert found.num_inliers.tolist()[3] == 40
    assert found.positives.tolist() == [3, 5]
    assert found.positive_ranks.tolist() == [[4, 1], [6, 6]]  # 5 is beyond
    assert found.recalls == {1: (0, 100), 5: (100, 100), 10: (100, 100), 20: (100, 100)}
    assert found.moves() == ["positive 3: 4 → 1", "positive 5: > 5 → > 5"]
    assert found.in_words().startswith("first positive 4 → 1; R@1 0 → 100, R@5 100 → 100")
    figure = looks.reranking(city.photos, 0, found)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:6] == ["before re-ranking", "✗ 1 → 2", "✗ 2 → 3", "✗ 3 → 4", "✓ 4 → 1", "✗ 5"]
    assert titles[6:8] == ["after re-ranking", "✓ 4 → 1"]
    assert len(figure.axes[-1].lines) == 2
    figures.save(figure, tmp_path / "rerank.png")


def test_a_query_without_positives_is_drawn_and_says_so(city, tmp_path):
    found = reranking_of(city, 1)
    assert found.in_words() == "no positives"
    figure = looks.reranking(city.photos, 1, found)
    assert figure.axes[-1].get_title() == "no positives"
    figures.save(figure, tmp_path / "rerank.png")


def test_queries_that_are_not_there(city):
    for query in (-1, 3):
        with pytest.raises(InputError, match=f"query {query}: expected a number from 0 to 2"):
            reranking_of(city, query)
    with pytest.raises(InputError, match="could not be read"):
        reranking_of(city, 2)


def test_of_the_positives_the_one_that_looks_alike_is_shown(photo):
    names = [f"@0@{row}@10@S@@@@@{heading}@@.png" for row, heading in enumerate((180, 350, 90))]
    database = [photo(name, seed=row + 1) for row, name in enumerate(names)]
    queries = [photo("@0@0@10@S@@@@@5@@@q.png"), photo("unnamed.png"), photo("alone.png")]
    truth = Positives([np.arange(3), np.array([2]), np.array([], np.int64)], [[]] * 3)
    figure = looks.positives(PhotoSet(Path("/"), queries, database, {"R": truth}), range(3))
    below = figure.axes[3:]
    assert [axis.get_title() for axis in below] == ["positive", "positive", "no positives"]
    for axis, row in zip(below[:2], (1, 2), strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), images.read_image(database[row]))


def test_junk_is_neither_right_nor_wrong_and_has_no_rank(city):
    photos = city.photos
    truth = {"M": Positives([np.array([3, 5])] * 3, [np.array([0])] * 3)}
    photos = replace(photos, ground_truth=truth)
    found = reranking_of(replace(city, photos=photos), 0)
    assert found.moves() == ["positive 3: 3 → 1", "positive 5: > 5 → > 5"]
    titles = [axis.get_title() for axis in looks.reranking(photos, 0, found).axes]
    assert titles[:5] == ["before re-ranking", "junk 1 → 2", "✗ 2 → 3", "✗ 3 → 4", "✓ 4 → 1"]


def test_without_labels_that_is_said(city):
    photos = city.photos
    photos = replace(photos, ground_truth={})
    found = reranking_of(replace(city, photos=photos), 0)
    assert found.in_words() == "no labels"
    assert looks.reranking(photos, 0, found).axes[-1].get_title() == "no labels"
    assert looks.positives(photos, [0]).axes[1].get_title() == "no labels"


def test_a_network_sees_the_box_alone(model, photo):
    path, box = photo("a.png", (320, 240)), (64, 80, 256, 200)
    for cells in (
        looks.every_cell(model, path, EXTRACT, box),
        describe(model, path, EXTRACT, box).features,
    ):
        x, y = cells.keypoints.T
        assert (x >= 63.5).all()
        assert (x <= 256).all()
        assert (y >= 79.5).all()
        assert (y <= 200).all()
    dense = looks.every_cell(model, path, EXTRACT, box)
    assert dense.keypoints.min(axis=0).tolist() == [64, 80]
