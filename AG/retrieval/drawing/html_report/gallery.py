"""The gallery of a report: which queries it shows, and what it says and draws of each."""

import base64
import contextlib
import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from retrieval import metrics, report
from retrieval.data.images import Box, ImageError
from retrieval.drawing import pictures
from retrieval.drawing.html_report.outcomes import Outcomes
from retrieval.evaluation import Evaluation
from retrieval.features import LocalFeatures
from retrieval.verification import match

PREDICTIONS = 5
RINGED = 20


@dataclass(frozen=True)
class Tile:
    """A prediction of a query.

    photo: a data URI, None if unreadable; mark: right, wrong, junk or none (no labels); rank and
    old_rank: in the last and in the first step, from 1, None where it does not appear; inliers: in
    words, empty where it was not verified.
    """

    name: str
    photo: str | None
    mark: str
    rank: int | None
    old_rank: int | None
    inliers: str


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
    """What cards are made from; thumbnails are made once for all of them."""

    run: Evaluation
    found: Outcomes | None
    thumbnail: Callable[[int], str | None]


def cards(run: Evaluation, found: Outcomes | None, queries: np.ndarray) -> list[Card]:
    """The cards of these query rows."""
    photos = run.photos
    source = _Source(
        run,
        found,
        functools.cache(lambda row: thumbnail(photos.database[row])),
    )
    return [_card(source, query) for query in queries.tolist()]


def thumbnail(path: Path, box: Box | None = None) -> str | None:
    """`pictures.thumbnail` as a data URI; None if the photo is unreadable."""
    try:
        return data_uri(pictures.thumbnail(path, box))
    except ImageError:
        return None


def data_uri(image: np.ndarray, quality: int = 78) -> str:
    """(H, W, 3) uint8 RGB as the text of an image, WebP, for the ``src`` of an ``<img>``."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "WEBP", quality=quality, method=2)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()


def _card(source: _Source, query: int) -> Card:
    run, found = source.run, source.found
    ranking = run.last.ranking.rows[query]
    shown = ranking[ranking >= 0][:PREDICTIONS].tolist()
    return Card(
        query,
        run.photos.query_photos[query].shown,
        thumbnail(run.photos.queries[query], run.photos.box(query)),
        "none" if found is None else found.outcome(query),
        "" if found is None else found.effect(query),
        [_tile(source, query, row) for row in shown],
        _missed(source, query, shown),
        _notes(run, found, query),
        _pictures(run, query, shown[0] if shown else None),
    )


def _tile(source: _Source, query: int, row: int) -> Tile:
    run = source.run
    old_rank = metrics.rank_of(run.first.ranking.rows[query], row)
    return Tile(
        run.photos.database_photos[row].shown,
        source.thumbnail(row),
        "none" if run.photos.truth is None else run.photos.truth.mark(query, row),
        metrics.rank_of(run.last.ranking.rows[query], row),
        old_rank,
        report.inliers_in_words(report.inliers_of(run, query, old_rank)),
    )


def _missed(source: _Source, query: int, shown: list[int]) -> Tile | None:
    """The best-ranked positive (any, where none is ranked), where no positive is shown."""
    truth, ranking = source.run.photos.truth, source.run.last.ranking.rows[query]
    if truth is None or len(truth.positives[query]) == 0:
        return None
    positives = truth.positives[query]
    ranked = ranking[np.isin(ranking, positives)]
    best = int(ranked[0] if len(ranked) else positives[0])
    return None if best in shown else _tile(source, query, best)


def _notes(run: Evaluation, found: Outcomes | None, query: int) -> list[str]:
    """Sentences on a query: where its first positive ranks, and what is missing."""
    notes = []
    if run.photos.truth is not None and found is not None:
        if len(run.photos.truth.positives[query]) == 0:
            counted = "counts as a miss" if run.photos.protocol == "R" else "not in the figures"
            notes.append(f"no positives in the database: {counted}")
        else:
            depth = run.last.ranking.rows.shape[1]
            ranks = [found.before[query], found.after[query]][-len(run.rankings) :]
            said = [f"beyond {depth}" if np.isinf(rank) else f"{rank:.0f}" for rank in ranks]
            notes.append(f"first positive: rank {' → '.join(said)}")
    if run.confidence is not None and run.min_confidence > 0:
        withheld = "withheld: " if run.withheld[query] else ""
        notes.append(f"{withheld}confidence {run.confidence[query]:.2f}")
    if (run.last.ranking.rows[query] < 0).all():
        notes.append("no predictions: the photo was skipped, as it could not be decoded")
    return notes


def _pictures(run: Evaluation, query: int, first: int | None) -> list[Picture]:
    """The query's attention, and its matches with ``first``, where features and photos are."""
    drawn: list[Picture] = []
    if run.features is None:
        return drawn
    with contextlib.suppress(ImageError):
        photo = pictures.panel(run.photos.queries[query])
        features = run.features.queries[query]
        drawn.append(_attention(photo, features))
        if first is not None and run.verified is not None:
            other = pictures.panel(run.photos.database[first])
            pair = match(features, run.features.database[first], run.verified.config.geometry)
            matches = data_uri(pictures.matches(photo, other, pair))
            words = pictures.matches_in_words(pair, run.verified.config.verify)
            colours = "; inliers blue, the others orange" if len(pair.matches) else ""
            sides = "Matches of the query (left) with its first prediction (right)"
            drawn.append(Picture("matches", matches, f"{sides}: {words}{colours}"))
    return drawn


def _attention(photo: np.ndarray, features: LocalFeatures) -> Picture:
    best = features.strongest(RINGED)
    caption = (
        f"Attention: the scores of the query's {len(features)} local features, dark where low, "
        f"bright where high; the {len(best)} strongest are ringed"
    )
    if len(features) == 0:
        caption = "Attention: this photo has no local features"
    return Picture("attention", data_uri(pictures.attention(photo, features, best)), caption)
