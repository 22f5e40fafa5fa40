"""Photo sets: what is searched and with what, and which answers are right, whatever the layout."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retrieval.configs.judge import PositivesConfig, Source
from retrieval.data import ground_truth, images, layouts, positives
from retrieval.data.contents import content_hashes, fingerprint
from retrieval.data.images import Box
from retrieval.data.manifest import Manifest, read_manifest
from retrieval.data.positives import Positives
from retrieval.data.whereabouts import Photos, Whereabouts, locate, right_answers
from retrieval.errors import InputError


class Photo(NamedTuple):
    """A photo of a set.

    name: what it is called in feature stores and reports. box: the part that is described, (left,
    top, right, bottom) in pixels; None: all of it.
    """

    path: Path
    name: str
    box: Box | None = None

    @property
    def shown(self) -> str:
        """The name without what tells queries from the database."""
        return self.name.removeprefix("query/").removeprefix("database/")


def contents(photos: Sequence[Photo]) -> list[str]:
    """What is described of each photo: a hash of its file, and its box."""
    hashes = content_hashes([photo.path for photo in photos])
    return [f"{found} {photo.box or ''}" for photo, found in zip(photos, hashes, strict=True)]


def check_photos(headers: Sequence[Path], *whole: "PhotoSet | None", skip: bool) -> None:
    """`images.check_photos` of these files, and of those of whole sets; nothing with ``skip``."""
    if not skip:
        images.check_photos(headers, [path for each in whole if each for path in each.files])


def as_photos(paths: Sequence[Path]) -> list[Photo]:
    """Whole photos that are named by their paths."""
    return [Photo(path, str(path)) for path in paths]


@dataclass(frozen=True)
class PhotoSet:
    """Query and database photos with their ground truth, a `Positives` for each protocol.

    folder:       that names are relative to.
    queries, database: the files.
    ground_truth: has the key ``R`` (recalls), the keys ``E``, ``M`` and ``H`` (revisited Oxford and
                  Paris), or none (no labels).
    query_boxes:  (left, top, right, bottom) in pixels, or None.
    source:       where the set came from; None for one that was put together in Python.
    selves:       for each query the rows of the database that are the query itself, which are left
                  out of its answers; None: of none.
    taken:        where queries and database were taken; None: as far as their names tell.
    """

    folder: Path
    queries: Sequence[Path]
    database: Sequence[Path]
    ground_truth: dict[str, Positives] = field(default_factory=dict)
    query_boxes: Sequence[Box] | None = None
    source: Source | None = None
    selves: Sequence[np.ndarray] | None = None
    taken: tuple[Whereabouts, Whereabouts] | None = None

    @property
    def files(self) -> list[Path]:
        """All photos, queries first."""
        return [*self.queries, *self.database]

    @property
    def name(self) -> str:
        """The set's name: that of the folder that holds it."""
        folder = self.folder.parent if self.folder.name == "jpg" else self.folder
        return folder.absolute().name or "photos"

    @property
    def protocol(self) -> str | None:
        """The key of the ground truth that right and wrong go by, R or M; None without labels."""
        return next((key for key in ("R", "M") if key in self.ground_truth), None)

    @cached_property
    def whereabouts(self) -> tuple[Whereabouts | None, Whereabouts | None]:
        """Where queries and database were taken; None where that is known of none."""
        return self.taken or (
            _by_names(self.folder, self.queries),
            _by_names(self.folder, self.database),
        )

    @property
    def truth(self) -> Positives | None:
        """What right and wrong go by; None without labels."""
        return None if self.protocol is None else self.ground_truth[self.protocol]

    @cached_property
    def query_photos(self) -> list[Photo]:
        """The queries with their names and boxes."""
        names = distinct([f"query/{self._relative(path)}" for path in self.queries])
        pairs = enumerate(zip(self.queries, names, strict=True))
        return [Photo(path, name, self.box(row)) for row, (path, name) in pairs]

    @cached_property
    def database_photos(self) -> list[Photo]:
        """The database photos with their names."""
        return [Photo(path, f"database/{self._relative(path)}") for path in self.database]

    def box(self, query: int) -> Box | None:
        """The box of a query, or None."""
        return None if self.query_boxes is None else self.query_boxes[query]

    def _relative(self, path: Path) -> str:
        # Both absolute, so that a name does not hang on how the folder was written.
        path, folder = path.absolute(), self.folder.absolute()
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)

    def fingerprint(self) -> str:
        """A hash of names, contents, boxes and ground truth: equal sets give equal results."""
        more = [repr([tuple(map(float, box)) for box in self.query_boxes or ()])]
        for name, truth in sorted(self.ground_truth.items()):
            more += [f"{name}{rows.tolist()}" for rows in [*truth.positives, *truth.junk]]
        return fingerprint(self.files, "".join(more))


def distinct(names: Sequence[str]) -> list[str]:
    """The names; of one that comes again, as a photo searched with two boxes does, ``name#2`` …"""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return result


def open_photos(
    folder: str | Path | None = None,
    *,
    database: str | Path | None = None,
    queries: str | Path | None = None,
    positives: str | Path | None = None,
    positions: str | Path = "auto",
    labels: bool = True,
) -> PhotoSet:
    """The photo set of a manifest, in a folder (of any layout), or in two of any photos.

    positives: a file that says what is right (`positives.from_file`), instead of positions.
    positions: where these come from, as ``PositivesConfig.positions``. labels: False where nothing
    is known to be right. Raises InputError as `open_set`.
    """
    given = tuple(path is not None for path in (folder, database, queries))
    if given not in ((True, False, False), (False, True, True)):
        raise InputError("name one folder, or database and queries")
    one, two, three, four = (
        None if path is None else Path(path) for path in (folder, database, queries, positives)
    )
    right = PositivesConfig(positions=str(positions))
    return open_set(Source(one, two, three, four, right, labels=labels))


def open_set(source: Source, *, need_photos: bool = True) -> PhotoSet:
    """The photo set of ``source``, whichever layout it has; InputError where something is missing.

    need_photos: False where names and ground truth are enough, as for revisited sets whose features
    are stored.
    """
    folder = source.dataset
    if folder is None:
        assert source.database is not None
        assert source.queries is not None
        return _open_folders(source, source.database, source.queries)
    if folder.is_file():
        return open_part(read_manifest(folder), source, need_photos=need_photos)
    if find_gnd(folder) is not None:
        return open_revisited(folder, labels=source.labels, need_photos=need_photos)
    return _open_places(source, folder)


def open_part(manifest: Manifest, source: Source, *, need_photos: bool = True) -> PhotoSet:
    """The split ``source.split`` of a manifest that lies, or will, in the file ``source.dataset``.

    What is right is as it says, but for what ``source`` asks for.
    """
    file = source.dataset
    assert file is not None
    if manifest.revisited:
        photos = open_revisited(manifest.folder, labels=source.labels, need_photos=need_photos)
        return replace(photos, source=source)
    part = manifest.part(source.split or "test", file)
    queries = part.queries or part.database
    every = dict.fromkeys([*queries.paths, *part.database.paths])
    missing = [path for path in every if not path.is_file()]
    if missing and need_photos:
        raise InputError(f"{file} names {len(missing)} photos that are missing, first {missing[0]}")
    opened = replace(
        source,
        positives=manifest.rule(source.positives),
        positives_file=manifest.positives_file,
        labels=source.labels and manifest.labels,
    )
    taken = None
    if queries.taken is not None and part.database.taken is not None:
        taken = queries.taken, part.database.taken
    folders = manifest.folder, manifest.folder
    if manifest.positives_file is not None:  # its names are relative to these
        folders = layouts.find_pair(manifest.folder) or folders
    sides = zip(folders, (part.database.paths, queries.paths), strict=True)
    return _judged(opened, *(Photos(folder, paths) for folder, paths in sides), taken=taken)


def _open_places(source: Source, folder: Path) -> PhotoSet:
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist: is --dataset_folder right?")
    pair = layouts.find_pair(folder)
    if pair is not None:
        return _open_folders(source, *pair)
    if layouts.is_single(folder):
        return _open_single(source, folder)
    raise InputError(
        f"{folder} has no folder queries or queries_v1 beside database, nor jpg/ with gnd_*.pkl or "
        f".json beside it (it has {layouts.listed([path.name for path in folder.iterdir()])})"
    )


def _open_single(source: Source, folder: Path) -> PhotoSet:
    """Photos in one folder, each searched among all others; of val, those that are held out."""
    paths = images.list_images(folder)
    whole = Photos(folder, paths)
    if source.split == "val":
        (found,) = locate([whole], source.positives)
        _, rows = layouts.divide(found, source.positives)
        whole = Photos(folder, [paths[row] for row in rows])
    return _judged(source, whole, whole)


def _open_folders(source: Source, database_folder: Path, queries_folder: Path) -> PhotoSet:
    """Any two folders of photos; positives from a file, else from where they were taken."""
    database = Photos(database_folder, images.list_images(database_folder))
    return _judged(source, database, Photos(queries_folder, images.list_images(queries_folder)))


def _judged(
    source: Source,
    database: Photos,
    queries: Photos,
    *,
    taken: tuple[Whereabouts, Whereabouts] | None = None,
) -> PhotoSet:
    """The set of these photos, with what is right in it; ``taken``, if that is known already."""
    if source.keep_self:
        selves = None
    elif source.database is None and queries.paths == database.paths:  # one folder of photos
        selves = list(np.arange(len(queries.paths)).reshape(-1, 1))
    else:
        selves = _selves(queries.paths, database.paths)
    truth: dict[str, Positives] = {}
    if source.labels and source.positives_file is not None:
        names = [
            [str(path.relative_to(photos.folder)) for path in photos.paths]
            for photos in (queries, database)
        ]
        truth["R"] = positives.from_file(source.positives_file, *names)
    elif source.labels:
        taken = taken or _located(queries, database, source.positives)
        truth["R"] = right_answers(*taken, source.positives)
    if selves is not None and max(map(len, selves)) == len(database.paths):
        raise InputError(f"{database.folder}: holds no photo but a query itself (--keep_self)")
    if truth and selves is not None:
        truth["R"] = truth["R"].without(selves)
    if truth and not any(map(len, truth["R"].positives)):
        raise InputError(
            f"{queries.folder}: no query has a right answer in {database.folder}; is "
            f"{source.positives_file or '--positive_dist_threshold'} right? (--no_labels: "
            "predictions alone)"
        )
    if truth:
        _warn_where_chance_is_right(truth["R"], database.folder, len(database.paths))
    folder = _common_folder(database.folder, queries.folder)
    return PhotoSet(
        folder, queries.paths, database.paths, truth, source=source, selves=selves, taken=taken
    )


def _warn_where_chance_is_right(truth: Positives, database_folder: Path, size: int) -> None:
    """A warning where a random first answer is more often right than wrong: R@1 tells nothing."""
    right = 100 * positives.chance(truth, size)
    if size > 1 and right > 50:
        images.warn_once(
            f"{database_folder}: a random first answer would be right for {right:.0f} % of the "
            "queries, so that the figures tell nothing. Are positions in metres (in names fields 1 "
            "and 2; not kilometres), and --positive_dist_threshold or --positives right?"
        )


def _selves(queries: Sequence[Path], database: Sequence[Path]) -> list[np.ndarray] | None:
    """For each query the database rows of the same file, or of a copy of the same name.

    None where there is none.
    """
    rows: dict[str, list[int]] = {}
    for row, path in enumerate(database):
        rows.setdefault(path.resolve().name, []).append(row)
    alike = [rows.get(path.resolve().name, []) for path in queries]
    asked = [path for path, near in zip(queries, alike, strict=True) if near]
    asked += [database[row] for near in alike for row in near]
    contents_of = dict(zip(asked, content_hashes(asked), strict=True))
    found = [
        np.array([row for row in near if contents_of[database[row]] == contents_of[path]], np.int64)
        for path, near in zip(queries, alike, strict=True)
    ]
    count = sum(len(each) > 0 for each in found)
    if count == 0:
        return None
    images.warn_once(
        f"{count} of {len(queries)} queries are in the database themselves: they are left out of "
        "their own answers (--keep_self keeps them)"
    )
    return found


def _by_names(folder: Path, paths: Sequence[Path]) -> Whereabouts | None:
    """Where photos were taken by their names, which need not tell."""
    try:
        by_names = PositivesConfig(positions="names")
        return locate([Photos(folder, paths)], by_names, complete=False)[0]
    except InputError:  # most sets have no positions
        return None


def _located(
    queries: Photos, database: Photos, config: PositivesConfig
) -> tuple[Whereabouts, Whereabouts]:
    try:
        taken = locate([queries, database], config)
    except InputError as error:
        raise InputError(
            f"{error}. Where they were taken may stand in names, in EXIF data or in a table "
            "(--positions). Without: --database_folder and --queries_folder with --positives FILE, "
            "or --no_labels for predictions alone"
        ) from error
    return taken[0], taken[1]


def _common_folder(first: Path, second: Path) -> Path:
    if first == second:
        return first
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
    source = Source(dataset=folder, labels=labels)
    return PhotoSet(folder / "jpg", queries, database, truth, boxes, source)


def _jpg(folder: Path, name: str) -> Path:
    """The photo of a name in imlist or qimlist, which may have its ending or not.

    Where there is none, the .jpg of the official sets.
    """
    path = folder / "jpg" / name
    if path.suffix.lower() in images.EXTENSIONS:
        return path
    endings = [ending for each in images.EXTENSIONS for ending in (each, each.upper())]
    found = (path.with_name(path.name + ending) for ending in endings)
    return next((each for each in found if each.is_file()), path.with_name(f"{path.name}.jpg"))


def find_test_set(data_root: Path, dataset: str) -> Path:
    """The folder of a test set, with ``jpg/`` and ``gnd_*``: DATA_ROOT/test/NAME or DATA_ROOT/NAME.

    Raises InputError that lists the test sets that are there.
    """
    places = [data_root / "test", data_root]
    for place in places:
        if find_gnd(place / dataset) is not None:
            return place / dataset
    folders = {gnd.parent for place in places for gnd in place.glob("*/gnd_*")}
    known = sorted(folder.name for folder in folders if find_gnd(folder) is not None)
    there = f"are {', '.join(known)}" if known else "is nothing"
    raise InputError(
        f"no test set {dataset!r} (jpg/ with gnd_{dataset}.pkl or .json beside it) in "
        f"{places[0]} or {places[1]}; there {there}; is --data-root right?"
    )
