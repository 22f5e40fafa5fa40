"""How photos are described: networks, SIFT, extraction, projection of local features."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retrieval.configs.setting import Config, setting
from retrieval.errors import InputError

Precision = Literal["auto", "bf16", "fp16", "fp32"]

# SIFT, and the keys of the table in voc_tree/learned.py.
ExtractorName = Literal["sift", "aliked", "disk", "xfeat"]


# The keys of the table in networks/backbone.py.
BACKBONE_NAMES = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    "vgg16",
    *(f"efficientnet_b{width}" for width in range(8)),
    *(f"efficientnet_lite{width}" for width in range(3)),
)

BACKBONE = (
    "resnet18, 34, 50, 101 or 152, vgg16, efficientnet_b0 to b7, or efficientnet_lite0 to lite2"
)
FEATURES = "local features of a photo that are kept, those with the highest score"
SKIP = "leave out photos that cannot be read, and say how many; else they are an error"
PRECISION = (
    "arithmetic of the network; bf16 and fp16 are mixed precision. auto: bf16 where the GPU or "
    "processor computes it, else fp32, since there bf16 takes many times as long"
)

GLOBAL_SCALES = "scales of a photo at which its global descriptor is taken; the mean is used"
LOCAL_SCALES = "scales of a photo at which its local features are taken"
ATTENTION = (
    "how keypoints are scored. learned: by the trained attention; norm: by the norm of the "
    "activation, for networks that have no trained attention"
)


Layer = Literal["layer3", "layer4"]


@dataclass(frozen=True)
class DelgConfig(Config, group="Network"):
    """What a DELG network is made of; a checkpoint carries it.

    With head "delg" the global descriptor is L2 over channels, GeM, Linear, L2 (as in the first
    PyTorch DELG and in CosPlace); with "gem" it is GeM, L2, for backbones used as they are, and its
    size is the depth of the backbone's last map. Attention "norm" is averaged over
    `norm_window` x `norm_window` cells. `attention_dim` is the width of the hidden layer of the
    learned attention.
    """

    backbone: str = setting("resnet18", BACKBONE, names=("arch",), choices=BACKBONE_NAMES)
    head: Literal["delg", "gem"] = setting(
        "delg",
        "how the global descriptor is made. delg: GeM pooling and a trained linear layer; gem: GeM "
        "pooling alone, for a backbone that is used as it is",
    )
    fc_output_dim: int = setting(512, "dimensions of the global descriptor", least=1)
    gem_p: float = 3.0
    gem_eps: float = 1e-6
    reduction: bool = setting(
        False, "let an autoencoder make short local descriptors of the backbone's map"
    )
    fm_reduction_dim: int = setting(
        128, "dimensions of the local descriptors that --reduction makes", least=1
    )
    attention: Literal["learned", "norm"] = setting("learned", ATTENTION)
    attention_dim: int = setting(512, least=1)
    norm_window: int = setting(3, least=1)
    train_all_layers: bool = setting(
        False, "train the early layers of the backbone too; otherwise they stay as they are"
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbone", self.backbone.lower())  # CosPlace writes ResNet18.
        super().__post_init__()
        if self.norm_window % 2 == 0:
            raise InputError(f"norm_window {self.norm_window}: expected an odd number")

    @property
    def weight_fields(self) -> tuple[str, ...]:
        """The fields that decide which weights the network has."""
        names = ["backbone", "head"] + ["fc_output_dim"] * (self.head == "delg")
        names += ["attention_dim"] * (self.attention == "learned")
        names += ["reduction"] + ["fm_reduction_dim"] * self.reduction
        return tuple(names)


@dataclass(frozen=True)
class DelfConfig(Config, group="Network"):
    """What a DELF network is made of; a checkpoint carries it.

    attention:   "learned": the map is weighted by it before it is pooled, and it scores the local
                 features; "norm": nothing is weighted, and a local feature is scored by the L2 norm
                 of its cell, averaged as `DelgConfig` does.
    layer:       the map that is pooled, and that the attention is trained on.
    local_layer: the map whose cells are the local features.

    Of a backbone that is no ResNet, the local and the global map stand for layer3 and layer4.
    """

    arch: str = setting(
        "resnet101", BACKBONE, flag="backbone", names=("arch",), choices=BACKBONE_NAMES
    )
    pool: Literal["mac", "spoc", "gem"] = setting(
        "gem",
        "how a map becomes a global descriptor: by the maximum, the mean, or a generalised mean "
        "with a trained power",
    )
    local_whitening: bool = setting(False, "put a linear layer on each cell before pooling")
    regional: bool = setting(
        False, "pool the regions of R-MAC, each with a linear layer of its own, and add them up"
    )
    whitening: bool = setting(False, "put a linear layer after pooling")
    attention: Literal["learned", "norm"] = "norm"
    layer: Layer = "layer4"
    local_layer: Layer = "layer4"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.layer, self.local_layer) == ("layer3", "layer4"):
            raise InputError(
                "--layer layer4: this network's attention is of layer3; use --layer layer3"
            )

    @property
    def weight_fields(self) -> tuple[str, ...]:
        """The fields that decide which weights the network has, and what they are trained on."""
        names = ("arch", "pool", "local_whitening", "regional", "whitening")
        return (*names, "layer") if self.attention == "learned" else names


@dataclass(frozen=True)
class SiftConfig(Config, group="Local features"):
    """SIFT features; the defaults are those of delf_pytorch.

    RootSIFT is of Arandjelović and Zisserman, "Three things everyone should know", CVPR 2012.
    Upright features serve photos that were taken upright, as most are; one feature a place.
    """

    feature_num: int = setting(500, FEATURES, flag="max_features", names=("feature_num",), least=1)
    root: bool = setting(
        False, "RootSIFT: take the square roots of descriptors whose sum has been made 1"
    )
    upright: bool = setting(False, "give every feature the angle 0")
    longest_side: int = setting(
        1024, "reduce larger photos until their longest side is this", "PIXELS", least=1
    )
    contrast_threshold: float = 0.01
    edge_threshold: float = 30.0
    sigma: float = 1.6

    @property
    def directory(self) -> str:
        """The name of the directory of these features: ``sift`` for those of delf_pytorch."""
        if self == SiftConfig():
            return "sift"
        kind = ("root" if self.root else "") + "sift" + ("_upright" if self.upright else "")
        size = "" if self.longest_side == SiftConfig().longest_side else f"_{self.longest_side}px"
        return f"{kind}_{self.feature_num}{size}"


@dataclass(frozen=True)
class LearnedConfig(Config):
    """Features of a learned extractor; the fields mean what those of `SiftConfig` mean.

    extractor: a key of the table in voc_tree/learned.py.
    """

    extractor: str
    feature_num: int = 500
    longest_side: int = 1024

    @property
    def directory(self) -> str:
        """The name of the directory of these features: ``aliked`` for the default settings."""
        count = "" if self.feature_num == LearnedConfig.feature_num else f"_{self.feature_num}"
        size = "" if self.longest_side == LearnedConfig.longest_side else f"_{self.longest_side}px"
        return f"{self.extractor}{count}{size}"


@dataclass(frozen=True)
class ExtractConfig(Config, group="Local features"):
    """Extraction at test time: image size, scales, number of local features.

    resize: "none", "shorter" (the shorter side becomes ``size``, as CosPlace does) or "longest" (a
        longest side above ``size`` becomes ``size``, as is usual for landmarks).

    Both lists of scales apply after that. Of the features of an image over all scales the
    strongest `max_features` are kept. bf16 moves results by rounding.
    """

    resize: Literal["none", "shorter", "longest"] = "none"
    size: int = setting(512, least=1)
    scales: tuple[float, ...] = setting(
        (1.0,),
        GLOBAL_SCALES,
        "X",
        flag="global_scales",
        names=("scales",),
        group="Photos",
        above=0,
    )
    local_scales: tuple[float, ...] = setting((1.0,), LOCAL_SCALES, "X", above=0)
    max_features: int = setting(1000, FEATURES, names=("feature_num",), least=1)
    min_score: float = setting(
        0.0, "score that a local feature must have: at least this", names=("alpha_thresh",)
    )
    # Some 400 MB: more than the largest cameras of phones give.
    max_pixels: int = setting(
        128_000_000,
        "a photo of which more than this would be decoded is an error",
        "PIXELS",
        group="Photos",
        least=1,
    )
    precision: Precision = setting("auto", PRECISION, group="Run")
    skip_bad_images: bool = setting(False, SKIP, group="Run")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scales", "local_scales"):
            if not getattr(self, name):
                raise InputError(f"{name}: at least one is needed")

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
class PcaConfig(Config, group="Local features"):
    """Projection of local descriptors by principal components, learned on other photos.

    Each axis is divided by its eigenvalue to the `pca_power`; a quarter, half-whitening, serves
    local descriptors best.
    """

    pca_photos: Path | None = setting(
        None, "folder of other photos, to learn a projection of local descriptors on", "FOLDER"
    )
    pca_dim: int = setting(128, "dimensions of the projected descriptors", least=1)
    pca_power: float = setting(0.25, "0: plain PCA; 0.25: half-whitening; 0.5: whitening")


@dataclass(frozen=True)
class LocalConfig(Config, group="Local features"):
    """The local features of a DELF network that are kept."""

    feature_num: int = setting(2000, FEATURES, flag="max_features", names=("feature_num",), least=1)
    alpha_thresh: float = setting(
        0.0,
        "score that a local feature must have: more than this",
        flag="min_score",
        names=("alpha_thresh",),
    )


Form = Literal["half", "8bit", "binary"]


@dataclass(frozen=True)
class CompactConfig(Config, group="Local features"):
    """In how few bytes local features are kept.

    form:            "half": two bytes a number of a descriptor; "8bit": one; "binary":
                     ``code_bits`` bits in all. "auto": without ``bytes_per_image`` half;
                     else the first of them in which all features fit, or binary.
    bytes_per_image: the strongest features are kept of which a photo costs at most so much, its
                     entry in the store's list included; None: all.
    sample:          descriptors of the database that binary codes are learned on, at most.
    seed:            of the draw of that sample, and of the first rotation.
    """

    form: Literal["auto", "half", "8bit", "binary"] = setting(
        "auto",
        "how stored local features are kept. half: 2 bytes a number; 8bit: 1 byte; binary: 1 bit, "
        "matched by Hamming distance; auto: the first of these in which all fit into "
        "--bytes_per_image",
    )
    bytes_per_image: int | None = setting(
        None,
        "keep the strongest local features that fit into so many bytes a photo (default: all)",
        "BYTES",
        least=1,
    )
    code_bits: int = setting(
        192,
        "bits of a binary code, a multiple of 64: 128 are matched faster, 192 lose less",
        least=64,
        most=4096,
    )
    sample: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.code_bits % 64:
            raise InputError(f"--code_bits {self.code_bits}: expected a multiple of 64")

    @property
    def asked(self) -> bool:
        """Whether anything else than the features as they are is asked for."""
        return self.form != "auto" or self.bytes_per_image is not None
