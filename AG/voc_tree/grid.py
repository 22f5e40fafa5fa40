"""Compare settings of voc_tree.main in one table, from features extracted once.

    python3 -m voc_tree.grid ./trees --test-datasets rparis6k \\
        --row "--s2 --no-ransac" --row "--s2" \\
        --row "--root-directory features/rootsift_upright_2000 --tree-height 2 --tree-branch 256" \\
        --vary "--rerank-num 50 150" --vary "--ht 16 20 24"

A row is flags of voc_tree.main; every --vary multiplies the rows by its values. Differences are in
AP of protocol M, paired by query, with a bootstrap interval of 90 %: to the first row, and to the
row above. What rows have in common (trees, rankings, verification) is done once.
"""

import functools
import itertools
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval import metrics, report
from retrieval.commands import flags
from retrieval.commands.script import run
from retrieval.errors import InputError
from retrieval.files import write_atomically
from voc_tree import options, pipeline
from voc_tree.options import Settings
from voc_tree.result import protocol_of
from voc_tree.test_set import TestSet, open_test_set

log = logging.getLogger("voc_tree")

LEVEL = 0.90
_HEADER = ("mAP E", "M", "H", "mP@1 M", "mP@5 M", "mP@10 M", "to first", "to row above", "settings")


@dataclass(frozen=True)
class Row:
    """One line of a table; figures in percent, AP (Q,) of protocol M."""

    words: str
    figures: dict[str, dict[str, float]]
    precision: np.ndarray
    protocol: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for each test set; write it to DIR/grid_NAME.txt and .json."""
    parser = flags.make_parser(__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder of the tables")
    options.add_test_sets(parser)
    text = "flags of voc_tree.main, as one word; may be repeated"
    parser.add_argument("--row", action="append", default=[], metavar="FLAGS", help=text)
    text = "a flag and its values, as one word; may be repeated"
    parser.add_argument("--vary", action="append", default=[], metavar="VALUES", help=text)
    asked = flags.parse(parser, _joined(sys.argv[1:] if argv is None else argv))
    all_words = rows_in_words(asked.get("row"), asked.get("vary"))
    settings = [parse_row(words) for words in all_words]  # all, before any work
    for name in options.read_test_sets(asked):
        rows: list[Row] = []
        search = Search(name)
        for words, each in zip(all_words, settings, strict=True):
            rows.append(search.row(words, each))
            text = table(rows)
            log.info("%s", text.splitlines()[-1])
            write_atomically(asked.get("directory") / f"grid_{name}.txt", text + "\n")
            report.write_json(asked.get("directory") / f"grid_{name}.json", as_json(rows))
        log.info("\n# %s\n%s", name, table(rows))


def _joined(argv: Sequence[str]) -> list[str]:
    """``--row "--s2"`` as ``--row=--s2``: argparse would take the value for a flag."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] in ("--row", "--vary"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


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


def parse_row(words: str) -> Settings:
    """The settings of one row."""
    parser = flags.make_parser(f"a row of the grid: {words}")
    options.add_settings(parser)
    return options.read_settings(flags.parse(parser, shlex.split(words)))


class Search:
    """Searches one test set by many settings; what two of them share is kept."""

    def __init__(self, dataset: str) -> None:
        self.photos = functools.cache(lambda root: open_test_set(root, dataset))
        self._tree = functools.cache(
            lambda root, config: pipeline.train_tree(self.photos(root), config)
        )
        self._index = functools.lru_cache(1)(self._build_index)
        self._ranked = functools.cache(self._rank)
        self._verified = functools.cache(self._verify)

    def _build_index(self, root: Path, tree: Any, score: Any) -> pipeline.Index:
        return pipeline.index_database(self.photos(root), self._tree(root, tree), score)

    def _rank(self, root: Path, tree: Any, score: Any) -> pipeline.Ranked:
        return pipeline.rank(self.photos(root), self._index(root, tree, score))

    def _verify(self, root: Path, tree: Any, score: Any, rerank: Any) -> pipeline.Reranking:
        return pipeline.verify(self.photos(root), self._ranked(root, tree, score), rerank)

    def row(self, words: str, settings: Settings) -> Row:
        """Search by one setting."""
        photos: TestSet = self.photos(settings.root)
        settings = settings.suited_to(photos.settings)
        key = (settings.root, settings.tree, settings.score)
        ranking = self._ranked(*key).ranking
        if settings.rerank is not None:
            verified = self._verified(*key, settings.rerank)
            ranking = verified.ranking
            if settings.expand is not None:
                ranking = pipeline.expand(
                    *(photos, self._index(*key), self._ranked(*key), verified),
                    *(settings.expand, settings.rerank),
                ).ranking
        return Row(
            words,
            metrics.evaluate_revisited(ranking, photos.ground_truth),
            metrics.mean_average_precision(ranking, photos.ground_truth["M"])[1],
            protocol_of(photos, settings),
        )


def table(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(_HEADER) + " |", "|---" * len(_HEADER) + "|"]
    for i, row in enumerate(rows):
        figures = [row.figures.get(name, {}).get("mAP", float("nan")) for name in "EMH"]
        figures += [row.figures["M"][f"mP@{k}"] for k in (1, 5, 10)]
        cells = [f"{figure:.2f}" for figure in figures]
        cells += [_difference(row, rows[0]), _difference(row, rows[i - 1])] if i else ["", ""]
        lines.append(f"| {' | '.join(cells)} | `{row.words or 'defaults'}` |")
    return "\n".join(lines)


def _difference(row: Row, other: Row) -> str:
    mean, low, high = metrics.paired_interval(row.precision, other.precision, LEVEL)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The table with each query's AP and each row's protocol."""
    return {
        "rows": [
            {
                "settings": row.words,
                "figures": row.figures,
                "average_precision_M": row.precision.tolist(),
                "protocol": row.protocol,
            }
            for row in rows
        ]
    }


if __name__ == "__main__":
    run(main)
