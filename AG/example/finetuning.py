"""Fine-tune a network for retrieval on tuples of a query, a positive and mined hard negatives.

Writes to DIR/<long directory name>; the same command goes on where it was stopped. On several GPUs:
torchrun --nproc_per_node N -m example.finetuning DIR ... (with --batch-size a multiple of N).
"""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from example import options, testing
from example.options import TuningOptions
from example.tuple_batches import batches, describe_tuple, labels_of, mine
from retrieval import checkpoint, errors
from retrieval.commands.script import run
from retrieval.configs.learn import MiningConfig
from retrieval.data.sfm_pairs import SfmPairs, read_pairs
from retrieval.errors import InputError
from retrieval.networks import delf_weights
from retrieval.networks.delf import Delf
from retrieval.training import processes, run_folder
from retrieval.training.losses import contrastive, triplet
from retrieval.training.sfm_tuples import TuplePhotos, Tuples

log = logging.getLogger("example")

LOSSES = {"contrastive": contrastive, "triplet": triplet}
DECAY = 0.01  # the learning rate of epoch e is exp(-DECAY · e) of the first's


class Tuner:
    """Trains a `Delf` epoch by epoch; can stop at any step and go on to the same weights."""

    def __init__(
        self,
        model: Delf,
        asked: TuningOptions,
        pairs: Mapping[str, SfmPairs],
        folder: run_folder.RunFolder | None,
        world: processes.World,
        device: torch.device,
    ) -> None:
        tune = asked.tune
        if tune.batch_size % world.size:
            raise InputError(
                f"--batch-size {tune.batch_size} cannot be shared by {world.size} processes"
            )
        self.model = model.to(device=device).to(memory_format=torch.channels_last)
        groups = model.parameter_groups(tune.lr, tune.weight_decay)
        for group in groups:
            group["first_lr"] = group["lr"]
        self.optimizer = (
            torch.optim.Adam(groups)
            if tune.optimizer == "adam"
            else torch.optim.SGD(groups, momentum=tune.momentum)
        )
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=tune.precision == "fp16" and device.type == "cuda"
        )
        self.epoch, self.step = 0, 0
        self.best: float | None = None
        self.tuples: Tuples | None = None
        self._asked, self._tune, self._pairs = asked, tune, pairs
        self._run, self._world, self._device = folder, world, device
        self._log: run_folder.LossLog | None = None
        self._checkpoint_due = processes.Every(600)

    def settings(self) -> dict[str, Any]:
        """What decides, with the photos, what is learned."""
        tune = {name: value for name, value in asdict(self._tune).items() if name != "epochs"}
        network = {"pretrained": self._asked.pretrained, "train_all": self._asked.train_all}
        return {**asdict(self.model.config), **asdict(self._asked.mining), **tune, **network}

    def fit(self, test: testing.Test) -> None:
        """Train the epochs that remain, testing as it goes; keep the weights of the best epoch.

        Raises errors.Stopped after SIGTERM or Ctrl-C, the checkpoint being written.
        """
        if self._run is not None:
            self._log = run_folder.LossLog(self._run.path, self.epoch, self.step)
        try:
            with processes.StopSignal() as stop:
                self._test(test)
                while self.epoch < self._tune.epochs:
                    self._train_epoch(stop)
                    self._save()  # a kill during validation costs the validation only
                    self._keep_best(self._validation_loss(stop))
                    self.epoch, self.step, self.tuples = self.epoch + 1, 0, None
                    self._save()
                    self._leave_if_asked(stop)
                    self._test(test)
        finally:
            if self._log is not None:
                self._log.close()

    def _test(self, test: testing.Test) -> None:
        """Test between two epochs, every --test-freq of them, unless that is done."""
        frequency = self._asked.run.test_freq
        due = self.step == 0 and frequency > 0 and self.epoch % frequency == 0
        if self._run is not None and due and not test.is_done(self.epoch, self._run.path):
            test(self.model, self.epoch, self._run.path)

    def _train_epoch(self, stop: processes.StopSignal) -> None:
        if self.tuples is None:
            self.tuples = self._mine("train", self._asked.mining)
        for group in self.optimizer.param_groups:
            group["lr"] = group["first_lr"] * math.exp(-DECAY * self.epoch)
        self.model.train()
        last = math.ceil(len(self.tuples) / self._tune.batch_size)
        for tuples in self._batches("train", self.tuples, self.step):
            loss = self._sum(sum(self._add_gradients(photos) for photos in tuples))
            loss /= self._tune.batch_size
            self._note_loss(loss, last)
            self.step += 1
            if self.step % self._tune.update_every and self.step < last:
                continue
            self._take_step()
            if self._world.any(bool(stop.number)):
                self._save()
                self._leave_if_asked(stop)
            elif self._checkpoint_due.is_due():
                self._save()

    def _add_gradients(self, photos: list[torch.Tensor]) -> float:
        """Add the gradients of one tuple's loss, and give the loss."""
        loss = self._loss(photos)
        self.scaler.scale(loss).backward()
        return float(loss.detach())

    def _take_step(self) -> None:
        if self._world.size > 1:  # the loss is a sum over tuples: so are its gradients
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    if parameter.grad is None:  # no tuple was left for this process
                        parameter.grad = torch.zeros_like(parameter)
                    torch.distributed.all_reduce(parameter.grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _note_loss(self, loss: float, last: int) -> None:
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} at epoch {self.epoch}, step {self.step}: lower --lr, or use "
                "--precision fp32"
            )
        if self._log is None:
            return
        self._log.add(self.epoch, self.step, {"total": loss})
        done = self.step + 1
        if done % self._asked.run.print_freq == 0 or done == last:
            log.info(">> Train: [%d][%d/%d] loss %.4f", self.epoch, done, last, loss)

    @torch.no_grad()
    def _validation_loss(self, stop: processes.StopSignal) -> float | None:
        """The mean loss of all validation tuples, mined anew; None without them."""
        if "val" not in self._pairs:
            return None
        pairs, count = self._pairs["val"], self._asked.mining.neg_num
        tuples = self._mine("val", MiningConfig(count, len(pairs.queries), len(pairs.paths)))
        self.model.eval()
        loss = 0.0
        for batch in self._batches("val", tuples, 0):
            loss += sum(float(self._loss(photos)) for photos in batch)
            self._leave_if_asked(stop)
        return self._sum(loss) / len(tuples)

    def _keep_best(self, loss: float | None) -> None:
        """Keep the weights if the validation loss is the lowest so far, or if there is none."""
        if loss is not None:
            is_best = self.best is None or loss < self.best
            if self._log is not None:
                self._log.add_metrics({"loss": loss})
                words = " (best so far)" if is_best else ""
                log.info(">> Val: [%d] loss %.4f%s", self.epoch, loss, words)
            if not is_best:
                return
            self.best = loss
        if self._run is not None:
            checkpoint.save(self._run.best_model, delf_weights.contents(self.model))

    def _mine(self, mode: str, mining: MiningConfig) -> Tuples:
        extract = self._asked.extraction(self._tune.image_size)
        seed = (self._tune.seed, self.epoch, int(mode == "val"))
        return mine(self.model, self._pairs[mode], mining, extract, self._world, *seed)

    def _batches(self, mode: str, tuples: Tuples, first: int) -> Iterator[list[list[torch.Tensor]]]:
        photos = TuplePhotos(self._pairs[mode], tuples, self._tune.image_size)
        return batches(
            *(photos, self._tune.batch_size, self._world),
            first=first,
            workers=self._asked.run.workers,
            title=f"{mode} {self.epoch}",
        )

    def _loss(self, photos: list[torch.Tensor]) -> torch.Tensor:
        descriptors = describe_tuple(self.model, photos, self._tune.precision)
        labels = labels_of(photos, self._device)
        return LOSSES[self._tune.loss](descriptors, labels, self._tune.loss_margin)

    def _sum(self, value: float) -> float:
        """The sum of ``value`` over all processes."""
        if self._world.size == 1:
            return float(value)
        total = torch.tensor([value], dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(total)
        return float(total)

    def resume(self, path: Path) -> None:
        """Go on exactly where the checkpoint ``path`` was written; InputError if it cannot be."""
        state = checkpoint.load(path)
        if not isinstance(state, dict) or "optimizer" not in state:
            raise InputError(
                f"--resume {path}: holds no training state; to start from weights use --pretrained"
            )
        saved, own = state["settings"], self.settings()
        different = [
            f"{name} {value} (the checkpoint has {saved.get(name)})"
            for name, value in own.items()
            if saved.get(name) != value
        ]
        if different:
            raise InputError(
                f"{path} is of a training with other settings: {'; '.join(different)}. Choose "
                "another DIR, or delete the folder to begin anew"
            )
        checkpoint.load_state(self.model, state["model"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        mined = state["tuples"]
        self.tuples = None if mined is None else Tuples(**{k: v.numpy() for k, v in mined.items()})
        log.info(">> Going on from %s: epoch %d, step %d", path, self.epoch, self.step)

    def _save(self) -> None:
        if self._run is None:
            return
        if self._log is not None:
            self._log.flush()
        mined = None if self.tuples is None else vars(self.tuples)
        state = {
            **delf_weights.contents(self.model),
            "settings": self.settings(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "tuples": mined and {name: torch.from_numpy(rows) for name, rows in mined.items()},
        }
        checkpoint.save(self._run.last_checkpoint, state)

    def _leave_if_asked(self, stop: processes.StopSignal) -> None:
        if self._world.any(bool(stop.number)):
            raise errors.Stopped(stop.number)


def tune(asked: TuningOptions) -> None:
    """Train the network that ``asked`` describes in its folder, or go on with its training."""
    modes = ("train", "val") if asked.run.val else ("train",)
    pairs = {mode: read_pairs(asked.training_set, mode) for mode in modes}
    torch.manual_seed(asked.tune.seed)
    model, loaded, whitenings = delf_weights.create(asked.network, asked.pretrained)
    if not asked.train_all:
        model.freeze_all_but_attention()
    test = testing.make_test(asked, str(loaded), whitenings)
    with processes.join_world(asked.device) as (world, device):
        folder = _open_folder(asked) if world.is_main else None
        try:
            tuner = Tuner(model, asked, pairs, folder, world, device)
            if folder is not None:
                log.info("%s", testing.networks_in_words(model.meta()))
                log.info(">> Weights: %s", loaded)
            own = asked.folder / run_folder.LAST_CHECKPOINT
            start = asked.resume or (own if own.exists() else None)
            if (start := world.broadcast(start)) is not None:
                tuner.resume(start)
            begin = time.perf_counter()
            tuner.fit(test)
            if folder is not None:
                log.info(">> Training finished in %s s", time.perf_counter() - begin)
                log.info(">> Best weights: %s", folder.best_model)
        finally:
            if folder is not None:
                folder.close()


def _open_folder(asked: TuningOptions) -> run_folder.RunFolder:
    try:
        return run_folder.RunFolder(
            asked.folder, json.loads(json.dumps(asdict(asked), default=str))
        )
    except BlockingIOError as error:
        raise InputError(f"{asked.folder}: another process is training there") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tune the whole network."""
    tune(options.read_tuning(__doc__, argv, attention=False))


if __name__ == "__main__":
    run(main)
