"""Sun, sky and haze, and what a camera makes of them."""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Light:
    """Sun, sky and haze. Colours are RGB factors around 1, or RGB in 0 … 255 for sky and haze."""

    sun: np.ndarray  # unit vector towards the sun
    sunlight: np.ndarray
    ambient: np.ndarray
    zenith: np.ndarray
    haze: np.ndarray
    visibility: float  # metres until haze hides all but 1/e of a colour
    clouds: float  # cloud cover, 0 … 1

    def on(self, normal: np.ndarray, shadowed: bool = False) -> np.ndarray:
        """The RGB light that falls on a surface with this unit normal."""
        direct = 0.0 if shadowed else max(0.0, float(normal @ self.sun))
        return self.ambient + self.sunlight * direct


def draw_light(hour: float, rng: np.random.Generator) -> Light:
    """Sun, sky and haze at an hour (6 … 20): the weather is random."""
    elevation = np.radians(4 + 52 * np.sin(np.pi * np.clip((hour - 5.5) / 15, 0, 1)))
    azimuth = np.radians(90 + (hour - 6) * 15 + rng.uniform(-10, 10))
    sun = np.array(
        [
            np.sin(azimuth) * np.cos(elevation),
            np.cos(azimuth) * np.cos(elevation),
            np.sin(elevation),
        ]
    )
    overcast = rng.uniform(0, 1) ** 1.5
    day = np.clip(np.degrees(elevation) / 35, 0.0, 1.0)
    warm, white = np.array([1.0, 0.66, 0.4]), np.array([1.0, 0.95, 0.86])
    sunlight = (warm + (white - warm) * day) * (1 - 0.85 * overcast) * (0.5 + 0.25 * day)
    dusk, noon = np.array([0.46, 0.45, 0.56]), np.array([0.62, 0.66, 0.72])
    ambient = (dusk + (noon - dusk) * day) * (0.9 + 0.3 * overcast)
    zenith = np.array([70, 122, 200]) * (0.55 + 0.45 * day)
    zenith = zenith + overcast * (np.array([168, 176, 186]) - zenith)
    haze = np.array([236, 186, 150]) + day * (np.array([214, 224, 234]) - np.array([236, 186, 150]))
    return Light(
        sun,
        sunlight,
        ambient,
        zenith,
        haze * (1 - 0.1 * overcast),
        rng.uniform(120, 500),
        float(np.clip(overcast + rng.uniform(0.1, 0.5), 0, 1)),
    )


def paint_sky(rays: np.ndarray, light: Light, cloud_map: np.ndarray) -> np.ndarray:
    """The sky, bluer towards the zenith, hazy at the horizon: (h, w, 3) uint8.

    `rays` (h, w, 3) are unit vectors in the world, one a pixel. The clouds lie on a level plane,
    over which `cloud_map`, (m, n) float32 in 0 … 1, is repeated.
    """
    up = np.maximum(rays[..., 2], 0.02)
    blue = np.minimum(1, up * 1.6)[..., None]
    sky = light.haze * (1 - blue) + light.zenith * blue
    east, north = (rays[..., axis] / up * 60 for axis in (0, 1))
    density = cv2.remap(cloud_map, east, north, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    cover = np.clip((density - 1 + light.clouds) * 4, 0, 1) * np.clip(up * 4, 0, 1)
    cloud = light.haze * 1.06 * (1.08 - 0.2 * density[..., None])
    sky += cover[..., None] * (cloud - sky)
    return np.clip(sky, 0, 255).astype(np.uint8)


def make_cloud_map(rng: np.random.Generator, size: int = 512) -> np.ndarray:
    """Fractal noise in 0 … 1 that repeats without a seam: (size, size) float32."""
    total = np.zeros((size, size), np.float32)
    for octave in range(2, 8):
        cells = 2**octave
        grid = np.pad(rng.random((cells, cells)).astype(np.float32), 2, mode="wrap")
        scale = size // cells
        large = cv2.resize(grid, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        total += large[2 * scale : -2 * scale, 2 * scale : -2 * scale] / 2**octave
    return (total - total.min()) / (total.max() - total.min())


def develop(picture: np.ndarray, wear: float, rng: np.random.Generator) -> np.ndarray:
    """The camera's part: exposure, white balance, gamma, contrast, vignette, blur and noise.

    `wear`, 0 … 1, says how strong all of it is; the picture is (h, w, 3) uint8 RGB.
    """
    h, w = picture.shape[:2]
    tones = np.linspace(0, 1, 256)[:, None]
    balance = np.exp(rng.normal(0, 0.05 * wear, 3))
    # The camera sets its exposure by the mean brightness, but not wholly.
    automatic = (118 / max(float(picture.mean()), 1.0)) ** 0.7
    exposed = tones * balance * automatic * 2 ** rng.normal(0, 0.25 * wear)
    curve = np.clip(exposed, 0, 1) ** 2 ** rng.normal(0, 0.25 * wear)
    curve = 0.5 + (curve - 0.5) * (1 + rng.normal(0, 0.15 * wear))
    table = np.clip(curve * 255, 0, 255).astype(np.uint8)
    picture = cv2.LUT(picture, table[None])
    sigma = abs(rng.normal(0, 0.6 * wear)) * w / 224
    if sigma > 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    y, x = np.linspace(-1, 1, h)[:, None], np.linspace(-1, 1, w)[None]
    fall = 1 - rng.uniform(0, 0.3) * wear * (x * x + y * y) / 2
    noise = rng.standard_normal((h, w, 3), np.float32) * np.float32(rng.uniform(0.5, 9) * wear)
    return np.clip(picture * fall[..., None].astype(np.float32) + noise, 0, 255).astype(np.uint8)
