from datetime import UTC, datetime, timedelta, timezone

import pytest
from PIL import ExifTags, Image

from retrieval.data.exif import ExifPosition, exif_position, exif_time
from retrieval.data.images import ImageError

LUND = {1: "N", 2: (55.0, 41.0, 53.4), 3: "E", 4: (13.0, 11.0, 43.4)}
SYDNEY = {1: "S", 2: (33.0, 51.5, 0.0), 3: "E", 4: (151.0, 12.0, 36.0)}


def block(gps=None, taken=None, **details) -> Image.Exif:
    """EXIF data with GPS tags by number, and the time of exposure."""
    exif = Image.Exif()
    if taken is not None:
        details["DateTimeOriginal"] = taken
    named = {ExifTags.Base[name].value: value for name, value in details.items()}
    for ifd, values in ((ExifTags.IFD.Exif, named), (ExifTags.IFD.GPSInfo, gps or {})):
        if values:  # Pillow writes TIFF from the one, the other formats from the other
            exif.get_ifd(ifd).update(values)
            exif[ifd] = values
    return exif


@pytest.fixture
def shot(tmp_path):
    def write(exif: Image.Exif | bytes, name="photo.jpg"):
        path = tmp_path / name
        Image.new("RGB", (32, 24)).save(path, exif=exif)
        return path

    return write


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_position_of_each_format(shot, name):
    path = shot(block({**LUND, 17: 271.5}), name)
    latitude, longitude, heading, time = exif_position(path)
    assert latitude == pytest.approx(55 + 41 / 60 + 53.4 / 3600, abs=1e-7)
    assert longitude == pytest.approx(13 + 11 / 60 + 43.4 / 3600, abs=1e-7)
    assert heading == pytest.approx(271.5)
    assert time is None


def test_phones_write_positions_into_heic_too(shot):
    pytest.importorskip("pillow_heif").register_heif_opener()
    assert exif_position(shot(block(SYDNEY), "a.heic"))[:2] == pytest.approx(
        (-(33 + 51.5 / 60), 151 + 12 / 60 + 36 / 3600)
    )


def test_an_open_image_is_read_as_its_file(shot):
    path = shot(block({**SYDNEY, 17: 10}, "2024:05:06 07:08:09"))
    with Image.open(path) as image:
        assert exif_position(image) == exif_position(path)
    assert exif_position(Image.new("RGB", (4, 4))) is None


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, (55.0, 13.0)),
        ({1: "S"}, (-55.0, 13.0)),
        ({3: "W"}, (55.0, -13.0)),
        ({1: "n\0"}, (55.0, 13.0)),
        ({2: (55.25,)}, (55.25, 13.0)),
        ({1: ""}, None),  # north or south?
        ({1: "X"}, None),
        ({2: (91.0, 0.0, 0.0)}, None),
        ({4: (180.0, 0.0, 1.0)}, None),
        ({2: (0.0, 0.0, 0.0), 4: (0.0, 0.0, 0.0)}, None),  # a camera that knows neither
        ({2: (0.0, 0.0, 0.0)}, (0.0, 13.0)),  # on the equator
    ],
)
def test_hemispheres_and_what_is_no_position(shot, changed, expected):
    plain = {1: "N", 2: (55.0, 0.0, 0.0), 3: "E", 4: (13.0, 0.0, 0.0)}
    found = exif_position(shot(block(plain | changed)))
    assert (None if found is None else found[:2]) == expected


@pytest.mark.parametrize("tag", [1, 2, 3, 4])
def test_a_part_that_is_missing_leaves_no_position(shot, tag):
    assert exif_position(shot(block({n: v for n, v in LUND.items() if n != tag}))) is None


@pytest.mark.parametrize(
    ("written", "heading"), [(0.0, 0.0), (359.5, 359.5), (360.0, 0.0), (400.0, None), (None, None)]
)
def test_direction_of_view(shot, written, heading):
    more = {} if written is None else {17: written}
    assert exif_position(shot(block(LUND | more))).heading == heading


def test_a_rational_with_zero_below_is_no_number(shot):
    path = shot(block({**LUND, 17: 77.0}))
    data = path.read_bytes()
    assert data.count((77).to_bytes(4, "big") + (1).to_bytes(4, "big")) == 1
    path.write_bytes(
        data.replace((77).to_bytes(4, "big") + (1).to_bytes(4, "big"), b"\0\0\0\x4d\0\0\0\0")
    )
    assert exif_position(path).heading is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"taken": "2024:05:06 07:08:09"}, datetime(2024, 5, 6, 7, 8, 9)),
        (
            {"taken": "2024:05:06 07:08:09", "OffsetTimeOriginal": "+02:00"},
            datetime(2024, 5, 6, 7, 8, 9, tzinfo=timezone(timedelta(hours=2))),
        ),
        ({"DateTimeDigitized": "2024:05:06 07:08:09"}, datetime(2024, 5, 6, 7, 8, 9)),
        (
            {"gps": {29: "2024:05:06", 7: (23.0, 59.0, 1.5)}},
            datetime(2024, 5, 6, 23, 59, 1, 500_000, tzinfo=UTC),
        ),
        ({"gps": {29: "2024:05:06"}}, None),
        ({"taken": "0000:00:00 00:00:00"}, None),
        ({}, None),
    ],
)
def test_time(shot, written, expected):
    assert exif_time(shot(block(**written))) == expected


def test_time_stands_beside_the_position(shot):
    found = exif_position(shot(block(LUND, "2024:05:06 07:08:09")))
    assert found.time == datetime(2024, 5, 6, 7, 8, 9)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's
def test_every_cut_and_every_flipped_byte_of_the_block_is_survived(shot):
    """Each damaged file gives a position, or none, or is no image; nothing else happens."""
    path = shot(block({**LUND, 17: 12.0}, "2024:05:06 07:08:09"))
    data = path.read_bytes()
    begin, end = data.index(b"Exif\0\0"), data.index(b"\xff\xdb")
    for at in range(begin, end):
        changed = bytearray(data)
        changed[at] ^= 0xFF
        for damaged in (bytes(changed), data[:at]):
            path.write_bytes(damaged)
            try:
                found = exif_position(path)
            except ImageError:
                continue
            assert found is None or isinstance(found, ExifPosition)
            if found is not None:
                assert abs(found.latitude) <= 90
                assert abs(found.longitude) <= 180


def test_what_is_no_image_is_an_error(tmp_path):
    (tmp_path / "a.jpg").write_text("no photo")
    for name in ("a.jpg", "missing.jpg"):
        with pytest.raises(ImageError, match=name):
            exif_position(tmp_path / name)


def test_a_real_walk(real_photos):
    walk = sorted((real_photos / "gps_walk").glob("*.jpg"))
    assert len(walk) == 29
    found = [exif_position(path) for path in walk]
    assert all(each is not None for each in found)
    assert found[0][:2] == pytest.approx((55.698167, 13.195389), abs=1e-6)
    assert max(each.latitude for each in found) - min(each.latitude for each in found) < 0.002
