"""Time and judge matching and geometric verification on real photos.

    python3 benchmarks/matching_and_verification.py --photos DIR

DIR holds `scenes/` (a folder of photos for each scene) and `mini_rparis/` (in the layout of
revisited Paris). True pairs show one scene or landmark (often without overlap), false pairs two.
Every method gets the same mutual matches of the same pairs, in turn by blocks, on one thread; times
are CPU time, in the last table the clock's. The AUC is that of the inlier count between true and
false pairs. The reference is the libraries of the first PyTorch DELG, scipy's cKDTree and skimage's
RANSAC, called as it calls them. Takes about five minutes on 2 cores.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from scipy.spatial import cKDTree

from retrieval import extraction, whitening
from retrieval.configs.describe import DelgConfig, ExtractConfig
from retrieval.configs.rank import MatchConfig, RerankConfig, VerifyConfig
from retrieval.configs.run import Resources
from retrieval.data import ground_truth, images
from retrieval.data.photo_sets import as_photos
from retrieval.features import LocalFeatures
from retrieval.geometry import verify_matches
from retrieval.matching import match_descriptors
from retrieval.networks.delg import Delg
from retrieval.ransac import load_backend
from retrieval.reranking import Evidence, rerank
from retrieval.search import Ranking

T = TypeVar("T")

NUM_FEATURES = 1000
PHOTOS_PER_LANDMARK = 10
PCA_PHOTOS = 20
# Pairs that one method works on before it is the next one's turn.
BLOCK = 20
FIRST_DELG_DISTANCE = 0.65

SKIMAGE_1000 = "skimage affine, 1000 trials"
METHODS = {
    SKIMAGE_1000: VerifyConfig("affine", "skimage", trials=1000, confidence=1.0),
    "skimage affine, 100 trials": VerifyConfig("affine", "skimage", trials=100, confidence=1.0),
    "opencv affine (default)": VerifyConfig(),
    "opencv homography": VerifyConfig("homography"),
    "opencv fundamental": VerifyConfig("fundamental"),
    "poselib homography": VerifyConfig("homography", "poselib"),
    "poselib fundamental": VerifyConfig("fundamental", "poselib"),
    "pycolmap affine": VerifyConfig("affine", "pycolmap"),
    "pycolmap homography": VerifyConfig("homography", "pycolmap"),
    "one-match similarity": VerifyConfig("similarity"),
}


@dataclass(frozen=True)
class Pairs:
    """Pairs of photos, and whether each shows one place."""

    photos: list[tuple[Path, Path]]
    same: np.ndarray


def main() -> None:
    """Extract, then print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--photos", type=Path, required=True, help="holds scenes/, mini_rparis/")
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--slow_pairs", type=int, default=100, help="for skimage, 1000 trials")
    parser.add_argument("--dim", type=int, default=128, help="of the deep features")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    places, others = read_places(args.photos, np.random.default_rng(args.seed))
    pairs = draw_pairs(places, args.pairs, np.random.default_rng(args.seed))
    photos = sorted({photo for pair in pairs.photos for photo in pair})
    start = time.perf_counter()
    deep = deep_features(photos, others, args.dim)
    sift = {photo: upright_sift(photo) for photo in photos}
    print(f"{len(photos)} photos extracted in {time.perf_counter() - start:.0f} s\n")

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for backend in ("skimage", "poselib", "pycolmap"):
        load_backend(backend)
    sets = {"upright-mutual SIFT": sift, "deep-mutual": deep}
    for name, features in sets.items():
        print_matching(name, features, pairs)
    for name, features in sets.items():
        print_verification(name, features, pairs, args.slow_pairs)
    print_together(deep, photos, args.seed)


def read_places(folder: Path, rng: np.random.Generator) -> tuple[list[list[Path]], list[Path]]:
    """The photos of each scene, and some of each landmark; and other photos, to learn the PCA."""
    scenes = [images.list_images(scene) for scene in sorted((folder / "scenes").iterdir())]
    paris = ground_truth.read_gnd(folder / "mini_rparis" / "gnd_mini_rparis.json")
    landmarks: list[set[str]] = []
    for query, positives in zip(paris.qimlist, paris.ground_truth["M"].positives, strict=True):
        names = {query, *(paris.imlist[row] for row in positives)}
        shared = [landmark for landmark in landmarks if landmark & names]
        landmarks = [landmark for landmark in landmarks if landmark not in shared]
        landmarks.append(names.union(*shared))  # queries of one landmark share positives
    chosen = [rng.permutation(sorted(names))[:PHOTOS_PER_LANDMARK] for names in landmarks]
    rest = rng.permutation(sorted(set(paris.imlist) - {name for row in chosen for name in row}))
    jpg = folder / "mini_rparis" / "jpg"
    places = scenes + [[jpg / f"{name}.jpg" for name in row] for row in chosen]
    return places, [jpg / f"{name}.jpg" for name in rest[:PCA_PHOTOS]]


def draw_pairs(places: list[list[Path]], count: int, rng: np.random.Generator) -> Pairs:
    """Half true pairs, spread over the places, half false ones."""
    true = [pair for photos in places for pair in combinations(photos, 2)]
    place = {photo: number for number, photos in enumerate(places) for photo in photos}
    false = [pair for pair in combinations(place, 2) if place[pair[0]] != place[pair[1]]]
    half = min(count // 2, len(true), len(false))
    photos = [kind[i] for kind in (true, false) for i in rng.permutation(len(kind))[:half]]
    return Pairs(photos, np.arange(2 * half) < half)


def upright_sift(photo: Path) -> LocalFeatures:
    """The strongest RootSIFT features with orientation 0."""
    grey = cv2.cvtColor(images.read_image(photo, 1024), cv2.COLOR_RGB2GRAY)
    sift = cv2.SIFT.create(contrastThreshold=0.01, edgeThreshold=30)
    found = {(point.pt, point.size): point for point in sift.detect(grey, None)}
    strongest = sorted(found.values(), key=lambda point: -point.response)[:NUM_FEATURES]
    for point in strongest:
        point.angle = 0.0
    upright, descriptors = sift.compute(grey, strongest)
    descriptors = np.sqrt(descriptors / descriptors.sum(axis=1, keepdims=True))
    columns = np.array([(*point.pt, point.size, point.response) for point in upright], np.float32)
    size = grey.shape[1], grey.shape[0]
    return LocalFeatures(columns[:, :2], descriptors, columns[:, 3], size, scales=columns[:, 2])


@torch.inference_mode()
def deep_features(
    photos: list[Path], pca_photos: list[Path], dim: int
) -> dict[Path, LocalFeatures]:
    """Features of the frozen EfficientNet-Lite0 at four scales, half-whitened to ``dim``."""
    model = Delg(DelgConfig("efficientnet_lite0", head="gem", attention="norm")).eval()
    scales = tuple(2.0 ** (k / 2) for k in range(-4, 0))
    config = ExtractConfig("longest", 1024, local_scales=scales)
    resources = Resources(infer_batch_size=4)
    samples = extraction.local_descriptors(model, as_photos(pca_photos), config, resources)
    projection = whitening.learn_pca(samples, dim, power=0.25)
    features: dict[Path, LocalFeatures] = {}
    for batch in extraction.load_batches(as_photos(photos), config, resources):
        found = extraction.local_features_of_batch(model, batch, config, projection)
        features |= {photos[row]: each for row, each in zip(batch.rows, found, strict=True)}
    return features


def timed(call: Callable[..., T], *args: Any) -> tuple[float, T]:
    """Milliseconds of CPU that a call takes, which other programs disturb less than the clock."""
    start = time.process_time()
    answer = call(*args)
    return 1000 * (time.process_time() - start), answer


def tree_match(query: np.ndarray, database: np.ndarray) -> None:
    """Matching as it was: a k-d tree of one image, searched for the neighbours of the other."""
    cKDTree(database).query(query, distance_upper_bound=FIRST_DELG_DISTANCE)


def print_matching(name: str, features: dict[Path, LocalFeatures], pairs: Pairs) -> None:
    """Milliseconds of the k-d tree and of ours, and how many of the exact matches int8 finds."""
    exact, fast = MatchConfig(precision="float32"), MatchConfig()
    configs = {
        "mutual, int8 (default)": fast,
        "mutual, float32": exact,
        "mutual, int8, ratio 0.9": MatchConfig(ratio=0.9),
        "one way, float32": MatchConfig("one_way", None, FIRST_DELG_DISTANCE, "float32"),
    }
    chosen = pairs.photos[:: max(1, len(pairs.photos) // 40)]
    sides = [(features[a].descriptors, features[b].descriptors) for a, b in chosen]
    times: dict[str, list[float]] = {"cKDTree": [], **{key: [] for key in configs}}
    matches: dict[MatchConfig, list[set[tuple[int, ...]]]] = {c: [] for c in configs.values()}
    for block in range(0, len(sides), BLOCK):
        part = sides[block : block + BLOCK]
        times["cKDTree"] += [timed(tree_match, *pair)[0] for pair in part]
        for key, config in configs.items():
            for pair in part:
                ms, answer = timed(match_descriptors, *pair, config)
                times[key].append(ms)
                matches[config].append({tuple(row) for row in answer})
    found = list(zip(matches[fast], matches[exact], strict=True))
    shared = sum(len(a & b) for a, b in found) / max(sum(max(len(a), len(b)) for a, b in found), 1)
    print(f"Matching {NUM_FEATURES} x {NUM_FEATURES}, {name}, one thread (median CPU time)")
    reference = float(np.median(times["cKDTree"]))
    for key, values in times.items():
        ms = float(np.median(values))
        print(f"  {key:28s} {ms:8.2f} ms   {reference / ms:6.1f}x")
    print(f"  int8 gives {100 * shared:.1f} % of the exact matches\n")


def auc(counts: np.ndarray, same: np.ndarray) -> float:
    """The chance that a true pair has more inliers than a false one (ties count half)."""
    true, false = counts[same][:, None], counts[~same][None]
    return float((true > false).mean() + 0.5 * (true == false).mean())


def print_verification(
    name: str, features: dict[Path, LocalFeatures], pairs: Pairs, num_slow: int
) -> None:
    """Milliseconds and AUC of each method on the same matches."""
    slow = np.zeros(len(pairs.same), bool)
    slow[np.linspace(0, len(slow) - 1, min(num_slow, len(slow))).astype(int)] = True
    counts = {method: np.zeros(len(slow), int) for method in METHODS}
    times = {method: np.zeros(len(slow)) for method in METHODS}
    sides = [(features[a], features[b]) for a, b in pairs.photos]
    matches = [match_descriptors(a.descriptors, b.descriptors, MatchConfig()) for a, b in sides]
    for block in range(0, len(slow), BLOCK):
        for method, config in METHODS.items():
            for row in range(block, min(block + BLOCK, len(slow))):
                if method != SKIMAGE_1000 or slow[row]:
                    ms, found = timed(verify_matches, *sides[row], matches[row], config)
                    times[method][row] = ms
                    counts[method][row] = found.num_inliers
    print(f"Verification, {name}, {len(slow)} pairs ({slow.sum()} of them with {SKIMAGE_1000})")
    print(f"  {'':28s} {'ms':>8s} {'x 1000':>8s} {'x 100':>7s} {'AUC':>7s} {'of the fewer':>13s}")
    thousand, hundred = (times[method][slow].mean() for method in list(METHODS)[:2])
    for method in METHODS:
        ms = times[method][slow].mean()
        whole = "" if method == SKIMAGE_1000 else f"{auc(counts[method], pairs.same):.3f}"
        fewer = auc(counts[method][slow], pairs.same[slow])
        ratios = f"{thousand / ms:8.0f} {hundred / ms:7.1f}"
        print(f"  {method:28s} {ms:8.2f} {ratios} {whole:>7s} {fewer:13.3f}")
    print()


def print_together(features: dict[Path, LocalFeatures], photos: list[Path], seed: int) -> None:
    """Matching and verification by `rerank` on one and two threads, against the reference."""
    rng = np.random.default_rng(seed)
    rows = [features[photo] for photo in photos]
    ranking = np.stack([rng.permutation(len(rows))[:50] for _ in rows[:8]])
    ranked = Ranking(ranking, np.zeros(ranking.shape, np.float32))
    times: dict[str, list[float]] = {"reference": [], "1 thread": [], "2 threads": []}
    for q in range(len(ranking)):
        for d in ranking[q, :5]:
            query, database = rows[q], rows[d]
            matches = match_descriptors(query.descriptors, database.descriptors, MatchConfig())
            start = time.perf_counter()
            tree_match(query.descriptors, database.descriptors)
            verify_matches(query, database, matches, METHODS[SKIMAGE_1000])
            times["reference"].append(1000 * (time.perf_counter() - start))
        for threads, key in ((1, "1 thread"), (2, "2 threads")):
            config = RerankConfig(floor=0.0)
            found = rerank(ranked, [Evidence(rows, rows, config.geometry)], config, threads)
            times[key].append(found.kinds[0].ms_per_pair)
    print("Both together, deep-mutual: cKDTree + skimage affine of 1000 trials, against rerank")
    for key, values in times.items():
        ratio = np.mean(times["reference"]) / np.mean(values)
        print(f"  {key:28s} {np.mean(values):8.2f} ms   {ratio:6.0f}x")


if __name__ == "__main__":
    main()
