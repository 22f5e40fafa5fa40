"""Looking into a network: attention over a photo, matches of two photos, a query re-ranked.

Every function that draws returns a matplotlib Figure, for a notebook to show or `figures.save`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from retrieval import metrics
from retrieval.configs.describe import ExtractConfig
from retrieval.configs.rank import Geometry
from retrieval.data.images import Box
from retrieval.data.photo_sets import PhotoSet
from retrieval.drawing import figures, pictures
from retrieval.drawing.figures import Prediction
from retrieval.drawing.palette import RIGHT, WRONG
from retrieval.evaluation import Evaluation
from retrieval.extraction import describe
from retrieval.features import LocalFeatures
from retrieval.metrics import rank_of
from retrieval.networks.interface import Network
from retrieval.query_reranking import QueryReranking, check_index
from retrieval.verification import match

_PREDICTIONS = 5


@dataclass(frozen=True)
class DescribedPhoto:
    """A photo and its local features, in pixels of the photo."""

    path: Path
    features: LocalFeatures


def attention(
    model: Network, path: Path, config: ExtractConfig, count: int = 20, box: Box | None = None
) -> Figure:
    """The attention at scale 1 as a heat map over the photo, with the ``count`` best keypoints.

    box: the part that the network sees, as of a query of Oxford or Paris; None: all.
    """
    best = describe(model, path, config, box).features.strongest(count)
    return _attention(path, every_cell(model, path, config, box), best)


def every_cell(
    model: Network, path: Path, config: ExtractConfig, box: Box | None = None
) -> LocalFeatures:
    """Features of all cells of the attention map at scale 1, whatever their scores."""
    dense = replace(config, local_scales=(1.0,), max_features=10**6, min_score=0.0)
    return describe(model, path, dense, box).features


def stored_attention(photo: DescribedPhoto, count: int = 20) -> Figure:
    """The scores of stored features as a heat map over their photo; no network is needed."""
    return _attention(photo.path, photo.features, photo.features.strongest(count))


def _attention(path: Path, cells: LocalFeatures, best: LocalFeatures) -> Figure:
    picture = pictures.attention(pictures.panel(path, 2), cells, best)
    title = f"photo, and its attention with the {len(best)} strongest keypoints"
    figure, axis = figures.of_picture(picture, title)
    if len(cells):
        colours = ListedColormap(colormaps["inferno"](np.linspace(pictures.LEAST_HEAT, 1, 256)))
        scale = ScalarMappable(Normalize(*pictures.score_range(cells)), colours)
        figure.colorbar(scale, ax=axis, shrink=0.8, aspect=30, extend="max", label="attention")
    return figure


def matches(query: DescribedPhoto, database: DescribedPhoto, geometry: Geometry) -> Figure:
    """The matches of two photos, those that the geometric model explains over the others."""
    pair = match(query.features, database.features, geometry)
    first, second = (pictures.panel(photo.path, 2) for photo in (query, database))
    title = pictures.matches_in_words(pair, geometry.verify)
    figure, axis = figures.of_picture(pictures.matches(first, second, pair), title)
    inliers = pair.verification.num_inliers
    lines = [
        Line2D([], [], color=RIGHT, linewidth=2.4, label=f"{inliers} inliers"),
        Line2D([], [], color=WRONG, label=f"{len(pair.matches) - inliers} other matches"),
    ]
    axis.legend(handles=lines, loc="lower right", fontsize=9, framealpha=0.9)
    return figure


def reranking(photos: PhotoSet, query: int, found: QueryReranking, count: int = 5) -> Figure:
    """A query's first predictions before and after re-ranking, and where its positives went."""

    def prediction(row: int) -> Prediction:
        old, new = (rank_of(ranking, row) for ranking in (found.before, found.after))
        return _prediction(photos, query, row, f"{new}" if old == new else f"{old} → {new}")

    columns = 1 + min(count, len(found.before))
    figure = Figure(figsize=(1.9 * columns + 3.4, 5.2), layout="constrained")
    figure.suptitle(f"query {query}: {found.in_words()}", fontsize=11)
    grid = figure.add_gridspec(2, columns + 1, width_ratios=[*[1.0] * columns, 1.8])
    photo = _query_photo(photos, query)
    for line, (name, ranking) in enumerate((("before", found.before), ("after", found.after))):
        axes = [figure.add_subplot(grid[line, column]) for column in range(columns)]
        strip = [prediction(row) for row in ranking[:count].tolist()]
        figures.strip(axes, photo, f"{name} re-ranking", strip)
    title = "rank of each positive" if len(found.positives) else _without_positives(photos)
    slopes = figure.add_subplot(grid[:, columns])
    figures.slopes(slopes, found.positive_ranks, len(found.before), title)
    return figure


def positives(photos: PhotoSet, queries: Sequence[int]) -> Figure:
    """Queries (rows) above a positive each, to see what is asked of a network.

    Of several positives the one is shown that looks the most alike way, if headings are known.
    """
    columns = max(1, len(queries))
    figure = Figure(figsize=(1.9 * columns, 4.2), layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    for query, (above, below) in zip(queries, axes.T[: len(queries)], strict=True):
        check_index("query", query, len(photos.queries))
        figures.framed(above, _query_photo(photos, query), f"query {query}")
        right = [] if photos.truth is None else photos.truth.positives[query].tolist()
        if right:
            shown = photos.database[right[int(np.argmin(_turns(photos, query, right)))]]
            figures.framed(below, pictures.thumbnail_or_note(shown), "positive", RIGHT)
        else:
            below.set_title(_without_positives(photos), fontsize=9)
    return figure


def _without_positives(photos: PhotoSet) -> str:
    return "no labels" if photos.truth is None else "no positives"


def _turns(photos: PhotoSet, query: int, rows: Sequence[int]) -> np.ndarray:
    """(k,) degrees between the headings of a query and of database rows; 0 where one is unknown."""
    asked, database = photos.whereabouts
    if asked is None or database is None:
        return np.zeros(len(rows))
    turn = np.abs(database.positions.heading[list(rows)] - asked.positions.heading[query]) % 360
    return np.nan_to_num(np.minimum(turn, 360 - turn))


def save_strips(
    folder: Path, run: Evaluation, num_queries: int, *, only_wrong: bool = False
) -> list[Path]:
    """Draw queries with their first predictions, framed by right and wrong; returns the files."""
    photos, ranking = run.photos, run.last.ranking.rows
    rows = np.arange(len(ranking))
    if only_wrong and photos.truth is not None:
        rows = rows[metrics.first_hit_rank(ranking, photos.truth) > 1]
    files = []
    for query in rows[:num_queries].tolist():
        predicted = [row for row in ranking[query, :_PREDICTIONS].tolist() if row >= 0]
        strip = [_prediction(photos, query, row, f"{n}") for n, row in enumerate(predicted, 1)]
        columns = 1 + len(strip)
        figure = Figure(figsize=(2.1 * columns, 2.5), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        figures.strip(axes, _query_photo(photos, query), f"query {query}", strip)
        files.append(folder / f"{query:04d}.jpg")
        figures.save(figure, files[-1], dpi=90)
    return files


def _query_photo(photos: PhotoSet, query: int) -> np.ndarray:
    return pictures.thumbnail_or_note(photos.queries[query], photos.box(query))


def _prediction(photos: PhotoSet, query: int, row: int, title: str) -> Prediction:
    mark = "none" if photos.truth is None else photos.truth.mark(query, row)
    return Prediction(pictures.thumbnail_or_note(photos.database[row]), title, mark)
