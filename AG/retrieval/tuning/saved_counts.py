"""Inlier counts that survive a kill: kept in a folder as they are found, by what they depend on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from retrieval import progress
from retrieval.configs.rank import Geometry, Matching
from retrieval.errors import InputError
from retrieval.feature_folders import SetFeatures
from retrieval.files import read_npz, write_npz
from retrieval.verification import STAGES, Counts, by_matching, count_inliers

# Pairs of one file; a kill loses what has been counted of one file for one matching.
_PAIRS = 2500


def count_and_save(
    folder: Path,
    features: SetFeatures,
    pairs: Sequence[tuple[int, int]],
    geometries: Sequence[Geometry],
    threads: int | None = None,
) -> Counts:
    """`count_inliers`, a part at a time; what ``folder`` has of an earlier call is taken from it.

    Counts are kept by the folder of their features, which is named by the hash of all that these
    depend on. `progress.advance` is told the number of (pair, geometry) just done.
    """
    num_inliers = np.zeros((len(geometries), len(pairs)), np.int64)
    seconds = np.zeros((len(geometries), len(STAGES)))
    for matching, members in by_matching(geometries).items():
        asked = [geometries[member] for member in members]
        for start in range(0, len(pairs), _PAIRS):
            part = pairs[start : start + _PAIRS]
            file = folder / f"{_name(features, matching, part)}.npz"
            found = _read(file, len(part)) if file.exists() else {}
            missing = [geometry for geometry in asked if _hash(geometry) not in found]
            progress.advance(len(part) * (len(asked) - len(missing)))
            if missing:
                counted = count_inliers(part, features.queries, features.database, missing, threads)
                found |= _by_hash(missing, counted)
                _write(file, found)
            for member in members:
                counts, spent = found[_hash(geometries[member])]
                num_inliers[member, start : start + len(part)] = counts
                seconds[member] += spent
    return Counts(num_inliers, seconds)


# The counts (P,) and seconds (3,) of each geometry, by its hash.
_Found = dict[str, tuple[np.ndarray, np.ndarray]]


def _by_hash(geometries: Sequence[Geometry], counted: Counts) -> _Found:
    rows = zip(geometries, counted.num_inliers, counted.seconds, strict=True)
    return {_hash(geometry): (counts, seconds) for geometry, counts, seconds in rows}


def _name(features: SetFeatures, matching: Matching, pairs: Sequence[tuple[int, int]]) -> str:
    told = [features.store.folder.name, matching.num_features, asdict(matching.match)]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    digest.update(np.asarray(pairs, "<i8").tobytes())
    return digest.hexdigest()[:24]


def _hash(geometry: Geometry) -> str:
    text = json.dumps(asdict(geometry), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _read(file: Path, num_pairs: int) -> _Found:
    names, remedy = ("hashes", "counts", "seconds"), "delete it, and it is counted again"
    arrays = read_npz(file, names, remedy)
    hashes, counts, seconds = (arrays[name] for name in names)
    size = len(hashes)
    if counts.shape != (size, num_pairs) or seconds.shape != (size, len(STAGES)):
        raise InputError(f"{file} cannot be read (wrong shapes): {remedy}")
    return dict(zip(hashes.tolist(), zip(counts, seconds, strict=True), strict=True))


def _write(file: Path, found: _Found) -> None:
    counts, seconds = (np.stack([rows[i] for rows in found.values()]) for i in (0, 1))
    arrays = {"hashes": np.array(list(found)), "counts": counts, "seconds": seconds}
    write_npz(file, arrays)
