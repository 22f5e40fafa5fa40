"""Train the local head alone (attention and autoencoder); all else stays as it is, to the bit.

Starts from the weights of a joint training: --resume_model best_model.pth. The same command goes on
where an unfinished run of the same settings stopped.
"""

import functools
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from retrieval import evaluation
from retrieval.commands import options, script
from retrieval.data import places
from retrieval.data.images import check_headers
from retrieval.data.photo_sets import open_places
from retrieval.networks import delg
from retrieval.training import cosplace_training

log = logging.getLogger("train_only_local")


def main(argv: Sequence[str] | None = None) -> None:
    """Train; global recalls are constant, so the best epoch is that of the best re-ranked R@1."""
    asked = options.read_training(__doc__, argv, only_local=True)
    paths, groups = places.load_groups(asked.train_folder, asked.recipe.groups, script.CACHE)
    val_set = open_places(asked.val_folder, asked.positives)
    photos = [*paths, *val_set.queries, *val_set.database]
    check_headers(photos)

    torch.manual_seed(asked.recipe.train.seed)
    model, loaded = delg.create(asked.network, asked.weights)
    log.info("network: %s\nweights: %s", model.backbone.describe(), loaded)
    log.info("%d images of %d classes in %d groups", *cosplace_training.sizes(groups))
    depth = max(*asked.recall_values, asked.rerank.top_k)

    @functools.cache  # the global head does not learn: its ranking is the same in all epochs
    def rank() -> evaluation.Ranked:
        return evaluation.rank(model, val_set, asked.extract, depth)

    def validate(model: delg.Delg) -> Mapping[str, float]:
        candidates = rank().ranking[:, : asked.rerank.top_k]
        with tempfile.TemporaryDirectory() as folder:
            store = evaluation.open_store(Path(folder), model, val_set, asked.extract)
            local = evaluation.local_features(model, val_set, candidates, store, asked.extract)
            reranked = evaluation.rerank_locally(rank(), local, asked.rerank)
        return evaluation.score(reranked.ranking, val_set.ground_truth, asked.recall_values)

    best = cosplace_training.train(
        model, paths, groups, asked.recipe, validate, asked.where, source=str(loaded)
    )
    if best is not None:
        log.info("best weights: %s", best)


if __name__ == "__main__":
    script.run(main)
