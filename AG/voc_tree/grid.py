"""Compare settings of voc_tree.main in one table, from features extracted once.

A row is flags of voc_tree.main; every --vary multiplies the rows by its values. Differences are in
AP of protocol M, paired by query, with a bootstrap interval of 90 %: to the first row, and to the
row above. What rows have in common (trees, rankings, verification) is done once.

Examples:
    python3 -m voc_tree.grid ./trees --test-datasets rparis6k --row "--original" --row "--expand"
    python3 -m voc_tree.grid ./trees --row "--expand" --vary "--top_k 50 150" --vary "--ht 16 20"
"""

from retrieval.commands import script, tree_flags

if __name__ == "__main__":  # -h need not wait for what is imported below
    script.answer(tree_flags.read_grid, __doc__)

import itertools
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from retrieval import comparison
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation, Step
from retrieval.feature_folders import open_kinds, sets_of
from retrieval.files import write_atomically, write_json
from retrieval.global_search import open_descriptors
from voc_tree.pipeline import WordSearch

log = logging.getLogger("voc_tree")

LEVEL = 0.90


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for each test set; write it to DIR/grid_NAME.txt and .json."""
    asked = tree_flags.read_grid(__doc__, argv)
    words = rows_in_words(asked.rows, asked.vary)
    rows_asked = [(each, tree_flags.read_row(each)) for each in words]  # all, before any work
    script.begin(asked.directory)
    for dataset in sets_of(rows_asked[0][1].roots[0], asked.test_datasets):
        name = dataset or "store"
        found: list[tuple[str, Evaluation, Step]] = []
        searches: dict[tuple[Path | None, ...], WordSearch] = {}
        for row, each in rows_asked:
            key = (*each.roots, each.global_run)
            if key not in searches:
                photos, features = open_kinds(each.roots, dataset)
                run = each.global_run
                described = open_descriptors(run, photos) if run else None
                searches[key] = WordSearch(photos, features, (), described)
            searched = searches[key].evaluate(each.settings)
            found.append((row or "defaults", searched, searched.last))
            rows = comparison.side_by_side(found, LEVEL)
            text = comparison.table(rows)
            log.info("%s", text.splitlines()[-1])
            write_atomically(asked.directory / f"grid_{name}.txt", text + "\n")
            write_json(asked.directory / f"grid_{name}.json", comparison.as_json(rows))
        log.info("\n# %s\n%s", name, text)


def rows_in_words(rows: Sequence[str], vary: Sequence[str]) -> list[str]:
    """Every row with every combination of the varied values."""
    axes = []
    for axis in vary:
        flag, *values = shlex.split(axis) or [""]
        if not flag.startswith("--") or not values:
            raise InputError(f"--vary {axis!r}: expected a flag and its values")
        axes.append([f"{flag} {value}" for value in values])
    return [
        " ".join(part for part in (row, *chosen) if part)
        for row in (rows or [""])
        for chosen in itertools.product(*axes)
    ]


if __name__ == "__main__":
    script.run(main)
