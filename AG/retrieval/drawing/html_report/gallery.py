"""The gallery of a report: which queries it shows, and what it says and draws of each."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from retrieval import metrics
from retrieval.drawing.html_report import pictures
from retrieval.drawing.html_report.content import Outcomes, ReportContent
from retrieval.drawing.thumbnails import scaled
from retrieval.verification import match_pair

PREDICTIONS = 5
RINGED = 20


@dataclass(frozen=True)
class Tile:
    """A prediction of a query.

    photo: a data URI, None if unreadable; mark: right, wrong, junk or none (no labels); rank and
    old_rank: in the last and in the first step, from 1, None where it does not appear.
    """

    name: str
    photo: str | None
    mark: str
    rank: int | None
    old_rank: int | None
    inliers: int | None


@dataclass(frozen=True)
class Picture:
    """A picture on demand: the text of its button, a data URI, and what it shows."""

    label: str
    photo: str
    caption: str


@dataclass(frozen=True)
class Card:
    """A query: outcome right, wrong or none (no labels), effect helped, hurt or nothing.

    missed: a positive that is not among the tiles, where no other positive is either.
    """

    query: int
    name: str
    photo: str | None
    outcome: str
    effect: str
    tiles: list[Tile]
    missed: Tile | None
    notes: list[str]
    pictures: list[Picture]


def choose(found: Outcomes | None, num_queries: int, most: int) -> np.ndarray:
    """The query rows to show, at most ``most``, wrong ones first.

    Within wrong and right, those that re-ranking hurt come first, then those it helped. A fifth of
    the places is kept for right ones, which otherwise would not show where many are wrong. Queries
    that do not count come last.
    """
    if found is None:
        return np.arange(min(num_queries, most))
    order = np.lexsort((np.arange(num_queries), ~found.helped, ~found.hurt))
    wrong, right, rest = (
        order[which[order]] for which in (found.wrong, found.right, ~found.wrong & ~found.right)
    )
    kept = min(len(right), max(most - len(wrong), most // 5))
    return np.concatenate([wrong[: most - kept], right[:kept], rest])[:most]


@dataclass(frozen=True)
class _Source:
    """What cards are made from; names and thumbnails are made once for all of them."""

    content: ReportContent
    found: Outcomes | None
    query_names: list[str]
    database_names: list[str]
    thumbnail: Callable[[int], str | None]


def cards(content: ReportContent, found: Outcomes | None, queries: np.ndarray) -> list[Card]:
    """The cards of these query rows."""
    photos = content.photos
    source = _Source(
        content,
        found,
        [name.removeprefix("query/") for name in photos.query_ids],
        [name.removeprefix("database/") for name in photos.database_ids],
        functools.cache(lambda row: pictures.thumbnail(photos.database[row])),
    )
    return [_card(source, query) for query in queries.tolist()]


def _card(source: _Source, query: int) -> Card:
    content, found = source.content, source.found
    ranking = content.last[query]
    rows = ranking[ranking >= 0][:PREDICTIONS].tolist()
    boxes = content.photos.query_boxes
    return Card(
        query,
        source.query_names[query],
        pictures.thumbnail(content.photos.queries[query], None if boxes is None else boxes[query]),
        "none" if found is None else found.outcome(query),
        "" if found is None else found.effect(query),
        [_tile(source, query, row) for row in rows],
        _missed(source, query, rows),
        _notes(content, found, query),
        _pictures(content, query),
    )


def _tile(source: _Source, query: int, row: int) -> Tile:
    content = source.content
    old_rank = metrics.rank_of(content.first[query], row)
    return Tile(
        source.database_names[row],
        source.thumbnail(row),
        "none" if content.truth is None else content.truth.mark(query, row),
        metrics.rank_of(content.last[query], row),
        old_rank,
        _inliers(content, query, old_rank),
    )


def _inliers(content: ReportContent, query: int, old_rank: int | None) -> int | None:
    """Those of the prediction that had ``old_rank``, if it was verified."""
    counts = content.num_inliers
    if counts is None or old_rank is None or old_rank > counts.shape[1]:
        return None
    return int(counts[query, old_rank - 1])


def _missed(source: _Source, query: int, shown: list[int]) -> Tile | None:
    """The best-ranked positive (any, where none is ranked), where no positive is shown."""
    truth, ranking = source.content.truth, source.content.last[query]
    if truth is None or len(truth.positives[query]) == 0:
        return None
    positives = truth.positives[query]
    ranked = ranking[np.isin(ranking, positives)]
    best = int(ranked[0] if len(ranked) else positives[0])
    return None if best in shown else _tile(source, query, best)


def _notes(content: ReportContent, found: Outcomes | None, query: int) -> list[str]:
    """Sentences on a query: where its first positive ranks, and what is missing."""
    notes = []
    if content.truth is not None and found is not None:
        if len(content.truth.positives[query]) == 0:
            counted = "a miss" if content.protocol_name == "R" else "nothing in the figures"
            notes.append(f"no positives in the database: counts as {counted}")
        else:
            notes.append(_first_positive(content, found, query))
    if (content.last[query] < 0).all():
        notes.append("no predictions: the photo was skipped, as it could not be decoded")
    return notes


def _first_positive(content: ReportContent, found: Outcomes, query: int) -> str:
    depth = content.last.shape[1]

    def said(rank: float) -> str:
        return f"beyond {depth}" if np.isinf(rank) else f"{rank:.0f}"

    before, after = said(found.before[query]), said(found.after[query])
    if len(content.rankings) == 1:
        return f"first positive: rank {after}"
    return f"first positive: rank {before} → {after}"


def _pictures(content: ReportContent, query: int) -> list[Picture]:
    """Attention of the query, and its matches with the first prediction, where features are."""
    photo = pictures.panel(content.photos.queries[query])
    if content.local is None or photo is None:
        return []
    features = content.local.queries(query)
    ringed = min(RINGED, len(features))
    caption = (
        f"Attention: the scores of {len(features)} local features of the query, "
        f"the {ringed} strongest ringed"
    )
    if len(features) == 0:
        caption = "Attention: this photo has no local features"
    drawn = pictures.data_uri(pictures.attention(photo, features, RINGED))
    return [Picture("attention", drawn, caption), *_matches(content, query, photo)]


def _matches(content: ReportContent, query: int, photo: np.ndarray) -> list[Picture]:
    ranked = content.last[query][content.last[query] >= 0]
    if content.local is None or content.rerank is None or len(ranked) == 0:
        return []
    first = int(ranked[0])
    other = pictures.panel(content.photos.database[first])
    if other is None:
        return []
    ours, theirs, pairs, verification = match_pair(
        content.local.queries(query), content.local.database(first), content.rerank.geometry
    )
    inliers = verification.inliers
    drawn = pictures.matches(
        photo,
        other,
        scaled(ours.keypoints[pairs[:, 0]], ours.image_size, photo),
        scaled(theirs.keypoints[pairs[:, 1]], theirs.image_size, other),
        inliers,
    )
    verify = content.rerank.verify
    caption = (
        f"Matches of the query (left) with its first prediction: {int(inliers.sum())} inliers "
        f"(blue) of {len(pairs)} matches (the others vermilion); {verify.model}, "
        f"{verify.residual_px:g} px"
    )
    if len(pairs) == 0:
        caption = "Matches of the query (left) with its first prediction: there are none"
    return [Picture("matches", pictures.data_uri(drawn), caption)]
