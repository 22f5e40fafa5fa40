"""A folder of photos, understood: its layout, its positions, what is left out of a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retrieval.configs.judge import PositivesConfig
from retrieval.data import images, layouts
from retrieval.data.manifest import Manifest, Part, Side
from retrieval.data.photo_sets import find_gnd
from retrieval.data.whereabouts import Photos, Whereabouts, locate
from retrieval.errors import InputError

_POSITIVES = ("positives.csv", "positives.json", "positives.npy")


class Prepared(NamedTuple):
    """A folder as it was understood.

    manifest: what is to be written. unused: a file of positives in the folder that has no say.
    """

    manifest: Manifest
    unused: Path | None = None


@dataclass(frozen=True)
class _Layout:
    """The photos of each split and side, and the folder that their places are relative to."""

    photos: Mapping[tuple[str, str], Photos]

    @property
    def groups(self) -> list[Photos]:
        return list(self.photos.values())

    @property
    def paths(self) -> list[Path]:
        return [path for photos in self.groups for path in photos.paths]


def prepare(
    folder: Path, config: PositivesConfig, positives: Path | None = None, *, hold_out: bool = False
) -> Prepared:
    """Understand a folder: a revisited set, splits, database and queries, or photos alone.

    positives: a file that says what is right, instead of positions. hold_out: make train and val of
    photos alone. With ``config.positions`` auto, positions are those of the names or of EXIF data;
    without any, every photo's folder is its place, if there are such, or else a file of positives
    that lies in the folder says what is right. Photos that cannot be read, and those without a
    position where others have one, are left out; with a file of positives, which may count photos
    by number, none is.
    Raises InputError where there are no photos, and where what is asked for cannot be had.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check the path given for the photos")
    if find_gnd(folder) is not None:
        return Prepared(Manifest(folder, config, revisited=True))
    layout = _find_layout(folder)
    lying = next((folder / name for name in _POSITIVES if (folder / name).is_file()), None)
    taken, config = _whereabouts(layout, config, positives)
    if taken is None and positives is None and layouts.find_pair(folder) is not None:
        positives = lying
    if positives is not None:
        parts = _parts(layout, None)
        return Prepared(Manifest(folder, config, parts, positives_file=positives.absolute()))
    parts, left_out = _without_unusable(folder, _parts(layout, taken))
    if hold_out:
        parts = _held_out(folder, parts, config)
    return Prepared(Manifest(folder, config, parts, left_out=left_out), lying)


def _find_layout(folder: Path) -> _Layout:
    found: dict[tuple[str, str], Photos] = {}
    splits = [name for name in layouts.SPLITS if (folder / name).is_dir()]
    for split in splits or ["test"]:
        root = folder / split if splits else folder
        pair = layouts.find_pair(root) if split != "train" else None
        if pair is not None:
            sides = dict(zip(("database", "queries"), pair, strict=True))
        else:
            sides = {"database": root}
        for side, place in sides.items():
            found[split, side] = Photos(place, images.list_images(place))
    return _Layout(found)


def _whereabouts(
    layout: _Layout, config: PositivesConfig, positives: Path | None
) -> tuple[list[Whereabouts] | None, PositivesConfig]:
    """Where the photos of each group were taken, None where nothing tells; and by which source."""
    if positives is not None:
        return None, config
    try:
        found = locate(layout.groups, config, complete=False)
    except InputError:
        if config.positions != "auto" or config.frame_tolerance is not None:
            raise
        by_folder = replace(config, positions="folders")
        if not _are_places(layout):
            return None, config
        found, config = locate(layout.groups, by_folder, complete=False), by_folder
    file = config.positions_file
    return found, replace(
        config, positions=found[0].source if file is None else str(file.absolute())
    )


def _are_places(layout: _Layout) -> bool:
    """Whether every photo lies in a folder of its side, and queries in folders of the database."""
    labels: dict[str, set[str]] = {}
    for (split, _), photos in layout.photos.items():
        here = {path.relative_to(photos.folder).parent.as_posix() for path in photos.paths}
        labels[split] = labels[split] & here if split in labels else here
        if "." in here:
            return False
    return all(labels.values()) and any(len(names) > 1 for names in labels.values())


def _parts(layout: _Layout, taken: Sequence[Whereabouts] | None) -> dict[str, Part]:
    sides: dict[str, dict[str, Side]] = {}
    for number, ((split, side), photos) in enumerate(layout.photos.items()):
        where = None if taken is None else taken[number]
        sides.setdefault(split, {})[side] = Side(list(photos.paths), where)
    return {split: Part(**each) for split, each in sides.items()}


def _without_unusable(
    folder: Path, parts: Mapping[str, Part]
) -> tuple[dict[str, Part], dict[str, str]]:
    """The parts without photos that cannot be read or have no position; and these, with reasons."""
    paths = [path for part in parts.values() for side in part.sides.values() for path in side.paths]
    unreadable = images.find_unreadable([], paths)
    left_out: dict[str, str] = {}

    def usable(side: Side) -> Side:
        known = np.ones(len(side.paths), bool) if side.taken is None else side.taken.known
        kept = []
        for row, path in enumerate(side.paths):
            name = path.relative_to(folder).as_posix()
            if path in unreadable:
                left_out[name] = f"unreadable: {unreadable[path]}"
            elif not known[row]:
                left_out[name] = "no position"
            else:
                kept.append(row)
        if not kept:
            raise InputError(
                f"{folder}: none of {len(side.paths)} photos can be read and has a position (the "
                f"first left out: {next(iter(left_out.items()))})"
            )
        return side.rows(kept)

    return {
        split: Part(**{name: usable(side) for name, side in part.sides.items()})
        for split, part in parts.items()
    }, left_out


def _held_out(folder: Path, parts: Mapping[str, Part], config: PositivesConfig) -> dict[str, Part]:
    """train and val of photos in one folder."""
    whole = parts.get("test")
    if len(parts) != 1 or whole is None or whole.queries is not None:
        raise InputError(f"--hold_out divides a folder of photos, but {folder} has parts already")
    if whole.database.taken is None:
        raise InputError(f"--hold_out needs to know where the photos of {folder} were taken")
    train, val = layouts.divide(whole.database.taken, config)
    return {"train": Part(whole.database.rows(train)), "val": Part(whole.database.rows(val))}
