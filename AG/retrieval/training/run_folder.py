"""The folder of a training run: settings, log, losses, checkpoints; what was stopped goes on."""

import contextlib
import csv
import fcntl
import json
import logging
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from retrieval.configs.learn import BEST_MODEL
from retrieval.errors import InputError
from retrieval.files import new_folder, write_atomically

LAST_CHECKPOINT = "last_checkpoint.pth"


class RunFolder:
    """A folder that holds all that one training run writes.

    ``settings.json`` (what was asked for), ``command.txt`` (each command line that trained here),
    ``info.log``, ``losses.csv`` and TensorBoard events (every loss term), ``last_checkpoint.pth``
    (all that is needed to go on exactly) and ``best_model.pth``.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = (path / ".lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        settings_file = path / "settings.json"
        if not settings_file.exists():
            text = json.dumps(settings, indent=2, sort_keys=True, default=str)
            write_atomically(settings_file, text)
        with (path / "command.txt").open("a") as commands:
            commands.write(shlex.join(["python3", *sys.orig_argv[1:]]) + "\n")
        self._log_file = logging.FileHandler(path / "info.log")
        self._log_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logging.getLogger().addHandler(self._log_file)

    @classmethod
    def open(cls, root: Path, settings: Mapping[str, Any]) -> "RunFolder":
        """The folder of an unfinished run of the same settings below ``root``, else a new one.

        A folder in which another process is at work is left alone.
        """
        wanted = json.loads(json.dumps(settings))
        for file in sorted(root.glob("*/settings.json"), reverse=True):
            unfinished = not (file.parent / "finished").exists()
            if unfinished and json.loads(file.read_text()) == wanted:
                with contextlib.suppress(BlockingIOError):
                    return cls(file.parent, settings)
        return cls(new_folder(root), settings)

    @classmethod
    def at(cls, path: Path, settings: Mapping[str, Any]) -> "RunFolder":
        """The folder ``path``; InputError where another process is at work in it."""
        try:
            return cls(path, settings)
        except BlockingIOError as error:
            raise InputError(f"{path}: another process is training there") from error

    @property
    def last_checkpoint(self) -> Path:
        """Where the training state is kept."""
        return self.path / LAST_CHECKPOINT

    @property
    def best_model(self) -> Path:
        """Where the weights of the best epoch are kept."""
        return self.path / BEST_MODEL

    def finish(self) -> None:
        """Mark the run as done, so that the same command starts a new one."""
        (self.path / "finished").touch()

    def close(self) -> None:
        """Stop writing to the log and give the folder free."""
        logging.getLogger().removeHandler(self._log_file)
        self._log_file.close()
        self._lock.close()


def to_go_on_from(folder: Path, resume_train: Path | None) -> Path | None:
    """The checkpoint that a run in ``folder`` goes on from, or None.

    It is the folder's own, unless ``resume_train`` names another than the run there began with: so
    the same command goes on, and one that names a checkpoint anew gets it.
    """
    own, settings = folder / LAST_CHECKPOINT, folder / "settings.json"
    if own.exists() and resume_train is None:
        return own
    if own.exists() and settings.exists():
        began_with = json.loads(settings.read_text()).get("resume_train")
        return own if began_with == str(resume_train) else resume_train
    return resume_train


class LossLog:
    """Every loss term of every step, to ``losses.csv`` and to TensorBoard."""

    def __init__(self, folder: Path, epoch: int, step: int) -> None:
        """Open for writing from (``epoch``, ``step``) on; rows of a later state are dropped."""
        self._path = folder / "losses.csv"
        kept = self._rows_before(epoch, step)
        self._file = self._path.open("w", newline="", buffering=1)  # a line at a time
        self._writer: csv.DictWriter | None = None
        for row in kept:
            self._write(row)
        self._file.flush()
        # One events file per start: TensorBoard drops what a resumed run writes anew.
        self._board = SummaryWriter(str(folder), purge_step=len(kept))
        self._count = len(kept)

    def _rows_before(self, epoch: int, step: int) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with self._path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        complete = [row for row in rows if row["epoch"] and row["step"]]
        return [row for row in complete if (int(row["epoch"]), int(row["step"])) < (epoch, step)]

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(row))
            self._writer.writeheader()
        self._writer.writerow(row)

    def add(self, epoch: int, step: int, terms: Mapping[str, float]) -> None:
        """Write the loss terms of one step."""
        self._write({"epoch": epoch, "step": step, **{k: f"{v:.6g}" for k, v in terms.items()}})
        for name, value in terms.items():
            self._board.add_scalar(f"loss/{name}", value, self._count)
        self._count += 1

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Write validation figures to TensorBoard at the present step."""
        for name, value in metrics.items():
            self._board.add_scalar(f"val/{name}", value, self._count)

    def flush(self) -> None:
        """Bring all rows to the disk."""
        self._file.flush()
        self._board.flush()

    def close(self) -> None:
        """Flush and close both logs."""
        self._file.close()
        self._board.close()
