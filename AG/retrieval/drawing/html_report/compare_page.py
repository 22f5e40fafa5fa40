"""The page of a comparison: runs side by side, and the queries that they do not agree on."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retrieval.comparison import Moved, Row, cells, header, winners_and_losers
from retrieval.drawing import palette
from retrieval.drawing.html_report.charts import bytes_chart
from retrieval.drawing.html_report.gallery import thumbnail
from retrieval.drawing.html_report.page import template
from retrieval.files import write_atomically

# Queries of each kind that are shown.
MOST = 24


@dataclass(frozen=True)
class AgainstFirst:
    """The queries that a row does better, and worse, than the first row; the largest first."""

    name: str
    better: list[Moved]
    worse: list[Moved]


def write_comparison(path: Path, rows: Sequence[Row], level: float) -> None:
    """Write the page to ``path``, whole or not at all; ``level`` is that of the intervals."""
    first, photos = rows[0], rows[0].run.photos
    pairs = [AgainstFirst(row.name, *winners_and_losers(row, first)) for row in rows[1:]]
    page = template("compare.html.jinja").render(
        title=f"{photos.name}: {len(rows)} runs",
        num_queries=len(photos.queries),
        num_database=len(photos.database),
        header=header(rows),
        rows=[cells(row) for row in rows],
        metric=first.run.metric,
        level=f"{100 * level:g}",
        first=first.name,
        pairs=pairs,
        chart=bytes_chart(rows),
        most=MOST,
        thumbnail=functools.cache(
            lambda query: thumbnail(photos.queries[query], photos.box(query))
        ),
        palette=palette,
    )
    write_atomically(path, page.encode("utf-8", "replace"))
