"""A manifest: which photos make a data set, where they were taken, and what is right by that.

`AG/prepare.py` writes one, and every script takes it in place of the folders. It is JSON with a
line for each photo, and may be edited by hand.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retrieval.configs.judge import PositivesConfig
from retrieval.data.places import Positions
from retrieval.data.positives import read_json
from retrieval.data.whereabouts import Kind, Whereabouts
from retrieval.errors import InputError
from retrieval.files import write_atomically

_VERSION = 1


class Side(NamedTuple):
    """Photos, and where they were taken if that is known."""

    paths: list[Path]
    taken: Whereabouts | None

    def rows(self, rows: Sequence[int] | np.ndarray) -> "Side":
        """Those of these rows alone."""
        taken = None if self.taken is None else self.taken.rows(rows)
        return Side([self.paths[row] for row in rows], taken)


class Part(NamedTuple):
    """A split: a database, and the queries; None where each photo is searched among the others."""

    database: Side
    queries: Side | None = None

    @property
    def sides(self) -> dict[str, Side]:
        """The sides that there are, by their names."""
        queries = {} if self.queries is None else {"queries": self.queries}
        return {"database": self.database, **queries}


@dataclass(frozen=True)
class Manifest:
    """A data set.

    folder:         that paths are relative to.
    right:          what is right by positions, and by which source of these.
    parts:          by the names train, val and test.
    positives_file: says what is right, instead of positions.
    revisited:      the folder itself is a set like revisited Oxford; ``parts`` is then empty.
    left_out:       photos that are in no part, each with the reason.
    """

    folder: Path
    right: PositivesConfig
    parts: dict[str, Part] = field(default_factory=dict)
    positives_file: Path | None = None
    revisited: bool = False
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> bool:
        """Whether it is known what is right."""
        known = any(part.database.taken is not None for part in self.parts.values())
        return known or self.revisited or self.positives_file is not None

    def rule(self, asked: PositivesConfig) -> PositivesConfig:
        """What is right: as the manifest says, but for what ``asked`` has other than by default."""
        default = asdict(PositivesConfig())
        said = {name: value for name, value in asdict(asked).items() if value != default[name]}
        if said.get("positions", self.right.positions) != self.right.positions:
            raise InputError(
                f"--positions {asked.positions}: the manifest has them from "
                f"{self.right.positions}; AG/prepare.py makes one with others"
            )
        return replace(self.right, **said)

    def part(self, split: str, source: Path) -> Part:
        """A split; InputError, naming the manifest's path ``source``, where it has none."""
        if split not in self.parts:
            raise InputError(
                f"{source} has no {split} photos (it has {', '.join(self.parts) or 'test'}); "
                "AG/prepare.py --hold_out makes train and val of a folder of photos"
            )
        return self.parts[split]

    def save(self, path: Path) -> None:
        """Write the manifest, whole or not at all."""
        rows: list[str] = []

        def lines(side: Side) -> str:
            rows.append(
                ",\n".join(f"    {_row(self.folder, side, i)}" for i in range(len(side.paths)))
            )
            return f"rows {len(rows) - 1}"

        here = path.absolute().parent
        whole = self.folder.absolute()
        content = {
            "version": _VERSION,
            "folder": os.path.relpath(whole, here) if whole.is_relative_to(here) else str(whole),
            "right": asdict(self.right),
            "positives_file": self.positives_file and str(self.positives_file.absolute()),
            "revisited": self.revisited,
            "left_out": self.left_out,
            "parts": {
                name: {
                    "kind": part.database.taken and part.database.taken.kind,
                    **{side: lines(photos) for side, photos in part.sides.items()},
                }
                for name, part in self.parts.items()
            },
        }
        text = json.dumps(content, indent=2)
        for number, each in enumerate(rows):
            text = text.replace(f'"rows {number}"', f"[\n{each}\n      ]", 1)
        write_atomically(path, text + "\n")


def _row(folder: Path, side: Side, row: int) -> str:
    """A photo's line."""
    told: dict[str, Any] = {"path": side.paths[row].relative_to(folder).as_posix()}
    taken = side.taken
    if taken is not None:
        (east, north), heading = taken.positions.utm[row].tolist(), taken.positions.heading[row]
        if taken.kind == "metres":
            told |= {"east": east, "north": north, "zone": int(taken.positions.zones[row])}
            told |= {} if math.isnan(heading) else {"heading": float(heading)}
        elif taken.kind == "frames":
            told |= {"frame": int(east)}
        told |= {"label": taken.labels[row]} if taken.labels[row] else {}
    return json.dumps(told)


def read_manifest(path: Path) -> Manifest:
    """A manifest; InputError for a file that is none, or where a line lacks what its kind needs."""
    content = read_json(path)
    try:
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']}, not {_VERSION}")
        folder = path.absolute().parent / content["folder"]
        right = PositivesConfig(**content["right"])
        file = content["positives_file"]
        parts = {
            name: Part(*(
                _side(folder, right.positions, part["kind"], part[side])
                for side in ("database", "queries")
                if side in part
            ))
            for name, part in content["parts"].items()
        }  # fmt: skip
        return Manifest(
            folder=Path(os.path.normpath(folder)),
            right=right,
            parts=parts,
            positives_file=None if file is None else Path(file),
            revisited=bool(content["revisited"]),
            left_out=dict(content["left_out"]),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: no manifest of a data set ({type(error).__name__}: {error}); AG/prepare.py "
            "FOLDER writes one"
        ) from error


def _side(folder: Path, source: str, kind: Kind | None, rows: Sequence[Mapping[str, Any]]) -> Side:
    paths = [Path(os.path.normpath(folder / row["path"])) for row in rows]
    if kind is None:
        return Side(paths, None)
    columns = {"metres": ("east", "north"), "frames": ("frame",), "labels": ()}[kind]
    utm = np.full((len(rows), 2), 0.0 if kind == "frames" else np.nan)
    for number, row in enumerate(rows):
        for column, name in enumerate(columns):
            utm[number, column] = float(row[name])
    heading = np.array([row.get("heading", math.nan) for row in rows], np.float64)
    zones = np.array([row.get("zone", 0) for row in rows], np.int64)
    labels = tuple(str(row.get("label", "")) for row in rows)
    taken = Whereabouts(source, kind, Positions(utm, heading, zones), labels)
    if not taken.known.all():
        raise ValueError(
            f"{rows[int(np.argmin(taken.known))]} has no {', '.join(columns) or 'label'}"
        )
    return Side(paths, taken)
