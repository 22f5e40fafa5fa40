"""SIFT features of the photos of test sets, for voc_tree.main.

    python3 -m voc_tree.SIFT.get_descriptor ./features --test-datasets 'roxford5k,rparis6k'

A set NAME lies in DATA_ROOT/test/NAME or DATA_ROOT/NAME: jpg/ with gnd_NAME.pkl or .json. Its
features go to FEATURES/sift/NAME (another word than sift for other settings). Queries are cropped
to their box.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from retrieval import extraction, feature_folders, progress
from retrieval.commands import flags, script
from retrieval.configs.describe import ExtractConfig, SiftConfig
from retrieval.data.images import Box
from retrieval.data.photo_sets import open_revisited
from retrieval.features import FeatureStore, LocalFeatures
from voc_tree.options import add_test_sets, read_test_sets
from voc_tree.SIFT.sift import Sift

log = logging.getLogger("voc_tree.SIFT")


def main(argv: Sequence[str] | None = None) -> None:
    """Extract the features of each test set; those that are there are kept."""
    parser = flags.make_parser(__doc__)
    parser.add_argument("directory", type=Path, metavar="FEATURES", help="folder of all features")
    data = add_test_sets(parser)
    data.add_argument("--data_root", type=Path, default=Path("data"), help="(default: data)")
    flags.add_configs(parser, SiftConfig)
    asked = flags.parse(parser, argv)
    config = asked.config(SiftConfig)
    root = asked.get("directory") / config.directory
    names = read_test_sets(asked)
    sets = {name: feature_folders.find_test_set(asked.get("data_root"), name) for name in names}
    for name, folder in sets.items():
        store = extract(folder, root / name, config)
        feature_folders.write_feature_folder(
            root, name, store, folder, {"extractor": "sift"} | asdict(config)
        )
        empty = sum(len(store[image]) == 0 for image in store.ids())
        log.info(">> %s: %d images in %s, %d without features", name, len(store), root, empty)


def extract(folder: Path, destination: Path, config: SiftConfig) -> FeatureStore:
    """Fill a store in ``destination`` with the features of the test set in ``folder``."""
    photos = open_revisited(folder)
    settings = {"extractor": "sift", **asdict(config), "photos": photos.fingerprint()}
    store = FeatureStore.open(destination, settings)
    queries = feature_folders.query_ids([path.name for path in photos.queries])
    database = feature_folders.database_ids([path.name for path in photos.database])
    _extract(photos.queries, queries, photos.query_boxes, store, config)
    _extract(photos.database, database, None, store, config)
    return store


def _extract(
    paths: Sequence[Path],
    ids: Sequence[str],
    boxes: Sequence[Box] | None,
    store: FeatureStore,
    config: SiftConfig,
) -> None:
    missing = [row for row, name in enumerate(ids) if name not in store]
    one_by_one = ExtractConfig(resize="longest", size=config.longest_side, infer_batch_size=1)
    batches = extraction.load_batches(
        [paths[row] for row in missing],
        one_by_one,
        None if boxes is None else [boxes[row] for row in missing],
    )
    sift = Sift(config)
    with store.writer() as writer, progress.bar("SIFT", len(missing)):
        for (plan,), (row,), pixels in batches:
            found = sift(np.ascontiguousarray(pixels[0].permute(1, 2, 0).numpy()))
            features = in_photo(found, plan.box, plan.full)
            writer.put(ids[missing[row]], features)
            progress.advance()


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
    assert features.scales is not None
    return replace(
        features,
        keypoints=keypoints.astype(np.float32),
        scales=features.scales * zoom[0],
        image_size=full,
    )


if __name__ == "__main__":
    script.run(main)
