"""LocalFeatures: what every extractor makes, and every matcher takes; the store that keeps them."""

import hashlib
import json
import mmap
import threading
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from retrieval.compact.forms import TYPES, packed, unpacked
from retrieval.configs.describe import Form
from retrieval.errors import InputError
from retrieval.files import read_json, sealed, write_atomically

# Version of the stores that are written here; others are not read.
FORMAT = 3


@dataclass(frozen=True)
class LocalFeatures:
    """The local features of one image; rows are features, strongest first.

    keypoints:    (N, 2) float32, x and y in pixels of the original image (after its EXIF
                  orientation); the centre of the top-left pixel is (0, 0).
    descriptors:  (N, d) float32 (float16 when read from a store that keeps halves); or binary
                  codes, (N, bits / 8) uint8, see `retrieval.compact`.
    scores:       (N,) float32, the attention or detector response; higher is stronger.
    image_size:   (width, height) of the original image in pixels.
    scales:       (N,) float32, the size of a feature in pixels, or None.
    orientations: (N,) float32, radians, or None.
    unit:         the side of a pixel of what was described, in pixels of the original image: above
                  1 where it was reduced first. Residuals are measured in it.
    """

    keypoints: np.ndarray
    descriptors: np.ndarray
    scores: np.ndarray
    image_size: tuple[int, int]
    scales: np.ndarray | None = None
    orientations: np.ndarray | None = None
    unit: float = 1.0

    def __post_init__(self) -> None:
        n = len(self.keypoints)
        if self.keypoints.shape != (n, 2):
            raise ValueError(f"keypoints must be (N, 2), not {self.keypoints.shape}")
        for name in ("descriptors", "scores", "scales", "orientations"):
            rows = getattr(self, name)
            if rows is not None and len(rows) != n:
                raise ValueError(f"{n} keypoints but {len(rows)} {name}")

    def __len__(self) -> int:
        return len(self.keypoints)

    @classmethod
    def nothing(cls, dimensions: int | None = None) -> "LocalFeatures":
        """No features, as of a photo that could not be decoded."""
        none = np.empty(0, np.float32)
        return cls(none.reshape(0, 2), none.reshape(0, dimensions or 1), none, (1, 1))

    def strongest(self, count: int | None) -> "LocalFeatures":
        """The first ``count`` features (None: all), as views."""
        if count is None or count >= len(self):
            return self
        return replace(self, **{name: rows[:count] for name, rows in self.arrays().items()})

    def arrays(self) -> dict[str, Any]:
        """The arrays that are there, by the names of their fields."""
        arrays = {name: getattr(self, name) for name in _FIELDS}
        return {name: rows for name, rows in arrays.items() if rows is not None}


_FIELDS = tuple(TYPES["half"])

MANIFEST = "manifest.json"

# What a shard raises that is cut, changed, or lacks a field.
_SHARD_ERRORS = (OSError, ValueError, TypeError, OverflowError, safetensors.SafetensorError)
_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError)  # of a manifest

# Shards kept open at a time, well below the usual limit of 1024 files.
_MOST_OPEN = 256


class _Place(NamedTuple):
    """Where a photo's features lie: rows start to stop of a shard; descriptors of d numbers.

    crc32: of the shard; content: of the photo (`photo_sets.contents`), None where it is not known.
    """

    shard: Path
    start: int
    stop: int
    image_size: tuple[int, int]
    unit: float
    dimensions: int
    crc32: int
    content: str | None


@dataclass(frozen=True)
class MadeBy:
    """All that local features depend on, as plain values (what JSON holds).

    extractor: "delg", "delf", "sift", or what other tools call themselves.
    settings:  of the extractor: hash of the weights, scales, size of the photos, …; under
               ``compact`` what a compact store was made by.
    photos:    where the photos lie (``source``), and their ``fingerprint``.
    """

    extractor: str
    settings: Mapping[str, Any]
    photos: Mapping[str, Any]

    @property
    def form(self) -> Form:
        """How the features are kept; InputError for a form that this version does not know."""
        form: Form = self.settings.get("compact", {}).get("form", "half")
        if form not in TYPES:
            raise InputError(
                f"local features of an unknown form, {form}: expected {', '.join(TYPES)}"
            )
        return form


class FeatureStore:
    """LocalFeatures on disk, by the name of their photo; readable by any number of threads.

    The features of several images lie end to end in a shard, an immutable safetensors file. A .json
    file of the same name tells which images these are; it is written last, and without it a shard
    does not count. So a killed writer loses what it had not flushed and nothing else, and several
    processes may write to one store: no two choose one name, and no file is ever changed. Where two
    have stored one image, either answer is given. Shards are mapped into memory; only what is asked
    for is copied. A shard's checksum is compared once, before anything is taken from it.
    """

    def __init__(self, folder: Path) -> None:
        """Open a store that is there; `open` makes one.

        Raises InputError, naming the file and the remedy, for a folder that is no store, a damaged
        manifest, and a shard that is missing or cut short.
        """
        self.folder = folder
        self.made_by = read_made_by(folder / MANIFEST)
        self.form = self.made_by.form
        self._lock = threading.Lock()
        self._open_shards: dict[Path, Any] = {}
        self._whole: set[Path] = set()  # shards whose checksum has been compared
        self._places: dict[str, _Place] = {}
        for manifest in sorted(folder.glob("shard-*.json")):
            self._places |= _read_manifest(manifest)

    @classmethod
    def open(cls, folder: Path, made_by: MadeBy) -> "FeatureStore":
        """The store of features ``made_by`` this below ``folder``, made if it is not there.

        Each has a subfolder, named by the hash of all of it; ``manifest.json`` there shows it.
        Raises InputError as the constructor does.
        """
        folder = folder / _store_name(made_by)
        manifest = folder / MANIFEST
        if not manifest.exists():
            content = sealed({"format": FORMAT, **asdict(made_by)})
            write_atomically(manifest, json.dumps(content, indent=1, sort_keys=True))
        store = cls(folder)
        if _store_name(store.made_by) != folder.name:
            raise InputError(f"{manifest} is damaged; delete the folder {folder}")
        return store

    @property
    def dimensions(self) -> int | None:
        """Numbers of a descriptor (of codes: bytes); None while there are no features."""
        filled = (place for place in self._places.values() if place.stop > place.start)
        return next((place.dimensions for place in filled), None)

    @property
    def bytes_per_image(self) -> float:
        """Bytes on disk, of features and of the list of photos, for each photo; 0 for no photos."""
        shards = {place.shard for place in self._places.values()}
        files = [path for shard in shards for path in (shard, shard.with_suffix(".json"))]
        return sum(path.stat().st_size for path in files) / max(1, len(self))

    @property
    def cost(self) -> str:
        """What it costs in words: ``binary, 341 features and 8,102 bytes a photo``."""
        count = sum(self.counts()) / max(1, len(self))
        return f"{self.form}, {count:,.0f} features and {self.bytes_per_image:,.0f} bytes a photo"

    def counts(self) -> list[int]:
        """How many features each photo has, in the order of `names`."""
        places = (self._places[name] for name in self.names())
        return [place.stop - place.start for place in places]

    def names(self) -> list[str]:
        """The names of all photos in the store, sorted."""
        return sorted(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> LocalFeatures:
        """The features of an image, descriptors as float16 (8-bit: float32; binary: codes).

        KeyError if it is not in the store.
        """
        place = self._places[name]
        try:
            shard = self._open_shard(place)
            fields = {n: self._rows(shard, n, place) for n in {*_FIELDS} & {*shard.keys()}}
            fields = unpacked(fields, self.form, place.image_size)
            if place.start == place.stop and place.dimensions == 1:  # see `LocalFeatures.nothing`
                fields["descriptors"] = np.empty((0, self.dimensions or 1), np.float16)
            return LocalFeatures(**fields, image_size=place.image_size, unit=place.unit)
        except _SHARD_ERRORS as error:
            raise _damaged(place.shard, str(error)) from error

    def content(self, name: str) -> str | None:
        """What was described of an image; None where that is not known."""
        return self._places[name].content

    def described_size(self, name: str) -> tuple[int, int]:
        """The (width, height) of an image as it was described; KeyError if it is not there."""
        place = self._places[name]
        width, height = (round(side / place.unit) for side in place.image_size)
        return width, height

    def writer(self, images_per_shard: int = 128) -> "FeatureWriter":
        """A writer whose images join this store when a shard is full, flushed or the block ends."""
        return FeatureWriter(self, images_per_shard)

    def add_shard(self, manifest: Path) -> None:
        """Take in a shard that was written since the store was opened."""
        places = _read_manifest(manifest)
        with self._lock:
            self._places = self._places | places

    def _rows(self, shard: Any, name: str, place: _Place) -> np.ndarray:
        """An image's rows of a field, read from an open shard."""
        rows = shard.get_slice(name)
        if place.start == place.stop:  # safetensors refuses an empty slice at the end
            return np.empty((0, *rows.get_shape()[1:]), TYPES[self.form][name])
        return rows[place.start : place.stop]

    def _open_shard(self, place: _Place) -> Any:
        path = place.shard
        with self._lock:
            if path not in self._whole:
                if _crc32(path) != place.crc32:
                    raise ValueError("its checksum is wrong")
                self._whole.add(path)
            if path not in self._open_shards:
                if len(self._open_shards) >= _MOST_OPEN:
                    self._open_shards.pop(next(iter(self._open_shards)))
                self._open_shards[path] = safetensors.safe_open(path, "np")
            return self._open_shards[path]


class FeatureWriter:
    """Puts features into a store, a shard at a time, in a ``with`` block and from any thread."""

    def __init__(self, store: FeatureStore, images_per_shard: int) -> None:
        self._store = store
        self._images_per_shard = images_per_shard
        self._lock = threading.RLock()
        self._waiting: dict[str, tuple[LocalFeatures, str | None]] = {}
        self._dimensions: int | None = None

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def put(self, name: str, features: LocalFeatures, content: str | None = None) -> None:
        """Add an image; on disk once its shard is full or flushed.

        content: what was described of it (`photo_sets.contents`), if that is known.
        Raises ValueError if the image is in the store, InputError for descriptors that are not
        finite, too large for halves, or of other dimensions than the store's.
        """
        kept = _as_stored(name, features, self._store.form)
        with self._lock:
            self._check_dimensions(name, kept)
            if name in self._waiting or name in self._store:
                raise ValueError(f"the features of {name!r} are already in {self._store.folder}")
            if self._waiting and _layout(kept) != _layout(next(iter(self._waiting.values()))[0]):
                self.flush()  # all images of a shard have the same fields, of the same width
            self._waiting[name] = kept, content
            if len(self._waiting) >= self._images_per_shard:
                self.flush()

    def _check_dimensions(self, name: str, features: LocalFeatures) -> None:
        if len(features) == 0:
            return
        width = features.descriptors.shape[1]
        self._dimensions = self._dimensions or self._store.dimensions or width
        if width != self._dimensions:
            raise InputError(
                f"{name}: descriptors of {width} dimensions, but those in {self._store.folder} "
                f"have {self._dimensions}"
            )

    def flush(self) -> None:
        """Write what waits as a shard, whole and on the disk when this returns."""
        with self._lock:
            if not self._waiting:
                return
            images = [image for image, _ in self._waiting.values()]
            tensors = {
                name: np.concatenate([getattr(image, name) for image in images])
                for name in _layout(images[0])
            }
            data = safetensors.numpy.save(tensors)
            shard = self._store.folder / f"shard-{uuid.uuid4().hex}.safetensors"
            write_atomically(shard, data)
            entries = [entry(name, *waiting) for name, waiting in self._waiting.items()]
            manifest = shard.with_suffix(".json")
            told = {"bytes": len(data), "crc32": zlib.crc32(data), "images": entries}
            told["dimensions"] = tensors["descriptors"].shape[1]
            write_atomically(manifest, json.dumps(sealed(told)))
            self._store.add_shard(manifest)
            self._waiting = {}


def entry(name: str, features: LocalFeatures, content: str | None) -> list[Any]:
    """What the list of a shard's photos says of one, as plain values."""
    return [name, len(features), *features.image_size, features.unit, content]


def _as_stored(photo: str, features: LocalFeatures, form: Form) -> LocalFeatures:
    """The features in the types they are stored in."""
    if (features.descriptors.dtype == np.uint8) != (form == "binary") and len(features):
        raise ValueError(f"{photo}: binary codes go into stores of binary codes, and nothing else")
    fields: dict[str, Any] = packed(features.arrays(), form, features.image_size)
    if not all(np.isfinite(rows).all() for rows in (features.descriptors, fields["descriptors"])):
        raise InputError(
            f"{photo}: its descriptors have NaN or infinite values, or are too large for 16 bits; "
            "check the weights that made them"
        )
    return replace(features, **fields)


def _layout(features: LocalFeatures) -> dict[str, tuple[int, ...]]:
    """The shape of a row of each field that is there."""
    return {name: rows.shape[1:] for name, rows in features.arrays().items()}


def _store_name(made_by: MadeBy) -> str:
    """The hash of all that the features of a store are made by."""
    text = json.dumps({"format": FORMAT, **asdict(made_by)}, indent=1, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_made_by(manifest: Path) -> MadeBy:
    """What the features of a store are made by; InputError if its manifest is damaged."""
    try:
        content = read_json(manifest)
        version = content.pop("format")
        made_by = MadeBy(**content) if version == FORMAT else None
    except FileNotFoundError:
        raise InputError(f"{manifest.parent} is no feature store: it has no {MANIFEST}") from None
    except _DAMAGED as error:
        raise InputError(
            f"{manifest} is damaged ({error}); delete the folder {manifest.parent}"
        ) from error
    if made_by is None:
        raise InputError(
            f"{manifest} is of another version ({version}, not {FORMAT}): delete the folder "
            f"{manifest.parent} and extract the features again"
        )
    return made_by


def _read_manifest(manifest: Path) -> dict[str, _Place]:
    shard = manifest.with_suffix(".safetensors")
    try:
        content = read_json(manifest)
        if content.keys() != {"bytes", "crc32", "dimensions", "images"}:
            raise ValueError(f"its entries are {', '.join(content)}")
        num_bytes, told = int(content["bytes"]), (int(content["dimensions"]), int(content["crc32"]))
        places, start = {}, 0
        for name, count, width, height, unit, described in content["images"]:
            stop = start + int(count)
            if stop < start:
                raise ValueError(f"{name} has {count} features")
            size, unit = (int(width), int(height)), float(unit)
            if not 0 < unit < np.inf:
                raise ValueError(f"{name} was described in pixels of {unit}")
            places[str(name)] = _Place(shard, start, stop, size, unit, *told, described)
            start = stop
    except _DAMAGED as error:
        raise _damaged(manifest, str(error)) from error
    found = shard.stat().st_size if shard.exists() else None
    if found != num_bytes:
        problem = "it is missing" if found is None else f"{found} bytes instead of {num_bytes}"
        raise _damaged(shard, problem)
    return places


def _crc32(path: Path) -> int:
    """The checksum of a file, by way of its map: at some 4 GB/s."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return zlib.crc32(data)


def _damaged(path: Path, problem: str) -> InputError:
    return InputError(
        f"{path} is damaged ({problem}); delete {path.with_suffix('')}.* and its images are "
        "extracted again"
    )
