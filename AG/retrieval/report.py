"""What an evaluation says: the printed table and lines, the answers, predictions.csv."""

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from retrieval.confidence.coverage import reliability
from retrieval.confidence.odds import first_is_right
from retrieval.evaluation import Evaluation, Verified
from retrieval.feature_folders import SetFeatures
from retrieval.files import write_atomically
from retrieval.metrics import first_hit_rank, rank_of

_SHOWN = 5
_OCTAVE = 2  # beyond it, features of one thing are no longer alike


def in_words(figures: Mapping[str, float]) -> str:
    """``R@1: 70.9, R@5: 81.0`` …"""
    return ", ".join(f"{name}: {value:.1f}" for name, value in figures.items())


def table(run: Evaluation) -> str:
    """The figures of every step as a table of plain text, with times and `notes`."""
    columns = list(run.first.figures)
    if not columns:
        return "\n".join(["no labels: no figures", *answers(run), *notes(run)])
    width = max(6, *(len(column) for column in columns)) + 2
    lines = [" " * 10 + "".join(column.rjust(width) for column in columns)]
    lines += [
        step.name.ljust(10) + "".join(f"{step.figures[column]:{width}.1f}" for column in columns)
        for step in run.steps
    ]
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in run.seconds.items())
    return "\n".join([*lines, f"time: {times}", *notes(run)])


def notes(run: Evaluation) -> list[str]:
    """Sentences on what the last step did, what verification cost, and what was skipped."""
    lines = [*run.notes]
    lines += _on_unanswerable(run)
    comparison = run.comparison()
    if comparison is not None:
        names = [f" of {kind.name}" * (len(run.evidence) > 1) for kind in run.evidence]
        floors = zip(names, run.evidence, strict=True)
        floor = "".join(
            f"; floor {kind.config.floor:g} inliers{name} within "
            f"{kind.config.verify.residual_px:g} px"
            for name, kind in floors
        )
        lines.append(
            f"{run.last.name}: {comparison.in_words()}; first positive moved up for "
            f"{len(comparison.helped)} queries, down for {len(comparison.hurt)}, stayed for "
            f"{len(comparison.unchanged)}{floor}"
        )
    lines += _on_confidence(run)
    lines += [_on_cost(kind) for kind in run.evidence if kind.num_inliers.size]
    if run.features is not None:
        lines += _on_sizes(run.features)
    stores = [str(kind.features.store.folder) for kind in run.evidence if kind.features is not None]
    lines += [f"local features: {' and '.join(stores)}"] if stores else []
    lines += filter(None, map(_on_bytes, run.evidence))
    if run.skipped:
        lines.append(f"SKIPPED {len(run.skipped)} images that could not be decoded")
    return lines


def _on_bytes(kind: Verified) -> str:
    """How features are kept, and what that costs; nothing where it is not known."""
    if kind.bytes_per_image is None:
        return ""
    return f"local features kept as {kind.form}: {kind.bytes_per_image:,.0f} bytes a photo"


def _on_confidence(run: Evaluation) -> list[str]:
    """What confidence is worth, and how many answers are withheld."""
    if run.confidence is None:
        return []
    lines = []
    right = first_is_right(run) if run.photos.truth is not None else np.empty(0)
    if (right == right).any():
        lines.append(f"confidence: {reliability(run.confidence, right).in_words()}")
    if run.min_confidence > 0:
        given = ~run.withheld
        of_them = ""
        if len(right) and (given & (right == right)).any():
            of_them = f"; of those given {100 * np.nanmean(right[given]):.1f} % are right"
        lines.append(
            f"first answers withheld: {run.withheld.sum()} of {len(given)}, less sure than "
            f"{run.min_confidence:.3f}{of_them}"
        )
    return lines


def _on_cost(kind: Verified) -> str:
    stages = ("loading", "matching", "verification")
    parts = ", ".join(f"{name} {kind.thread_seconds[name]:.1f} s" for name in stages)
    pairs = f"{kind.num_inliers.size} pairs verified, {kind.ms_per_pair:.2f} ms each"
    return f"{pairs} (over all threads: {parts})"


def _on_unanswerable(run: Evaluation) -> list[str]:
    """How many queries have no right answer, which recall counts as misses; and recall without."""
    if run.photos.protocol != "R":
        return []
    truth, rows = run.truth(), run.last.ranking.rows
    answerable = np.array([len(right) > 0 for right in truth.positives], bool)
    if answerable.all():
        return []
    ks = [int(name[2:]) for name in run.last.figures]
    recalls = 100 * np.mean(first_hit_rank(rows, truth)[answerable, None] <= ks, axis=0)
    told = in_words({f"R@{k}": recall for k, recall in zip(ks, recalls.tolist(), strict=True)})
    return [
        f"{(~answerable).sum()} of {len(answerable)} queries have no right answer in the database, "
        f"and count as wrong; of the others: {told}"
    ]


def _on_sizes(features: SetFeatures) -> list[str]:
    """A warning where photos of the database were described at sizes an octave apart or more."""
    sizes = sorted(features.database.described_sizes(), key=math.prod)
    if not sizes or math.prod(sizes[-1]) < _OCTAVE**2 * math.prod(sizes[0]):
        return []
    (w, h), (width, height) = sizes[0], sizes[-1]
    return [
        f"database photos are described at {w}×{h} to {width}×{height} pixels: features of so "
        "different sizes hardly match, and small photos can mislead re-ranking (--resize_test_imgs "
        "or --longest_side brings them nearer)"
    ]


def answers(run: Evaluation, most_queries: int = 20) -> list[str]:
    """The first predictions of each query, a line each, for a terminal."""
    lines = []
    for query, photo in enumerate(run.photos.query_photos[:most_queries]):
        lines.append(photo.shown)
        for rank, row in enumerate(_predicted(run, query)[:_SHOWN], start=1):
            similarity, inliers, _ = evidence(run, query, row)
            name = run.photos.database_photos[row].shown
            found = f"  {inliers_in_words(inliers):>4} inliers" if inliers else ""
            lines.append(f"  {rank}  {similarity:.3f}{found}  {name}")
    rest = len(run.photos.queries) - most_queries
    return [*lines, f"… and {rest} more queries: see predictions.csv"] if rest > 0 else lines


def _predicted(run: Evaluation, query: int) -> list[int]:
    ranking = run.last.ranking.rows[query]
    return ranking[ranking >= 0].tolist()


def evidence(run: Evaluation, query: int, row: int) -> tuple[float, list[int], int | None]:
    """Of a predicted database row: its similarity, `inliers_of`, and rank in the first step.

    The similarity is that of the last step. No rank: it was not ranked then.
    """
    similarity = run.last.ranking.similarity[query, run.last.ranking.rows[query] == row][0]
    before = rank_of(run.first.ranking.rows[query], row)
    return float(similarity), inliers_of(run, query, before), before


def inliers_of(run: Evaluation, query: int, rank: int | None) -> list[int]:
    """The inliers, by each kind of features, of the prediction of this rank in the first step.

    Ranks count from 1. Nothing where it was not verified.
    """
    counts = [kind.num_inliers for kind in run.evidence]
    if rank is None or not counts or rank > counts[0].shape[1]:
        return []
    return [int(count[query, rank - 1]) for count in counts]


def inliers_in_words(inliers: list[int]) -> str:
    """``40``, or ``40 + 12`` by two kinds of features."""
    return " + ".join(map(str, inliers))


def write_predictions(path: Path, run: Evaluation, count: int) -> None:
    """A CSV with a line for each of the first ``count`` predictions of each query.

    Paths of query and prediction, rank, rank in the first step, similarity, inliers (in a column
    for each kind of features), right, wrong or junk, and the confidence in the first answer; empty
    where something is not known.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    columns = ["inliers"]
    if len(run.evidence) > 1:
        columns = [f"inliers {n} {kind.name}" for n, kind in enumerate(run.evidence, start=1)]
    known = ["rank", "rank_before", "similarity"]
    writer.writerow(["query", "prediction", *known, *columns, "mark", "confidence"])
    photos = run.photos
    for query, path_of_query in enumerate(photos.queries):
        for rank, row in enumerate(_predicted(run, query)[:count], start=1):
            similarity, inliers, before = evidence(run, query, row)
            mark = "" if photos.truth is None else photos.truth.mark(query, row)
            found = list(map(str, inliers)) or [""] * len(columns)
            paths = path_of_query.absolute(), photos.database[row].absolute()
            ranks = rank, "" if before is None else before
            sure = "" if run.confidence is None or rank > 1 else f"{run.confidence[query]:.4f}"
            writer.writerow([*paths, *ranks, similarity, *found, mark, sure])
    write_atomically(path, text.getvalue())


def revisited_lines(dataset: str, figures: Mapping[str, float]) -> list[str]:
    """``>> roxford5k: mAP E: 69.74, M: …`` and ``>> roxford5k: mP@k[1, 5, 10] E: [86.76 …], …``.

    The form that cirtorch and delf_pytorch print. ``figures`` are those of a `Step`; of photo sets
    whose figures are recalls they are one line.
    """
    protocols = [name.removeprefix("mAP ") for name in figures if name.startswith("mAP ")]
    if not protocols:
        return [f">> {dataset}: {in_words(figures)}"] if figures else []
    ks = sorted({int(name[3:].split()[0]) for name in figures if name.startswith("mP@")})
    maps = [f"{name}: {np.around(figures[f'mAP {name}'], 2)}" for name in protocols]
    precisions = [
        f"{name}: {np.around(np.array([figures[f'mP@{k} {name}'] for k in ks]), 2)}"
        for name in protocols
    ]
    return [
        f">> {dataset}: mAP {', '.join(maps)}",
        f">> {dataset}: mP@k{ks} {', '.join(precisions)}",
    ]
