"""Tuning against its bar: 200 settings of 30 geometries, 500 queries x top 20, in three minutes.

The features are read from a store, as tune.py reads those of a run folder:

    python3 benchmarks/tuning.py --run logs/val/DATE
    python3 benchmarks/tuning.py [--queries 500] [--features 1000] [--dim 128]

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

from retrieval import progress, protocol
from retrieval.configs.rank import RerankConfig
from retrieval.data.photo_sets import PhotoSet
from retrieval.data.positives import Positives
from retrieval.evaluation import Evaluation, Verified, score
from retrieval.feature_folders import features_of_set, made_from
from retrieval.features import FeatureStore, LocalFeatures
from retrieval.search import Ranking
from retrieval.tuning import search_space, try_settings
from retrieval.tuning.search_space import Axes

BAR = 180.0  # seconds
DEPTH, DATABASE = 20, 640
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
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--features", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=128)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.run is not None:
            run = first_of(Evaluation.open(args.run), args.queries)
        else:
            run = made_up(Path(folder) / "features", args.queries, args.features, args.dim)
        measure(run, Path(folder) / "counts")


def measure(run: Evaluation, folder: Path) -> None:
    """Search twice, the second time from saved counts; print seconds."""
    settings = search_space.grid(AXES, run.local()[0].config)
    geometries = len(search_space.geometries(settings))
    pairs = len(try_settings.shortlists(run, settings).pairs)
    queries = int((run.first.ranking.rows[:, 0] >= 0).sum())
    print(f"{len(settings)} settings, {geometries} geometries, {queries} queries, {pairs} pairs")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before")
    slowest = 0.0
    for name in ("counting and ordering", "ordering alone"):
        start, processor = time.perf_counter(), time.process_time()
        with progress.bar(name, pairs * geometries, "pairs"):
            outcomes = try_settings.try_all(run, settings, folder)
        seconds, used = time.perf_counter() - start, time.process_time() - processor
        print(f"{name:24s}{seconds:7.1f} s by the clock, {used:7.1f} s of processor")
        slowest = max(slowest, seconds)
    print(f"the bar is {BAR:.0f} s: {BAR / slowest:.1f}x")
    best = try_settings.best_first(outcomes)[0]
    before = np.nanmean(run.first.per_query)
    print(f"global {before:.1f}, best {best.figure:.1f} at {best.ms:.1f} ms")


def first_of(run: Evaluation, queries: int) -> Evaluation:
    """The run with its first queries alone, top 20."""
    verified, features = run.local()
    truth = {
        name: Positives(each.positives[:queries], each.junk[:queries])
        for name, each in run.photos.ground_truth.items()
    }
    photos = replace(run.photos, queries=run.photos.queries[:queries], ground_truth=truth)
    ranked = run.first.ranking
    head = Ranking(ranked.rows[:queries], ranked.similarity[:queries])
    config = replace(verified.config, top_k=DEPTH)
    return to_be_tuned(photos, head, config, features.store)


def to_be_tuned(
    photos: PhotoSet, ranked: Ranking, config: RerankConfig, store: FeatureStore
) -> Evaluation:
    """An evaluation of one ranking that stands before re-ranking by ``config``."""
    none = np.empty((len(photos.queries), 0), np.int64)
    return Evaluation(
        title="tuning",
        photos=photos,
        steps=(score("global", ranked, photos),),
        protocol=protocol.protocol_of(photos, {}),
        evidence=(Verified(config, none, 0.0, {}, features_of_set(photos, store)),),
    )


def made_up(folder: Path, queries: int, num_features: int, dim: int) -> Evaluation:
    """A run on made-up features; the positives are anywhere in the first 20."""
    rng = np.random.default_rng(0)
    database = [random_features(rng, num_features, dim) for _ in range(DATABASE)]
    positives = [rng.permutation(DATABASE)[:2] for _ in range(queries)]
    paths = [folder / f"{row}.jpg" for row in range(DATABASE)]
    truth = {"R": Positives(positives, [np.empty(0, np.int64)] * queries)}
    photos = PhotoSet(folder, paths[:queries], paths, truth)
    made_by = made_from(photos, "made up", {"features": [num_features, dim]})
    store = FeatureStore.open(folder, made_by)
    with store.writer() as writer:
        for photo, features in zip(photos.database_photos, database, strict=True):
            writer.put(photo.name, features)
        for photo, (first, _) in zip(photos.query_photos, positives, strict=True):
            writer.put(photo.name, other_view(rng, database[first]))
    rows = np.empty((queries, DEPTH), np.int64)
    for row, right in enumerate(positives):
        others = rng.permutation(np.setdiff1d(np.arange(DATABASE), right))[: DEPTH - 1]
        rows[row] = rng.permutation([right[0], *others])
    similarity = np.tile(np.linspace(0.9, 0.5, DEPTH, dtype=np.float32), (queries, 1))
    ranked = Ranking(rows, similarity)
    return to_be_tuned(photos, ranked, RerankConfig(top_k=DEPTH), store)


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
