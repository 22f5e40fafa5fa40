"""Search test sets by visual words, verify, and score.

    python3 -m voc_tree.main ./trees --root-directory ./features/sift \\
        --test-datasets 'roxford5k,rparis6k' --tree-height 6 --tree-branch 10 \\
        --output output_sift.txt --rerank-num 150

Codebook, quantisation, inverted file, score, verification; --s2 takes every setting as S2 had it.
The tree of a test set is saved in DIR/NAME, from where --no-train takes it.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from retrieval import evaluation, flags, metrics, report
from retrieval.files import write_atomically
from retrieval.options import run
from retrieval.revisited_report import revisited_lines
from voc_tree import options, pipeline
from voc_tree.options import Settings
from voc_tree.test_set import TestSet, open_test_set
from voc_tree.tree import Tree

log = logging.getLogger("voc_tree")


def main(argv: Sequence[str] | None = None) -> None:
    """Search every test set; print S2's lines, and write them and result.json."""
    parser = flags.make_parser(__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder of trees and results")
    data = options.add_test_sets(parser)
    text = "file for the printed lines"
    data.add_argument("--output", type=Path, default=Path("output.txt"), help=text)
    data.add_argument("--no_train", action="store_true", help="take the tree that was saved")
    options.add_settings(parser)
    asked = flags.parse(parser, argv)
    settings = options.read_settings(asked)
    names = options.read_test_sets(asked)
    test_sets = [open_test_set(settings.root, name) for name in names]

    lines: list[str] = []
    result: dict[str, Any] = {}
    for photos in test_sets:
        file = asked.get("directory") / photos.dataset / "tree.safetensors"
        codebook, said = take_tree(photos, settings, file, train=not asked.get("no_train"))
        figures, found = search(photos, codebook, settings)
        said += [line for of in figures.values() for line in of]
        log.info("%s", "\n".join(said))
        lines += said
        result[photos.dataset] = found
        write_atomically(asked.get("output"), "\n".join(lines) + "\n")
        report.write_json(asked.get("directory") / "result.json", result)


def take_tree(
    photos: TestSet, settings: Settings, file: Path, *, train: bool
) -> tuple[Tree, list[str]]:
    """The tree, trained and saved or read from ``file``; and what to say of it."""
    said = [f"# branchs = {settings.tree.tree_branch}", f"# height = {settings.tree.tree_height}"]
    if not train:
        codebook = Tree.load(file)
        codebook.check(settings.tree, photos.settings)
        return codebook, said
    start = time.perf_counter()
    codebook = pipeline.train_tree(photos, settings.tree)
    codebook.save(file)
    return codebook, [*said, f">> Training finished in {time.perf_counter() - start} s"]


def search(
    photos: TestSet, codebook: Tree, settings: Settings
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Rank, verify and expand; the printed lines of each step, and what result.json keeps."""
    settings = settings.suited_to(photos.settings)
    clock = evaluation.Clock()
    rankings: dict[str, np.ndarray] = {}
    headings = {"words": "# voctree"}
    with clock.stage("index"):
        index = pipeline.index_database(photos, codebook, settings.score)
    with clock.stage("search"):
        ranked = pipeline.rank(photos, index)
    rankings["words"] = ranked.ranking
    stamp = protocol(photos, settings)
    if settings.rerank is not None:
        with clock.stage("verification"):
            verified = pipeline.verify(photos, ranked, settings.rerank)
        rankings["verified"] = verified.ranking
        stamp["floor"] = verified.floor
        model = settings.rerank.verify.model
        headings["verified"] = f"# n_rerank = {settings.rerank.top_k}\n# {model}"
        if settings.expand is not None:
            with clock.stage("expansion"):
                grown = pipeline.expand(
                    photos, index, ranked, verified, settings.expand, settings.rerank
                )
            rankings["expanded"] = grown.ranking
            headings["expanded"] = "# query expansion"
    figures = {
        step: metrics.evaluate_revisited(ranking, photos.ground_truth)
        for step, ranking in rankings.items()
    }
    lines = {
        step: [headings[step], *revisited_lines(photos.dataset, of)] for step, of in figures.items()
    }
    empty = int((index.file.num_features == 0).sum())
    if empty:
        lines["words"].insert(0, f"# {empty} database images without features rank last")
    return lines, {
        "figures": figures,
        "seconds": clock.seconds,
        "words": codebook.num_leaves,
        "bytes_per_feature": index.file.nbytes / max(int(index.file.num_features.sum()), 1),
        "database_images_without_features": empty,
        "protocol": stamp,
    }


def protocol(photos: TestSet, settings: Settings) -> dict[str, Any]:
    """What the figures rest on."""
    return {
        "dataset": photos.dataset,
        "num_queries": len(photos.queries),
        "num_database": len(photos.database),
        "features": photos.settings,
        **{name: value for name, value in asdict(settings).items() if name != "root"},
        "versions": evaluation.versions(),
        "commit": evaluation.commit(),
    }


if __name__ == "__main__":
    run(main)
