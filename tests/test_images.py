import contextlib
import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from retrieval.data import images
from retrieval.data.contents import content_hashes
from retrieval.data.images import ImageError
from retrieval.errors import InputError


def photo(width=64, height=48, seed=0):
    """A smooth random picture, so that JPEG keeps it nearly as it is."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp", ".jpg"])
def test_read_gives_rgb(tmp_path, suffix):
    pixels = photo()
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path, lossless=True, quality=95, subsampling=0)
    read = images.read_image(path)
    assert read.dtype == np.uint8
    assert read.flags.writeable
    assert np.abs(read.astype(int) - pixels).mean() < (3 if suffix == ".jpg" else 1e-9)
    assert images.image_size(path) == (64, 48)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_orientation_as_pillow_turns_it(tmp_path, suffix, orientation):
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo()).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(images.read_image(path), expected)
    assert images.image_size(path) == (expected.shape[1], expected.shape[0])
    reduced = images.read_image(path, longest_side=32)
    assert max(reduced.shape) == 32
    whole = images.resize(expected, (reduced.shape[1], reduced.shape[0])).astype(int)
    assert np.abs(reduced - whole).mean() < 4


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_other_modes_become_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image = Image.fromarray(photo()).convert(mode)
    image.save(path)
    expected = np.array(image.convert("RGB")).astype(int)
    assert np.abs(images.read_image(path) - expected).mean() < 4


def test_palette_with_transparency_and_sixteen_bits(tmp_path):
    Image.fromarray(photo()).convert("P").save(tmp_path / "p.png", transparency=b"\0\x80\xff")
    assert images.read_image(tmp_path / "p.png").shape == (48, 64, 3)
    grey = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
    assert grey.max() >= 1 << 15
    Image.fromarray(grey).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(images.read_image(tmp_path / "deep.png")[..., 1], grey >> 8)
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ImageError, match=r"float\.tif: 32-bit pixels"):
        images.read_image(tmp_path / "float.tif")


@pytest.mark.parametrize(
    ("size", "longest_side", "expected"),
    [
        ((400, 300), 100, (100, 75)),
        ((300, 401), 100, (75, 100)),
        ((400, 300), 399, (399, 299)),
        ((400, 300), 400, (400, 300)),
        ((40, 30), 100, (40, 30)),
        ((90, 1), 45, (45, 1)),
    ],
)
def test_longest_side(tmp_path, size, longest_side, expected):
    pixels = photo(*size)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95, subsampling=0)
    read = images.read_image(tmp_path / "a.jpg", longest_side)
    assert read.shape == (expected[1], expected[0], 3)
    assert np.abs(read - images.resize(pixels, expected).astype(int)).mean() < 3


def test_resize_averages_when_it_reduces():
    board = np.zeros((64, 64, 3), np.uint8)
    board[::2] = 200
    reduced = images.resize(board, (8, 16))
    assert reduced.shape == (16, 8, 3)
    assert np.abs(reduced.astype(int) - 100).max() <= 8


def test_normalize_takes_imagenets_mean_and_deviation():
    pixels = photo()
    tensor = images.normalize(torch.tensor(pixels).permute(2, 0, 1).float() / 255)
    assert tensor.shape == (3, 48, 64)
    expected = (pixels / 255.0 - images.MEAN) / images.STD
    np.testing.assert_allclose(tensor.permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_crop_rounds_and_clips():
    pixels = photo()
    np.testing.assert_array_equal(images.crop(pixels, [1.6, 2.4, 10.4, 9.6]), pixels[2:10, 2:10])
    np.testing.assert_array_equal(images.crop(pixels, (-5, -5, 1000, 20)), pixels[:20])
    for box in [(5, 5, 5, 9), (70, 0, 90, 10), (0, 0, float("nan"), 4), (1, 2, 3)]:
        with pytest.raises(InputError, match="box"):
            images.crop(pixels, box)


def test_list_images_is_recursive_sorted_and_blind_to_case(tmp_path):
    for name in ["b.JPG", "a.jpeg", "sub/c.PnG", "sub/.hidden.jpg", ".trash/d.jpg", "notes.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    found = images.list_images(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "a.jpeg",
        "b.JPG",
        "sub/c.PnG",
    ]


def test_list_images_follows_a_linked_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.tiff").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    assert images.list_images(tmp_path / "data") == [tmp_path / "data" / "link" / "a.tiff"]


def test_list_images_takes_both_of_two_links_to_one_folder_and_no_circle(tmp_path):
    for name in ("elsewhere", "other", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere" / "a.png").touch()
    (tmp_path / "elsewhere" / "on").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(tmp_path / "elsewhere")
    for name in ("one", "two"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere")
    found = images.list_images(tmp_path / "data")
    assert found == [tmp_path / "data" / name / "a.png" for name in ("one", "two")]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_named_pipe_is_no_photo(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    for read in (images.read_image, images.image_size):
        with pytest.raises(images.ImageError, match="pipe"):
            read(tmp_path / "x.jpg")
    assert content_hashes([tmp_path / "x.jpg"]) == [None]


def test_list_images_missing_or_empty(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        images.list_images(tmp_path / "nowhere")
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match=r"no images .*check the path"):
        images.list_images(tmp_path)


def test_bad_photos_are_found_before_long_work(tmp_path):
    for name in ("good.png", "cut.jpg"):
        Image.fromarray(photo()).save(tmp_path / name)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])  # its header is sound
    (tmp_path / "page.jpg").write_text("<html>")
    paths = [tmp_path / name for name in ("good.png", "page.jpg", "missing.jpg", "cut.jpg")]
    with pytest.raises(ImageError, match=r"page\.jpg.*2 of 4 photos.*--skip_bad_images"):
        images.check_photos(paths)
    with pytest.raises(ImageError, match=r"cut\.jpg.*1 of 2 photos"):
        images.check_photos(paths[:1], paths[3:])
    images.check_photos(paths[:1], paths[:1])
    images.check_photos([])


def test_missing_truncated_and_huge_files(tmp_path, monkeypatch):
    with pytest.raises(ImageError, match=r"none\.jpg"):
        images.read_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="unreadable image"):
        images.read_image(tmp_path)
    Image.fromarray(photo(200, 200)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"cut\.jpg.*truncated.*replace or remove"):
        images.read_image(tmp_path / "cut.jpg")
    Image.fromarray(photo(200, 200)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"a\.png.*more pixels than Pillow decodes"):
        images.read_image(tmp_path / "a.png")
    with pytest.raises(ImageError, match="more pixels than Pillow"):
        images.image_size(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_leaves_the_pixels(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\xff\xff garbage")
    assert images.read_image(tmp_path / "a.jpg").shape == (48, 64, 3)
    assert images.image_size(tmp_path / "a.jpg") == (64, 48)
    (tmp_path / "b.jpg").write_bytes(
        (tmp_path / "a.jpg").read_bytes().replace(b"MM\0*", struct.pack("4s", b"XX\0*"))
    )
    assert images.image_size(tmp_path / "b.jpg") == (64, 48)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_damaged_files_raise_nothing_but_image_error(tmp_path, form):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo()).save(buffer, form, exif=exif)
    whole = np.frombuffer(buffer.getvalue(), np.uint8)
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged"
    for trial in range(60):
        data = whole.copy()
        where = rng.integers(0, min(len(data), 400 if trial % 2 else len(data)), 6)
        data[where] = rng.integers(0, 256, 6)
        path.write_bytes(data[: rng.integers(1, len(data) + 1)] if trial % 3 == 0 else data)
        for read in (images.read_image, images.image_size):
            with contextlib.suppress(ImageError):
                read(path)


def test_real_photos_read_alike_with_and_without_draft():
    data = os.environ.get("DELG_DATA")
    folder = Path(data or "unset") / "mini_rparis" / "jpg"
    if not folder.is_dir():
        pytest.skip("DELG_DATA does not name a folder with mini_rparis/jpg")
    for path in images.list_images(folder)[:5]:
        whole = images.read_image(path)
        assert images.image_size(path) == (whole.shape[1], whole.shape[0])
        small = images.read_image(path, 256)
        plain = images.resize(whole, (small.shape[1], small.shape[0])).astype(int)
        assert np.abs(small - plain).mean() < 5


def test_only_the_listed_formats_are_decoded(tmp_path):
    for name, form in (("a.jpg", "EPS"), ("b.jpg", "GIF"), ("c.png", "PPM")):
        Image.fromarray(photo()).save(tmp_path / name, format=form)
        with pytest.raises(ImageError, match=f"cannot identify.*{name}"):
            images.read_image(tmp_path / name)
        with pytest.raises(ImageError, match=name):
            images.image_size(tmp_path / name)


def test_the_limit_is_on_what_is_decoded(tmp_path, monkeypatch):
    big = tmp_path / "big.jpg"
    Image.new("RGB", (15_000, 12_500), "red").save(big)  # 187 million pixels: Pillow refuses them
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # twice that is its limit
    assert images.image_size(big) == (15_000, 12_500)
    assert images.read_image(big, 1024).shape == (853, 1024, 3)
    with pytest.raises(
        ImageError, match=r"15000×12500 pixels, more than --max_pixels 128000000.*--longest_s"
    ):
        images.read_image(big)
    Image.new("L", (200, 200)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png"):
        images.read_image(tmp_path / "a.png", 10)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_that_hold_fewer_are_as_bright(tmp_path, bits, suffix):
    """Cameras for heat, depth and medicine fill 10 to 14 of 16 bits."""
    grey = photo()[..., 0].astype(np.uint16)
    grey[0, 0] = 255
    path = tmp_path / f"a{suffix}"
    Image.fromarray(grey << (bits - 8)).save(path)
    np.testing.assert_array_equal(images.read_image(path)[..., 1], grey)


def test_a_photo_that_is_as_narrow_as_none_is_refused(tmp_path):
    Image.fromarray(photo(3008, 2)).save(tmp_path / "strip.png")
    for read in (images.read_image, images.image_size):
        with pytest.raises(ImageError, match=r"strip\.png.*3008×2 pixels.*narrow"):
            read(tmp_path / "strip.png")


def test_photos_that_are_left_out_are_counted_aloud(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(images, "_reads_heif", lambda: False)
    for name in ("a.jpg", "b.HEIC", "sub/c.heic", "d.NEF", "notes.txt", "f.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for _ in range(2):
        assert images.list_images(tmp_path) == [tmp_path / "a.jpg"]
    (line,) = caplog.messages
    assert "2 .heic and 1 .nef are left out" in line
    assert "delg-delf[heic]" in line
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"no images.*2 \.heic .*delg-delf\[heic\]"):
        images.list_images(tmp_path)


def test_what_phones_write_is_read_where_the_decoder_is(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6  # a decoder of HEIF turns the photo itself, and EXIF's word is not for it
    Image.fromarray(photo()).save(tmp_path / "a.heic", quality=95, exif=exif)
    (path,) = images.list_images(tmp_path)
    read = images.read_image(path)
    assert images.image_size(path) == (read.shape[1], read.shape[0]) == (64, 48)
    assert np.abs(read.astype(int) - photo()).mean() < 10
