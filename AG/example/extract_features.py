"""Extract the local features of test sets, for voc_tree: the cells with the most attention.

Writes to DIR/<long directory name>/<test set>, from which the same command goes on where it was
stopped. Takes the flags of example.attention; --param-directory is its DIR.
"""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from example import options, testing
from example.options import ExtractionOptions
from retrieval import devices, evaluation, extraction, progress, protocol
from retrieval.commands.script import run
from retrieval.configs.describe import ExtractConfig
from retrieval.data.photo_sets import PhotoSet
from retrieval.errors import InputError
from retrieval.feature_folders import database_ids, query_ids, write_feature_folder
from retrieval.features import FeatureStore
from retrieval.networks import delf_weights
from retrieval.networks.backbone import PRETRAINED
from retrieval.networks.delf import Delf
from retrieval.whitening import Projection

log = logging.getLogger("example")


def load_model(asked: ExtractionOptions) -> tuple[Delf, str]:
    """The network, and where its weights are from.

    InputError if its attention is needed and it has none.
    """
    network = asked.network
    if asked.pretrained not in PRETRAINED:
        network = delf_weights.read_file(asked.pretrained).config or network
    if asked.attention == "learned" and not network.attention:
        raise InputError(
            f"{asked.pretrained}: this network has no attention; train it by example.attention and "
            "name that DIR with --param-directory, or use --attention norm"
        )
    layer = asked.layer or network.layer
    if layer == "layer4" and not network.arch.startswith("resnet"):
        raise InputError(
            f"--arch {network.arch}: the pixels of its last map are not known; use --layer layer3"
        )
    pooled = network.layer if network.attention else layer
    config = dataclasses.replace(network, layer=pooled, local_layer=layer)
    model, loaded, _ = delf_weights.create(config, asked.pretrained)
    if asked.attention == "norm":
        model.attention = None
    return model.to(devices.choose_device(asked.device)), str(loaded)


def extraction_config(asked: ExtractionOptions) -> ExtractConfig:
    """How images are read and which cells are kept: attention above --alpha-thresh."""
    above = np.nextafter(np.float32(asked.local.alpha_thresh), np.float32(np.inf))
    config = asked.extraction(testing.TEST_SIZE)
    pixels = max(1.0, max(asked.scales) ** 2)  # of the largest size, to those of the photo itself
    return dataclasses.replace(
        config,
        infer_batch_size=max(1, int(config.infer_batch_size / pixels)),
        local_scales=asked.scales,
        max_features=asked.local.feature_num,
        min_score=float(above),
    )


def extract(
    model: Delf,
    asked: ExtractionOptions,
    dataset: str,
    photos: PhotoSet,
    projection: Projection | None,
) -> FeatureStore:
    """Put the features of one test set into its store, those that are missing."""
    config = extraction_config(asked)
    store = evaluation.open_store(asked.folder / dataset, model, photos, config, projection)
    queries = query_ids([path.name for path in photos.queries])
    database = database_ids([path.name for path in photos.database])
    total = len(queries) + len(database)
    with progress.bar(dataset, total):
        extraction.extract_local_features(
            *(model, photos.queries, queries, store, config),
            boxes=photos.query_boxes,
            projection=projection,
            progress=progress.advance,
        )
        extraction.extract_local_features(
            *(model, photos.database, database, store, config),
            projection=projection,
            progress=progress.advance,
        )
    return store


def main(argv: Sequence[str] | None = None) -> None:
    """Extract the features of all test sets."""
    asked = options.read_extraction(__doc__, argv)
    test_sets = testing.open_test_sets(asked.data_root, asked.test_datasets)
    model, loaded = load_model(asked)
    config = extraction_config(asked)
    log.info("%s", testing.networks_in_words(model.meta()))
    log.info(">> Weights: %s", loaded)
    projection = evaluation.learn_projection(model, asked.pca, config, progress.Clock())
    for dataset, photos in test_sets.items():
        store = extract(model, asked, dataset, photos, projection)
        settings = protocol.protocol(model, photos, config, asked.tune.seed, loaded)
        settings["projection"] = {name: str(v) for name, v in dataclasses.asdict(asked.pca).items()}
        write_feature_folder(asked.folder, dataset, store, photos.folder.parent, settings)
        log.info(">> %s: features of %d images in %s", dataset, len(store), store.folder)


if __name__ == "__main__":
    run(main)
