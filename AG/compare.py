"""Compare evaluations of one photo set: figures, paired differences, who wins which query.

A RUN is a run folder of eval.py or of voc_tree.main. Its last step counts; RUN:STEP takes another,
as in logs/default/DATE:global. Every run is held against the first and against the one before it.
The page shows the queries that got better and worse; compare.csv has them all.

Examples:
    python3 AG/compare.py logs/default/DATE trees/mini_rparis
    python3 AG/compare.py logs/default/DATE:global logs/default/DATE logs/sift/DATE
"""

from retrieval.commands import compare_flags, script

if __name__ == "__main__":  # -h need not wait for what is imported below
    script.answer(compare_flags.read_comparison, __doc__)

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path

from retrieval import comparison
from retrieval.comparison import Row
from retrieval.drawing.html_report.compare_page import write_comparison
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation, Step
from retrieval.files import write_atomically, write_json

log = logging.getLogger("compare")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table; write compare.md, compare.json, compare.csv and compare.html."""
    asked = compare_flags.read_comparison(__doc__, argv)
    rows = comparison.side_by_side([open_step(word) for word in asked.runs], asked.level / 100)
    log.info("%s", comparison.table(rows))
    for row in rows[1:]:
        log.info("%s", in_words(row, rows[0]))
    folder = asked.output_dir
    write_atomically(folder / "compare.md", comparison.table(rows) + "\n")
    write_json(folder / "compare.json", comparison.as_json(rows))
    write_atomically(folder / "compare.csv", by_query(rows))
    write_comparison(folder / "compare.html", rows, asked.level / 100)
    log.info("page, to be opened in a browser: %s", folder / "compare.html")


def open_step(word: str) -> tuple[str, Evaluation, Step]:
    """The run and the step that RUN or RUN:STEP names; InputError where there is none."""
    folder, _, name = word.rpartition(":")
    if not folder or Path(word).is_dir():
        folder, name = word, ""
    run = Evaluation.open(folder, with_features=False)
    step = run.step(name) if name else run.last
    if step is None:
        known = ", ".join(each.name for each in run.steps)
        raise InputError(f"{word}: the run has no step {name}; it has {known}")
    return word, run, step


def in_words(row: Row, first: Row) -> str:
    """How many queries a row does better and worse than the first."""
    if row.to_first is None:
        return f"{row.name}: no labels"
    better, worse = comparison.winners_and_losers(row, first)
    return (
        f"{row.name} against {first.name}: {row.to_first.in_words()}; better for {len(better)} "
        f"queries, worse for {len(worse)}"
    )


def by_query(rows: Sequence[Row]) -> str:
    """A CSV with a line for each query: its name, and its figure in each run."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["query", *(row.name for row in rows)])
    for query, photo in enumerate(rows[0].run.photos.query_photos):
        figures = [row.step.per_query[query] if len(row.step.per_query) else "" for row in rows]
        writer.writerow([photo.shown, *figures])
    return text.getvalue()


if __name__ == "__main__":
    script.run(main)
