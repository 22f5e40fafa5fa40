"""Whole files of every kind, small, and what reads them."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tests.made_up import evaluation_of

from retrieval import checkpoint, evaluation
from retrieval.commands.steps import Steps
from retrieval.configs.judge import Source
from retrieval.configs.learn import GroupConfig
from retrieval.configs.rank import MatchConfig, RerankConfig, TreeConfig
from retrieval.configs.rerank_file import read_rerank, write_rerank
from retrieval.data import images
from retrieval.data.ground_truth import read_gnd
from retrieval.data.photo_sets import open_set
from retrieval.data.positives import from_file
from retrieval.data.sfm_pairs import image_path, read_pairs
from retrieval.data.training_photos import load_groups
from retrieval.drawing.curves import read_losses
from retrieval.errors import InputError
from retrieval.feature_folders import features_of_set, find_store, made_from, point_to
from retrieval.features import FeatureStore, LocalFeatures, MadeBy
from retrieval.networks.weights import read_weights
from retrieval.protocol import protocol_of
from retrieval.training.run_folder import LossLog, RunFolder
from voc_tree import tree


def rng() -> np.random.Generator:
    """The same draws each time."""
    return np.random.default_rng(0)


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A photo of noise."""
    small = np.random.default_rng(seed).integers(0, 255, (9, 13, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def features(seed: int = 0, count: int = 20, dim: int = 8) -> LocalFeatures:
    """Local features of a photo."""
    draw = np.random.default_rng(seed)
    columns = draw.random((count, 3)).astype(np.float32)
    looks = draw.normal(size=(count, dim)).astype(np.float32)
    return LocalFeatures(99 * columns[:, :2], looks, columns[:, 2], (100, 100))


# ---- photos

FORMATS: dict[str, dict[str, Any]] = {
    "a.jpg": {"quality": 90},
    "progressive.jpg": {"progressive": True},
    "a.png": {},
    "a.webp": {},
    "a.bmp": {},
    "a.tif": {"compression": "tiff_lzw"},
}


def photos(folder: Path) -> list[Path]:
    """A photo in each format, one of 16 bits, and one that is to be turned."""
    for name, options in FORMATS.items():
        picture((96, 64)).save(folder / name, **options)
    grey = rng().integers(0, 1 << 16, (64, 96)).astype(np.uint16)
    Image.fromarray(grey).save(folder / "grey16.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture((96, 64)).save(folder / "turned.jpg", exif=exif)
    return sorted(folder.iterdir())


def read_photos(folder: Path) -> Any:
    """Size and pixels of each; an unreadable one is an error once the others have been read."""
    found, problem = [], None
    for path in sorted(folder.iterdir()):
        try:
            pixels = images.read_image(path), images.read_image(path, 40)
            found.append((images.image_size(path), *pixels))
        except images.ImageError as error:
            problem = error
    if problem is not None:
        raise problem
    return found


# ---- checkpoints and weights


def checkpoints(folder: Path) -> list[Path]:
    """A training state."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 8))
    state = {"model": model.state_dict(), "epoch": 1, "settings": {"lr": 0.1}, "best": None}
    checkpoint.save(folder / "last_checkpoint.pth", state)
    return [folder / "last_checkpoint.pth"]


def read_checkpoints(folder: Path) -> Any:
    """All that is in it."""
    return checkpoint.load(folder / "last_checkpoint.pth")


def foreign_weights(folder: Path) -> list[Path]:
    """Weights with CosPlace's names, as torch.save writes them."""
    torch.manual_seed(0)
    state = {f"backbone.0.{name}": torch.randn(8, 3) for name in ("weight", "bias")}
    state |= {"aggregation.1.p": torch.tensor([3.0]), "aggregation.3.weight": torch.randn(8, 8)}
    torch.save(state, folder / "cosplace.pth")
    return [folder / "cosplace.pth"]


def read_foreign_weights(folder: Path) -> Any:
    """The weights under this project's names."""
    return read_weights(folder / "cosplace.pth").state


# ---- features, trees, runs


def store(folder: Path) -> list[Path]:
    """Two shards of features, and the file that points to their store."""
    opened = FeatureStore.open(folder / "set", MadeBy("made up", {"dim": 8}, {}))
    for part in range(2):
        with opened.writer() as writer:
            for number in range(3):
                writer.put(f"{part}/{number}.jpg", features(3 * part + number))
    point_to(opened)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_store(folder: Path) -> Any:
    """All features."""
    opened = find_store(folder / "set")
    return [(name, opened[name]) for name in opened.names()], opened.made_by


def trees(folder: Path) -> list[Path]:
    """A tree of two levels."""
    looks = rng().normal(size=(200, 8)).astype(np.float32)
    tree.build(looks, TreeConfig(2, 3), {"made": "up"}).save(folder / "tree.safetensors")
    return [folder / "tree.safetensors"]


def read_trees(folder: Path) -> Any:
    """What it is made of, and the words of some descriptors."""
    built = tree.Tree.load(folder / "tree.safetensors")
    words = built.quantise(rng().normal(size=(50, built.dim)), 2)
    return built.centroids, built.first_child, built.config, built.features, words


def _photo_set(folder: Path) -> Source:
    for kind, count in (("database", 4), ("queries", 2)):
        for number in range(count):
            path = folder / kind / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture((48, 32), number).save(path)
    rows = {"positives_per_query": [[0], [1, 2]]}
    (folder / "positives.json").write_text(json.dumps(rows))
    return Source(None, folder / "database", folder / "queries", folder / "positives.json")


def runs(folder: Path) -> list[Path]:
    """The folder of an evaluation with its local features."""
    shown = open_set(_photo_set(folder / "photos"))
    opened = FeatureStore.open(folder / "features", made_from(shown, "made up", {}))
    with opened.writer() as writer:
        for number, photo in enumerate([*shown.query_photos, *shown.database_photos]):
            writer.put(photo.name, features(number))
    rankings = {"global": [[0, 1, 2, 3], [3, 2, 1, 0]], "reranked": [[1, 0, 2, 3], [2, 3, 1, 0]]}
    run = evaluation_of(
        shown,
        rankings,
        num_inliers=np.array([[9, 1, 0, 0], [0, 5, 0, 2]]),
        features=features_of_set(shown, opened),
        protocol=protocol_of(shown, {"weights": "none", "weights_sha256": "0" * 64}),
    )
    run.save(folder / "run")
    return [folder / "run" / name for name in ("result.json", "rankings.npz")]


def read_runs(folder: Path) -> Any:
    """Rankings, figures and settings."""
    run = evaluation.Evaluation.open(folder / "run")
    told = [
        (step.name, step.ranking.rows, step.ranking.similarity, step.figures) for step in run.steps
    ]
    assert run.verified is not None
    return told, run.verified.num_inliers, run.verified.config, run.title, run.notes


def rerank_file(folder: Path) -> list[Path]:
    """What tune.py chooses."""
    config = RerankConfig(top_k=17, floor=12.5, match=MatchConfig("mutual", 0.8))
    write_rerank(folder / "rerank.toml", config, ["chosen on 20 queries"])
    return [folder / "rerank.toml"]


def read_rerank_file(folder: Path) -> Any:
    """The settings."""
    return read_rerank(folder / "rerank.toml")


# ---- a training's folder; tables that are made anew

SETTINGS = {"lr": 0.1, "data": "city"}


def training(folder: Path) -> list[Path]:
    """The folder of a training that was killed, and the seconds of a longer work."""
    run = RunFolder.open(folder / "logs", SETTINGS)
    log = LossLog(run.path, 0, 0)
    for step in range(20):
        log.add(0, step, {"total": 1 / (step + 1), "global": 0.5})
    log.close()
    run.close()
    (folder / "seconds.json").write_text(json.dumps({"toy city": 3.5, "training": 7.0}))
    return [run.path / "settings.json", run.path / "losses.csv", folder / "seconds.json"]


def read_training(folder: Path) -> Any:
    """How many steps the training goes on from, and the work that is done."""
    run = RunFolder.open(folder / "logs", SETTINGS)
    try:
        LossLog(run.path, 0, 20).close()
        if (run.path / "losses.csv").read_text().count("\n") > 1:
            read_losses(run.path)
    finally:
        run.close()
    return Steps(folder / "seconds.json").seconds


def tables(folder: Path) -> list[Path]:
    """The cached table of a training set's classes."""
    (folder / "train").mkdir()
    for number in range(12):
        picture((32, 32)).save(folder / "train" / f"@{number % 2}@0@@@@@@@90@@@@@@{number}.jpg")
    read_tables(folder)
    return sorted((folder / "cache").iterdir())


def read_tables(folder: Path) -> Any:
    """Its classes."""
    config = GroupConfig(groups_num=1, min_images_per_class=2)
    paths, groups = load_groups(Source(folder / "train"), config, folder / "cache")
    return [str(path) for path in paths], [group.classes for group in groups]


# ---- what others write


def ground_truth(folder: Path) -> list[Path]:
    """Ground truth of a test set as pickle and as JSON, and the pairs of a training set."""
    entry = {"easy": [0], "hard": [1], "junk": [2], "bbx": [1.0, 2.0, 30.0, 40.0]}
    content = {"imlist": ["a", "b", "c"], "qimlist": ["q", "r"], "gnd": [entry, entry]}
    (folder / "gnd_a.json").write_text(json.dumps(content))
    arrays = {name: np.array(value) for name, value in entry.items()}
    content |= {"gnd": [arrays, arrays]}
    (folder / "gnd_a.pkl").write_bytes(pickle.dumps(content))
    (folder / "gnd_2.pkl").write_bytes(pickle.dumps(content, protocol=2))
    cids = [f"0123456789{number}" for number in range(4)]
    for cid in cids:
        path = image_path(folder / "sfm", cid)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    pairs = {"cids": cids, "cluster": [0, 0, 1, 1], "qidxs": [0, 2], "pidxs": [1, 3]}
    (folder / "sfm" / "sfm.pkl").write_bytes(pickle.dumps({"train": pairs, "val": pairs}))
    return [*sorted(folder.glob("gnd*")), folder / "sfm" / "sfm.pkl"]


def read_ground_truth(folder: Path) -> Any:
    """All of it; the last error once everything has been read."""
    found: list[Any] = []
    problem = None
    for path in sorted(folder.glob("gnd*")):
        try:
            found.append(read_gnd(path))
        except InputError as error:
            problem = error
    found.append(read_pairs(folder / "sfm", "train"))
    if problem is not None:
        raise problem
    return found


def positives(folder: Path) -> list[Path]:
    """Right answers as a table and as JSON."""
    (folder / "positives.csv").write_text("query.jpg,a.jpg;b.jpg\nother.jpg,\n")
    lists = {"query.jpg": ["a.jpg", "b.jpg"], "other.jpg": []}
    (folder / "positives.json").write_text(json.dumps(lists))
    (folder / "rows.json").write_text(json.dumps({"positives_per_query": [[0, 1], []]}))
    return sorted(folder.iterdir())


def read_positives(folder: Path) -> Any:
    """All of them; the last error once everything has been read."""
    found, problem = [], None
    for path in sorted(folder.iterdir()):
        try:
            found.append(from_file(path, ["query.jpg", "other.jpg"], ["a.jpg", "b.jpg"]))
        except InputError as error:
            problem = error
    if problem is not None:
        raise problem
    return found
