"""How much each cell of a map matters: learned, or by the norm of its activation."""

import torch
import torch.nn.functional as F
from torch import nn

from retrieval.networks.pooling import full_precision, l2_normalize


class Attention(nn.Module):
    """Two 1 x 1 convolutions and a softplus; DELG's has BatchNorm after the first, DELF's none."""

    def __init__(self, channels: int, hidden: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 1)
        self.bn = nn.BatchNorm2d(hidden) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(hidden, 1, 1)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> scores (B, 1, h, w) float32, >= 0."""
        return F.softplus(self.conv2(F.relu(self.bn(self.conv1(feature_map)))).float())


class ActivationNorm(nn.Module):
    """The score of a cell where no attention is learned: the L2 norm of its activation.

    window: norms are averaged over window x window cells, those beyond the border left out.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> scores (B, 1, h, w) float32, >= 0."""
        with full_precision(feature_map):
            norm = torch.linalg.vector_norm(feature_map.float(), dim=1, keepdim=True)
            return F.avg_pool2d(norm, self.window, 1, self.window // 2, count_include_pad=False)


def attention_pool(feature_map: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Spatial mean of the L2-normalised map times its scores (DELG, as Google's code).

    feature_map (B, C, h, w) and scores (B, 1, h, w) -> (B, C) float32.
    """
    return (l2_normalize(feature_map) * scores.float()).mean((-2, -1))
