"""The processes of a training: several GPUs, seeds, signals that let it save before it leaves."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch

from retrieval.devices import choose_device


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several non-negative integers; equal parts give equal seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


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
