"""DELF (Noh et al. 2017) on a network for retrieval (Radenovic et al. 2018), as in delf_pytorch.

A descriptor pooled from one map of a ResNet, optionally weighted by a learned attention; and the
cells of a map as local features, scored by that attention.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from retrieval.configs.describe import DelfConfig, DelgConfig
from retrieval.data import images
from retrieval.networks.attention import ActivationNorm, Attention
from retrieval.networks.backbone import Backbone
from retrieval.networks.pooling import GeM, full_precision, l2_normalize, mac, spoc
from retrieval.networks.rmac import RMac, identity_linear


class Delf(nn.Module):
    """The network, with the interface that `retrieval.extraction` asks for.

    config:         what it is made of.
    pretrained:     the backbone's weights, one of `backbone.PRETRAINED`; all else is random.
    descriptor_dim: size of the global descriptors.
    """

    def __init__(self, config: DelfConfig, pretrained: str = "imagenet") -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.arch, pretrained, config.local_layer)
        self._pools_local_map = config.layer == config.local_layer
        maps = self.backbone
        channels = maps.local_channels if self._pools_local_map else maps.global_channels
        self.local_whiten = identity_linear(channels) if config.local_whitening else None
        pools: dict[str, Callable] = {"mac": mac, "spoc": spoc, "gem": GeM()}
        pool = pools[config.pool]
        self.pool = RMac(pool, channels) if config.regional else pool
        self.whiten = identity_linear(channels) if config.whitening else None
        self.attention = (
            Attention(channels, channels, batch_norm=False)
            if config.attention == "learned"
            else ActivationNorm(DelgConfig.norm_window)
        )
        self.descriptor_dim = channels

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W), normalised as for ImageNet -> descriptors (B, D) float32 of unit norm."""
        x = self.backbone.local_map(photos) if self._pools_local_map else self.backbone(photos)[1]
        if self.config.attention == "learned":
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

        For pixels of the cells see `BackboneSpec.cell_to_pixel`; those of layer4 are right for
        ResNets.
        """
        if self._pools_local_map or self.config.attention == "norm":
            x = self.backbone.local_map(photos)
            return l2_normalize(x), self.attention(x)
        x, last = self.backbone(photos)
        return l2_normalize(x), _refine(self.attention(last), x.shape[-2:])

    def freeze_all_but_attention(self) -> None:
        """Let the attention alone learn, as in DELF's second stage; ValueError if there is none."""
        if self.config.attention != "learned":
            raise ValueError("the network has no learned attention")
        self.requires_grad_(False)
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
        names = ("local_whitening", "regional", "whitening")
        extras = {name: True for name in names if getattr(config, name)}
        if config.attention == "learned":
            extras["attention"] = True
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
