"""The value of an evaluation: what was ranked, step by step, how good it is, and what it hangs on.

    RUN/result.json    figures, protocol, which photos, which local features
    RUN/rankings.npz   the ranking of each step, its similarities, and the inliers

Whatever ranks photos makes one (`global_search.evaluate`, the visual words' `pipeline.search`);
reports, pictures, tuning, tables and comparisons take one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from retrieval import metrics
from retrieval.configs.judge import RECALL_VALUES
from retrieval.configs.rank import MatchConfig, RerankConfig, VerifyConfig
from retrieval.data.photo_sets import PhotoSet, open_set
from retrieval.data.positives import Positives
from retrieval.errors import InputError
from retrieval.feature_folders import SetFeatures, source_as_json, source_from_json
from retrieval.files import command_line, sealed, write_json, write_npz
from retrieval.metrics import Gain
from retrieval.protocol import Protocol
from retrieval.reranking import Reranking
from retrieval.saved_run import (
    RANKINGS,
    REMEDY,
    RESULT,
    VERSION,
    check_unchanged,
    digest,
    features_of_run,
    read_arrays,
    read_result,
)
from retrieval.search import Ranking

# The array of rankings.npz that keeps it.
_CONFIDENCE = "confidence"


@dataclass(frozen=True)
class Step:
    """One step of an evaluation: a ranking of all queries, and how good it is.

    name:      "global", "reranked"; "words", "verified", "expanded".
    figures:   in percent: ``R@1`` …, or ``mAP E``, ``mP@1 E`` … of revisited sets; empty without
               labels.
    per_query: (Q,) what a paired comparison compares: 100 where R@1 hits, else 0; or the AP of
               protocol M, nan without positives. Empty without labels.
    """

    name: str
    ranking: Ranking
    figures: Mapping[str, float]
    per_query: np.ndarray


@dataclass(frozen=True)
class Verified:
    """What geometric verification found by one kind of local features.

    config:          how it was done; its floor and residual are those that were in force.
    num_inliers:     (Q, k) int64, of the first k entries of the first step's ranking.
    ms_per_pair:     milliseconds a pair, by the clock.
    thread_seconds:  of processor, for "loading", "matching" and "verification", and "elapsed".
    features:        the local features, or None where they are not opened.
    form:            in which they were kept: "half", "8bit", "binary"; empty where it is not known.
    bytes_per_image: what their store cost, for each photo in it; None where it is not known.
    """

    config: RerankConfig
    num_inliers: np.ndarray
    ms_per_pair: float
    thread_seconds: Mapping[str, float]
    features: SetFeatures | None = None
    form: str = ""
    bytes_per_image: float | None = None

    @property
    def name(self) -> str:
        """What its features were made by: sift, delg, …"""
        return "" if self.features is None else self.features.store.made_by.extractor


@dataclass(frozen=True)
class Comparison:
    """A paired difference of two steps or runs on the same queries.

    metric: what ``per_query`` holds. gain: its difference, with an interval at ``level``. helped,
    hurt, unchanged: (n,) query rows by whether the rank of their first positive fell, rose or
    stayed.
    """

    metric: str
    gain: Gain
    level: float
    helped: np.ndarray
    hurt: np.ndarray
    unchanged: np.ndarray

    def in_words(self) -> str:
        """``R@1 +35.8 [+30.8, +40.8] (paired, 95 %)``."""
        return f"{self.metric} {self.gain.in_words()} (paired, {100 * self.level:g} %)"


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of one photo set.

    steps:    in their order, at least one.
    seconds:  by the clock, of each stage of the work.
    evidence: what verification found, by each kind of local features; the first is what pictures
              and tuning look at.
    skipped:  names of photos that could not be decoded.
    notes:    sentences on what stands out.
    confidence: (Q,) of each first answer, that it is right, from 0 to 1; None: unknown.
    min_confidence: first answers of less are withheld.
    command:  the command line that made it; empty where it was made in a notebook.
    folder:   where it lies; None while it is not saved.
    """

    title: str
    photos: PhotoSet
    steps: tuple[Step, ...]
    protocol: Protocol
    seconds: Mapping[str, float] = field(default_factory=dict)
    evidence: tuple[Verified, ...] = ()
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    confidence: np.ndarray | None = None
    min_confidence: float = 0.0
    command: str = ""
    folder: Path | None = None

    def __post_init__(self) -> None:
        count = len(self.photos.queries)
        if not self.steps:
            raise ValueError("an evaluation needs at least one step")
        for step in self.steps:
            if len(step.ranking.rows) != count:
                shape = step.ranking.rows.shape
                raise ValueError(f"{step.name}: expected a ranking of {count} queries, not {shape}")
            if len(step.per_query) != (count if step.figures else 0):
                raise ValueError(
                    f"{step.name}: figures of {len(step.per_query)} of {count} queries"
                )
        if self.confidence is not None and self.confidence.shape != (count,):
            raise ValueError(f"expected confidence in {count} first answers")
        if any(len(kind.num_inliers) != count for kind in self.evidence):
            raise ValueError(f"expected inliers of {count} queries")

    @property
    def first(self) -> Step:
        """The first step: the order that everything else starts from."""
        return self.steps[0]

    @property
    def last(self) -> Step:
        """The last step, by which a query is right or wrong."""
        return self.steps[-1]

    @property
    def verified(self) -> Verified | None:
        """What verification found by the first kind of local features, if there was any."""
        return self.evidence[0] if self.evidence else None

    @property
    def features(self) -> SetFeatures | None:
        """The first kind of local features, if they are there."""
        return None if self.verified is None else self.verified.features

    @property
    def withheld(self) -> np.ndarray:
        """(Q,) bool: queries whose first answer is not sure enough to be given."""
        if self.confidence is None:
            return np.zeros(len(self.photos.queries), bool)
        return self.confidence < self.min_confidence

    @property
    def figures(self) -> dict[str, Mapping[str, float]]:
        """The figures of each step that has some, by its name."""
        return {step.name: step.figures for step in self.steps if step.figures}

    @property
    def rankings(self) -> dict[str, np.ndarray]:
        """The ranking (Q, K) of each step, by its name."""
        return {step.name: step.ranking.rows for step in self.steps}

    @property
    def metric(self) -> str:
        """What paired comparisons compare."""
        return "mAP M" if self.photos.protocol == "M" else "R@1"

    @property
    def place(self) -> str:
        """Where it lies, or what it is called, for messages."""
        return self.title if self.folder is None else str(self.folder)

    def step(self, name: str) -> Step | None:
        """The step of this name, if there is one."""
        return next((step for step in self.steps if step.name == name), None)

    def truth(self) -> Positives:
        """What is right for each query (of protocol M in revisited sets); InputError if unknown."""
        if self.photos.truth is None:
            raise InputError(f"{self.place} has no labels: evaluate a set that has")
        return self.photos.truth

    def local(self) -> tuple[Verified, SetFeatures]:
        """``verified`` and ``features``; InputError where there are none."""
        if self.verified is None or self.features is None:
            raise InputError(
                f"{self.place} has no local features: run eval.py again without --no_rerank, or "
                "voc_tree.main without --no-ransac"
            )
        return self.verified, self.features

    def comparison(self) -> Comparison | None:
        """What the last step changed against the first; None for one step, or without labels."""
        if len(self.steps) < 2 or self.photos.truth is None:
            return None
        return compare(self.photos.truth, self.metric, self.first, self.last)

    def save(self, folder: Path | str) -> "Evaluation":
        """Write it into ``folder``, each file whole or not at all; the evaluation that lies there.

        result.json comes last: a folder that has one is complete.
        """
        folder = Path(folder)
        saved = replace(self, folder=folder, command=self.command or command_line())
        arrays: dict[str, np.ndarray] = {}
        for step in self.steps:
            arrays[step.name] = step.ranking.rows
            arrays[f"{step.name} similarity"] = step.ranking.similarity
        for name, kind in zip(_array_names(len(self.evidence)), self.evidence, strict=True):
            arrays[name] = kind.num_inliers
        if self.confidence is not None:
            arrays[_CONFIDENCE] = self.confidence
        write_npz(folder / RANKINGS, arrays)
        content = {**_as_json(saved), "rankings": digest(folder / RANKINGS)}
        write_json(folder / RESULT, sealed(content))
        return saved

    @classmethod
    def open(
        cls, folder: Path | str, weights: str | None = None, *, with_features: bool = True
    ) -> "Evaluation":
        """The evaluation in a run folder.

        weights: a `checkpoint.weights_hash` that it must be of. with_features: False where its
        local features are not needed, and may be gone. Raises InputError where the folder
        is no such run, its photos or features are no longer there or have changed, or it is of
        other weights.
        """
        return _open(Path(folder), weights, with_features)


def score(
    name: str, ranking: Ranking, photos: PhotoSet, recall_values: Sequence[int] = RECALL_VALUES
) -> Step:
    """A step of an evaluation: a ranking with its figures."""
    truth, rows = photos.ground_truth, ranking.rows
    if photos.protocol is None:
        return Step(name, ranking, {}, np.empty(0))
    if photos.protocol == "R":
        recalls = metrics.recall_at_k(rows, truth["R"], recall_values)
        hits = metrics.first_hit_rank(rows, truth["R"]) == 1
        return Step(name, ranking, {f"R@{k}": v for k, v in recalls.items()}, 100.0 * hits)
    figures = {
        f"{figure} {protocol}": value
        for protocol, values in metrics.evaluate_revisited(rows, truth).items()
        for figure, value in values.items()
    }
    precision = metrics.mean_average_precision(rows, truth["M"])[1]
    return Step(name, ranking, figures, precision)


def compare(
    truth: Positives, metric: str, before: Step, after: Step, level: float = 0.95
) -> Comparison:
    """What ``after`` changed against ``before``; a query without any positive found ranks last."""
    gain = metrics.paired_interval(after.per_query, before.per_query, level)
    old, new = (metrics.first_hit_rank(step.ranking.rows, truth) for step in (before, after))
    moved = (np.flatnonzero(rows) for rows in (new < old, new > old, new == old))
    return Comparison(metric, gain, level, *moved)


def verified_by(
    found: Reranking, configs: Sequence[RerankConfig], features: Sequence[SetFeatures]
) -> tuple[Verified, ...]:
    """What a re-ranking by these configs and kinds of features found, without its order."""
    return tuple(
        Verified(replace(config, floor=kind.floor, verify=kind.geometry.verify),
                 kind.num_inliers, kind.ms_per_pair, kind.seconds, each,
                 each.store.form, each.store.bytes_per_image)
        for kind, config, each in zip(found.kinds, configs, features, strict=True)
    )  # fmt: skip


def told_of(evidence: Sequence[Verified]) -> dict[str, Any]:
    """What a protocol says of verification: of one kind of features, or of each in a list."""
    configs = [asdict(kind.config) for kind in evidence]
    made_by = [kind.features and asdict(kind.features.store.made_by) for kind in evidence]
    alone = len(evidence) == 1
    return {
        "rerank": configs[0] if alone else configs,
        "features": made_by[0] if alone else made_by,
    }


def _array_names(count: int) -> list[str]:
    return ["inliers", *(f"inliers {number}" for number in range(2, count + 1))][:count]


def _as_json(run: Evaluation) -> dict[str, Any]:
    comparison, source = run.comparison(), run.photos.source
    return {
        "version": VERSION,
        "title": run.title,
        "command": run.command,
        "photos": None if source is None else source_as_json(source),
        "metric": run.metric,
        "steps": {
            step.name: {
                "figures": {name: _plain(value) for name, value in step.figures.items()},
                "per_query": [_plain(value) for value in step.per_query],
            }
            for step in run.steps
        },
        "comparison": comparison
        and {
            "metric": comparison.metric,
            "difference": comparison.gain.difference,
            "interval_95": comparison.gain[1:],
            "helped": len(comparison.helped),
            "hurt": len(comparison.hurt),
            "unchanged": len(comparison.unchanged),
        },
        "evidence": [
            {
                "config": asdict(kind.config),
                "pairs": int(kind.num_inliers.size),
                "ms_per_pair": kind.ms_per_pair,
                "thread_seconds": dict(kind.thread_seconds),
                "features": kind.features and str(kind.features.store.folder.resolve()),
                "form": kind.form,
                "bytes_per_image": kind.bytes_per_image,
            }
            for kind in run.evidence
        ],
        "min_confidence": run.min_confidence,
        "seconds": dict(run.seconds),
        "skipped": list(run.skipped),
        "notes": list(run.notes),
        "protocol": asdict(run.protocol),
    }


def _plain(value: float) -> float | None:
    """JSON knows no nan."""
    return None if np.isnan(value) else float(value)


def _open(folder: Path, weights: str | None, with_features: bool) -> Evaluation:
    content = read_result(folder)
    if content.get("photos", 0) is None:
        raise InputError(
            f"{folder}: its photos were put together in Python: nothing opens them again"
        )
    try:
        protocol = Protocol(**content["protocol"])
        photos = open_set(source_from_json(content["photos"]), need_photos=False)
        check_unchanged(folder, photos, protocol, weights)
        arrays = read_arrays(folder, list(content["steps"]), photos, content.get("rankings"))
        steps = tuple(_step(name, told, arrays) for name, told in content["steps"].items())
        shortlists = steps[0].ranking.rows
        told = zip(_array_names(len(content["evidence"])), content["evidence"], strict=True)
        evidence = tuple(
            _verified(each, arrays[name], folder, photos, shortlists if with_features else None)
            for name, each in told
        )
        return Evaluation(
            title=content["title"],
            photos=photos,
            steps=steps,
            protocol=protocol,
            seconds=content["seconds"],
            evidence=evidence,
            skipped=tuple(content["skipped"]),
            notes=tuple(content["notes"]),
            confidence=arrays.get(_CONFIDENCE),
            min_confidence=content.get("min_confidence", 0.0),
            command=content["command"],
            folder=folder,
        )
    except InputError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{folder / RESULT}: not what an evaluation writes ({type(error).__name__}: {error}): "
            f"{REMEDY}"
        ) from error


def _step(name: str, told: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Step:
    return Step(
        name,
        Ranking(arrays[name], arrays[f"{name} similarity"]),
        {key: np.nan if v is None else float(v) for key, v in told["figures"].items()},
        np.array(told["per_query"], np.float64),
    )


def _verified(
    told: Mapping[str, Any],
    num_inliers: np.ndarray,
    folder: Path,
    photos: PhotoSet,
    shortlists: np.ndarray | None,
) -> Verified:
    """shortlists: (Q, K) the first ranking, of which the features are opened; None: of none."""
    values = dict(told["config"])
    match, verify = MatchConfig(**values.pop("match")), VerifyConfig(**values.pop("verify"))
    config = RerankConfig(**values, match=match, verify=verify)
    features = None
    if shortlists is not None and told["features"] is not None:
        heads = shortlists[:, : config.top_k]
        features = features_of_run(folder, Path(told["features"]), photos, heads)
    return Verified(
        config,
        num_inliers,
        told["ms_per_pair"],
        told["thread_seconds"],
        features,
        told.get("form", ""),  # neither was told of before there were forms
        told.get("bytes_per_image"),
    )
