"""Compact stores: what a store of half precision has, in fewer bytes a photo.

    SET/<hash>/             the store as it was extracted, which stays as it is
    SET/<other hash>/       a compact store beside it
    SET/<other hash>/codes.npz   of binary codes: the projection whose signs are taken

Queries and database lie in one store, so that both are coded alike.
"""

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from retrieval import progress
from retrieval.compact.forms import TYPES, feature_bytes
from retrieval.configs.describe import CompactConfig, Form
from retrieval.errors import InputError
from retrieval.feature_folders import SetFeatures, StoredFeatures, sample_descriptors
from retrieval.features import FeatureStore, LocalFeatures, entry
from retrieval.files import read_npz, write_npz
from retrieval.whitening import Projection, learn_signs

_CODES = "codes.npz"


def compacted(features: SetFeatures, config: CompactConfig) -> FeatureStore:
    """The store of ``features`` as ``config`` asks for it, made beside it if it is not there.

    Binary codes are learned on the database's own descriptors. Raises InputError for a store that
    is compact already, and for fewer bytes than one feature needs.
    """
    source = features.store
    if not config.asked:
        return source
    if "compact" in source.made_by.settings:
        raise InputError(
            f"{source.folder} is compact already: name the store that it was made from"
        )
    form = chosen_form(source, config)
    if form == "half" and config.bytes_per_image is None:
        return source
    told: dict[str, object] = {"form": form, "bytes_per_image": config.bytes_per_image}
    if form == "binary":
        told |= {"code_bits": config.code_bits, "sample": config.sample, "seed": config.seed}
    made_by = replace(source.made_by, settings={**source.made_by.settings, "compact": told})
    store = FeatureStore.open(source.folder.parent, made_by)
    missing = [name for name in source.names() if name not in store]
    codes = _codes(features.database, store, config) if form == "binary" and missing else None
    with store.writer() as writer, progress.bar("compact features", len(missing)):
        for name in missing:
            listed = len(json.dumps(entry(name, source[name], source.content(name))))
            kept = source[name].strongest(_count(source[name], listed, form, config))
            writer.put(name, kept if codes is None else coded(kept, codes), source.content(name))
            progress.advance()
    return store


def chosen_form(source: FeatureStore, config: CompactConfig) -> Form:
    """The form that is asked for, or the first in which all features of every photo fit."""
    if config.form != "auto":
        return config.form
    counts = source.counts()
    if config.bytes_per_image is not None and any(counts):
        most = int(np.argmax(counts))
        largest = source[source.names()[most]]
        for form in TYPES:
            if len(largest) * _cost(largest, form, config) <= config.bytes_per_image:
                return form
        return "binary"
    return "half"


def _count(features: LocalFeatures, listed: int, form: Form, config: CompactConfig) -> int | None:
    """How many features of a photo may be kept beside its entry of ``listed`` bytes; None: all."""
    if config.bytes_per_image is None or len(features) == 0:
        return None
    cost = _cost(features, form, config)
    if listed + cost > config.bytes_per_image:
        raise InputError(
            f"--bytes_per_image {config.bytes_per_image}: the entry of a photo and one feature "
            f"need {listed + cost}"
        )
    return (config.bytes_per_image - listed) // cost


def _cost(features: LocalFeatures, form: Form, config: CompactConfig) -> int:
    """The bytes of one feature in a form."""
    shapes = {name: rows.shape[1:] for name, rows in features.arrays().items()}
    if form == "binary":
        shapes["descriptors"] = (config.code_bits // 8,)
    return feature_bytes(form, shapes)


def coded(features: LocalFeatures, codes: Projection) -> LocalFeatures:
    """The features with binary codes (N, bits / 8) uint8 for descriptors (N, d)."""
    if len(features) == 0:
        empty = np.empty((0, codes.matrix.shape[1] // 8), np.uint8)
        return replace(features, descriptors=empty)
    return replace(features, descriptors=codes.signs(features.descriptors))


def _codes(database: StoredFeatures, store: FeatureStore, config: CompactConfig) -> Projection:
    """The projection that ``store`` keeps, learned on a sample of the database if it has none."""
    if (store.folder / _CODES).exists():
        return read_codes(store)
    drawn = sample_descriptors(database, config.sample, config.seed)
    if not any(map(len, drawn)):
        raise InputError(
            f"{database.store.folder} has no features of the database to learn codes on"
        )
    codes = learn_signs(np.concatenate(drawn)[: config.sample], config.code_bits, config.seed)
    write_npz(store.folder / _CODES, {"mean": codes.mean, "matrix": codes.matrix})
    return codes


def read_codes(store: FeatureStore) -> Projection:
    """The projection whose signs are a store's binary codes, for photos that are not in it."""
    path = store.folder / _CODES
    remedy = f"delete the folder {store.folder} and make it again"
    arrays: Mapping[str, np.ndarray] = read_npz(path, ("mean", "matrix"), remedy)
    return Projection(arrays["mean"], arrays["matrix"])
