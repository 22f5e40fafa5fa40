"""DELG (Cao et al. 2020): one network, a global descriptor and local features with attention."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from retrieval.configs.describe import DelgConfig
from retrieval.networks.attention import ActivationNorm, Attention, attention_pool
from retrieval.networks.backbone import Backbone
from retrieval.networks.pooling import GeM, full_precision, l2_normalize


class DelgOutput(NamedTuple):
    """What training needs of a batch of B images. Float32 but for `reduced`, `reconstruction` and
    `local_map`, which have autocast's type.

    descriptors:      (B, D) global descriptors of unit norm.
    attention:        (B, 1, h, w) scores, >= 0.
    reduced:          (B, d, h, w) local descriptors, not normalised.
    reconstruction:   (B, C, h, w) the autoencoder's output; None without reduction.
    local_map:        (B, C, h, w) the backbone's map, detached: the autoencoder's target.
    attention_pooled: (B, C) what the attention classifier sees.
    """

    descriptors: torch.Tensor
    attention: torch.Tensor
    reduced: torch.Tensor
    reconstruction: torch.Tensor | None
    local_map: torch.Tensor
    attention_pooled: torch.Tensor


class GlobalHead(nn.Module):
    """Global map -> descriptor of unit norm, all in float32."""

    def __init__(self, channels: int, config: DelgConfig) -> None:
        super().__init__()
        self.pool = GeM(config.gem_p, config.gem_eps)
        self.linear = nn.Linear(channels, config.fc_output_dim) if config.head == "delg" else None
        self.dim = config.fc_output_dim if config.head == "delg" else channels

    def forward(self, global_map: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, D) float32."""
        if self.linear is None:
            return l2_normalize(self.pool(global_map))
        with full_precision(global_map):
            return l2_normalize(self.linear(self.pool(l2_normalize(global_map))))


class Autoencoder(nn.Module):
    """1 x 1 convolutions to fewer channels (the local descriptors) and back."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, dim, 1)
        self.expand = nn.Conv2d(dim, channels, 1)

    def forward(self, local_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, C, h, w) -> reduced (B, d, h, w), linear, and reconstruction (B, C, h, w), >= 0."""
        reduced = self.reduce(local_map)
        return reduced, F.relu(self.expand(reduced))


class Delg(nn.Module):
    """The network. Classifiers are no part of it: they belong to training.

    config:         what it is made of.
    pretrained:     the backbone's weights, one of `backbone.PRETRAINED`; all else is random.
    descriptor_dim: size of the global descriptors.
    """

    def __init__(self, config: DelgConfig, pretrained: str = "imagenet") -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone, pretrained)
        channels = self.backbone.local_channels
        self.global_head = GlobalHead(self.backbone.global_channels, config)
        self.attention = (
            Attention(channels, config.attention_dim, batch_norm=True)
            if config.attention == "learned"
            else ActivationNorm(config.norm_window)
        )
        self.autoencoder = (
            Autoencoder(channels, config.fm_reduction_dim) if config.reduction else None
        )
        self.descriptor_dim = self.global_head.dim
        self._only_local_trains = False
        if not config.train_all_layers:
            self.backbone.freeze_before_local()

    def forward(self, images: torch.Tensor) -> DelgOutput:
        """(B, 3, H, W), normalised as for ImageNet -> everything, by one pass of the backbone."""
        local_map, global_map = self.backbone(images)
        local_map = local_map.detach()  # DELG's stop-gradient: the local head shapes itself alone.
        reduced, reconstruction = local_map, None
        if self.autoencoder is not None:
            reduced, reconstruction = self.autoencoder(local_map)
        attention = self.attention(local_map)
        return DelgOutput(
            descriptors=self.global_head(global_map),
            attention=attention,
            reduced=reduced,
            reconstruction=reconstruction,
            local_map=local_map,
            attention_pooled=attention_pool(
                local_map if reconstruction is None else reconstruction, attention
            ),
        )

    def global_descriptors(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, D) float32 of unit norm."""
        return self.global_head(self.backbone(images)[1])

    def local_maps(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) -> local descriptors (B, d, h, w) of unit norm and scores (B, 1, h, w).

        The backbone runs only as far as its local map. For pixels of the cells see
        `BackboneSpec.cell_to_pixel`.
        """
        local_map = self.backbone.local_map(images).detach()
        reduced = local_map if self.autoencoder is None else self.autoencoder.reduce(local_map)
        return l2_normalize(reduced), self.attention(local_map)

    def freeze_all_but_local(self) -> None:
        """Freeze backbone and global head, BatchNorm statistics included; the local head trains."""
        self._only_local_trains = True
        self.backbone.requires_grad_(False)
        self.global_head.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Delg":
        """As nn.Module, but frozen parts stay in eval mode."""
        super().train(mode)
        if self._only_local_trains:
            self.backbone.eval()
            self.global_head.eval()
        return self
