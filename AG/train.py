"""Train DELG as a whole: global descriptors, attention and autoencoder, one group an epoch.

The same command goes on where an unfinished run of the same settings stopped. On several GPUs:
torchrun --nproc_per_node N AG/train.py ...

Examples:
    python3 AG/train.py --dataset_folder sf_xs --backbone resnet50 --groups_num 1 --reduction
    python3 AG/train.py --dataset_folder cache/toy_city --pretrained none --groups_num 1 --lr 1e-3
"""

from retrieval.commands import script, train_flags

if __name__ == "__main__":  # -h need not wait for what is imported below
    script.answer(train_flags.read_training, __doc__)

import functools
import logging
from collections.abc import Sequence

import torch

from retrieval import checkpoint, global_search, report
from retrieval.data.photo_sets import check_photos, open_set
from retrieval.data.training_photos import load_groups
from retrieval.drawing import looks
from retrieval.networks.create import create
from retrieval.training import cosplace

log = logging.getLogger("train")


def main(argv: Sequence[str] | None = None) -> None:
    """Train; the best epoch is that of the best global R@1 on the validation set."""
    asked = train_flags.read_training(__doc__, argv)
    recipe = asked.recipe
    paths, groups = load_groups(asked.split("train"), recipe.groups, script.CACHE)
    val_set = open_set(asked.split("val"))
    test_set = None if asked.test is None else open_set(asked.test)
    check_photos(paths, val_set, test_set, skip=recipe.train.skip_bad_images)

    torch.manual_seed(recipe.train.seed)
    model, loaded, _ = create(asked.network, asked.weights)
    log.info("network: %s\nweights: %s", model.backbone.describe(), loaded)

    evaluate = functools.partial(
        global_search.evaluate, model, config=asked.judged, resources=asked.resources
    )
    ground = cosplace.ground_of(model, str(loaded), paths, val_set, asked.judged)
    start = cosplace.start(model, paths, groups, recipe, asked.where, ground)
    with start as (course, trainer):
        course.teach(trainer, lambda: evaluate(val_set).first.figures)

        if test_set is not None and trainer.run is not None:  # in the main process
            best_model = trainer.run.best_model
            checkpoint.load_state(model, checkpoint.load(best_model)["model"], best_model)
            found = evaluate(test_set, weights=str(best_model)).save(best_model.parent / "test")
            figures = report.in_words(found.first.figures)
            log.info("test, global descriptors of the best epoch: %s", figures)
            preds, count = trainer.run.path / "preds", asked.num_preds_to_save
            looks.save_strips(preds, found, count, only_wrong=asked.save_only_wrong_preds)


if __name__ == "__main__":
    script.run(main)
