"""The small pictures inside a report: thumbnails, attention, matches, each as a data URI.

Drawn with OpenCV, in a fiftieth of the time that matplotlib takes: a report has a hundred of them.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from retrieval.data import images
from retrieval.drawing import figures, thumbnails
from retrieval.drawing.thumbnails import scaled
from retrieval.features import LocalFeatures

# Pixels that one of the two photos in a picture may have, across and down.
PANEL = (440, 560)
_GAP = 8
# Fixed-point bits of OpenCV's coordinates.
_SHIFT = 4
# Up to so many inliers are drawn with thick lines; more would cover the photo.
_FEW = 80
# The heat map is smooth: it is made this many times smaller than the photo.
_COARSE = 4


def data_uri(image: np.ndarray, quality: int = 78) -> str:
    """(H, W, 3) uint8 RGB as the text of an image, WebP, for the ``src`` of an ``<img>``."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "WEBP", quality=quality, method=2)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()


def thumbnail(path: Path, box: Sequence[float] | None = None) -> str | None:
    """A photo of at most 256 px, with its box drawn if it has one; None if it is unreadable."""
    try:
        return data_uri(thumbnails.thumbnail(path, box))
    except images.ImageError:
        return None


def panel(path: Path) -> np.ndarray | None:
    """A photo (H, W, 3), enlarged or reduced to fit PANEL; None if it is unreadable."""
    try:
        image = images.read_image(path, max(PANEL))
    except images.ImageError:
        return None
    height, width = image.shape[:2]
    factor = min(PANEL[0] / width, PANEL[1] / height)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


def attention(photo: np.ndarray, features: LocalFeatures, count: int = 20) -> np.ndarray:
    """A panel beside itself under the heat of its features' scores, the ``count`` best ringed."""
    heat = heat_map(features, photo)[..., None]
    colours = cv2.applyColorMap(np.rint(heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    # Where there is little attention, the photo stays as it is, only darker.
    strength = 0.25 + 0.35 * heat
    over = np.rint(photo * (1 - strength) + colours[..., ::-1] * strength).astype(np.uint8)
    for x, y in _fixed(scaled(features.keypoints[:count], features.image_size, photo)):
        for width, colour in ((4, (0, 0, 0)), (2, (255, 255, 255))):
            cv2.circle(over, (x, y), 7 << _SHIFT, colour, width, cv2.LINE_AA, _SHIFT)
    if len(features) == 0:
        over = _said(over, "no features")
    return _beside(photo, over)[0]


def heat_map(features: LocalFeatures, photo: np.ndarray) -> np.ndarray:
    """(H, W) float32 in [0, 1], the size of the panel ``photo``: the strongest score at each place.

    Each feature covers a square as large as its scale. Of the scores the lowest is drawn as 0.15,
    and what is above 98 % of them as 1, so that a few outliers do not darken the rest.
    """
    height, width = (max(1, side // _COARSE) for side in photo.shape[:2])
    heat = np.zeros((height, width), np.float32)
    if len(features):
        low, high = features.scores.min(), np.quantile(features.scores, 0.98)
        shares = np.clip((features.scores - low) / max(high - low, 1e-9), 0, 1)
        factor = np.array([width, height]) / features.image_size
        sizes = 16.0 if features.scales is None else features.scales[:, None]
        centres = (features.keypoints + 0.5) * factor
        halves = np.maximum(sizes * factor / 2, 0.5)
        first = np.clip(np.floor(centres - halves), 0, None).astype(int)
        last = np.maximum(np.ceil(centres + halves).astype(int), first + 1)
        for row in np.argsort(shares, kind="stable"):  # the strongest last, over the others
            (left, top), (right, bottom) = first[row], last[row]
            heat[top:bottom, left:right] = 0.15 + 0.85 * shares[row]
        heat = cv2.GaussianBlur(heat, (0, 0), 1.5)
    return cv2.resize(heat, (photo.shape[1], photo.shape[0]), interpolation=cv2.INTER_LINEAR)


def matches(
    query: np.ndarray,
    database: np.ndarray,
    query_points: np.ndarray,
    database_points: np.ndarray,
    inliers: np.ndarray,
) -> np.ndarray:
    """Two panels side by side with their matches, inliers over the rest; says so if there are none.

    query_points, database_points: (M, 2) x, y in pixels of the panels; inliers: (M,) bool.
    """
    canvas, shift = _beside(query, database)
    ends = _fixed(query_points), _fixed(database_points + (shift, 0))
    segments = np.hstack([np.reshape(points, (-1, 2)) for points in ends])
    width = 2 if inliers.sum() <= _FEW else 1
    canvas = cv2.addWeighted(canvas, 0.75, np.full_like(canvas, 255), 0.25, 0)  # lines stand out
    canvas = _with_segments(canvas, segments[~inliers], figures.WRONG, 1, 0.4)
    canvas = _with_segments(canvas, segments[inliers], figures.RIGHT, width, 0.9)
    return canvas if len(inliers) else _said(canvas, "no matches")


def _with_segments(
    canvas: np.ndarray, segments: np.ndarray, colour: str, width: int, strength: float
) -> np.ndarray:
    """The picture with lines (n, 4) over it, as opaque as ``strength``, and dots at their ends."""
    rgb = ImageColor.getrgb(colour)
    veil = canvas.copy()
    for x0, y0, x1, y1 in segments.tolist():
        cv2.line(veil, (x0, y0), (x1, y1), rgb, width, cv2.LINE_AA, _SHIFT)
    for x, y in segments.reshape(-1, 2).tolist():
        cv2.circle(veil, (x, y), (1 + width) << _SHIFT, rgb, -1, cv2.LINE_AA, _SHIFT)
    return cv2.addWeighted(veil, strength, canvas, 1 - strength, 0)


def _beside(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, int]:
    """Two photos on one white sheet, and where the right one begins."""
    shift = left.shape[1] + _GAP
    canvas = np.full((max(left.shape[0], right.shape[0]), shift + right.shape[1], 3), 255, np.uint8)
    canvas[: left.shape[0], : left.shape[1]] = left
    canvas[: right.shape[0], shift:] = right
    return canvas, shift


def _said(image: np.ndarray, text: str) -> np.ndarray:
    """The picture with a line of text in its middle."""
    picture = Image.fromarray(image)
    middle = picture.width // 2, picture.height // 2
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(24)
    left, top, right, bottom = draw.textbbox(middle, text, font, "mm")
    draw.rectangle((left - 10, top - 8, right + 10, bottom + 8), "black")
    draw.text(middle, text, "white", font, "mm")
    return np.array(picture)


def _fixed(points: np.ndarray) -> list[list[int]]:
    """Points as OpenCV's fixed-point coordinates."""
    return np.rint(np.asarray(points) * (1 << _SHIFT)).astype(int).reshape(-1, 2).tolist()
