"""Latitude and longitude as metres (UTM), so that photos that are near each other share a zone.

A zone of UTM is six degrees wide, and metres of two zones have nothing in common. So not every
photo is counted in the zone that it lies in: all those of one region, of at most `_WIDEST` degrees,
are counted in the zone of the region's middle, across its borders. Six degrees off that middle a
metre is wrong by half a per cent; the equator and the international date line divide nothing.
"""

import numpy as np
import utm

from retrieval.data.places import Positions

# Degrees of longitude that one region may span.
_WIDEST = 12.0
# Where UTM is made for: beyond, meridians lie too close.
_SOUTH, _NORTH = -80.0, 84.0


def to_metres(degrees: np.ndarray, heading: np.ndarray) -> Positions:
    """The positions of latitudes and longitudes (N, 2) in degrees, and headings (N,) in degrees.

    nan where UTM has no metres: for latitudes beyond 84° north or 80° south, and for nan.
    """
    degrees = np.asarray(degrees, np.float64).reshape(-1, 2)
    metres = np.full(degrees.shape, np.nan)
    zones = np.zeros(len(degrees), np.int64)
    known = np.isfinite(degrees).all(axis=1)
    known &= (degrees[:, 0] >= _SOUTH) & (degrees[:, 0] <= _NORTH)
    for rows in _regions(degrees[:, 1], np.flatnonzero(known)):
        latitudes, longitudes = degrees[rows].T
        first = longitudes[0]
        middle = first + np.median(_from(longitudes, first))
        number = int((middle + 180) // 6) % 60 + 1
        is_north = bool(np.median(latitudes) >= 0)
        # One side of the equator after the other: the library takes no mixture.
        for side in (latitudes >= 0, latitudes < 0):
            if side.any():
                east, north, *_ = utm.from_latlon(
                    latitudes[side],
                    longitudes[side],
                    force_zone_number=number,
                    force_northern=is_north,
                )
                metres[rows[side]] = np.column_stack([east, north])
        zones[rows] = number if is_north else -number
    return Positions(metres, np.asarray(heading, np.float64).reshape(-1), zones)


def _from(longitudes: np.ndarray, first: float) -> np.ndarray:
    """Longitudes as degrees east of ``first``, the shorter way round, in [-180, 180)."""
    turned: np.ndarray = (longitudes - first + 180) % 360 - 180
    return turned


def _regions(longitudes: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Rows by regions of at most `_WIDEST` degrees, cut where longitudes (N,) leave wide gaps.

    First the circle is opened at its widest gap; then what is too wide is cut at its widest one.
    """
    if len(rows) == 0:
        return []
    rows = rows[np.argsort(longitudes[rows] % 360, kind="stable")]
    around = longitudes[rows] % 360
    gaps = np.diff(around, append=around[0] + 360)
    start = (int(gaps.argmax()) + 1) % len(rows)
    rows = np.roll(rows, -start)
    eastward = (longitudes[rows] - longitudes[rows[0]]) % 360
    waiting, found = [(rows, eastward)], []
    while waiting:
        rows, eastward = waiting.pop()
        if eastward[-1] - eastward[0] <= _WIDEST:
            found.append(rows)
            continue
        cut = int(np.diff(eastward).argmax()) + 1
        waiting += [(rows[:cut], eastward[:cut]), (rows[cut:], eastward[cut:])]
    return found


def in_shared_zones(positions: Positions) -> Positions:
    """Positions of several zones of UTM, counted anew so that those of a region share one.

    Positions of one zone or none are returned as they are, and so are those of which any can be no
    metres of the zone that it tells, as of a local grid.
    """
    zones = np.unique(positions.zones)
    if len(zones) < 2 or 0 in zones:
        return positions
    degrees = np.empty_like(positions.utm)
    for zone in zones:
        rows = np.flatnonzero(positions.zones == zone)
        east, north = positions.utm[rows].T
        try:
            found = utm.to_latlon(east, north, abs(int(zone)), northern=bool(zone > 0))
        except utm.OutOfRangeError:
            return positions
        degrees[rows] = np.column_stack(found)
    return to_metres(degrees, positions.heading)
