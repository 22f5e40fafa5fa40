"""The doctor: what is odd about a data set, before hours are spent on it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from retrieval.configs.learn import GroupConfig
from retrieval.data.contents import content_hashes
from retrieval.data.manifest import Manifest, Part, Side
from retrieval.data.photo_sets import PhotoSet
from retrieval.data.positives import Positives

# A photo is astray where it lies this many times farther from the middle than nine tenths do.
_ASTRAY = 10.0
_LEAST_ASTRAY = 1000.0  # metres


class Finding(NamedTuple):
    """Something odd: what, of how many photos, and the first of them."""

    what: str
    photos: list[str]


def examine(manifest: Manifest, opened: dict[str, PhotoSet], classes: GroupConfig) -> list[Finding]:
    """What is odd; ``opened`` are the sets of the manifest's splits that have queries.

    Left out: photos that cannot be read or have no position. Then: the same photo in two splits, in
    database and queries, or twice on one side; photos far from all others; queries outside the
    database's area; queries without right answers; classes that are too small to train on.
    """
    findings = [*_left_out(manifest), *_duplicates(manifest, opened)]
    for split, part in manifest.parts.items():
        findings += _astray(manifest, split, part)
        findings += _small_classes(split, part, classes)
    for split, photos in opened.items():
        if photos.truth is not None:
            findings += _without_answers(split, photos, photos.truth)
    return [finding for finding in findings if finding.photos]


def _left_out(manifest: Manifest) -> Iterator[Finding]:
    for what in ("unreadable", "no position"):
        names = [name for name, why in manifest.left_out.items() if why.startswith(what)]
        yield Finding(f"left out: {what}", names)


def _duplicates(manifest: Manifest, opened: dict[str, PhotoSet]) -> Iterator[Finding]:
    sides: dict[str, Sequence[Path]] = {
        f"{split} {name}" if len(part.sides) > 1 else split: side.paths
        for split, part in manifest.parts.items()
        for name, side in part.sides.items()
    }
    if manifest.revisited:
        sides = {f"{split} database": photos.database for split, photos in opened.items()}
    every = [path for paths in sides.values() for path in paths]
    hashes = iter(content_hashes(every))
    where: dict[str, dict[str, Path]] = {}
    twice: dict[str, list[str]] = {}
    for side, paths in sides.items():
        for path in paths:
            content = next(hashes) or str(path)
            before = where.setdefault(content, {})
            if side in before:
                twice.setdefault(side, []).append(_named(manifest, path))
            before.setdefault(side, path)
    for side, names in twice.items():
        yield Finding(f"the same file as another of {side}", names)
    pairs: dict[tuple[str, ...], list[str]] = {}
    for places in where.values():
        if len(places) > 1:
            pairs.setdefault(tuple(places), []).append(
                _named(manifest, next(iter(places.values())))
            )
    for between, names in pairs.items():
        yield Finding(f"the same file in {' and '.join(between)}", names)


def _named(manifest: Manifest, path: Path) -> str:
    folder = manifest.folder
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _astray(manifest: Manifest, split: str, part: Part) -> Iterator[Finding]:
    """Photos far from all others of their side, and queries outside the database's area."""
    for name, side in part.sides.items():
        far = _far(side)
        yield Finding(
            f"{split} {name}: more than {_ASTRAY:.0f} times as far from the middle as most",
            [_named(manifest, side.paths[row]) for row in far],
        )
    queries, database = part.queries, part.database
    if queries is None or queries.taken is None or database.taken is None:
        return
    if queries.taken.kind == "labels":
        return
    low, high = (f(database.taken.positions.utm, axis=0) for f in (np.min, np.max))
    reach = manifest.right.positive_dist_threshold
    if queries.taken.kind == "frames":
        reach = float(manifest.right.frame_tolerance or 0)
    utm, zones = queries.taken.positions.utm, queries.taken.positions.zones
    outside = ((utm < low - reach) | (utm > high + reach)).any(axis=1)
    outside |= ~np.isin(zones, database.taken.positions.zones)
    names = [_named(manifest, queries.paths[row]) for row in np.flatnonzero(outside)]
    yield Finding(f"{split} queries: outside the database's area", names)


def _far(side: Side) -> np.ndarray:
    """Rows of photos that lie astray; those of another zone than most do."""
    if side.taken is None or side.taken.kind != "metres" or len(side.paths) < 3:
        return np.empty(0, np.int64)
    zones, counts = np.unique(side.taken.positions.zones, return_counts=True)
    rare = np.isin(side.taken.positions.zones, zones[counts < 0.1 * len(side.paths)])
    utm = side.taken.positions.utm
    away = np.linalg.norm(utm - np.median(utm[~rare], axis=0), axis=1)
    limit = max(_LEAST_ASTRAY, _ASTRAY * float(np.quantile(away[~rare], 0.9)))
    far: np.ndarray = np.flatnonzero(rare | (away > limit))
    return far


def _without_answers(split: str, photos: PhotoSet, truth: Positives) -> Iterator[Finding]:
    rows = [row for row, right in enumerate(truth.positives) if len(right) == 0]
    names = [photos.query_photos[row].shown for row in rows]
    yield Finding(f"{split} queries without a right answer{_nearest(photos, rows)}", names)


def _nearest(photos: PhotoSet, rows: Sequence[int]) -> str:
    """How far the nearest database photo is, in words, where that is known in metres."""
    queries, database = photos.whereabouts
    if queries is None or database is None or queries.metres is None or database.metres is None:
        return ""
    if not rows or len(photos.database) < 2:
        return ""
    number = 1 if photos.selves is None else 2  # the first one is the query itself
    distances = cKDTree(database.metres).query(queries.metres[list(rows)], k=[number])[0]
    return f" (the nearest photo is {np.median(distances):.0f} m away, in the median)"


def _small_classes(split: str, part: Part, config: GroupConfig) -> Iterator[Finding]:
    """Places of one photo, which has no right answer; of train, classes that are too small."""
    taken = part.database.taken
    if taken is None:
        return
    least = config.min_images_per_class if split == "train" else 2
    if taken.kind == "labels":
        count = Counter(taken.labels)
        small = sorted(name for name, each in count.items() if each < least)
        yield Finding(f"{split}: of {len(count)} places, fewer than {least} photos in", small)
    elif split == "train":
        heading = np.nan_to_num(taken.positions.heading) % 360 // config.alpha
        cells = np.column_stack([taken.positions.utm // config.M, heading, taken.positions.zones])
        _, inverse, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
        rows = np.flatnonzero(counts[inverse.ravel()] < least)
        yield Finding(
            f"train: in classes ({config.M} m, {config.alpha}°) of fewer than {least} photos: of "
            f"{len(counts)} classes {int((counts >= least).sum())} are trained on",
            [part.database.paths[row].name for row in rows],
        )
