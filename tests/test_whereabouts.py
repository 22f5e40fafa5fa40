"""Each source of positions, and what is right by it."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from tests.gps_photos import METRES_A_DEGREE, shot

from retrieval import feature_folders, open_photos
from retrieval.configs.judge import PositivesConfig, Source
from retrieval.data.metres import to_metres
from retrieval.data.photo_sets import open_set
from retrieval.data.whereabouts import Photos, locate, right_answers
from retrieval.errors import InputError


@pytest.fixture
def walk(tmp_path):
    """Ten database photos 20 m apart on a meridian, and a query 4 m north of every third."""
    for i in range(10):
        shot(tmp_path / f"database/{i}.jpg", 48 + 20 * i / METRES_A_DEGREE, 6.0, 36.0 * i)
    for i in range(0, 10, 3):
        latitude = 48 + (20 * i + 4) / METRES_A_DEGREE
        shot(tmp_path / f"queries/{i}.jpg", latitude, 6.0, 36.0 * i + 10)
    return tmp_path


def opened(folder: Path, **config):
    source = Source(
        database=folder / "database", queries=folder / "queries",
        positives=PositivesConfig(**config),
    )  # fmt: skip
    return open_set(source)


def rows(photos) -> list[list[int]]:
    return [each.tolist() for each in photos.ground_truth["R"].positives]


def near(step: float, reach: float) -> list[list[int]]:
    """The rows within reach of the queries of the walk, by arithmetic."""
    return [
        [row for row in range(10) if abs(step * row - (step * i + 4)) <= reach]
        for i in range(0, 10, 3)
    ]


def test_exif_is_found_by_itself(walk):
    photos = opened(walk)
    assert rows(photos) == near(20.0, 25.0)
    assert rows(opened(walk, positions="exif")) == rows(photos)
    queries, database = photos.whereabouts
    assert (queries.source, database.kind) == ("exif", "metres")
    assert np.diff(database.metres[:, 1]) == pytest.approx(np.full(9, 20.0), abs=0.1)


def test_from_python(walk):
    folders = {"database": walk / "database", "queries": walk / "queries"}
    assert rows(open_photos(**folders)) == rows(open_photos(walk)) == near(20.0, 25.0)
    with pytest.raises(InputError, match="no coordinates"):
        open_photos(**folders, positions="names")


def test_directions_of_exif_count(walk):
    assert rows(opened(walk, positive_angle=12.0)) == [[i] for i in range(0, 10, 3)]


def test_a_photo_without_gps_is_named(walk):
    shot(walk / "database/4.jpg", None)
    with pytest.raises(InputError, match=r"database/4\.jpg: --positions exif.*1 of 14 photos"):
        opened(walk)


def test_no_position_anywhere_says_all_that_can_be_done(walk):
    for path in walk.rglob("*.jpg"):
        shot(path, None)
    with pytest.raises(InputError, match=r"no coordinates.*--positions.*--positives.*--no_labels"):
        opened(walk)
    with pytest.raises(InputError, match=r"--positions exif tells no position of it \(14 of 14"):
        opened(walk, positions="exif")


def test_photos_on_both_sides_of_a_border_of_utm_are_near(tmp_path):
    """Zones 31 and 32 meet at 6° east, where 1e-4 degrees are 7.5 m."""
    for i in range(-3, 4):
        shot(tmp_path / f"database/{i}.jpg", 48.0, 6 + i * 1e-4)
    shot(tmp_path / "queries/west.jpg", 48.0, 6 - 0.5e-4)
    photos = opened(tmp_path, positive_dist_threshold=12.0)
    names = sorted(range(-3, 4), key=str)
    right = {names[row] for row in rows(photos)[0]}
    assert right == {i for i in range(-3, 4) if abs(i + 0.5) * 7.456 <= 12.0}
    assert {-1, 0} <= right


@pytest.mark.parametrize("base", ["beside", "below", "bare"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_of_degrees(walk, base, delimiter):
    lines = [delimiter.join(("File", "Lat", "lon", "heading", "comment"))]
    for folder, offset in (("database", 0), ("queries", 4)):
        for path in sorted((walk / folder).iterdir()):
            i = int(path.stem)
            if base == "bare":
                path = path.rename(path.with_name(f"{folder[0]}{i}.jpg"))
            name = {"beside": f"{folder}/{path.name}", "below": str(path), "bare": path.stem}[base]
            latitude = -33 - (20 * i + offset) / METRES_A_DEGREE
            lines.append(delimiter.join((name, f"{latitude:.8f}", "151.2", "", "x y")))
    table = walk / "positions.csv"
    table.write_text("\ufeff" + "\r\n".join(lines) + "\r\n")
    assert rows(opened(walk, positions=str(table))) == near(20.0, 25.0)


def test_a_table_of_metres_and_headings(walk):
    lines = ["path,easting,northing,zone,heading"]
    for folder, offset in (("database", 0), ("queries", 4)):
        for path in sorted((walk / folder).iterdir()):
            i = int(path.stem)
            lines.append(f"{folder}/{path.name},{500_000 + 20 * i + offset},5000000,32U,{36 * i}")
    (walk / "positions.csv").write_text("\n".join(lines))
    table = str(walk / "positions.csv")
    assert rows(opened(walk, positions=table)) == near(20.0, 25.0)
    assert rows(opened(walk, positions=table, positive_angle=35.0)) == [[0], [3], [6], [9]]
    assert opened(walk, positions=table).whereabouts[0].positions.zones.tolist() == [32] * 4


def test_geojson(walk):
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [11.0, 48 + shift / METRES_A_DEGREE, 520]},
            "properties": {"filename": f"{folder}/{i}.jpg", "heading": 90},
        }
        for folder, step, offset in (("database", 1, 0), ("queries", 3, 4))
        for i in range(0, 10, step)
        for shift in [20 * i + offset]
    ]
    table = walk / "positions.geojson"
    table.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    assert rows(opened(walk, positions=str(table))) == near(20.0, 25.0)


def test_labels_in_a_table_are_places(walk):
    lines = ["image,place"]
    lines += [f"database/{i}.jpg,{'ab'[i % 2]}" for i in range(9)] + ["database/9.jpg,c"]
    lines += [f"queries/{i}.jpg,{'ab'[i % 2]}" for i in range(0, 10, 3)]
    (walk / "labels.csv").write_text("\n".join(lines))
    photos = opened(walk, positions=str(walk / "labels.csv"))
    assert rows(photos) == [[0, 2, 4, 6, 8], [1, 3, 5, 7]] * 2
    assert photos.whereabouts[1].kind == "labels"
    assert photos.whereabouts[1].metres is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,lat\na,1", "its header is"),
        ("", "its header is missing"),
        ("lat,lon\n1,2", "its header is"),
        ("path,lat,lon,latitude\na,1,2,1", "its header is"),
        ("path,lat,lon\na,1", "line 2: 2 cells, not 3"),
        ("path,lat,lon\na,91,0", "line 2: latitude '91'"),
        ("path,lat,lon\na,1,x", "line 2: longitude 'x'"),
        ("path,lat,lon\na,nan,0", "line 2: latitude 'nan'"),
        ("path,lat,lon\na,1,2\na,1,2", "line 3: 'a' comes a second time"),
        ("path,lat,lon\n,1,2", "line 2: no path"),
        ("path,easting,northing,zone\na,1,2,61", "line 2: zone '61'"),
        ("path,easting,northing,zone\na,1,2,-32U", "line 2: zone '-32U'"),
        ("path,lat,lon,easting,northing\na,1,2,,\nb,,,1,2", "write one kind"),
        ('path,lat,lon\n"a,1,2', "cannot be read as CSV"),
    ],
)
def test_a_table_that_cannot_be_understood_says_where(walk, text, message):
    (walk / "bad.csv").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        opened(walk, positions=str(walk / "bad.csv"))
    assert "bad.csv" in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"features": 1},
        {"features": [{"geometry": None, "properties": {}}]},
        {"features": [{"geometry": {"type": "Point", "coordinates": [1]}, "properties": {}}]},
        {"features": [{"geometry": {"type": "LineString", "coordinates": [1, 2]},
                       "properties": {"path": "a"}}]},
        {"features": [{"geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {}}]},
    ],
)  # fmt: skip
def test_geojson_that_cannot_be_understood_is_one_error(walk, content):
    (walk / "bad.geojson").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"bad\.geojson"):
        opened(walk, positions=str(walk / "bad.geojson"))


def test_a_bare_name_that_two_photos_have_is_refused(walk):
    (walk / "bare.csv").write_text("path,lat,lon\n" + "".join(f"{i},48,6\n" for i in range(10)))
    with pytest.raises(InputError, match=r"'0' is .*database/0\.jpg|'0' is .*queries/0\.jpg"):
        opened(walk, positions=str(walk / "bare.csv"))


def test_a_missing_table_is_one_error(walk):
    with pytest.raises(InputError, match=r"none\.csv: cannot be read"):
        opened(walk, positions=str(walk / "none.csv"))


def test_frames_of_two_traverses(tmp_path):
    for i in range(0, 20, 2):
        shot(tmp_path / f"database/summer_{i:05d}.jpg", None)
    for i in (0, 5, 6, 30):
        shot(tmp_path / f"queries/winter2_{i:05d}.jpg", None)
    photos = opened(tmp_path, frame_tolerance=2)
    assert rows(photos) == [
        [row for row in range(10) if abs(2 * row - i) <= 2] for i in (0, 5, 6, 30)
    ]
    assert photos.whereabouts[0].metres is None  # no map is drawn of numbers
    assert rows(opened(tmp_path, frame_tolerance=0)) == [[0], [], [3], []]
    with pytest.raises(InputError, match="frames have none"):
        opened(tmp_path, frame_tolerance=2, positive_angle=10.0)
    shot(tmp_path / "database/view.jpg", None)
    with pytest.raises(InputError, match=r"view\.jpg: --positions frames"):
        opened(tmp_path, frame_tolerance=2)


def test_a_folder_is_a_place(tmp_path):
    for place in ("castle", "old/bridge", "tower"):
        for i in range(2):
            shot(tmp_path / f"database/{place}/{i}.jpg", None)
    for place in ("old/bridge", "castle", "elsewhere"):
        shot(tmp_path / f"queries/{place}/q.jpg", None)
    photos = opened(tmp_path, positions="folders")
    names = [path.relative_to(tmp_path / "queries").parent.as_posix() for path in photos.queries]
    found = dict(zip(names, rows(photos), strict=True))
    assert found == {"castle": [0, 1], "old/bridge": [2, 3], "elsewhere": []}
    shot(tmp_path / "database/loose.jpg", None)
    with pytest.raises(InputError, match=r"loose\.jpg: --positions folders"):
        opened(tmp_path, positions="folders")


def test_names_of_two_zones_are_brought_together(tmp_path):
    for place, side in (("database", 1), ("queries", -1)):
        found = to_metres(np.array([[48.0, 6 + side * 0.5e-4]]), np.array([np.nan]))
        (east, north), zone = found.utm[0], int(found.zones[0])
        assert zone == (32 if side > 0 else 31)
        shot(tmp_path / f"{place}/@{east:.2f}@{north:.2f}@{zone}@U@@@@@.jpg", None)
    assert rows(opened(tmp_path, positive_dist_threshold=10.0)) == [[0]]


def test_what_is_known_of_some_only(walk):
    shot(walk / "database/4.jpg", None)
    group = Photos(walk / "database", sorted((walk / "database").iterdir()))
    (found,) = locate([group], PositivesConfig(), complete=False)
    assert np.flatnonzero(~found.known).tolist() == [4]
    kept = found.rows(np.flatnonzero(found.known))
    assert kept.known.all()
    truth = right_answers(kept, kept, PositivesConfig(positive_dist_threshold=21))
    assert truth.positives[3].tolist() == [2, 3]


def test_elsewhere_is_another_place_by_any_kind(walk):
    _, database = opened(walk).whereabouts
    others = np.arange(10)
    far = database.elsewhere(3, others, PositivesConfig(positive_dist_threshold=30))
    assert far.tolist() == [abs(20 * (row - 3)) > 30 for row in range(10)]
    labels = locate(
        [Photos(walk, sorted(walk.rglob("*.jpg")))], PositivesConfig(positions="folders")
    )
    assert labels[0].elsewhere(0, np.array([1, 12]), PositivesConfig()).tolist() == [False, True]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"positions": "gps"}, "--positions gps: expected one of auto, names, exif"),
        ({"positions": "exif", "frame_tolerance": 1}, "exclude each other"),
        ({"positions": "frames"}, "needs --frame_tolerance"),
        ({"frame_tolerance": -1}, "--frame_tolerance -1"),
    ],
)
def test_settings_that_cannot_be(values, message):
    with pytest.raises(InputError, match=message):
        PositivesConfig(**values)


def test_a_source_is_opened_again_from_anywhere(walk, monkeypatch):
    """What a run folder keeps names the table by its whole path."""
    lines = [f"{path.relative_to(walk)},1,2\n" for path in walk.rglob("*.jpg")]
    (walk / "t.csv").write_text("path,lat,lon\n" + "".join(lines))
    monkeypatch.chdir(walk)
    source = Source(Path("set"), positives=PositivesConfig(positions="t.csv"))
    told = json.loads(json.dumps(feature_folders.source_as_json(source)))
    again = feature_folders.source_from_json(told)
    assert again.positives.positions == str(walk / "t.csv")
    assert asdict(again)["dataset"] == walk / "set"


# ---- real photos


def test_a_real_walk_is_its_own_database(real_photos):
    walk = real_photos / "gps_walk"
    photos = open_set(Source(database=walk, queries=walk))
    found = photos.ground_truth["R"]
    assert len(found) == 29
    metres = photos.whereabouts[1].metres
    for query, right in enumerate(found.positives):
        apart = np.linalg.norm(metres - metres[query], axis=1)
        expected = [row for row in np.flatnonzero(apart <= 25) if row != query]
        assert right.tolist() == expected


def test_a_real_corridor_by_its_frames(real_photos):
    folder = real_photos / "corridor"
    config = PositivesConfig(frame_tolerance=2)
    by_frames = open_set(Source(None, folder / "ref", folder / "query", positives=config))
    file = folder / "positives.json"
    by_file = open_set(Source(None, folder / "ref", folder / "query", positives_file=file))
    assert rows(by_frames) == rows(by_file)
