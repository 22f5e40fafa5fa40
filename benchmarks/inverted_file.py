"""A query of 1,000 features against the inverted file of a million synthetic images.

Every image has 100 features in 65,536 words, with 64-bit signatures. Printed: CPU milliseconds of a
query (scores and the best 100 images) with one and with five words a feature, with Hamming
embedding and without, and memory a database feature.

    python3 benchmarks/inverted_file.py [--images 1000000] [--queries 5]
"""

import argparse
import itertools
import statistics
import time
from dataclasses import replace

import numpy as np

from retrieval.configs.rank import ScoreConfig
from voc_tree import scoring
from voc_tree.inverted_file import InvertedFile, Segment
from voc_tree.scoring import Terms

WORDS = 65_536
FEATURES = 100
QUERY_FEATURES = 1000


def synthetic(num_images: int) -> InvertedFile:
    """A file of random words and signatures; made word by word, to spare sorting them all."""
    rng = np.random.default_rng(0)
    total = num_images * FEATURES
    starts = np.append(0, np.cumsum(rng.multinomial(total, np.full(WORDS, 1 / WORDS))))
    images = rng.integers(num_images, size=total, dtype=np.int32)
    for start, stop in itertools.pairwise(starts.tolist()):
        images[start:stop].sort()
    signatures = rng.integers(0, 2**64, size=(1, total), dtype=np.uint64)
    file = InvertedFile(WORDS)
    file.num_features = np.full(num_images, FEATURES)
    file.add_segment(Segment(np.arange(WORDS, dtype=np.int32), starts, images, None, signatures))
    file.refresh_idf()
    return file


def random_terms(words_each: int, seed: int) -> Terms:
    """A query of random features."""
    rng = np.random.default_rng(seed)
    count = QUERY_FEATURES * words_each
    return Terms(
        rng.integers(WORDS, size=count),
        np.ones(count, np.int64),
        np.repeat(np.arange(QUERY_FEATURES), words_each),
        rng.integers(0, 2**64, size=(count, 1), dtype=np.uint64),
    )


def milliseconds(file: InvertedFile, config: ScoreConfig, queries: int) -> tuple[float, float]:
    """Median milliseconds of a query: of CPU, and by the clock."""
    cpu, wall = [], []
    for seed in range(queries + 1):  # the first warms up
        terms = random_terms(config.words, seed)
        start = time.process_time(), time.perf_counter()
        scoring.best(scoring.score(file, terms, config), 100)
        cpu.append(1000 * (time.process_time() - start[0]))
        wall.append(1000 * (time.perf_counter() - start[1]))
    return statistics.median(cpu[1:]), statistics.median(wall[1:])


def main() -> None:
    """Build, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=5)
    asked = parser.parse_args()
    file = synthetic(asked.images)
    per_feature = file.nbytes / (asked.images * FEATURES)
    print(f"{asked.images} images, {per_feature:.2f} bytes a database feature", flush=True)
    scores = {"Hamming embedding, burstiness": ScoreConfig(), "tf-idf": ScoreConfig("cosine")}
    for name, config in scores.items():
        for words in (1, 5):
            cpu, wall = milliseconds(file, replace(config, words=words), asked.queries)
            print(
                f"{name}, {words} words a feature: {cpu:.0f} ms of CPU a query "
                f"({wall:.0f} ms by the clock)",
                flush=True,
            )


if __name__ == "__main__":
    main()
