"""CosPlace's way of training a `Delg`: an epoch teaches one group of classes.

Each group has classifiers of its own. Joint and local-only training share all this; they differ in
which parameters learn and in whether the descriptors have a classifier.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from retrieval import checkpoint, report
from retrieval.configs.judge import EvaluationConfig
from retrieval.configs.learn import LoopConfig, LossConfig, Recipe, Where
from retrieval.data.contents import fingerprint
from retrieval.data.photo_sets import PhotoSet
from retrieval.data.places import Group
from retrieval.errors import InputError
from retrieval.networks.delg import Delg
from retrieval.training import processes, run_folder
from retrieval.training.cosplace_batches import GroupBatches
from retrieval.training.losses import (
    AttentionClassifier,
    MarginClassifier,
    classification_loss,
    reconstruction_loss,
)
from retrieval.training.trainer import Trainer

log = logging.getLogger(__name__)


class Classifiers(nn.Module):
    """The classifiers of one group, with their optimiser.

    descriptor: of the global descriptors; None in local-only training. attention: of the maps that
    the attention has pooled.
    """

    def __init__(self, group: Group, model: Delg, recipe: Recipe) -> None:
        super().__init__()
        classes, losses = len(group.classes), recipe.losses
        self.descriptor = None
        if not recipe.only_local:
            self.descriptor = MarginClassifier(
                model.descriptor_dim,
                classes,
                losses.margin_scale,
                losses.margin,
                losses.global_loss,
            )
        self.attention = AttentionClassifier(model.backbone.local_channels, classes)
        learned = [*self.attention.parameters()]
        learned += [] if self.descriptor is None else self.descriptor.parameters()
        self.optimizer = torch.optim.Adam(learned, lr=recipe.train.classifiers_lr, fused=True)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint."""
        return {
            "descriptor": None if self.descriptor is None else self.descriptor.state_dict(),
            "attention": self.attention.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: Mapping[str, Any], source: Path) -> None:
        """Take over what `state` gave; InputError where the classes are others."""
        if self.descriptor is not None:
            checkpoint.load_state(self.descriptor, state["descriptor"], source)
        checkpoint.load_state(self.attention, state["attention"], source)
        self.optimizer.load_state_dict(state["optimizer"])


class Objective(nn.Module):
    """The training losses of one group: descriptors (optional), attention, reconstruction."""

    def __init__(self, model: Delg, classifiers: Classifiers, weights: LossConfig) -> None:
        super().__init__()
        self.model, self.classifiers, self._weights = model, classifiers, weights

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) images, (B,) labels to scalar terms, of which ``total`` is minimised."""
        out, weights = self.model(images), self._weights
        terms: dict[str, torch.Tensor] = {}
        total = torch.zeros((), device=images.device)
        if self.classifiers.descriptor is not None:
            logits = self.classifiers.descriptor(out.descriptors, labels)
            terms["global"] = classification_loss(logits, labels)
            total = total + weights.global_weight * terms["global"]
        logits = self.classifiers.attention(out.attention_pooled)
        terms["attention"] = classification_loss(logits, labels)
        total = total + weights.attention_weight * terms["attention"]
        if out.reconstruction is not None:
            terms["reconstruction"] = reconstruction_loss(out.reconstruction, out.local_map)
            total = total + weights.reconstruction_weight * terms["reconstruction"]
        return {"total": total, **terms}


def sizes(groups: Sequence[Group]) -> tuple[int, int, int]:
    """Numbers of images, classes and groups."""
    return sum(g.num_images for g in groups), sum(len(g.classes) for g in groups), len(groups)


class CosPlace:
    """The course: a network, the groups it learns, and their classifiers."""

    def __init__(
        self,
        model: Delg,
        paths: Sequence[Path],
        groups: Sequence[Group],
        recipe: Recipe,
        world: processes.World,
        augmentation_device: str = "cpu",
    ) -> None:
        """``paths`` are the training images that ``groups`` index.

        Raises InputError where the batch cannot be shared out or nothing is left to learn.
        """
        self._batches = GroupBatches(paths, recipe, world, augmentation_device)
        if recipe.only_local:
            model.freeze_all_but_local()
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not learned:
            raise InputError(
                "nothing to train: --attention norm without --reduction has no weights"
            )
        self.model = model.to(device=world.device).to(memory_format=torch.channels_last)
        self.classifiers = [Classifiers(group, model, recipe) for group in groups]
        self.optimizer = torch.optim.Adam(learned, lr=recipe.train.lr, fused=True)
        self.settings = recipe.decisive()
        self._recipe, self._world, self._groups = recipe, world, groups

    def teach(self, trainer: Trainer, validate: Callable[[], Mapping[str, float]]) -> None:
        """Train all epochs, and keep the weights of the best.

        ``validate``, called in the main process alone, gives figures; the best first one counts.
        """
        train = self._recipe.train
        for epoch in trainer.epochs(train.epochs_num):
            group = epoch % len(self._groups)
            batches = self._batches.of_epoch(self._groups[group], epoch, trainer.step)
            title = f"epoch {epoch}, group {group}"
            with self._objective(group) as objective:
                for images, labels in trainer.steps(batches, train.iterations_per_epoch, title):
                    with trainer.autocast():
                        terms = objective(images, labels)
                    trainer.backward(terms["total"])
                    trainer.note(terms)
                    trainer.update(self.optimizer, self.classifiers[group].optimizer)
            if trainer.world.is_main:
                figures = validate()
                best = " (best so far)" * trainer.keep_best(figures)
                log.info("epoch %d, val %s%s", epoch, report.in_words(figures), best)

    @contextlib.contextmanager
    def _objective(self, group: int) -> Iterator[nn.Module]:
        """The `Objective` of a group; its classifiers are on the GPU in this block alone."""
        classifiers, device = self.classifiers[group], self._world.device
        classifiers.to(device)
        processes.move_optimizer(classifiers.optimizer, device)
        objective: nn.Module = Objective(self.model, classifiers, self._recipe.losses)
        objective.train()
        if self._world.size > 1:
            ids = [device.index] if device.type == "cuda" else None
            objective = DistributedDataParallel(objective, device_ids=ids)
        yield objective
        classifiers.to("cpu")
        processes.move_optimizer(classifiers.optimizer, torch.device("cpu"))

    def state(self) -> dict[str, Any]:
        """The classifiers of all groups, and the network's optimiser."""
        return {
            "classifiers": [classifiers.state() for classifiers in self.classifiers],
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: Mapping[str, Any], source: Path) -> None:
        """Take over what `state` gave; InputError where groups or classes are others."""
        saved = state["classifiers"]
        if len(saved) != len(self.classifiers):
            raise InputError(f"{source} has {len(saved)} groups, not {len(self.classifiers)}")
        for classifiers, one in zip(self.classifiers, saved, strict=True):
            classifiers.load(one, source)
        self.optimizer.load_state_dict(state["optimizer"])


def ground_of(
    model: Delg, weights: str, paths: Sequence[Path], val_set: PhotoSet, judged: EvaluationConfig
) -> dict[str, Any]:
    """What a training starts from and is judged by, as plain values; weights: the same in words."""
    return {
        "weights": f"{weights}, {checkpoint.weights_hash(model.state_dict())[:16]}",
        "training images": f"{len(paths)}, {fingerprint(paths)}",
        "validation set": f"{val_set.folder}, {val_set.fingerprint()}",
        **{f"validation by {name}": value for name, value in judged.decisive().items()},
    }


@contextlib.contextmanager
def start(
    model: Delg,
    paths: Sequence[Path],
    groups: Sequence[Group],
    recipe: Recipe,
    where: Where,
    ground: Mapping[str, Any],
) -> Iterator[tuple[CosPlace, Trainer]]:
    """The course and its trainer, for the block to train with; finished when the block ends.

    The run folder is new, or that of an unfinished run of the same settings on the same ``ground``
    (`ground_of` that ``model`` starts from), which then goes on.
    """
    settings = {
        **asdict(recipe),
        "network": asdict(model.config),
        "resume_train": str(where.resume_train or ""),
        "ground": ground,
    }
    train = recipe.train
    loop = LoopConfig(train.seed, train.precision, train.checkpoint_minutes)
    with processes.join_world(where.device) as world:
        log.info("%d images of %d classes in %d groups", *sizes(groups))
        course = CosPlace(model, paths, groups, recipe, world, where.augmentation_device)
        run = run_folder.RunFolder.open(where.root, settings) if world.is_main else None
        checkpoint_file = where.resume_train
        if run is not None:
            log.info("run folder: %s", run.path)
            if run.last_checkpoint.exists():
                checkpoint_file = run.last_checkpoint
        trainer = Trainer(course, world, run, loop)
        with trainer.going_on_from(checkpoint_file):
            yield course, trainer
            if run is not None:
                run.finish()
                log.info("best weights: %s", run.best_model)
