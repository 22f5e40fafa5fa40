"""How a network learns: classes, augmentation, losses, tuples, length and rates."""

import os
from dataclasses import asdict, dataclass
from typing import Literal

from retrieval.configs.describe import Precision
from retrieval.errors import InputError

MarginKind = Literal["cosface", "arcface"]


def _flag(name: str) -> str:
    """The flag of a field as cirtorch writes it: ``--loss-margin`` of ``loss_margin``."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class GroupConfig:
    """How CosPlace cuts the map into classes and deals the classes into groups.

    A class is a cell of M metres × M metres × alpha degrees with at least min_images_per_class
    images. Classes of one group lie N cells apart in position and L cells in heading; the first
    groups_num groups are used.
    """

    M: int = 10
    alpha: int = 30
    N: int = 5
    L: int = 2
    groups_num: int = 8
    min_images_per_class: int = 10

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise InputError(f"--{name} {value}: at least 1 is needed")
        if self.alpha > 360:
            raise InputError(f"--alpha {self.alpha}: at most 360 degrees are possible")


@dataclass(frozen=True)
class AugmentConfig:
    """Training images: size and augmentation (CosPlace's values)."""

    image_size: int = 512
    brightness: float = 0.7
    contrast: float = 0.7
    saturation: float = 0.7
    hue: float = 0.5
    random_resized_crop: float = 0.5

    def __post_init__(self) -> None:
        if self.image_size < 32:
            raise InputError(f"--image_size {self.image_size}: at least 32 pixels are needed")
        if not 0 <= self.random_resized_crop < 1:
            raise InputError(f"--random_resized_crop {self.random_resized_crop}: not in [0, 1)")
        if not 0 <= self.hue <= 0.5:
            raise InputError(f"--hue {self.hue}: not in [0, 0.5]")


@dataclass(frozen=True)
class LossConfig:
    """Defaults of the DELG losses: S1's margin softmax, the paper's weights.

    CosPlace uses s = 30, m = 0.40; EigenPlaces s = 100; the DELG paper ArcFace with m = 0.1 and
    s = sqrt(2048) = 45.25.
    """

    global_loss: MarginKind = "cosface"
    margin_scale: float = 30.0
    margin: float = 0.40
    global_weight: float = 1.0
    attention_weight: float = 1.0
    reconstruction_weight: float = 10.0


@dataclass(frozen=True)
class TrainConfig:
    """Training: length, batches, learning rates (CosPlace's, and S1's where they differ)."""

    epochs_num: int = 50
    iterations_per_epoch: int = 10_000
    batch_size: int = 32
    lr: float = 1e-5
    classifiers_lr: float = 0.01
    seed: int = 0
    precision: Precision = "bf16"
    num_workers: int = 2
    checkpoint_minutes: float = 10.0
    skip_bad_images: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs_num", "iterations_per_epoch", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: at least 1 is needed")
        for name in ("lr", "classifiers_lr"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name} {getattr(self, name)}: must be above 0")
        if self.seed < 0 or self.num_workers < 0:
            raise InputError("--seed and --num_workers must not be negative")


@dataclass(frozen=True)
class MiningConfig:
    """Tuples of an epoch: negatives a query, queries, and the pool the negatives are from."""

    neg_num: int = 5
    query_size: int = 2000
    pool_size: int = 20_000

    def __post_init__(self) -> None:
        """Raise InputError for a number below 1."""
        for name in ("neg_num", "query_size", "pool_size"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} {getattr(self, name)}: at least 1 is needed")


@dataclass(frozen=True)
class TuneConfig:
    """Training: loss, optimiser, batches of tuples (cirtorch's defaults)."""

    loss: Literal["contrastive", "triplet"] = "contrastive"
    loss_margin: float = 0.7
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-6
    momentum: float = 0.9
    weight_decay: float = 1e-6
    batch_size: int = 5
    update_every: int = 1
    image_size: int = 1024
    epochs: int = 100
    seed: int = 0
    precision: Precision = "bf16"

    def __post_init__(self) -> None:
        """Raise InputError for a value that cannot be trained with."""
        for name in ("batch_size", "update_every", "image_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{_flag(name)} {getattr(self, name)}: at least 1 is needed")
        for name in ("epochs", "seed", "weight_decay", "loss_margin"):
            if getattr(self, name) < 0:
                raise InputError(f"{_flag(name)} {getattr(self, name)}: must not be negative")
        if not self.lr > 0:
            raise InputError(f"--lr {self.lr}: must be above 0")


@dataclass(frozen=True)
class RunConfig:
    """How a training goes on; nothing here changes what is learned."""

    workers: int = min(8, os.cpu_count() or 1)
    print_freq: int = 10
    test_freq: int = 1
    val: bool = True
    test_whiten: str = ""
    infer_batch_size: int = 16

    def __post_init__(self) -> None:
        """Raise InputError for a number that counts nothing."""
        for name, least in (("workers", 0), ("print_freq", 1), ("infer_batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{_flag(name)} {getattr(self, name)}: at least {least} is needed")
