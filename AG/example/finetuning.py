"""Fine-tune a network for retrieval on tuples of a query, a positive and mined hard negatives.

Writes to DIR/<long directory name>; the same command goes on where it was stopped. On several GPUs:
torchrun --nproc_per_node N -m example.finetuning DIR ... (with --batch-size a multiple of N).

Examples:
    python3 -m example.finetuning ./models --backbone resnet18 --loss-margin 0.85 --lr 5e-7
    python3 -m example.finetuning ./models --data-root cache/toy_sfm --test-datasets toytown
"""

from retrieval.commands import delf_flags, script

if __name__ == "__main__":  # -h need not wait for what is imported below
    script.answer(delf_flags.read_finetuning, __doc__)

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from example import testing
from retrieval import progress
from retrieval.configs.learn import LoopConfig, MiningConfig, TuneConfig
from retrieval.data.sfm_pairs import SfmPairs, read_pairs
from retrieval.networks.create import create
from retrieval.training import processes, run_folder
from retrieval.training.trainer import Trainer
from retrieval.training.tuple_course import TupleCourse

log = logging.getLogger("example")

Reader = Callable[[str | None, Sequence[str] | None], delf_flags.FinetuningOptions]


def main(
    argv: Sequence[str] | None = None,
    description: str | None = __doc__,
    read: Reader = delf_flags.read_finetuning,
) -> None:
    """Fine-tune what ``read`` says, the whole network or its attention; best is the lowest loss."""
    asked = read(description, argv)
    tune, mining, run = asked.tune, asked.mining, asked.run
    pairs = {mode: read_pairs(asked.training_set, mode) for mode in ("train", "val")[: 1 + run.val]}
    torch.manual_seed(tune.seed)
    model, loaded, whitenings = create(asked.network, asked.pretrained)
    if not asked.train_all:
        model.freeze_all_but_attention()
    test = testing.Test(asked.test, asked.resources, str(loaded), whitenings)
    start = {"pretrained": asked.pretrained, "train_all": asked.train_all}
    start["attention"] = model.config.attention == "learned"

    def test_between_epochs() -> None:
        due = trainer.step == 0 and run.test_freq > 0 and trainer.epoch % run.test_freq == 0
        if folder is not None and due and not test.is_done(trainer.epoch, folder.path):
            test(model, trainer.epoch, folder.path)

    with processes.join_world(asked.resources.device) as world:
        course = TupleCourse(model, tune, mining, asked.resources, world, start)
        folder = None
        if world.is_main:
            folder = run_folder.RunFolder.at(asked.folder, asdict(asked), course.ground(pairs))
        log.info("%s", testing.networks_in_words(model.meta()))
        log.info(">> Weights: %s", loaded)
        trainer = Trainer(course, world, folder, LoopConfig(tune.seed, tune.precision))
        begin = time.perf_counter()
        with trainer.going_on_from(run_folder.to_go_on_from(asked.folder, asked.resume_train)):
            for epoch in trainer.epochs(tune.epochs):
                test_between_epochs()
                if course.tuples is None:
                    course.tuples = course.mine(pairs["train"], mining, epoch, 0)
                train_epoch(trainer, course, pairs["train"], tune, run.print_freq)
                loss = validate(trainer, course, pairs["val"], mining) if run.val else {}
                best = " (best so far)" * trainer.keep_best(loss, lowest=True)
                if loss:
                    log.info(">> Val: [%d] loss %.4f%s", epoch, loss["loss"], best)
                course.tuples = None
            test_between_epochs()
            log.info(">> Training finished in %s s", time.perf_counter() - begin)
            log.info(">> Best weights: %s", asked.folder / run_folder.BEST_MODEL)


def train_epoch(
    trainer: Trainer, course: TupleCourse, pairs: SfmPairs, tune: TuneConfig, print_freq: int
) -> None:
    """Learn from the tuples; a batch's gradients are the sum of those of its tuples."""
    assert course.tuples is not None
    epoch, last = trainer.epoch, course.count_batches(course.tuples)
    batches = course.batches(pairs, course.tuples, trainer.step)
    course.begin(epoch)
    for tuples in trainer.steps(batches, last, f"train {epoch}"):
        own_loss = 0.0
        for images in tuples:  # one after the other, since their sizes differ
            loss = course.loss(images)
            trainer.backward(loss)
            own_loss += float(loss.detach())
        gathered = trainer.world.gather((own_loss, len(tuples)))  # a last batch may be smaller
        mean = sum(loss for loss, _ in gathered) / max(sum(count for _, count in gathered), 1)
        trainer.note({"total": mean})
        done = trainer.step + 1
        if done % print_freq == 0 or done == last:
            log.info(">> Train: [%d][%d/%d] loss %.4f", epoch, done, last, mean)
        if done % tune.update_every == 0 or done == last:
            trainer.world.sum_gradients(course.model)
            trainer.update(course.optimizer)


@torch.no_grad()
def validate(
    trainer: Trainer, course: TupleCourse, pairs: SfmPairs, mining: MiningConfig
) -> dict[str, float]:
    """The mean loss of all validation tuples, mined anew."""
    every = MiningConfig(mining.neg_num, len(pairs.queries), len(pairs.paths))
    tuples = course.mine(pairs, every, trainer.epoch, 1)
    course.model.eval()
    loss = 0.0
    with progress.bar(f"val {trainer.epoch}", course.count_batches(tuples), "batches"):
        for batch in course.batches(pairs, tuples):
            loss += sum(float(course.loss(images)) for images in batch)
            progress.advance()
            trainer.leave_if_asked()
    return {"loss": sum(trainer.world.gather(loss)) / len(tuples)}


if __name__ == "__main__":
    script.run(main)
