"""The probability that the first answer to a query is right.

Taught by the first answers of another evaluation with labels (a validation split), it is a logistic
regression on a few `signals`. Where there is none, the inliers of the first answer are held against
those of the best photo of another place, in the measure of chance (`by_chance`).
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import scipy.special

from retrieval import metrics
from retrieval.configs.judge import ConfidenceConfig, PositivesConfig
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation

# Right and wrong first answers that are needed of each, at least, to learn from.
_LEAST = 5


def open_teacher(config: ConfidenceConfig) -> Evaluation | None:
    """The run to learn from; its local features need not be there."""
    folder = config.confidence_from
    return None if folder is None else Evaluation.open(folder, with_features=False)


def with_confidence(
    run: Evaluation, taught_by: Evaluation | None, config: ConfidenceConfig
) -> Evaluation:
    """The evaluation with the confidence of every first answer, and with those that it withholds.

    taught_by: an evaluation with labels of other photos, by the same features; None: by chance
    alone, and no confidence at all without inliers. InputError as `Odds`, for a run on the
    same photos, and where wrong answers are too few for ``max_wrong``.
    """
    least = config.min_confidence
    if taught_by is None:
        confidence = by_chance(run)
        if confidence is None and least > 0:
            raise InputError("--min_confidence without re-ranking needs --confidence_from RUN")
        return replace(run, confidence=confidence, min_confidence=least)
    if taught_by.protocol.fingerprint == run.protocol.fingerprint:
        raise InputError(f"--confidence_from {taught_by.place}: the same photos, not others")
    if len(taught_by.evidence) != len(run.evidence):
        raise InputError(
            f"--confidence_from {taught_by.place}: verified by {len(taught_by.evidence)} kinds of "
            f"local features, this by {len(run.evidence)}; evaluate both alike"
        )
    right = first_is_right(taught_by)
    if config.max_wrong is None:
        odds = Odds(taught_by, right)
    else:  # half to learn from, half to hold the threshold against: of what was learned nothing
        # could be promised
        half = np.arange(len(right)) % 2 == 0
        odds = Odds(taught_by, np.where(half, right, np.nan))
        wrong = odds.of(taught_by)[~half & (right == 0)]
        least = conformal_threshold(wrong, config.max_wrong)
        if np.isinf(least):
            raise InputError(
                f"--max_wrong {config.max_wrong:g}: {len(wrong)} wrong first answers in half of "
                f"{taught_by.place} are too few; take a larger share, or a run with more queries"
            )
    return replace(run, confidence=odds.of(run), min_confidence=least)


def first_is_right(run: Evaluation) -> np.ndarray:
    """(Q,) float64: 1 where the first answer is right, 0 where it is wrong, nan where unknown.

    Unknown are queries that could not be read, and in revisited sets those without positives.
    """
    truth = run.truth()
    right = (metrics.first_hit_rank(run.last.ranking.rows, truth) == 1).astype(float)
    right[run.last.ranking.rows[:, 0] < 0] = np.nan
    if run.photos.protocol != "R":
        right[[len(rows) == 0 for rows in truth.positives]] = np.nan
    return right


def surprise(num_inliers: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How rare counts (P,) are among those of other pairs (C,): −log p, float64, 0 at least.

    p = (1 + other pairs with as many) / (1 + C), the p-value of a test by random draws; see
    Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 4.2.
    """
    as_many = len(others) - np.searchsorted(np.sort(others), num_inliers)
    return -np.log((1 + as_many) / (1 + len(others)))


def signals(run: Evaluation) -> np.ndarray:
    """(Q, 5) float64: what speaks for each first answer; 0 for a query that could not be read.

    1. its inliers, as `surprise` among those of the second halves of all heads, which look as alike
       but are seldom right, summed over the kinds of local features;
    2. how far that is above the most surprising photo of another place;
    3. its similarity in the first step, in standard deviations of the query's head;
    4. how far that is above the most similar photo of another place, in the same unit;
    5. whether it was the first answer before re-ranking, 1 or 0.

    Another place is farther away than the distance of right answers, where the names of the
    database tell positions; else every other photo is.
    """
    rows, similarity = run.first.ranking.rows, run.first.ranking.similarity
    surprising = _surprising(run)
    head = surprising.shape[1] or min(rows.shape[1], 100)
    elsewhere = _elsewhere(run)
    found = np.zeros((len(rows), 5))
    for query, answer in enumerate(run.last.ranking.rows[:, 0].tolist()):
        if answer < 0:
            continue
        candidates, alike = rows[query, :head], similarity[query, :head].astype(float)
        alike = (alike - alike.mean()) / (alike.std() or 1.0)
        other, itself = elsewhere(answer, candidates), candidates == answer
        for column, values in ((0, surprising[query]), (2, alike)):
            if values.size and itself.any():
                mine = values[itself][0]
                rival = values[other].max(initial=min(values.min(), mine))
                found[query, column : column + 2] = mine, mine - rival
        found[query, 4] = answer == rows[query, 0]
    return found


def _surprising(run: Evaluation) -> np.ndarray:
    """(Q, k): the surprise of the inliers of each head, summed over the kinds of features."""
    total = np.zeros((len(run.first.ranking.rows), 0))
    for number, kind in enumerate(run.evidence):
        counts = kind.num_inliers
        part = surprise(counts, counts[:, counts.shape[1] // 2 :].ravel())
        total = part if number == 0 else total + part
    return total


def _elsewhere(run: Evaluation) -> Callable[[int, np.ndarray], np.ndarray]:
    """A function: which (k,) candidates show another place than a database row, (k,) bool."""
    source = run.photos.source
    config = PositivesConfig() if source is None else source.positives
    _, taken = run.photos.whereabouts
    complete = taken is not None and bool(taken.known.all())

    def elsewhere(answer: int, candidates: np.ndarray) -> np.ndarray:
        if taken is None or not complete:
            return candidates != answer
        return taken.elsewhere(answer, candidates, config)

    return elsewhere


def by_chance(run: Evaluation) -> np.ndarray | None:
    """(Q,): the odds of the first answer against the best photo of another place, as a probability.

    By chance alone the inliers of a photo are as rare as e to the −`surprise`; the odds of two
    photos, of which one is right, are the ratio of that. None without inliers.
    """
    if not run.evidence:
        return None
    sure: np.ndarray = scipy.special.expit(signals(run)[:, 1])
    return sure


class Odds:
    """A logistic regression of right on `signals`, learned from an evaluation with labels."""

    def __init__(self, run: Evaluation, right: np.ndarray) -> None:
        """Learn from the first answers of ``run`` that are ``right`` (Q,): 1, 0, nan not to learn.

        InputError where too few are right, or wrong.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        known = ~np.isnan(right)
        counts = int((right == 1).sum()), int((right == 0).sum())
        if min(counts) < _LEAST:
            raise InputError(
                f"--confidence_from {run.place}: {counts[0]} right and {counts[1]} wrong first "
                f"answers; {_LEAST} of each are needed at least"
            )
        self._model = make_pipeline(StandardScaler(), LogisticRegression())
        self._model.fit(signals(run)[known], right[known].astype(int))

    def of(self, run: Evaluation) -> np.ndarray:
        """(Q,): the probability that each first answer is right."""
        probability: np.ndarray = self._model.predict_proba(signals(run))[:, 1]
        return probability


def conformal_threshold(wrong: np.ndarray, max_wrong: float) -> float:
    """The least confidence at which at most the share ``max_wrong`` of wrong answers is given.

    wrong: (n,) confidences of wrong answers that the odds did not learn from. Of a wrong answer on
    exchangeable photos the confidence is above the ⌈(n + 1)(1 − max_wrong)⌉-th smallest of them
    with at most that probability, whatever the odds are worth (Vovk, Gammerman, Shafer,
    "Algorithmic Learning in a Random World", 2005). Infinite where n is too small.
    """
    rank = int(np.ceil((len(wrong) + 1) * (1 - max_wrong)))
    if rank > len(wrong):
        return float("inf")
    return float(np.nextafter(np.sort(wrong)[max(rank, 1) - 1], np.inf))
