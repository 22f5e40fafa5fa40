"""SIFT or learned features of the photos of test sets, for voc_tree.main.

A set NAME lies in DATA_ROOT/test/NAME or DATA_ROOT/NAME: jpg/ with gnd_NAME.pkl or .json. Its
features go to FEATURES/sift/NAME (another word than sift for other settings, and for another
extractor). Queries are cropped to their box.

Examples:
    python3 -m voc_tree.SIFT.get_descriptor ./features --test-datasets 'roxford5k,rparis6k'
    python3 -m voc_tree.SIFT.get_descriptor ./features --max_features 2000 --root --upright
"""

from retrieval.commands import script, tree_flags

if __name__ == "__main__":  # -h need not wait for what is imported below
    script.answer(tree_flags.read_sift, __doc__)

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from retrieval import progress
from retrieval.configs.describe import ExtractConfig, LearnedConfig, SiftConfig
from retrieval.configs.run import Resources
from retrieval.data.photo_sets import PhotoSet
from retrieval.devices import choose_device
from retrieval.extraction import Batch, fill_store
from retrieval.feature_folders import open_store, point_to
from retrieval.features import FeatureStore, LocalFeatures
from voc_tree.learned import Learned
from voc_tree.SIFT.sift import Sift

log = logging.getLogger("voc_tree.SIFT")


def main(argv: Sequence[str] | None = None) -> None:
    """Extract the features of each test set; those that are there are kept."""
    asked = tree_flags.read_sift(__doc__, argv)
    root = asked.directory / asked.local.directory
    for photos in asked.photo_sets:
        store = extract(
            photos, root / photos.name, asked.local, asked.resources, skip=asked.skip_bad_images
        )
        empty = sum(len(store[name]) == 0 for name in store.names())
        log.info(
            ">> %s: %d images in %s, %d without features", photos.name, len(store), root, empty
        )


def extract(
    photos: PhotoSet,
    folder: Path,
    config: SiftConfig | LearnedConfig,
    resources: Resources,
    *,
    skip: bool = False,
) -> FeatureStore:
    """A store in ``folder`` with the SIFT or learned features of all photos of a set.

    skip: photos that cannot be decoded are left out with a warning, and are no error.
    """
    name, extractor = load_extractor(config, resources)
    store = open_store(photos, name, asdict(config), folder)
    every = [*photos.query_photos, *photos.database_photos]
    reading = ExtractConfig("longest", config.longest_side, skip_bad_images=skip)

    def describe(batch: Batch) -> list[LocalFeatures]:
        arrays = batch.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        return [
            in_photo(extractor(pixels), plan.box, plan.full)
            for plan, pixels in zip(batch.plans, arrays, strict=True)
        ]

    with progress.bar(f"{name} of {photos.name}", len(every)):
        fill_store(store, every, reading, replace(resources, infer_batch_size=1), describe)
    point_to(store)
    return store


def load_extractor(
    config: SiftConfig | LearnedConfig, resources: Resources
) -> tuple[str, Sift | Learned]:
    """What stores call an extractor, and the extractor; InputError where its package is missing."""
    if isinstance(config, SiftConfig):
        return "sift", Sift(config)
    return config.extractor, Learned(config, choose_device(resources.device))


def in_photo(
    features: LocalFeatures, box: tuple[int, int, int, int], full: tuple[int, int]
) -> LocalFeatures:
    """Features of a resized part of a photo, in pixels of the photo.

    box: the part (left, top, right, bottom); full: the (width, height) of the photo.
    """
    left, top, right, bottom = box
    zoom = np.divide((right - left, bottom - top), features.image_size, dtype=np.float32)
    # Pixel centres are whole numbers, so the outer edge of the image lies at -1/2.
    keypoints = (features.keypoints + 0.5) * zoom + (left - 0.5, top - 0.5)
    return replace(
        features,
        keypoints=keypoints.astype(np.float32),
        scales=None if features.scales is None else features.scales * zoom[0],
        unit=float(zoom[0]),
        image_size=full,
    )


if __name__ == "__main__":
    script.run(main)
