"""Photos read by helper processes, batch by batch."""

import functools
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from retrieval.errors import WorkerDied, tells_of_dead_worker

# Where Linux keeps what processes share; 64 MB in a container by default.
SHARED_MEMORY = Path("/dev/shm")
_PREFETCHED = 2  # batches that a helper process reads ahead
_STAY = 20.0  # seconds that it stays after SIGTERM


def load(
    dataset: Dataset,
    batches: Sequence[list[int]],
    num_workers: int,
    batch_bytes: int,
    collate: Callable[[list[Any]], Any] = list,
    *,
    pin_memory: bool = False,
) -> Iterator[Any]:
    """What ``collate`` makes of the items of each batch, in order.

    batch_bytes: of the largest batch. Batches are handed over in shared memory where it holds all
    that are under way, else through pipes. Raises WorkerDied where a helper process is killed.
    """
    workers = min(num_workers, len(batches))
    room = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else np.inf
    by_pipe = workers > 0 and batch_bytes * (_PREFETCHED * workers + 2) > room
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=functools.partial(_as_arrays, collate) if by_pipe else collate,
        num_workers=workers,
        prefetch_factor=_PREFETCHED if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_quiet_worker,
    )
    try:
        for batch in loader:
            yield _mapped(batch, np.ndarray, torch.from_numpy) if by_pipe else batch
    except (ConnectionError, FileNotFoundError, EOFError, RuntimeError) as error:
        of_its_pipe = workers > 0 and not isinstance(error, RuntimeError)
        if not of_its_pipe and not tells_of_dead_worker(error):
            raise
        raise WorkerDied((str(error).splitlines() or ["its pipe ended"])[0]) from error


def _as_arrays(collate: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    """The batch with arrays for tensors: they are pickled, and take no shared memory."""
    return _mapped(collate(items), torch.Tensor, torch.Tensor.numpy)


def _mapped(value: Any, kind: type, to: Callable[[Any], Any]) -> Any:
    """The value, of tuples and lists in each other, with ``to`` applied to what is of a kind."""
    if isinstance(value, kind):
        return to(value)
    if isinstance(value, list | tuple):
        return type(value)([_mapped(each, kind, to) for each in value])
    return value


def _quiet_worker(worker: int) -> None:
    """Let a helper process leave signals to the main process, and take one thread only.

    `timeout` and schedulers send SIGTERM to all processes at once: helpers stay for a while, until
    the main one has stopped in its own time and needs them no more.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_later)
    torch.set_num_threads(1)


def _leave_later(*_: object) -> None:
    leave = threading.Timer(_STAY, os._exit, [0])
    leave.daemon = True  # the process may end before
    leave.start()
