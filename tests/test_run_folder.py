import csv
import sys

import pytest

from retrieval.errors import InputError
from retrieval.training.run_folder import LAST_CHECKPOINT, LossLog, RunFolder, to_go_on_from


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


def test_a_folder_keeps_the_command_lines_that_trained_in_it(tmp_path, monkeypatch):
    # As in a script; a worker of pytest has none.
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "AG/train.py", raising=False)
    for more in ([], ["--name", "a b"]):
        monkeypatch.setattr(sys, "orig_argv", ["/bin/python", "AG/train.py", *more])
        RunFolder.open(tmp_path, {"lr": 1}).close()
    (folder,) = tmp_path.iterdir()
    lines = "python3 AG/train.py\npython3 AG/train.py --name 'a b'\n"
    assert (folder / "command.txt").read_text() == lines


def test_a_named_folder_at_work_is_an_error(tmp_path):
    busy = RunFolder.at(tmp_path, {"folder": tmp_path}, {})
    with pytest.raises(InputError, match="another process is training there"):
        RunFolder.at(tmp_path, {}, {})
    busy.close()


def test_the_own_checkpoint_goes_on_unless_another_is_named_anew(tmp_path):
    start, other = tmp_path / "start.pth", tmp_path / "other.pth"
    folder = tmp_path / "run"
    assert to_go_on_from(folder, start) == start
    assert to_go_on_from(folder, None) is None
    RunFolder.at(folder, {"resume_train": start}, {}).close()
    own = folder / LAST_CHECKPOINT
    own.touch()
    assert to_go_on_from(folder, start) == own  # the same command again
    assert to_go_on_from(folder, None) == own
    assert to_go_on_from(folder, other) == other


def test_a_run_on_other_ground_begins_anew_and_says_what_has_changed(tmp_path, caplog):
    ground = {"training images": "60, abc", "validation by recall_values": (5,)}
    first = RunFolder.open(tmp_path, {"lr": 1, "ground": ground})
    first.close()
    again = RunFolder.open(tmp_path, {"lr": 1, "ground": ground})
    again.close()
    assert again.path == first.path
    assert not caplog.messages
    changed = ground | {"training images": "120, def"}
    other = RunFolder.open(tmp_path, {"lr": 1, "ground": changed})
    other.close()
    assert other.path != first.path
    (line,) = caplog.messages
    assert (
        "changed since this run started: training images (60, abc, now 120, def). A new run" in line
    )


def test_a_named_folder_of_other_ground_is_refused(tmp_path):
    RunFolder.at(tmp_path, {}, {"weights": "abc"}).close()
    RunFolder.at(tmp_path, {}, {"weights": "abc"}).close()
    with pytest.raises(InputError, match=r"started: weights \(abc, now def\)\. .*another folder"):
        RunFolder.at(tmp_path, {}, {"weights": "def"})
    RunFolder.at(tmp_path, {}, {"weights": "abc"}).close()  # it was given free
