"""What training minimises: the network's losses, with the classifiers of a group of classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retrieval import checkpoint
from retrieval.configs.learn import LossConfig
from retrieval.data.places import Group
from retrieval.networks.delg import Delg
from retrieval.training import processes
from retrieval.training.losses import (
    AttentionClassifier,
    MarginClassifier,
    classification_loss,
    reconstruction_loss,
)


class Objective(nn.Module):
    """The training losses of one group: descriptors (optional), attention, reconstruction."""

    def __init__(
        self,
        model: Delg,
        descriptor_classifier: MarginClassifier | None,
        attention_classifier: AttentionClassifier,
        config: LossConfig,
    ) -> None:
        super().__init__()
        self.model = model
        self.descriptor_classifier = descriptor_classifier
        self.attention_classifier = attention_classifier
        self._config = config

    def forward(self, photos: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) images, (B,) labels to scalar terms, of which ``total`` is minimised."""
        out = self.model(photos)
        weights = self._config
        terms: dict[str, torch.Tensor] = {}
        total = torch.zeros((), device=photos.device)
        if self.descriptor_classifier is not None:
            logits = self.descriptor_classifier(out.descriptors, labels)
            terms["global"] = classification_loss(logits, labels)
            total = total + weights.global_weight * terms["global"]
        logits = self.attention_classifier(out.attention_pooled)
        terms["attention"] = classification_loss(logits, labels)
        total = total + weights.attention_weight * terms["attention"]
        if out.reconstruction is not None:
            terms["reconstruction"] = reconstruction_loss(out.reconstruction, out.local_map)
            total = total + weights.reconstruction_weight * terms["reconstruction"]
        return {"total": total, **terms}


@dataclass
class Classifiers:
    """The classifiers of one group, with their optimiser."""

    descriptor: MarginClassifier | None
    attention: AttentionClassifier
    optimizer: torch.optim.Optimizer

    def to(self, device: torch.device) -> None:
        """Move all to ``device``: only the group at work is kept on the GPU."""
        for classifier in (self.descriptor, self.attention):
            if classifier is not None:
                classifier.to(device)
        processes.move_optimizer(self.optimizer, device)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint."""
        return {
            "descriptor": None if self.descriptor is None else self.descriptor.state_dict(),
            "attention": self.attention.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: Mapping[str, Any], source: Path) -> None:
        """Take over what `state` gave; InputError where the classes are others."""
        if self.descriptor is not None:
            checkpoint.load_state(self.descriptor, state["descriptor"], source)
        checkpoint.load_state(self.attention, state["attention"], source)
        self.optimizer.load_state_dict(state["optimizer"])


def make_classifiers(
    groups: Sequence[Group], model: Delg, losses: LossConfig, lr: float, *, only_local: bool
) -> list[Classifiers]:
    """One `Classifiers` for each group; local-only training has none for descriptors."""
    made = []
    for group in groups:
        classes = len(group.classes)
        descriptor = None
        if not only_local:
            descriptor = MarginClassifier(
                model.descriptor_dim,
                classes,
                losses.margin_scale,
                losses.margin,
                losses.global_loss,
            )
        attention = AttentionClassifier(model.backbone.local_channels, classes)
        learned = [*attention.parameters(), *(descriptor.parameters() if descriptor else ())]
        optimizer = torch.optim.Adam(learned, lr=lr, fused=True)
        made.append(Classifiers(descriptor, attention, optimizer))
    return made
