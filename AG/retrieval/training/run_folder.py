"""The folder of a training run: settings, log, losses, checkpoints; what was stopped goes on."""

import contextlib
import csv
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock
from torch.utils.tensorboard import SummaryWriter

from retrieval.configs.learn import BEST_MODEL
from retrieval.errors import InputError
from retrieval.files import command_line, keep_log, new_folder, read_json, write_atomically

log = logging.getLogger(__name__)

LAST_CHECKPOINT = "last_checkpoint.pth"


class RunFolder:
    """A folder that holds all that one training run writes.

    ``settings.json`` (what was asked for), ``command.txt`` (each command line that trained here),
    ``info.log``, ``losses.csv`` and TensorBoard events (every loss term), ``last_checkpoint.pth``
    (all that is needed to go on exactly) and ``best_model.pth``.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """filelock.Timeout where another process is at work in ``path``."""
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(path / ".lock")
        self._lock.acquire(timeout=0)
        settings_file = path / "settings.json"
        if not settings_file.exists():
            text = json.dumps(settings, indent=2, sort_keys=True, default=str)
            write_atomically(settings_file, text)
        with (path / "command.txt").open("a") as commands:
            commands.write(command_line() + "\n")
        self._log_file = keep_log(path)

    @classmethod
    def open(cls, root: Path, settings: Mapping[str, Any]) -> "RunFolder":
        """The folder of an unfinished run of the same settings below ``root``, else a new one.

        A folder in which another process is at work is left alone, and one whose settings are
        damaged is passed by with a warning. Where photos, weights or settings have changed since a
        run started, what has changed is said.
        """
        wanted = json.loads(json.dumps(settings))
        for file in sorted(root.glob("*/settings.json"), reverse=True):
            if (file.parent / "finished").exists():
                continue
            try:
                found = read_json(file)
            except (OSError, ValueError) as error:
                log.warning("%s is damaged (%s): what its run began is left alone", file, error)
                continue
            if {**found, "ground": None} != {**wanted, "ground": None}:
                continue
            if changed := _changes(found, wanted):
                log.warning(
                    "%s is unfinished, but photos, weights or settings changed since this run "
                    "started: %s. A new run starts",
                    file.parent,
                    "; ".join(changed),
                )
                continue
            with contextlib.suppress(filelock.Timeout):
                return cls(file.parent, settings)
        return cls(new_folder(root), settings)

    @classmethod
    def at(cls, path: Path, settings: Mapping[str, Any], ground: Mapping[str, Any]) -> "RunFolder":
        """The folder ``path``.

        InputError where another process is at work in it, or where photos, weights or settings have
        changed since the run there started.
        """
        settings = {**settings, "ground": ground}
        try:
            folder = cls(path, settings)
        except filelock.Timeout as error:
            raise InputError(f"{path}: another process is training there") from error
        try:
            began_with = read_json(path / "settings.json")
        except (OSError, ValueError):  # damaged: nobody knows what it started from
            return folder
        if changed := _changes(began_with, settings):
            folder.close()
            raise InputError(
                f"{path}: photos, weights or settings changed since this run started: "
                f"{'; '.join(changed)}. Undo that, or start in another folder"
            )
        return folder

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
        self._lock.release()


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs in the ``ground`` of two settings, in words; nothing where one has none."""
    old, new = before.get("ground"), now.get("ground")
    if not isinstance(old, dict) or not isinstance(new, dict):
        return []
    values = json.loads(json.dumps(new, default=str))
    return [
        f"{key} ({old.get(key)}, now {value})"
        for key, value in values.items()
        if old.get(key) != value
    ]


def to_go_on_from(folder: Path, resume_train: Path | None) -> Path | None:
    """The checkpoint that a run in ``folder`` goes on from, or None.

    It is the folder's own, unless ``resume_train`` names another than the run there began with: so
    the same command goes on, and one that names a checkpoint anew gets it.
    """
    own, settings = folder / LAST_CHECKPOINT, folder / "settings.json"
    if own.exists() and resume_train is None:
        return own
    if own.exists() and settings.exists():
        try:
            began_with = read_json(settings).get("resume_train")
        except (OSError, ValueError) as error:
            raise InputError(
                f"{settings} is damaged ({error}): leave out --resume_train to go on from {own}, "
                "or begin in another folder"
            ) from error
        return own if began_with == str(resume_train) else resume_train
    return resume_train


class LossLog:
    """Every loss term of every step, to ``losses.csv`` and to TensorBoard."""

    def __init__(self, folder: Path, epoch: int, step: int) -> None:
        """Open for writing from (``epoch``, ``step``) on; rows of a later state are dropped.

        Of a damaged file, which is kept as losses.csv.damaged, the whole rows are taken over.
        """
        path = folder / "losses.csv"
        kept = _rows_before(path, epoch, step) if path.exists() else []
        write_atomically(path, "".join(kept))
        self._file = path.open("a", newline="", buffering=1)  # a line at a time
        self._has_header = bool(kept)
        self._count = max(len(kept) - 1, 0)
        # One events file per start: TensorBoard drops what a resumed run writes anew.
        self._board = SummaryWriter(str(folder), purge_step=self._count)

    def add(self, epoch: int, step: int, terms: Mapping[str, float]) -> None:
        """Write the loss terms of one step."""
        row = {"epoch": epoch, "step": step, **{k: f"{v:.6g}" for k, v in terms.items()}}
        writer = csv.DictWriter(self._file, list(row), lineterminator="\n")
        if not self._has_header:
            writer.writeheader()
            self._has_header = True
        writer.writerow(row)
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


def _rows_before(path: Path, epoch: int, step: int) -> list[str]:
    """The header and the rows before (``epoch``, ``step``), a line each."""
    header, *rows = path.read_text(errors="replace").splitlines(keepends=True) or [""]
    if rows and not rows[-1].endswith("\n"):
        rows.pop()  # a process was killed as it wrote it
    is_whole = header.startswith("epoch,step,") and header.endswith("\n")
    places = [_place_of(row, header.count(",")) if is_whole else None for row in rows]
    kept = [row for row, at in zip(rows, places, strict=True) if at and at < (epoch, step)]
    if header and not (is_whole and all(places)):
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        log.warning("%s is damaged: %d whole rows are taken over; see %s", path, len(kept), aside)
    return [header, *kept] if kept else []


def _place_of(row: str, commas: int) -> tuple[int, int] | None:
    """Epoch and step of a row; None for one that is damaged."""
    if row.count(",") != commas:
        return None
    epoch, step, *terms = row.split(",")
    try:
        for term in terms:
            float(term)
        return int(epoch), int(step)
    except ValueError:
        return None
