"""Small versions of photos: with the box of a query, or with a note where there is no photo."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from retrieval.data import images

SIDE = 256


def scaled(points: np.ndarray, full: tuple[int, int], image: np.ndarray) -> np.ndarray:
    """Points (N, 2) x, y in pixels of the original, of size ``full``, in pixels of ``image``.

    The centre of the top-left pixel is (0, 0) in both, hence the halves.
    """
    factor = np.array([image.shape[1] / full[0], image.shape[0] / full[1]])
    return (points + 0.5) * factor - 0.5


def thumbnail(path: Path, box: Sequence[float] | None = None) -> np.ndarray:
    """A photo (H, W, 3) uint8 of at most SIDE pixels a side, its ``box`` drawn if it has one.

    Raises ImageError for a photo that cannot be read.
    """
    image = images.read_image(path, SIDE)
    if box is not None:
        corners = scaled(np.reshape(box, (2, 2)), images.image_size(path), image)
        first, second = (tuple(corner) for corner in np.rint(corners).astype(int).tolist())
        for line, colour in ((4, (0, 0, 0)), (2, (255, 255, 255))):
            cv2.rectangle(image, first, second, colour, line, cv2.LINE_AA)
    return image


def thumbnail_or_note(path: Path, box: Sequence[float] | None = None) -> np.ndarray:
    """`thumbnail`; of a photo that cannot be read a grey field that says so."""
    try:
        return thumbnail(path, box)
    except images.ImageError:
        field = Image.new("RGB", (SIDE, SIDE), (200, 200, 200))
        middle = SIDE // 2, SIDE // 2
        note = ImageDraw.Draw(field)
        note.text(middle, "cannot be read", (60, 60, 60), ImageFont.load_default(24), "mm")
        return np.array(field)
