"""What eval.py asks for: its flags, read into frozen configs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retrieval.checkpoint import PartsReport
from retrieval.commands import flags
from retrieval.commands.flags import Asked
from retrieval.commands.options import (
    add_place_folders,
    add_predictions,
    add_report,
    add_resizing,
    add_run,
    add_weights,
    read_extraction,
    read_report_queries,
    read_reranking,
    read_weights_flag,
    split_folder,
)
from retrieval.commands.script import LOGS
from retrieval.configs.describe import DelgConfig, ExtractConfig, PcaConfig
from retrieval.configs.judge import PositivesConfig
from retrieval.configs.learn import AugmentConfig, TrainConfig
from retrieval.configs.rank import MatchConfig, RerankConfig, VerifyConfig
from retrieval.data.photo_sets import Folders, find_gnd
from retrieval.errors import InputError
from retrieval.networks import delg
from retrieval.rerank_file import read_rerank


@dataclass(frozen=True)
class EvaluationOptions:
    """All that eval.py is asked for.

    ``rerank`` is None where only the global ranking is wanted; ``rerank_config`` is the file that
    had a say in it, and None with --no_rerank.
    """

    folders: Folders
    labels: bool
    positives: PositivesConfig
    weights: str
    network: DelgConfig
    extract: ExtractConfig
    rerank: RerankConfig | None
    rerank_config: Path | None
    pca: PcaConfig
    recall_values: tuple[int, ...]
    num_preds_to_save: int
    save_only_wrong_preds: bool
    report_queries: int
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
    add_report(run)
    run.add_argument("--no_rerank", action="store_true", help="global descriptors only")
    text = "re-rank as this file of tune.py says; flags win over its settings, but where it says"
    text += " rerank = false, there is no re-ranking whatever they say"
    run.add_argument("--rerank_config", type=Path, help=text)
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
        rerank=_reranking(asked),
        rerank_config=None if asked.get("no_rerank") else asked.get("rerank_config"),
        pca=asked.config(PcaConfig),
        recall_values=asked.get("recall_values"),
        num_preds_to_save=asked.get("num_preds_to_save"),
        save_only_wrong_preds=asked.get("save_only_wrong_preds"),
        report_queries=read_report_queries(asked),
        save_descriptors=asked.get("save_descriptors"),
        skip_bad_images=train.skip_bad_images,
        seed=train.seed,
        device=asked.get("device"),
        root=LOGS / asked.get("save_dir"),
    )


def _reranking(asked: Asked) -> RerankConfig | None:
    """What the flags say, over what the file says; either may say that there is to be none."""
    file = asked.get("rerank_config")
    base = RerankConfig() if file is None else read_rerank(file)
    return None if base is None or asked.get("no_rerank") else read_reranking(asked, base)


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
