"""Tuning: try settings of re-ranking on the saved features of an evaluation, and choose one.

Matches and inliers are counted once for each distinct geometry. What is ordered by them (top_k,
floor, fusion) costs next to nothing, so that hundreds of settings take as long as their geometries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from retrieval import metrics
from retrieval.configs.rank import RerankConfig
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation
from retrieval.reranking import (
    Evidence,
    measure_chance,
    measure_residual,
    random_pairs,
    reorder,
)
from retrieval.tuning.saved_counts import count_and_save
from retrieval.tuning.search_space import geometries


def check_depth(run: Evaluation, settings: Sequence[RerankConfig]) -> None:
    """InputError where settings look further down the rankings than the run has features."""
    depth, deepest = run.local()[0].config.top_k, max(setting.top_k for setting in settings)
    if deepest > depth:
        raise InputError(
            f"--top_k {deepest}: {run.place} has features of the first {depth} predictions of "
            f"each query; evaluate again with --top_k {deepest}"
        )


def check_comparable(validation: Evaluation, test: Evaluation) -> None:
    """InputError for runs on the same photos, or with features that were not made alike."""
    if validation.protocol.fingerprint == test.protocol.fingerprint:
        raise InputError(
            f"--test_run {test.place}: the photos of {validation.place}; what was chosen on them "
            "must be measured on others"
        )
    first, second = (run.protocol.settings for run in (validation, test))
    made = [run.local()[1].store.made_by for run in (validation, test)]
    ours, theirs = ((each.extractor, each.settings) for each in made)
    pairs = [(name, first.get(name), second.get(name)) for name in ("extraction", "projection")]
    for name, one, other in [*pairs, ("local features", ours, theirs)]:
        if one != other:
            raise InputError(
                f"--test_run {test.place}: another {name} than {validation.place} ({other}, not "
                f"{one}); evaluate both splits with the same flags"
            )


@dataclass(frozen=True)
class Outcome:
    """What a setting achieves.

    setting:   as it was asked for.
    floor:     in force, measured where the setting says None.
    per_query: (Q,) as in `evaluation.Step`.
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
        return replace(self.setting, floor=self.floor)


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


def shortlists(run: Evaluation, settings: Sequence[RerankConfig]) -> Shortlists:
    """All that the settings verify. Floors are measured once, on the pairs of the largest top_k."""
    rows = np.flatnonzero(run.first.ranking.rows[:, 0] >= 0)
    deepest = max(settings, key=lambda setting: setting.top_k)
    ranking = run.first.ranking.rows[rows]
    heads = ranking[:, : deepest.top_k]
    pairs = [(int(q), int(d)) for q, head in zip(rows, heads, strict=True) for d in head]
    if any(setting.floor is None for setting in settings):
        pairs += [(int(rows[q]), d) for q, d in random_pairs(ranking, deepest)]
    return Shortlists(rows, heads.shape[1], pairs)


def with_residual(
    run: Evaluation, setting: RerankConfig, threads: int | None = None
) -> RerankConfig:
    """A setting without a residual, with that which re-ranking measures on a run."""
    _, features = run.local()
    listed = shortlists(run, [setting])
    starts = range(0, len(listed.rows) * listed.depth, listed.depth)
    heads = [listed.pairs[start : start + listed.depth] for start in starts]
    evidence = Evidence(features.queries, features.database, setting.geometry)
    return replace(setting, verify=measure_residual(heads, evidence, threads).verify)


def try_all(
    run: Evaluation, settings: Sequence[RerankConfig], folder: Path, threads: int | None = None
) -> list[Outcome]:
    """The outcome of each setting, on a run with labels and saved features.

    folder: keeps the counts, so that a call after a kill goes on (see `count_and_save`).
    `progress.advance` is told the number of (pair, geometry) just done; their sum is the product of
    `len(shortlists(…).pairs)` and `len(geometries(…))`.
    """
    check_labels(run)
    _, features = run.local()
    listed = shortlists(run, settings)
    distinct = geometries(settings)
    counts = count_and_save(folder, features, listed.pairs, distinct, threads)
    position = {geometry: row for row, geometry in enumerate(distinct)}
    score = _scorer(run)
    outcomes = []
    for setting in settings:
        row = position[setting.geometry]
        floor, order, candidates = _ordered(run, listed, counts.num_inliers[row], setting)
        ms_per_pair = 1000 * counts.seconds[row].sum() / max(len(listed.pairs), 1)
        outcomes.append(Outcome(setting, floor, score(order), float(ms_per_pair * candidates)))
    return outcomes


# From the (Q, K) columns of the first ranking in a new order to the (Q,) figures of that.
_Score = Callable[[np.ndarray], np.ndarray]


def _scorer(run: Evaluation) -> _Score:
    """The figures by query, as in `evaluation.Step`, of the run's first ranking in another order.

    For recalls what is right is looked up once: with many queries and settings, looking it up for
    each would take longer than all the rest.
    """
    rows, truth = run.first.ranking.rows, run.truth()
    if run.photos.protocol != "R":
        return lambda order: metrics.mean_average_precision(
            np.take_along_axis(rows, order, 1), truth
        )[1]
    right, junk = (_found(rows, listed) for listed in (truth.positives, truth.junk))

    def first_is_right(order: np.ndarray) -> np.ndarray:
        first = np.take_along_axis(junk, order, 1).argmin(axis=1)  # of those that count
        return 100.0 * right[np.arange(len(order)), order[np.arange(len(order)), first]]

    return first_is_right


def _found(ranking: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
    """(Q, K) bool: which entries of each row are among that query's ``rows``."""
    each = [np.isin(row, listed) for row, listed in zip(ranking, rows, strict=True)]
    return np.array(each, bool).reshape(ranking.shape)


def _ordered(
    run: Evaluation, listed: Shortlists, num_inliers: np.ndarray, setting: RerankConfig
) -> tuple[float, np.ndarray, int]:
    """By the counts (P,) of one geometry: the floor, columns (Q, K) in new order, pairs a query."""
    rows, ranked = listed.rows, run.first.ranking
    in_heads = len(rows) * listed.depth
    heads = num_inliers[:in_heads].reshape(len(rows), listed.depth)[:, : setting.top_k]
    floor = setting.floor
    if floor is None:
        floor = measure_chance(num_inliers[in_heads:], setting.floor_quantile).floor
    order = np.tile(np.arange(ranked.rows.shape[1]), (len(ranked.rows), 1))
    order[rows] = reorder(ranked.rows[rows], ranked.similarity[rows], heads, floor, setting.fusion)[
        1
    ]
    return floor, order, heads.shape[1]


def check_labels(run: Evaluation) -> None:
    """InputError for a run without a query that anything could be measured on."""
    if run.photos.protocol is None or np.isnan(run.first.per_query).all():
        raise InputError(
            f"{run.place}: tuning needs labels; evaluate photos with positives, without --no_labels"
        )


def best_first(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """By figure; of equal ones the smaller top_k, then num_features, then in the order given.

    What is chosen so does not hang on times, which are never measured alike twice.
    """

    def key(outcome: Outcome) -> tuple[float, int, float]:
        num_features = outcome.setting.num_features or np.inf  # None: all
        return -round(outcome.figure, 9), outcome.setting.top_k, num_features

    return sorted(outcomes, key=key)


def gain_of_choosing(
    outcomes: Sequence[Outcome], before: np.ndarray, draws: int = 1000, seed: int = 0
) -> metrics.Gain:
    """What the best of these settings gains on queries that it was not chosen by, at 95 %.

    The best of many looks better than it is on the queries it was chosen by, even if all settings
    are noise. So it is chosen anew by each of many bootstrap draws of the queries, and measured on
    those not drawn, a third or so (Efron and Tibshirani, "Improvements on cross-validation: the
    .632+ bootstrap method", 1997). before: (Q,) of the ranking as it was; queries that are nan are
    left out.
    """
    gains = np.array([outcome.per_query for outcome in outcomes]) - before  # (S, Q)
    gains = gains[:, ~np.isnan(gains).any(axis=0)]
    count = gains.shape[1]
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws)  # (draws, Q) how often
    best = np.argmax(drawn @ gains.T, axis=1)
    left = drawn == 0
    some = left.any(axis=1)
    if not some.any():
        return metrics.Gain(*[float("nan")] * 3)
    left, best = left[some], best[some]
    found = (left * gains[best]).sum(axis=1) / left.sum(axis=1)
    low, high = np.quantile(found, [0.025, 0.975])
    return metrics.Gain(float(found.mean()), float(low), float(high))


def choose(best: Outcome, gained: metrics.Gain) -> RerankConfig | None:
    """The best setting; None, no re-ranking, where `gain_of_choosing` may as well be none."""
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
