"""What is searched and with what: queries, database and ground truth, whatever their layout."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retrieval.configs.judge import PositivesConfig
from retrieval.data import ground_truth, images, places, positives
from retrieval.data.ground_truth import Positives
from retrieval.data.images import Box
from retrieval.errors import InputError


@dataclass(frozen=True)
class PhotoSet:
    """Query and database images with their ground truth, a `Positives` for each protocol.

    ``ground_truth`` has the key ``R`` (recalls), the keys ``E``, ``M`` and ``H`` (revisited
    Oxford/Paris), or none (no labels). ``query_boxes`` are (left, top, right, bottom) in pixels.
    """

    folder: Path
    queries: Sequence[Path]
    database: Sequence[Path]
    ground_truth: dict[str, Positives] = field(default_factory=dict)
    query_boxes: Sequence[Box] | None = None

    @property
    def truth(self) -> Positives | None:
        """What right and wrong go by: the positives of ``R``, or of ``M``; None without labels."""
        return self.ground_truth.get("R", self.ground_truth.get("M"))

    @property
    def query_ids(self) -> list[str]:
        """A name for each query in feature stores and reports."""
        return distinct([f"query/{self._relative(path)}" for path in self.queries])

    @property
    def database_ids(self) -> list[str]:
        """A name for each database image in feature stores and reports."""
        return [f"database/{self._relative(path)}" for path in self.database]

    def _relative(self, path: Path) -> str:
        # Both absolute, so that a name does not hang on how the folder was written.
        path, folder = path.absolute(), self.folder.absolute()
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)

    def box(self, query: int) -> Box | None:
        """The box of a query, or None."""
        return None if self.query_boxes is None else self.query_boxes[query]

    def fingerprint(self) -> str:
        """A hash of names, file sizes, boxes and ground truth: equal sets give equal results."""
        digest = hashlib.sha256()
        for path in [*self.queries, *self.database]:
            told = f"{path.name}:{path.stat().st_size};"
            digest.update(told.encode(errors="surrogateescape"))  # names need not be UTF-8
        digest.update(repr([tuple(map(float, box)) for box in self.query_boxes or ()]).encode())
        for name, truth in sorted(self.ground_truth.items()):
            for rows in [*truth.positives, *truth.junk]:
                digest.update(f"{name}{rows.tolist()}".encode())
        return digest.hexdigest()[:16]


def distinct(names: Sequence[str]) -> list[str]:
    """The names; of one that comes again, as a photo searched with two boxes does, ``name#2`` …"""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return result


@dataclass(frozen=True)
class Folders:
    """Where an evaluation set lies: in one folder (``dataset``), or in two."""

    dataset: Path | None = None
    database: Path | None = None
    queries: Path | None = None
    positives_file: Path | None = None


def open_set(folders: Folders, config: PositivesConfig, *, labels: bool = True) -> PhotoSet:
    """The evaluation set in these folders, whichever layout it has."""
    if folders.dataset is None:
        assert folders.database is not None
        assert folders.queries is not None
        return open_folders(
            folders.database, folders.queries, config, folders.positives_file, labels=labels
        )
    if find_gnd(folders.dataset) is not None:
        return open_revisited(folders.dataset, labels=labels)
    return open_places(folders.dataset, config, labels=labels)


def open_places(folder: Path, config: PositivesConfig, *, labels: bool = True) -> PhotoSet:
    """A split in the layout of SF-XS: ``folder/database`` and ``queries`` (or ``queries_v1``)."""
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist: is --dataset_folder right?")
    names = [name for name in ("queries", "queries_v1") if (folder / name).is_dir()]
    if not names:
        found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise InputError(f"{folder} has no folder queries or queries_v1 (it has {found})")
    return open_folders(folder / "database", folder / names[0], config, labels=labels)


def open_folders(
    database_folder: Path,
    queries_folder: Path,
    config: PositivesConfig,
    positives_file: Path | None = None,
    *,
    labels: bool = True,
) -> PhotoSet:
    """Any two folders of images; positives from a file, else from the positions in the names."""
    database = images.list_images(database_folder)
    queries = images.list_images(queries_folder)
    truth: dict[str, Positives] = {}
    if labels and positives_file is not None:
        query_names = [str(path.relative_to(queries_folder)) for path in queries]
        database_names = [str(path.relative_to(database_folder)) for path in database]
        truth["R"] = positives.from_file(positives_file, query_names, database_names)
    elif labels:
        truth["R"] = _by_names(queries, database, config)
    return PhotoSet(_common_folder(database_folder, queries_folder), queries, database, truth)


def _by_names(
    queries: Sequence[Path], database: Sequence[Path], config: PositivesConfig
) -> Positives:
    query_utm, query_heading = places.positions(queries)
    database_utm, database_heading = places.positions(database)
    return positives.by_distance(
        query_utm,
        database_utm,
        config.positive_dist_threshold,
        query_heading,
        database_heading,
        config.positive_angle,
    )


def _common_folder(first: Path, second: Path) -> Path:
    return first.parent if first.parent == second.parent else Path("/")


def find_gnd(folder: Path) -> Path | None:
    """The ground truth file of a folder in the layout of revisited Oxford/Paris, if it is one."""
    found = [*sorted(folder.glob("gnd_*.json")), *sorted(folder.glob("gnd_*.pkl"))]
    return found[0] if found and (folder / "jpg").is_dir() else None


def open_revisited(folder: Path, *, labels: bool = True, need_photos: bool = True) -> PhotoSet:
    """A test set like revisited Oxford/Paris: ``jpg/`` and ``gnd_*.pkl`` or ``.json``.

    Raises InputError where an image is missing, unless only names and ground truth are needed.
    """
    gnd = find_gnd(folder)
    if gnd is None:
        raise InputError(f"{folder} has no jpg/ with gnd_*.pkl or gnd_*.json beside it")
    revisited = ground_truth.read_gnd(gnd)
    queries = [_jpg(folder, name) for name in revisited.qimlist]
    database = [_jpg(folder, name) for name in revisited.imlist]
    missing = [path for path in [*queries, *database] if not path.is_file()]
    if missing and need_photos:
        raise InputError(f"{gnd} names {len(missing)} images that are missing, first {missing[0]}")
    boxes = None
    if revisited.boxes is not None:
        boxes = [
            (left, top, right, bottom) for left, top, right, bottom in revisited.boxes.tolist()
        ]
    truth = revisited.ground_truth if labels else {}
    return PhotoSet(folder / "jpg", queries, database, truth, boxes)


def _jpg(folder: Path, name: str) -> Path:
    return folder / "jpg" / (name if name.lower().endswith(".jpg") else f"{name}.jpg")
