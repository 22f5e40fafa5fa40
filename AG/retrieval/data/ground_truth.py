"""Ground truth of revisited Oxford and Paris: which images are easy, hard or junk for a query."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.data.positives import Positives, checked_rows, read_json
from retrieval.data.safe_pickle import read_pickle
from retrieval.errors import InputError

# What counts as positive and as junk in each protocol, by the lists of a query's entry.
_REVISITED = {
    "E": (("easy",), ("junk", "hard")),
    "M": (("easy", "hard"), ("junk",)),
    "H": (("hard",), ("junk", "easy")),
}
_GOOD_AND_OK = {
    "E": (("good",), ("junk", "ok")),
    "M": (("good", "ok"), ("junk",)),
    "H": (("ok",), ("junk", "good")),
}
_OK_ALONE = {"M": (("ok",), ("junk",))}


@dataclass(frozen=True)
class RevisitedSet:
    """A test set in the form of revisited Oxford/Paris.

    imlist, qimlist: names of the N database and Q query images, without extension; boxes: (Q, 4)
    float64 left, top, right, bottom in pixels of the query image, or None; ground_truth: the
    `Positives` of protocols E, M and H (M alone for files that know only "ok" and "junk").
    """

    imlist: list[str]
    qimlist: list[str]
    boxes: np.ndarray | None
    ground_truth: dict[str, Positives]


def read_gnd(path: str | os.PathLike[str]) -> RevisitedSet:
    """Read ``gnd_*.pkl`` (safely) or ``.json``: imlist, qimlist, gnd[{easy, hard, junk, bbx}].

    The original Oxford5k and Paris6k are taken too: with good, ok and junk, easy = good and
    hard = ok; with ok and junk alone (good is then among ok) all positives make protocol M.
    Raises InputError for a file of another form, and for a pickle that holds more than plain
    values and numpy arrays.
    """
    source = Path(path)
    content = read_json(source) if source.suffix.lower() == ".json" else read_pickle(source)
    content = content if isinstance(content, dict) else {}
    lists: list[Any] = [content.get(key) for key in ("imlist", "qimlist", "gnd")]
    if not all(isinstance(each, list | tuple | np.ndarray) for each in lists):
        raise InputError(f"{source}: expected a dictionary of the lists imlist, qimlist and gnd")
    imlist, qimlist, entries = (list(each) for each in lists)
    if not all(isinstance(name, str) for name in [*imlist, *qimlist]):
        raise InputError(f"{source}: imlist and qimlist must be lists of names")
    for name, count in Counter(imlist).items():
        if count > 1:
            raise InputError(f"{source}: {name!r} is {count} times in imlist; each photo is once")
    if len(entries) != len(qimlist) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(
            f"{source}: expected an entry in gnd for each of {len(qimlist)} queries, found "
            f"{len(entries)}"
        )
    truth = _protocols(source, entries, len(imlist))
    return RevisitedSet(imlist, qimlist, _boxes(source, entries), truth)


def _protocols(source: Path, entries: list[dict], num_images: int) -> dict[str, Positives]:
    for table in (_REVISITED, _GOOD_AND_OK, _OK_ALONE):
        names = {name for pair in table.values() for names in pair for name in names}
        if all(names <= entry.keys() for entry in entries):
            break
    else:
        raise InputError(
            f"{source}: each entry of gnd needs the lists easy, hard and junk (or good, ok and "
            f"junk; or ok and junk); the first has {sorted(map(str, entries[0]))}"
        )
    lists = [
        {name: checked_rows(source, entry[name], num_images) for name in names} for entry in entries
    ]
    try:
        return {
            protocol: Positives(
                [np.concatenate([entry[name] for name in right]) for entry in lists],
                [np.concatenate([entry[name] for name in junk]) for entry in lists],
            )
            for protocol, (right, junk) in table.items()
        }
    except ValueError as error:
        raise InputError(f"{source}: {error}") from error


def _boxes(source: Path, entries: list[dict]) -> np.ndarray | None:
    found = [entry["bbx"] for entry in entries if entry.get("bbx") is not None]
    if not found:
        return None
    try:
        boxes = np.array(found, np.float64)
    except (ValueError, TypeError):
        boxes = np.empty(0)
    if boxes.shape != (len(entries), 4) or not np.isfinite(boxes).all():
        raise InputError(f"{source}: bbx must be four numbers for each query, or for none")
    return boxes
