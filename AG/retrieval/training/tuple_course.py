"""Fine-tuning of a `Delf` on mined tuples, as Radenovic et al. 2018 do it."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrieval import checkpoint, devices, extraction, progress
from retrieval.configs.describe import ExtractConfig, Precision
from retrieval.configs.learn import MiningConfig, TuneConfig
from retrieval.configs.run import Resources
from retrieval.data.contents import fingerprint
from retrieval.data.images import normalize
from retrieval.data.loading import load
from retrieval.data.photo_sets import as_photos
from retrieval.data.sfm_pairs import SfmPairs
from retrieval.errors import InputError
from retrieval.networks.delf import Delf
from retrieval.training import processes
from retrieval.training.losses import contrastive, triplet
from retrieval.training.sfm_tuples import TuplePhotos, Tuples, mine_tuples

log = logging.getLogger(__name__)

LOSSES = {"contrastive": contrastive, "triplet": triplet}
DECAY = 0.01  # the learning rate of epoch e is exp(-DECAY · e) of the first's


class TupleCourse:
    """The course: a network, and the tuples that it learns from in the present epoch.

    tuples: None until they are mined. Checkpoints hold them, since a network that has learned more
    would mine others.
    """

    def __init__(
        self,
        model: Delf,
        tune: TuneConfig,
        mining: MiningConfig,
        resources: Resources,
        world: processes.World,
        start: Mapping[str, Any],
    ) -> None:
        """``start``: settings that say what ``model`` starts from and which parts of it learn.

        Raises InputError where the batch cannot be shared out.
        """
        world.share_of(tune.batch_size)
        self.model = model.to(device=world.device).to(memory_format=torch.channels_last)
        groups = model.parameter_groups(tune.lr, tune.weight_decay)
        for group in groups:
            group["first_lr"] = group["lr"]
        self.optimizer = (
            torch.optim.Adam(groups)
            if tune.optimizer == "adam"
            else torch.optim.SGD(groups, momentum=tune.momentum)
        )
        self.tuples: Tuples | None = None
        tuning = asdict(tune)
        del tuning["epochs"], tuning["skip_bad_images"]
        self.settings = {**asdict(model.config), **asdict(mining), **tuning, **start}
        self._tune, self._resources, self._world = tune, resources, world

    def ground(self, pairs: Mapping[str, SfmPairs]) -> dict[str, str]:
        """The present weights and the photos of each mode, as hashes: what a run begins on."""
        photos = {f"{mode} photos": fingerprint(each.paths) for mode, each in pairs.items()}
        if self.settings["pretrained"] == "none":  # the seed decides
            return photos
        return photos | {"weights": checkpoint.weights_hash(self.model.state_dict())[:16]}

    def begin(self, epoch: int) -> None:
        """Set the network to learn, at the epoch's rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["first_lr"] * math.exp(-DECAY * epoch)
        self.model.train()

    def mine(self, pairs: SfmPairs, mining: MiningConfig, *seed: int) -> Tuples:
        """Tuples by the present network; each process describes its share of the photos."""
        rank, size = self._world.rank, self._world.size
        tune = self._tune
        reading = ExtractConfig(
            "longest",
            tune.image_size,
            precision=tune.precision,
            skip_bad_images=tune.skip_bad_images,
        )

        def describe(paths: Sequence[Path]) -> np.ndarray:
            with progress.bar("descriptors", len(paths[rank::size])):
                photos = as_photos(paths[rank::size])
                own = extraction.global_descriptors(self.model, photos, reading, self._resources)
            descriptors = np.empty((len(paths), own.shape[1]), np.float32)
            for start, share in enumerate(self._world.gather(own)):
                descriptors[start::size] = share
            return descriptors

        return mine_tuples(pairs, mining, describe, self._tune.seed, *seed)

    def batches(
        self, pairs: SfmPairs, tuples: Tuples, first: int = 0
    ) -> Iterator[list[list[torch.Tensor]]]:
        """From batch ``first`` on, this process's share of each: the images of its tuples.

        InputError where a photo cannot be decoded; or a warning, and its tuple is left out.
        """
        count, size = len(tuples), self._tune.batch_size
        shares = [
            list(range(start + self._world.rank, min(start + size, count), self._world.size))
            for start in range(first * size, count, size)
        ]
        side = self._tune.image_size
        photos = TuplePhotos(pairs, tuples, side)
        largest = sum(len(tuples.rows(row)) for row in max(shares, key=len, default=[]))
        batch_bytes = largest * 3 * side * side
        for items in load(photos, shares, self._resources.num_workers, batch_bytes):
            errors = [item for item in items if isinstance(item, str)]
            if errors and (len(errors) == len(items) or not self._tune.skip_bad_images):
                raise InputError("; ".join(errors) + " (--skip_bad_images goes on without them)")
            for error in errors:
                log.warning("skipped: %s", error)
            yield [item for item in items if not isinstance(item, str)]

    def count_batches(self, tuples: Tuples) -> int:
        """How many batches these tuples make; the last may be smaller."""
        return math.ceil(len(tuples) / self._tune.batch_size)

    def loss(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """The loss of one tuple: images (3, h, w) uint8, a query, a positive, and negatives."""
        descriptors = describe_tuple(self.model, images, self._tune.precision)
        return LOSSES[self._tune.loss](descriptors, self._tune.loss_margin)

    def state(self) -> dict[str, Any]:
        """The optimiser and the tuples."""
        mined = None if self.tuples is None else vars(self.tuples)
        return {
            "optimizer": self.optimizer.state_dict(),
            "tuples": mined and {name: torch.from_numpy(rows) for name, rows in mined.items()},
        }

    def load(self, state: Mapping[str, Any], source: Path) -> None:
        """Take over what `state` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        mined = state["tuples"]
        self.tuples = mined and Tuples(**{name: rows.numpy() for name, rows in mined.items()})


def describe_tuple(
    model: Delf, images: Sequence[torch.Tensor], precision: Precision
) -> torch.Tensor:
    """Images (3, h, w) uint8 of any sizes -> (n, D) descriptors; those of one size together."""
    device = next(model.parameters()).device
    by_size: dict[torch.Size, list[int]] = {}
    for row, image in enumerate(images):
        by_size.setdefault(image.shape, []).append(row)
    descriptors: dict[int, torch.Tensor] = {}
    for rows in by_size.values():
        batch = torch.stack([images[row] for row in rows]).to(device)
        batch = normalize(batch.float() / 255)
        with devices.autocast(device, precision):
            found = model(batch.contiguous(memory_format=torch.channels_last))
        descriptors |= dict(zip(rows, found, strict=True))
    return torch.stack([descriptors[row] for row in range(len(images))])
