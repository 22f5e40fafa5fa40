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


def contrastive(
    descriptors: torch.Tensor, labels: torch.Tensor, margin: float = 0.7
) -> torch.Tensor:
    """Contrastive loss over tuples, summed: D^2 / 2 for positives, max(0, margin - D)^2 / 2 else.

    descriptors (B, D), rows in tuples; labels (B,): -1 starts a tuple (its query), 1 is a positive
    and 0 a negative of the query before it. D is the Euclidean distance to that query.
    """
    with full_precision(descriptors):
        squared = _squared_distances_to_query(descriptors.float(), labels)
        positive, negative = squared[labels == 1], squared[labels == 0]
        # The slope of the root is infinite at 0: a negative equal to its query is pushed nowhere.
        distance = torch.where(negative > 0, negative, 1.0).sqrt() * (negative > 0)
        return 0.5 * (positive.sum() + (margin - distance).clamp(min=0).square().sum())


def triplet(descriptors: torch.Tensor, labels: torch.Tensor, margin: float = 0.1) -> torch.Tensor:
    """Triplet loss over tuples, summed over negatives: max(0, D_pos^2 - D_neg^2 + margin).

    Rows and labels as in `contrastive`, with exactly one positive in each tuple.
    """
    with full_precision(descriptors):
        squared = _squared_distances_to_query(descriptors.float(), labels)
        tuples = _tuple_of_row(labels)
        positives = tuples[labels == 1]
        if not torch.equal(positives, torch.unique(tuples)):
            raise ValueError("triplet: every tuple needs exactly one positive (label 1)")
        negative = labels == 0
        of_positive = squared[labels == 1][tuples[negative]]
        return (of_positive - squared[negative] + margin).clamp(min=0).sum()


def _tuple_of_row(labels: torch.Tensor) -> torch.Tensor:
    """(B,) labels -> (B,) number of the tuple that each row belongs to."""
    if len(labels) and labels[0] != -1:
        raise ValueError(f"the first label is {labels[0]}; a tuple starts with its query (-1)")
    return torch.cumsum(labels == -1, 0) - 1


def _squared_distances_to_query(descriptors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    queries = descriptors[labels == -1]
    return (descriptors - queries[_tuple_of_row(labels)]).square().sum(1)
