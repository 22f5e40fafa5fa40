"""Exchange features, rankings and matches with hloc (Hierarchical-Localization), as its .h5 files.

export: of a run folder (eval.py, voc_tree.main) or a feature store FROM, into TO: features.h5; of a
run also pairs.txt and matches.h5, and global-feats.h5 if it was made with --save_descriptors.
import: the features.h5 FROM becomes a feature store of a photo set, in TO/NAME/SET, NAME being the
file's. With --global_feats, a run folder too.

Examples:
    python3 AG/hloc_files.py export logs/default/DATE hloc_outputs
    python3 AG/hloc_files.py import features.h5 features --dataset_folder data/test/roxford5k
"""

from retrieval.commands import hloc_flags, script

if __name__ == "__main__":  # -h need not wait for what is imported below
    script.answer(hloc_flags.read_hloc, __doc__)

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from retrieval import evaluation, feature_folders, global_search, progress, protocol, report
from retrieval.configs.judge import EvaluationConfig
from retrieval.configs.run import Resources
from retrieval.data import hloc_h5, images
from retrieval.data.contents import content_hashes
from retrieval.data.photo_sets import Photo, PhotoSet, contents, distinct, open_set
from retrieval.drawing.html_report.page import write_report
from retrieval.errors import InputError
from retrieval.evaluation import Evaluation
from retrieval.feature_folders import SetFeatures
from retrieval.features import FeatureStore, LocalFeatures
from retrieval.global_search import Descriptors
from retrieval.matching import match_distances
from retrieval.progress import Clock
from retrieval.saved_run import RESULT
from retrieval.verification import Pair, match

log = logging.getLogger("hloc_files")

# Names of queries and of database photos, in their order.
Names = tuple[list[str], list[str]]

# By how much halves may move the norm of a descriptor of unit norm.
_ROUNDING = 0.01


def main(argv: Sequence[str] | None = None) -> None:
    """Write hloc's files, or take them in."""
    asked = hloc_flags.read_hloc(__doc__, argv)
    if asked.action == "export" and (asked.path / RESULT).is_file():
        run = Evaluation.open(asked.path)
        if run.features is not None:
            export_features(run.photos, run.features, asked.folder)
        export_ranking(run, asked.folder, asked.num_matched)
        if run.verified is not None:
            export_matches(run, asked.folder, asked.num_matched, only_inliers=asked.only_inliers)
        export_global(run, asked.folder)
    elif asked.action == "export":
        export_features(*feature_folders.open_features(asked.path), asked.folder)
    else:
        photos = open_set(asked.source)
        names = hloc_names(photos, asked.image_dir)
        folder = asked.folder / asked.path.stem / photos.name
        store = import_features(photos, names, asked.path, folder)
        log.info("%s: features of %d photos in %s", photos.name, len(store), folder)
        if asked.global_feats is not None:
            run = search(photos, global_descriptors(names, asked.global_feats), store)
            save(run, script.open_run(asked.root))


def hloc_names(photos: PhotoSet, image_dir: Path | None = None) -> Names:
    """What hloc calls the queries and the database photos: their paths below ``image_dir``.

    None: below the set's folder. A query of which a box is described, while the database has all of
    it, is called query/NAME.
    """
    folder = (image_dir or photos.folder).absolute()

    def name(photo: Photo) -> str:
        return Path(os.path.relpath(photo.path.absolute(), folder)).as_posix()

    database = [name(photo) for photo in photos.database_photos]
    taken = set(database)
    queries = [
        "query/" * (photo.box is not None and name(photo) in taken) + name(photo)
        for photo in photos.query_photos
    ]
    return distinct(queries), database


# ---- to hloc


def export_features(photos: PhotoSet, local: SetFeatures, folder: Path) -> None:
    """Write features.h5: of each photo that the store has, under its name."""
    feature_folders.check_not_binary(local, "hloc's files")
    queries, database = hloc_names(photos)
    parts = [(database, local.database), (queries, local.queries)]
    every = {name: (part, row) for names, part in parts for row, name in enumerate(names)}
    count = 0
    with hloc_h5.written(folder / "features.h5") as file, progress.bar("features.h5", len(every)):
        for name, (part, row) in every.items():
            if not part.missing([row]):
                file.put(name, as_hloc(part[row]))
                count += 1
            progress.advance()
    log.info("%s: features of %d of %d photos", folder / "features.h5", count, len(every))


def as_hloc(features: LocalFeatures) -> dict[str, np.ndarray]:
    """Local features as hloc's arrays; a pixel of what was described is their uncertainty."""
    arrays: dict[str, np.ndarray | None] = {
        "keypoints": features.keypoints,
        "descriptors": features.descriptors.T,
        "scores": features.scores,
        "scales": features.scales,
        "oris": features.orientations,
        "image_size": np.array(features.image_size),
        "uncertainty": np.array(features.unit, np.float32),
    }
    return {name: array for name, array in arrays.items() if array is not None}


def pairs_of(run: Evaluation, count: int) -> Iterator[tuple[int, int]]:
    """The first ``count`` database rows of each query in the last ranking, as pairs of rows."""
    for query, row in enumerate(run.last.ranking.rows[:, :count]):
        yield from ((query, int(each)) for each in row if each >= 0)


def export_ranking(run: Evaluation, folder: Path, count: int) -> None:
    """Write pairs.txt: the first ``count`` predictions of each query."""
    queries, database = hloc_names(run.photos)
    pairs = [(queries[query], database[row]) for query, row in pairs_of(run, count)]
    hloc_h5.write_pairs(folder / "pairs.txt", pairs)
    log.info("%s: %d pairs", folder / "pairs.txt", len(pairs))


def export_matches(run: Evaluation, folder: Path, count: int, *, only_inliers: bool) -> None:
    """Write matches.h5: of each pair of pairs.txt, matched and verified as the run did."""
    verified, local = run.local()
    if count > verified.config.top_k:
        raise InputError(
            f"--num_matched {count}: {run.place} verified the first {verified.config.top_k}"
        )
    queries, database = hloc_names(run.photos)
    pairs = list(pairs_of(run, count))
    with (
        hloc_h5.written(folder / "matches.h5") as file,
        progress.bar("matches", len(pairs), "pairs"),
    ):
        written = set()
        for query, row in pairs:
            name = hloc_h5.pair_name(queries[query], database[row])
            whole = local.queries[query]
            if name not in written:
                pair = match(whole, local.database[row], verified.config.geometry)
                file.put(name, matches_as_hloc(pair, len(whole), only_inliers=only_inliers))
                written.add(name)
            progress.advance()
    log.info("%s: matches of %d pairs", folder / "matches.h5", len(written))


def matches_as_hloc(pair: Pair, count: int, *, only_inliers: bool) -> dict[str, np.ndarray]:
    """The row that each of ``count`` query features matches, or -1; and how alike, 0 to 1."""
    rows = pair.matches[pair.inliers] if only_inliers else pair.matches
    matches, scores = np.full(count, -1, np.int32), np.zeros(count, np.float16)
    matches[rows[:, 0]] = rows[:, 1]
    distances = match_distances(pair.query.descriptors, pair.database.descriptors, rows)
    scores[rows[:, 0]] = 1 - distances**2 / 4  # (1 + cosine) / 2, as hloc's nearest neighbours
    return {"matches0": matches, "matching_scores0": scores}


def export_global(run: Evaluation, folder: Path) -> None:
    """Write global-feats.h5, where the run kept its descriptors."""
    assert run.folder is not None
    files = [run.folder / f"{part}_descriptors.npy" for part in ("queries", "database")]
    if not all(file.is_file() for file in files):
        log.info("no global-feats.h5: %s was made without --save_descriptors", run.folder)
        return
    every: dict[str, np.ndarray] = {}
    for names, file in zip(hloc_names(run.photos), files, strict=True):
        every |= dict(zip(names, np.load(file, allow_pickle=False), strict=True))
    with hloc_h5.written(folder / "global-feats.h5") as groups:
        for name, descriptor in every.items():
            groups.put(name, {"global_descriptor": descriptor})
    log.info("%s: %d descriptors", folder / "global-feats.h5", len(every))


# ---- from hloc


def import_features(photos: PhotoSet, names: Names, path: Path, folder: Path) -> FeatureStore:
    """A store in ``folder`` with the features of features.h5; what is there already is kept."""
    (content,) = content_hashes([path]) if path.is_file() else [""]
    store = feature_folders.open_store(photos, path.stem, {"content": content}, folder)
    every = zip(
        [*photos.query_photos, *photos.database_photos], [*names[0], *names[1]], strict=True
    )
    missing = [(photo, name) for photo, name in every if photo.name not in store]
    described = contents([photo for photo, _ in missing])
    found = hloc_h5.read_features(path, [name for _, name in missing])
    with store.writer() as writer, progress.bar(path.name, len(missing)):
        for (photo, _), arrays, content in zip(missing, found, described, strict=True):
            writer.put(photo.name, from_hloc(arrays, photo, path), content)
            progress.advance()
    feature_folders.point_to(store)
    return store


def from_hloc(arrays: dict[str, np.ndarray], photo: Photo, path: Path) -> LocalFeatures:
    """The features of a photo, strongest first, descriptors of unit norm; those in its box alone.

    Raises InputError where they are of an image of another size.
    """
    width, height = (int(side) for side in arrays["image_size"])
    full = images.image_size(photo.path)
    if (width, height) != full:
        raise InputError(
            f"{path}: the features of {photo.path} are of {width}×{height} pixels, the photo has "
            f"{full[0]}×{full[1]}, turned as its EXIF data say (hloc may not turn photos)"
        )
    order = np.argsort(-arrays["scores"], kind="stable")
    if photo.box is not None:
        left, top, right, bottom = np.array(images.pixel_box(photo.box, full)) - 0.5
        x, y = arrays["keypoints"][order].T
        order = order[(x >= left) & (x <= right) & (y >= top) & (y <= bottom)]
    norm = np.linalg.norm(arrays["descriptors"], axis=1, keepdims=True)
    norm[np.abs(norm - 1) < _ROUNDING] = 1
    rows = {
        name: arrays[name][order] for name in arrays if name not in ("image_size", "uncertainty")
    }
    unit = float(arrays.get("uncertainty", 1))
    return LocalFeatures(
        keypoints=rows["keypoints"],
        descriptors=rows["descriptors"] / np.maximum(norm[order], 1e-12),
        scores=rows["scores"],
        image_size=full,
        scales=rows.get("scales"),
        orientations=rows.get("oris"),
        unit=unit if 0 < unit < np.inf else 1.0,
    )


def global_descriptors(names: Names, path: Path) -> Descriptors:
    """The descriptors in global-feats.h5, made of unit norm."""
    queries, database = (hloc_h5.read_global(path, part) for part in names)
    for rows in (queries, database):
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return Descriptors(queries, database)


def search(photos: PhotoSet, described: Descriptors, store: FeatureStore) -> Evaluation:
    """Rank by global descriptors, re-rank by local features."""
    config, clock = EvaluationConfig(), Clock()
    assert config.rerank is not None
    ranked = global_search.rank(described, photos, global_search.depth_of(photos, config), clock)
    head = ranked.rows[:, : config.rerank.top_k]
    local = feature_folders.stored_features(photos, store, head)
    found = global_search.verify(ranked, [local], [config.rerank], Resources(), clock)
    evidence = evaluation.verified_by(found, [config.rerank], [local])
    rankings = {"global": ranked, "reranked": found.ranking}
    settings = {
        "global descriptors": hashlib.sha256(described.database.tobytes()).hexdigest()[:16],
        **evaluation.told_of(evidence),
    }
    return Evaluation(
        title=f"{photos.name} by hloc's files, {store.made_by.extractor}",
        photos=photos,
        steps=tuple(evaluation.score(*each, photos) for each in rankings.items()),
        protocol=protocol.protocol_of(photos, settings),
        seconds=clock.seconds,
        evidence=evidence,
        skipped=described.skipped(photos),
    )


def save(run: Evaluation, folder: Path) -> None:
    """Write the run folder of an evaluation, and print its figures."""
    run = run.save(folder)
    log.info("%s", report.table(run))
    report.write_predictions(folder / "predictions.csv", run, 20)
    write_report(folder / "report.html", run, 50)
    log.info("result: %s", folder / RESULT)


if __name__ == "__main__":
    script.run(main)
