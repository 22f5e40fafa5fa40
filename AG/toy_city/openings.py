"""Windows, balconies, doors and shops."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from toy_city.sheet import Colour, Sheet, pick, scaled, shift
from toy_city.style import PAINTS, Style

TRADES = [
    "CAFE", "BAR", "BOOKS", "HOTEL", "PIZZA", "BAKERY", "FLOWERS", "SHOES", "OPTIK", "BANK",
    "TABAC", "MUSIC", "CINEMA", "TAILOR", "WINE", "TEA", "RADIO", "FISH", "TOYS", "BIKES",
    "PHARMACY", "LAUNDRY", "GALLERY", "KIOSK", "DELI", "SUSHI", "BARBER", "PAPER", "LAMPS",
    "TRAVEL",
]  # fmt: skip
SYLLABLES = [
    "BA", "LO", "MI", "RA", "TE", "SU", "KO", "NI", "VE", "DA", "ZO", "PE", "LI", "GO", "FA",
    "RU", "HE", "WA", "CO", "TI", "OX", "UM", "EL", "AR",
]  # fmt: skip


def paint_window(sheet: Sheet, style: Style, x: float, z: float, rng: np.random.Generator) -> None:
    """A window whose sill is at height z and whose middle is at x."""
    w, h = style.window_width, style.window_height
    left = x - w / 2
    if style.arched:
        sheet.disc(x, z + h, w / 2 + 0.14, style.trim)
        sheet.disc(x, z + h, w / 2, style.frame)
    sheet.box(left - 0.14, z, w + 0.28, h + 0.14, style.trim)
    sheet.box(left - 0.25, z - 0.14, w + 0.5, 0.14, scaled(style.trim, 1.05))
    sheet.box(left - 0.22, z - 0.2, w + 0.44, 0.06, scaled(style.colour, 0.6))
    sheet.box(left, z, w, h, style.frame)
    paint_glass(sheet, left + 0.07, z + 0.07, w - 0.14, h - 0.14, rng)
    for pane in range(1, style.panes):
        sheet.box(left + w * pane / style.panes - 0.03, z, 0.06, h, style.frame)
    sheet.box(left, z + h * 0.64, w, 0.07, style.frame)
    if style.shutters and rng.random() < 0.85:
        for side in (left - 0.62, left + w + 0.12):
            sheet.box(side, z - 0.02, 0.5, h + 0.06, style.shutters)
            for slat in np.arange(0.12, h, 0.22):
                sheet.box(side + 0.06, z + slat, 0.38, 0.05, scaled(style.shutters, 0.7))


def paint_balcony(sheet: Sheet, x: float, z: float, style: Style, rng: np.random.Generator) -> None:
    """A balcony in front of one window: a slab, a railing, now and then plants."""
    w = style.bay * 0.86
    left = x - w / 2
    sheet.box(left, z - 0.42, w, 0.2, scaled(style.colour, 0.55))
    if style.panes == 1:
        sheet.box(left, z, w, 0.95, scaled(style.trim, 0.86))
        sheet.box(left, z + 0.9, w, 0.08, (90, 90, 92))
    else:
        for bar in np.arange(left, left + w, 0.17):
            sheet.box(bar, z, 0.05, 0.95, (38, 38, 42))
        sheet.box(left, z + 0.92, w, 0.08, (30, 30, 34))
    sheet.box(left - 0.06, z - 0.22, w + 0.12, 0.22, style.trim)
    if rng.random() < 0.4:
        bloom = pick(rng, [(60, 104, 52), (190, 60, 80), (216, 150, 60)])
        for spot in rng.uniform(left, left + w, 9):
            sheet.disc(spot, z + rng.uniform(0.7, 1.05), 0.13, shift(bloom, rng, 22))


def paint_ground_floor(sheet: Sheet, style: Style, height: float, rng: np.random.Generator) -> None:
    """Shops, doors and windows side by side, then the moulding above them."""
    stone = shift(scaled(style.colour, rng.uniform(0.7, 0.95)), rng, 12)
    if rng.random() < 0.5:
        sheet.box(0, 0, sheet.width, height, stone)
    sheet.box(0, 0, sheet.width, 0.5, scaled(stone, 0.75))
    x = rng.uniform(0.25, 0.6)
    while x < sheet.width - 1.4:
        painter, low, high = _GROUND_FLOOR[int(rng.choice(3, p=[0.5, 0.25, 0.25]))]
        w = min(rng.uniform(low, high), sheet.width - 0.3 - x)
        if w >= 1.0:
            painter(sheet, style, x, w, rng)
        x += w + rng.uniform(0.25, 0.8)
    sheet.box(0, height - 0.32, sheet.width, 0.22, style.trim)
    sheet.box(0, height - 0.4, sheet.width, 0.08, scaled(style.trim, 0.6))


def paint_glass(
    sheet: Sheet, x: float, z: float, w: float, h: float, rng: np.random.Generator
) -> None:
    """Dark glass with a reflection of the sky and, at times, a blind, curtains or a lamp."""
    base = scaled((58, 70, 84), rng.uniform(0.7, 1.25))
    sheet.box(x, z, w, h, base)
    slope = rng.uniform(0.3, 0.8)
    sheet.polygon(
        [(x, z + h), (x + w, z + h), (x + w, z + h * slope), (x, z + h * (slope - 0.25))],
        scaled(base, 1.35),
    )
    kind = rng.random()
    if kind < 0.28:
        drop = h * rng.uniform(0.2, 0.9)
        sheet.box(
            x, z + h - drop, w, drop, pick(rng, [(226, 218, 196), (176, 160, 132), (150, 70, 60)])
        )
    elif kind < 0.5:
        cloth = pick(rng, [(232, 228, 220), (200, 176, 150), (170, 186, 200)])
        for side in (x, x + w * 0.76):
            sheet.box(side, z, w * 0.24, h, cloth)
    elif kind < 0.56:
        sheet.box(x, z, w, h, (238, 206, 138))
    sheet.box(x, z + h - 0.1, w, 0.1, (30, 34, 40))
    sheet.box(x, z, 0.06, h, (34, 38, 44))


def _paint_shop(sheet: Sheet, style: Style, x: float, w: float, rng: np.random.Generator) -> None:
    """A shop front: panes and a door, goods on display, the sign, at times an awning."""
    paint = pick(rng, PAINTS)
    ink: Colour = (246, 238, 214) if sum(paint) < 400 else (50, 40, 40)
    sheet.box(x, 0.0, w, 3.4, scaled(paint, 0.9))
    door = 1.0 if w > 2.2 else 0.0
    at = x + 0.12 if rng.random() < 0.5 else x + w - door - 0.12
    paint_glass(sheet, x + 0.12, 0.5, w - 0.24, 2.0, rng)
    for spot in rng.uniform(x + 0.3, x + w - 0.3, int(3 * w)):
        sheet.box(spot, 0.5, rng.uniform(0.15, 0.4), rng.uniform(0.2, 1.1), pick(rng, PAINTS))
    if door:
        sheet.box(at, 0.0, door, 2.55, paint)
        paint_glass(sheet, at + 0.14, 0.35, door - 0.28, 2.0, rng)
    sheet.box(x, 2.6, w, 0.8, paint)
    sheet.text(_shop_name(rng), x + 0.1, 2.66, w - 0.2, 0.68, ink)
    if rng.random() < 0.35:
        cloth, white = pick(rng, PAINTS), (236, 230, 218)
        edges = np.linspace(x - 0.1, x + w + 0.1, max(4, int(w / 0.4)))
        for index, (start, stop) in enumerate(pairwise(edges)):
            sheet.box(start, 1.95, stop - start, 0.65, cloth if index % 2 else white)
            sheet.disc((start + stop) / 2, 1.95, (stop - start) / 2, cloth if index % 2 else white)


def _paint_door(sheet: Sheet, style: Style, x: float, w: float, rng: np.random.Generator) -> None:
    """A house door with its number, a light above it and a step."""
    paint = pick(rng, PAINTS)
    sheet.box(x, 0, w, 2.9, style.trim)
    sheet.box(x + 0.14, 0.12, w - 0.28, 2.65, paint)
    paint_glass(sheet, x + 0.2, 2.2, w - 0.4, 0.5, rng)
    for z in (0.35, 1.25):
        for side in (x + 0.28, x + w / 2 + 0.06):
            sheet.box(side, z, w / 2 - 0.36, 0.72, scaled(paint, 0.72))
    sheet.box(x - 0.1, 0, w + 0.2, 0.12, (150, 146, 140))
    sheet.box(x + w / 2 - 0.22, 2.9, 0.44, 0.36, (40, 60, 110))
    sheet.text(str(rng.integers(1, 100)), x + w / 2 - 0.22, 2.9, 0.44, 0.36, (250, 250, 250))


def _paint_low_window(
    sheet: Sheet, style: Style, x: float, w: float, rng: np.random.Generator
) -> None:
    """A ground-floor window, behind bars or beside a poster."""
    sheet.box(x, 0.95, w, 1.9, style.trim)
    paint_glass(sheet, x + 0.12, 1.07, w - 0.24, 1.66, rng)
    if rng.random() < 0.4:
        for bar in np.arange(x + 0.15, x + w, 0.22):
            sheet.box(bar, 1.0, 0.05, 1.8, (40, 40, 44))
    elif rng.random() < 0.6:
        sheet.box(x + 0.2, 1.1, 0.7, 1.0, pick(rng, PAINTS))
        sheet.text(str(rng.choice(TRADES)), x + 0.22, 1.5, 0.66, 0.4, (250, 246, 230))


def _shop_name(rng: np.random.Generator) -> str:
    name = "".join(rng.choice(SYLLABLES, int(rng.integers(2, 4))))
    return (f"{name}", f"{rng.choice(TRADES)}", f"{rng.choice(TRADES)} {name}")[
        int(rng.integers(3))
    ]


_Painter = Callable[[Sheet, Style, float, float, np.random.Generator], None]
_GROUND_FLOOR: list[tuple[_Painter, float, float]] = [
    (_paint_shop, 2.6, 5.0), (_paint_door, 1.2, 1.7), (_paint_low_window, 1.2, 2.0),
]  # fmt: skip
