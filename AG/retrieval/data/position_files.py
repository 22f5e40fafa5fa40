"""Positions of photos in a table: .csv, or GeoJSON."""

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from retrieval.data import places
from retrieval.data.positives import read_json
from retrieval.errors import InputError

# What the columns are called, in lower case: the first name is ours, the others are those of
# Mapillary's, exiftool's and common tables.
_COLUMNS = {
    "path": (
        "path",
        "file",
        "filename",
        "file_name",
        "sourcefile",
        "image",
        "photo",
        "name",
        "key",
    ),
    "latitude": ("latitude", "lat", "gpslatitude"),
    "longitude": ("longitude", "lon", "lng", "long", "gpslongitude"),
    "east": ("easting", "east", "utm_east"),
    "north": ("northing", "north", "utm_north"),
    "zone": ("zone", "utm_zone"),
    "heading": ("heading", "direction", "compass_angle", "ca", "yaw", "gpsimgdirection"),
    "label": ("label", "place", "class"),
}
_EXPECTED = (
    "expected the columns path, and latitude and longitude (degrees), or easting and northing "
    "(metres), or label; and if known heading (degrees) and zone (of UTM, as 32 or 32U)"
)


class Told(NamedTuple):
    """What is told of where one photo was taken; None, or zone 0, where it is not.

    degrees: latitude and longitude. metres: east and north. heading: degrees. zone: of UTM, as a
    `Place` has it. label: the name of the place.
    """

    degrees: tuple[float, float] | None = None
    metres: tuple[float, float] | None = None
    heading: float | None = None
    zone: int = 0
    label: str | None = None


def read_positions(source: Path) -> dict[str, Told]:
    """What a file tells of each photo, by the path that it gives.

    - ``.csv`` with a header: a column path, and latitude and longitude, or easting and northing, or
      label; heading and zone where they are known. An empty cell says that it is not known.
    - ``.geojson`` or ``.json``: a FeatureCollection of Points [longitude, latitude] with the
      properties path, and heading and label where they are known.

    Raises InputError, naming line and value, for what is missing, malformed or told twice.
    """
    rows = _csv_rows(source) if source.suffix.lower() == ".csv" else _geojson_rows(source)
    found: dict[str, Told] = {}
    for where, row in rows:
        path = str(row.get("path") or "").strip().replace("\\", "/").removeprefix("./")
        if not path:
            raise InputError(f"{source}, {where}: no path; {_EXPECTED}")
        if path in found:
            raise InputError(f"{source}, {where}: {path!r} comes a second time")
        found[path] = _told(f"{source}, {where}", row)
    points = [told for told in found.values() if told.degrees or told.metres]
    if not (all(told.degrees for told in points) or all(told.metres for told in points)):
        raise InputError(f"{source}: some photos have degrees alone, some metres; write one kind")
    return found


def _csv_rows(source: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            text = file.read()
        first = text.partition("\n")[0]
        delimiter = max(",;\t", key=first.count)  # as spreadsheets of many countries write it
        lines = list(csv.reader(text.splitlines(), delimiter=delimiter, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{source}: cannot be read as CSV ({error})") from error
    header = [_column(name) for name in lines[0]] if lines else []
    named = [name for name in header if name]
    if "path" not in named or not _is_position(named) or len(set(named)) < len(named):
        raise InputError(f"{source}: its header is {lines[0] if lines else 'missing'}; {_EXPECTED}")
    for number, line in enumerate(lines[1:], 2):
        if len(line) not in (0, len(header)):
            raise InputError(f"{source}, line {number}: {len(line)} cells, not {len(header)}")
        if line:
            cells = zip(header, line, strict=True)
            yield f"line {number}", {name: cell for name, cell in cells if name}


def _is_position(columns: Sequence[str]) -> bool:
    pairs = ({"latitude", "longitude"}, {"east", "north"}, {"label"})
    return any(pair <= set(columns) for pair in pairs)


def _column(name: str) -> str:
    """Our name for a column, or an empty text for one that tells nothing of positions."""
    plain = name.strip().lower()
    return next((ours for ours, names in _COLUMNS.items() if plain in names), "")


def _geojson_rows(source: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    content = read_json(source)
    features = content.get("features") if isinstance(content, dict) else None
    if not isinstance(features, list):
        raise InputError(f"{source}: expected GeoJSON, a FeatureCollection of Points")
    for number, feature in enumerate(features, 1):
        where = f"feature {number}"
        try:
            kind, point = feature["geometry"]["type"], feature["geometry"]["coordinates"]
            longitude, latitude = point[:2]
            properties = dict(feature["properties"])
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(f"{source}, {where}: expected a Point with properties") from error
        if kind != "Point":
            raise InputError(f"{source}, {where}: a {kind}, not a Point")
        told = {_column(str(name)): value for name, value in properties.items()}
        place = {"latitude": latitude, "longitude": longitude}
        yield where, {name: told.get(name) for name in ("path", "heading", "label")} | place


def _told(where: str, row: Mapping[str, Any]) -> Told:
    latitude = _number(where, row, "latitude", 90)
    longitude = _number(where, row, "longitude", 180)
    east, north = _number(where, row, "east"), _number(where, row, "north")
    label = str(row.get("label") or "").strip() or None
    return Told(
        None if latitude is None or longitude is None else (latitude, longitude),
        None if east is None or north is None else (east, north),
        _number(where, row, "heading"),
        _zone(where, str(row.get("zone") or "").strip()),
        label,
    )


def _number(where: str, row: Mapping[str, Any], name: str, most: float = math.inf) -> float | None:
    value = row.get(name)
    if value is None or not str(value).strip():
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or abs(number) > most:
        limit = f" between -{most} and {most}" if most < math.inf else ""
        raise InputError(f"{where}: {name} {value!r}; expected a number{limit}, or nothing")
    return number


def _zone(where: str, text: str) -> int:
    """The zone in 32, 32U, or -32 for the southern half of the world; 0 for an empty text."""
    if not text:
        return 0
    found = re.fullmatch(r"(-?)(\d{1,2})([A-Za-z]?)", text)
    zone = places.zone_of((found[2], found[3] or "N")) if found else 0
    if found is None or zone == 0 or (found[1] and found[3]):
        raise InputError(f"{where}: zone {text!r}; expected one of UTM, as 32, 32U, or -56")
    return -zone if found[1] else zone
