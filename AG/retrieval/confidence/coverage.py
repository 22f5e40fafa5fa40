"""What confidence is worth: precision of the answers that are given, by how many are."""

from dataclasses import dataclass

import numpy as np
import scipy.stats

SHARES = (50, 80, 90, 95, 100)
PRECISIONS = (95, 99)
_BINS = 10


@dataclass(frozen=True)
class Reliability:
    """All in percent, but auroc in [0, 1]; nan where there is nothing to count.

    precision: by the share of queries that are answered, the most confident first, in SHARES.
    answered:  by the precision that is asked for, in PRECISIONS: the largest share of queries that
               can be answered, with a 95 % bootstrap interval over queries.
    ece:       expected calibration error in ten bins of equal width (Guo et al., "On calibration of
               modern neural networks", ICML 2017).
    auroc:     the probability that a right answer has more confidence than a wrong one.
    """

    precision: dict[int, float]
    answered: dict[int, tuple[float, float, float]]
    ece: float
    auroc: float

    def in_words(self) -> str:
        """Two sentences."""
        precision = ", ".join(f"{p:.1f} at {share}" for share, p in self.precision.items())
        answered = ", ".join(
            f"{share:.1f} [{low:.1f}, {high:.1f}] at {wanted}"
            for wanted, (share, low, high) in self.answered.items()
        )
        return (
            f"precision by the percent answered: {precision}; percent that can be answered by the "
            f"precision: {answered}; calibration error {self.ece:.1f}, AUROC {self.auroc:.3f}"
        )


def reliability(confidence: np.ndarray, right: np.ndarray, draws: int = 1000) -> Reliability:
    """The reliability of (Q,) confidences; right (Q,) is 1, 0, or nan for what does not count."""
    known = ~np.isnan(right)
    confidence, right = confidence[known], right[known]
    curve = precisions(confidence, right)
    count = len(curve)
    rng = np.random.default_rng(0)
    drawn = [rng.integers(count, size=count) for _ in range(draws if count else 0)]
    answered = {}
    for wanted in PRECISIONS:
        shares = [_answered(precisions(confidence[rows], right[rows]), wanted) for rows in drawn]
        low, high = np.quantile(shares, [0.025, 0.975]) if shares else (np.nan, np.nan)
        answered[wanted] = (_answered(curve, wanted), float(low), float(high))
    at = {share: max(1, round(share / 100 * count)) for share in SHARES}
    return Reliability(
        {share: float(curve[n - 1]) if count else np.nan for share, n in at.items()},
        answered,
        calibration_error(confidence, right),
        _auroc(confidence, right),
    )


def precisions(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(Q,): percent right among the n most confident answers, for n = 1 to Q."""
    order = np.argsort(-confidence, kind="stable")
    return 100 * np.cumsum(right[order]) / np.arange(1, len(right) + 1)


def _answered(curve: np.ndarray, wanted: float) -> float:
    reached = np.flatnonzero(curve >= wanted)
    return 100 * (reached[-1] + 1) / len(curve) if len(reached) else 0.0


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The mean of |right − confidence| of the bins, by how many answers each has; in percent."""
    if len(right) == 0:
        return float("nan")
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gap = np.bincount(bins, right, _BINS) - np.bincount(bins, confidence, _BINS)
    return 100 * float(np.abs(gap).sum()) / len(right)


def _auroc(confidence: np.ndarray, right: np.ndarray) -> float:
    """By the ranks of the right ones, ties at their mean (Mann and Whitney, 1947)."""
    n = int(right.sum())
    if n in (0, len(right)):
        return float("nan")
    ranks = scipy.stats.rankdata(confidence)[right == 1].sum()
    return float((ranks - n * (n + 1) / 2) / (n * (len(right) - n)))
