"""Accuracy and matching time of local features in fewer bytes, against half precision.

    python3 benchmarks/compact.py RUN --output_dir logs/compact

RUN is a run folder of eval.py that was re-ranked by stored local features of half precision (with
--local_features, or --all_local_features). Its first ranking is re-ranked anew by each form at each
number of bytes a photo, with three seeds of RANSAC: a row tells the means of their figures, and in
brackets those of each. Every row is a run folder, which compare.py takes. Differences are paired by
query, with a 90 % bootstrap interval. Then matching: milliseconds of processor, on one thread, of
the same pairs of photos, in turn, at most 1,000 features each. The reference is half precision.
Takes about ten minutes on 2 cores.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from retrieval import evaluation, reranking
from retrieval.compact.store import compacted
from retrieval.configs.describe import CompactConfig
from retrieval.configs.rank import MatchConfig
from retrieval.evaluation import Evaluation
from retrieval.feature_folders import SetFeatures, features_of_set
from retrieval.matching import as_single, match_descriptors
from retrieval.search import Ranking
from retrieval.verification import count_inliers

KIB = 1024
SIZES = (128, 64, 28, 14, 8, 4, 1)
SEEDS = 3
FORMS = ("half", "8bit", "binary")
PAIRS, REPEATS, MOST = 20, 5, 1000


def main() -> None:
    """Print both tables; save a run for each row of the first."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--output_dir", type=Path, default=Path("logs/compact"))
    parser.add_argument("--kib", type=int, nargs="*", default=SIZES, help="a photo, at most")
    parser.add_argument("--forms", nargs="+", default=FORMS)
    parser.add_argument("--code_bits", type=int, default=CompactConfig.code_bits)
    args = parser.parse_args()
    run = Evaluation.open(args.run)
    _, features = run.local()
    whole = print_row(run, features, CompactConfig(), args.output_dir, None)
    for most in (None, *(kib * KIB for kib in args.kib)):
        for form in args.forms:
            config = CompactConfig(form, most, args.code_bits)
            if form != "half" or most is not None:
                print_row(run, features, config, args.output_dir, whole)
    print_times(run, features)


def print_row(
    run: Evaluation,
    features: SetFeatures,
    config: CompactConfig,
    folder: Path,
    whole: Evaluation | None,
) -> Evaluation:
    """Re-rank by features as ``config`` keeps them; what they cost and what they lose."""
    store = compacted(features, config)
    most = "all" if config.bytes_per_image is None else f"{config.bytes_per_image // KIB:03d}KiB"
    name = store.form + str(config.code_bits) * (store.form == "binary")
    found = reranked(run, features_of_set(run.photos, store)).save(folder / f"{name}_{most}")
    figures = ", ".join(f"{n} {v:.1f}" for n, v in found.last.figures.items() if n[:4] in RANKED)
    each = found.notes[0].partition("(")[2].partition(")")[0]
    line = f"{store.cost:55s} {figures} ({each})"
    if whole is not None:
        before, after = whole.last, found.last
        paired = evaluation.compare(run.truth(), run.metric, before, after, level=0.9)
        line += f"; {paired.gain.in_words()} against half"
    print(f"{most:>7s}  {line}", flush=True)
    return found


def reranked(run: Evaluation, features: SetFeatures) -> Evaluation:
    """The first ranking re-ranked with several seeds of RANSAC: the means of their figures."""
    kind, ranked = run.local()[0], run.first.ranking
    heads = ranked.rows[:, : kind.config.top_k]
    pairs = [(query, row) for query, head in enumerate(heads.tolist()) for row in head]
    chance = reranking.random_pairs(ranked.rows, kind.config)
    verify = kind.config.verify
    geometries = [
        replace(kind.config, verify=replace(verify, seed=seed)).geometry for seed in range(SEEDS)
    ]
    every = [*pairs, *chance]
    counted = count_inliers(every, features.queries, features.database, geometries).num_inliers
    steps = []
    for counts in counted:
        floor = reranking.measure_chance(counts[len(pairs) :], kind.config.floor_quantile).floor
        inliers = counts[: len(pairs)].reshape(heads.shape)
        rows, order = reranking.reorder(ranked.rows, ranked.similarity, inliers, floor)
        similarity = np.take_along_axis(ranked.similarity, order, axis=1)
        steps.append(evaluation.score("reranked", Ranking(rows, similarity), run.photos))
    mean = replace(
        steps[0],
        figures={n: float(np.mean([step.figures[n] for step in steps])) for n in steps[0].figures},
        per_query=np.mean([step.per_query for step in steps], axis=0),
    )
    kept = features.store
    found = replace(
        kind,
        num_inliers=counted[0, : len(pairs)].reshape(heads.shape),
        features=features,
        form=kept.form,
        bytes_per_image=kept.bytes_per_image,
    )
    name = run.metric
    each = ", ".join(f"{step.figures[name]:.1f}" for step in steps if name in step.figures)
    notes = (f"Means over {SEEDS} seeds of RANSAC ({name} {each}); the ranking is of the first.",)
    return replace(run, steps=(run.first, mean), evidence=(found,), notes=notes)


RANKED = ("mAP ", "R@1")


def print_times(run: Evaluation, features: SetFeatures) -> None:
    """Milliseconds of processor of each form, and the ratio to half precision."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    query, rows = 0, run.first.ranking.rows[0, :PAIRS].tolist()
    sides, times = {}, {}
    configs = {form: CompactConfig(form) for form in ("half", "8bit")}
    configs |= {f"{n} bits": CompactConfig("binary", code_bits=n) for n in (128, 192, 256)}
    for form, config in configs.items():
        kept = features_of_set(run.photos, compacted(features, config))
        each = [kept.queries[query], *(kept.database[row] for row in rows)]
        sides[form] = [as_single(photo.strongest(MOST).descriptors) for photo in each]
        times[form] = np.zeros((REPEATS, len(rows)))
    for repeat in range(REPEATS):
        for column in range(len(rows)):
            for form, (ours, *theirs) in sides.items():
                start = time.process_time()
                match_descriptors(ours, theirs[column], MatchConfig())
                times[form][repeat, column] = 1000 * (time.process_time() - start)
    print(f"\nMatching at most {MOST} x {MOST}, one thread (median milliseconds of processor)")
    reference = float(np.median(times["half"]))
    for form, values in times.items():
        ms = float(np.median(values))
        print(f"  {form:8s} {ms:7.2f} ms  {reference / ms:6.1f}x")


if __name__ == "__main__":
    main()
