"""What extraction and evaluation ask of a network; DELG and DELF are such networks."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch

from retrieval.networks.backbone import Backbone


class GlobalNetwork(Protocol):
    """A network that describes a photo as a whole."""

    descriptor_dim: int

    def global_descriptors(self, images: torch.Tensor, /) -> torch.Tensor:
        """(B, 3, H, W), normalised -> (B, descriptor_dim) of unit norm."""
        ...

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The weights that learn."""
        ...

    def eval(self) -> Any:
        """Switch to how the network is used when it does not train."""
        ...


class Network(GlobalNetwork, Protocol):
    """A network that also describes the cells of a photo.

    ``config`` is a frozen dataclass of plain values; ``backbone`` tells where on the photo the
    cells look.
    """

    config: Any
    backbone: Backbone

    def local_maps(self, images: torch.Tensor, /) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W), normalised -> local descriptors (B, d, h, w), attention (B, 1, h, w)."""
        ...

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """All weights by name."""
        ...
