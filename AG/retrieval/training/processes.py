"""The processes of a training: several GPUs, seeds, signals that let it save before it leaves."""

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from retrieval.devices import choose_device
from retrieval.errors import InputError

Value = TypeVar("Value")


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several non-negative integers; equal parts give equal seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class World:
    """The processes that train together, as torchrun started them; alone without torchrun.

    device: where this process computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the messages."""
        return self.rank == 0

    def gather(self, value: Value) -> list[Value]:
        """The ``value`` of every process, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def share_of(self, batch_size: int) -> int:
        """The part of a batch that each process takes; InputError if it has no equal parts."""
        if batch_size % self.size:
            raise InputError(f"--batch_size {batch_size} cannot be shared by {self.size} processes")
        return batch_size // self.size

    def sum_gradients(self, model: nn.Module) -> None:
        """Make each gradient of ``model`` the sum of those of all processes."""
        if self.size == 1:
            return
        for parameter in model.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:  # nothing of this batch was left for this process
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)


@contextlib.contextmanager
def join_world(device_name: str) -> Iterator[World]:
    """Join the processes that torchrun started, each with its own GPU (or the CPU, with gloo)."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=choose_device(device_name))
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    device = choose_device(device_name)
    if device.type == "cuda":
        device = choose_device(f"cuda:{local_rank}")
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(torch.distributed.get_rank(), size, device)
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


def move_optimizer(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Move an optimiser's state to where its parameters went."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if torch.is_tensor(value) and value.ndim > 0:
                state[name] = value.to(device)
