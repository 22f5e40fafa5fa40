"""Tuning against its bar: 200 settings of 30 geometries, 500 queries x top 20, in three minutes.

The features are read from a store, as tune.py reads those of a run folder:

    python3 benchmarks/tuning.py --run logs/val/DATE
    python3 benchmarks/tuning.py [--features 1000] [--dim 128]

Without a run they are made up: every query shares half of its features with two of the database's
images, shifted and turned; the rest is noise.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from retrieval import progress, saved_run
from retrieval.configs.rank import RerankConfig
from retrieval.data.photo_sets import PhotoSet
from retrieval.data.positives import Positives
from retrieval.evaluation import LocalSource, Ranked
from retrieval.features import FeatureStore, LocalFeatures
from retrieval.saved_run import SavedRun
from retrieval.tuning import search_space, try_settings
from retrieval.tuning.search_space import Axes

BAR = 180.0  # seconds
QUERIES, DEPTH, DATABASE = 500, 20, 640
# Five pairs of rule and max_distance (one_way is always bounded), two K, three residuals: 30.
AXES = Axes(
    top_k=(20, 10),
    max_distance=(None, 0.8, 0.65),
    residual=(None, 8.0, 24.0),
    model=("affine",),
    fusion=(0.0, 30.0),
)


def main() -> None:
    """Search, and print the seconds beside those of the bar."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--run", type=Path, help="run folder of eval.py, re-ranked to top 20")
    parser.add_argument("--features", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=128)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.run is not None:
            run = first_of(saved_run.open_run(args.run))
        else:
            run = made_up(Path(folder) / "features", args.features, args.dim)
        measure(run, Path(folder) / "counts")


def measure(run: SavedRun, folder: Path) -> None:
    """Search twice, the second time from saved counts; print seconds."""
    base, _ = run.with_local()
    settings = search_space.grid(AXES, base)
    geometries = len(search_space.geometries(settings))
    pairs = len(try_settings.shortlists(run, settings).pairs)
    queries = int((run.ranked.ranking[:, 0] >= 0).sum())
    print(f"{len(settings)} settings, {geometries} geometries, {queries} queries, {pairs} pairs")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before")
    slowest = 0.0
    for name in ("counting and ordering", "ordering alone"):
        start, processor = time.perf_counter(), time.process_time()
        with progress.bar(name, pairs * geometries, "pairs"):
            outcomes = try_settings.evaluate(run, settings, folder, progress=progress.advance)
        seconds, used = time.perf_counter() - start, time.process_time() - processor
        print(f"{name:24s}{seconds:7.1f} s by the clock, {used:7.1f} s of processor")
        slowest = max(slowest, seconds)
    print(f"the bar is {BAR:.0f} s: {BAR / slowest:.1f}x")
    best = try_settings.best_first(outcomes)[0]
    print(
        f"global {try_settings.before(run).mean():.1f}, best {best.figure:.1f} at {best.ms:.1f} ms"
    )


def first_of(run: SavedRun) -> SavedRun:
    """The run with its first queries alone, top 20."""
    base, _ = run.with_local()
    ranked = replace(
        run.ranked,
        ranking=run.ranked.ranking[:QUERIES],
        similarity=run.ranked.similarity[:QUERIES],
    )
    truth = {
        name: Positives(each.positives[:QUERIES], each.junk[:QUERIES])
        for name, each in run.photos.ground_truth.items()
    }
    photos = replace(run.photos, queries=run.photos.queries[:QUERIES], ground_truth=truth)
    return replace(run, photos=photos, ranked=ranked, rerank=replace(base, top_k=DEPTH))


def made_up(folder: Path, num_features: int, dim: int) -> SavedRun:
    """A run on made-up features; the positives are anywhere in the first 20."""
    rng = np.random.default_rng(0)
    store = FeatureStore.open(folder, {"made up": [num_features, dim]})
    database = [random_features(rng, num_features, dim) for _ in range(DATABASE)]
    positives = [rng.permutation(DATABASE)[:2] for _ in range(QUERIES)]
    with store.writer() as writer:
        for row, features in enumerate(database):
            writer.put(f"database/{row}", features)
        for row, (first, _) in enumerate(positives):
            writer.put(f"query/{row}", other_view(rng, database[first]))
    ranking = np.empty((QUERIES, DEPTH), np.int64)
    for row, right in enumerate(positives):
        others = rng.permutation(np.setdiff1d(np.arange(DATABASE), right))[: DEPTH - 1]
        ranking[row] = rng.permutation([right[0], *others])
    similarity = np.tile(np.linspace(0.9, 0.5, DEPTH), (QUERIES, 1))
    names = [Path(f"{row}.jpg") for row in range(DATABASE)]
    truth = {"R": Positives(positives, [np.empty(0, np.int64)] * QUERIES)}
    return SavedRun(
        folder=folder,
        photos=PhotoSet(folder, names[:QUERIES], names, truth),
        ranked=Ranked(ranking, similarity, np.empty((0, 0)), np.empty((0, 0))),
        rankings={},
        result={"feature_store": str(store.folder)},
        rerank=RerankConfig(top_k=DEPTH),
        local=LocalSource(lambda row: store[f"query/{row}"], lambda row: store[f"database/{row}"]),
    )


def random_features(rng: np.random.Generator, count: int, dim: int) -> LocalFeatures:
    """Features anywhere in a photo, of unit norm."""
    points = rng.uniform(0, 1000, (count, 2)).astype(np.float32)
    scores = np.sort(rng.random(count))[::-1].astype(np.float32)
    return LocalFeatures(points, unit(rng.normal(size=(count, dim))), scores, (1000, 1000))


def other_view(rng: np.random.Generator, features: LocalFeatures) -> LocalFeatures:
    """Half of the features, turned, shifted and shaken; the other half is anything."""
    other = random_features(rng, len(features), features.descriptors.shape[1])
    kept = rng.random(len(features)) < 0.5
    angle = rng.uniform(-0.2, 0.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = features.keypoints @ turn.T + rng.normal(scale=4, size=features.keypoints.shape)
    noise = rng.normal(
        scale=0.5 / np.sqrt(features.descriptors.shape[1]), size=features.descriptors.shape
    )
    points = np.where(kept[:, None], moved, other.keypoints).astype(np.float32)
    looks = np.where(kept[:, None], features.descriptors + noise, other.descriptors)
    return LocalFeatures(points, unit(looks), features.scores, features.image_size)


def unit(rows: np.ndarray) -> np.ndarray:
    """The rows at unit norm, float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


if __name__ == "__main__":
    main()
