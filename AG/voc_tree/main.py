"""Search test sets by visual words, verify, and score.

Codebook, quantisation, inverted file, score, verification; --original takes every setting as
delf_pytorch had it. The tree of a test set is saved in DIR/NAME, from where --no_train takes it.

Examples:
    python3 -m voc_tree.main ./trees --root-directory features/sift --test-datasets roxford5k
    python3 -m voc_tree.main ./trees --tree-height 2 --tree-branch 256 --expand
"""

from retrieval.commands import script, tree_flags

if __name__ == "__main__":  # -h need not wait for what is imported below
    script.answer(tree_flags.read_search, __doc__)

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from retrieval import report
from retrieval.confidence.odds import open_teacher, with_confidence
from retrieval.configs.rank import WordsConfig
from retrieval.data.photo_sets import PhotoSet
from retrieval.drawing.html_report.page import write_report
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation
from retrieval.feature_folders import open_kinds, sets_of
from retrieval.files import write_atomically
from retrieval.global_search import open_descriptors
from retrieval.saved_run import read_result
from voc_tree.pipeline import WordSearch
from voc_tree.tree import Tree

log = logging.getLogger("voc_tree")


def main(argv: Sequence[str] | None = None) -> None:
    """Search every test set; print the lines of delf_pytorch, and save each evaluation."""
    asked = tree_flags.read_search(__doc__, argv)
    config, names = asked.settings, asked.test_datasets
    sets = [open_kinds(asked.roots, name) for name in sets_of(asked.roots[0], names)]
    run = asked.global_run
    described = [open_descriptors(run, photos) if run else None for photos, _ in sets]

    for photos, _ in sets:
        check_own(asked.directory / photos.name, photos)
    teacher = open_teacher(asked.confidence)
    script.begin(asked.directory)
    lines: list[str] = []
    for (photos, features), by_descriptors in zip(sets, described, strict=True):
        folder = asked.directory / photos.name
        files = tree_files(folder, len(features))
        codebooks = [] if asked.train else [Tree.load(file) for file in files]
        for codebook, each in zip(codebooks, features if codebooks else [], strict=True):
            codebook.check(config.tree, asdict(each.store.made_by))
        search = WordSearch(photos, features, codebooks, by_descriptors)
        said = [f"# branchs = {config.tree.tree_branch}", f"# height = {config.tree.tree_height}"]
        if asked.train:
            start = time.perf_counter()
            for kind, file in enumerate(files):
                search.tree(config.tree, kind).save(file)
            said.append(f">> Training finished in {time.perf_counter() - start} s")
        found = with_confidence(search.evaluate(config), teacher, asked.confidence).save(folder)
        said += printed(found, photos.name, config)
        log.info("%s", "\n".join(said))
        lines += said
        write_atomically(asked.output, "\n".join(lines) + "\n")
        report.write_predictions(folder / "predictions.csv", found, 20)
        write_report(folder / "report.html", found, asked.report_queries)
        log.info("report: %s", folder / "report.html")


def tree_files(folder: Path, count: int) -> list[Path]:
    """Where the trees of ``count`` kinds of features are kept."""
    numbers = ["", *(f"_{number}" for number in range(2, count + 1))]
    return [folder / f"tree{number}.safetensors" for number in numbers[:count]]


def check_own(folder: Path, photos: PhotoSet) -> None:
    """InputError where ``folder`` has the search of another photo set of the same name."""
    try:
        other = read_result(folder)["protocol"]["photos"]
    except (InputError, LookupError):  # none, or one that cannot be read anyhow
        return
    if other != str(photos.folder):
        raise InputError(f"{folder} has a search of {other}, not {photos.folder}: name another DIR")


def printed(found: Evaluation, dataset: str, config: WordsConfig) -> list[str]:
    """The lines that delf_pytorch prints of each step, and what is to be noted."""
    headings = {"words": "# voctree", "expanded": "# query expansion"}
    if config.rerank is not None:
        models = " and ".join(kind.config.verify.model for kind in found.evidence)
        headings["verified"] = f"# n_rerank = {config.rerank.top_k}\n# {models}"
    lines = [f"# {note}" for note in found.notes]
    for step in found.steps:
        lines += [headings[step.name], *report.revisited_lines(dataset, step.figures)]
    return lines if found.photos.protocol else lines + report.answers(found)


if __name__ == "__main__":
    script.run(main)
