"""The training loop of CosPlace: an epoch trains one group of classes, with its own classifiers.

Joint and local-only training share it; they differ in which parameters learn and in whether the
descriptors have a classifier (`Objective`).
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from retrieval import checkpoint, devices, errors
from retrieval.configs.learn import AugmentConfig, GroupConfig, LossConfig, TrainConfig
from retrieval.data import images
from retrieval.data.places import Group
from retrieval.errors import InputError
from retrieval.networks.delg import Delg
from retrieval.training import processes, run_folder
from retrieval.training.cosplace_batches import Augmentation, Draws
from retrieval.training.objective import Classifiers, Objective, make_classifiers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """The settings that decide, with the images and the first weights, what is learned."""

    groups: GroupConfig
    train: TrainConfig
    augment: AugmentConfig
    losses: LossConfig
    only_local: bool

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """What differs from a saved ``asdict``, apart from how long and with what to train."""
        free = {"epochs_num", "num_workers", "checkpoint_minutes", "skip_bad_images"}
        own, other = _flat(asdict(self)), _flat(saved)
        return [
            f"{name} {value} (the checkpoint has {other.get(name)})"
            for name, value in own.items()
            if name not in free and other.get(name) != value
        ]


def _flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat.update(value if isinstance(value, Mapping) else {name: value})
    return flat


class Trainer:
    """Trains a `Delg` epoch by epoch; can stop at any step and go on to the same weights."""

    def __init__(
        self,
        model: Delg,
        paths: Sequence[Path],
        groups: Sequence[Group],
        recipe: Recipe,
        *,
        run: run_folder.RunFolder | None,
        world: processes.World,
        device: torch.device,
        augmentation_device: str = "cpu",
    ) -> None:
        """``paths`` are the training images that ``groups`` index; the main process has a ``run``.

        Raises InputError where the batch cannot be shared out or nothing is left to learn.
        """
        if recipe.train.batch_size % world.size:
            raise InputError(
                f"--batch_size {recipe.train.batch_size} cannot be shared by {world.size} processes"
            )
        if recipe.only_local:
            model.freeze_all_but_local()
        learned = [p for p in model.parameters() if p.requires_grad]
        if not learned:
            raise InputError(
                "nothing to train: --attention norm without --reduction has no weights"
            )
        self.model = model.to(device=device).to(memory_format=torch.channels_last)
        self.classifiers = make_classifiers(
            groups,
            model,
            recipe.losses,
            recipe.train.classifiers_lr,
            only_local=recipe.only_local,
        )
        self.optimizer = torch.optim.Adam(learned, lr=recipe.train.lr, fused=True)
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=recipe.train.precision == "fp16" and device.type == "cuda"
        )
        self.epoch, self.step = 0, 0
        self.best: float | None = None
        self._paths, self._groups, self._recipe = paths, groups, recipe
        self._run, self._world, self._device = run, world, device
        augmentation = Augmentation(recipe.augment)
        on_device = torch.device(augmentation_device).type != "cpu"
        self._augment_here = augmentation if on_device else None
        self._augment_in_workers = None if on_device else augmentation
        self._log: run_folder.LossLog | None = None
        self._checkpoint_due = processes.Every(60 * recipe.train.checkpoint_minutes)

    def resume(self, path: Path) -> None:
        """Go on exactly where the checkpoint ``path`` was written; InputError if it cannot be."""
        state = checkpoint.load(path)
        if not isinstance(state, dict) or "classifiers" not in state:
            raise InputError(
                f"{path} holds no training state: --resume_train takes a "
                f"{run_folder.LAST_CHECKPOINT}; to start from weights use --resume_model"
            )
        different = self._recipe.differences(state["recipe"])
        if different:
            raise InputError(f"{path} is of a training with other settings: {'; '.join(different)}")
        if len(state["classifiers"]) != len(self.classifiers):
            raise InputError(
                f"{path} has {len(state['classifiers'])} groups, not {len(self.classifiers)}"
            )
        checkpoint.load_state(self.model, state["model"], path)
        for classifiers, saved in zip(self.classifiers, state["classifiers"], strict=True):
            classifiers.load(saved, path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        if self._run is not None:
            best = path.parent / run_folder.BEST_MODEL
            if best.is_file() and not self._run.best_model.exists():
                shutil.copy(best, self._run.best_model)
        log.info("Going on from %s: epoch %d, step %d", path, self.epoch, self.step)

    def fit(self, validate: Callable[[Delg], Mapping[str, float]]) -> None:
        """Train the epochs that remain; keep the weights of the epoch with the best first metric.

        Raises errors.Stopped after SIGTERM or Ctrl-C, the checkpoint being written.
        """
        with processes.StopSignal() as stop:
            if self._run is not None:
                self._log = run_folder.LossLog(self._run.path, self.epoch, self.step)
            try:
                while self.epoch < self._recipe.train.epochs_num:
                    self._train_epoch(stop)
                    self._save()  # a kill during validation costs the validation only
                    if self._run is not None:
                        self._keep_best(validate(self.model.eval()))
                    self.epoch, self.step = self.epoch + 1, 0
                    self._save()
                    self._leave_if_asked(stop)
            finally:
                if self._log is not None:
                    self._log.close()

    def _keep_best(self, metrics: Mapping[str, float]) -> None:
        assert self._run is not None
        assert self._log is not None
        self._log.add_metrics(metrics)
        value = next(iter(metrics.values()))
        listed = ", ".join(f"{key}: {figure:.1f}" for key, figure in metrics.items())
        is_best = self.best is None or value > self.best
        log.info("epoch %d, val %s%s", self.epoch, listed, " (best so far)" if is_best else "")
        if is_best:
            self.best = value
            checkpoint.save_model(self._run.best_model, self.model)

    def _train_epoch(self, stop: processes.StopSignal) -> None:
        number = self.epoch % len(self._groups)
        classifiers = self.classifiers[number]
        classifiers.to(self._device)
        objective: nn.Module = Objective(
            self.model, classifiers.descriptor, classifiers.attention, self._recipe.losses
        )
        objective.train()
        if self._world.size > 1:
            ids = [self._device.index] if self._device.type == "cuda" else None
            objective = DistributedDataParallel(objective, device_ids=ids)
        seed, rank = self._recipe.train.seed, self._world.rank
        with tqdm(
            desc=f"epoch {self.epoch}, group {number}",
            initial=self.step * self._recipe.train.batch_size,
            total=self._recipe.train.iterations_per_epoch * self._recipe.train.batch_size,
            unit="images",
            disable=None if self._world.is_main else True,
        ) as bar:
            for photos, labels in self._batches(self._groups[number]):
                # For what draws inside the network: dropout, stochastic depth.
                torch.manual_seed(processes.mix_seed(seed, self.epoch, 3, self.step, rank))
                terms = self._take_step(objective, classifiers, photos, labels)
                if self._log is not None:
                    self._log.add(self.epoch, self.step, terms)
                bar.set_postfix(loss=f"{terms['total']:.2f}", refresh=False)
                bar.update(self._recipe.train.batch_size)
                self.step += 1
                if self._world.any(bool(stop.number)):
                    self._save()
                    self._leave_if_asked(stop)
                elif self._checkpoint_due.is_due():
                    self._save()
        classifiers.to(torch.device("cpu"))

    def _batches(self, group: Group) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This process's share of the batches, from the present step to the end of the epoch."""
        train = self._recipe.train
        share = train.batch_size // self._world.size
        first = self._world.rank * share
        steps = [
            list(range(step * train.batch_size + first, step * train.batch_size + first + share))
            for step in range(self.step, train.iterations_per_epoch)
        ]
        draws = Draws(
            self._paths,
            group,
            train.seed,
            self.epoch,
            self._augment_in_workers,
            self._recipe.augment.image_size,
        )
        loader = DataLoader(
            draws,
            batch_sampler=steps,
            num_workers=train.num_workers,
            pin_memory=self._device.type == "cuda",
            worker_init_fn=devices.quiet_worker,
        )
        for photos, labels, seeds, messages in loader:
            broken = [message for message in messages if message]
            whole = torch.tensor([not message for message in messages])
            if broken and not (train.skip_bad_images and whole.any()):
                raise InputError("; ".join(broken) + " (--skip_bad_images goes on without them)")
            for error in broken:
                log.warning("skipped: %s", error)
            batch = photos[whole].to(self._device, non_blocking=True)
            if self._augment_here is not None:
                pairs = zip(batch, seeds[whole].tolist(), strict=True)
                batch = torch.stack([self._augment_here(photo, seed) for photo, seed in pairs])
            batch = images.normalize(batch).contiguous(memory_format=torch.channels_last)
            yield batch, labels[whole].to(self._device, non_blocking=True)

    def _take_step(
        self,
        objective: nn.Module,
        classifiers: Classifiers,
        photos: torch.Tensor,
        labels: torch.Tensor,
    ) -> dict[str, float]:
        optimizers = (self.optimizer, classifiers.optimizer)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        with devices.autocast(self._device, self._recipe.train.precision):
            terms = objective(photos, labels)
        if not torch.isfinite(terms["total"]):
            raise InputError(
                f"the loss is {float(terms['total'])} at epoch {self.epoch}, step {self.step}: "
                "lower --lr or --classifiers_lr, or use --precision fp32"
            )
        self.scaler.scale(terms["total"]).backward()
        for optimizer in optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        return {name: float(value.detach()) for name, value in terms.items()}

    def _save(self) -> None:
        if self._run is None:
            return
        if self._log is not None:
            self._log.flush()
        state = {
            **checkpoint.model_contents(self.model),
            "recipe": asdict(self._recipe),
            "classifiers": [classifiers.state() for classifiers in self.classifiers],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
        }
        checkpoint.save(self._run.last_checkpoint, state)

    def _leave_if_asked(self, stop: processes.StopSignal) -> None:
        if self._world.any(bool(stop.number)):
            raise errors.Stopped(stop.number)
