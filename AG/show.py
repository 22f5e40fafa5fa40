"""Look into a network: where it looks, what it matches, what re-ranking does.

A picture of photos needs a network (--resume_model); or it is of a run (--run RUN), a run folder of
eval.py whose stored features are used. In a run, photos are named by their numbers, from 0.
positives: some queries with a right answer each. losses: RUN is the run folder of a training.

Examples:
    python3 AG/show.py rerank --run logs/demo/eval/DATE --query 134
    python3 AG/show.py matches --resume_model best_model.pth --query PHOTO --database PHOTO
"""

from retrieval.commands import eval_flags, script, show_flags

if __name__ == "__main__":  # -h need not wait for what is imported below
    script.answer(show_flags.read_show, __doc__)

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from retrieval import checkpoint, devices, protocol, query_reranking
from retrieval.configs.describe import DelgConfig, ExtractConfig
from retrieval.configs.rank import Geometry
from retrieval.data import images
from retrieval.drawing import curves, figures, looks
from retrieval.drawing.looks import DescribedPhoto
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation
from retrieval.extraction import describe
from retrieval.networks.create import create
from retrieval.networks.delg import Delg

log = logging.getLogger("show")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the picture that the first word names, and say where it is."""
    asked = show_flags.read_show(__doc__, argv)
    if asked.run is None:
        for photo in asked.shown:
            images.image_size(photo)  # a wrong path is said before the network is loaded
    network = None
    if asked.weights:
        network = load_network(asked.network, asked.weights, asked.resources.device)
    if asked.picture == "losses" and asked.run is not None:
        figure = curves.loss_curves(asked.run)
    elif asked.run is not None:
        weights = None if network is None else checkpoint.weights_hash(network.state_dict())
        of_all = asked.picture in ("recalls", "positives")
        run = Evaluation.open(asked.run, weights, with_features=not of_all)
        if of_all:
            figure = of_all_queries(asked.picture, run, asked.count)
        else:
            figure = of_a_query(asked.picture, run, asked.numbers(), asked.count, network)
    else:
        assert network is not None
        paths = [Path(path) for path in asked.shown]
        figure = of_photos(
            asked.picture, network, paths, asked.extract, asked.rerank.geometry, asked.count
        )
    figures.save(figure, asked.output)
    log.info("%s", asked.output)


def load_network(config: DelgConfig, weights: str, device: str) -> Delg:
    """The network that the flags name."""
    torch.manual_seed(0)  # --pretrained none is then the network of eval.py's default --seed
    network, loaded, _ = create(config, weights)
    eval_flags.check_weights_suffice(weights, config, loaded, with_local=True)
    return network.to(devices.choose_device(device))


def of_photos(
    picture: str,
    network: Delg,
    paths: Sequence[Path],
    extract: ExtractConfig,
    geometry: Geometry,
    count: int,
) -> Figure:
    """The attention of one photo, or the matches of two."""
    if picture == "attention":
        return looks.attention(network, paths[0], extract, count)
    query, database = (
        DescribedPhoto(path, describe(network, path, extract).features) for path in paths
    )
    return looks.matches(query, database, geometry)


def of_all_queries(picture: str, run: Evaluation, count: int) -> Figure:
    """The recalls of an evaluation, or some of its queries above a right answer each."""
    if picture == "recalls":
        return curves.recall_curves(run.rankings, run.truth())
    step = max(1, len(run.photos.queries) // count)
    chosen = range(0, len(run.photos.queries), step)[:count]
    return looks.positives(run.photos, chosen)


def of_a_query(
    picture: str, run: Evaluation, numbers: Sequence[int], count: int, network: Delg | None
) -> Figure:
    """A query of an evaluation: its attention, its matches, its re-ranking.

    numbers: of the query, and for matches of a database photo, else they are with the first
    prediction. network: shows the attention itself; without it the scores of stored features.
    """
    query, *other = numbers
    photos = run.photos
    query_reranking.check_index("--query", query, len(photos.queries))
    if picture == "attention" and network is not None:
        extract = protocol.extraction_of(run.protocol)
        return looks.attention(network, photos.queries[query], extract, count, photos.box(query))
    verified, local = run.local()
    shown = DescribedPhoto(photos.queries[query], local.queries[query])
    if picture == "attention":
        return looks.stored_attention(shown, count)
    found = query_reranking.reranking_of(run, query)
    if picture == "rerank":
        log.info("query %d (%s): %s", query, photos.query_photos[query].shown, found.in_words())
        return looks.reranking(photos, query, found)
    row = other[0] if other else int(found.after[0])
    query_reranking.check_index("--database", row, len(photos.database))
    features = local.database[row]
    if len(features) == 0 and row not in found.before[: verified.config.top_k]:
        raise InputError(
            f"--database {row}: it is not in the first {verified.config.top_k} of query {query} "
            "and has no stored features; show.py matches --resume_model M takes any two photos"
        )
    database = DescribedPhoto(photos.database[row], features)
    return looks.matches(shown, database, verified.config.geometry)


if __name__ == "__main__":
    script.run(main)
