"""The training images of a CosPlace epoch: which are drawn, augmented, and dealt out in batches."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import v2

from retrieval.configs.learn import AugmentConfig, Recipe
from retrieval.data import images
from retrieval.data.loading import load
from retrieval.data.places import Group
from retrieval.errors import InputError
from retrieval.training import processes

log = logging.getLogger(__name__)


class Augmentation:
    """Random crop and colour jitter of one image; the draw depends on the seed alone."""

    def __init__(self, config: AugmentConfig) -> None:
        size = config.image_size
        crop = v2.RandomResizedCrop((size, size), scale=(1 - config.random_resized_crop, 1.0))
        # The crop goes first: it leaves fewer pixels to jitter.
        jitter = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
        self._transform = v2.Compose([crop, jitter])

    def __call__(self, image: torch.Tensor, seed: int) -> torch.Tensor:
        """(3, H, W) in [0, 1] to (3, size, size); torch's own random state is left alone."""
        with torch.random.fork_rng(devices=[image.device] if image.is_cuda else []):
            torch.manual_seed(seed)
            return self._transform(image)


class Draws(Dataset):
    """The training draws of one epoch: draw ``p`` is a random image of class ``order[p]``.

    All classes come once, in a random order, before any comes again. Draw ``p`` is sample
    ``p % batch_size`` of step ``p // batch_size`` and a function of (seed, epoch, p) alone.
    An item is (image (3, H, W) float in [0, 1], label, augmentation seed, error message or "").
    """

    def __init__(
        self,
        paths: Sequence[Path],
        group: Group,
        seed: int,
        epoch: int,
        augmentation: Augmentation | None,
        image_size: int,
    ) -> None:
        """Without an ``augmentation`` images are only resized; it then follows on the GPU."""
        self._paths = paths
        self._classes = group.classes
        self._seed = (seed, epoch)
        self._augmentation = augmentation
        self._image_size = image_size
        self._pass, self._order = -1, np.empty(0, np.int64)

    def _label(self, draw: int) -> int:
        number, place = divmod(draw, len(self._classes))
        if number != self._pass:
            rng = np.random.default_rng([*self._seed, 0, number])
            self._pass, self._order = number, rng.permutation(len(self._classes))
        return int(self._order[place])

    def __getitem__(self, draw: int) -> tuple[torch.Tensor, int, int, str]:
        label = self._label(draw)
        rows = self._classes[label]
        row = rows[np.random.default_rng([*self._seed, 1, draw]).integers(len(rows))]
        seed = processes.mix_seed(*self._seed, 2, draw)
        size = self._image_size
        try:
            pixels = images.read_image(self._paths[row])
        except images.ImageError as error:
            return torch.zeros(3, size, size), label, seed, str(error)
        image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        if self._augmentation is not None:
            image = self._augmentation(image, seed)
        else:
            image = v2.functional.resize(image, [size, size], antialias=True)
        return image, label, seed, ""


class GroupBatches:
    """The training images ``paths`` in batches, of which each process takes its share."""

    def __init__(
        self,
        paths: Sequence[Path],
        recipe: Recipe,
        world: processes.World,
        augmentation_device: str,
    ) -> None:
        """Raises InputError where the batch cannot be shared out."""
        self._paths, self._recipe, self._world = paths, recipe, world
        self._share = world.share_of(recipe.train.batch_size)
        augmentation = Augmentation(recipe.augment)
        on_device = torch.device(augmentation_device).type != "cpu"
        self._augment_here = augmentation if on_device else None
        self._augment_in_workers = None if on_device else augmentation

    def of_epoch(
        self, group: Group, epoch: int, first: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """From step ``first`` to the end of the epoch: images (B, 3, H, W), labels (B,).

        Images are normalised and on the device. InputError for one that cannot be decoded.
        """
        train, device = self._recipe.train, self._world.device
        size = self._recipe.augment.image_size
        loaded = load(
            Draws(self._paths, group, train.seed, epoch, self._augment_in_workers, size),
            self._steps(first),
            train.num_workers,
            self._share * 3 * size * size * 4,
            default_collate,
            pin_memory=device.type == "cuda",
        )
        for batch, labels, seeds, messages in loaded:
            whole = self._whole(messages)
            batch = batch[whole].to(device, non_blocking=True)
            if self._augment_here is not None:
                pairs = zip(batch, seeds[whole].tolist(), strict=True)
                batch = torch.stack([self._augment_here(image, seed) for image, seed in pairs])
            batch = images.normalize(batch).contiguous(memory_format=torch.channels_last)
            yield batch, labels[whole].to(device, non_blocking=True)

    def _steps(self, first: int) -> list[list[int]]:
        """The draws that this process takes in each step."""
        train, own = self._recipe.train, self._world.rank * self._share
        starts = [step * train.batch_size + own for step in range(train.iterations_per_epoch)]
        return [list(range(start, start + self._share)) for start in starts[first:]]

    def _whole(self, messages: Sequence[str]) -> torch.Tensor:
        """(B,) bool: which images of a batch were decoded; InputError if they all had to be."""
        broken = [message for message in messages if message]
        if broken and (len(broken) == len(messages) or not self._recipe.train.skip_bad_images):
            raise InputError("; ".join(broken) + " (--skip_bad_images goes on without them)")
        for message in broken:
            log.warning("skipped: %s", message)
        return torch.tensor([not message for message in messages])
