"""What hides the houses of the toy city: cars, trees and people, each made of flat polygons.

All of it is in street coordinates (metres: x along the street, y to its left, z up).
"""

from collections.abc import Callable

import numpy as np

from toy_city.scene import Flat

Colour = tuple[float, float, float]
Maker = Callable[[np.ndarray, float, np.ndarray, np.random.Generator], list[Flat]]

CAR = np.array([
    (0, 0.4), (0.05, 0.82), (0.95, 0.95), (1.55, 1.42),
    (3.05, 1.45), (3.85, 1.0), (4.3, 0.88), (4.35, 0.4),
])  # fmt: skip
VAN = np.array([
    (0, 0.4), (0.05, 1.1), (0.25, 1.3), (0.9, 2.15),
    (4.9, 2.2), (4.95, 1.2), (5.0, 1.0), (5.0, 0.4),
])  # fmt: skip
CLEARANCE = 4.5  # metres; nothing stands nearer to a camera
GLASS: Colour = (52, 62, 74)
PAINTS: list[Colour] = [
    (188, 190, 194), (40, 42, 48), (226, 226, 224), (124, 30, 34), (34, 60, 110), (96, 102, 108),
    (60, 84, 70), (196, 160, 60),
]  # fmt: skip
LEAVES: list[Colour] = [(66, 96, 48), (86, 112, 50), (120, 104, 46), (58, 88, 62)]
CLOTHES: list[Colour] = [
    (40, 44, 60), (150, 40, 44), (60, 96, 140), (200, 190, 170), (80, 110, 70), (220, 170, 60),
    (110, 70, 120), (30, 30, 34),
]  # fmt: skip


def draw_occluders(
    camera: np.ndarray,
    forward: np.ndarray,
    traffic: float,
    kerb: float,
    half_width: float,
    rng: np.random.Generator,
) -> list[Flat]:
    """Random cars, trees and people before a camera, in the order to paint them.

    The camera is at `camera` (3,) and looks along `forward` (3,).
    """
    slots = rng.permutation([(6.0 * slot, side) for slot in range(-5, 6) for side in (-1.0, 1.0)])
    places: list[tuple[float, float, float, Maker]] = []
    for x, side in slots[: rng.poisson(7 * traffic)]:
        places.append((x + rng.uniform(-0.6, 0.6), side * (kerb - 1.1), side, make_car))
    for x, side in slots[: rng.poisson(4 * traffic)]:
        places.append((x + 3, side * (kerb + rng.uniform(0.6, 1.2)), side, make_tree))
    for _ in range(rng.poisson(9 * traffic)):
        side = float(rng.choice([-1, 1]))
        y = side * rng.uniform(kerb - 0.5, half_width - 0.6)
        places.append((rng.uniform(-28, 28), y, side, make_person))
    things: list[tuple[float, list[Flat]]] = []
    for x, y, side, make in places:
        base = np.array([camera[0] + x, y, 0.0])
        distance = _distance(base, camera)
        if distance > CLEARANCE and (base - camera) @ forward > -3:
            things.append((distance, make(base, side, camera, rng)))
    things.sort(key=lambda thing: -thing[0])
    return [flat for _, flats in things for flat in flats]


def make_car(
    base: np.ndarray, side: float, camera: np.ndarray, rng: np.random.Generator
) -> list[Flat]:
    """A car or a van whose middle stands at `base` (3,), along the street."""
    profile = (CAR if rng.random() < 0.8 or _distance(base, camera) < 9 else VAN).copy()
    profile[:, 0] -= profile[:, 0].max() / 2
    profile *= (side * rng.uniform(0.92, 1.08), rng.uniform(0.95, 1.1))
    paint, half = PAINTS[int(rng.integers(len(PAINTS)))], 0.88

    def solid(points: np.ndarray, y: float | np.ndarray) -> np.ndarray:
        corners = np.empty((len(points), 3))
        corners[:, 0], corners[:, 1], corners[:, 2] = points[:, 0], y, points[:, 1]
        return corners + base

    flats = [Flat(solid(np.column_stack([profile[[0, 0, -1, -1], 0], np.full(4, 0.02)]),
                        np.array([half, -half, -half, half])), (46, 46, 48))]  # fmt: skip
    strips: list[tuple[float, Flat]] = []
    for index in range(len(profile) - 1):
        edge = profile[[index, index + 1, index + 1, index]]
        quad = solid(edge, np.array([-half, -half, half, half]))
        run = profile[index + 1] - profile[index]
        outward = np.array([-run[1], 0, run[0]]) * side
        if outward @ (camera - quad[0]) > 0:
            colour = GLASS if index in (2, 4) else _tone(paint, 1.15 if index == 3 else 0.95)
            strips.append((_distance(quad.mean(axis=0), camera), Flat(quad, colour)))
    flats += [flat for _, flat in sorted(strips, key=lambda strip: -strip[0])]
    facing = np.sign(camera[1] - base[1])
    if abs(camera[1] - base[1]) > half:
        y = facing * half
        flats.append(Flat(solid(profile, y), _tone(paint, 0.85)))
        middle, inner = profile[2:6].mean(axis=0), (0.82, 0.7)
        window = (profile[2:6] - middle) * inner + middle + (0, 0.05)
        flats.append(Flat(solid(window, y), GLASS))
        for x in (0.2, 0.8):
            hub = np.array([profile[0, 0] + x * (profile[-1, 0] - profile[0, 0]), 0.34])
            flats.append(Flat(solid(hub + _circle(0.34), y), (26, 26, 28)))
            flats.append(Flat(solid(hub + _circle(0.18), y), (150, 152, 156)))
    return flats


def make_tree(
    base: np.ndarray, side: float, camera: np.ndarray, rng: np.random.Generator
) -> list[Flat]:
    """A tree that faces the camera: a trunk and leaves, lighter towards the top."""
    height, spread, count = rng.uniform(4.2, 7.0), rng.uniform(1.0, 1.9), 60
    right = _right(base, camera)
    trunk = np.array([(-0.14, 0), (0.14, 0), (0.09, height - 1), (-0.09, height - 1)])
    leaf = np.array(LEAVES[int(rng.integers(len(LEAVES)))])
    angle, radius = rng.uniform(0, 2 * np.pi, count), spread * np.sqrt(rng.uniform(size=count))
    at = radius[:, None] * np.column_stack([np.cos(angle), 1.15 * np.sin(angle)])
    tones = 0.62 + 0.3 * np.arange(count) / count + 0.22 * at[:, 1] / spread
    sizes = rng.uniform(0.16, 0.42, (count, 1, 1)) * rng.uniform(0.75, 1.25, (count, 8, 1))
    blobs = (sizes * _circle(1, 8) + at[:, None] + (0, height)).reshape(-1, 2)
    crown = _upright(base, right, blobs).reshape(count, 8, 3)
    flats = [Flat(_upright(base, right, trunk), (74, 60, 48))]
    return flats + [Flat(blob, tuple(leaf * tone)) for blob, tone in zip(crown, tones, strict=True)]


def make_person(
    base: np.ndarray, side: float, camera: np.ndarray, rng: np.random.Generator
) -> list[Flat]:
    """Somebody on their way, as a figure that faces the camera."""
    size, stride = rng.uniform(0.9, 1.06), rng.uniform(0.05, 0.3)
    coat, trousers = (CLOTHES[int(rng.integers(len(CLOTHES)))] for _ in range(2))
    skin = [(224, 182, 150), (150, 104, 76), (96, 66, 50)][int(rng.integers(3))]
    shapes: list[tuple[np.ndarray, Colour]] = [
        (np.array([(-0.02, 0.9), (-0.17, 0.9), (-0.1 - stride, 0), (0.04 - stride, 0)]), trousers),
        (np.array([(0.02, 0.9), (0.17, 0.9), (0.1 + stride, 0), (-0.04 + stride, 0)]), trousers),
        (np.array([(-0.22, 1.42), (-0.32, 0.85), (-0.23, 0.83), (-0.14, 1.36)]), _tone(coat, 0.8)),
        (np.array([(0.22, 1.42), (0.32, 0.85), (0.23, 0.83), (0.14, 1.36)]), _tone(coat, 0.8)),
        (np.array([(-0.2, 0.82), (0.2, 0.82), (0.23, 1.42), (0, 1.53), (-0.23, 1.42)]), coat),
        (_circle(0.13) * (0.85, 1.1) + (0, 1.62), skin),
        (_circle(0.13, 16)[:9] * (0.95, 0.9) + (0, 1.66), (50, 40, 34)),
    ]  # fmt: skip
    right = _right(base, camera)
    return [Flat(_upright(base, right, shape * size), colour) for shape, colour in shapes]


def _distance(point: np.ndarray, camera: np.ndarray) -> float:
    return float(np.hypot(*(point - camera)[:2]))


def _right(base: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """The level unit vector to the right, for somebody who looks from the camera to `base`."""
    x, y = (base - camera)[:2] / _distance(base, camera)
    return np.array([y, -x, 0.0])


def _upright(base: np.ndarray, right: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """(n, 3) points of an (n, 2) shape (to the right, up) on the upright plane through `base`."""
    return base + shape[:, :1] * right + shape[:, 1:] * (0, 0, 1)


def _circle(radius: float, corners: int = 12) -> np.ndarray:
    angles = np.arange(corners) * 2 * np.pi / corners
    return radius * np.column_stack([np.cos(angles), np.sin(angles)])


def _tone(colour: Colour, factor: float) -> Colour:
    red, green, blue = colour
    return red * factor, green * factor, blue * factor
