"""What an HTML report is made of, and how each query of it went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval import metrics
from retrieval.configs.rank import RerankConfig
from retrieval.data.photo_sets import PhotoSet
from retrieval.data.positives import Positives
from retrieval.evaluation import LocalSource


@dataclass(frozen=True)
class ReportContent:
    """An evaluation, as the report needs it.

    rankings:    for each step, in their order, its ranking (Q, K), as in `metrics`.
    figures:     for each step its figures in percent; no steps without labels.
    seconds:     of each stage.
    protocol:    what the figures rest on, plain values.
    notes:       sentences to print under the figures.
    num_inliers: (Q, k) of the first k entries of the first step's ranking, or None.
    local:       local features of the queries and of all that ranks first; None: no pictures of
                 attention and matches.
    rerank:      how matches are made and verified; None: no pictures of matches.
    """

    title: str
    photos: PhotoSet
    rankings: Mapping[str, np.ndarray]
    figures: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]
    protocol: Mapping[str, Any]
    notes: Sequence[str] = ()
    num_inliers: np.ndarray | None = None
    local: LocalSource | None = None
    rerank: RerankConfig | None = None

    def __post_init__(self) -> None:
        if not self.rankings:
            raise ValueError("a report needs at least one ranking")
        for step, ranking in self.rankings.items():
            if ranking.ndim != 2 or len(ranking) != len(self.photos.queries):
                count = len(self.photos.queries)
                raise ValueError(
                    f"{step}: expected (Q, K) for {count} queries, not {ranking.shape}"
                )

    @property
    def first(self) -> np.ndarray:
        """The ranking of the first step."""
        return next(iter(self.rankings.values()))

    @property
    def last(self) -> np.ndarray:
        """The ranking of the last step, by which a query is right or wrong."""
        return list(self.rankings.values())[-1]

    @property
    def protocol_name(self) -> str | None:
        """The key of the ground truth that right and wrong go by; None without labels."""
        return next((key for key in ("R", "M") if key in self.photos.ground_truth), None)

    @property
    def truth(self) -> Positives | None:
        """The positives that right and wrong go by; None without labels."""
        return self.photos.truth


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


def outcomes(content: ReportContent) -> Outcomes | None:
    """How the queries went; None without labels."""
    if content.truth is None:
        return None
    has_positives = np.array([len(rows) > 0 for rows in content.truth.positives], bool)
    before, after = (
        metrics.first_hit_rank(s, content.truth) for s in (content.first, content.last)
    )
    return Outcomes(before, after, has_positives | (content.protocol_name == "R"))
