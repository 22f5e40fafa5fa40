"""The toy city: its plan, its geometry, its files."""

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from make_toy_city import main
from retrieval.errors import InputError
from toy_city.city import make_toy_city
from toy_city.config import ToyCityConfig
from toy_city.light import Light, make_cloud_map
from toy_city.plan import FOLDERS, plan_city
from toy_city.scene import Camera, Flat, Painter, Plane
from toy_city.street import HALF_WIDTH, Street

SMALL = ToyCityConfig(
    image_size=48,
    train_streets=2,
    val_streets=1,
    test_streets=1,
    cells_per_street=1,
    images_per_class=10,
    val_queries=3,
    test_queries=7,
)
SCRIPT = Path(__file__).parents[1] / "AG" / "make_toy_city.py"
DAY = Light(
    sun=np.array([0.0, 0.0, 1.0]),
    sunlight=np.zeros(3),
    ambient=np.ones(3),
    zenith=np.array([80.0, 120.0, 200.0]),
    haze=np.array([220.0, 225.0, 230.0]),
    visibility=1e9,
    clouds=0.5,
)


def fields(path: str) -> list[str]:
    return path.rsplit("/", 1)[-1].split("@")


def place(path: str) -> tuple[float, float, float]:
    values = fields(path)
    return float(values[1]), float(values[2]), float(values[9])


plans_of = cache(plan_city)


def paths(config: ToyCityConfig, folder: str) -> list[str]:
    every = [view.path for plan in plans_of(config) for view in plan.views]
    return [path for path in every if path.startswith(folder + "/")]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "city"
    assert make_toy_city(folder, SMALL, workers=2)
    return folder


# The plan


@pytest.mark.parametrize("config", [ToyCityConfig(), SMALL])
def test_cosplace_defaults_use_every_training_image_in_one_group(config):
    classes: dict[tuple[int, int, int], int] = {}
    for path in paths(config, "train"):
        east, north, heading = place(path)
        key = (int(east // 10), int(north // 10), int(heading // 30))
        classes[key] = classes.get(key, 0) + 1
    groups = {(east % 5, north % 5, heading % 2) for east, north, heading in classes}
    assert len(groups) == 1
    assert min(classes.values()) >= 10
    streets, cells = config.train_streets, config.cells_per_street
    assert len(classes) == streets * cells * 6


def test_default_city_is_large_enough():
    config = ToyCityConfig()
    assert len(paths(config, "train")) >= 1500
    assert len(paths(config, "test/queries_v1")) >= 500
    assert 500 <= len(paths(config, "test/database")) <= 1000
    assert len(paths(config, "val/queries")) == config.val_queries


def test_names_have_the_fields_of_sf_xs_and_the_pose_that_was_used():
    for plan in plans_of(SMALL):
        for view in plan.views:
            values = fields(view.path)
            assert len(values) == 16
            assert values[0] == ""
            assert values[15] == ".jpg"
            camera = view.camera
            assert place(view.path) == (*camera.position[:2], camera.heading)
            shown = [float(values[index]) for index in (10, 11, 12)]
            assert shown == [camera.pitch, camera.roll, camera.position[2]]
            assert 0 <= camera.heading < 360


def test_names_are_unique():
    for folder in FOLDERS:
        names = paths(ToyCityConfig(), folder)
        assert len(set(names)) == len(names) > 0


@pytest.mark.parametrize("split", ["val", "test"])
def test_every_query_has_database_images_within_25_m(split):
    config = ToyCityConfig(database_spacing=20.0)
    database = np.array([place(p)[:2] for p in paths(config, f"{split}/database")])
    queries = paths(config, "val/queries") if split == "val" else paths(config, "test/queries_v1")
    for path in queries:
        distance = np.hypot(*(database - place(path)[:2]).T)
        assert (distance <= 25).sum() >= 8


def test_splits_and_streets_are_far_apart():
    config = ToyCityConfig(cells_per_street=12)
    plans = plans_of(config)
    everywhere = [np.array([place(view.path)[:2] for view in plan.views]) for plan in plans]
    boxes = [(points.min(axis=0), points.max(axis=0)) for points in everywhere]
    for index, (low, high) in enumerate(boxes):
        for other_low, other_high in boxes[:index]:
            gap = np.maximum(np.maximum(low - other_high, other_low - high), 0)
            assert np.hypot(*gap) > 150


def test_another_seed_is_another_city():
    assert set(paths(SMALL, "train")).isdisjoint(
        paths(ToyCityConfig(**{**asdict(SMALL), "seed": 1}), "train")
    )


# The camera and the painter


def test_camera_agrees_with_first_principles():
    north = Camera((10.0, 20.0, 2.0), heading=0, pitch=0, roll=0, focal=100, width=201, height=101)
    # 10 m ahead, 1 m to the east, 2 m up: right of the centre by 10 px, above it by 20 px.
    np.testing.assert_allclose(north.project(np.array([[11, 30, 4]])), [[110, 30]], atol=1e-9)
    east = Camera((10.0, 20.0, 2.0), heading=90, pitch=0, roll=0, focal=100, width=201, height=101)
    np.testing.assert_allclose(east.project(np.array([[20, 19, 2]])), [[110, 50]], atol=1e-9)
    up = Camera((10.0, 20.0, 2.0), heading=0, pitch=10, roll=0, focal=100, width=201, height=101)
    assert up.project(np.array([[10, 30, 2]]))[0, 1] > 50
    tilted = Camera((10.0, 20.0, 2.0), heading=0, pitch=0, roll=5, focal=100, width=201, height=101)
    assert tilted.project(np.array([[12, 30, 2]]))[0, 1] < 50


def test_camera_agrees_with_opencv():
    camera = Camera((5.0, -3.0, 1.7), 117.0, 8.0, -3.0, 150.0, 224, 160)
    rotation = camera.rotation()
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    rng = np.random.default_rng(0)
    seen = rng.uniform((-4, -4, 3), (4, 4, 30), (20, 3))
    points = seen @ rotation + camera.position
    turn, shift = cv2.Rodrigues(rotation)[0], -rotation @ np.array(camera.position)
    expected = cv2.projectPoints(points, turn, shift, camera.intrinsics(), None)[0][:, 0]
    np.testing.assert_allclose(camera.project(points), expected, atol=1e-6)


def test_rays_point_where_pixels_look():
    camera = Camera((5.0, -3.0, 1.7), 200.0, 8.0, -3.0, 150.0, 64, 48)
    rays = camera.rays(4)
    points = camera.position + 7.0 * rays[3, 5].astype(float)
    np.testing.assert_allclose(camera.project(points[None]), [[20, 12]], atol=1e-4)


def paint_dots(camera: Camera) -> tuple[np.ndarray, np.ndarray, Plane]:
    """A wall with red dots, its picture, and where the dots are on the texture."""
    texture = np.full((320, 480, 3), 90, np.uint8)
    dots = np.array([(60, 60), (420, 50), (240, 160), (80, 260), (400, 270)])
    for u, v in dots:
        cv2.circle(texture, (int(u), int(v)), 9, (255, 0, 0), -1)
    plane = Plane(
        texture,
        np.array([-6.0, 9.0, 8.0]),
        across=np.array([0.025, 0, 0]),
        down=np.array([0, 0, -0.025]),
    )
    painter = Painter(camera, DAY, np.zeros((8, 8), np.float32))
    painter.paint_planes([plane])
    return painter.picture(), dots + 0.5, plane


@pytest.mark.parametrize("heading", [0.0, -35.0, 28.0])
def test_a_point_of_a_facade_is_where_the_camera_projects_it(heading):
    camera = Camera((0.5 - heading / 12, 0.0, 2.0), heading, 9.0, 2.0, 200.0, 320, 320)
    picture, dots, plane = paint_dots(camera)
    expected = camera.project(plane.at(dots))
    red = (picture[..., 0].astype(int) - picture[..., 1]) > 80
    count, _, _, centres = cv2.connectedComponentsWithStats(red.astype(np.uint8))
    inside = expected[((expected > 12) & (expected < 307)).all(axis=1)]
    assert len(inside) >= 3
    assert count > len(inside)
    for point in inside:
        assert np.hypot(*(centres[1:] - point).T).min() < 0.6


def test_two_views_of_a_facade_are_related_by_a_homography():
    first, _, plane = paint_dots(Camera((0.5, 0.0, 2.0), 0.0, 9.0, 2.0, 200.0, 320, 320))
    cameras = [
        Camera((0.5, 0.0, 2.0), 0.0, 9.0, 2.0, 200.0, 320, 320),
        Camera((2.5, 1.0, 1.7), -18.0, 9.0, -2.0, 220.0, 320, 320),
    ]
    grid = np.array([(u, v) for u in (0, 240, 480) for v in (0, 160, 320)])
    from_first, from_second = (camera.project(plane.at(grid)) for camera in cameras)
    homography, _ = cv2.findHomography(from_second, from_first)
    second, _, _ = paint_dots(cameras[1])
    warped = cv2.warpPerspective(second, homography, (320, 320))
    frame = np.array([[(2, 2), (317, 2), (317, 317), (2, 317)]], float)
    shared = np.ones((320, 320), np.uint8)
    for outline in (from_first, cv2.perspectiveTransform(frame, homography)[0]):
        hull = cv2.convexHull(outline.astype(np.float32)).astype(np.int32)
        shared &= cv2.fillConvexPoly(np.zeros((320, 320), np.uint8), hull, 1)
    inner = cv2.erode(shared, np.ones((5, 5))) > 0
    assert inner.mean() > 0.3
    difference = np.abs(first.astype(int) - warped)[inner]
    assert difference.mean() < 2


def test_planes_and_polygons_behind_the_camera_or_turned_away_are_not_painted():
    camera = Camera((0.0, 0.0, 2.0), 180.0, 0.0, 0.0, 60.0, 64, 64)
    sky = Painter(camera, DAY, np.zeros((8, 8), np.float32)).picture()
    np.testing.assert_array_equal(paint_dots(camera)[0], sky)
    from_behind = Camera((0.0, 20.0, 2.0), 180.0, 0.0, 0.0, 60.0, 64, 64)
    np.testing.assert_array_equal(paint_dots(from_behind)[0], sky)
    painter = Painter(camera, DAY, np.zeros((8, 8), np.float32))
    painter.paint_flats([Flat(np.array([(-1, 5, 1), (1, 5, 1), (0, 5, 3.0)]), (255, 0, 0))])
    painter.paint_flats([])
    painter.darken([], np.array([0, 0, 1.0]))
    np.testing.assert_array_equal(painter.picture(), sky)


def test_a_polygon_across_the_camera_is_clipped():
    camera = Camera((0.0, 0.0, 2.0), 0.0, 0.0, 0.0, 32.0, 64, 64)
    painter = Painter(camera, DAY, np.zeros((8, 8), np.float32))
    floor = np.array([(-50, -50, 0), (50, -50, 0), (50, 50, 0), (-50, 50, 0.0)])
    painter.paint_flats([Flat(floor, (255, 0, 0))])
    picture = painter.picture()
    assert (picture[40:] == (255, 0, 0)).all()
    assert (picture[:30, :, 0] != 255).all()


@pytest.fixture(scope="module", params=[0, 90])
def street(request: pytest.FixtureRequest) -> Street:
    return Street((1000.0, 2000.0), request.param, 50.0, 12.0, [7, request.param])


def test_street_coordinates(street):
    along = (0, 10, 0) if street.axis == 0 else (10, 0, 0)
    world = street.to_world(np.array([[10, 0, 0]]))
    np.testing.assert_allclose(world[0], np.array([1000.0, 2000.0, 0]) + along)
    points = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(street.to_street(street.to_world(points)), points, atol=1e-9)


def test_facades_stand_upright_and_read_from_left_to_right(street):
    """Seen from the middle of the road, a texture's right is right, and its bottom is down."""
    for house in street.houses:
        front = house.front
        middle = street.to_world(np.array([[(house.start + house.stop) / 2, 0, 2]]))[0]
        inwards = -front.normal
        heading = np.degrees(np.arctan2(inwards[0], inwards[1]))
        camera = Camera((middle[0], middle[1], 2.0), heading, 0, 0, 100, 101, 101)
        h, w = front.texture.shape[:2]
        left, right, foot = camera.project(front.at(np.array([(0, h), (w, h), (0, h)])))
        top = camera.project(front.at(np.array([(0, 0)])))[0]
        assert left[0] < right[0]
        assert top[1] < foot[1]
        assert front.at(np.array([(0, h)]))[0, 2] == pytest.approx(0, abs=1e-6)
        across = street.to_street(front.at(np.array([(0, h)])))[0, 1]
        assert abs(across) == pytest.approx(HALF_WIDTH)


def test_streets_leave_no_hole_below_the_horizon(street):
    """Whatever the heading, ground, houses and the closing façades hide the sky below eye level."""
    for heading in range(0, 360, 45):
        east, north = street.to_world(np.array([[25.0, 1.0, 0]]))[0, :2]
        camera = Camera((east, north, 2.0), heading, 0.0, 0.0, 40.0, 64, 64)
        painter = Painter(camera, DAY, np.zeros((8, 8), np.float32))
        painter.canvas[:] = (255, 0, 255)
        street.paint(painter)
        assert not (painter.canvas[66:] == (255, 0, 255)).all(axis=2).any()


def test_cloud_map_repeats_without_a_seam():
    clouds = make_cloud_map(np.random.default_rng(0), 128)
    inner = np.abs(np.diff(clouds, axis=1)).max()
    assert np.abs(clouds[:, 0] - clouds[:, -1]).max() <= 1.5 * inner


# The files


def test_layout(city):
    for folder in FOLDERS:
        names = sorted(path.name for path in (city / folder).iterdir())
        assert names == sorted(path.rsplit("/", 1)[-1] for path in paths(SMALL, folder))
    picture = cv2.imread(str(next((city / "train").iterdir())))
    assert picture is not None
    assert picture.shape == (48, 48, 3)
    assert picture.std() > 8
    assert json.loads((city / "city.json").read_text())["config"]["image_size"] == 48
    assert not city.with_name("city.partial").exists()


def test_same_bytes_whatever_the_workers_and_after_a_cut(city, tmp_path):
    partial = tmp_path / "again.partial"
    (partial / "train").mkdir(parents=True)
    (partial / "city.json").write_bytes((city / "city.json").read_bytes())
    kept = sorted((city / "train").iterdir())[0]
    (partial / "train" / kept.name).write_bytes(kept.read_bytes())
    (partial / "train" / ".1.tmp").write_bytes(b"half a picture")
    done: list[int] = []
    assert make_toy_city(tmp_path / "again", SMALL, workers=1, progress=done.append)
    assert digests(tmp_path / "again") == digests(city)
    assert sum(done) == sum(len(plan.views) for plan in plans_of(SMALL))


def test_a_finished_city_is_left_alone(city):
    before = digests(city)
    assert not make_toy_city(city, SMALL, workers=1)
    assert digests(city) == before


# Errors


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 8),
        ("train_streets", 0),
        ("test_streets", 0),
        ("images_per_class", 9),
        ("test_queries", 0),
        ("seed", -1),
        ("database_spacing", 40.0),
        ("database_spacing", float("nan")),
    ],
)
def test_impossible_configs(name, value):
    with pytest.raises(InputError, match=f"--{name} {value}"):
        ToyCityConfig(**{name: value})


def test_folders_that_must_not_be_overwritten(city, tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputError, match="file"):
        make_toy_city(file, SMALL)
    with pytest.raises(InputError, match="cannot be written"):
        make_toy_city(file / "below", SMALL)
    with pytest.raises(InputError, match="other files"):
        make_toy_city(tmp_path, SMALL, force=True)
    assert file.read_text() == "x"
    with pytest.raises(InputError, match="--force"):
        make_toy_city(city, ToyCityConfig())
    with pytest.raises(InputError, match="--num_workers 0"):
        make_toy_city(tmp_path / "new", SMALL, workers=0)


def test_command(city, tmp_path, capsys):
    with pytest.raises(InputError, match="--train_streets 0"):
        main([str(tmp_path / "new"), "--train_streets", "0"])
    assert not (tmp_path / "new").exists()
    main([str(city), *(f"--{key}={value}" for key, value in asdict(SMALL).items())])
    assert "already there" in capsys.readouterr().out


def test_command_line_error_is_one_line(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "new"), "--image_size", "8"]
    failed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert failed.returncode == 2
    assert "--image_size 8" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert list(tmp_path.iterdir()) == []
