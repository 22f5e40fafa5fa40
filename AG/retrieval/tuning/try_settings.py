"""Tuning: try settings of re-ranking on the saved features of an evaluation, and choose one.

Matches and inliers are counted once for each distinct geometry. What is ordered by them (top_k,
floor, fusion) costs next to nothing, so that hundreds of settings take as long as their geometries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from retrieval import evaluation, metrics
from retrieval.configs.rank import RerankConfig
from retrieval.errors import InputError
from retrieval.rerank import measure_floor, random_pairs, reorder
from retrieval.saved_run import SavedRun
from retrieval.tuning.saved_counts import count_and_save
from retrieval.tuning.search_space import geometries
from retrieval.verification import Counts


def check_depth(run: SavedRun, settings: Sequence[RerankConfig]) -> None:
    """InputError where settings look further down the rankings than the run has features."""
    depth, deepest = run.with_local()[0].top_k, max(setting.top_k for setting in settings)
    if deepest > depth:
        raise InputError(
            f"--top_k {deepest}: {run.folder} has features of the first {depth} predictions of "
            f"each query; run eval.py again with --top_k {deepest}"
        )


def check_comparable(validation: SavedRun, test: SavedRun) -> None:
    """InputError for runs on the same photos, or with features that were not made alike."""
    first, second = validation.result["protocol"], test.result["protocol"]
    if first["photos_fingerprint"] == second["photos_fingerprint"]:
        raise InputError(
            f"--test_run {test.folder}: the photos of {validation.folder}; what was chosen on them "
            "must be measured on others"
        )
    for name in ("extraction", "projection"):
        if first.get(name) != second.get(name):
            raise InputError(
                f"--test_run {test.folder}: another {name} than {validation.folder} "
                f"({second.get(name)}, not {first.get(name)}); run eval.py on both splits with the "
                "same flags"
            )


@dataclass(frozen=True)
class Outcome:
    """What a setting achieves.

    setting:   as it was asked for.
    floor:     in force, measured where the setting says None.
    per_query: (Q,) of `evaluation.per_query`.
    ms:        of processor time for a query: loading, matching, verification.
    """

    setting: RerankConfig
    floor: float
    per_query: np.ndarray
    ms: float

    @property
    def figure(self) -> float:
        """The mean over the queries that have one, in percent."""
        return float(np.nanmean(self.per_query))

    @property
    def settled(self) -> RerankConfig:
        """The setting with its floor as a number: what it says here, it says everywhere."""
        return replace(self.setting, floor=self.floor, threads=None)


@dataclass(frozen=True)
class Shortlists:
    """The queries that were ranked, and the pairs to count.

    rows:  (A,) of the queries that are not skipped.
    pairs: (query row, database row) of each one's first `depth` predictions, then of the random
           pairs that measure floors.
    """

    rows: np.ndarray
    depth: int
    pairs: list[tuple[int, int]]


def shortlists(run: SavedRun, settings: Sequence[RerankConfig]) -> Shortlists:
    """All that the settings verify. Floors are measured once, on the pairs of the largest top_k."""
    rows = np.flatnonzero(run.ranked.ranking[:, 0] >= 0)
    deepest = max(settings, key=lambda setting: setting.top_k)
    ranking = run.ranked.ranking[rows]
    heads = ranking[:, : deepest.top_k]
    pairs = [(int(q), int(d)) for q, head in zip(rows, heads, strict=True) for d in head]
    if any(setting.floor is None for setting in settings):
        pairs += [(int(rows[q]), d) for q, d in random_pairs(ranking, deepest)]
    return Shortlists(rows, heads.shape[1], pairs)


def evaluate(
    run: SavedRun,
    settings: Sequence[RerankConfig],
    folder: Path,
    *,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Outcome]:
    """The outcome of each setting, on a run with labels and saved features.

    folder: keeps the counts, so that a call after a kill goes on (see `count_and_save`). progress
    is called with the number of (pair, geometry) just done; their sum is the product of
    `len(shortlists(…).pairs)` and `len(geometries(…))`.
    """
    check_labels(run)
    _, local = run.with_local()
    listed = shortlists(run, settings)
    distinct = geometries(settings)
    counts = count_and_save(
        *(folder, run.result["feature_store"], listed.pairs, local.queries, local.database),
        distinct,
        threads=threads,
        progress=progress,
    )
    position = {geometry: row for row, geometry in enumerate(distinct)}
    score = _scorer(run)
    return [
        _outcome(run, listed, counts, position[setting.geometry], setting, score)
        for setting in settings
    ]


# From the (Q, K) columns of the global ranking in a new order to the (Q,) figures of that.
_Score = Callable[[np.ndarray], np.ndarray]


def _scorer(run: SavedRun) -> _Score:
    """`evaluation.per_query` of the run's ranking in another order.

    For recalls what is right is looked up once: with many queries and settings, looking it up for
    each would take longer than all the rest.
    """
    ranking, truth = run.ranked.ranking, run.photos.ground_truth
    if "R" not in truth:
        return lambda order: evaluation.per_query(np.take_along_axis(ranking, order, 1), truth)
    right, junk = (_found(ranking, rows) for rows in (truth["R"].positives, truth["R"].junk))

    def first_is_right(order: np.ndarray) -> np.ndarray:
        first = np.take_along_axis(junk, order, 1).argmin(axis=1)  # of those that count
        return 100.0 * right[np.arange(len(order)), order[np.arange(len(order)), first]]

    return first_is_right


def _found(ranking: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
    """(Q, K) bool: which entries of each row are among that query's ``rows``."""
    each = [np.isin(row, listed) for row, listed in zip(ranking, rows, strict=True)]
    return np.array(each, bool).reshape(ranking.shape)


def _outcome(
    run: SavedRun,
    listed: Shortlists,
    counts: Counts,
    row: int,
    setting: RerankConfig,
    score: _Score,
) -> Outcome:
    """Order by the counts of one geometry, and score."""
    found, rows = counts.num_inliers[row], listed.rows
    in_heads = len(rows) * listed.depth
    heads = found[:in_heads].reshape(len(rows), listed.depth)[:, : setting.top_k]
    floor = setting.floor
    if floor is None:
        floor = measure_floor(found[in_heads:], setting.floor_quantile)
    order = np.tile(np.arange(run.ranked.ranking.shape[1]), (len(run.ranked.ranking), 1))
    _, order[rows] = reorder(
        run.ranked.ranking[rows], run.ranked.similarity[rows], heads, floor, setting.fusion
    )
    ms_per_pair = 1000 * counts.seconds[row].sum() / max(len(found), 1)
    return Outcome(setting, floor, score(order), float(ms_per_pair * heads.shape[1]))


def before(run: SavedRun) -> np.ndarray:
    """(Q,) of `evaluation.per_query` for the global ranking."""
    return evaluation.per_query(run.ranked.ranking, run.photos.ground_truth)


def check_labels(run: SavedRun) -> None:
    """InputError for a run without a query that anything could be measured on."""
    truth = run.photos.ground_truth
    if not truth or np.isnan(before(run)).all():
        raise InputError(
            f"{run.folder}: tuning needs labels; run eval.py on photos with positives, and without "
            "--no_labels"
        )


@dataclass(frozen=True)
class Gain:
    """A paired difference to the global ranking, with its 95 % interval, in percent points."""

    difference: float
    low: float
    high: float


def gain(outcome: Outcome, before: np.ndarray) -> Gain:
    """What a setting adds to the global ranking; ``before`` (Q,) is of `before`."""
    return Gain(*metrics.paired_interval(outcome.per_query, before))


def best_first(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """By figure; of equal ones the smaller top_k, then num_features, then in the order given.

    What is chosen so does not hang on times, which are never measured alike twice.
    """

    def key(outcome: Outcome) -> tuple[float, int, float]:
        num_features = outcome.setting.num_features or np.inf  # None: all
        return -round(outcome.figure, 9), outcome.setting.top_k, num_features

    return sorted(outcomes, key=key)


def choose(best: Outcome, gained: Gain) -> RerankConfig | None:
    """The best setting; None, no re-ranking, where the interval of its gain reaches down to 0.

    The best of many looks better than it is on the queries that it was chosen by. This interval
    therefore only refuses; what to expect is told by other queries.
    """
    return best.settled if gained.low > 0 else None


def pareto_front(ms: np.ndarray, figures: np.ndarray) -> np.ndarray:
    """(S,) bool: which points no other one beats in time or figure without losing in the other.

    Of equal points the first.
    """
    front = np.zeros(len(ms), bool)
    highest = -np.inf
    for row in np.lexsort((np.arange(len(ms)), -figures, ms)):
        if figures[row] > highest:
            front[row], highest = True, figures[row]
    return front


def on_front(outcomes: Sequence[Outcome], before: float) -> list[bool]:
    """Which are on the Pareto front, to which the global ranking (``before``) belongs at 0 ms."""
    ms = np.array([0.0, *(outcome.ms for outcome in outcomes)])
    figures = np.array([before, *(outcome.figure for outcome in outcomes)])
    return pareto_front(ms, figures)[1:].tolist()
