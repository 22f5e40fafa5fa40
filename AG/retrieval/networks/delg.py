"""DELG (Cao et al. 2020): one network, a global descriptor and local features with attention."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from retrieval.checkpoint import PartsReport, load_parts, parts, read_weights
from retrieval.configs.describe import DelgConfig
from retrieval.errors import InputError
from retrieval.networks.backbone import PRETRAINED, Trunk
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


class Attention(nn.Module):
    """Two 1 x 1 convolutions and a softplus: how much each cell of the local map matters."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 1)
        self.bn = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, 1, 1)

    def forward(self, local_map: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> scores (B, 1, h, w) float32, >= 0."""
        return F.softplus(self.conv2(F.relu(self.bn(self.conv1(local_map)))).float())


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


def activation_norm(local_map: torch.Tensor, window: int = 1) -> torch.Tensor:
    """L2 norm of each cell, averaged over window x window cells: (B, C, h, w) -> (B, 1, h, w)."""
    with full_precision(local_map):
        norm = torch.linalg.vector_norm(local_map.float(), dim=1, keepdim=True)
        return F.avg_pool2d(norm, window, 1, window // 2, count_include_pad=False)


def attention_pool(x: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """Spatial mean of the L2-normalised map times its scores (DELG, as Google's code).

    x (B, C, h, w) and attention (B, 1, h, w) -> (B, C) float32.
    """
    return (l2_normalize(x) * attention.float()).mean((-2, -1))


class Delg(nn.Module):
    """The network. Classifiers are no part of it: they belong to training.

    descriptor_dim, local_dim: sizes of the global and of the local descriptors.
    """

    def __init__(self, config: DelgConfig, pretrained: str = "imagenet") -> None:
        super().__init__()
        self.config = config
        self.backbone = Trunk(config.backbone, pretrained)
        channels = self.backbone.local_channels
        self.global_head = GlobalHead(self.backbone.global_channels, config)
        self.attention = (
            Attention(channels, config.attention_dim) if config.attention == "learned" else None
        )
        self.autoencoder = (
            Autoencoder(channels, config.fm_reduction_dim) if config.reduction else None
        )
        self.descriptor_dim = self.global_head.dim
        self.local_dim = config.fm_reduction_dim if config.reduction else channels
        self._only_local_trains = False
        if not config.train_all_layers:
            self.backbone.freeze_before_local()

    def forward(self, images: torch.Tensor) -> DelgOutput:
        """(B, 3, H, W), normalised as for ImageNet -> everything, by one pass of the backbone."""
        local_map, global_map = self.backbone(images)
        local_map = local_map.detach()  # DELG's stop-gradient: the local head shapes itself alone.
        reduced, reconstruction = self._reduce(local_map)
        attention = self._attend(local_map)
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
        `Backbone.cell_to_pixel`.
        """
        return self._local_head(self.backbone.local_map(images))

    def both(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`global_descriptors` and `local_maps` by one pass of the backbone."""
        local_map, global_map = self.backbone(images)
        return self.global_head(global_map), *self._local_head(local_map)

    def _local_head(self, local_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        local_map = local_map.detach()
        reduced = local_map if self.autoencoder is None else self.autoencoder.reduce(local_map)
        return l2_normalize(reduced), self._attend(local_map)

    def _reduce(self, local_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return (local_map, None) if self.autoencoder is None else self.autoencoder(local_map)

    def _attend(self, local_map: torch.Tensor) -> torch.Tensor:
        if self.attention is None:
            return activation_norm(local_map, self.config.norm_window)
        return self.attention(local_map)

    def local_parameters(self) -> list[nn.Parameter]:
        """Parameters of the attention and the autoencoder; empty if there are neither."""
        parts = [part for part in (self.attention, self.autoencoder) if part is not None]
        return [parameter for part in parts for parameter in part.parameters()]

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


def resolve_config(given: Mapping[str, Any], pretrained: str) -> DelgConfig:
    """The config of the fields ``given``; the rest as a checkpoint has them, or the defaults.

    Raises InputError if ``pretrained`` is a file that `read_weights` does not know.
    """
    saved = None
    if pretrained not in PRETRAINED and Path(pretrained).is_file():
        saved = read_weights(pretrained).config
    return DelgConfig(**{**(saved or {}), **given})


def create(config: DelgConfig, pretrained: str = "imagenet") -> tuple[Delg, PartsReport]:
    """The network with the weights that --pretrained names, and what they filled.

    pretrained: one of `backbone.PRETRAINED`, or the path of a file that `read_weights` knows.
    Raises InputError if the weights can't be had or are of another shape.
    """
    if pretrained in PRETRAINED:
        model = Delg(config, pretrained)
        every = parts(model.state_dict())
        loaded = () if pretrained == "none" else ("backbone",)
        missing = tuple(part for part in every if part not in loaded)
        return model, PartsReport(model.backbone.weights_name, loaded, missing)
    if not Path(pretrained).is_file():
        raise InputError(
            f"--pretrained {pretrained}: neither a file nor one of {', '.join(PRETRAINED)}"
        )
    weights = read_weights(pretrained)
    if weights.config is not None:
        _check_config(config, weights.config, pretrained)
    model = Delg(config, "none")
    return model, load_parts(model, weights)


def _check_config(config: DelgConfig, saved: dict[str, Any], path: str) -> None:
    """Compare the fields that shape the weights; other fields may differ."""
    names = ["backbone", "head"]
    names += ["fc_output_dim"] * (config.head == "delg")
    names += ["attention_dim"] * (config.attention == "learned")
    names += ["reduction"] + ["fm_reduction_dim"] * config.reduction
    wrong = [
        f"--{name} {getattr(config, name)}, but the file has {saved[name]}"
        for name in names
        if name in saved and saved[name] != getattr(config, name)
    ]
    if wrong:
        raise InputError(f"{path}: weights of another network: {'; '.join(wrong)}")
