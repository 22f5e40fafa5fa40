"""What re-ranking did to one query of an evaluation: where its positives stood, and stand now."""

from dataclasses import dataclass

import numpy as np

from retrieval import metrics
from retrieval.data.positives import Positives
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation


@dataclass(frozen=True)
class QueryReranking:
    """One query's rankings.

    before, after:  (K,) database rows, best first.
    num_inliers:    (k,) of the first k of ``before``.
    positives:      (P,) database rows.
    positive_ranks: (P, 2) int64, the rank of each positive before and after, from 1, junk not
                    counted; K + 1 where it is not among the first K.
    recalls:        recall@N before and after, in percent: 100 with a positive among the first N;
                    empty without labels.
    """

    before: np.ndarray
    after: np.ndarray
    num_inliers: np.ndarray
    positives: np.ndarray
    positive_ranks: np.ndarray
    recalls: dict[int, tuple[float, float]]

    def moves(self) -> list[str]:
        """``positive 17: 7 → 1`` for each positive, in the order of their new ranks."""
        order = np.argsort(self.positive_ranks[:, 1], kind="stable")
        return [
            f"positive {self.positives[row]}: {self._move(self.positive_ranks[row])}"
            for row in order
        ]

    def in_words(self) -> str:
        """``first positive 7 → 1; R@1 0 → 100, …``"""
        if len(self.positives) == 0:
            return "no positives" if self.recalls else "no labels"
        recalls = [f"R@{n} {old:.0f} → {new:.0f}" for n, (old, new) in self.recalls.items()]
        return f"first positive {self._move(self.positive_ranks.min(axis=0))}; {', '.join(recalls)}"

    def _move(self, ranks: np.ndarray) -> str:
        depth = len(self.before)
        return " → ".join(str(rank) if rank <= depth else f"> {depth}" for rank in ranks.tolist())


def reranking_of(run: Evaluation, query: int) -> QueryReranking:
    """How the re-ranking of an evaluation went for one query.

    Raises InputError for a query that is out of range or could not be read, and for an evaluation
    that was not re-ranked.
    """
    verified, _ = run.local()
    check_index("query", query, len(run.photos.queries))
    before, after = (step.ranking.rows[query] for step in run.steps[:2])
    if (before < 0).all():
        photo = run.photos.queries[query]
        raise InputError(f"query {query} ({photo}) could not be read: no ranking")
    positives, ranks = np.empty(0, np.int64), []
    recalls: dict[int, tuple[float, float]] = {}
    if run.photos.truth is not None:
        positives, junk = run.photos.truth.positives[query], run.photos.truth.junk[query]
        counted = [ranking[~np.isin(ranking, junk)] for ranking in (before, after)]
        beyond = len(before) + 1
        ranks = [
            [metrics.rank_of(ranking, row) or beyond for ranking in counted]
            for row in positives.tolist()
        ]
        alone = Positives([positives], [junk])
        old, new = (metrics.recall_at_k(ranking[None], alone) for ranking in (before, after))
        recalls = {n: (old[n], new[n]) for n in old}
    positive_ranks = np.array(ranks, np.int64).reshape(-1, 2)
    num_inliers = verified.num_inliers[query]
    return QueryReranking(before, after, num_inliers, positives, positive_ranks, recalls)


def check_index(what: str, index: int, count: int) -> None:
    """InputError for an index that is not in [0, count)."""
    if not 0 <= index < count:
        raise InputError(f"{what} {index}: expected a number from 0 to {count - 1}")
