"""House fronts and side walls, painted flat and in metres.

A texture is an (h, w, 3) uint8 RGB array of `scale` pixels a metre. Houses of one `Style` look
alike from afar; what tells them apart is what a passer-by remembers: the lettering of the shops,
where the doors are, which windows have balconies, blinds or shutters, stains and scribbles.
"""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from toy_city.openings import TRADES, paint_balcony, paint_glass, paint_ground_floor, paint_window
from toy_city.sheet import Sheet, pick, scaled, shift, wall_pattern, weather
from toy_city.style import PAINTS, Style


@dataclass(frozen=True)
class Facade:
    """A painted façade: its texture, its outline in metres (x, height), and its eaves in metres."""

    texture: np.ndarray
    outline: np.ndarray
    eaves: float


def paint_facade(style: Style, bays: int, scale: float, rng: np.random.Generator) -> Facade:
    """One house front, `bays` windows wide."""
    ground = 3.9
    width = bays * style.bay + 0.8
    eaves = ground + (style.floors - 1) * style.floor_height + 0.6
    top = {"mansard": 2.5, "gable": 0.28 * width}.get(style.roof, 0.5)
    sheet = Sheet(width, eaves + top, scale, style.colour)
    sheet.multiply(wall_pattern(style.wall, sheet, rng))
    for _ in range(rng.poisson(2.5)):
        patch = rng.normal((rng.uniform(0, width), rng.uniform(ground, eaves)), 0.55, (9, 2))
        hull = cv2.convexHull(patch.astype(np.float32))[:, 0]
        sheet.polygon(
            [tuple(corner) for corner in hull], scaled(style.colour, rng.uniform(0.6, 0.9))
        )
    bay_x = [0.4 + style.bay * (bay + 0.5) for bay in range(bays)]
    for floor in range(style.floors - 1):
        base = ground + floor * style.floor_height + 0.75
        for x in bay_x:
            paint_window(sheet, style, x, base, rng)
    for floor in range(style.floors - 1):
        base = ground + floor * style.floor_height + 0.55
        for x in bay_x:
            if rng.random() < style.balcony_rate:
                paint_balcony(sheet, x, base, style, rng)
    paint_ground_floor(sheet, style, ground, rng)
    _paint_roof(sheet, style, eaves, bay_x, rng)
    _paint_marks(sheet, style, ground, eaves, bay_x, rng)
    sheet.multiply(weather(sheet, rng))
    corners = [(0.0, 0.0), (width, 0.0), (width, eaves), (0.0, eaves)]
    if style.roof == "gable":
        corners.insert(3, (width / 2, eaves + top))
    else:
        corners[2:] = [(width, eaves + top), (0.0, eaves + top)]
    return Facade(sheet.pixels, np.array(corners), eaves)


def paint_side(
    style: Style, depth: float, height: float, scale: float, rng: np.random.Generator
) -> np.ndarray:
    """A blind side wall."""
    sheet = Sheet(depth, height, scale, scaled(style.colour, 0.85))
    sheet.multiply(wall_pattern("brick" if style.wall == "brick" else "plaster", sheet, rng))
    sheet.multiply(weather(sheet, rng))
    return sheet.pixels


def _paint_roof(
    sheet: Sheet, style: Style, eaves: float, bay_x: list[float], rng: np.random.Generator
) -> None:
    """The cornice and what stands above it."""
    top = sheet.height - eaves
    if style.roof == "mansard":
        slate = pick(rng, [(78, 84, 96), (96, 76, 70), (70, 76, 74)])
        sheet.box(0, eaves, sheet.width, top, slate)
        for row in np.arange(eaves, sheet.height, 0.3):
            sheet.box(0, row, sheet.width, 0.05, scaled(slate, 0.8))
        for x in bay_x:
            if rng.random() < 0.7:
                sheet.polygon(
                    [(x - 0.75, eaves + 1.6), (x, eaves + 2.2), (x + 0.75, eaves + 1.6)], style.trim
                )
                sheet.box(x - 0.6, eaves + 0.2, 1.2, 1.4, style.frame)
                paint_glass(sheet, x - 0.5, eaves + 0.3, 1.0, 1.2, rng)
    elif style.roof == "gable":
        middle = sheet.width / 2
        sheet.disc(middle, eaves + 0.35 * top, 0.62, style.trim)
        sheet.disc(middle, eaves + 0.35 * top, 0.48, (60, 70, 84))
        for sign in (-1, 1):
            edge = np.array([(middle + sign * middle, eaves), (middle, sheet.height - 0.05)])
            sheet.scribble(edge, 0.3, style.trim)
        return
    else:
        sheet.box(0, eaves + 0.06, sheet.width, top, scaled(style.colour, 0.9))
        sheet.box(0, sheet.height - 0.12, sheet.width, 0.12, style.trim)
    sheet.box(0, eaves - 0.3, sheet.width, 0.4, style.trim)
    sheet.box(0, eaves - 0.4, sheet.width, 0.1, scaled(style.trim, 0.55))
    if style.roof != "parapet":
        for x in np.arange(0.1, sheet.width, 0.45):
            sheet.box(x, eaves - 0.52, 0.2, 0.2, style.trim)


def _paint_marks(
    sheet: Sheet,
    style: Style,
    ground: float,
    eaves: float,
    bay_x: list[float],
    rng: np.random.Generator,
) -> None:
    """What happened to the house since: pipes, signs, cables, ivy, scribbles, fallen plaster."""
    gaps = [(a + b) / 2 for a, b in pairwise(bay_x)]
    if gaps and rng.random() < 0.5:
        x = float(rng.choice(gaps)) - 0.33
        word, paint = str(rng.choice(TRADES))[:6], pick(rng, PAINTS)
        z = rng.uniform(ground + 0.2, eaves - 0.62 * len(word))
        sheet.box(x, z, 0.66, 0.6 * len(word) + 0.1, paint)
        for index, letter in enumerate(reversed(word)):
            sheet.text(letter, x, z + 0.05 + 0.6 * index, 0.66, 0.58, (250, 240, 200))
    if rng.random() < 0.4:
        x = rng.uniform(0.1, sheet.width - 0.2)
        sheet.box(x, 0, 0.14, eaves, scaled(style.colour, 0.5))
    for _ in range(rng.poisson(0.8)):
        x, z = (
            float(rng.choice(bay_x)),
            ground + rng.integers(0, style.floors - 1) * style.floor_height,
        )
        sheet.box(x - 0.45, z + 0.02, 0.9, 0.5, (216, 216, 214))
        sheet.disc(x - 0.12, z + 0.27, 0.19, (96, 98, 100))
    if rng.random() < 0.35:
        length = int(rng.integers(5, 12))
        x, z = rng.uniform(0, sheet.width), rng.uniform(0.8, 2.0)
        points = np.cumsum(rng.normal(0, 0.35, (length, 2)) + (0.12, 0.0), axis=0) * 0.8 + (x, z)
        sheet.scribble(points, 0.1, pick(rng, PAINTS))
    if rng.random() < 0.15:
        x, spread = rng.uniform(0, sheet.width), rng.uniform(0.6, 1.6)
        for z in np.arange(0, rng.uniform(4, eaves), 0.12):
            leaf = shift((52, 88, 44), rng, 20)
            sheet.disc(
                x + spread * rng.normal() * (0.4 + 0.05 * z), z, rng.uniform(0.15, 0.35), leaf
            )
