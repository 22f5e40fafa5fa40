"""What an evaluation leaves behind: result.json, the printed table, predictions and pictures."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.data.photo_sets import PhotoSet
from retrieval.files import write_atomically


def in_words(figures: Mapping[str, float]) -> str:
    """``R@1: 70.9, R@5: 81.0`` …"""
    return ", ".join(f"{name}: {value:.1f}" for name, value in figures.items())


def table(result: Mapping[str, Any]) -> str:
    """The figures of `result.json` as a table of plain text, with times and `notes`."""
    rows = [(name, result[name]) for name in ("global", "reranked") if result.get(name)]
    if not rows:
        return "no labels: no figures"
    columns = list(rows[0][1])
    width = max(6, *(len(column) for column in columns)) + 2
    lines = [" " * 10 + "".join(column.rjust(width) for column in columns)]
    lines += [
        name.ljust(10) + "".join(f"{figures[column]:{width}.1f}" for column in columns)
        for name, figures in rows
    ]
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result["seconds"].items())
    return "\n".join([*lines, f"time: {times}", *notes(result)])


def notes(result: Mapping[str, Any]) -> list[str]:
    """Sentences on what re-ranking did and cost, and on images that were skipped."""
    lines = []
    if "comparison" in result:
        lines.append(_comparison_in_words(result["comparison"], result["protocol"]["rerank"]))
    if result.get("pairs"):
        stages = ("loading", "matching", "verification")
        parts = ", ".join(f"{name} {result['thread_seconds'][name]:.1f} s" for name in stages)
        lines.append(
            f"{result['pairs']} pairs verified, {result['ms_per_pair']:.2f} ms each "
            f"(over all threads: {parts})"
        )
    if result["skipped"]:
        lines.append(f"SKIPPED {len(result['skipped'])} images that could not be decoded")
    return lines


def _comparison_in_words(comparison: Mapping[str, Any], rerank: Mapping[str, Any]) -> str:
    low, high = comparison["interval_95"]
    return (
        f"re-ranking: {comparison['metric']} {comparison['difference']:+.1f} "
        f"[{low:+.1f}, {high:+.1f}] (paired 95 % interval); first positive moved up for "
        f"{len(comparison['helped'])} queries, down for {len(comparison['hurt'])}, "
        f"stayed for {comparison['unchanged']}; floor {rerank['floor']:g} inliers"
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that appears whole or not at all."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def write_predictions(path: Path, photos: PhotoSet, ranking: np.ndarray, count: int) -> None:
    """A CSV with a line for each query: its name, and its first ``count`` predictions."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["query", *(f"prediction_{i + 1}" for i in range(count))])
    names = photos.database_ids
    for query, row in zip(photos.query_ids, ranking[:, :count], strict=True):
        writer.writerow([query, *(names[i] if i >= 0 else "" for i in row)])
    write_atomically(path, text.getvalue())


def revisited_lines(dataset: str, figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """``>> roxford5k: mAP E: 69.74, M: …`` and ``>> roxford5k: mP@k[1, 5, 10] E: [86.76 …], …``.

    ``figures`` is what `metrics.evaluate_revisited` gives, in percent.
    """
    maps = [f"{name}: {np.around(of['mAP'], 2)}" for name, of in figures.items()]
    ks = [int(name[3:]) for name in next(iter(figures.values())) if name.startswith("mP@")]
    precisions = [
        f"{name}: {np.around(np.array([of[f'mP@{k}'] for k in ks]), 2)}"
        for name, of in figures.items()
    ]
    return [
        f">> {dataset}: mAP {', '.join(maps)}",
        f">> {dataset}: mP@k{ks} {', '.join(precisions)}",
    ]
