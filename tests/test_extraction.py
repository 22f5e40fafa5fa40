import numpy as np
import pytest
import torch
from PIL import Image

from retrieval import extraction, progress
from retrieval.configs.describe import DelgConfig, ExtractConfig
from retrieval.configs.run import Resources
from retrieval.data.photo_sets import Photo, as_photos
from retrieval.errors import InputError
from retrieval.features import FeatureStore, MadeBy
from retrieval.networks.delg import Delg
from retrieval.verification import match
from retrieval.whitening import Projection


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = DelgConfig(fc_output_dim=16, attention="norm", norm_window=1)
    return Delg(config, "none").eval()


def config(**fields):
    return ExtractConfig(**{"precision": "fp32", **fields})


HERE = Resources(num_workers=0)


def describe(model, paths, setting, resources=HERE):
    return extraction.global_descriptors(model, as_photos(paths), setting, resources)


def one_batch(path, setting, box=None):
    return next(iter(extraction.load_batches([Photo(path, "a", box)], setting, HERE)))


def test_rows_follow_the_paths_whatever_the_sizes_and_batches(model, photo):
    sizes = [(64, 48), (96, 64), (64, 48), (48, 64), (96, 64)]
    paths = [photo(f"{i}.png", size, i) for i, size in enumerate(sizes)]
    together = describe(model, paths, config(), Resources(num_workers=0, infer_batch_size=2))
    for row, path in enumerate(paths):
        alone = describe(model, [path], config())
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_workers_change_nothing(model, photo):
    paths = [photo(f"{i}.png", seed=i) for i in range(3)]
    alone = describe(model, paths, config())
    shared = describe(model, paths, config(), Resources(num_workers=2))
    np.testing.assert_array_equal(alone, shared)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batches_and_threads_move_features_by_rounding_alone(model, photo, precision):
    """The bounds that docs/rely.md gives, for descriptors of unit norm."""
    photos = as_photos([photo(f"{i}.png", (96, 64), seed=i) for i in range(5)])
    setting = config(precision=precision)
    found = []
    for batch, threads in ((1, 1), (2, 1), (5, 1), (5, 2)):
        torch.set_num_threads(threads)
        resources = Resources(num_workers=0, infer_batch_size=batch)
        descriptors = extraction.global_descriptors(model, photos, setting, resources)
        local = extraction.local_descriptors(model, photos, setting, resources)
        found.append((descriptors, local / np.linalg.norm(local, axis=1, keepdims=True)))
    for descriptors, local in found[1:]:
        np.testing.assert_allclose(descriptors, found[0][0], atol=1e-6)
        np.testing.assert_allclose(local, found[0][1], atol=1e-6)


def test_several_scales_are_averaged_and_normalised(model, photo):
    path = photo("a.png", (96, 64))
    found = describe(model, [path], config(scales=(0.5, 1.0)))[0]
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    half = torch.nn.functional.interpolate(pixels, (32, 48), mode="bilinear", antialias=True)
    with torch.no_grad():
        total = sum(model.global_descriptors(x)[0] for x in (pixels, half))
    np.testing.assert_allclose(found, total / total.norm(), atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "full", "part", "expected"),
    [
        ({}, (640, 480), (640, 480), (640, 480)),
        ({"resize": "shorter", "size": 240}, (640, 480), (640, 480), (320, 240)),
        ({"resize": "longest", "size": 320}, (640, 480), (640, 480), (320, 240)),
        ({"resize": "longest", "size": 1024}, (640, 480), (640, 480), (640, 480)),
        # a crop is scaled by the factor of its whole image
        ({"resize": "longest", "size": 320}, (640, 480), (100, 50), (50, 25)),
    ],
)
def test_target_sizes(fields, full, part, expected):
    assert ExtractConfig(**fields).target_size(full, part) == expected


@pytest.mark.parametrize("scale", [0.5, 2**-0.5, 1.0, 2**0.5, 2.0])
@pytest.mark.parametrize("at", [(200, 120), (72, 300)])
def test_the_keypoint_of_a_planted_patch_lies_on_it_at_every_scale(model, tmp_path, scale, at):
    # A bright noisy patch on grey: the strongest activation must be placed on it, whatever the
    # scale, within half of the cell's size in the original image.
    x, y = at
    image = np.full((400, 320, 3), 128, np.uint8)
    side = int(24 / scale)
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    patch = np.array(Image.fromarray(noise).resize((side, side), Image.Resampling.NEAREST))
    image[y - side // 2 : y - side // 2 + side, x - side // 2 : x - side // 2 + side] = patch
    path = tmp_path / "patch.png"
    Image.fromarray(image).save(path)
    batch = one_batch(path, config())
    with torch.no_grad():
        (found,) = extraction.local_features_of_batch(
            model, batch, config(local_scales=(scale,), max_features=400)
        )
    # The centre of the activation above the background, in pixels of the original image.
    background = np.median(found.scores)
    weight = np.clip(found.scores - background, 0, None) ** 2
    centre = (found.keypoints * weight[:, None]).sum(0) / weight.sum()
    assert np.abs(centre - (x, y)).max() <= 8 / scale
    np.testing.assert_allclose(found.scales, 16 / scale, rtol=0.02)
    assert found.image_size == (320, 400)


def test_keypoints_of_a_cropped_query_are_pixels_of_the_whole_image(model, photo):
    path = photo("a.png", (320, 256))
    setting = config(max_features=10_000)
    whole = one_batch(path, setting)
    crop = one_batch(path, setting, (64, 32, 320, 256))
    with torch.no_grad():
        (all_,) = extraction.local_features_of_batch(model, whole, setting)
        (part,) = extraction.local_features_of_batch(model, crop, setting)
    # Both grids have a stride of 16 and the crop begins at a multiple of it.
    places = {tuple(point) for point in np.round(all_.keypoints).astype(int)}
    assert {tuple(point) for point in np.round(part.keypoints).astype(int)} <= places
    assert part.keypoints.min(axis=0).tolist() == [64, 32]


def test_the_resolution_of_a_file_changes_no_inliers(model, tmp_path):
    """Two views of one scene, kept at ×1, ×½ and ×8 and described at one size."""
    scene = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8))
    scene = scene.resize((640, 480), Image.Resampling.BICUBIC)
    views = [scene.crop((0, 0, 480, 360)), scene.crop((40, 30, 520, 390))]
    setting = config(resize="longest", size=240, local_scales=(1.0, 1.41))
    counts = []
    for zoom in (1, 0.5, 8):
        found = []
        for name, view in zip(("a", "b"), views, strict=True):
            size = int(view.width * zoom), int(view.height * zoom)
            path = tmp_path / f"{name}{zoom}.png"
            view.resize(size, Image.Resampling.BILINEAR).save(path)
            with torch.no_grad():
                batch = one_batch(path, setting)
                found += extraction.local_features_of_batch(model, batch, setting)
        assert found[0].unit == pytest.approx(2 * zoom)
        counts.append(match(*found).num_inliers)
    assert counts == pytest.approx([counts[0]] * 3, rel=0.05)
    assert counts[0] > 100


def test_the_strongest_features_come_first_and_weak_ones_are_dropped(model, photo):
    batch = one_batch(photo("a.png", (128, 128)), config())
    with torch.no_grad():
        (found,) = extraction.local_features_of_batch(model, batch, config())
        least = float(np.median(found.scores))
        (strong,) = extraction.local_features_of_batch(model, batch, config(min_score=least))
    assert (np.diff(found.scores) <= 0).all()
    assert strong.scores.min() >= least
    assert 0 < len(strong) < len(found) == 64


def test_a_projection_is_applied_and_leaves_unit_norm(model, photo):
    matrix = np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32)
    projection = Projection(np.full(256, 0.01, np.float32), matrix)
    batch = one_batch(photo("a.png"), config())
    with torch.no_grad():
        (plain,) = extraction.local_features_of_batch(model, batch, config())
        (found,) = extraction.local_features_of_batch(model, batch, config(), projection)
    slow = (plain.descriptors - 0.01) @ matrix
    slow /= np.linalg.norm(slow, axis=1, keepdims=True)
    np.testing.assert_allclose(found.descriptors, slow, atol=1e-4)


def test_features_in_the_store_are_not_extracted_again(model, photo, tmp_path):
    photos = as_photos([photo(f"{i}.png", seed=i) for i in range(3)])
    store = FeatureStore.open(tmp_path / "store", MadeBy("test", {}, {}))
    extraction.extract_local_features(model, photos[:1], store, config(), None, HERE)
    photos[0].path.unlink()  # it must not be read again
    with progress.bar("all", 3):
        bar = progress._open[-1]
        extraction.extract_local_features(model, photos, store, config(), None, HERE)
    assert store.names() == [each.name for each in photos]
    assert bar.done == 3


def test_broken_photos_end_the_run_or_are_left_out_with_a_warning(model, photo, caplog):
    paths = [photo(f"{i}.jpg", seed=i) for i in range(3)]
    paths[1].write_bytes(paths[1].read_bytes()[:-300])  # the header is sound, the pixels are cut
    with pytest.raises(InputError, match=r"1\.jpg") as raised:
        describe(model, paths, config())
    assert "--skip_bad_images" in str(raised.value)
    found = describe(model, paths, config(skip_bad_images=True))
    assert found.any(axis=1).tolist() == [True, False, True]
    (said,) = caplog.messages
    assert "1.jpg" in said


def test_photos_without_a_readable_header_are_skipped_or_listed(model, photo, tmp_path, caplog):
    paths = [photo("a.png"), tmp_path / "empty.jpg", tmp_path / "page.jpg", tmp_path / "link.jpg"]
    paths[1].touch()
    paths[2].write_text("<html>")
    paths[3].symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"3 photos could not be decoded(.|\n)*page\.jpg"):
        describe(model, paths, config())
    found = describe(model, paths, config(skip_bad_images=True))
    assert found.any(axis=1).tolist() == [True, False, False, False]
    assert sum("skipped" in line for line in caplog.messages) == 3


def test_a_box_outside_names_its_photo(photo):
    path = photo("a.png")
    with pytest.raises(InputError, match=r"a\.png: box .* holds no pixel"):
        one_batch(path, config(), (200, 200, 300, 300))


def test_large_photos_come_in_smaller_batches(photo):
    paths = [photo(f"{i}.png", (800, 625), i) for i in range(5)]
    resources = Resources(num_workers=0, infer_batch_size=2)
    sizes = [len(b.rows) for b in extraction.load_batches(as_photos(paths), config(), resources)]
    assert sizes == [2, 2, 1]
    paths = [photo(f"{i}.png", (2000, 1250), i) for i in range(3)]
    sizes = [len(b.rows) for b in extraction.load_batches(as_photos(paths), config(), resources)]
    assert sizes == [1, 1, 1]


def test_a_batch_that_fills_the_memory_is_halved(model, photo, caplog):
    """The memory holds two photos; what comes out is the same."""
    paths = [photo(f"{i}.png", seed=i) for i in range(5)]
    (batch,) = extraction.load_batches(as_photos(paths), config(), HERE)

    def describe_two(part):
        if len(part.rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return part.pixels.sum((1, 2, 3)).tolist()

    with torch.no_grad():
        found = list(extraction.in_memory(batch, describe_two))
    assert [row for part, _ in found for row in part.rows] == batch.rows
    assert [each for _, sums in found for each in sums] == batch.pixels.sum((1, 2, 3)).tolist()
    assert any("too much for the memory" in line for line in caplog.messages)

    def describe_none(part):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    with pytest.raises(InputError, match=r"0\.png: the memory is too small for its 64×48 pixels"):
        list(extraction.in_memory(batch, describe_none))
