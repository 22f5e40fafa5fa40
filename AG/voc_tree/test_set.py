"""A test set as the tree sees it: local features of queries and database, and ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from retrieval.data import ground_truth
from retrieval.data.positives import Positives
from retrieval.errors import InputError
from retrieval.feature_folders import database_ids, open_feature_folder, query_ids
from retrieval.features import FeatureStore, LocalFeatures


class StoredFeatures(Sequence[LocalFeatures]):
    """The features of a list of images, read from their store when they are asked for."""

    def __init__(self, store: FeatureStore, ids: Sequence[str]) -> None:
        missing = [each for each in ids if each not in store]
        if missing:
            raise InputError(
                f"{store.folder} has no features of {len(missing)} of {len(ids)} images (the first "
                f"is {missing[0]}; it has {len(store)} images such as "
                f"{', '.join(store.ids()[:3]) or 'none'}); run the same extraction again"
            )
        self.ids = list(ids)
        self._store = store

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, row: int) -> LocalFeatures: ...
    @overload
    def __getitem__(self, row: slice) -> "StoredFeatures": ...
    def __getitem__(self, row: int | slice) -> "LocalFeatures | StoredFeatures":
        if isinstance(row, slice):
            return StoredFeatures(self._store, self.ids[row])
        return self._store[self.ids[row]]


@dataclass(frozen=True)
class TestSet:
    """Features and ground truth of ``dataset``; ``settings`` tell how the features were made.

    ``folder`` holds its photos in ``jpg/``, and the ground truth file.
    """

    dataset: str
    folder: Path
    queries: Sequence[LocalFeatures]
    database: Sequence[LocalFeatures]
    ground_truth: dict[str, Positives]
    settings: dict[str, Any]

    __test__ = False  # not for pytest


def open_test_set(root: Path, dataset: str) -> TestSet:
    """The test set whose features are in ROOT/DATASET.

    Raises InputError, saying what is there, if features or ground truth are missing.
    """
    folder = open_feature_folder(root, dataset)
    gnd = ground_truth.read_gnd(folder.gnd)
    return TestSet(
        dataset,
        folder.gnd.parent,
        StoredFeatures(folder.store, query_ids(gnd.qimlist)),
        StoredFeatures(folder.store, database_ids(gnd.imlist)),
        gnd.ground_truth,
        folder.settings,
    )


def sample_images(images: Sequence[LocalFeatures], most: int, seed: int) -> list[np.ndarray]:
    """Descriptors (n, d) of images drawn at random, until there are ``most`` of them."""
    drawn: list[np.ndarray] = []
    total = 0
    for row in np.random.default_rng(seed).permutation(len(images)):
        if total >= most:
            break
        drawn.append(images[int(row)].descriptors)
        total += len(drawn[-1])
    return drawn
