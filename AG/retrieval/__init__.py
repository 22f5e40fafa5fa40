"""Visual place recognition and landmark retrieval with local features: the shared library.

Whatever describes photos makes `LocalFeatures`, whatever ranks a database a `Ranking`, whatever
judges a ranking an `Evaluation`. These are the front door; all else is in the rooms behind it.

>>> from retrieval import describe, load_network, match
>>> network = load_network("resnet18", pretrained="none")
>>> house = describe(network, "house.png")
>>> house.descriptor.shape, len(house.features)
((512,), 48)
>>> pair = match(house.features, house.features)
>>> pair.num_inliers == len(pair.matches) == 48
True
"""

import importlib
from typing import TYPE_CHECKING

__all__ = [
    "Evaluation",
    "FeatureStore",
    "LocalFeatures",
    "Ranking",
    "describe",
    "evaluate",
    "load_network",
    "match",
    "open_photos",
    "rerank",
]

# Where each name lives. A room is entered when its name is asked for: the library itself, and what
# needs no network, starts without torch.
_ROOMS = {
    "Evaluation": "evaluation",
    "FeatureStore": "features",
    "LocalFeatures": "features",
    "Ranking": "search",
    "describe": "extraction",
    "evaluate": "global_search",
    "load_network": "networks.create",
    "match": "verification",
    "open_photos": "data.photo_sets",
    "rerank": "global_search",
}


if TYPE_CHECKING:  # for type checkers and editors
    from retrieval.data.photo_sets import open_photos
    from retrieval.evaluation import Evaluation
    from retrieval.extraction import describe
    from retrieval.features import FeatureStore, LocalFeatures
    from retrieval.global_search import evaluate, rerank
    from retrieval.networks.create import load_network
    from retrieval.search import Ranking
    from retrieval.verification import match
else:

    def __getattr__(name: str) -> object:
        if name not in _ROOMS:
            raise AttributeError(f"module 'retrieval' has no attribute {name!r}")
        return getattr(importlib.import_module(f"retrieval.{_ROOMS[name]}"), name)
