"""DELF (Noh et al. 2017) on a network for retrieval (Radenovic et al. 2018): S2's network.

A descriptor pooled from one map of a ResNet, optionally weighted by a learned attention; and the
cells of a map as local features, scored by that attention.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from retrieval.configs.describe import DelfConfig, DelgConfig
from retrieval.data import images
from retrieval.networks.backbone import Trunk
from retrieval.networks.delg import activation_norm
from retrieval.networks.pooling import GeM, full_precision, l2_normalize, mac, spoc
from retrieval.networks.rmac import Regional, identity_linear


class Attention(nn.Module):
    """S2's attention: 1 x 1 convolution C -> C, ReLU, 1 x 1 convolution -> 1, softplus."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.conv2 = nn.Conv2d(channels, 1, 1)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> scores (B, 1, h, w) float32, > 0."""
        return F.softplus(self.conv2(F.relu(self.conv1(feature_map))).float())


class Delf(nn.Module):
    """The network, with the interface that `retrieval.extraction` asks for.

    descriptor_dim: size of the global descriptors.
    """

    def __init__(self, config: DelfConfig, pretrained: str = "imagenet") -> None:
        super().__init__()
        self.config = config
        self.backbone = Trunk(config.arch, pretrained)
        layer3, layer4 = self.backbone.spec.channels
        channels = layer4 if config.layer == "layer4" else layer3
        if config.local_layer == "layer4":
            _move_local_map_to_end(self.backbone)
        self.local_whiten = identity_linear(channels) if config.local_whitening else None
        pools: dict[str, Callable] = {"mac": mac, "spoc": spoc, "gem": GeM()}
        pool = pools[config.pool]
        self.pool = Regional(pool, channels) if config.regional else pool
        self.whiten = identity_linear(channels) if config.whitening else None
        self.attention = Attention(channels) if config.attention else None
        self.descriptor_dim = channels

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W), normalised as for ImageNet -> descriptors (B, D) float32 of unit norm."""
        x = self._pooled_map(photos)
        if self.attention is not None:
            x = x * self.attention(x)
        if self.local_whiten is not None:
            x = self.local_whiten(x.movedim(1, -1)).movedim(-1, 1)
        descriptors = l2_normalize(self.pool(x))
        if self.whiten is None:
            return descriptors
        with full_precision(descriptors):
            return l2_normalize(self.whiten(descriptors))

    def global_descriptors(self, photos: torch.Tensor) -> torch.Tensor:
        """`forward`, under the name it has in every network."""
        return self(photos)

    def local_maps(self, photos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) -> local descriptors (B, d, h, w) of unit norm and scores (B, 1, h, w).

        Without a learned attention the score of a cell is the L2 norm of its activation, averaged
        as in `DelgConfig`. For pixels of the cells see `Backbone.cell_to_pixel`; those of layer4
        are right for ResNets.
        """
        if self.attention is None:
            x = self.backbone.local_map(photos)
            return l2_normalize(x), activation_norm(x, DelgConfig.norm_window)
        if self._pools_local_map:
            x = self.backbone.local_map(photos)
            return l2_normalize(x), self.attention(x)
        x, last = self.backbone(photos)
        return l2_normalize(x), _refine(self.attention(last), x.shape[-2:])

    @property
    def _pools_local_map(self) -> bool:
        return self.config.layer == self.config.local_layer

    def _pooled_map(self, photos: torch.Tensor) -> torch.Tensor:
        if self._pools_local_map:
            return self.backbone.local_map(photos)
        return self.backbone(photos)[1]

    def freeze_all_but_attention(self) -> None:
        """Let the attention alone learn, as in DELF's second stage."""
        self.requires_grad_(False)
        if self.attention is None:
            raise ValueError("the network has no attention")
        self.attention.requires_grad_(True)

    def train(self, mode: bool = True) -> "Delf":
        """As nn.Module, but BatchNorm keeps its statistics: batches of one photo have none."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """What learns, for an optimiser: GeM's power ten times as fast and without decay."""
        powers = {id(module.p) for module in self.modules() if isinstance(module, GeM)}
        learned = [parameter for parameter in self.parameters() if parameter.requires_grad]
        fast = [parameter for parameter in learned if id(parameter) in powers]
        rest = [parameter for parameter in learned if id(parameter) not in powers]
        groups = [
            {"params": rest, "lr": lr, "weight_decay": weight_decay},
            {"params": fast, "lr": 10 * lr, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def meta(self) -> dict[str, Any]:
        """What cirtorch's checkpoints and logs say of a network."""
        config = self.config
        extras = {
            name: True
            for name in ("local_whitening", "regional", "whitening", "attention")
            if getattr(config, name)
        }
        return {
            "architecture": config.arch,
            "pooling": config.pool,
            **extras,
            "outputdim": self.descriptor_dim,
            "mean": list(images.MEAN),
            "std": list(images.STD),
        }


class MultiScale(nn.Module):
    """A network whose descriptor is the power mean of those at several sizes of the photo.

    The power is GeM's learned p (Radenovic et al. 2018), else 1, and also 1 with a linear layer
    after the pooling, whose outputs may be negative.
    """

    def __init__(self, model: Delf, scales: tuple[float, ...]) -> None:
        super().__init__()
        self.model, self.scales = model, scales
        self.descriptor_dim = model.descriptor_dim

    def global_descriptors(self, photos: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, D) float32 of unit norm."""
        if self.scales == (1.0,):
            return self.model(photos)
        pool = self.model.pool
        plain = isinstance(pool, GeM) and self.model.whiten is None
        p = float(pool.p) if isinstance(pool, GeM) and plain else 1.0
        total = torch.stack([self.model(_resized(photos, s)).pow(p) for s in self.scales])
        return l2_normalize(total.mean(0).pow(1 / p))


def _resized(photos: torch.Tensor, scale: float) -> torch.Tensor:
    if scale == 1:
        return photos
    size = [max(32, round(side * scale)) for side in photos.shape[-2:]]
    return F.interpolate(photos, size, mode="bilinear", antialias=True, align_corners=False)


def _refine(scores: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Scores (B, 1, h, w) of layer4 at the cells of layer3: (B, 1, *size).

    Cell i of layer3 is centred where cell i / 2 of layer4 is.
    """
    h, w = scores.shape[-2:]
    fine = F.interpolate(scores, (2 * h - 1, 2 * w - 1), mode="bilinear", align_corners=True)
    missing = (0, size[1] - fine.shape[-1], 0, size[0] - fine.shape[-2])
    return F.pad(fine, missing, mode="replicate")


def _move_local_map_to_end(trunk: Trunk) -> None:
    """Make the last map of ``trunk`` its local map."""
    spec = trunk.spec
    trunk.spec = replace(
        spec,
        local_layers=spec.local_layers + spec.global_layers,
        global_layers=(),
        channels=(spec.channels[1],) * 2,
        strides=(spec.strides[1],) * 2,
    )
    trunk.local_channels, trunk.local_stride = trunk.global_channels, trunk.global_stride
