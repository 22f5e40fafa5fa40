"""The settings of S2's commands, each with its default (cirtorch's)."""

import os
from dataclasses import dataclass
from typing import Literal

from retrieval import devices
from retrieval.errors import InputError


def flag(name: str) -> str:
    """The flag of a field: ``--loss-margin`` of ``loss_margin``."""
    return f"--{name.replace('_', '-')}"


HELP = {
    "arch": "network",
    "pool": "how the map becomes a descriptor",
    "local_whitening": "a linear layer on each cell before pooling",
    "regional": "pool R-MAC's regions and add them up",
    "whitening": "a linear layer after pooling",
    "neg_num": "hard negatives of a tuple",
    "query_size": "queries (tuples) of an epoch",
    "pool_size": "images of an epoch that negatives are mined from",
    "loss": "what is minimised",
    "loss_margin": "its margin (triplet: 0.1)",
    "optimizer": "how it is minimised",
    "lr": "learning rate; it falls by e^-0.01 an epoch, and is ten times as high for GeM's p",
    "momentum": "of sgd",
    "weight_decay": "decay of all weights but GeM's p",
    "batch_size": "tuples of a batch, over all processes",
    "update_every": "batches between two steps of the optimiser",
    "image_size": "longest side of training images",
    "epochs": "epochs",
    "seed": "of every random draw",
    "precision": "mixed precision",
    "workers": "processes that decode images",
    "print_freq": "batches between two messages",
    "test_freq": "epochs between two tests; 0: never",
    "val": "do not mine and measure the validation tuples; the best epoch is then the last",
    "test_whiten": "data set with pairs to learn a whitening on for tests",
    "feature_num": "local features an image, the strongest (S2: 1000 for resnet34)",
    "alpha_thresh": "features have more attention than this",
    "pca_photos": "folder of other photos, on which to learn a projection of local descriptors",
    "pca_dim": "dimensions of projected local descriptors",
    "pca_power": "0: plain PCA; 0.25: half-whitening; 0.5: whitening",
    "infer_batch_size": "images run at once when extracting",
}


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
    precision: devices.Precision = "bf16"

    def __post_init__(self) -> None:
        """Raise InputError for a value that cannot be trained with."""
        for name in ("batch_size", "update_every", "image_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{flag(name)} {getattr(self, name)}: at least 1 is needed")
        for name in ("epochs", "seed", "weight_decay", "loss_margin"):
            if getattr(self, name) < 0:
                raise InputError(f"{flag(name)} {getattr(self, name)}: must not be negative")
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
                raise InputError(f"{flag(name)} {getattr(self, name)}: at least {least} is needed")


@dataclass(frozen=True)
class LocalConfig:
    """Local features."""

    feature_num: int = 2000
    alpha_thresh: float = 0.0
