"""A training from its start or from where it stopped, in its run folder: CosPlace's way."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from retrieval.data.places import Group
from retrieval.networks.delg import Delg
from retrieval.training import processes, run_folder
from retrieval.training.trainer import Recipe, Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Where:
    """Where a training runs and writes; nothing here changes what is learned.

    root: run folders lie in it. resume_train: a checkpoint to go on from, in a new run folder.
    """

    root: Path
    device: str = "auto"
    augmentation_device: str = "cpu"
    resume_train: Path | None = None


def sizes(groups: Sequence[Group]) -> tuple[int, int, int]:
    """Numbers of images, classes and groups."""
    return sum(g.num_images for g in groups), sum(len(g.classes) for g in groups), len(groups)


def train(
    model: Delg,
    paths: Sequence[Path],
    groups: Sequence[Group],
    recipe: Recipe,
    validate: Callable[[Delg], Mapping[str, float]],
    where: Where,
    source: str,
) -> Path | None:
    """Train in a run folder, going on with an unfinished run of the same settings if there is one.

    ``validate`` gives an epoch's figures, the first of which decides; ``source`` names the weights
    of ``model``. Returns the file of the best weights, in the main process, else None.
    """
    settings = {
        **asdict(recipe),
        "network": asdict(model.config),
        "weights": source,
        "images": str(paths[0].parent.resolve()),
        "resume_train": str(where.resume_train or ""),
    }
    with processes.join_world(where.device) as (world, device):
        run = run_folder.RunFolder.open(where.root, settings) if world.is_main else None
        try:
            trainer = Trainer(
                *(model, paths, groups, recipe),
                run=run,
                world=world,
                device=device,
                augmentation_device=where.augmentation_device,
            )
            own = run.last_checkpoint if run is not None else None
            start = world.broadcast(own if own is not None and own.exists() else where.resume_train)
            if run is not None:
                log.info("run folder: %s", run.path)
            if start is not None:
                trainer.resume(start)
            trainer.fit(validate)
            if run is None:
                return None
            run.finish()
            return run.best_model
        finally:
            if run is not None:
                run.close()
