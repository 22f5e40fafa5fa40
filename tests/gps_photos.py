"""Photos with a position in their EXIF data, for tests of what reads it."""

import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

METRES_A_DEGREE = 111_195.0  # of latitude, on a sphere


def shot(path: Path, latitude: float | None, longitude: float = 0.0, heading: float | None = None):
    """A photo with a position in its EXIF data, or none."""
    exif = Image.Exif()
    if latitude is not None:
        gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
        gps.update({1: "N" if latitude >= 0 else "S", 2: (abs(latitude), 0.0, 0.0)})
        gps.update({3: "E" if longitude >= 0 else "W", 4: (abs(longitude), 0.0, 0.0)})
        if heading is not None:
            gps[17] = heading
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 255, (16, 16, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path, exif=exif)
    return path
