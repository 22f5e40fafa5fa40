"""Extract the local features of test sets, for voc_tree: the cells with the most attention.

Writes to DIR/<long directory name>/<test set>, from which the same command goes on where it was
stopped. Takes the flags of example.attention; --param-directory is its DIR.

Examples:
    python3 -m example.extract_features ./features --param-directory ./attention_models
    python3 -m example.extract_features ./features --pretrained imagenet --attention norm
"""

from retrieval.commands import delf_flags, script

if __name__ == "__main__":  # -h need not wait for what is imported below
    script.answer(delf_flags.read_delf_extraction, __doc__)

import dataclasses
import logging
from collections.abc import Sequence
from typing import Literal

from example import testing
from retrieval import devices, global_search, progress
from retrieval.configs.describe import DelfConfig, Layer
from retrieval.errors import InputError
from retrieval.extraction import extract_local_features
from retrieval.feature_folders import point_to
from retrieval.networks.create import create, saved_config
from retrieval.networks.delf import Delf

log = logging.getLogger("example")


def load_model(
    pretrained: str, network: DelfConfig, attention: Literal["learned", "norm"], layer: Layer | None
) -> tuple[Delf, str]:
    """The network of a file of weights (else ``network``), and where its weights are from.

    InputError if its attention is needed and it has none.
    """
    saved = saved_config(pretrained)
    network = saved if isinstance(saved, DelfConfig) else network
    if attention == "learned" and network.attention == "norm":
        raise InputError(
            f"{pretrained}: this network has no attention; train it by example.attention and "
            "name that DIR with --param-directory, or use --attention norm"
        )
    layer = layer or network.layer
    if layer == "layer4" and not network.arch.startswith("resnet"):
        raise InputError(
            f"--arch {network.arch}: the pixels of its last map are not known; use --layer layer3"
        )
    pooled = network.layer if attention == "learned" else layer
    config = dataclasses.replace(network, attention=attention, layer=pooled, local_layer=layer)
    model, loaded, _ = create(config, pretrained)
    return model, str(loaded)


def main(argv: Sequence[str] | None = None) -> None:
    """Extract the features of all test sets."""
    asked = delf_flags.read_delf_extraction(__doc__, argv)
    test_sets = testing.open_test_sets(asked.data_root, asked.test_datasets)
    model, loaded = load_model(asked.pretrained, asked.network, asked.attention, asked.layer)
    model.to(devices.choose_device(asked.resources.device))
    config = asked.local_extraction
    # A photo enlarged twice is four photos to the network.
    pixels = max(1.0, max(asked.scales) ** 2)
    batch = max(1, int(asked.resources.infer_batch_size / pixels))
    resources = dataclasses.replace(asked.resources, infer_batch_size=batch)
    log.info("%s", testing.networks_in_words(model.meta()))
    log.info(">> Weights: %s", loaded)
    clock = progress.Clock()
    projection = global_search.learn_projection(model, asked.pca, config, resources, clock)
    for name, photos in test_sets.items():
        store = global_search.open_store(model, photos, config, projection, asked.folder / name)
        every = [*photos.query_photos, *photos.database_photos]
        with progress.bar(name, len(every)):
            extract_local_features(model, every, store, config, projection, resources)
        point_to(store)
        log.info(">> %s: features of %d images in %s", name, len(store), store.folder)


if __name__ == "__main__":
    script.run(main)
