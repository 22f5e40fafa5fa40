"""Place data sets in the layout of SF-XS: positions in file names, CosPlace's groups of classes.

A file is named ``@east@north@zone@letter@lat@lon@pano@tile@heading@pitch@…@.jpg``: fields 1 and 2
are metres (UTM), 3 and 4 the zone of UTM that they are counted in, field 9 is the heading in
degrees, and any other but the first two may be empty.
"""

import hashlib
import io
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retrieval.configs.learn import GroupConfig
from retrieval.data import images
from retrieval.errors import InputError
from retrieval.files import write_atomically

log = logging.getLogger(__name__)

# Two numbers between @ with four or more decimals.
_DEGREES = re.compile(r"@-?\d+\.\d{4,}@-?\d+\.\d{4,}(@|\.)[^/]*$")

EXAMPLE = "@0548240.35@4180741.21@10@S@037.77@-122.45@PANO@@210@@@@201311@@.jpg"


class Place(NamedTuple):
    """Where a photo was taken: metres east and north (UTM), heading in degrees or None.

    zone: of UTM, 1 to 60, negative in the southern hemisphere; 0 where the name tells none.
    """

    east: float
    north: float
    heading: float | None
    zone: int = 0


class Positions(NamedTuple):
    """Where N photos were taken: metres (N, 2), headings (N,) in degrees, nan where absent.

    zone: (N,) int64 as a `Place` has it, or one number for all.
    """

    utm: np.ndarray
    heading: np.ndarray
    zone: np.ndarray | int = 0

    @property
    def zones(self) -> np.ndarray:
        """(N,) the zone of each photo."""
        return np.full(len(self.utm), self.zone, np.int64)


def parse_name(path: str | os.PathLike[str]) -> Place:
    """The place in a file name; the heading may be empty or left out.

    Raises InputError, with an example, for a name without coordinates or with an odd heading.
    """
    name = os.path.basename(os.fspath(path))
    stem, suffix = os.path.splitext(name)
    fields = (stem if suffix.lower() in images.EXTENSIONS else name).split("@")
    heading = fields[9].strip() if len(fields) > 9 else ""
    try:
        direction = float(heading) if heading else None
        place = Place(float(fields[1]), float(fields[2]), direction, zone_of(fields[3:5]))
    except (IndexError, ValueError):
        place = None
    if place is None or not all(math.isfinite(value or 0.0) for value in place):
        raise InputError(
            f"{os.fspath(path)}: no coordinates in the name; expected metres east, metres north "
            f"and the heading as fields 1, 2 and 9 between '@', as in {EXAMPLE}; eval.py takes "
            "other names too, with --no_labels or --positives FILE"
        )
    return place


def zone_of(fields: Sequence[str]) -> int:
    """The zone of UTM in the fields number and letter; 0 for anything else.

    Letters are bands of latitude, from C in the south to X in the north; N is the first north of
    the equator.
    """
    number, letter = (*fields, "", "")[:2]
    known = number.strip().isdecimal() and 1 <= int(number) <= 60
    band = letter.strip().upper()
    if not known or not (len(band) == 1 and "C" <= band <= "X"):
        return 0
    return int(number) if band >= "N" else -int(number)


def positions(paths: Sequence[Path]) -> Positions:
    """The places in the names of N files; InputError where they are degrees instead of metres."""
    places = [parse_name(path) for path in paths]
    columns = np.array([place[:3] for place in places], np.float64).reshape(-1, 3)
    zones = np.array([place.zone for place in places], np.int64)
    refuse_degrees(paths, columns[:, :2])
    return Positions(columns[:, :2].copy(), columns[:, 2].copy(), zones)


def refuse_degrees(paths: Sequence[Path], found: np.ndarray) -> None:
    """InputError where all numbers can be latitude and longitude, and are written as such.

    Four places after the point are 11 metres of a degree, and a tenth of a millimetre.
    """
    sizes = np.sort(np.abs(found), axis=1)
    if len(found) and (sizes <= [90, 180]).all() and all(map(_DEGREES.search, map(str, paths))):
        raise InputError(
            f"{paths[0]}: fields 1 and 2 of the names look like degrees of latitude and longitude; "
            "expected metres, such as UTM's (if these are metres, write at most three decimals)"
        )


@dataclass(frozen=True)
class Group:
    """Classes that are trained together: for each class the rows of its images, (n,) int64."""

    classes: list[np.ndarray]

    @property
    def num_images(self) -> int:
        """Images in all classes together."""
        return sum(map(len, self.classes))


def build_groups(taken: Positions, config: GroupConfig) -> list[Group]:
    """CosPlace's groups (Berton et al., "Rethinking Visual Geo-localization", section 3.2).

    Headings are taken modulo 360; those of classes that hold all directions (alpha 360) need not
    be known. Images of two zones share no class. Only groups that hold a class count; groups and
    the classes in them are ordered by their first image. Returns the first ``config.groups_num``
    groups. Raises InputError if there are fewer, or none.
    """
    utm, heading = taken.utm, taken.heading
    if config.alpha == 360:
        heading = np.zeros(len(utm))
    if np.isnan(heading).any():
        raise ValueError("every image of a class needs a heading")
    cells = np.column_stack([utm // config.M, heading % 360 // config.alpha]).astype(np.int64)
    every = _rows_by_value(np.column_stack([cells, taken.zones]))
    classes = _large_enough(every, config, f"cell of {config.M} m and {config.alpha}°")
    first_cells = cells[[rows[0] for rows in classes]]
    members = _rows_by_value(first_cells % [config.N, config.N, config.L])
    return _first_groups([Group([classes[i] for i in group]) for group in members], config)


def groups_of_labels(labels: Sequence[str], config: GroupConfig) -> list[Group]:
    """Groups of classes that are the labels (N,), dealt out one after the other.

    Raises InputError as `build_groups`.
    """
    numbers = np.unique(np.array(labels, str), return_inverse=True)[1]
    classes = _large_enough(_rows_by_value(numbers.reshape(-1, 1)), config, "place")
    dealt = [classes[start :: config.groups_num] for start in range(config.groups_num)]
    return _first_groups([Group(each) for each in dealt if each], config)


def _large_enough(every: list[np.ndarray], config: GroupConfig, what: str) -> list[np.ndarray]:
    classes = [rows for rows in every if len(rows) >= config.min_images_per_class]
    if not classes:
        raise InputError(
            f"no class has the {config.min_images_per_class} images of --min_images_per_class; the "
            f"largest {what} has {max(map(len, every), default=0)}: lower it, or raise --M or "
            "--alpha"
        )
    return classes


def _first_groups(groups: list[Group], config: GroupConfig) -> list[Group]:
    if len(groups) < config.groups_num:
        raise InputError(
            f"--groups_num {config.groups_num}: these images make only {len(groups)} groups; "
            f"set --groups_num {len(groups)}"
        )
    return groups[: config.groups_num]


def _rows_by_value(values: np.ndarray) -> list[np.ndarray]:
    """Rows (int64, ascending) of each distinct row of ``values`` (N, d), by first occurrence."""
    if len(values) == 0:
        return []
    _, first, inverse = np.unique(values, axis=0, return_index=True, return_inverse=True)
    by_value = np.argsort(inverse, kind="stable")
    rows = np.split(by_value, np.cumsum(np.bincount(inverse))[:-1])
    return [rows[i] for i in np.argsort(first)]


def kept_groups(
    cache_folder: str | os.PathLike[str], content: str, make: Callable[[], list[Group]]
) -> list[Group]:
    """The groups that ``make`` gives, by way of a table in a folder.

    content: all that decides the groups; the table's name is its hash. A damaged table is made
    anew, with a warning.
    """
    key = hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:32]
    table = Path(cache_folder) / f"groups_{key}.table"
    if table.exists():
        try:
            return _unpack(table.read_bytes())
        except (OSError, ValueError) as error:
            log.warning("%s is damaged (%s) and is made anew", table, error)
    groups = make()
    write_atomically(table, _pack(groups))
    return groups


def _pack(groups: list[Group]) -> bytes:
    """A SHA-256 checksum, then an .npz of all rows, the sizes of classes and those of groups."""
    classes = [rows for group in groups for rows in group.classes]
    data = io.BytesIO()
    np.savez(
        data,
        rows=np.concatenate(classes),
        class_sizes=np.array([len(rows) for rows in classes]),
        group_sizes=np.array([len(group.classes) for group in groups]),
    )
    return hashlib.sha256(data.getvalue()).digest() + data.getvalue()


def _unpack(table: bytes) -> list[Group]:
    """What `_pack` packed; ValueError if a byte of it has changed."""
    checksum, data = table[:32], table[32:]
    if hashlib.sha256(data).digest() != checksum:
        raise ValueError("its checksum is wrong")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        classes = np.split(arrays["rows"], np.cumsum(arrays["class_sizes"])[:-1])
        sizes = arrays["group_sizes"].tolist()
    each = iter(classes)
    return [Group([next(each) for _ in range(size)]) for size in sizes]
