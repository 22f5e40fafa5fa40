"""Pictures show what they say, at the right pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from PIL import Image

from retrieval import query_reranking
from retrieval.configs.describe import DelgConfig, ExtractConfig
from retrieval.configs.rank import Geometry, MatchConfig, RerankConfig, VerifyConfig
from retrieval.data import images
from retrieval.data.photo_sets import PhotoSet
from retrieval.data.positives import Positives
from retrieval.drawing import figures, looks, thumbnails
from retrieval.drawing.looks import Photo
from retrieval.errors import InputError
from retrieval.evaluation import LocalSource, Ranked
from retrieval.features import LocalFeatures
from retrieval.networks.delg import Delg

EXTRACT = ExtractConfig(num_workers=0, precision="fp32")


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


def peak(figure: Figure) -> tuple[float, float]:
    """x, y in pixels of the photo of the heat map's maximum."""
    heat = figure.axes[1].images[1]
    array = np.asarray(heat.get_array())
    row, column = np.unravel_index(array.argmax(), array.shape)
    left, right, bottom, top = heat.get_extent()
    x = left + (column + 0.5) * (right - left) / array.shape[1]
    return x, top + (row + 0.5) * (bottom - top) / array.shape[0]


@pytest.mark.parametrize("size", [(320, 240), (250, 333)])
@pytest.mark.parametrize("patch", [(60, 60), (200, 180)])
def test_the_attention_map_lies_on_the_photo(model, tmp_path, size, patch):
    pixels = np.full((size[1], size[0], 3), 110, np.uint8)
    x, y = patch
    noise = np.random.default_rng(0).integers(0, 2, (24, 24, 3), np.uint8) * 255
    pixels[y - 12 : y + 12, x - 12 : x + 12] = noise
    figure = looks.attention(model, save(tmp_path / "a.png", pixels), EXTRACT, 5)
    found = peak(figure)
    assert abs(found[0] - (x - 0.5)) <= 16
    assert abs(found[1] - (y - 0.5)) <= 16
    left, right, bottom, top = figure.axes[1].images[1].get_extent()
    assert (left, top) == (-8, -8)  # cells of 16 pixels, the first about pixel 0
    assert right == left + 16 * figure.axes[1].images[1].get_array().shape[1]
    assert bottom == top + 16 * figure.axes[1].images[1].get_array().shape[0]


def stored(keypoints, size, seed=0) -> LocalFeatures:
    keypoints = np.array(keypoints, np.float32).reshape(-1, 2)
    rng = np.random.default_rng(seed)
    descriptors = rng.normal(size=(len(keypoints), 8)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    scores = np.linspace(1, 0.5, len(keypoints), dtype=np.float32)
    return LocalFeatures(keypoints, descriptors, scores, size, np.full(len(keypoints), 16.0))


def test_stored_attention_peaks_at_the_strongest_keypoint(tmp_path, photo):
    features = stored([[200, 50], [40, 100], [120, 130]], (256, 160))
    figure = looks.stored_attention(Photo(photo("a.png", (256, 160)), features), 2)
    assert np.hypot(*np.subtract(peak(figure), (200, 50))) <= 16
    (marks,) = (each for each in figure.axes[1].collections if isinstance(each, PathCollection))
    np.testing.assert_array_equal(marks.get_offsets(), features.keypoints[:2])


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
    for a, b in zip(first.axes[1].images, second.axes[1].images, strict=True):
        np.testing.assert_array_equal(a.get_array(), b.get_array())
    np.testing.assert_array_equal(
        first.axes[1].collections[0].get_offsets(), second.axes[1].collections[0].get_offsets()
    )


def lines(axis: Axes) -> dict[str, np.ndarray]:
    """The segments of each kind of match, (M, 2, 2), by their label's last word."""
    found = {}
    for each in axis.collections:
        if isinstance(each, LineCollection):
            kind = str(each.get_label()).split()[-1]
            found[kind] = np.array(each.get_segments()).reshape(-1, 2, 2)
    return found


def test_matches_are_drawn_at_their_keypoints(photo):
    rng = np.random.default_rng(2)
    query = stored(rng.uniform(0, 150, (30, 2)), (200, 150))
    moved = query.keypoints * 1.2 + (5, 8)
    moved[24:] = rng.uniform(0, 150, (6, 2))  # wrong ones
    database = LocalFeatures(moved, query.descriptors, query.scores, (260, 200))
    figure = looks.matches(
        Photo(photo("q.png", (200, 150)), query),
        Photo(photo("d.png", (260, 200)), database),
        Geometry(None, MatchConfig(), VerifyConfig(residual=4)),
    )
    (axis,) = figure.axes
    assert axis.get_title() == "24 inliers of 30 matches (affine, within 4 px)"
    found = lines(axis)
    assert len(found["inliers"]) == 24
    assert len(found["matches"]) == 6
    shift = 200 + 4  # the query's width and the gap
    np.testing.assert_allclose(found["inliers"][:, 0], query.keypoints[:24], rtol=1e-6)
    np.testing.assert_allclose(found["inliers"][:, 1], moved[:24] + (shift, 0), rtol=1e-6)
    canvas = np.asarray(axis.images[0].get_array())
    assert canvas.shape == (200, 464, 3)
    np.testing.assert_array_equal(canvas[:, shift:], images.read_image(photo("d.png", (260, 200))))


def test_only_the_strongest_features_are_matched_if_that_is_how_it_was_ranked(photo):
    query = stored(np.random.default_rng(2).uniform(0, 150, (30, 2)), (200, 150))
    photos = [Photo(photo(f"{name}.png", (200, 150)), query) for name in "qd"]
    figure = looks.matches(*photos, Geometry(12, MatchConfig(), VerifyConfig()))
    assert figure.axes[0].get_title().startswith("12 inliers of 12 matches")


def test_nothing_to_match_is_drawn_and_said(photo, tmp_path):
    nothing = stored([], (64, 48))
    paths = photo("a.png"), photo("b.png")
    geometry = Geometry(None, MatchConfig(), VerifyConfig())
    figure = looks.matches(*(Photo(path, nothing) for path in paths), geometry)
    assert figure.axes[0].get_title() == "no matches"
    figures.save(figure, tmp_path / "matches.png")
    figures.save(looks.stored_attention(Photo(paths[0], nothing)), tmp_path / "attention.png")
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
    ranked = Ranked(ranking, np.tile(-np.arange(5.0), (3, 1)), np.empty(0), np.empty(0))
    local = LocalSource(lambda row: scene, lambda row: scene if row == 3 else others[row])
    return photos, ranked, local


def test_one_query_reranked(city, tmp_path):
    strict = RerankConfig(floor=8, verify=VerifyConfig(residual=2), threads=1)
    found = query_reranking.rerank_query(*city, 0, strict)
    assert found.before.tolist() == [0, 1, 2, 3, 4]
    assert found.after.tolist() == [3, 0, 1, 2, 4]
    assert found.num_inliers.tolist()[3] == 40
    assert found.positives.tolist() == [3, 5]
    assert found.positive_ranks.tolist() == [[4, 1], [6, 6]]  # 5 is beyond
    assert found.recalls == {1: (0, 100), 5: (100, 100), 10: (100, 100), 20: (100, 100)}
    assert found.moves() == ["positive 3: 4 → 1", "positive 5: > 5 → > 5"]
    assert found.in_words().startswith("first positive 4 → 1; R@1 0 → 100, R@5 100 → 100")
    figure = looks.reranking(city[0], 0, found)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:6] == ["before", "✗ 1 → 2", "✗ 2 → 3", "✗ 3 → 4", "✓ 4 → 1", "✗ 5"]
    assert titles[6:8] == ["after", "✓ 4 → 1"]
    assert len(figure.axes[-1].lines) == 2
    figures.save(figure, tmp_path / "rerank.png")


def test_a_query_without_positives_is_drawn_and_says_so(city, tmp_path):
    found = query_reranking.rerank_query(*city, 1, RerankConfig(floor=0, threads=1))
    assert found.in_words() == "no positives"
    figure = looks.reranking(city[0], 1, found)
    assert figure.axes[-1].get_title() == "no positives"
    figures.save(figure, tmp_path / "rerank.png")


def test_queries_that_are_not_there(city):
    for query in (-1, 3):
        with pytest.raises(InputError, match=f"query {query}: expected a number from 0 to 2"):
            query_reranking.rerank_query(*city, query, RerankConfig(floor=0))
    with pytest.raises(InputError, match="could not be read"):
        query_reranking.rerank_query(*city, 2, RerankConfig(floor=0))


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
    photos, ranked, local = city
    truth = {"M": Positives([np.array([3])] * 3, [np.array([0, 5])] * 3)}
    photos = replace(photos, ground_truth=truth)
    strict = RerankConfig(floor=8, verify=VerifyConfig(residual=2), threads=1)
    found = query_reranking.rerank_query(photos, ranked, local, 0, strict)
    assert found.positive_ranks.tolist() == [[3, 1]]
    titles = [axis.get_title() for axis in looks.reranking(photos, 0, found).axes]
    assert titles[:5] == ["before", "junk 1 → 2", "✗ 2 → 3", "✗ 3 → 4", "✓ 4 → 1"]


def test_without_labels_that_is_said(city):
    photos, ranked, local = city
    photos = replace(photos, ground_truth={})
    found = query_reranking.rerank_query(photos, ranked, local, 0, RerankConfig(floor=0, threads=1))
    assert found.in_words() == "no labels"
    assert looks.reranking(photos, 0, found).axes[-1].get_title() == "no labels"
    assert looks.positives(photos, [0]).axes[1].get_title() == "no labels"


def test_thumbnails_show_the_box_of_a_query_and_stand_in_for_what_cannot_be_read(photo):
    path = photo("a.png", (400, 200))
    plain, boxed = thumbnails.thumbnail(path), thumbnails.thumbnail(path, (100, 50, 300, 150))
    changed = np.argwhere((plain != boxed).any(axis=2))
    low, high = changed.min(axis=0), changed.max(axis=0)  # rows, columns
    np.testing.assert_allclose([*low, *high], [32, 64, 96, 192], atol=3)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(images.ImageError):
        thumbnails.thumbnail(path)
    note = thumbnails.thumbnail_or_note(path)
    assert note.shape == (256, 256, 3)
    assert note.min() < 100 < note.max()


def test_a_network_sees_the_box_alone(model, photo):
    path = photo("a.png", (320, 240))
    figure = looks.attention(model, path, EXTRACT, 500, box=(64, 80, 256, 200))
    x, y = figure.axes[1].collections[0].get_offsets().T
    assert (x >= 63.5).all()
    assert (x <= 256).all()
    assert (y >= 79.5).all()
    assert (y <= 200).all()
    left, _, _, top = figure.axes[1].images[1].get_extent()
    assert (left, top) == (64 - 8, 80 - 8)
