"""Re-ranking one query of an evaluation, to look at: where its positives stood, and stand now."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval import metrics, reranking
from retrieval.configs.judge import RECALL_VALUES
from retrieval.configs.rank import RerankConfig
from retrieval.data.positives import Positives
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation
from retrieval.search import Ranking


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


def rerank_query(
    run: Evaluation, query: int, config: RerankConfig, recall_values: Sequence[int] = RECALL_VALUES
) -> QueryReranking:
    """Re-rank one query of an evaluation by ``config``, from its stored features.

    Give a floor in ``config``: one query is too little to measure it on. Raises InputError for a
    query that is out of range or could not be read, and for an evaluation without local features.
    """
    photos = run.photos
    _, features = run.local()
    check_index("query", query, len(photos.queries))
    row = slice(query, query + 1)
    ranked = Ranking(run.first.ranking.rows[row], run.first.ranking.similarity[row])
    if (ranked.rows < 0).all():
        raise InputError(f"query {query} ({photos.queries[query]}) could not be read: no ranking")
    found = reranking.rerank(ranked, features.queries[row], features.database, config)
    truth = photos.truth
    positives = np.empty(0, np.int64) if truth is None else truth.positives[query]
    before, after = ranked.rows[0], found.ranking.rows[0]
    ranks: list[list[int]] = []
    recalls: dict[int, tuple[float, float]] = {}
    if truth is not None:
        junk = truth.junk[query]
        ranks = [
            [_rank_without(ranking, junk, right) for ranking in (before, after)]
            for right in positives.tolist()
        ]
        alone = Positives([positives], [junk])
        old, new = (
            metrics.recall_at_k(ranking[None], alone, recall_values) for ranking in (before, after)
        )
        recalls = {n: (old[n], new[n]) for n in recall_values}
    positive_ranks = np.array(ranks, np.int64).reshape(-1, 2)
    return QueryReranking(before, after, found.num_inliers[0], positives, positive_ranks, recalls)


def check_index(what: str, index: int, count: int) -> None:
    """InputError for an index that is not in [0, count)."""
    if not 0 <= index < count:
        raise InputError(f"{what} {index}: expected a number from 0 to {count - 1}")


def _rank_without(ranking: np.ndarray, junk: np.ndarray, row: int) -> int:
    """The rank of a row, junk not counted; K + 1 where it is not there."""
    return metrics.rank_of(ranking[~np.isin(ranking, junk)], row) or len(ranking) + 1
