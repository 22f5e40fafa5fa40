"""Photos with something drawn on them, as arrays (H, W, 3) uint8 RGB: boxes, attention, matches.

The report and `looks` show the same pictures. They are drawn with OpenCV, in a fiftieth of the time
that matplotlib takes: a report has a hundred of them.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from retrieval.configs.rank import VerifyConfig
from retrieval.data import images
from retrieval.drawing.palette import RIGHT, WRONG
from retrieval.features import LocalFeatures
from retrieval.verification import Pair

# The longest side of a thumbnail in pixels.
SIDE = 256
# Pixels that one of the two photos in a picture may have, across and down.
PANEL = (440, 560)
_GAP = 8
# Fixed-point bits of OpenCV's coordinates.
_SHIFT = 4
# Up to so many inliers are drawn with thicker lines; more would cover the photo.
_FEW = 80
# The heat map is smooth: it is made this many times smaller than the photo.
_COARSE = 4
# Heat of the lowest score: even that differs from where there is no feature at all.
LEAST_HEAT = 0.15


def thumbnail(path: Path, box: Sequence[float] | None = None) -> np.ndarray:
    """A photo of at most SIDE pixels a side, its ``box`` drawn if it has one.

    box: left, top, right, bottom in pixels of the original. Raises ImageError for a photo that
    cannot be read.
    """
    image = images.read_image(path, SIDE, None)
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
        return _said(np.full((SIDE, SIDE, 3), 200, np.uint8), "cannot be read")


def panel(path: Path, enlarged: int = 1) -> np.ndarray:
    """A photo, enlarged or reduced to fit ``enlarged`` times PANEL.

    Raises ImageError for a photo that cannot be read.
    """
    across, down = (enlarged * side for side in PANEL)
    image = images.read_image(path, max(across, down), None)
    height, width = image.shape[:2]
    factor = min(across / width, down / height)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


def scaled(points: np.ndarray, full: tuple[int, int], image: np.ndarray) -> np.ndarray:
    """Points (N, 2) x, y in pixels of the original, of size ``full``, in pixels of ``image``.

    The centre of the top-left pixel is (0, 0) in both, hence the halves.
    """
    factor = np.array([image.shape[1] / full[0], image.shape[0] / full[1]])
    return (points + 0.5) * factor - 0.5


def attention(photo: np.ndarray, cells: LocalFeatures, best: LocalFeatures) -> np.ndarray:
    """A panel beside itself under the heat of the scores of ``cells``, ``best`` being ringed."""
    heat = heat_map(cells, photo)[..., None]
    colours = cv2.applyColorMap(np.rint(heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    # Where there is little attention, the photo stays as it is, only darker.
    strength = 0.25 + 0.35 * heat
    over = np.rint(photo * (1 - strength) + colours[..., ::-1] * strength).astype(np.uint8)
    unit = _unit(photo)
    for x, y in _fixed(scaled(best.keypoints, best.image_size, photo)).tolist():
        for width, colour in ((3, (0, 0, 0)), (1, (255, 255, 255))):
            cv2.circle(over, (x, y), 6 * unit << _SHIFT, colour, width * unit, cv2.LINE_AA, _SHIFT)
    if len(cells) == 0:
        over = _said(over, "no features")
    return _beside(photo, over)[0]


def heat_map(features: LocalFeatures, photo: np.ndarray) -> np.ndarray:
    """(H, W) float32 in [0, 1], the size of the panel ``photo``: the strongest score at each place.

    Each feature covers a square as large as its scale, with soft edges. Heat goes from LEAST_HEAT
    to 1 for scores over `score_range`; where there is no feature it is 0.
    """
    height, width = (max(1, side // _COARSE) for side in photo.shape[:2])
    heat = np.zeros((height, width), np.float32)
    if len(features):
        low, high = score_range(features)
        shares = np.clip((features.scores - low) / max(high - low, 1e-9), 0, 1)
        factor = np.array([width, height]) / features.image_size
        sizes = 16.0 if features.scales is None else features.scales[:, None]
        centres = (features.keypoints + 0.5) * factor
        halves = np.maximum(sizes * factor / 2, 0.5)
        first = np.clip(np.floor(centres - halves), 0, None).astype(int)
        last = np.maximum(np.ceil(centres + halves).astype(int), first + 1)
        for row in np.argsort(shares, kind="stable"):  # the strongest last, over the others
            (left, top), (right, bottom) = first[row], last[row]
            heat[top:bottom, left:right] = LEAST_HEAT + (1 - LEAST_HEAT) * shares[row]
        heat = cv2.GaussianBlur(heat, (0, 0), max(1.5, halves.mean() / 2))
    return cv2.resize(heat, (photo.shape[1], photo.shape[0]), interpolation=cv2.INTER_LINEAR)


def score_range(features: LocalFeatures) -> tuple[float, float]:
    """The scores that are drawn as the least and as the most heat: the lowest, the 98 % quantile.

    Not the highest, so that a few outliers do not darken the rest.
    """
    return float(features.scores.min()), float(np.quantile(features.scores, 0.98))


def matches(query: np.ndarray, database: np.ndarray, pair: Pair) -> np.ndarray:
    """Two panels side by side with their matches; says so if there are none.

    Inliers are blue, over the others, which are orange, fainter, and thinner.
    """
    canvas, shift = _beside(query, database)
    rows, columns = pair.matches.T
    left = scaled(pair.query.keypoints[rows], pair.query.image_size, query)
    right = scaled(pair.database.keypoints[columns], pair.database.image_size, database)
    segments = np.hstack([_fixed(left), _fixed(right + (shift, 0))])
    inliers, unit = pair.verification.inliers, _unit(query)
    thicker = unit + 1 if inliers.sum() <= _FEW else unit
    canvas = cv2.addWeighted(canvas, 0.75, np.full_like(canvas, 255), 0.25, 0)  # lines stand out
    canvas = _with_segments(canvas, segments[~inliers], WRONG, unit, 0.4)
    canvas = _with_segments(canvas, segments[inliers], RIGHT, thicker, 0.9)
    return canvas if len(inliers) else _said(canvas, "no matches")


def matches_in_words(pair: Pair, verify: VerifyConfig) -> str:
    """``24 inliers of 30 matches (affine, within 4 px)``, or ``no matches``."""
    if len(pair.matches) == 0:
        return "no matches"
    return (
        f"{pair.verification.num_inliers} inliers of {len(pair.matches)} matches "
        f"({verify.model}, within {verify.residual_px:g} px)"
    )


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


def _unit(photo: np.ndarray) -> int:
    """The width of a thin line on a panel: it grows with the panel."""
    return max(1, round(max(photo.shape[1] / PANEL[0], photo.shape[0] / PANEL[1])))


def _fixed(points: np.ndarray) -> np.ndarray:
    """Points (N, 2) as OpenCV's fixed-point coordinates."""
    return np.rint(np.reshape(points, (-1, 2)) * (1 << _SHIFT)).astype(int)
