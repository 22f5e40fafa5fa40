"""Stored local features of a photo set: where they lie on disk, and what is read of them by row.

    ROOT/<hash>/                 a store of any photo set (`features.FeatureStore`)
    ROOT/SET/<hash>/             a store of the test set SET
    ROOT/SET/store.json          which of several is meant; written when all features are there

What extracts features and what searches them meet here alone.
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from retrieval.configs.judge import PositivesConfig, Source
from retrieval.data.photo_sets import PhotoSet, contents, open_set
from retrieval.errors import InputError
from retrieval.features import MANIFEST, FeatureStore, LocalFeatures, MadeBy, read_made_by
from retrieval.files import write_atomically

_POINTER = "store.json"


class StoredFeatures(Sequence[LocalFeatures]):
    """The features of named photos, read from their store when they are asked for.

    A photo that the store does not have, as one that could not be decoded, has no features.
    """

    def __init__(self, store: FeatureStore, names: Sequence[str]) -> None:
        self.store, self.names = store, list(names)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, row: int) -> LocalFeatures: ...
    @overload
    def __getitem__(self, row: slice) -> "StoredFeatures": ...
    def __getitem__(self, row: int | slice) -> "LocalFeatures | StoredFeatures":
        if isinstance(row, slice):
            return StoredFeatures(self.store, self.names[row])
        name = self.names[row]
        if name in self.store:
            return self.store[name]
        return LocalFeatures.nothing(self.store.dimensions)

    def described_sizes(self) -> list[tuple[int, int]]:
        """(width, height) at which photos were described, of those that the store has."""
        return [self.store.described_size(name) for name in self.names if name in self.store]

    def missing(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The names among these rows of which the store has nothing."""
        return [self.names[row] for row in rows if self.names[row] not in self.store]


@dataclass(frozen=True)
class SetFeatures:
    """The stored local features of a photo set, by the rows of its queries and database."""

    store: FeatureStore
    queries: StoredFeatures
    database: StoredFeatures


def features_of_set(photos: PhotoSet, store: FeatureStore) -> SetFeatures:
    """What ``store`` has of these photos."""
    queries, database = (
        StoredFeatures(store, [photo.name for photo in part])
        for part in (photos.query_photos, photos.database_photos)
    )
    return SetFeatures(store, queries, database)


def made_from(photos: PhotoSet, extractor: str, settings: dict[str, Any]) -> MadeBy:
    """What features of ``photos`` are made by."""
    source = None if photos.source is None else source_as_json(photos.source)
    told = {"source": source, "fingerprint": photos.fingerprint()}
    return MadeBy(extractor, settings, told)


def open_store(
    photos: PhotoSet, extractor: str, settings: dict[str, Any], folder: Path
) -> FeatureStore:
    """The store below ``folder`` of features of ``photos``, made if it is not there.

    What another store there has, of the same extractor and settings, of photos that have not
    changed, is taken over: so only those that have are extracted again.
    """
    made_by = made_from(photos, extractor, settings)
    store = FeatureStore.open(folder, made_by)
    every = [*photos.query_photos, *photos.database_photos]
    missing = {
        photo.name: content
        for photo, content in zip(every, contents(every), strict=True)
        if photo.name not in store
    }
    with store.writer() as writer:
        for manifest in sorted(folder.glob(f"*/{MANIFEST}")) if missing else ():
            with contextlib.suppress(InputError):  # a damaged store that nobody asked for
                told = read_made_by(manifest)
                if (told.extractor, told.settings) != (extractor, store.made_by.settings):
                    continue
                other = FeatureStore(manifest.parent)
                for name in [name for name in missing if name in other]:
                    if other.content(name) == missing[name]:
                        writer.put(name, other[name], missing.pop(name))
    return store


def source_as_json(source: Source) -> dict[str, Any]:
    """A source with absolute paths, as plain values."""
    file = source.positives.positions_file
    if file is not None:
        positives = replace(source.positives, positions=str(file.resolve()))
        source = replace(source, positives=positives)
    return {
        name: str(value.resolve()) if isinstance(value, Path) else value
        for name, value in asdict(source).items()
    }


def source_from_json(values: dict[str, Any]) -> Source:
    """What `source_as_json` gave; LookupError or TypeError for anything else."""
    names = ("dataset", "database", "queries", "positives_file")
    paths = {name: values[name] and Path(values[name]) for name in names}
    positives = PositivesConfig(**values["positives"])
    labels, keep_self = (bool(values.get(name, False)) for name in ("labels", "keep_self"))
    split = str(values.get("split", ""))
    return Source(**paths, positives=positives, labels=labels, keep_self=keep_self, split=split)


def point_to(store: FeatureStore) -> None:
    """Say in the folder above it that this store is the one that is meant, all being written."""
    content = json.dumps({"store": store.folder.name}) + "\n"
    write_atomically(store.folder.parent / _POINTER, content)


def find_store(folder: Path) -> FeatureStore:
    """The store in ``folder``: the folder itself, or the one that its store.json points to.

    Raises InputError, listing what is there, where there is none.
    """
    pointer = folder / _POINTER
    if not pointer.is_file():
        if (folder / MANIFEST).is_file():
            return FeatureStore(folder)
        there = _listed([each.name for each in _folders(folder)])
        raise InputError(
            f"{folder} holds no local features (no {_POINTER} or store); there {there}"
        )
    try:
        name = str(json.loads(pointer.read_bytes())["store"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{pointer} is damaged ({error}); delete it and extract the features again"
        ) from error
    if not (folder / name).is_dir():
        raise InputError(
            f"{pointer} names {folder / name}, which is missing; extract the features again"
        )
    return FeatureStore(folder / name)


def open_features(root: Path, dataset: str | None = None) -> tuple[PhotoSet, SetFeatures]:
    """The photo set ``dataset`` with its features below ``root``; None: those that root itself has.

    The photos may have gone since. Raises InputError, listing what is there, where features or
    ground truth are missing.
    """
    if dataset is not None and not (root / dataset).is_dir():
        raise _no_features(root, dataset)
    store = find_store(root if dataset is None else root / dataset)
    told = store.made_by.photos
    try:
        source = source_from_json(told["source"])
    except (LookupError, TypeError) as error:
        raise InputError(
            f"{store.folder} does not tell which photos its features are of: extract them again"
        ) from error
    photos = open_set(source, need_photos=False)
    return photos, features_of_set(photos, store)


def open_kinds(
    roots: Sequence[Path], dataset: str | None = None
) -> tuple[PhotoSet, list[SetFeatures]]:
    """`open_features` of several roots: one photo set, and each kind of features of it.

    Raises InputError as that does, and where they are not of the same photos.
    """
    opened = [open_features(root, dataset) for root in roots]
    photos, first = opened[0]
    for root, (_, features) in zip(roots, opened, strict=True):
        if features.queries.names != first.queries.names or (
            features.database.names != first.database.names
        ):
            raise InputError(f"{root} has features of other photos than {roots[0]}")
    return photos, [features for _, features in opened]


def sets_of(root: Path, names: Sequence[str]) -> list[str | None]:
    """The sets of ``names`` below ``root``; [None] where ``root`` is itself a set or a store."""
    is_one = any((root / file).is_file() for file in (_POINTER, MANIFEST))
    return [None] if is_one else list(names)


def check_complete(features: SetFeatures) -> None:
    """InputError where the store lacks features of a photo of the set."""
    every = [part.missing(range(len(part))) for part in (features.queries, features.database)]
    _refuse_missing(features, every[0] + every[1])


def check_not_binary(features: SetFeatures, what: str) -> None:
    """InputError, saying that ``what`` takes none, where the store has binary codes."""
    if features.store.form == "binary":
        raise InputError(
            f"{features.store.folder} has binary codes, and {what} take none: name the store that "
            "it was made from, or one of --form 8bit"
        )


def missing_of(features: SetFeatures, heads: np.ndarray) -> list[str]:
    """The photos in the ``heads`` (Q, k) of a ranking, queries too, without features; -1: none."""
    queries = features.queries.missing(np.flatnonzero((heads >= 0).any(axis=1)))
    return queries + features.database.missing(np.unique(heads[heads >= 0]))


def _refuse_missing(features: SetFeatures, missing: Sequence[str]) -> None:
    if missing:
        count = len(features.queries) + len(features.database)
        raise InputError(
            f"{features.store.folder} has no features of {len(missing)} of {count} photos (the "
            f"first is {missing[0]}); run the same extraction again (eval.py: with "
            "--all_local_features)"
        )


def stored_features(
    photos: PhotoSet, store: FeatureStore, heads: np.ndarray | None = None
) -> SetFeatures:
    """The features in ``store``, with which the ``heads`` (Q, k) of a ranking can be verified.

    Raises InputError where it is of other photos, or lacks features of some of them.
    """
    told, own = store.made_by.photos, photos.fingerprint()
    if told.get("fingerprint") != own:
        source = told.get("source") or {}
        named = source.get("dataset") or source.get("database") or "others"
        raise InputError(
            f"{store.folder} has features of other photos ({named}), or photos, boxes or positives "
            f"changed since it was made; extract those of {photos.folder}"
        )
    features = features_of_set(photos, store)
    _refuse_missing(features, [] if heads is None else missing_of(features, heads))
    return features


def _no_features(root: Path, dataset: str) -> InputError:
    if root.is_dir():
        known = [path.parent.name for path in root.glob(f"*/{_POINTER}")]
        return InputError(
            f"{root} has no features of {dataset!r}; there {_listed(known)}; extract them, or "
            "name other --test-datasets"
        )
    return InputError(
        f"{root}: no such folder of features; in {root.parent} there "
        f"{_listed([folder.name for folder in _folders(root.parent)])}; is --root-directory right?"
    )


def _folders(place: Path) -> list[Path]:
    return [each for each in place.iterdir() if each.is_dir()] if place.is_dir() else []


def _listed(names: Sequence[str]) -> str:
    return f"are {', '.join(sorted(names))}" if names else "is nothing"


def sample_descriptors(features: Sequence[LocalFeatures], most: int, seed: int) -> list[np.ndarray]:
    """Descriptors (n, d) of photos drawn at random, until there are ``most`` of them."""
    drawn: list[np.ndarray] = []
    total = 0
    for row in np.random.default_rng(seed).permutation(len(features)):
        if total >= most:
            break
        drawn.append(features[int(row)].descriptors)
        total += len(drawn[-1])
    return drawn
