"""Helper processes that read photos: killed ones are noticed, shared memory is not needed."""

import os
import signal

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, default_collate

from retrieval.data.loading import _as_arrays, load
from retrieval.errors import WorkerDied

BATCHES = [[0, 1], [2], [3, 4, 5]]


class Numbers(Dataset):
    def __getitem__(self, row):
        return row, torch.full((2, 3), float(row)), f"number {row}"


class Deadly(Numbers):
    def __getitem__(self, row):
        if row == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(row)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_bytes", [10, 10**15])
def test_batches_come_in_order_with_or_without_shared_memory(num_workers, batch_bytes):
    found = list(load(Numbers(), BATCHES, num_workers, batch_bytes))
    assert [[row for row, _, _ in items] for items in found] == BATCHES
    for row, tensor, text in (item for items in found for item in items):
        assert torch.equal(tensor, torch.full((2, 3), float(row)))
        assert text == f"number {row}"


def test_batches_that_are_collated_come_through_a_pipe_too():
    for batch_bytes in (10, 10**15):
        rows, tensors, texts = next(load(Numbers(), BATCHES, 1, batch_bytes, default_collate))
        assert rows.tolist() == [0, 1]
        assert tensors.shape == (2, 2, 3)
        assert list(texts) == ["number 0", "number 1"]


def test_what_goes_through_a_pipe_are_arrays():
    (row, array, _), *_ = _as_arrays(list, [Numbers()[4]])
    assert row == 4
    assert isinstance(array, np.ndarray)


@pytest.mark.timeout(60)
def test_a_killed_helper_is_said_with_the_remedy():
    with pytest.raises(WorkerDied, match=r"helper process .* was killed.*--num_workers 0"):
        list(load(Deadly(), BATCHES, 1, 10))
