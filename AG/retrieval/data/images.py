"""Image files to arrays: (H, W, 3) uint8 RGB, turned upright as their EXIF orientation says."""

import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, JpegImagePlugin

from retrieval import progress
from retrieval.errors import InputError

Box = tuple[float, float, float, float]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# The decoders that are used, whatever a file is called: one of the others starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
# Pixels that are decoded at most, some 400 MB: more than the largest cameras of phones give.
MOST_PIXELS = 128_000_000

# ImageNet statistics, with which torchvision's backbones were trained.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# What Pillow's decoders raise on files that are damaged, not images, or too large.
_DECODE_ERRORS = (
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
    Raises InputError if the folder does not exist or holds no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; check the path given for the data set")
    found, visited = [], set()
    for here, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(here)
        if real in visited:  # a link back to a folder above it
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [name for name in files if name.lower().endswith(EXTENSIONS)]
        found += [os.path.join(here, name) for name in names if not name.startswith(".")]
    if not found:
        raise InputError(
            f"{root}: no images ({', '.join(EXTENSIONS)}) in this folder or below; "
            "check the path given for the data set"
        )
    return [Path(path) for path in sorted(found)]


def read_image(path: str | os.PathLike[str], longest_side: int | None = None) -> np.ndarray:
    """Decode an image file: (H, W, 3) uint8 RGB, upright.

    With ``longest_side`` a larger image is reduced so that its longer side has that many pixels;
    a smaller one keeps its size. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size where that
    is enough. Grey, palette and CMYK images become RGB, an alpha channel is dropped, 16-bit grey
    keeps its upper 8 bits. Raises ImageError for a file that is missing, damaged or truncated, of
    none of the `FORMATS`, or of more than MOST_PIXELS to decode.
    """
    try:
        with _open(path) as image:
            size = image.size
            if longest_side is not None and longest_side < max(size):
                size = _fit(size, longest_side)
                image.draft(None, size)
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(
                    f"{image.width}×{image.height} pixels, more than {MOST_PIXELS // 10**6} "
                    "million; reduce it (of a JPEG, --longest_side decodes less)"
                )
            image.load()
            rgb = _to_rgb(image)
            if rgb.size != size:
                rgb = rgb.resize(size, Image.Resampling.BILINEAR)
            turn = _UPRIGHT.get(_orientation(image))
            return np.array(rgb if turn is None else rgb.transpose(turn))
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from error


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) in pixels of the upright image, from the file's header alone."""
    try:
        with _open(path) as image:
            width, height = image.size
            return (height, width) if _orientation(image) >= 5 else (width, height)
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from error


def _open(path: str | os.PathLike[str]) -> Image.Image:
    """The image, of which the header has been read.

    Pillow limits the whole image; of a JPEG less than that may be decoded, which is limited there.
    """
    try:
        return Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError:
        with open(path, "rb") as file:
            if file.read(2) != b"\xff\xd8":
                raise
        return JpegImagePlugin.JpegImageFile(path)


def check_headers(
    paths: Sequence[str | os.PathLike[str]],
) -> None:
    """Raise ImageError if a header is unreadable, naming the first such file and their number."""
    errors = []
    with ThreadPoolExecutor(max_workers=8) as pool, progress.bar("reading headers", len(paths)):
        for error in pool.map(_header_error, paths):
            progress.advance()
            errors += [error] if error is not None else []
    if errors:
        raise ImageError(
            f"{errors[0]} ({len(errors)} of {len(paths)} images have an unreadable header)"
        ) from errors[0]


def _header_error(path: str | os.PathLike[str]) -> ImageError | None:
    try:
        image_size(path)
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
    except _DECODE_ERRORS:
        return 1  # cameras and editors write broken EXIF blocks around sound pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {image.mode}); 8 bits a channel are expected")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # a palette's transparency is lost only by this way round
    return image.convert("RGB")


def _unreadable(path: str | os.PathLike[str], error: BaseException) -> ImageError:
    reason = str(error) or type(error).__name__
    path = os.fspath(path)
    shown = reason if path in reason else f"{path}: {reason}"
    return ImageError(f"unreadable image {shown}; replace or remove the file")
