"""How each query of an evaluation went."""

from dataclasses import dataclass

import numpy as np

from retrieval import metrics
from retrieval.evaluation import Evaluation


@dataclass(frozen=True)
class Outcomes:
    """The rank of each query's first positive in the first and in the last step, (Q,) float64.

    Counted from 1 with junk taken out; inf where none was found. counted (Q,) bool: the query is
    in the figures, which in revisited sets those without positives are not.
    """

    before: np.ndarray
    after: np.ndarray
    counted: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """(Q,) bool: recall@1 hits after the last step."""
        return self.after == 1

    @property
    def helped(self) -> np.ndarray:
        """(Q,) bool: the first positive moved up."""
        return self.after < self.before

    @property
    def hurt(self) -> np.ndarray:
        """(Q,) bool: the first positive moved down."""
        return self.after > self.before

    @property
    def wrong(self) -> np.ndarray:
        """(Q,) bool: it does not, and counts as a miss."""
        return ~self.right & self.counted

    def outcome(self, query: int) -> str:
        """``right``, ``wrong``, or ``none``."""
        return "right" if self.right[query] else "wrong" if self.wrong[query] else "none"

    def effect(self, query: int) -> str:
        """``helped``, ``hurt``, or nothing."""
        return "helped" if self.helped[query] else "hurt" if self.hurt[query] else ""


def outcomes(run: Evaluation) -> Outcomes | None:
    """How the queries went; None without labels."""
    truth = run.photos.truth
    if truth is None:
        return None
    has_positives = np.array([len(rows) > 0 for rows in truth.positives], bool)
    before, after = (
        metrics.first_hit_rank(step.ranking.rows, truth) for step in (run.first, run.last)
    )
    return Outcomes(before, after, has_positives | (run.photos.protocol == "R"))
