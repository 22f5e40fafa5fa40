"""Where photos were taken, from wherever that is known, and what is right by it.

Each source tells of a photo what it knows (`Told`): its name between ``@``, its own GPS data, a
table, the number of its frame, its folder. All that comes after sees one thing, `Whereabouts`.
"""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from retrieval import progress
from retrieval.configs.judge import PositivesConfig
from retrieval.data import places
from retrieval.data.exif import exif_position
from retrieval.data.images import ImageError
from retrieval.data.metres import in_shared_zones, to_metres
from retrieval.data.places import Positions
from retrieval.data.position_files import Told, read_positions
from retrieval.data.positives import Positives, by_distance, by_label
from retrieval.errors import InputError

Kind = Literal["metres", "frames", "labels"]

_PROBED = 20  # photos of which the GPS data are looked for before those of all are


class Photos(NamedTuple):
    """Photos below a folder, which the paths in tables are relative to."""

    folder: Path
    paths: Sequence[Path]


@dataclass(frozen=True)
class Whereabouts:
    """Where N photos were taken, as far as their source tells.

    source:    names, exif, frames, folders, or the path of a file.
    kind:      what is compared: metres; frames, whose numbers stand for metres east; or labels.
    positions: nan where a position is not known, and with labels alone.
    labels:    (N,) the name of each photo's place, empty where it is not known.
    """

    source: str
    kind: Kind
    positions: Positions
    labels: tuple[str, ...]

    @property
    def known(self) -> np.ndarray:
        """(N,) bool: of which photos it is known where they were taken."""
        if self.kind == "labels":
            return np.array([bool(label) for label in self.labels], bool)
        known: np.ndarray = np.isfinite(self.positions.utm).all(axis=1)
        return known

    @property
    def metres(self) -> np.ndarray | None:
        """(N, 2) metres east and north; None where they are not known of every photo."""
        return self.positions.utm if self.kind == "metres" and self.known.all() else None

    def rows(self, rows: Sequence[int] | np.ndarray) -> "Whereabouts":
        """Those of these rows alone."""
        utm, heading = self.positions.utm[rows], self.positions.heading[rows]
        taken = Positions(utm, heading, self.positions.zones[rows])
        labels = tuple(self.labels[row] for row in rows)
        return Whereabouts(self.source, self.kind, taken, labels)

    def elsewhere(self, row: int, others: np.ndarray, config: PositivesConfig) -> np.ndarray:
        """(k,) bool: which ``others`` (k,) show another place than ``row``."""
        if self.kind == "labels":
            return np.array([self.labels[each] != self.labels[row] for each in others], bool)
        utm, zones = self.positions.utm, self.positions.zones
        far = np.linalg.norm(utm[others] - utm[row], axis=1) > _reach(self.kind, config)
        far |= (zones[others] != zones[row]) & (zones[others] != 0) & (zones[row] != 0)
        return np.asarray(far)


def _reach(kind: Kind, config: PositivesConfig) -> float:
    """How far apart two photos of one place may be, in metres or frames."""
    if kind == "metres":
        return config.positive_dist_threshold
    if config.frame_tolerance is None:
        raise InputError(
            "positions are numbers of frames: --frame_tolerance N says how near is one"
        )
    return config.frame_tolerance


def right_answers(
    queries: Whereabouts, database: Whereabouts, config: PositivesConfig
) -> Positives:
    """The positives of each query: near enough, and looking the same way if that is asked for."""
    if queries.kind == "labels":
        return by_label(queries.labels, database.labels)
    angle = config.positive_angle
    if queries.kind == "frames" and angle is not None:
        raise InputError("--positive_angle needs headings, and frames have none: leave it out")
    return by_distance(queries.positions, database.positions, _reach(queries.kind, config), angle)


def locate(
    groups: Sequence[Photos], config: PositivesConfig, *, complete: bool = True
) -> list[Whereabouts]:
    """Where the photos of several folders were taken, those of a region in one zone of UTM.

    complete: InputError where anything is known of some photos only, with the first of the others.
    Raises InputError too where nothing is known of any.
    """
    every = [path for photos in groups for path in photos.paths]
    source = source_of(every, config)
    if config.positions_file is not None:
        told = _from_file(config.positions_file, groups)
    else:
        told = _SOURCES[source](groups)
    kind: Kind = "frames" if source == "frames" else "metres"
    if any(each and each.label for each in told) and not any(map(_is_point, told)):
        kind = "labels"
    whole = Whereabouts(source, kind, _positions(told), tuple(_label(each) for each in told))
    _check(every, whole, complete)
    ends = np.cumsum([len(photos.paths) for photos in groups])[:-1]
    return [whole.rows(rows) for rows in np.split(np.arange(len(every)), ends)]


def source_of(paths: Sequence[Path], config: PositivesConfig) -> str:
    """Where positions come from: as ``config`` says, or what auto finds.

    That is exif where the first name tells nothing and some photos have GPS data; else names.
    """
    if config.frame_tolerance is not None:
        return "frames"
    if config.positions != "auto":
        return config.positions
    if not paths or _of_name(paths[0]) is not None:
        return "names"
    spread = np.unique(np.linspace(0, len(paths) - 1, _PROBED).astype(int))
    return "exif" if any(_of_gps(paths[row]) for row in spread) else "names"


def _check(paths: Sequence[Path], found: Whereabouts, complete: bool) -> None:
    missing = np.flatnonzero(~found.known)
    if len(missing) == 0 or (not complete and len(missing) < len(paths)):
        return
    first = paths[missing[0]]
    if found.source == "names":
        places.parse_name(first)  # says how a name tells a position
    raise InputError(
        f"{first}: --positions {found.source} tells no position of it ({len(missing)} of "
        f"{len(paths)} photos have none)"
    )


def _is_point(told: Told | None) -> bool:
    return told is not None and (told.degrees is not None or told.metres is not None)


def _label(told: Told | None) -> str:
    return "" if told is None or told.label is None else told.label


def _positions(told: Sequence[Told | None]) -> Positions:
    """Metres of what is told, nan where nothing is. Degrees count where both are told."""
    known = [each if _is_point(each) else None for each in told]
    headings = [np.nan if each is None or each.heading is None else each.heading for each in told]
    heading = np.array(headings, np.float64)
    if all(each is None or each.degrees is not None for each in known):
        return to_metres(
            _pairs([None if each is None else each.degrees for each in known]), heading
        )
    metres = _pairs([None if each is None else each.metres for each in known])
    zones = np.array([0 if each is None else each.zone for each in told], np.int64)
    return in_shared_zones(Positions(metres, heading, zones))


def _pairs(values: Sequence[tuple[float, float] | None]) -> np.ndarray:
    """(N, 2), nan for None."""
    unknown = (np.nan, np.nan)
    return np.array([unknown if each is None else each for each in values], float).reshape(-1, 2)


# ---- the sources: of each photo what it tells, or None


def _names(groups: Sequence[Photos]) -> list[Told | None]:
    """Metres between ``@`` in the names. Raises InputError where they are degrees."""
    paths = [path for photos in groups for path in photos.paths]
    told = [_of_name(path) for path in paths]
    readable = [path for path, each in zip(paths, told, strict=True) if each is not None]
    places.refuse_degrees(readable, _pairs([each.metres for each in told if each is not None]))
    return told


def _of_name(path: Path) -> Told | None:
    try:
        place = places.parse_name(path)
    except InputError:
        return None
    return Told(None, (place.east, place.north), place.heading, place.zone)


def _gps(groups: Sequence[Photos]) -> list[Told | None]:
    """The photos' own GPS data."""
    paths = [path for photos in groups for path in photos.paths]
    told: list[Told | None] = []
    with ThreadPoolExecutor() as pool, progress.bar("reading GPS data", len(paths)):
        for each in pool.map(_of_gps, paths):
            told.append(each)
            progress.advance()
    return told


def _of_gps(path: Path) -> Told | None:
    try:
        found = exif_position(path)
    except ImageError:  # whether photos can be read is looked at elsewhere
        return None
    return found and Told((found.latitude, found.longitude), heading=found.heading)


def _frames(groups: Sequence[Photos]) -> list[Told | None]:
    """The last number in each name, which is the frame of a traverse."""
    names = [path.stem for photos in groups for path in photos.paths]
    numbers = [re.findall(r"\d+", name) for name in names]
    return [Told(metres=(float(found[-1]), 0.0)) if found else None for found in numbers]


def _folders(groups: Sequence[Photos]) -> list[Told | None]:
    """The folder that a photo lies in, below that of the set."""
    parents = [
        path.relative_to(photos.folder).parent.as_posix()
        for photos in groups
        for path in photos.paths
    ]
    return [None if parent == "." else Told(label=parent) for parent in parents]


def _from_file(source: Path, groups: Sequence[Photos]) -> list[Told | None]:
    """A table, whose paths are absolute, relative to itself or to the set's folder, or bare names.

    Raises InputError where a bare name is that of two photos.
    """
    table = read_positions(source)
    named: dict[str, Path] = {}
    told: list[Told | None] = []
    for photos in groups:
        for path in photos.paths:
            names = _names_in_table(path, photos.folder, source)
            name = next((each for each in names if each in table), None)
            told.append(None if name is None else table[name])
            if name is not None and named.setdefault(name, path) != path:
                raise InputError(
                    f"{source}: {name!r} is {named[name]} as well as {path}; write paths relative "
                    f"to {source.parent}"
                )
    return told


def _names_in_table(path: Path, folder: Path, source: Path) -> list[str]:
    """What a table may call a photo, the most exact first."""
    whole, here = path.absolute(), source.absolute().parent
    names = [whole.as_posix()]
    names += [whole.relative_to(here).as_posix()] if whole.is_relative_to(here) else []
    names += [path.relative_to(folder).as_posix(), path.name]
    return [*names, *(name.removesuffix(path.suffix) for name in names)]


_SOURCES: dict[str, Callable[[Sequence[Photos]], list[Told | None]]] = {
    "names": _names,
    "exif": _gps,
    "frames": _frames,
    "folders": _folders,
}
