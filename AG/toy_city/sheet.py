"""A canvas measured in metres, and the colours, noise and weather that go on it."""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]


class Sheet:
    """A canvas measured in metres: x to the right, z upwards from the bottom edge."""

    def __init__(self, width: float, height: float, scale: float, colour: Colour):
        self.width, self.height, self.scale = width, height, scale
        size = round(height * scale), round(width * scale), 3
        self.pixels: np.ndarray = np.empty(size, np.uint8)
        self.pixels[:] = colour

    def box(self, x: float, z: float, width: float, height: float, colour: Colour) -> None:
        """A filled rectangle with its lower left corner at (x, z); at least a pixel thick."""
        rows, columns = self.pixels.shape[:2]
        left, right = self._column(x), self._column(x + width)
        low, high = self._row(z), self._row(z + height)
        high, right = min(high, low - 1), max(right, left + 1)
        if right > 0 and left < columns and low > 0 and high < rows:
            self.pixels[max(high, 0) : low, max(left, 0) : right] = colour

    def disc(self, x: float, z: float, radius: float, colour: Colour) -> None:
        """A filled circle."""
        size = max(1, round(radius * self.scale))
        cv2.circle(self.pixels, (self._column(x), self._row(z)), size, colour, -1, cv2.LINE_AA)

    def polygon(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        """A filled polygon of (x, z) corners."""
        corners = np.array([(self._column(x), self._row(z)) for x, z in points], np.int32)
        cv2.fillPoly(self.pixels, [corners], colour, cv2.LINE_AA)

    def scribble(self, points: np.ndarray, width: float, colour: Colour) -> None:
        """An open line through the (n, 2) points (x, z)."""
        corners = np.array([(self._column(x), self._row(z)) for x, z in points], np.int32)
        thickness = max(1, round(width * self.scale))
        cv2.polylines(self.pixels, [corners], False, colour, thickness, cv2.LINE_AA)

    def text(
        self, words: str, x: float, z: float, width: float, height: float, ink: Colour
    ) -> None:
        """Lettering centred in a box, as large as fits."""
        box = np.array([width, height]) * self.scale
        size = int(box[1])
        if size < 4:
            return
        length = _font(size).getlength(words)
        size = min(size, int(size * box[0] / max(length, 1)))
        if size < 4:
            return
        left, top, right, bottom = _font(size).getbbox(words)
        row, column = self._row(z + height), self._column(x)
        area = self.pixels[max(row, 0) : self._row(z), max(column, 0) : self._column(x + width)]
        if not area.size:
            return
        picture = Image.fromarray(area)
        corner = ((picture.width - right - left) / 2, (picture.height - bottom - top) / 2)
        ImageDraw.Draw(picture).text(corner, words, fill=ink, font=_font(size))
        area[:] = np.asarray(picture)

    def multiply(self, factor: np.ndarray) -> None:
        """Scales the brightness by an (h, w) float32 field."""
        self.pixels = cv2.multiply(self.pixels, cv2.merge([factor] * 3), dtype=cv2.CV_8U)

    def _column(self, x: float) -> int:
        return round(x * self.scale)

    def _row(self, z: float) -> int:
        return self.pixels.shape[0] - round(z * self.scale)


def wall_pattern(wall: str, sheet: Sheet, rng: np.random.Generator) -> np.ndarray:
    """The brightness of bricks, blocks, panels or plaster: (h, w) float32 around 1."""
    shape = sheet.pixels.shape[:2]
    sizes = {"brick": (0.16, 0.44, 0.12), "stone": (0.5, 1.1, 0.07), "panel": (1.6, 2.2, 0.05)}
    if wall not in sizes:
        return noise(shape, 1.5 * sheet.scale, 0.07, rng)
    high, wide, contrast = sizes[wall]
    rows, columns = int(sheet.height / high) + 1, int(sheet.width / wide) + 2
    tones = np.repeat(rng.normal(1, contrast, (rows, columns)), 2, axis=1)
    tones[1::2] = np.roll(tones[1::2], 1, axis=1)
    z = np.arange(shape[0])[::-1] / sheet.scale / high
    x = np.arange(shape[1]) / sheet.scale / wide * 2
    pattern = tones[z.astype(int)][:, x.astype(int)].astype(np.float32)
    if wall != "brick":
        joint = 1.5 / sheet.scale
        pattern[np.mod(z, 1) < joint / high] *= 0.8
        pattern[:, np.mod(x, 2) < 2 * joint / wide] *= 0.85
    return pattern


def weather(sheet: Sheet, rng: np.random.Generator) -> np.ndarray:
    """Grain, clouds of dirt, streaks run down by rain, a dark foot: (h, w) float32 around 1."""
    h, w = sheet.pixels.shape[:2]
    streaks = cv2.resize(rng.normal(1, 0.025, (3, max(2, w // 6))).astype(np.float32), (w, h))
    foot = 1 - 0.22 * np.exp(-np.arange(h, dtype=np.float32)[::-1] / (0.8 * sheet.scale))
    return (
        noise((h, w), 2, 0.025, rng)
        * noise((h, w), 2.5 * sheet.scale, 0.06, rng)
        * streaks
        * foot[:, None].astype(np.float32)
    )


def noise(
    shape: tuple[int, ...], cell: float, contrast: float, rng: np.random.Generator
) -> np.ndarray:
    """Smooth noise around 1, `cell` pixels from crest to crest."""
    h, w = shape
    grid = rng.normal(1, contrast, (int(h / cell) + 2, int(w / cell) + 2)).astype(np.float32)
    return cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC)


def pick(rng: np.random.Generator, colours: list[Colour]) -> Colour:
    """One of the colours."""
    return colours[int(rng.integers(len(colours)))]


def scaled(colour: Colour, factor: float) -> Colour:
    """A colour made brighter or darker."""
    red, green, blue = (min(int(value * factor), 255) for value in colour)
    return red, green, blue


def shift(colour: Colour, rng: np.random.Generator, spread: float) -> Colour:
    """A colour nearby: mostly lighter or darker, a little of another hue."""
    light = rng.normal(0, spread)
    tint = rng.normal(light, spread / 3, 3)
    red, green, blue = (min(max(int(v + t), 0), 255) for v, t in zip(colour, tint, strict=True))
    return red, green, blue


@lru_cache(maxsize=128)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
