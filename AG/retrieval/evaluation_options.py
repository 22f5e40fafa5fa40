"""What eval.py and show.py ask for: their flags, read into frozen configs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retrieval import delg, flags
from retrieval.checkpoint import PartsReport
from retrieval.cosplace import AugmentConfig
from retrieval.delg import DelgConfig
from retrieval.errors import InputError
from retrieval.evaluation_sets import Folders, PositivesConfig, find_gnd
from retrieval.extraction import ExtractConfig
from retrieval.flags import Asked
from retrieval.geometry import VerifyConfig
from retrieval.matching import MatchConfig
from retrieval.options import (
    LOGS,
    add_place_folders,
    add_predictions,
    add_resizing,
    add_run,
    add_weights,
    read_extraction,
    read_reranking,
    read_weights_flag,
    split_folder,
)
from retrieval.rerank import RerankConfig
from retrieval.trainer import TrainConfig
from retrieval.whitening import PcaConfig


@dataclass(frozen=True)
class EvaluationOptions:
    """All that eval.py is asked for; ``rerank`` is None where only the global ranking is wanted."""

    folders: Folders
    labels: bool
    positives: PositivesConfig
    weights: str
    network: DelgConfig
    extract: ExtractConfig
    rerank: RerankConfig | None
    pca: PcaConfig
    recall_values: tuple[int, ...]
    num_preds_to_save: int
    save_only_wrong_preds: bool
    save_descriptors: bool
    skip_bad_images: bool
    seed: int
    device: str
    root: Path


def check_weights_suffice(
    weights: str, network: DelgConfig, loaded: PartsReport, *, with_local: bool
) -> None:
    """InputError where a part that is used would be random without being asked for."""
    if weights == "none":
        return
    remedies = {}
    if network.head != "gem":  # GeM alone has one weight, its power, 3 where nothing was trained
        remedies["global_head"] = "--head gem needs none"
    if with_local:
        remedies["attention"] = "use --attention norm, or --no_rerank"
        remedies["autoencoder"] = "leave out --reduction, or use --no_rerank"
    needed = [f"{part} ({remedies[part]})" for part in loaded.missing if part in remedies]
    if needed:
        raise InputError(f"{weights} has no weights for {'; '.join(needed)}")


def read_evaluation(description: str | None, argv: Sequence[str] | None) -> EvaluationOptions:
    """Read the command line of eval.py; InputError for flags that contradict each other."""
    parser = flags.make_parser(description)
    data = add_place_folders(parser, ("test",))
    data.add_argument("--database_folder", type=Path, help="any folder of images to search")
    data.add_argument("--queries_folder", type=Path, help="any folder of images to search with")
    data.add_argument("--positives", type=Path, help="positives of two folders: .csv or .json")
    data.add_argument("--no_labels", action="store_true", help="no positives: predictions only")
    add_weights(parser, None)
    flags.add_configs(parser, DelgConfig, but=("train_all_layers",))
    flags.add_configs(parser, PositivesConfig, ExtractConfig)
    flags.add_configs(parser, RerankConfig, MatchConfig, VerifyConfig)
    flags.add_configs(parser, AugmentConfig, only=("image_size",))
    flags.add_configs(parser, TrainConfig, only=("seed", "skip_bad_images"))
    flags.add_configs(parser, PcaConfig)
    add_resizing(parser)
    run = add_run(parser)
    add_predictions(run)
    run.add_argument("--no_rerank", action="store_true", help="global descriptors only")
    run.add_argument("--save_descriptors", action="store_true", help="write them as .npy")
    asked = flags.parse(parser, argv)

    train = asked.config(TrainConfig)
    weights = read_weights_flag(asked, None)
    return EvaluationOptions(
        folders=_evaluated_folders(asked),
        labels=not asked.get("no_labels"),
        positives=asked.config(PositivesConfig),
        weights=weights,
        network=delg.resolve_config(asked.given(DelgConfig), weights),
        extract=read_extraction(asked, asked.config(AugmentConfig).image_size),
        rerank=None if asked.get("no_rerank") else read_reranking(asked),
        pca=asked.config(PcaConfig),
        recall_values=asked.get("recall_values"),
        num_preds_to_save=asked.get("num_preds_to_save"),
        save_only_wrong_preds=asked.get("save_only_wrong_preds"),
        save_descriptors=asked.get("save_descriptors"),
        skip_bad_images=train.skip_bad_images,
        seed=train.seed,
        device=asked.get("device"),
        root=LOGS / asked.get("save_dir"),
    )


@dataclass(frozen=True)
class ShowOptions:
    """What show.py is asked for: ``photos`` are one (attention) or query and database (matches)."""

    picture: str
    photos: tuple[Path, ...]
    output: Path
    count: int
    weights: str
    network: DelgConfig
    extract: ExtractConfig
    rerank: RerankConfig
    device: str


def read_show(description: str | None, argv: Sequence[str] | None) -> ShowOptions:
    """Read the command line of show.py; InputError for a picture whose photos are not named."""
    parser = flags.make_parser(description)
    parser.add_argument("picture", choices=("attention", "matches"))
    parser.add_argument("--image", type=Path, help="photo, for attention")
    parser.add_argument("--query", type=Path, help="photo, for matches")
    parser.add_argument("--database", type=Path, help="the other photo, for matches")
    parser.add_argument("--output", type=Path, required=True, help="file to write, .png or .jpg")
    parser.add_argument("--count", type=int, default=20, help="keypoints to mark (default: 20)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add_weights(parser, None)
    flags.add_configs(parser, DelgConfig, but=("train_all_layers",))
    flags.add_configs(parser, ExtractConfig, MatchConfig, VerifyConfig)
    flags.add_configs(parser, AugmentConfig, only=("image_size",))
    add_resizing(parser)
    asked = flags.parse(parser, argv)
    names = ("image",) if asked.get("picture") == "attention" else ("query", "database")
    missing = [f"--{name}" for name in names if asked.get(name) is None]
    if missing:
        raise InputError(f"{asked.get('picture')} needs {' and '.join(missing)}")
    weights = read_weights_flag(asked, None)
    return ShowOptions(
        picture=asked.get("picture"),
        photos=tuple(asked.get(name) for name in names),
        output=asked.get("output"),
        count=asked.get("count"),
        weights=weights,
        network=delg.resolve_config(asked.given(DelgConfig), weights),
        extract=read_extraction(asked, asked.config(AugmentConfig).image_size),
        rerank=read_reranking(asked),
        device=asked.get("device"),
    )


def _evaluated_folders(asked: Asked) -> Folders:
    database, queries = asked.get("database_folder"), asked.get("queries_folder")
    if (database is None) != (queries is None):
        raise InputError("--database_folder and --queries_folder go together")
    whole = [name for name in ("dataset_folder", "test_set_folder") if asked.get(name) is not None]
    if database is not None:
        if whole:
            raise InputError(f"--{whole[0]} and --database_folder exclude each other")
        return Folders(database=database, queries=queries, positives_file=asked.get("positives"))
    if asked.get("positives") is not None:
        raise InputError("--positives goes with --database_folder and --queries_folder")
    folder = asked.get("dataset_folder")
    if folder is not None and asked.get("test_set_folder") is None and find_gnd(folder):
        return Folders(dataset=folder)
    return Folders(dataset=split_folder(asked, "test"))
