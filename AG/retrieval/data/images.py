"""Image files to arrays: (H, W, 3) uint8 RGB, turned upright as their EXIF orientation says."""

import functools
import logging
import mimetypes
import os
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, JpegImagePlugin

from retrieval import progress
from retrieval.configs.describe import ExtractConfig
from retrieval.errors import InputError

Box = tuple[float, float, float, float]

log = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
# The decoders that are used, whatever a file is called: one of the others starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
# What phones write; the optional package pillow-heif reads it.
HEIF = (".heic", ".heif", ".hif")
# Photos that are counted where they are left out, beside all that `mimetypes` calls an image.
_RAW = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".avif", ".jp2", ".jxl")
# Sides longer than so many times the other: no camera makes such photos, and a resizing that
# brings the shorter side to some hundred pixels makes them fill the memory.
_MOST_ASPECT = 100

# ImageNet statistics, with which torchvision's backbones were trained.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# What Pillow's decoders raise on files that are damaged, not images, or too large.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(InputError):
    """A file that cannot be read as an image."""


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """All image files below ``folder``, recursively, sorted by path.

    Extensions are compared without case; links are followed, hidden files and folders left out.
    Files that look like photos and cannot be read are counted in a warning. Raises InputError if
    the folder does not exist or holds no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; check the path given for the data set")
    found: list[str] = []
    left_out: Counter[str] = Counter()
    above: dict[str, frozenset[str]] = {}  # of each folder: what it and those above it really are
    endings = EXTENSIONS + (HEIF if _reads_heif() else ())
    for here, folders, files in os.walk(root, followlinks=True):
        real, before = os.path.realpath(here), above.get(os.path.dirname(here), frozenset())
        if real in before:  # a link back to a folder above it
            folders.clear()
            continue
        above[here] = before | {real}
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [name for name in files if not name.startswith(".")]
        found += [os.path.join(here, name) for name in names if name.lower().endswith(endings)]
        others = [name for name in names if not name.lower().endswith(endings)]
        left_out.update(os.path.splitext(name)[1].lower() for name in others if _is_photo(name))
    told = _left_out_in_words(left_out)
    if not found:
        raise InputError(
            f"{root}: no images ({', '.join(endings)}) in this folder or below; "
            f"check the path given for the data set{'; ' * bool(told)}{told}"
        )
    if told:
        warn_once(f"{root}: {told}")
    return [Path(path) for path in sorted(found)]


def _is_photo(name: str) -> bool:
    """Whether a file that is not read looks like a photo."""
    kind = mimetypes.guess_type(name)[0] or ""
    return kind.startswith("image/") or name.lower().endswith(HEIF + _RAW)


def _left_out_in_words(count: Counter[str]) -> str:
    """``3 .heic and 1 .gif are left out`` …, with what would read them; or nothing."""
    if not count:
        return ""
    parts = " and ".join(f"{number} {ending}" for ending, number in count.most_common())
    remedy = "convert them to .jpg or .png"
    if set(count) & set(HEIF):
        remedy = f"pip install 'delg-delf[heic]' reads {', '.join(HEIF)}; else {remedy}"
    return f"{parts} {'is' if count.total() == 1 else 'are'} left out ({remedy})"


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning that one run needs to hear once."""
    log.warning("%s", message)


@functools.cache
def _reads_heif() -> bool:
    """Whether the optional decoder is there; Pillow is told of it."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def read_image(
    path: str | os.PathLike[str],
    longest_side: int | None = None,
    most_pixels: int | None = ExtractConfig.max_pixels,
) -> np.ndarray:
    """Decode an image file: (H, W, 3) uint8 RGB, upright.

    With ``longest_side`` a larger image is reduced so that its longer side has that many pixels;
    a smaller one keeps its size. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size where that
    is enough. Grey, palette and CMYK images become RGB, an alpha channel is dropped. Of 16-bit
    grey the upper 8 of the bits that its brightest pixel needs are kept: cameras for heat, depth
    and medicine fill 10 to 14 of them. Raises ImageError for a file that is missing, damaged or
    truncated, of none of the `FORMATS`, or of more than ``most_pixels`` to decode.
    """
    try:
        with open_header(path) as image:
            size = image.size
            if longest_side is not None and longest_side < max(size):
                size = _fit(size, longest_side)
                image.draft(None, size)
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise ValueError(
                    f"{image.width}×{image.height} pixels, more than --max_pixels {most_pixels}; "
                    "reduce it, or raise that (of a JPEG, --longest_side decodes less)"
                )
            image.load()
            rgb = _to_rgb(image)
            if rgb.size != size:
                rgb = rgb.resize(size, Image.Resampling.BILINEAR)
            turn = _UPRIGHT.get(_orientation(image))
            return np.array(rgb if turn is None else rgb.transpose(turn))
    except DECODE_ERRORS as error:
        raise unreadable(path, error) from error


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) in pixels of the upright image, from the file's header alone."""
    try:
        with open_header(path) as image:
            width, height = image.size
            return (height, width) if _orientation(image) >= 5 else (width, height)
    except DECODE_ERRORS as error:
        raise unreadable(path, error) from error


def open_header(path: str | os.PathLike[str]) -> Image.Image:
    """The image, of which the header has been read.

    Pillow limits the whole image; of a JPEG less than that may be decoded, which is limited there.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("a folder, pipe or device, not a file")  # reading a pipe may never end
    try:
        image = Image.open(path, formats=FORMATS + ("HEIF",) * _reads_heif())
    except Image.DecompressionBombError:
        with open(path, "rb") as file:
            if file.read(2) != b"\xff\xd8":
                raise ValueError("more pixels than Pillow decodes; reduce it") from None
        image = JpegImagePlugin.JpegImageFile(path)
    if max(image.size) > _MOST_ASPECT * min(image.size):
        image.close()
        raise ValueError(f"{image.width}×{image.height} pixels: no photo is that narrow; crop it")
    return image


def check_photos(headers: Sequence[Path], whole: Sequence[Path] = ()) -> None:
    """Look for photos that cannot be read before long work that would stumble over them.

    Raises ImageError with the first and the number of those that `find_unreadable` finds.
    """
    errors = list(find_unreadable(headers, whole).values())
    if errors:
        raise ImageError(
            f"{errors[0]} ({len(errors)} of {len(headers) + len(whole)} photos cannot be read; "
            "--skip_bad_images goes on without them)"
        ) from errors[0]


def find_unreadable(
    headers: Sequence[Path], whole: Sequence[Path] = ()
) -> "dict[Path, ImageError]":
    """The photos that cannot be read.

    headers: of these the headers are read, which is fast; whole: these are decoded, as small as
    their format allows.
    """
    found: dict[Path, ImageError] = {}
    count = len(headers) + len(whole)
    with ThreadPoolExecutor() as pool, progress.bar("checking photos", count):
        for paths, look in ((headers, _error_of_header), (whole, _error_of_all)):
            for path, error in zip(paths, pool.map(look, paths), strict=True):
                progress.advance()
                if error is not None:
                    found[path] = error
    return found


def _error_of_header(path: Path) -> ImageError | None:
    try:
        image_size(path)
    except ImageError as error:
        return error
    return None


def _error_of_all(path: Path) -> ImageError | None:
    try:
        read_image(path, longest_side=64)
    except ImageError as error:
        return error
    return None


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 to ``size`` = (width, height), bilinear with antialiasing."""
    if (image.shape[1], image.shape[0]) == size:
        return image
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def pixel_box(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box (left, top, right, bottom) rounded to whole pixels and clipped to ``size``.

    ``size`` is (width, height); ``right`` and ``bottom`` are exclusive. Raises InputError where no
    pixel is left.
    """
    if len(box) != 4 or not np.isfinite(box).all():
        raise InputError(f"box {list(box)}: expected four finite numbers left, top, right, bottom")
    left, top, right, bottom = np.clip(np.rint(box), 0, [*size, *size]).astype(int).tolist()
    if left >= right or top >= bottom:
        raise InputError(f"box {list(box)} holds no pixel of an image of {size[0]}×{size[1]}")
    return left, top, right, bottom


def crop(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """The pixels (h, w, 3) of (H, W, 3) in ``box``, rounded and clipped by `pixel_box`."""
    left, top, right, bottom = pixel_box(box, (image.shape[1], image.shape[0]))
    return image[top:bottom, left:right]


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """(..., 3, H, W) float in [0, 1] less ImageNet's mean, divided by its standard deviation."""
    mean = pixels.new_tensor(MEAN)[:, None, None]
    return (pixels - mean) / pixels.new_tensor(STD)[:, None, None]


def _fit(size: tuple[int, int], longest_side: int) -> tuple[int, int]:
    """``size`` scaled so that its longer side is ``longest_side``; no side below 1."""
    factor = longest_side / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation 1–8; 1 where there is none or the EXIF block is unreadable."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself, and reports the upright size
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DECODE_ERRORS:
        return 1  # cameras and editors write broken EXIF blocks around sound pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        bits = max(8, int(values.max(initial=0)).bit_length())
        return Image.fromarray((values >> (bits - 8)).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {image.mode}); 8 bits a channel are expected")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # a palette's transparency is lost only by this way round
    return image.convert("RGB")


def unreadable(path: str | os.PathLike[str], error: BaseException) -> ImageError:
    """The error of a file that is no readable image, as ``error`` says."""
    reason = str(error) or type(error).__name__
    path = os.fspath(path)
    shown = reason if path in reason else f"{path}: {reason}"
    return ImageError(f"unreadable image {shown}; replace or remove the file")
