"""Train DELG as a whole: global descriptors, attention and autoencoder, one group an epoch.

The same command goes on where an unfinished run of the same settings stopped. On several GPUs:
torchrun --nproc_per_node N AG/train.py ...
"""

import logging
from collections.abc import Mapping, Sequence

import torch

from retrieval import checkpoint, evaluation, report
from retrieval.commands import options, script
from retrieval.data import places
from retrieval.data.images import check_headers
from retrieval.data.photo_sets import open_places
from retrieval.drawing import looks
from retrieval.networks import delg
from retrieval.training import cosplace_training

log = logging.getLogger("train")


def main(argv: Sequence[str] | None = None) -> None:
    """Train; the best epoch is that of the best global R@1 on the validation set."""
    asked = options.read_training(__doc__, argv, only_local=False)
    paths, groups = places.load_groups(asked.train_folder, asked.recipe.groups, script.CACHE)
    val_set = open_places(asked.val_folder, asked.positives)
    test = asked.test_folder
    test_set = None if test is None else open_places(test, asked.positives)
    photos = [*paths, *val_set.queries, *val_set.database]
    check_headers(photos)

    torch.manual_seed(asked.recipe.train.seed)
    model, loaded = delg.create(asked.network, asked.weights)
    log.info("network: %s\nweights: %s", model.backbone.describe(), loaded)
    log.info("%d images of %d classes in %d groups", *cosplace_training.sizes(groups))

    def validate(model: delg.Delg) -> Mapping[str, float]:
        ranked = evaluation.rank(model, val_set, asked.extract, k=max(asked.recall_values))
        return evaluation.score(ranked.ranking, val_set.ground_truth, asked.recall_values)

    best = cosplace_training.train(
        model, paths, groups, asked.recipe, validate, asked.where, source=str(loaded)
    )
    if best is None:  # not the main process
        return
    log.info("best weights: %s", best)
    if test_set is not None:
        checkpoint.load_state(model, checkpoint.load(best)["model"], best)
        ranked = evaluation.rank(model, test_set, asked.extract, k=max(asked.recall_values))
        recalls = evaluation.score(ranked.ranking, test_set.ground_truth, asked.recall_values)
        looks.save_strips(
            *(best.parent / "preds", test_set, ranked.ranking, asked.num_preds_to_save),
            only_wrong=asked.save_only_wrong_preds,
        )
        log.info("test, global descriptors of the best epoch: %s", report.in_words(recalls))


if __name__ == "__main__":
    script.run(main)
