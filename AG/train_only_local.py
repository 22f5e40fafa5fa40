"""Train the local head alone (attention and autoencoder); all else stays as it is, to the bit.

Starts from the weights of a joint training. The same command goes on where an unfinished run of the
same settings stopped.

Examples:
    python3 AG/train_only_local.py --dataset_folder sf_xs --resume_model best_model.pth
    python3 AG/train_only_local.py --dataset_folder sf_xs --resume_model best_model.pth --lr 1e-4
"""

from retrieval.commands import script, train_flags

if __name__ == "__main__":  # -h need not wait for what is imported below
    script.answer(train_flags.read_local_training, __doc__)

import functools
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from retrieval import global_search
from retrieval.data.photo_sets import check_photos, open_set
from retrieval.data.training_photos import load_groups
from retrieval.global_search import Descriptors
from retrieval.networks.create import create
from retrieval.training import cosplace

log = logging.getLogger("train_only_local")


def main(argv: Sequence[str] | None = None) -> None:
    """Train; global recalls are constant, so the best epoch is that of the best re-ranked R@1."""
    asked = train_flags.read_local_training(__doc__, argv)
    recipe = asked.recipe
    paths, groups = load_groups(asked.split("train"), recipe.groups, script.CACHE)
    val_set = open_set(asked.split("val"))
    check_photos(paths, val_set, skip=recipe.train.skip_bad_images)

    torch.manual_seed(recipe.train.seed)
    model, loaded, _ = create(asked.network, asked.weights)
    log.info("network: %s\nweights: %s", model.backbone.describe(), loaded)

    @functools.cache  # the global head does not learn: its descriptors are the same in all epochs
    def described() -> Descriptors:
        return global_search.describe_set(model, val_set, asked.judged.extract, asked.resources)

    def validate() -> Mapping[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            resources = replace(asked.resources, cache=Path(folder))
            found = global_search.evaluate(
                model, val_set, asked.judged, described=described(), resources=resources
            )
        return found.last.figures

    ground = cosplace.ground_of(model, str(loaded), paths, val_set, asked.judged)
    start = cosplace.start(model, paths, groups, recipe, asked.where, ground)
    with start as (course, trainer):
        course.teach(trainer, validate)


if __name__ == "__main__":
    script.run(main)
