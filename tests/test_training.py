import csv
import os
import signal

import pytest
import torch

from retrieval import devices
from retrieval.errors import InputError
from retrieval.training import processes
from retrieval.training.processes import StopSignal
from retrieval.training.run_folder import LossLog, RunFolder


def test_mixed_seeds_are_stable_and_differ():
    assert processes.mix_seed(1, 2, 3) == processes.mix_seed(1, 2, 3)
    seeds = {processes.mix_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_device_that_is_not_there_is_an_error():
    assert devices.choose_device("cpu").type == "cpu"
    with pytest.raises(InputError, match="--device nonsense"):
        devices.choose_device("nonsense")
    if not torch.cuda.is_available():
        assert devices.choose_device("auto").type == "cpu"
        with pytest.raises(InputError, match=r"--device cuda.*--device cpu"):
            devices.choose_device("cuda")


def test_an_unfinished_run_of_the_same_settings_is_found_again(tmp_path):
    first = RunFolder.open(tmp_path, {"lr": 1e-5, "folders": ["a"]})
    first.close()
    other = RunFolder.open(tmp_path, {"lr": 1e-4, "folders": ["a"]})
    other.close()
    again = RunFolder.open(tmp_path, {"lr": 1e-5, "folders": ["a"]})
    again.close()
    assert again.path == first.path != other.path
    again.finish()
    new = RunFolder.open(tmp_path, {"lr": 1e-5, "folders": ["a"]})
    new.close()
    assert new.path not in (first.path, other.path)


def test_a_run_at_work_is_left_alone(tmp_path):
    first = RunFolder.open(tmp_path, {"lr": 1})
    second = RunFolder.open(tmp_path, {"lr": 1})
    assert first.path != second.path
    first.close()
    second.close()


def test_losses_after_the_checkpoint_are_dropped_on_resumption(tmp_path):
    log = LossLog(tmp_path, 0, 0)
    for step in range(5):
        log.add(0, step, {"total": float(step)})
    log.flush()
    log.close()
    log = LossLog(tmp_path, 0, 3)
    log.add(0, 3, {"total": 30.0})
    log.close()
    with (tmp_path / "losses.csv").open() as file:
        rows = [(row["step"], float(row["total"])) for row in csv.DictReader(file)]
    assert rows == [("0", 0.0), ("1", 1.0), ("2", 2.0), ("3", 30.0)]


def test_the_first_signal_is_noted_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.number
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGTERM) == before
