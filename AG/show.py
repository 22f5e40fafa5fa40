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

from retrieval import checkpoint, devices, query_reranking, saved_run
from retrieval.commands import evaluate, script, show
from retrieval.commands.show import ShowOptions
from retrieval.data import images
from retrieval.drawing import curves, figures, looks
from retrieval.drawing.looks import Photo
from retrieval.errors import InputError
from retrieval.networks import delg
from retrieval.networks.delg import Delg

log = logging.getLogger("show")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the picture that the first word names, and say where it is."""
    asked = show.read_show(__doc__, argv)
    if asked.run is None:
        for photo in asked.shown:
            images.image_size(photo)  # a wrong path is said before the network is loaded
    model = None if asked.weights is None else load_network(asked)
    figure = of_photos(asked, model) if asked.run is None else of_run(asked, asked.run, model)
    figures.save(figure, asked.output)
    log.info("%s", asked.output)


def load_network(asked: ShowOptions) -> Delg:
    """The network that the flags name."""
    assert asked.network is not None
    assert asked.weights is not None
    torch.manual_seed(0)  # --pretrained none is then the network of eval.py's default --seed
    model, loaded = delg.create(asked.network, asked.weights)
    evaluate.check_weights_suffice(asked.weights, asked.network, loaded, with_local=True)
    return model.to(devices.choose_device(asked.device))


def of_photos(asked: ShowOptions, model: Delg | None) -> Figure:
    """A picture of any photos."""
    assert model is not None
    paths = [Path(path) for path in asked.shown]
    if asked.picture == "attention":
        return looks.attention(model, paths[0], asked.extract, asked.count)
    query, database = (Photo(path, looks.features_of(model, path, asked.extract)) for path in paths)
    return looks.matches(query, database, asked.rerank.geometry)


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
        return looks.positives(run.photos, chosen)
    query, *other = asked.numbers()
    query_reranking.check_index("--query", query, len(run.photos.queries))
    if asked.picture == "attention" and model is not None:
        path, box = run.photos.queries[query], run.photos.box(query)
        return looks.attention(model, path, run.extraction(), asked.count, box)
    config, local = run.with_local()
    if asked.picture == "attention":
        photo = Photo(run.photos.queries[query], local.queries(query))
        return looks.stored_attention(photo, asked.count)
    found = query_reranking.rerank_query(run.photos, run.ranked, local, query, config)
    if asked.picture == "rerank":
        log.info("query %d (%s): %s", query, run.photos.query_ids[query], found.in_words())
        return looks.reranking(run.photos, query, found)
    database = other[0] if other else int(found.after[0])
    query_reranking.check_index("--database", database, len(run.photos.database))
    features = local.database(database)
    if len(features) == 0 and database not in found.before[: config.top_k]:
        raise InputError(
            f"--database {database}: it is not in the first {config.top_k} of query {query} and "
            "has no stored features; show.py matches --resume_model M takes any two photos"
        )
    return looks.matches(
        Photo(run.photos.queries[query], local.queries(query)),
        Photo(run.photos.database[database], features),
        config.geometry,
    )


if __name__ == "__main__":
    script.run(main)
