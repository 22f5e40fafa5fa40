"""The losses: margin softmax, attention softmax, reconstruction; contrastive and triplet.

Everything is computed in float32, also under autocast.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from retrieval.configs.learn import LossConfig, MarginKind
from retrieval.networks.pooling import full_precision


def margin_logits(
    cosine: torch.Tensor,
    labels: torch.Tensor,
    s: float = LossConfig.margin_scale,
    m: float = LossConfig.margin,
    kind: MarginKind = LossConfig.global_loss,
) -> torch.Tensor:
    """Cosines (B, classes) and labels (B,) int64 -> logits (B, classes) for a softmax.

    CosFace (Wang et al. 2018) lowers the cosine of the true class by `m`. ArcFace (Deng et al.
    2019) widens its angle by `m` radians; past angle pi - m, where cos(angle + m) would rise again,
    it takes cos(angle) - m sin(m), as the authors' code does. `s` scales all logits.
    """
    if kind not in ("cosface", "arcface"):
        raise ValueError(f"kind is {kind!r}; expected 'cosface' or 'arcface'")
    with full_precision(cosine):
        cosine, rows = cosine.float(), labels.view(-1, 1)
        true = cosine.gather(1, rows)
        if kind == "cosface":
            penalised = true - m
        else:
            # Away from +-1 by more than a float32 step, where the slope of acos is infinite.
            angle = torch.acos(true.clamp(-1 + 1e-6, 1 - 1e-6))
            penalised = torch.where(
                angle <= math.pi - m, torch.cos(angle + m), true - m * math.sin(m)
            )
        return s * cosine.scatter(1, rows, penalised)


class MarginClassifier(nn.Module):
    """One weight vector per class, compared by cosine, with a margin on the true class.

    CosPlace's MarginCosineProduct when kind = 'cosface'.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        s: float = LossConfig.margin_scale,
        m: float = LossConfig.margin,
        kind: MarginKind = LossConfig.global_loss,
    ) -> None:
        super().__init__()
        self.s, self.m, self.kind = s, m, kind
        self.weight = nn.Parameter(torch.empty(classes, dim))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, descriptors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Descriptors (B, dim) of any norm and labels (B,) -> logits (B, classes) float32."""
        with full_precision(descriptors):
            cosine = F.linear(F.normalize(descriptors.float()), F.normalize(self.weight))
        return margin_logits(cosine, labels, self.s, self.m, self.kind)

    def extra_repr(self) -> str:
        """Show the margin's settings in the printed module."""
        classes, dim = self.weight.shape
        return f"dim={dim}, classes={classes}, s={self.s}, m={self.m}, kind={self.kind}"


class AttentionClassifier(nn.Linear):
    """Plain softmax classifier on the attention-pooled map, as in DELG; logits in float32."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(dim, classes)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """(B, dim) -> logits (B, classes) float32."""
        with full_precision(pooled):
            return F.linear(pooled.float(), self.weight, self.bias)


def classification_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean softmax cross entropy of logits (B, classes) and labels (B,)."""
    with full_precision(logits):
        return F.cross_entropy(logits.float(), labels)


def reconstruction_loss(reconstruction: torch.Tensor, local_map: torch.Tensor) -> torch.Tensor:
    """Mean squared error between two maps (B, C, h, w); `local_map` is the target."""
    with full_precision(reconstruction):
        return F.mse_loss(reconstruction.float(), local_map.float())


def contrastive(descriptors: torch.Tensor, margin: float = 0.7) -> torch.Tensor:
    """Contrastive loss of a tuple: D^2 / 2 of the positive, max(0, margin - D)^2 / 2 of negatives.

    descriptors (2 + N, D): a query, its positive and N negatives. D is the Euclidean distance to
    the query; the terms are summed.
    """
    with full_precision(descriptors):
        squared = _squared_distances_to_query(descriptors)
        positive, negative = squared[0], squared[1:]
        # The slope of the root is infinite at 0: a negative equal to its query is pushed nowhere.
        distance = torch.where(negative > 0, negative, 1.0).sqrt() * (negative > 0)
        return 0.5 * (positive + (margin - distance).clamp(min=0).square().sum())


def triplet(descriptors: torch.Tensor, margin: float = 0.1) -> torch.Tensor:
    """Triplet loss of a tuple, summed over its negatives: max(0, D_pos^2 - D_neg^2 + margin).

    Rows as in `contrastive`.
    """
    with full_precision(descriptors):
        squared = _squared_distances_to_query(descriptors)
        return (squared[0] - squared[1:] + margin).clamp(min=0).sum()


def _squared_distances_to_query(descriptors: torch.Tensor) -> torch.Tensor:
    rows = descriptors.float()
    return (rows[1:] - rows[0]).square().sum(1)
