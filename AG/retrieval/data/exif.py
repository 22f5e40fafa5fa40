"""What a camera wrote into a photo: where it stood, where it looked, when."""

import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from PIL import ExifTags, Image

from retrieval.data.images import DECODE_ERRORS, open_header, unreadable

_GPS, _BASE = ExifTags.GPS, ExifTags.Base


class ExifPosition(NamedTuple):
    """Where a photo was taken, by its own GPS data.

    latitude, longitude: degrees (WGS 84), north and east positive. heading: the direction of view
    in degrees clockwise from north, in [0, 360), or None. time: as `exif_time` tells it.
    """

    latitude: float
    longitude: float
    heading: float | None
    time: datetime | None


def exif_position(photo: str | os.PathLike[str] | Image.Image) -> ExifPosition | None:
    """The position in a photo's EXIF data; of a path, only the file's header is read.

    None where there is none that can be used: no GPS data, a hemisphere that is not told, degrees
    out of range, or latitude and longitude both exactly 0, which cameras write that know neither.
    Raises ImageError for a file that is no image.
    """
    exif = _exif(photo)
    gps = _block(exif, ExifTags.IFD.GPSInfo)
    latitude = _degrees(gps, _GPS.GPSLatitude, _GPS.GPSLatitudeRef, "NS", 90)
    longitude = _degrees(gps, _GPS.GPSLongitude, _GPS.GPSLongitudeRef, "EW", 180)
    if latitude is None or longitude is None or latitude == longitude == 0:
        return None
    heading = _number(gps.get(_GPS.GPSImgDirection))
    if heading is not None:
        heading = heading % 360 if 0 <= heading <= 360 else None
    return ExifPosition(latitude, longitude, heading, _time(exif))


def exif_time(photo: str | os.PathLike[str] | Image.Image) -> datetime | None:
    """When a photo was taken: by its clock, with a time zone if it tells one; else by GPS, in UTC.

    None where neither is told. Raises ImageError for a file that is no image.
    """
    return _time(_exif(photo))


def _exif(photo: str | os.PathLike[str] | Image.Image) -> Image.Exif:
    """The EXIF data; empty where a camera or an editor wrote a broken block around sound pixels."""
    if isinstance(photo, Image.Image):
        try:
            return photo.getexif()
        except DECODE_ERRORS:
            return Image.Exif()
    try:
        with open_header(photo) as image:
            exif = _exif(image)
            for block in (ExifTags.IFD.GPSInfo, ExifTags.IFD.Exif):
                _block(exif, block)  # read while the file is open; Pillow keeps what it has read
            return exif
    except DECODE_ERRORS as error:
        raise unreadable(photo, error) from error


def _block(exif: Image.Exif, block: ExifTags.IFD) -> Mapping[int, Any]:
    try:
        return exif.get_ifd(block)
    except DECODE_ERRORS:
        return {}


def _degrees(
    gps: Mapping[int, Any], value: int, hemisphere: int, letters: str, most: int
) -> float | None:
    """Signed degrees of degrees, minutes and seconds; the second letter is the negative half."""
    parts = gps.get(value)
    numbers = [_number(part) for part in (parts if isinstance(parts, tuple) else (parts,))]
    letter = _text(gps.get(hemisphere)).upper()[:1]
    if not letter or letter not in letters or len(numbers) > 3:
        return None
    total = 0.0
    for number, unit in zip(numbers, (1, 60, 3600)[: len(numbers)], strict=True):
        if number is None or number < 0:
            return None
        total += number / unit
    if total > most:
        return None
    return total if letter == letters[0] else -total


def _time(exif: Image.Exif) -> datetime | None:
    detail = _block(exif, ExifTags.IFD.Exif)
    for tag, zone in (
        (_BASE.DateTimeOriginal, _BASE.OffsetTimeOriginal),
        (_BASE.DateTimeDigitized, _BASE.OffsetTimeDigitized),
    ):
        clock, offset = _text(detail.get(tag)), _text(detail.get(zone))
        for text, form in ((clock + offset, "%Y:%m:%d %H:%M:%S%z"), (clock, "%Y:%m:%d %H:%M:%S")):
            found = _parsed(text, form)
            if found is not None:
                return found
    gps = _block(exif, ExifTags.IFD.GPSInfo)
    day = _parsed(_text(gps.get(_GPS.GPSDateStamp)), "%Y:%m:%d")
    parts = gps.get(_GPS.GPSTimeStamp)
    clock_parts = [_number(part) for part in parts] if isinstance(parts, tuple) else []
    if day is None or len(clock_parts) != 3 or None in clock_parts:
        return None
    hours, minutes, seconds = (part or 0.0 for part in clock_parts)
    return day.replace(tzinfo=UTC) + timedelta(hours=hours, minutes=minutes, seconds=seconds)


def _parsed(text: str, form: str) -> datetime | None:
    try:
        return datetime.strptime(text, form)
    except ValueError:
        return None


def _number(value: Any) -> float | None:
    """A finite number of an EXIF rational, of which the lower part may be 0."""
    try:
        number = float(value)
    except (TypeError, ValueError, ArithmeticError):
        return None
    return number if math.isfinite(number) else None


def _text(value: Any) -> str:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return text.strip("\0 ") if isinstance(text, str) else ""
