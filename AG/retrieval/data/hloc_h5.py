"""The files of hloc (Hierarchical-Localization), as plain arrays by the names of photos.

    features.h5      a group for each photo: keypoints (N, 2), descriptors (D, N), scores (N,),
                     image_size (2,); of some extractors also scales (N,) and oris (N,)
    global-feats.h5  a group for each photo: global_descriptor (D,)
    matches.h5       a group for each pair: matches0 (N,), matching_scores0 (N,)
    pairs.txt        a line for each pair: its two names

A photo's name is its path below the folder of photos. Keypoints are in pixels of the photo, the
centre of the top-left one being (0, 0), as everywhere here; hloc adds COLMAP's half a pixel when it
hands them on.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.errors import InputError
from retrieval.files import unfinished_name, write_atomically

# What a photo must have in features.h5, and its shape there: N features, D numbers each.
_FEATURES = {"keypoints": "N2", "descriptors": "DN", "scores": "N", "image_size": "2"}
_MORE_FEATURES = {"scales": "N", "oris": "N"}
_GLOBAL = {"global_descriptor": "D"}
_UNCERTAINTY = "uncertainty"  # attribute of the keypoints, in pixels


class GroupWriter:
    """A file that is being written: groups of arrays by name."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path = file, path

    def put(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Add a group; InputError for a name that two photos, or pairs of them, would share."""
        try:
            group = self._file.create_group(name)
            for key, array in arrays.items():
                if key != _UNCERTAINTY:
                    group.create_dataset(key, data=array)
        except ValueError as error:
            raise InputError(
                f"{self._path}: hloc's files cannot hold {name!r} ({error}): rename the photo"
            ) from error
        if _UNCERTAINTY in arrays:
            group["keypoints"].attrs[_UNCERTAINTY] = arrays[_UNCERTAINTY]


@contextlib.contextmanager
def written(path: Path) -> Iterator[GroupWriter]:
    """The groups of a new file, which appears when all are in it.

    Raises InputError where the package h5py is missing.
    """
    h5py = _h5py()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_name(path)
    try:
        with h5py.File(unfinished, "w", libver="latest") as file:
            yield GroupWriter(file, path)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def pair_name(first: str, second: str) -> str:
    """What matches.h5 calls the group of a pair."""
    return "/".join(name.replace("/", "-") for name in (first, second))


def write_pairs(path: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Write pairs.txt; InputError for names with white space, which hloc would cut there."""
    for name in {name for pair in pairs for name in pair}:
        if len(name.split()) != 1:
            raise InputError(f"{path}: {name!r} has white space, at which hloc would cut the name")
    write_atomically(path, "".join(f"{first} {second}\n" for first, second in pairs))


def read_features(path: Path, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """What features.h5 has of each photo, as float32 and with descriptors turned to (N, D).

    ``uncertainty`` is there where the keypoints tell it. Raises InputError for a file that is
    missing, is of another layout, or lacks a photo; and where the package h5py is missing.
    """
    for name, found in _read(path, names, _FEATURES, _MORE_FEATURES):
        sizes = {len(found[key]) for key, shape in _FEATURES.items() if shape[0] == "N"}
        sizes |= {len(found[key]) for key in _MORE_FEATURES if key in found}
        if sizes != {found["descriptors"].shape[1]}:
            raise _other_layout(path, f"{name} has not as many keypoints as descriptors or scores")
        yield found | {"descriptors": np.ascontiguousarray(found["descriptors"].T)}


def read_global(path: Path, names: Sequence[str]) -> np.ndarray:
    """The (len(names), D) float32 descriptors of global-feats.h5; InputError as `read_features`."""
    rows = [found["global_descriptor"] for _, found in _read(path, names, _GLOBAL, {})]
    if len({len(row) for row in rows}) > 1:
        raise _other_layout(path, "its descriptors are of several lengths")
    return np.stack(rows) if rows else np.empty((0, 1), np.float32)


def _read(
    path: Path, names: Sequence[str], needed: Mapping[str, str], more: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    h5py = _h5py()
    try:
        opened = h5py.File(path, "r")
    except OSError as error:
        told = "no such file" if not path.is_file() else f"no HDF5 file, or a damaged one: {error}"
        raise InputError(f"{path}: {told}") from error
    with opened as file:
        missing = [name for name in names if name not in file]
        if missing:
            raise InputError(
                f"{path} has nothing of {len(missing)} of {len(names)} photos (the first is "
                f"{missing[0]}; the file begins with {_first(file)}): names are relative to "
                "hloc's folder of photos, which --image_dir tells"
            )
        for name in names:
            yield name, _group(path, file[name], needed, more)


def _group(
    path: Path, group: Any, needed: Mapping[str, str], more: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """The arrays of a photo, each of the shape that it must have."""
    found: dict[str, np.ndarray] = {}
    for key, shape in {**needed, **more}.items():
        array: Any = group.get(key) if hasattr(group, "get") else None
        if array is None and key in more:
            continue
        if not hasattr(array, "shape"):
            raise _other_layout(path, f"{group.name} has no {key}")
        if array.ndim != len(shape) or (shape.endswith("2") and array.shape[-1] != 2):
            raise _other_layout(path, f"{group.name} has {key} of shape {array.shape}")
        try:
            found[key] = array[()].astype(np.float32)
        except (OSError, ValueError, TypeError) as error:
            raise _other_layout(path, f"{group.name}, {key}: {error}") from error
        if _UNCERTAINTY in array.attrs:
            found[_UNCERTAINTY] = np.array(array.attrs[_UNCERTAINTY], np.float32)
    return found


def _first(file: Any) -> str:
    """The name of the first photo in a file, as an example."""
    named: list[str] = []
    file.visititems(lambda name, each: named.append(name) if hasattr(each, "shape") else None)
    return named[0].rpartition("/")[0] if named else "nothing"


def _other_layout(path: Path, problem: str) -> InputError:
    return InputError(f"{path} is not laid out as hloc does it: {problem}")


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f"hloc's files need an optional extra ({error}): pip install -e '.[hloc]'"
        ) from error
    return h5py
