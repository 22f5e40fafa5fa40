import logging
import math
import os
import signal
from dataclasses import dataclass

import pytest
import torch

from retrieval import checkpoint, errors, progress
from retrieval.configs.learn import LoopConfig
from retrieval.errors import InputError
from retrieval.training.processes import World
from retrieval.training.run_folder import RunFolder
from retrieval.training.trainer import Trainer

EPOCHS, STEPS = 2, 6


@dataclass
class Tiny:
    size: int = 3


class Line(torch.nn.Linear):
    config = Tiny()


class Exercise:
    """A course that fits a line through noise, by a network that draws at random."""

    def __init__(self, **settings):
        torch.manual_seed(0)
        self.model = Line(3, 1)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.settings = {"seed": 0, "lr": 0.1, **settings}

    def state(self):
        return {"optimizer": self.optimizer.state_dict()}

    def load(self, state, source):
        self.optimizer.load_state_dict(state["optimizer"])


def train(
    folder, *, stop_at=None, update_every=1, start=None, epochs=EPOCHS, figures=None, **other
):
    """Train; SIGTERM comes in step ``stop_at`` = (epoch, step). Returns the trainer."""
    course = Exercise(**other)
    trainer = Trainer(course, World(), RunFolder(folder, {}), LoopConfig(0, "fp32"))
    with trainer.going_on_from(start):
        for epoch in trainer.epochs(epochs):
            batches = range(trainer.step, STEPS)
            for step in trainer.steps(batches, STEPS, f"epoch {epoch}"):
                loss = (course.model(torch.randn(4, 3)) - 1).square().mean()
                trainer.backward(loss)
                trainer.note({"total": loss})
                if (epoch, step) == stop_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                if (step + 1) % update_every == 0:
                    trainer.update(course.optimizer)
            trainer.keep_best((figures or [{}] * EPOCHS)[epoch], lowest=True)
    return trainer


def last(folder):
    return checkpoint.load(folder / "last_checkpoint.pth")


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name])
    for row, moments in one["optimizer"]["state"].items():
        assert torch.equal(moments["exp_avg_sq"], other["optimizer"]["state"][row]["exp_avg_sq"])
    assert (one["epoch"], one["step"], one["best"]) == (
        other["epoch"], other["step"], other["best"],
    )  # fmt: skip


@pytest.mark.parametrize("update_every", [1, 2])
@pytest.mark.parametrize("stop_at", [(0, 0), (1, 2), (1, 5)])
def test_a_stopped_training_goes_on_to_the_same_end(tmp_path, stop_at, update_every):
    train(tmp_path / "whole", update_every=update_every)
    with pytest.raises(errors.Stopped, match="SIGTERM"):
        train(tmp_path / "parts", stop_at=stop_at, update_every=update_every)
    state = last(tmp_path / "parts")
    assert state["step"] % update_every == 0  # never with gradients that wait for the rest
    assert (state["epoch"], state["step"] - 1) >= stop_at
    train(tmp_path / "parts", start=tmp_path / "parts" / "last_checkpoint.pth",
          update_every=update_every)  # fmt: skip
    assert_equal(last(tmp_path / "parts"), last(tmp_path / "whole"))
    losses = [(tmp_path / name / "losses.csv").read_text() for name in ("parts", "whole")]
    assert losses[0] == losses[1]


def test_handlers_and_bars_are_put_back_when_an_error_ends_the_training(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(errors.Stopped):
        train(tmp_path, stop_at=(0, 1))
    assert signal.getsignal(signal.SIGTERM) == before
    assert not progress._open
    RunFolder(tmp_path, {}).close()  # the folder is free


def test_the_weights_of_the_best_epoch_are_kept(tmp_path):
    figures = [{"loss": 1.0, "other": 9.0}, {"loss": 2.0, "other": 0.0}]
    trainer = train(tmp_path / "falls", figures=figures)
    first = train(tmp_path / "first", figures=figures, epochs=1)
    assert trainer.best == first.best == 1.0
    best = checkpoint.load(trainer.run.best_model)["model"]
    assert torch.equal(best["weight"], last(tmp_path / "first")["model"]["weight"])
    unjudged = train(tmp_path / "unjudged")
    kept = checkpoint.load(unjudged.run.best_model)["model"]
    assert torch.equal(kept["weight"], last(tmp_path / "unjudged")["model"]["weight"])


def test_the_highest_is_the_best_unless_the_lowest_is_wanted(tmp_path):
    trainer = Trainer(Exercise(), World(), None, LoopConfig(0, "fp32"))
    assert [trainer.keep_best({"R@1": value}) for value in (5.0, 5.0, 7.0, 6.0)] == [
        True, False, True, False,
    ]  # fmt: skip
    assert trainer.best == 7.0
    trainer = Trainer(Exercise(), World(), None, LoopConfig(0, "fp32"))
    assert [trainer.keep_best({"R@1": value}) for value in (math.nan, math.nan, 3.0, math.nan)] == [
        True, True, True, False,
    ]  # fmt: skip


def test_a_training_that_goes_on_elsewhere_takes_its_best_weights_along(tmp_path):
    train(tmp_path / "first", epochs=1, figures=[{"loss": 1.0}])
    start = tmp_path / "first" / "last_checkpoint.pth"
    train(tmp_path / "second", start=start, figures=[{}, {"loss": 2.0}])
    names = [tmp_path / name / "best_model.pth" for name in ("first", "second")]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_checkpoints_of_other_trainings_are_refused(tmp_path):
    train(tmp_path / "one", epochs=1)
    start = tmp_path / "one" / "last_checkpoint.pth"
    with pytest.raises(InputError, match=r"other settings: lr 0.2 \(the checkpoint has 0.1\)"):
        train(tmp_path / "two", start=start, lr=0.2)
    with pytest.raises(InputError, match=r"no training state.*--pretrained"):
        train(tmp_path / "three", start=tmp_path / "one" / "best_model.pth")


def test_a_checkpoint_with_its_settings_in_groups_is_understood(tmp_path):
    train(tmp_path, epochs=1)
    state = last(tmp_path)
    settings = state.pop("settings")
    state["recipe"] = {"train": {"seed": settings["seed"]}, "lr": settings["lr"]}
    checkpoint.save(tmp_path / "older.pth", state)
    assert train(tmp_path, start=tmp_path / "older.pth").epoch == EPOCHS


def test_a_loss_that_is_not_finite_ends_the_training():
    trainer = Trainer(Exercise(), World(), None, LoopConfig(0, "fp32"))
    with pytest.raises(InputError, match=r"loss is nan at epoch 0, step 0.*--precision fp32"):
        trainer.note({"total": torch.tensor(float("nan"))})


def test_a_piped_training_says_where_it_is(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    train(tmp_path, epochs=1)
    lines = [line for line in caplog.messages if line.startswith("epoch 0: 3 of 6 steps, ")]
    assert len(lines) == 1
    assert "left, loss " in lines[0]
