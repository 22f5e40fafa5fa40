"""What lies in a folder of photos: a set of two folders, splits, or photos and nothing else."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrieval.configs.judge import PositivesConfig
from retrieval.data.whereabouts import Whereabouts, right_answers
from retrieval.errors import InputError

DATABASE = ("database", "ref", "reference", "db", "gallery")
QUERIES = ("queries", "queries_v1", "query")
SPLITS = ("train", "val", "test")
# The share of photos in one folder that is held out for validation.
VAL_SHARE = 0.2


def find_pair(folder: Path) -> tuple[Path, Path] | None:
    """The folders of database and queries in a folder, by their usual names; None without both."""
    found = [
        next((folder / name for name in names if (folder / name).is_dir()), None)
        for names in (DATABASE, QUERIES)
    ]
    database, queries = found
    return None if database is None or queries is None else (database, queries)


def is_single(folder: Path) -> bool:
    """Whether a folder holds photos alone, neither splits nor a database or queries."""
    named = {*DATABASE, *QUERIES, *SPLITS, "jpg"}
    return folder.is_dir() and not any((folder / name).is_dir() for name in named)


def divide(found: Whereabouts, config: PositivesConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows of photos in one folder to train on, and those held out: ``(train, val)``, ascending.

    The photos are ordered along the axis in which they spread most (frames by number, places by
    name), and the last `VAL_SHARE` of them are held out. No photo to train on is a right answer to
    one of these: those between are in neither part. Raises InputError where nothing is left.
    """
    order = _along(found)
    cut = len(order) - max(1, round(VAL_SHARE * len(order)))
    train, val = order[:cut], order[cut:]
    near = right_answers(found.rows(train), found.rows(val), without_angle(config))
    train = train[[len(rows) == 0 for rows in near.positives]]
    if len(train) == 0 or len(val) < 2:
        raise InputError(
            f"{len(order)} photos, all near each other, cannot be divided into some to train on "
            "and others to validate with: name other folders by --train_set_folder and "
            "--val_set_folder"
        )
    return np.sort(train), np.sort(val)


def without_angle(config: PositivesConfig) -> PositivesConfig:
    """The same, by distance alone."""
    return PositivesConfig(
        config.positive_dist_threshold, None, config.positions, config.frame_tolerance
    )


def _along(found: Whereabouts) -> np.ndarray:
    """Rows (N,) in the order of places: by zone, then along the main axis; or by label."""
    if found.kind == "labels":
        return np.argsort(np.array(found.labels, str), kind="stable")
    utm, zones = found.positions.utm, found.positions.zones
    along = np.zeros(len(utm))
    for zone in np.unique(zones):
        rows = np.flatnonzero(zones == zone)
        away = utm[rows] - utm[rows].mean(axis=0)
        axis = np.linalg.svd(away, full_matrices=False)[2][0]
        along[rows] = away @ (axis if axis[np.abs(axis).argmax()] > 0 else -axis)
    return np.lexsort((along, zones))


def listed(names: Sequence[str]) -> str:
    """Names between commas, or the word nothing."""
    return ", ".join(sorted(names)) or "nothing"
