"""Reading the files of a run folder: each is checked, and each problem is one clear error."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.data.photo_sets import PhotoSet
from retrieval.errors import InputError
from retrieval.feature_folders import SetFeatures, features_of_set, missing_of
from retrieval.features import FeatureStore
from retrieval.files import read_json, read_npz
from retrieval.protocol import Protocol

# Version of result.json.
VERSION = 1

RESULT, RANKINGS = "result.json", "rankings.npz"
REMEDY = "run the evaluation again"


def read_result(folder: Path) -> dict[str, Any]:
    """The content of a run's result.json, of the version that is written here."""
    file = folder / RESULT
    try:
        content = read_json(file)
    except FileNotFoundError:
        runs = sorted(path.parent.name for path in folder.glob(f"*/{RESULT}"))
        there = f"; the runs in it: {', '.join(runs)}" if runs else ""
        raise InputError(
            f"{folder}: no run folder of eval.py or voc_tree.main (no {RESULT}){there}"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}): {REMEDY}") from error
    version = content.get("version")
    if version != VERSION:
        raise InputError(
            f"{file} is of {'an older' if version is None else 'another'} version of this project: "
            f"{REMEDY}"
        )
    if "evidence" not in content and isinstance(content.get("verified", 0), dict | None):
        told = content["verified"]  # as runs with one kind of local features wrote it
        content["evidence"] = [{**told, "features": content.get("features")}] if told else []
    return content


def check_unchanged(
    folder: Path, photos: PhotoSet, protocol: Protocol, weights: str | None
) -> None:
    """InputError unless ``protocol`` is of these photos, and of ``weights`` if they are given."""
    found = protocol.settings.get("weights_sha256", "")
    if weights is not None and weights != found:
        raise InputError(
            f"{folder}: its features are of other weights ({found[:12]}…, not {weights[:12]}…): "
            "evaluate this network by eval.py, and name that run"
        )
    if photos.fingerprint() != protocol.fingerprint:
        raise InputError(
            f"{folder}: the photos or positives in {photos.folder} changed since this run: {REMEDY}"
        )


def digest(rankings: Path) -> str:
    """What result.json keeps of the file of rankings beside it: they belong together."""
    with rankings.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_arrays(
    folder: Path, steps: Sequence[str], photos: PhotoSet, written: str | None
) -> dict[str, np.ndarray]:
    """The rankings (Q, K) of the steps, their similarities and the inliers (Q, k), checked.

    written: the `digest` in result.json; None in one of before it was kept.
    """
    file = folder / RANKINGS
    names = [name for step in steps for name in (step, f"{step} similarity")]
    arrays = read_npz(file, names, REMEDY)
    if written is not None and digest(file) != written:
        raise InputError(f"{file} is of another run than {RESULT} beside it: {REMEDY}")
    shape = arrays[steps[0]].shape
    for name in names:
        array = arrays[name]
        is_ranking = np.issubdtype(array.dtype, np.integer)
        right = array.shape == shape and len(shape) == 2 and len(array) == len(photos.queries)
        if right and is_ranking and array.size:
            right = array.min() >= -1 and array.max() < len(photos.database)
        if not right or is_ranking == name.endswith(" similarity"):
            raise InputError(
                f"{file}: {name} is no ranking of {len(photos.database)} photos for "
                f"{len(photos.queries)} queries: {REMEDY}"
            )
    for inliers in (array for name, array in arrays.items() if name.startswith("inliers")):
        if inliers.ndim != 2 or len(inliers) != shape[0] or inliers.shape[1] > shape[1]:
            raise InputError(f"{file}: inliers {inliers.shape} of a ranking {shape}: {REMEDY}")
    return arrays


def features_of_run(
    folder: Path, store_folder: Path, photos: PhotoSet, heads: np.ndarray
) -> SetFeatures:
    """The features in a store; InputError where some of the verified ``heads`` (Q, k) are gone."""
    if not store_folder.is_dir():
        raise InputError(f"{folder}: its local features in {store_folder} are gone: {REMEDY}")
    features = features_of_set(photos, FeatureStore(store_folder))
    gone = missing_of(features, heads)
    if gone:
        raise InputError(
            f"{folder}: local features in {store_folder} are gone (of {len(gone)} photos, such as "
            f"{gone[0]}): {REMEDY}"
        )
    return features
