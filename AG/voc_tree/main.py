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
from pathlib import Path
from typing import Any

import numpy as np

from retrieval import metrics, progress, report
from retrieval.commands import flags
from retrieval.commands.options import add_report, read_report_queries
from retrieval.commands.script import run
from retrieval.drawing.html_report.content import ReportContent
from retrieval.drawing.html_report.page import write_report
from retrieval.files import write_atomically
from retrieval.progress import Clock
from retrieval.report import revisited_lines
from voc_tree import options, pipeline
from voc_tree.options import Settings
from voc_tree.result import protocol_of, report_content
from voc_tree.test_set import TestSet, open_test_set
from voc_tree.tree import Tree

log = logging.getLogger("voc_tree")


def main(argv: Sequence[str] | None = None) -> None:
    """Search every test set; print S2's lines, and write them, result.json and report.html."""
    parser = flags.make_parser(__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder of trees and results")
    data = options.add_test_sets(parser)
    text = "file for the printed lines"
    data.add_argument("--output", type=Path, default=Path("output.txt"), help=text)
    data.add_argument("--no_train", action="store_true", help="take the tree that was saved")
    add_report(data)
    options.add_settings(parser)
    asked = flags.parse(parser, argv)
    settings = options.read_settings(asked)
    names = options.read_test_sets(asked)
    report_queries = read_report_queries(asked)
    test_sets = [open_test_set(settings.root, name) for name in names]

    lines: list[str] = []
    result: dict[str, Any] = {}
    for photos in test_sets:
        file = asked.get("directory") / photos.dataset / "tree.safetensors"
        codebook, said = take_tree(photos, settings, file, train=not asked.get("no_train"))
        figures, found, content = search(photos, codebook, settings)
        said += [line for of in figures.values() for line in of]
        log.info("%s", "\n".join(said))
        lines += said
        result[photos.dataset] = found
        write_atomically(asked.get("output"), "\n".join(lines) + "\n")
        report.write_json(asked.get("directory") / "result.json", result)
        page = asked.get("directory") / photos.dataset / "report.html"
        write_report(page, content, report_queries)
        log.info("report: %s", page)


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
) -> tuple[dict[str, list[str]], dict[str, Any], ReportContent]:
    """Rank, verify and expand: each step's printed lines, what result.json keeps, the report."""
    settings = settings.suited_to(photos.settings)
    clock = Clock()
    rankings: dict[str, np.ndarray] = {}
    headings = {"words": "# voctree"}
    with clock.stage("index", len(photos.database)):
        index = pipeline.index_database(photos, codebook, settings.score, progress.advance)
    with clock.stage("search", len(photos.queries)):
        ranked = pipeline.rank(photos, index, progress.advance)
    rankings["words"] = ranked.ranking
    verified = None
    stamp = protocol_of(photos, settings)
    if settings.rerank is not None:
        pairs = ranked.ranking[:, : settings.rerank.top_k].size
        with clock.stage("verification", pairs):
            verified = pipeline.verify(photos, ranked, settings.rerank, progress.advance)
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
    found = {
        "figures": figures,
        "seconds": clock.seconds,
        "words": codebook.num_leaves,
        "bytes_per_feature": index.file.nbytes / max(int(index.file.num_features.sum()), 1),
        "database_images_without_features": empty,
        "protocol": stamp,
    }
    return lines, found, report_content(photos, settings, rankings, verified, found)


if __name__ == "__main__":
    run(main)
