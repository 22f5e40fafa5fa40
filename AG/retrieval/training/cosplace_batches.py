"""The training images of a CosPlace epoch: which are drawn, and how they are augmented."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2

from retrieval.configs.learn import AugmentConfig
from retrieval.data import images
from retrieval.data.places import Group
from retrieval.training import processes


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
