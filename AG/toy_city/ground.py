"""The ground of a street: pavement, kerbs and asphalt."""

import numpy as np

from toy_city.sheet import Sheet, noise, scaled


def paint_ground(
    length: float, width: float, kerb: float, scale: float, rng: np.random.Generator
) -> np.ndarray:
    """A length of street seen from above: pavement, kerb, asphalt, markings, covers, patches.

    x runs along the street; `kerb` is the distance of the kerbs from its middle, in metres.
    """
    sheet = Sheet(length, width, scale, (104, 104, 106))
    middle = width / 2
    for _ in range(max(1, int(length / 3))):
        tone = int(rng.integers(84, 122))
        x, z = rng.uniform(-2, length), middle + rng.uniform(-kerb, kerb - 1.5)
        sheet.box(x, z, rng.uniform(0.8, 5), rng.uniform(0.5, 1.6), (tone, tone, tone))
    for x in np.arange(1.0, length, 6.0):
        sheet.box(x, middle - 0.07, 3.0, 0.14, (214, 212, 204))
    for x in rng.uniform(0, length, max(1, int(length / 9))):
        sheet.disc(x, middle + rng.uniform(-3, 3), 0.35, (66, 64, 62))
    slabs = scaled((168, 162, 152), rng.uniform(0.9, 1.05))
    for low in (0.0, middle + kerb):
        sheet.box(0, low, length, middle - kerb, slabs)
        for x in np.arange(0, length, 1.2):
            sheet.box(x, low, 0.05, middle - kerb, (140, 134, 126))
        for z in np.arange(low, low + middle - kerb, 1.2):
            sheet.box(0, z, length, 0.05, (140, 134, 126))
    for z in (middle - kerb - 0.15, middle + kerb):
        sheet.box(0, z, length, 0.15, (198, 194, 186))
    if rng.random() < 0.25:
        start = rng.uniform(1, max(1.1, length - 5))
        for z in np.arange(middle - kerb + 0.4, middle + kerb - 0.5, 1.0):
            sheet.box(start, z, 3.2, 0.5, (222, 220, 212))
    sheet.multiply(noise(sheet.pixels.shape[:2], 2.0 * scale, 0.06, rng))
    sheet.multiply(noise(sheet.pixels.shape[:2], 2, 0.04, rng))
    return sheet.pixels
