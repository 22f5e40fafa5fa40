"""What every training loop shares: seeds, precision, several GPUs, the run folder, resumption."""

import contextlib
import csv
import fcntl
import json
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from retrieval.errors import InputError
from retrieval.files import write_atomically

LAST_CHECKPOINT = "last_checkpoint.pth"
BEST_MODEL = "best_model.pth"

Precision = Literal["bf16", "fp16", "fp32"]


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several non-negative integers; equal parts give equal seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def choose_device(name: str) -> torch.device:
    """``auto`` is the GPU if there is one, else the CPU; an explicit device must exist."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: no such device; choose auto, cpu or cuda") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(
            f"--device {name}: this machine offers {count} CUDA GPUs; use --device cpu"
        )
    return device


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager:
    """Mixed precision for a forward pass; losses and poolings keep themselves in float32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)


@dataclass(frozen=True)
class World:
    """The processes that train together, as torchrun started them; alone without torchrun."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the messages."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true in any process."""
        if self.size == 1:
            return flag
        flags: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(flags, flag)
        return any(flags)

    def broadcast(self, value: Any) -> Any:
        """The main process's ``value``, in every process."""
        if self.size == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values)
        return values[0]


@contextlib.contextmanager
def join_world(device_name: str) -> Iterator[tuple[World, torch.device]]:
    """Join the processes that torchrun started, each with its own GPU (or the CPU, with gloo)."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(), choose_device(device_name)
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    device = choose_device(device_name)
    if device.type == "cuda":
        device = choose_device(f"cuda:{local_rank}")
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(torch.distributed.get_rank(), size), device
    finally:
        torch.distributed.destroy_process_group()


class StopSignal:
    """Turns the first SIGTERM or Ctrl-C into a flag, so that a loop can save before it leaves.

    A second signal is handled as usual.
    """

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> "StopSignal":
        self._previous = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.__exit__()

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class Stopped(Exception):
    """A signal ended the training; its checkpoint is written and the same command goes on."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_status = 128 + signal_number


def new_folder(root: Path) -> Path:
    """A new folder below ``root``, named after the time."""
    name = start = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    count = 1
    while True:
        try:
            (root / name).mkdir(parents=True)
            return root / name
        except FileExistsError:
            count += 1
            name = f"{start}_{count}"


def newest_folder(root: Path) -> Path:
    """The newest run folder below ``root``; InputError if there is none."""
    folders = [path for path in root.glob("*/") if path.is_dir()]
    if not folders:
        raise InputError(f"{root}: no run folder here; run the step that makes one first")
    return max(folders)


class RunFolder:
    """A folder that holds all that one training run writes.

    ``settings.json`` (what was asked for), ``info.log``, ``losses.csv`` and TensorBoard events
    (every loss term), ``last_checkpoint.pth`` (all that is needed to go on exactly) and
    ``best_model.pth``.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = (path / ".lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        settings_file = path / "settings.json"
        if not settings_file.exists():
            write_atomically(settings_file, json.dumps(settings, indent=2, sort_keys=True))
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


class Every:
    """True once every ``seconds``, for checkpoints in mid-epoch."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Whether the time has passed since this last said True."""
        due = time.monotonic() - self._last >= self._seconds
        if due:
            self._last = time.monotonic()
        return due


def move_optimizer(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Move an optimiser's state to where its parameters went."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if torch.is_tensor(value) and value.ndim > 0:
                state[name] = value.to(device)


def quiet_worker(worker: int) -> None:
    """Let a loader's worker leave Ctrl-C to the main process, and take one thread only."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
