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
    """Squares (top, left, side) of R-MAC on a map: level l has l of them along the short side."""
    short = min(height, width)
    shift = [(max(height, width) - short) / (steps - 1) for steps in range(2, 8)]
    overlaps = [abs((short**2 - short * step) / short**2 - OVERLAP) for step in shift]
    more = 0 if height == width else overlaps.index(min(overlaps)) + 1
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
    step = 0.0 if count == 1 else (length - side) / (count - 1)
    return [int(i * step) for i in range(count)]


class Regional(nn.Module):
    """Pools the whole map and its regions; each vector is normalised, whitened, normalised."""

    def __init__(self, pool: Callable[[torch.Tensor], torch.Tensor], channels: int) -> None:
        super().__init__()
        self.pool = pool
        self.whiten = identity_linear(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, C) float32, the sum over regions."""
        parts = [x] + [
            x[..., top : top + side, left : left + side]
            for top, left, side in regions(*x.shape[-2:])
        ]
        vectors = torch.stack([l2_normalize(self.pool(part)) for part in parts], dim=1)
        with full_precision(vectors):
            return l2_normalize(self.whiten(vectors), dim=-1).sum(1)
