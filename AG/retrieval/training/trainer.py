"""The training loop: it goes on where it was stopped, saves, logs, and keeps the best weights.

What is learned, and how, is a `Course`. The steps are written where the course is taught:

    with trainer.going_on_from(checkpoint):
        for epoch in trainer.epochs(50):
            for batch in trainer.steps(batches, total=100, title="train"):
                with trainer.autocast():
                    terms = ...
                trainer.backward(terms["total"])
                trainer.note(terms)
                trainer.update(optimizer)
            trainer.keep_best(validate())
"""

import contextlib
import logging
import math
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from retrieval import checkpoint, devices, errors, progress
from retrieval.configs.learn import LoopConfig
from retrieval.errors import InputError
from retrieval.files import write_atomically
from retrieval.training import processes, run_folder

log = logging.getLogger(__name__)

Batch = TypeVar("Batch")


class Course(Protocol):
    """A network and what else changes as it learns.

    settings: what decides, with the images and the first weights, what is learned. A checkpoint
    that was written with other settings is refused.
    """

    @property
    def model(self) -> nn.Module:
        """The network; its best weights are kept."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Plain values by name."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the network, as tensors and plain values."""

    def load(self, state: Mapping[str, Any], source: Path) -> None:
        """Take over what `state` gave; InputError where the file ``source`` has something else."""


class Trainer:
    """Takes a course epoch by epoch, step by step; can stop at any step and go on to the same end.

    epoch, step: what comes next. best: the first validation figure of the best epoch so far.
    """

    def __init__(
        self,
        course: Course,
        world: processes.World,
        run: run_folder.RunFolder | None,
        config: LoopConfig,
    ) -> None:
        """Only the main process has a ``run``; the folder is closed when the training ends."""
        self.epoch, self.step = 0, 0
        self.best: float | None = None
        self.world, self.run = world, run
        self._course, self._config = course, config
        fp16 = config.precision == "fp16" and world.device.type == "cuda"
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=fp16)
        self._stop = processes.StopSignal()
        self._saved = time.monotonic()
        self._closing = contextlib.ExitStack()
        self._log: run_folder.LossLog | None = None
        self._loss, self._updated = math.nan, False

    @contextlib.contextmanager
    def going_on_from(self, path: Path | None) -> Iterator[None]:
        """Train in this block, from the checkpoint ``path`` on or from the start.

        After SIGTERM or Ctrl-C the checkpoint is written and errors.Stopped raised. InputError if
        the checkpoint is of another training.
        """
        with self._closing as closing:
            if self.run is not None:
                closing.callback(self.run.close)
            closing.enter_context(self._stop)
            path = self.world.gather(path)[0]
            if path is not None:
                self._resume(path)
            if self.run is not None:
                self._log = run_folder.LossLog(self.run.path, self.epoch, self.step)
                closing.callback(self._log.close)
            try:
                yield
            except (errors.WorkerDied, RuntimeError) as error:
                # A signal that the helper processes got too, who were gone before this step ended:
                # the last checkpoint stands.
                if self._stop.number and errors.tells_of_dead_worker(error):
                    raise errors.Stopped(self._stop.number) from None
                raise

    def epochs(self, count: int) -> Iterator[int]:
        """The numbers of the epochs that remain of ``count``."""
        while self.epoch < count:
            yield self.epoch
            self.epoch, self.step = self.epoch + 1, 0
            self._save()
            self.leave_if_asked()

    def steps(self, batches: Iterable[Batch], total: int, title: str) -> Iterator[Batch]:
        """The batches of an epoch, the first being that of ``self.step``; ``total``: of all steps.

        Checkpoints are written where an `update` has used up the gradients.
        """
        steps = self._steps(batches, total, title)
        self._closing.callback(steps.close)  # where an error ends the loop over them
        return steps

    def _steps(
        self, batches: Iterable[Batch], total: int, title: str
    ) -> Generator[Batch, None, None]:
        with progress.bar(title, total, "steps", done=self.step):
            for batch in batches:
                # For what draws inside the network: dropout, stochastic depth.
                place = (self._config.seed, self.epoch, 3, self.step, self.world.rank)
                torch.manual_seed(processes.mix_seed(*place))
                self._updated = False
                yield batch
                self.step += 1
                progress.advance(1, f"loss {self._loss:.4g}")
                if not self._updated:
                    continue
                stop = self._signal()
                if stop or time.monotonic() - self._saved >= 60 * self._config.checkpoint_minutes:
                    self._save()
                if stop:
                    raise errors.Stopped(stop)
        self._save()  # a kill during validation costs the validation only

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Mixed precision for a forward pass; InputError where the batch is too small."""
        try:
            with devices.autocast(self.world.device, self._config.precision):
                yield
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                "the batches are too small for the network's BatchNorm, which gets one value a "
                "channel: raise --batch_size or --image_size"
            ) from error

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of ``loss`` to those that the next `update` uses."""
        self._scaler.scale(loss).backward()

    def note(self, terms: Mapping[str, float | torch.Tensor]) -> None:
        """Log the loss terms of a step, of which "total" is minimised; InputError unless finite."""
        values = {
            name: float(term.detach()) if isinstance(term, torch.Tensor) else term
            for name, term in terms.items()
        }
        self._loss = values["total"]
        if not math.isfinite(self._loss):
            raise InputError(
                f"the loss is {self._loss} at epoch {self.epoch}, step {self.step}: lower the "
                "learning rate (--lr), or use --precision fp32"
            )
        if self._log is not None:
            self._log.add(self.epoch, self.step, values)

    def update(self, *optimizers: torch.optim.Optimizer) -> None:
        """Let the optimisers take a step each, and forget the gradients."""
        for optimizer in optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._updated = True

    def keep_best(self, figures: Mapping[str, float], *, lowest: bool = False) -> bool:
        """Keep the weights if the first figure is the best so far, or if there are no figures.

        The best is the highest, or the ``lowest``. Returns whether the weights are kept.
        """
        value = next(iter(figures.values()), None)
        sign = -1 if lowest else 1
        best = -math.inf if self.best is None or math.isnan(self.best) else sign * self.best
        is_best = value is None or sign * value > best or (math.isnan(value) and best == -math.inf)
        if self._log is not None:
            self._log.add_metrics(figures)
        if is_best:
            self.best = self.best if value is None else value
            if self.run is not None:
                checkpoint.save_model(self.run.best_model, self._course.model)
        return is_best

    def leave_if_asked(self) -> None:
        """Raise errors.Stopped if any process was sent SIGTERM or Ctrl-C."""
        if stop := self._signal():
            raise errors.Stopped(stop)

    def _signal(self) -> int:
        """The signal that asks to stop, sent to any of the processes; 0: none."""
        return max(self.world.gather(self._stop.number))

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self.run is None:
            return
        if self._log is not None:
            self._log.flush()
        state = {
            **checkpoint.model_contents(self._course.model),
            **self._course.state(),
            "settings": self._course.settings,
            "scaler": self._scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
        }
        checkpoint.save(self.run.last_checkpoint, state)

    def _resume(self, path: Path) -> None:
        state = checkpoint.load(path)
        if not isinstance(state, dict) or "scaler" not in state:
            raise InputError(
                f"{path} holds no training state, as a {run_folder.LAST_CHECKPOINT} does; weights "
                "to start from are named with --pretrained"
            )
        saved = state.get("settings", state.get("recipe"))
        if not isinstance(saved, dict):
            raise InputError(f"{path}: not a whole training state (it has no settings)")
        saved = dict(saved)
        for part in [value for value in saved.values() if isinstance(value, dict)]:
            saved |= part  # older checkpoints have their settings in groups
        different = [
            f"{name} {value} (the checkpoint has {saved.get(name)})"
            for name, value in self._course.settings.items()
            if saved.get(name) != value
        ]
        if different:
            raise InputError(
                f"{path} is of a training with other settings: {'; '.join(different)}. Go on with "
                "its settings, or begin anew in another folder"
            )
        try:
            checkpoint.load_state(self._course.model, state["model"], path)
            self._course.load(state, path)
            self._scaler.load_state_dict(state["scaler"])
            self.epoch, self.step = int(state["epoch"]), int(state["step"])
            self.best = state["best"]
        except (LookupError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path}: not a whole training state ({type(error).__name__}: {error})"
            ) from error
        if self.run is not None:
            best = path.parent / run_folder.BEST_MODEL
            if best.is_file() and not self.run.best_model.exists():
                write_atomically(self.run.best_model, best.read_bytes())
        log.info("Going on from %s: epoch %d, step %d", path, self.epoch, self.step)
