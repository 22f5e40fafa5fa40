"""R-MAC's regions (Tolias et al. 2016), each pooled, whitened and added up, as in cirtorch."""

from collections.abc import Callable

import torch
from torch import nn

from retrieval.networks.pooling import full_precision, l2_normalize

LEVELS = 3
OVERLAP = 0.4  # of neighbouring regions of the first level, as nearly as it can be had


def identity_linear(dim: int) -> nn.Linear:
    """A linear layer that changes nothing until it is trained."""
    layer = nn.Linear(dim, dim)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def regions(height: int, width: int, levels: int = LEVELS) -> list[tuple[int, int, int]]:
    """Squares (top, left, side) of R-MAC on a map of height x width cells, coarse to fine.

    Level l has l squares along the short side, each 2 / (l + 1) of it long, and more along the long
    side. Levels whose squares would have no cell are left out.
    """
    short, long = sorted((height, width))
    # Level 1 lays squares of the whole short side along the long one. Of 2 to 7 squares that count
    # is taken whose neighbours' common part of a square is nearest to OVERLAP.
    shift = [(long - short) / (count - 1) for count in range(2, 8)]
    misses = [abs((short**2 - short * step) / short**2 - OVERLAP) for step in shift]
    more = 0 if height == width else misses.index(min(misses)) + 1
    more_down, more_across = (more, 0) if height > width else (0, more)
    squares = []
    for level in range(1, levels + 1):
        side = 2 * short // (level + 1)
        if side == 0:
            continue
        tops = _starts(height, side, level + more_down)
        lefts = _starts(width, side, level + more_across)
        squares += [(top, left, side) for top in tops for left in lefts]
    return squares


def _starts(length: int, side: int, count: int) -> list[int]:
    """Where ``count`` squares begin that are spread evenly over ``length``, end to end."""
    step = 0.0 if count == 1 else (length - side) / (count - 1)
    return [int(i * step) for i in range(count)]


class RMac(nn.Module):
    """Pools the whole map and its regions; each vector is normalised, whitened, normalised.

    pool: (B, C, h, w) -> (B, C), of the whole map and of each region. channels: C.
    """

    def __init__(self, pool: Callable[[torch.Tensor], torch.Tensor], channels: int) -> None:
        super().__init__()
        self.pool = pool
        self.whiten = identity_linear(channels)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, C) float32, the sum over regions."""
        parts = [feature_map] + [
            feature_map[..., top : top + side, left : left + side]
            for top, left, side in regions(*feature_map.shape[-2:])
        ]
        vectors = torch.stack([l2_normalize(self.pool(part)) for part in parts], dim=1)  # (B, R, C)
        with full_precision(vectors):
            return l2_normalize(self.whiten(vectors), dim=-1).sum(1)
