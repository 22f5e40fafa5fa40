"""How a network learns: classes, augmentation, losses, tuples, length and rates."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from retrieval.configs.describe import PRECISION, SKIP, Precision
from retrieval.configs.setting import Config, setting

MarginKind = Literal["cosface", "arcface"]

BEST_MODEL = "best_model.pth"  # in a run folder: the weights of the best epoch

# Meanings that two configs share; what comes after a colon is one config's own.
SEED = "seed of all random draws"
EPOCHS = "how many epochs to train"
BATCH = "training samples of a step, over all processes"
RATE = "learning rate of the network"
SIZE = "size of the photos"


@dataclass(frozen=True)
class GroupConfig(Config, group="Classes"):
    """How CosPlace cuts the map into classes and deals the classes into groups.

    A class is a cell of M metres × M metres × alpha degrees with at least min_images_per_class
    images. Classes of one group lie N cells apart in position and L cells in heading; the first
    groups_num groups are used.
    """

    M: int = setting(10, "side of a class's square cell", "METRES", least=1)
    alpha: int = setting(
        30, "directions of one class lie in this angle", "DEGREES", least=1, most=360
    )
    N: int = setting(5, "classes of one group lie this many cells apart", "CELLS", least=1)
    L: int = setting(
        2,
        "classes of one group look the same way, or differ in heading by at least L x --alpha "
        "degrees",
        "L",
        least=1,
    )
    groups_num: int = setting(
        8, "groups of classes to train (1 for SF-XS and the toy city)", least=1
    )
    min_images_per_class: int = setting(10, "classes with fewer photos are left out", least=1)


@dataclass(frozen=True)
class AugmentConfig(Config, group="Augmentation"):
    """Training images: size and augmentation (CosPlace's values)."""

    image_size: int = setting(
        512, f"{SIZE}: the side of a square training image", "PIXELS", group="Photos", least=32
    )
    brightness: float = setting(0.7, "largest change of brightness, as a share of it", least=0)
    contrast: float = setting(0.7, "largest change of contrast", least=0)
    saturation: float = setting(0.7, "largest change of saturation", least=0)
    hue: float = setting(0.5, "largest change of hue, as a share of the circle", least=0, most=0.5)
    random_resized_crop: float = setting(
        0.5, "largest share of a photo that a random crop leaves out (below 1)", least=0, most=0.999
    )


@dataclass(frozen=True)
class LossConfig(Config, group="Losses"):
    """Losses of DELG: the margin softmax of the first PyTorch DELG, the paper's weights.

    CosPlace uses s = 30, m = 0.40; EigenPlaces s = 100; the DELG paper ArcFace with m = 0.1 and
    s = sqrt(2048) = 45.25.
    """

    global_loss: MarginKind = setting("cosface", "margin loss of the global descriptors")
    margin_scale: float = setting(30.0, "scale of the margin loss (EigenPlaces: 100)")
    margin: float = setting(0.40, "margin of the margin loss")
    global_weight: float = setting(1.0, "weight of the margin loss in the sum")
    attention_weight: float = setting(1.0, "weight of the attention's loss in the sum")
    reconstruction_weight: float = setting(10.0, "weight of the autoencoder's loss in the sum")


@dataclass(frozen=True)
class TrainConfig(Config, group="Training"):
    """Length, batches and learning rates: CosPlace's, and the first PyTorch DELG's."""

    epochs_num: int = setting(
        50, f"{EPOCHS}: each trains one group", flag="epochs", names=("epochs_num",), least=1
    )
    iterations_per_epoch: int = setting(10_000, "steps of an epoch", least=1)
    batch_size: int = setting(32, f"{BATCH}: photos", least=1)
    lr: float = setting(1e-5, RATE, above=0)
    classifiers_lr: float = setting(0.01, "learning rate of the classifiers", above=0)
    seed: int = setting(0, SEED, group="Run", least=0)
    precision: Precision = setting("auto", PRECISION, group="Run")
    num_workers: int = setting(
        2, "helper processes: they read photos", names=("workers",), group="Run", least=0
    )
    checkpoint_minutes: float = setting(
        10.0, "write a checkpoint this often inside an epoch too", "MINUTES"
    )
    skip_bad_images: bool = setting(False, SKIP, group="Run")


@dataclass(frozen=True)
class Recipe(Config):
    """The settings that decide, with the images and the first weights, what is learned."""

    groups: GroupConfig = field(default_factory=GroupConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    only_local: bool = False

    def decisive(self) -> dict[str, Any]:
        """All settings by name, apart from how long and with what to train."""
        free = {"epochs_num", "num_workers", "checkpoint_minutes", "skip_bad_images"}
        configs = (self.groups, self.train, self.augment, self.losses)
        values = {name: v for config in configs for name, v in asdict(config).items()}
        return {n: v for n, v in values.items() if n not in free} | {"only_local": self.only_local}


@dataclass(frozen=True)
class LoopConfig:
    """What the training loop itself needs to know; ``seed`` is that of dropout and the like."""

    seed: int
    precision: Precision
    checkpoint_minutes: float = TrainConfig.checkpoint_minutes


@dataclass(frozen=True)
class Where:
    """Where a training runs and writes; nothing here changes what is learned.

    root: run folders lie in it. resume_train: a checkpoint to go on from, in a new run folder.
    """

    root: Path
    device: str = "auto"
    augmentation_device: str = "cpu"
    resume_train: Path | None = None


@dataclass(frozen=True)
class MiningConfig(Config, group="Tuples"):
    """The tuples of an epoch: a query, a photo that shows the same, photos that do not."""

    neg_num: int = setting(5, "hard negatives of a tuple", least=1)
    query_size: int = setting(2000, "tuples of an epoch", least=1)
    pool_size: int = setting(
        20_000, "photos of an epoch among which hard negatives are looked for", least=1
    )


@dataclass(frozen=True)
class TuneConfig(Config, group="Training"):
    """Fine-tuning on tuples: loss, optimiser, batches (cirtorch's defaults).

    The learning rate falls by the factor exp(-0.01) an epoch. GeM's power learns ten times as fast,
    and does not decay.
    """

    loss: Literal["contrastive", "triplet"] = setting("contrastive", "loss of a tuple")
    loss_margin: float = setting(0.7, "margin of that loss (triplet: 0.1)", least=0)
    optimizer: Literal["adam", "sgd"] = setting("adam", "how the loss is minimised")
    lr: float = setting(1e-6, RATE, above=0)
    momentum: float = setting(0.9, "momentum of sgd")
    weight_decay: float = setting(1e-6, "decay of all weights but the power of GeM", least=0)
    batch_size: int = setting(5, f"{BATCH}: tuples", least=1)
    update_every: int = setting(1, "batches between two steps of the optimiser", least=1)
    image_size: int = setting(
        1024, f"{SIZE}: the longest side of a training image", "PIXELS", group="Photos", least=1
    )
    epochs: int = setting(100, EPOCHS, names=("epochs_num",), least=0)
    seed: int = setting(0, SEED, group="Run", least=0)
    precision: Precision = setting("auto", PRECISION, group="Run")
    skip_bad_images: bool = setting(False, SKIP, group="Run")


@dataclass(frozen=True)
class RunConfig(Config, group="Run"):
    """How a fine-tuning goes on; nothing here changes what is learned."""

    print_freq: int = setting(10, "batches between two messages", least=1)
    test_freq: int = setting(1, "epochs between two tests; 0: never", least=0)
    val: bool = setting(True, "do not validate; the best epoch is then the last")
    test_whiten: str = setting(
        "", "training set on whose pairs to learn a whitening for the tests", "NAME"
    )
