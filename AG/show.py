"""Look into a network: where it looks, what it matches, what re-ranking does.

    show.py attention --resume_model M --image PHOTO
    show.py matches --resume_model M --query PHOTO --database PHOTO
    show.py attention|matches|rerank --run RUN --query 3
    show.py positives|recalls|losses --run RUN

RUN is a run folder of eval.py, whose stored features are used: no network is needed. There, photos
are named by their numbers, from 0; matches takes --database 17 too, else the first prediction.
positives: some queries with a right answer each. losses: RUN is the run folder of a training.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from retrieval import (
    checkpoint,
    curves,
    delg,
    evaluation_options,
    images,
    one_query,
    options,
    pictures,
    plots,
    saved_run,
    show_options,
    training,
)
from retrieval.delg import Delg
from retrieval.errors import InputError
from retrieval.pictures import Photo
from retrieval.show_options import ShowOptions

log = logging.getLogger("show")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the picture that the first word names, and say where it is."""
    asked = show_options.read_show(__doc__, argv)
    if asked.run is None:
        for photo in asked.shown:
            images.image_size(photo)  # a wrong path is said before the network is loaded
    model = None if asked.weights is None else load_network(asked)
    figure = of_photos(asked, model) if asked.run is None else of_run(asked, asked.run, model)
    plots.save(figure, asked.output)
    log.info("%s", asked.output)


def load_network(asked: ShowOptions) -> Delg:
    """The network that the flags name."""
    assert asked.network is not None
    assert asked.weights is not None
    torch.manual_seed(0)  # --pretrained none is then the network of eval.py's default --seed
    model, loaded = delg.create(asked.network, asked.weights)
    evaluation_options.check_weights_suffice(asked.weights, asked.network, loaded, with_local=True)
    return model.to(training.choose_device(asked.device))


def of_photos(asked: ShowOptions, model: Delg | None) -> Figure:
    """A picture of any photos."""
    assert model is not None
    paths = [Path(path) for path in asked.shown]
    if asked.picture == "attention":
        return pictures.attention(model, paths[0], asked.extract, asked.count)
    query, database = (
        Photo(path, pictures.features_of(model, path, asked.extract)) for path in paths
    )
    return pictures.matches(query, database, asked.rerank.geometry)


def of_run(asked: ShowOptions, folder: Path, model: Delg | None) -> Figure:
    """A picture of photos that eval.py ranked, from what it stored."""
    weights = None if model is None else checkpoint.weights_hash(model.state_dict())
    if asked.picture == "losses":
        return curves.loss_curves(folder)
    run = saved_run.open_run(folder, weights)
    if asked.picture == "recalls":
        return curves.recall_curves(run.rankings, run.truth())
    if asked.picture == "positives":
        step = max(1, len(run.photos.queries) // asked.count)
        chosen = range(0, len(run.photos.queries), step)[: asked.count]
        return pictures.positives(run.photos, chosen)
    query, *other = asked.numbers()
    one_query.check_index("--query", query, len(run.photos.queries))
    if asked.picture == "attention" and model is not None:
        path, box = run.photos.queries[query], run.photos.box(query)
        return pictures.attention(model, path, run.extraction(), asked.count, box)
    config, local = run.with_local()
    if asked.picture == "attention":
        photo = Photo(run.photos.queries[query], local.queries(query))
        return pictures.stored_attention(photo, asked.count)
    found = one_query.rerank_query(run.photos, run.ranked, local, query, config)
    if asked.picture == "rerank":
        log.info("query %d (%s): %s", query, run.photos.query_ids[query], found.in_words())
        return pictures.reranking(run.photos, query, found)
    database = other[0] if other else int(found.after[0])
    one_query.check_index("--database", database, len(run.photos.database))
    features = local.database(database)
    if len(features) == 0 and database not in found.before[: config.top_k]:
        raise InputError(
            f"--database {database}: it is not in the first {config.top_k} of query {query} and "
            "has no stored features; show.py matches --resume_model M takes any two photos"
        )
    return pictures.matches(
        Photo(run.photos.queries[query], local.queries(query)),
        Photo(run.photos.database[database], features),
        config.geometry,
    )


if __name__ == "__main__":
    options.run(main)
