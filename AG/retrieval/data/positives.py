"""Which database images are right for a query: by distance, or by a list in a file."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.spatial import cKDTree

from retrieval.data.places import Positions
from retrieval.errors import InputError

_AS_JSON = 'write {{"positives_per_query": [[{query}], …]}}, rows of the database for each query'

Mark = Literal["right", "wrong", "junk"]


@dataclass(frozen=True)
class Positives:
    """What is right for each query of a protocol, as rows of the database.

    positives: for each query the rows that show the same thing, int64, ascending, distinct.
    junk:      for each query the rows that count neither as right nor as wrong.
    """

    positives: list[np.ndarray]
    junk: list[np.ndarray]

    def __post_init__(self) -> None:
        if len(self.positives) != len(self.junk):
            raise ValueError(f"{len(self.positives)} lists of positives, {len(self.junk)} of junk")
        for name in ("positives", "junk"):
            lists = [np.unique(np.asarray(rows, np.int64)) for rows in getattr(self, name)]
            if any(len(rows) and rows[0] < 0 for rows in lists):
                raise ValueError(f"{name} must be rows of the database, not negative")
            object.__setattr__(self, name, lists)
        for query, (right, junk) in enumerate(zip(self.positives, self.junk, strict=True)):
            if len(junk) and np.isin(right, junk).any():
                raise ValueError(f"query {query} has rows that are both positive and junk")

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.positives)

    def without(self, rows: Sequence[np.ndarray]) -> "Positives":
        """With these rows of each query as junk, whatever they were."""
        kept = [np.setdiff1d(*pair) for pair in zip(self.positives, rows, strict=True)]
        junk = [np.union1d(*pair) for pair in zip(self.junk, rows, strict=True)]
        return Positives(kept, junk)

    def mark(self, query: int, row: int) -> Mark:
        """What a row of the database is to a query."""
        if row in self.junk[query]:
            return "junk"
        return "right" if row in self.positives[query] else "wrong"


def by_distance(
    queries: Positions, database: Positions, threshold: float, max_angle: float | None = None
) -> Positives:
    """Positives within ``threshold`` metres, inclusive, and ``max_angle`` degrees if it is given.

    Headings are compared around the circle. The metres of two zones of UTM have nothing in common,
    so that none of another zone is near, but what tells no zone can be. No junk. Raises InputError
    if an angle is asked for and a heading is unknown.
    """
    if max_angle is not None:
        _check_headings(queries.heading, "queries")
        _check_headings(database.heading, "database images")
    near = (
        cKDTree(database.utm).query_ball_point(queries.utm, threshold) if len(queries.utm) else []
    )
    positives, zones = [], database.zones
    for query, found in enumerate(near):
        rows, zone = np.array(found, np.int64), queries.zones[query]
        rows = rows[(zones[rows] == zone) | (zones[rows] == 0) | (zone == 0)]
        if max_angle is not None:
            turn = np.abs(database.heading[rows] - queries.heading[query]) % 360
            rows = rows[np.minimum(turn, 360 - turn) <= max_angle]
        positives.append(rows)
    return _without_junk(positives)


def chance(truth: Positives, size: int) -> float:
    """The share of queries with right answers for which a random photo of ``size`` is one."""
    each = zip(truth.positives, truth.junk, strict=True)
    right = [len(rows) / (size - len(junk)) for rows, junk in each if len(rows)]
    return float(np.mean(right)) if right else 0.0


def by_label(queries: Sequence[str], database: Sequence[str]) -> Positives:
    """Positives that carry the query's label; an empty label is that of no place. No junk."""
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(database):
        rows.setdefault(label, []).append(row)
    return _without_junk([np.array(rows.get(label, []) if label else [], int) for label in queries])


def _check_headings(heading: np.ndarray, what: str) -> None:
    unknown = int(np.isnan(heading).sum())
    if unknown:
        raise InputError(
            "--positive_angle needs a heading of each photo (in a name: field 9 between '@'), but "
            f"{unknown} of {len(heading)} {what} have none; leave the flag out to judge by "
            "distance alone"
        )


def _without_junk(positives: list[np.ndarray]) -> Positives:
    return Positives(positives, [np.empty(0, np.int64) for _ in positives])


def from_file(
    path: str | os.PathLike[str], query_names: Sequence[str], database_names: Sequence[str]
) -> Positives:
    """Positives from a file, in one of four forms; every query must be in it, no other may.

    - ``.csv``: a line ``query,names of its positives between semicolons``; a first line whose first
      cell is "query" is a header;
    - ``.json``: ``{"positives_per_query": [[rows of the database], …]}`` in the order of the
      queries;
    - ``.json``: ``{query name: [names of its positives], …}``;
    - ``.npy``: rows of the database, (Q,) or (Q, P), in the order of the queries.

    Names are paths relative to their folder, or file names alone where these are unambiguous. A
    query may have no positives. Raises InputError for a missing or malformed file, for unknown
    names, rows out of range, and another number of queries.
    """
    source = Path(path)
    if source.suffix.lower() == ".csv":
        named = _read_csv(source)
    elif source.suffix.lower() == ".json":
        content = read_json(source)
        if isinstance(content, dict) and "positives_per_query" in content:
            return _from_rows(source, content["positives_per_query"], query_names, database_names)
        named = _named_lists(source, content)
    elif source.suffix.lower() == ".npy":
        return _from_rows(source, _read_npy(source), query_names, database_names)
    else:
        raise InputError(
            f"{source}: positives come as .csv, .json or .npy, not {source.suffix!r}: "
            + _AS_JSON.format(query="0, 5")
        )
    return _from_names(source, named, query_names, database_names)


def _from_names(
    source: Path,
    named: list[tuple[str, list[str]]],
    query_names: Sequence[str],
    database_names: Sequence[str],
) -> Positives:
    query_rows, database_rows = _rows_by_name(query_names), _rows_by_name(database_names)
    positives: list[np.ndarray | None] = [None] * len(query_names)
    for name, right in named:
        query = _row(query_rows, name, source, "queries")
        if positives[query] is not None:
            raise InputError(f"{source}: query {name!r} comes more than once")
        rows = [_row(database_rows, each, source, "database") for each in right]
        positives[query] = np.array(rows, np.int64)
    absent = [name for name, rows in zip(query_names, positives, strict=True) if rows is None]
    if absent:
        raise InputError(
            f"{source}: {len(absent)} of {len(query_names)} queries are not in it (the first is "
            f"{absent[0]!r}); list every query, without positives where it has none"
        )
    return _without_junk([rows for rows in positives if rows is not None])


def _read_npy(source: Path) -> list[list[int]]:
    """The rows of an array; one of Python objects, as of lists of other lengths, is not read."""
    try:
        array = np.load(source, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{source}: cannot be read as an array of numbers ({error}); of lists of several "
            f"lengths make a .json: {_AS_JSON.format(query='0, 5')}"
        ) from error
    if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"{source}: expected rows of the database, (Q,) or (Q, P) whole numbers, not "
            f"{array.shape} of {array.dtype}"
        )
    return array.reshape(len(array), -1).tolist()


def _from_rows(
    source: Path, lists: Any, query_names: Sequence[str], database_names: Sequence[str]
) -> Positives:
    if not isinstance(lists, list) or len(lists) != len(query_names):
        count = len(lists) if isinstance(lists, list) else "no"
        raise InputError(
            f"{source}: positives_per_query has {count} lists, but there are {len(query_names)} "
            "queries; is it the file of this folder of queries?"
        )
    return _without_junk([checked_rows(source, rows, len(database_names)) for rows in lists])


def checked_rows(source: Path, rows: Any, num_images: int) -> np.ndarray:
    """A list of rows as int64, every one in [0, num_images)."""
    try:
        array = np.array(rows)
    except ValueError:  # lists of different lengths inside
        array = np.empty((0, 0))
    if array.shape == (0,):
        return np.empty(0, np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{source}: expected a list of rows of the database, not {rows!r:.80}")
    outside = array[(array < 0) | (array >= num_images)]
    if len(outside):
        raise InputError(
            f"{source}: row {outside[0]} is not in the database of {num_images} images; is it the "
            "file of this database?"
        )
    return array.astype(np.int64)


def _rows_by_name(names: Sequence[str]) -> dict[str, int | None]:
    """The row of each name and of each bare file name; None for a name that several files have."""
    rows: dict[str, int | None] = {}
    for row, name in enumerate(names):
        bare = os.path.basename(name)
        rows[bare] = None if bare in rows else row
    return rows | {name: row for row, name in enumerate(names)}


def _row(rows: Mapping[str, int | None], name: str, source: Path, where: str) -> int:
    row = rows.get(name)
    if row is None:
        problem = "several files have this name" if name in rows else "no file has this name"
        raise InputError(
            f"{source}: {name!r}: {problem} in the {where}; expected the path of an image, "
            "relative to its folder"
        )
    return row


def _read_csv(source: Path) -> list[tuple[str, list[str]]]:
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{source}: cannot be read as CSV ({error})") from error
    if lines and lines[0][0].strip().lower() == "query":
        lines = lines[1:]
    named = []
    for line in lines:
        if len(line) > 2:
            raise InputError(
                f"{source}: {len(line)} cells beside {line[0]!r}, expected 2: a query, and its "
                "positives between semicolons"
            )
        named.append((line[0], [name for name in "".join(line[1:]).split(";") if name]))
    return named


def read_json(source: Path) -> Any:
    """The content of a JSON file; InputError if it is missing or malformed."""
    try:
        return json.loads(source.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{source}: cannot be read as JSON ({error})") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, of which Python would keep the last of two equal names."""
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"{name!r} comes more than once")
        content[name] = value
    return content


def _named_lists(source: Path, content: Any) -> list[tuple[str, list[str]]]:
    def is_names(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(name, str) for name in value)

    if not isinstance(content, dict) or not all(map(is_names, content.values())):
        raise InputError(
            f'{source}: expected {{"positives_per_query": [[rows], …]}} or '
            "{query name: [database names], …}"
        )
    return list(content.items())
