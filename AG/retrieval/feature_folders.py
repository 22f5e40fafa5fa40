"""Where the local features of a test set lie on disk, and the test set that they belong to.

    ROOT/DATASET/store.json       which store, of which photos, by which settings; written last
    ROOT/DATASET/<key>/shard-…    the features (`features.FeatureStore`)

Features are kept under ``query/<name>`` and ``database/<name>``, the names of the ground truth
file without extension. What extracts features and what searches them meet here alone.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.data import photo_sets
from retrieval.errors import InputError
from retrieval.features import FeatureStore
from retrieval.files import write_atomically

_STORE = "store.json"


@dataclass(frozen=True)
class FeatureFolder:
    """The features of one test set.

    dataset:  its name.
    store:    the features of its images, by id.
    gnd:      its ground truth file (`ground_truth.read_gnd`).
    settings: what the features were made by, as plain values.
    """

    dataset: str
    store: FeatureStore
    gnd: Path
    settings: dict[str, Any]


def query_ids(names: Sequence[str]) -> list[str]:
    """The ids of query images in a store, from the names in a ground truth file."""
    return photo_sets.distinct([f"query/{_bare(name)}" for name in names])


def database_ids(names: Sequence[str]) -> list[str]:
    """The ids of database images in a store, from the names in a ground truth file."""
    return [f"database/{_bare(name)}" for name in names]


def _bare(name: str) -> str:
    return name[:-4] if name.lower().endswith(".jpg") else name


def find_test_set(data_root: str | os.PathLike[str], dataset: str) -> Path:
    """The folder of a test set, with ``jpg/`` and ``gnd_*``: DATA_ROOT/test/NAME or DATA_ROOT/NAME.

    Raises InputError that lists the test sets that are there.
    """
    places = [Path(data_root) / "test", Path(data_root)]
    for place in places:
        if photo_sets.find_gnd(place / dataset) is not None:
            return place / dataset
    known = {
        folder.name
        for place in places
        for folder in _folders(place)
        if photo_sets.find_gnd(folder) is not None
    }
    raise InputError(
        f"no test set {dataset!r} (jpg/ with gnd_{dataset}.pkl or .json beside it) in "
        f"{places[0]} or {places[1]}; there {_listed(known)}; is --data-root right?"
    )


def write_feature_folder(
    root: str | os.PathLike[str],
    dataset: str,
    store: FeatureStore,
    data: Path,
    settings: Mapping[str, Any],
) -> None:
    """Say that ``store``, opened in ROOT/DATASET and filled, is what ROOT has of ``dataset``.

    ``data`` is the folder with ``jpg/`` and ``gnd_*``. To be called when all features are written.
    """
    folder = Path(root) / dataset
    if store.folder.parent.resolve() != folder.resolve():
        raise ValueError(f"the store {store.folder} was not opened in {folder}")
    content = {
        "store": store.folder.name,
        "dataset": dataset,
        "data": str(Path(data).resolve()),
        "settings": dict(settings),
    }
    write_atomically(folder / _STORE, json.dumps(content, indent=2) + "\n")


def open_feature_folder(root: str | os.PathLike[str], dataset: str) -> FeatureFolder:
    """The features of ``dataset`` below ``root``.

    Raises InputError, listing what is there, if the folder, the features or the ground truth are
    missing, and for a damaged ``store.json``.
    """
    folder = Path(root) / dataset
    path = folder / _STORE
    if not path.is_file():
        raise _missing(Path(root), dataset)
    try:
        content = json.loads(path.read_bytes())
        name, data, settings = content["store"], Path(content["data"]), dict(content["settings"])
        store_folder = folder / name
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); delete it and extract the features again"
        ) from error
    if not store_folder.is_dir():
        raise InputError(f"{path} names {store_folder}, which is missing; extract them again")
    gnd = photo_sets.find_gnd(data)
    if gnd is None:
        there = sorted(entry.name for entry in data.iterdir()) if data.is_dir() else []
        raise InputError(
            f"{path}: no ground truth gnd_{dataset}.pkl or .json (with jpg/ beside it) in {data}; "
            f"there {_listed(there)}; put it back or extract the features again"
        )
    return FeatureFolder(dataset, FeatureStore(store_folder), gnd, settings)


def _missing(root: Path, dataset: str) -> InputError:
    if root.is_dir():
        known = [each.parent.name for each in root.glob(f"*/{_STORE}")]
        return InputError(
            f"{root} has no features of {dataset!r}; there {_listed(known)}; extract them, or "
            "name other --test-datasets"
        )
    beside = [folder.name for folder in _folders(root.parent)]
    return InputError(
        f"{root}: no such folder of features; in {root.parent} there {_listed(beside)}; "
        "is --root-directory right?"
    )


def _folders(place: Path) -> list[Path]:
    return [each for each in place.iterdir() if each.is_dir()] if place.is_dir() else []


def _listed(names: "set[str] | Sequence[str]") -> str:
    return f"are {', '.join(sorted(names))}" if names else "is nothing"
