"""What a toy city consists of: its streets, and every picture's camera, hour and file name."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from toy_city.config import CELL_SPACING, ToyCityConfig
from toy_city.scene import Camera
from toy_city.street import Conditions

CELL = 10.0  # metres; CosPlace's M
HEADING_BIN = 30.0  # degrees; alpha
HEADING_SPACING = 60.0  # degrees; alpha · L
STREET_GAP = 300.0  # metres between the streets of a split
SPLIT_SPACING = 50_000.0  # metres between the splits
ORIGIN = (550_000.0, 4_180_000.0)  # UTM zone 10 S
SPLITS = ("train", "val", "test")
FOLDERS = ("train", "val/database", "val/queries", "test/database", "test/queries_v1")
FIRST_DRIVE = Conditions(first_hour=8.5, last_hour=17.0, wear=0.4, traffic=0.7)
ANY_TIME = Conditions(first_hour=7.0, last_hour=19.0, wear=0.8, traffic=1.0)
Pose = tuple[float, float, float, float]  # x, y in the street, heading, focal length / image size


@dataclass(frozen=True)
class View:
    """One picture to be taken: its file below the city's folder, camera, hour, conditions, seed."""

    path: str
    camera: Camera
    hour: float
    conditions: Conditions
    seed: list[int]


@dataclass(frozen=True)
class StreetPlan:
    """A street and the pictures to be taken in it; the arguments of `Street`, and its split."""

    split: str
    origin: tuple[float, float]
    axis: int
    length: float
    seed: list[int]
    views: list[View]


def plan_city(config: ToyCityConfig) -> list[StreetPlan]:
    """Every street of the city with every picture, before anything is painted."""
    numbers = (config.train_streets, config.val_streets, config.test_streets)
    return [
        _plan_street(config, split, street, count)
        for split, count in enumerate(numbers)
        for street in range(count)
    ]


def _plan_street(config: ToyCityConfig, split: int, street: int, streets: int) -> StreetPlan:
    """Streets run east and north by turns, all from corners of cells of `CELL_SPACING`."""
    seed = [config.seed, split, street]
    rng = np.random.default_rng([*seed, 0, 0])
    axis = 90 if street % 2 == 0 else 0
    east = ORIGIN[0] + (config.street_length + STREET_GAP) * street
    north = ORIGIN[1] + SPLIT_SPACING * split
    # The middle of the road is the middle of a row of cells.
    origin = (east, north + CELL / 2) if axis == 90 else (east + CELL / 2, north)
    plan = StreetPlan(SPLITS[split], origin, axis, config.street_length, [*seed, 1, 0], [])
    if split == 0:
        groups = [(FOLDERS[0], _train_poses(config, rng), ANY_TIME)]
    else:
        queries = (config.val_queries, config.test_queries)[split - 1]
        share = queries // streets + (street < queries % streets)
        database, queried = FOLDERS[2 * split - 1 : 2 * split + 1]
        groups = [
            (database, _database_poses(config, rng), FIRST_DRIVE),
            (queried, _query_poses(config, share, rng), ANY_TIME),
        ]
    for number, (name, poses, conditions) in enumerate(groups):
        for index, (x, y, heading, zoom) in enumerate(poses):
            position = _to_world(plan, x, y)
            image_seed = [*seed, 2 + number, index]
            view = _draw_view(name, position, heading, zoom, config, conditions, image_seed)
            plan.views.append(view)
    return plan


def _train_poses(config: ToyCityConfig, rng: np.random.Generator) -> Iterator[Pose]:
    """Every class `images_per_class` times: anywhere in its cell and its heading bin."""
    for cell in np.arange(config.cells_per_street) * CELL_SPACING:
        for low in np.arange(0.0, 360.0, HEADING_SPACING):
            for _ in range(config.images_per_class):
                heading = low + rng.uniform(0.1, HEADING_BIN - 0.1)
                yield (
                    cell + rng.uniform(0.1, CELL - 0.1),
                    rng.uniform(-3.5, 3.5),
                    heading,
                    rng.uniform(0.6, 0.85),
                )


def _database_poses(config: ToyCityConfig, rng: np.random.Generator) -> Iterator[Pose]:
    """A car that stops every `database_spacing` metres and looks all round."""
    stops = np.arange(config.database_spacing / 2, config.street_length, config.database_spacing)
    for x in stops:
        y, turn = rng.uniform(-2, 2), rng.uniform(0, 45)
        for heading in turn + np.arange(0.0, 360.0, 45.0):
            yield x, y, heading, 0.68


def _query_poses(config: ToyCityConfig, count: int, rng: np.random.Generator) -> Iterator[Pose]:
    """Walkers with other cameras, anywhere, who look anywhere."""
    for _ in range(count):
        x, y = rng.uniform(0, config.street_length), rng.uniform(-3.5, 3.5)
        yield x, y, rng.uniform(0, 360), rng.uniform(0.6, 0.85)


def _draw_view(
    folder: str,
    position: tuple[float, float],
    heading: float,
    zoom: float,
    config: ToyCityConfig,
    conditions: Conditions,
    seed: list[int],
) -> View:
    """A view; its file's name says the pose, to the hundredth that is really used."""
    rng = np.random.default_rng([*seed, 1])
    hour = rng.uniform(conditions.first_hour, conditions.last_hour)
    east, north = (round(float(value), 2) for value in position)
    heading = round(float(heading), 2) % 360
    pitch, roll = round(rng.uniform(2, 11), 2), round(rng.normal(0, 1.2), 2)
    height = round(rng.uniform(1.6, 2.5), 2)
    size = config.image_size
    camera = Camera((east, north, height), heading, pitch, roll, zoom * size, size, size)
    minutes = int(hour * 60)
    pano = "-".join(map(str, seed))
    name = (
        f"@{east:010.2f}@{north:010.2f}@10@S@@@{pano}@@{heading:06.2f}@{pitch:.2f}@{roll:.2f}"
        f"@{height:.2f}@{minutes // 60:02d}{minutes % 60:02d}@@.jpg"
    )
    return View(f"{folder}/{name}", camera, hour, conditions, [*seed, 2])


def _to_world(plan: StreetPlan, x: float, y: float) -> tuple[float, float]:
    """East and north of a point `x` metres along a street and `y` to the left of its middle."""
    east, north = plan.origin
    return (east + x, north + y) if plan.axis == 90 else (east - y, north + x)
