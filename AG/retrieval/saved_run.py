"""What eval.py keeps of an evaluation for later: look into it, tune from it, extract nothing again.

RUN/result.json    figures, protocol, which photos, which feature store
RUN/rankings.npz   the ranking of each step, and the similarity of the global one
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval import evaluation
from retrieval.errors import InputError
from retrieval.evaluation import LocalSource, Ranked
from retrieval.evaluation_sets import EvaluationSet, Folders, PositivesConfig, open_set
from retrieval.features import FeatureStore
from retrieval.files import write_atomically
from retrieval.geometry import VerifyConfig
from retrieval.matching import MatchConfig
from retrieval.metrics import Positives
from retrieval.rerank import RerankConfig

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
    photos: EvaluationSet
    ranked: Ranked
    rankings: dict[str, np.ndarray]
    result: dict[str, Any]
    rerank: RerankConfig | None
    local: LocalSource | None

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
        name: None if path is None else str(path.resolve()) for name, path in vars(folders).items()
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
    protocol = result["protocol"]
    if weights is not None and weights != protocol["weights_sha256"]:
        raise InputError(
            f"{folder}: its features are of other weights ({protocol['weights_sha256'][:12]}…, not "
            f"{weights[:12]}…): evaluate this network by eval.py, and name that run"
        )
    photos = _open_photos(folder, result)
    rerank, local = None, None
    if result["feature_store"] is not None:
        store = Path(result["feature_store"])
        if not store.is_dir():
            raise InputError(f"{folder}: its local features in {store} are gone: run eval.py again")
        rerank = _rerank_config(protocol["rerank"])
        local = evaluation.local_source(photos, FeatureStore(store))
    rankings = _read_rankings(folder, photos)
    nothing = np.empty((0, 0), np.float32)
    ranked = Ranked(rankings["global"], rankings.pop("similarity"), nothing, nothing)
    return SavedRun(folder, photos, ranked, rankings, result, rerank, local)


def _read_result(folder: Path) -> dict[str, Any]:
    file = folder / _RESULT
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        if not {"set", "feature_store", "protocol"} <= result.keys():
            raise InputError(f"{file}: not of eval.py, or of an older one: run eval.py again")
    except FileNotFoundError:
        runs = sorted(path.parent.name for path in folder.glob(f"*/{_RESULT}"))
        there = f"; the runs in it: {', '.join(runs)}" if runs else ""
        raise InputError(f"{folder}: no run folder of eval.py (no {_RESULT}){there}") from None
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{file} cannot be read ({error}): run eval.py again") from error
    return result


def _open_photos(folder: Path, result: Mapping[str, Any]) -> EvaluationSet:
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


def _read_rankings(folder: Path, photos: EvaluationSet) -> dict[str, np.ndarray]:
    """The rankings (Q, K), and the "similarity" of the first."""
    file = folder / _RANKINGS
    try:
        with np.load(file, allow_pickle=False) as arrays:
            rankings = {name: arrays[name] for name in ("global", "similarity")}
            rankings |= {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} cannot be read ({error}): run eval.py again") from error
    shapes = {array.shape for array in rankings.values()}
    if len(shapes) > 1 or len(rankings["global"]) != len(photos.queries):
        raise InputError(f"{file} is not of {len(photos.queries)} queries: run eval.py again")
    return rankings


def _rerank_config(stamp: Mapping[str, Any]) -> RerankConfig:
    match, verify = MatchConfig(**stamp["match"]), VerifyConfig(**stamp["verify"])
    return RerankConfig(**{**stamp, "match": match, "verify": verify})
