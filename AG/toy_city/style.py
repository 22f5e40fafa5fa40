"""What the houses of one builder share, and the colours of the town."""

from dataclasses import dataclass, replace

import numpy as np

from toy_city.sheet import Colour, pick, shift

PLASTERS: list[Colour] = [
    (226, 208, 168), (212, 164, 110), (170, 190, 206), (216, 170, 168), (180, 200, 150),
    (228, 190, 92), (196, 110, 84), (222, 222, 216), (150, 176, 172), (176, 160, 196),
]  # fmt: skip
WALLS: dict[str, list[Colour]] = {
    "brick": [(150, 84, 66), (124, 66, 56), (182, 120, 88), (112, 90, 80), (196, 172, 136)],
    "plaster": PLASTERS,
    "stone": [(190, 180, 160), (172, 166, 156), (204, 192, 166)],
    "panel": [(168, 172, 174), (196, 190, 180), (150, 160, 164)],
}
PAINTS: list[Colour] = [
    (44, 70, 112), (112, 36, 38), (36, 84, 62), (40, 40, 46), (196, 150, 48), (92, 52, 96),
    (222, 214, 196), (24, 108, 124), (180, 84, 40), (70, 86, 40), (206, 60, 60), (58, 58, 120),
]  # fmt: skip
TRIMS: list[Colour] = [(232, 226, 212), (206, 198, 182), (150, 142, 132), (112, 98, 88)]


@dataclass(frozen=True)
class Style:
    """What neighbouring houses share. Lengths in metres."""

    wall: str
    colour: Colour
    trim: Colour
    frame: Colour
    shutters: Colour | None
    bay: float
    window_width: float
    window_height: float
    arched: bool
    panes: int
    floor_height: float
    floors: int
    roof: str  # cornice, mansard, gable or parapet
    balcony_rate: float


def draw_style(rng: np.random.Generator) -> Style:
    """A random style."""
    wall = str(rng.choice(list(WALLS)))
    window_width = rng.uniform(0.95, 1.45)
    return Style(
        wall=wall,
        colour=pick(rng, WALLS[wall]),
        trim=pick(rng, TRIMS),
        frame=pick(rng, [(240, 238, 230), (92, 66, 48), (52, 60, 66), (60, 84, 70)]),
        shutters=pick(rng, PAINTS) if rng.random() < 0.35 else None,
        bay=window_width + rng.uniform(0.9, 1.5),
        window_width=window_width,
        window_height=rng.uniform(1.5, 2.2),
        arched=rng.random() < 0.25,
        panes=int(rng.integers(1, 4)),
        floor_height=rng.uniform(2.9, 3.5),
        floors=int(rng.integers(3, 6)),
        roof=str(rng.choice(["cornice", "mansard", "gable", "parapet"])),
        balcony_rate=float(rng.choice([0.0, 0.15, 0.4])),
    )


def vary_style(style: Style, rng: np.random.Generator) -> Style:
    """The next house of the same builder: the same style, slightly altered."""
    floors = int(np.clip(style.floors + rng.integers(-1, 2), 3, 5))
    return replace(style, colour=shift(style.colour, rng, 9), floors=floors)
