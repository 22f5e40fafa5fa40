"""Tuples of photos for training: mined, dealt out in batches, and described by a network."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from example.testing import describe
from retrieval import devices
from retrieval.configs.describe import ExtractConfig, Precision
from retrieval.configs.learn import MiningConfig
from retrieval.data import images
from retrieval.data.sfm_pairs import SfmPairs
from retrieval.errors import InputError
from retrieval.networks.delf import Delf
from retrieval.training import processes
from retrieval.training.sfm_tuples import TuplePhotos, Tuples, mine_tuples


def mine(
    model: Delf,
    pairs: SfmPairs,
    mining: MiningConfig,
    extract: ExtractConfig,
    world: processes.World,
    *seed: int,
) -> Tuples:
    """`mine_tuples` with the descriptors of ``model``; each process describes its share."""

    def describe_all(paths: Sequence[Path]) -> np.ndarray:
        own = describe(model, paths[world.rank :: world.size], extract)
        if world.size == 1:
            return own
        shares: list[Any] = [None] * world.size
        torch.distributed.all_gather_object(shares, own)
        descriptors = np.empty((len(paths), own.shape[1]), np.float32)
        for rank, share in enumerate(shares):
            descriptors[rank :: world.size] = share
        return descriptors

    return mine_tuples(pairs, mining, describe_all, *seed)


def batches(
    photos: TuplePhotos,
    batch_size: int,
    world: processes.World,
    *,
    first: int = 0,
    workers: int = 0,
    title: str = "",
) -> Iterator[list[list[torch.Tensor]]]:
    """From batch ``first`` on, this process's share of each: the photos of its tuples.

    InputError where a photo cannot be decoded.
    """
    count = len(photos)
    shares = [
        list(range(start + world.rank, min(start + batch_size, count), world.size))
        for start in range(first * batch_size, count, batch_size)
    ]
    loader = DataLoader(
        photos,
        batch_sampler=shares,
        collate_fn=list,
        num_workers=min(workers, len(shares)),
        worker_init_fn=devices.quiet_worker,
    )
    for items in tqdm(loader, desc=title, disable=None if world.is_main else True):
        errors = [item for item in items if isinstance(item, str)]
        if errors:
            raise InputError("; ".join(errors))
        yield items


def describe_tuple(
    model: Delf, photos: Sequence[torch.Tensor], precision: Precision
) -> torch.Tensor:
    """Photos (3, h, w) uint8 of any sizes -> (n, D) descriptors; those of one size together."""
    device = next(model.parameters()).device
    by_size: dict[torch.Size, list[int]] = {}
    for row, photo in enumerate(photos):
        by_size.setdefault(photo.shape, []).append(row)
    descriptors: dict[int, torch.Tensor] = {}
    for rows in by_size.values():
        batch = torch.stack([photos[row] for row in rows]).to(device)
        batch = images.normalize(batch.float() / 255)
        with devices.autocast(device, precision):
            found = model(batch.contiguous(memory_format=torch.channels_last))
        descriptors |= dict(zip(rows, found, strict=True))
    return torch.stack([descriptors[row] for row in range(len(photos))])


def labels_of(photos: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """What the losses call the photos of a tuple: query -1, positive 1, negatives 0."""
    return torch.tensor([-1, 1] + [0] * (len(photos) - 2), device=device)
