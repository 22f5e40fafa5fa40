"""How photos are described: networks, SIFT, extraction, projection of local features."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retrieval.errors import InputError

Precision = Literal["bf16", "fp16", "fp32"]


# The keys of the table in networks/backbone.py.
BACKBONE_NAMES = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    "vgg16",
    *(f"efficientnet_b{width}" for width in range(8)),
    "efficientnet_lite0",
)

POOLS = ("mac", "spoc", "gem")


Layer = Literal["layer3", "layer4"]


@dataclass(frozen=True)
class DelgConfig:
    """What the network is made of; a checkpoint carries it.

    backbone:         one of BACKBONE_NAMES.
    head:             "delg": L2 over channels, GeM, Linear, L2 (as S1 and CosPlace);
                      "gem": GeM, L2, for backbones used as they are.
    fc_output_dim:    size of the global descriptor; with head "gem" it is the global map's depth.
    reduction:        an autoencoder makes the local descriptors, `fm_reduction_dim` wide; without
                      it they are the local map itself.
    attention:        "learned", or "norm": the L2 norm of the local map, where nothing is trained,
                      averaged over `norm_window` x `norm_window` cells.
    attention_dim:    width of the hidden layer of the learned attention.
    train_all_layers: otherwise the backbone's early layers are frozen.
    """

    backbone: str = "resnet18"
    head: Literal["delg", "gem"] = "delg"
    fc_output_dim: int = 512
    gem_p: float = 3.0
    gem_eps: float = 1e-6
    reduction: bool = False
    fm_reduction_dim: int = 128
    attention: Literal["learned", "norm"] = "learned"
    attention_dim: int = 512
    norm_window: int = 3
    train_all_layers: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for a value that no network can have."""
        object.__setattr__(self, "backbone", self.backbone.lower())  # CosPlace writes ResNet18.
        if self.backbone not in BACKBONE_NAMES:
            raise InputError(
                f"--backbone {self.backbone}: expected one of {', '.join(BACKBONE_NAMES)}"
            )
        if self.head not in ("delg", "gem"):
            raise InputError(f"--head {self.head}: expected delg or gem")
        if self.attention not in ("learned", "norm"):
            raise InputError(f"--attention {self.attention}: expected learned or norm")
        for name in ("fc_output_dim", "fm_reduction_dim", "attention_dim"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: expected at least 1")
        if self.norm_window < 1 or self.norm_window % 2 == 0:
            raise InputError(f"--norm_window {self.norm_window}: expected an odd number")


@dataclass(frozen=True)
class DelfConfig:
    """What the network is made of; a checkpoint carries it.

    arch:            one of BACKBONE_NAMES, whose local and global map stand for layer3 and layer4
                     where it is no ResNet.
    pool:            how the map becomes a descriptor; GeM's power is learned.
    local_whitening: a linear layer on each cell before pooling.
    regional:        pool R-MAC's regions, each with its own linear layer, and add them up.
    whitening:       a linear layer after pooling.
    attention:       the map is weighted by a learned attention before it is pooled.
    layer:           the map that is pooled, and that the attention is trained on.
    local_layer:     the map whose cells are the local features.
    """

    arch: str = "resnet101"
    pool: Literal["mac", "spoc", "gem"] = "gem"
    local_whitening: bool = False
    regional: bool = False
    whitening: bool = False
    attention: bool = False
    layer: Layer = "layer4"
    local_layer: Layer = "layer4"

    def __post_init__(self) -> None:
        """Raise InputError for a value that no network can have."""
        if self.arch not in BACKBONE_NAMES:
            raise InputError(f"--arch {self.arch}: expected one of {', '.join(BACKBONE_NAMES)}")
        if self.pool not in POOLS:
            raise InputError(f"--pool {self.pool}: expected one of {', '.join(POOLS)}")
        for name in ("layer", "local_layer"):
            if getattr(self, name) not in ("layer3", "layer4"):
                raise InputError(f"--layer {getattr(self, name)}: expected layer3 or layer4")
        if (self.layer, self.local_layer) == ("layer3", "layer4"):
            raise InputError(
                "--layer layer4: this network's attention is of layer3; use --layer layer3"
            )


@dataclass(frozen=True)
class SiftConfig:
    """SIFT features; the defaults are S2's.

    feature_num: the strongest of an image are kept.
    root:        RootSIFT: the square root of the L1-normalised descriptor (Arandjelović and
                 Zisserman, "Three things everyone should know", CVPR 2012).
    upright:     every feature has angle 0, as photos are mostly taken upright; one feature a place.
    longest_side: larger photos are reduced to this.
    """

    feature_num: int = 500
    root: bool = False
    upright: bool = False
    longest_side: int = 1024
    contrast_threshold: float = 0.01
    edge_threshold: float = 30.0
    sigma: float = 1.6

    def __post_init__(self) -> None:
        for name in ("feature_num", "longest_side"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: at least 1 is needed")

    @property
    def directory(self) -> str:
        """The name of the directory of these features: ``sift`` for S2's."""
        if self == SiftConfig():
            return "sift"
        kind = ("root" if self.root else "") + "sift" + ("_upright" if self.upright else "")
        size = "" if self.longest_side == SiftConfig.longest_side else f"_{self.longest_side}px"
        return f"{kind}_{self.feature_num}{size}"


@dataclass(frozen=True)
class ExtractConfig:
    """Extraction at test time: image size, scales, number of local features.

    resize: ``none``, ``shorter`` (the shorter side becomes ``size``, as CosPlace does) or
        ``longest`` (a longest side above ``size`` becomes ``size``, as for landmarks).
    scales, local_scales: factors applied after that, for global and for local features.
    max_features: the strongest features of an image, over all scales, are kept.
    min_score: features with less attention are dropped.
    infer_batch_size, num_workers, precision: how, not what; bf16 moves results by rounding.
    """

    resize: Literal["none", "shorter", "longest"] = "none"
    size: int = 512
    scales: tuple[float, ...] = (1.0,)
    local_scales: tuple[float, ...] = (1.0,)
    max_features: int = 1000
    min_score: float = 0.0
    infer_batch_size: int = 16
    num_workers: int = 2
    precision: Precision = "bf16"

    def __post_init__(self) -> None:
        for name in ("size", "max_features", "infer_batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: at least 1 is needed")
        for name in ("scales", "local_scales"):
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise InputError(f"--{name} must be positive numbers, not {getattr(self, name)}")

    def target_size(self, full: tuple[int, int], part: tuple[int, int]) -> tuple[int, int]:
        """The (width, height) that a ``part`` of an image of size ``full`` is resized to.

        A cropped query is scaled by the factor of its whole image (revisited Oxford/Paris).
        """
        factor = 1.0
        if self.resize == "shorter":
            factor = self.size / min(full)
        elif self.resize == "longest":
            factor = min(1.0, self.size / max(full))
        return max(1, round(part[0] * factor)), max(1, round(part[1] * factor))


@dataclass(frozen=True)
class PcaConfig:
    """Projection of local descriptors (none without photos to learn it on).

    pca_power: each axis is scaled by its eigenvalue to the minus this power. 0 is plain PCA, ½
    whitening; ¼, half-whitening, serves local descriptors best.
    """

    pca_photos: Path | None = None
    pca_dim: int = 128
    pca_power: float = 0.25


@dataclass(frozen=True)
class LocalConfig:
    """Local features."""

    feature_num: int = 2000
    alpha_thresh: float = 0.0
