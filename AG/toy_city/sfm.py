"""The toy town: a data set in retrieval-SfM-120k's layout, with revisited test sets.

    DIR/train/retrieval-SfM-120k/{ims/, retrieval-SfM-120k.pkl, retrieval-SfM-120k-whiten.pkl}
    DIR/test/NAME/{jpg/, gnd_NAME.pkl}

A landmark (a cluster) is a house front, photographed from several places, at several hours.
"""

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import pickle
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from retrieval.data.sfm_pairs import image_path
from retrieval.errors import InputError
from retrieval.files import alone
from toy_city.city import take_picture
from toy_city.config import MOST_LANDMARKS, ToySfmConfig
from toy_city.plan import ANY_TIME, FIRST_DRIVE, View
from toy_city.scene import Camera
from toy_city.street import HALF_WIDTH, House, Street

NAME = "retrieval-SfM-120k"
MARKER = "toy_sfm.json"
STREET_LENGTH = 200.0  # metres
# How much of a house front a photo must show to be easy, hard or junk; from within how many degrees
# of the query it is easy, and up to how many degrees from straight ahead it can be recognised.
EASY, HARD, JUNK, EASY_ANGLE, MOST_ANGLE = 0.7, 0.45, 0.1, 25.0, 55.0


class Shot(NamedTuple):
    """A photo of a street's landmark number `landmark`, as a JPEG file.

    bearings: (L,) degrees from which each landmark of the street is seen, 0 from straight ahead.
    shown: (L,) the share of each that the photo shows. box: its own left, top, right, bottom.
    """

    jpeg: bytes
    landmark: int
    bearings: np.ndarray
    shown: np.ndarray
    box: list[float]
    is_query: bool


def photograph(config: ToySfmConfig, split: int, number: int) -> list[Shot]:
    """All photos of one street."""
    seed = [config.seed, 77, split, number]
    scale = float(np.clip(config.image_size / 7, 12, 64))
    street = Street((0.0, 0.0), 90, STREET_LENGTH, scale, seed)
    inside = [h for h in street.houses if h.start >= 5 and h.stop <= STREET_LENGTH - 5]
    landmarks = inside[::3][:MOST_LANDMARKS]  # apart, so that few photos show two
    photos = []
    for landmark, house in enumerate(landmarks):
        queries = config.queries_per_landmark if split >= 2 else 0
        for index in range(config.images_per_landmark + queries):
            rng = np.random.default_rng([*seed, landmark, index])
            is_query = index < queries
            conditions = ANY_TIME if is_query or split < 2 else FIRST_DRIVE
            camera = _stand(street, house, config.image_size, is_query, rng)
            hour = rng.uniform(conditions.first_hour, conditions.last_hour)
            view = View("", camera, hour, conditions, [*seed, landmark, index, 1])
            bearings = np.array([_bearing(street, camera, each) for each in landmarks])
            shown = np.array([_outline(camera, each)[0] for each in landmarks])
            box = _outline(camera, house)[1]
            jpeg = take_picture(street, view)
            photos.append(Shot(jpeg, landmark, bearings, shown, box, is_query))
    return photos


def _stand(
    street: Street, house: House, size: int, is_query: bool, rng: np.random.Generator
) -> Camera:
    """A camera across the street that looks at a house."""
    middle = (house.start + house.stop) / 2
    along = rng.uniform(-4, 4) if is_query else rng.uniform(-10, 10)
    x, y = middle + along, -house.side * rng.uniform(3, 6.5)
    aim = middle + rng.normal(0, 1 if is_query else 2.5)
    east, north = street.to_world(np.array([(aim, HALF_WIDTH * house.side, 0.0)]))[0, :2]
    here = street.to_world(np.array([(x, y, rng.uniform(1.6, 2.5))]))[0]
    heading = float(np.degrees(np.arctan2(east - here[0], north - here[1]))) % 360
    sides = (size, size * 3 // 4) if rng.random() < 0.75 else (size * 3 // 4, size)
    focal = size * rng.uniform(0.55, 0.75)
    pitch, roll = rng.uniform(4, 14), rng.normal(0, 1.2)
    return Camera(tuple(here.tolist()), heading, pitch, roll, focal, *sides)


def _bearing(street: Street, camera: Camera, house: House) -> float:
    x, y = street.to_street(np.array([camera.position]))[0, :2]
    across = abs(HALF_WIDTH * house.side - y)
    return float(np.degrees(np.arctan2(x - (house.start + house.stop) / 2, across)))


def _outline(camera: Camera, house: House) -> tuple[float, list[float]]:
    """The share of a house front that lies in the photo, and the part's bounding box."""
    h, w = house.front.texture.shape[:2]
    u, v = np.meshgrid(np.linspace(0, w, 12), np.linspace(0, h, 12))
    points = house.front.at(np.column_stack([u.ravel(), v.ravel()]))
    points = points[camera.to_camera(points)[:, 2] > 0.5]
    pixels = camera.project(points) if len(points) else np.empty((0, 2))
    limits = camera.width - 1, camera.height - 1
    pixels = pixels[((pixels >= 0) & (pixels <= limits)).all(axis=1)]
    if len(pixels) == 0:
        return 0.0, [0.0, 0.0, *map(float, limits)]
    return len(pixels) / u.size, [*pixels.min(0).tolist(), *pixels.max(0).tolist()]


def training_lists(streets: list[list[Shot]], folder: Path, salt: str) -> dict[str, list]:
    """Write the photos where their ids say; cids, cluster, qidxs and pidxs of one mode."""
    cids: list[str] = []
    clusters: list[int] = []
    queries, positives = [], []
    for number, photos in enumerate(streets):
        first = len(cids)
        for row, photo in enumerate(photos):
            cids.append(hashlib.sha256(f"{salt} {number} {row}".encode()).hexdigest()[:32])
            clusters.append(number * MOST_LANDMARKS + photo.landmark)
            path = image_path(folder, cids[-1])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo.jpeg)
        for row in range(len(photos)):
            partner = _partner(photos, row)
            if partner is not None:
                queries.append(first + row)
                positives.append(first + partner)
    return {"cids": cids, "cluster": clusters, "qidxs": queries, "pidxs": positives}


def _partner(photos: list[Shot], row: int) -> int | None:
    """Another photo that shows the landmark well, from the next bearing."""
    number = photos[row].landmark
    good = [
        i
        for i, photo in enumerate(photos)
        if photo.landmark == number and photo.shown[number] >= HARD
    ]
    bearings = {i: photos[i].bearings[number] for i in good}
    others = [i for i in good if i != row]
    if row not in bearings or not others:
        return None
    return min(others, key=lambda i: abs(bearings[i] - bearings[row]))


def revisited_lists(streets: list[list[Shot]], folder: Path) -> dict[str, list]:
    """Write the photos to ``folder``/jpg; imlist, qimlist and gnd of a test set."""
    (folder / "jpg").mkdir(parents=True)
    names: dict[bool, list[str]] = {False: [], True: []}
    database: list[tuple[int, Shot]] = []
    queries: list[tuple[int, Shot]] = []
    for number, photos in enumerate(streets):
        for photo in photos:
            kind = "query" if photo.is_query else "house"
            count = len(names[photo.is_query])
            name = f"{kind}_{number}_{photo.landmark}_{count:06d}"
            names[photo.is_query].append(name)
            (queries if photo.is_query else database).append((number, photo))
            (folder / "jpg" / f"{name}.jpg").write_bytes(photo.jpeg)
    gnd = [_entry(number, photo, database) for number, photo in queries]
    return {"imlist": names[False], "qimlist": names[True], "gnd": gnd}


def _entry(street: int, query: Shot, database: list[tuple[int, Shot]]) -> dict[str, Any]:
    entry: dict[str, Any] = {"bbx": query.box, "easy": [], "hard": [], "junk": []}
    own = query.landmark
    for row, (number, photo) in enumerate(database):
        shown = photo.shown[own] if number == street else 0.0
        turned = abs(photo.bearings[own] - query.bearings[own]) if number == street else 180.0
        seen = shown >= HARD and abs(photo.bearings[own]) <= MOST_ANGLE
        if seen and shown >= EASY and turned <= EASY_ANGLE:
            entry["easy"].append(row)
        elif seen:
            entry["hard"].append(row)
        elif shown >= JUNK:
            entry["junk"].append(row)
    return entry


def make_toy_sfm(
    folder: Path, config: ToySfmConfig, test_datasets: Sequence[str], workers: int = 1
) -> bool:
    """Write the data set; False if it is there already. InputError if anything else is there."""
    with alone(folder, "making toy landmarks there"):
        return _make(folder, config, test_datasets, workers)


def _make(folder: Path, config: ToySfmConfig, test_datasets: Sequence[str], workers: int) -> bool:
    kind = {"config": dataclasses.asdict(config), "test_datasets": list(test_datasets)}
    description = json.dumps(kind, indent=2)
    marker = folder / MARKER
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if marker.is_file() and marker.read_text() == description:
            return False
        raise InputError(f"{folder}: holds something else; choose an empty folder or delete it")
    counts = [config.train_streets, config.val_streets] + [config.test_streets] * len(test_datasets)
    jobs = [(split, number) for split, count in enumerate(counts) for number in range(count)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_one_thread) as pool:
        found = list(pool.map(functools.partial(photograph, config), *zip(*jobs, strict=True)))
    streets = [
        [photos for (at, _), photos in zip(jobs, found, strict=True) if at == split]
        for split in range(len(counts))
    ]
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    train = partial / "train" / NAME
    lists = {
        mode: training_lists(streets[split], train, f"{config.seed} {mode}")
        for split, mode in enumerate(("train", "val"))
    }
    _dump(train / f"{NAME}.pkl", lists)
    whiten = {key: lists["train"][key] for key in ("cids", "qidxs", "pidxs")}
    _dump(train / f"{NAME}-whiten.pkl", whiten)
    for name, photos in zip(test_datasets, streets[2:], strict=True):
        test = partial / "test" / name
        _dump(test / f"gnd_{name}.pkl", revisited_lists(photos, test))
    (partial / MARKER).write_text(description)
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)
    return True


def _one_thread() -> None:
    cv2.setNumThreads(1)


def _dump(path: Path, content: Any) -> None:
    with path.open("wb") as file:
        pickle.dump(content, file)
