"""The photos of a training set, and the groups of classes that they make."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from retrieval.configs.judge import PositivesConfig, Source
from retrieval.configs.learn import GroupConfig
from retrieval.data import images, places
from retrieval.data.layouts import divide, is_single
from retrieval.data.manifest import read_manifest
from retrieval.data.places import Group
from retrieval.data.whereabouts import Photos, Whereabouts, locate, source_of
from retrieval.errors import InputError


def load_groups(
    source: Source, config: GroupConfig, cache_folder: str | os.PathLike[str]
) -> tuple[list[Path], list[Group]]:
    """The training images of ``source.dataset``, sorted, and their groups, by way of a kept table.

    Of a folder of photos alone whose ``split`` is train, those that `layouts.divide` does not hold
    out. Raises InputError as `images.list_images`, `whereabouts.locate` and `places.build_groups`
    do, and where classes need headings that are not known.
    """
    folder = source.dataset
    assert folder is not None
    found: Whereabouts | None = None
    if folder.is_file():
        manifest = read_manifest(folder)
        paths, found = manifest.part("train", folder).database
        folder = manifest.folder
        if found is None:
            raise InputError(f"{source.dataset}: no positions nor places to make classes of")
    else:
        paths = images.list_images(folder)
    if found is None and source.split and is_single(folder):
        found = _located(folder, paths, source.positives)
        rows, _ = divide(found, source.positives)
        paths, found = [paths[row] for row in rows], found.rows(rows)
    names = "\0".join(path.relative_to(folder).as_posix() for path in paths)
    content = json.dumps(asdict(config), sort_keys=True) + "\0" + names
    if (
        found is not None or source_of(paths, source.positives) != "names"
    ):  # names alone decide; others may change
        found = found or _located(folder, paths, source.positives)
        content += "\0" + _hash(found)

    def make() -> list[Group]:
        return _groups(paths, found or _located(folder, paths, source.positives), config)

    return paths, places.kept_groups(cache_folder, content, make)


def _located(folder: Path, paths: Sequence[Path], config: PositivesConfig) -> Whereabouts:
    return locate([Photos(folder, paths)], config)[0]


def _hash(found: Whereabouts) -> str:
    utm, heading, _ = found.positions
    parts = [array.tobytes() for array in (utm, heading, found.positions.zones)]
    whole = b"".join([*parts, "\0".join(found.labels).encode(errors="surrogateescape")])
    return hashlib.sha256(whole).hexdigest()


def _groups(paths: Sequence[Path], found: Whereabouts, config: GroupConfig) -> list[Group]:
    if found.kind == "labels":
        return places.groups_of_labels(found.labels, config)
    missing = np.isnan(found.positions.heading)
    if missing.any() and config.alpha < 360:
        raise InputError(
            f"{paths[missing.argmax()]}: no heading ({missing.sum()} of {len(paths)} training "
            f"images lack one); the classes need it (as field 9 of a name, as in {places.EXAMPLE}, "
            "or the direction in EXIF data): --alpha 360 makes classes of all directions"
        )
    return places.build_groups(found.positions, config)
