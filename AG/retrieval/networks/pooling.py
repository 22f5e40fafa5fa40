"""Pooling a map to a vector, and L2 normalisation: always in float32, also under autocast."""

import torch
import torch.nn.functional as F
from torch import nn


def full_precision(x: torch.Tensor) -> torch.autocast:
    """A context in which autocast leaves operations on `x`'s device alone."""
    return torch.autocast(x.device.type, enabled=False)


def gem(x: torch.Tensor, p: torch.Tensor | float = 3.0, eps: float = 1e-6) -> torch.Tensor:
    """Generalised mean of each channel (Radenovic et al. 2018): mean(max(x, eps)^p)^(1/p).

    x (B, C, h, w) of any float type -> (B, C) float32. p = 1 is the mean of the clamped map, and
    p -> infinity its maximum.
    """
    # The clamp keeps gradients finite: the derivative by p holds log(x), and that of the root holds
    # mean^(1/p - 1), both infinite at 0.
    with full_precision(x):
        return x.float().clamp(min=eps).pow(p).mean((-2, -1)).pow(1.0 / p)


def mac(x: torch.Tensor) -> torch.Tensor:
    """Maximum activation of each channel: (B, C, h, w) -> (B, C) float32."""
    return x.float().amax((-2, -1))


def spoc(x: torch.Tensor) -> torch.Tensor:
    """Mean activation of each channel: (B, C, h, w) -> (B, C) float32."""
    return x.float().mean((-2, -1))


def l2_normalize(x: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """`x` in float32 with unit L2 norm along `dim`; a zero vector stays zero."""
    with full_precision(x):
        return F.normalize(x.float(), dim=dim)


class GeM(nn.Module):
    """`gem` with a learnable p, one for all channels."""

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), p))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, C) float32."""
        return gem(x, self.p, self.eps)

    def extra_repr(self) -> str:
        """Show p and eps in the printed module."""
        return f"p={self.p.item():.4f}, eps={self.eps}"
