"""What eval.py keeps of an evaluation for later: look into it, tune from it, extract nothing again.

RUN/result.json    figures, protocol, which photos, which feature store
RUN/rankings.npz   the ranking of each step, and the similarity of the global one
"""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval import evaluation
from retrieval.configs.describe import ExtractConfig
from retrieval.configs.judge import PositivesConfig
from retrieval.configs.rank import MatchConfig, RerankConfig, VerifyConfig
from retrieval.data.photo_sets import Folders, PhotoSet, open_set
from retrieval.data.positives import Positives
from retrieval.errors import InputError
from retrieval.evaluation import LocalSource, Ranked
from retrieval.features import FeatureStore
from retrieval.files import read_npz, write_atomically

_RESULT, _RANKINGS = "result.json", "rankings.npz"


@dataclass(frozen=True)
class SavedRun:
    """An evaluation, opened again.

    ranked: the global ranking (without the descriptors). rankings: "global", and "reranked" if it
    was. rerank: what it was re-ranked with, the floor being the one that was measured. local: the
    stored features of the queries and of the first `rerank.top_k` of each ranking. Both are None of
    a run with --no_rerank.
    """

    folder: Path
    photos: PhotoSet
    ranked: Ranked
    rankings: dict[str, np.ndarray]
    result: dict[str, Any]
    rerank: RerankConfig | None
    local: LocalSource | None

    def extraction(self) -> ExtractConfig:
        """How its photos were read."""
        stamp: Mapping[str, Any] = self.result["protocol"]["extraction"]
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in stamp.items()
        }
        return ExtractConfig(**values)

    def truth(self) -> Positives:
        """What is right for each query (of protocol M in revisited sets); InputError if unknown."""
        if self.photos.truth is None:
            raise InputError(f"{self.folder} has no labels: evaluate a set that has, by eval.py")
        return self.photos.truth

    def with_local(self) -> tuple[RerankConfig, LocalSource]:
        """``rerank`` and ``local``; InputError if the run has none."""
        if self.rerank is None or self.local is None:
            raise InputError(
                f"{self.folder} has no local features: run eval.py again without --no_rerank"
            )
        return self.rerank, self.local


def describe_set(folders: Folders, positives: PositivesConfig, *, labels: bool) -> dict[str, Any]:
    """Which photos were evaluated, as plain values for result.json."""
    paths = {
        name: None if path is None else str(path.absolute()) for name, path in vars(folders).items()
    }
    return {"folders": paths, "positives": asdict(positives), "labels": labels}


def save_rankings(run: Path, ranked: Ranked, rankings: Mapping[str, np.ndarray]) -> None:
    """Write the rankings of an evaluation's steps into its run folder, atomically."""
    data = io.BytesIO()
    arrays: dict[str, Any] = {"similarity": ranked.similarity, **rankings}
    np.savez_compressed(data, **arrays)
    write_atomically(run / _RANKINGS, data.getvalue())


def open_run(folder: Path, weights: str | None = None) -> SavedRun:
    """Open the run folder of an evaluation.

    weights: a `checkpoint.weights_hash` that the run's features must be of. Raises InputError where
    the folder is no such run, its photos or features are no longer there or have changed, or they
    are of other weights.
    """
    result = _read_result(folder)
    try:
        found = result["protocol"]["weights_sha256"]
        rerank = _rerank_config(result["protocol"].get("rerank"))
        photos = _open_photos(folder, result)
        store = result["feature_store"] and Path(result["feature_store"])
    except (LookupError, TypeError, AttributeError) as error:
        raise _other_version(folder / _RESULT, f"{type(error).__name__}: {error}") from error
    if weights is not None and weights != found:
        raise InputError(
            f"{folder}: its features are of other weights ({found[:12]}…, not {weights[:12]}…): "
            "evaluate this network by eval.py, and name that run"
        )
    rankings = _read_rankings(folder, photos)
    nothing = np.empty((0, 0), np.float32)
    ranked = Ranked(rankings["global"], rankings.pop("similarity"), nothing, nothing)
    local = None
    if rerank is not None and store is not None:
        local = _open_features(folder, store, photos, ranked.ranking[:, : rerank.top_k])
    return SavedRun(folder, photos, ranked, rankings, result, rerank, local)


def _rerank_config(stamp: Mapping[str, Any] | None) -> RerankConfig | None:
    """What the protocol says of re-ranking."""
    if stamp is None:
        return None
    match, verify = MatchConfig(**stamp["match"]), VerifyConfig(**stamp["verify"])
    return RerankConfig(**{**stamp, "match": match, "verify": verify})


def _open_features(
    folder: Path, store_folder: Path, photos: PhotoSet, shortlists: np.ndarray
) -> LocalSource:
    """The stored features; InputError where some of those that were ranked are gone."""
    store = FeatureStore(store_folder)
    skipped = set(np.flatnonzero((shortlists < 0).all(axis=1)).tolist())
    names = [name for row, name in enumerate(photos.query_ids) if row not in skipped]
    ids = photos.database_ids
    names += [ids[row] for row in np.unique(shortlists[shortlists >= 0])]
    gone = sum(name not in store for name in names)
    if gone:
        raise InputError(
            f"{folder}: its local features in {store_folder} are gone ({gone} of {len(names)} "
            "images): run eval.py again"
        )
    return evaluation.local_source(photos, store)


def _read_result(folder: Path) -> dict[str, Any]:
    file = folder / _RESULT
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        runs = sorted(path.parent.name for path in folder.glob(f"*/{_RESULT}"))
        there = f"; the runs in it: {', '.join(runs)}" if runs else ""
        raise InputError(f"{folder}: no run folder of eval.py (no {_RESULT}){there}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}): run eval.py again") from error
    if not isinstance(result, dict) or not {"set", "feature_store", "protocol"} <= result.keys():
        raise _other_version(file, "it lacks what eval.py writes")
    return result


def _other_version(file: Path, problem: str) -> InputError:
    return InputError(f"{file}: not of eval.py, or of an older one ({problem}): run eval.py again")


def _open_photos(folder: Path, result: Mapping[str, Any]) -> PhotoSet:
    told = result["set"]
    folders = {name: None if path is None else Path(path) for name, path in told["folders"].items()}
    photos = open_set(
        Folders(**folders), PositivesConfig(**told["positives"]), labels=told["labels"]
    )
    if photos.fingerprint() != result["protocol"]["photos_fingerprint"]:
        raise InputError(
            f"{folder}: the photos or positives in {photos.folder} have changed since: run eval.py "
            "again"
        )
    return photos


def _read_rankings(folder: Path, photos: PhotoSet) -> dict[str, np.ndarray]:
    """The rankings (Q, K), and the "similarity" of the first."""
    file = folder / _RANKINGS
    rankings = read_npz(file, ("global", "similarity"), "run eval.py again")
    shape = rankings["global"].shape
    for name, array in rankings.items():
        integers = np.issubdtype(array.dtype, np.integer)
        right = array.shape == shape and len(shape) == 2 and len(array) == len(photos.queries)
        if name != "similarity" and right and integers and array.size:
            right = array.min() >= -1 and array.max() < len(photos.database)
        if not right or integers == (name == "similarity"):
            raise InputError(
                f"{file}: {name} is no ranking of {len(photos.database)} images for "
                f"{len(photos.queries)} queries: run eval.py again"
            )
    return rankings
