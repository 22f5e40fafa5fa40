"""What the training scripts ask for, flags that several scripts share, and how a script ends."""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retrieval import devices
from retrieval.commands import flags
from retrieval.commands.flags import Asked
from retrieval.commands.script import LOGS
from retrieval.configs.describe import DelgConfig, ExtractConfig
from retrieval.configs.judge import PositivesConfig
from retrieval.configs.learn import AugmentConfig, GroupConfig, LossConfig, TrainConfig
from retrieval.configs.rank import MatchConfig, RerankConfig, VerifyConfig
from retrieval.errors import InputError
from retrieval.networks import delg
from retrieval.training.cosplace_training import Where
from retrieval.training.trainer import Recipe

RECALL_VALUES = (1, 5, 10, 20)

_GLOBAL_LOSS = ("global_loss", "margin_scale", "margin", "global_weight")


@dataclass(frozen=True)
class TrainingOptions:
    """All that train.py and train_only_local.py are asked for."""

    train_folder: Path
    val_folder: Path
    test_folder: Path | None
    weights: str
    network: DelgConfig
    recipe: Recipe
    positives: PositivesConfig
    extract: ExtractConfig
    rerank: RerankConfig
    recall_values: tuple[int, ...]
    where: Where
    num_preds_to_save: int = 0
    save_only_wrong_preds: bool = False


def read_training(
    description: str | None, argv: Sequence[str] | None, *, only_local: bool
) -> TrainingOptions:
    """Read the command line of a training script; InputError for flags that contradict each other.

    Local-only training starts from ``--resume_model`` and has no flags for the global head's loss.
    """
    parser = flags.make_parser(description)
    add_place_folders(parser, ("train", "val", "test"))
    add_weights(parser, None if only_local else "imagenet")
    flags.add_configs(parser, DelgConfig, GroupConfig, TrainConfig, AugmentConfig)
    flags.add_configs(parser, LossConfig, but=_GLOBAL_LOSS if only_local else ())
    flags.add_configs(parser, PositivesConfig, ExtractConfig)
    if only_local:
        flags.add_configs(parser, RerankConfig, MatchConfig, VerifyConfig)
    add_resizing(parser)
    run = add_run(parser)
    if not only_local:
        add_predictions(run)
    run.add_argument("--resume_train", type=Path, help="go on from this last_checkpoint.pth")
    text = "CosPlace's name of --precision fp16"
    run.add_argument("--use_amp16", action="store_true", help=text)
    text = "cuda: augment batches on the GPU; cpu: single images in the workers (default: cpu)"
    run.add_argument("--augmentation_device", default="cpu", choices=("cpu", "cuda"), help=text)
    asked = flags.parse(parser, argv)

    train = asked.config(TrainConfig)
    if asked.get("use_amp16"):
        train = dataclasses.replace(train, precision="fp16")
    augment = asked.config(AugmentConfig)
    recipe = Recipe(asked.config(GroupConfig), train, augment, asked.config(LossConfig), only_local)
    device = devices.choose_device(asked.get("device"))
    if asked.get("augmentation_device") == "cuda" and device.type != "cuda":
        raise InputError(f"--augmentation_device cuda needs --device cuda, not {device}")
    weights = read_weights_flag(asked, None if only_local else "imagenet")
    resume = asked.get("resume_train")
    if resume is not None and not resume.is_file():
        raise InputError(f"--resume_train {resume}: no such file")
    return TrainingOptions(
        train_folder=split_folder(asked, "train"),
        val_folder=split_folder(asked, "val"),
        test_folder=None if only_local else _test_folder(asked),
        weights=weights,
        network=delg.resolve_config(asked.given(DelgConfig), weights),
        recipe=recipe,
        positives=asked.config(PositivesConfig),
        extract=read_extraction(asked, augment.image_size),
        rerank=read_reranking(asked),
        recall_values=asked.get("recall_values"),
        where=Where(
            LOGS / asked.get("save_dir"),
            asked.get("device"),
            asked.get("augmentation_device"),
            resume,
        ),
        num_preds_to_save=0 if only_local else asked.get("num_preds_to_save"),
        save_only_wrong_preds=not only_local and asked.get("save_only_wrong_preds"),
    )


def add_place_folders(
    parser: argparse.ArgumentParser, splits: Sequence[str]
) -> argparse._ArgumentGroup:
    """Where a data set in the layout of SF-XS lies."""
    group = parser.add_argument_group("Data")
    text = "data set: train, val/{database,queries}, test/{database,queries}"
    group.add_argument("--dataset_folder", type=Path, help=text)
    for split in splits:
        text = f"its {split} split, if it lies elsewhere"
        group.add_argument(f"--{split}_set_folder", type=Path, help=text)
    return group


def split_folder(asked: Asked, split: str) -> Path:
    """The folder of a split; InputError if the flags name none, or one that does not exist."""
    folder: Path | None = asked.get(f"{split}_set_folder")
    if folder is None and asked.get("dataset_folder") is not None:
        folder = asked.get("dataset_folder") / split
    if folder is None:
        raise InputError(f"where are the images? give --dataset_folder (or --{split}_set_folder)")
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; --dataset_folder must hold {split} "
            f"(or name it with --{split}_set_folder)"
        )
    return folder


def _test_folder(asked: Asked) -> Path | None:
    """The test split if it is there; a data set without one can be trained on."""
    dataset = asked.get("dataset_folder")
    named = asked.get("test_set_folder") is not None
    if not named and (dataset is None or not (dataset / "test").is_dir()):
        return None
    return split_folder(asked, "test")


def add_weights(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Where the weights come from; without a ``default`` the user must say."""
    group = parser.add_argument_group("Weights")
    group.add_argument("--resume_model", type=Path, help="weights of a whole network")
    text = "imagenet (= imagenet_v1), imagenet_v2, none (random), or a file"
    text += f" (default: {default})" if default else ""
    group.add_argument("--pretrained", help=text)


def read_weights_flag(asked: Asked, default: str | None) -> str:
    """What `delg.create` takes as ``pretrained``; InputError if two are named, or none."""
    model, pretrained = asked.get("resume_model"), asked.get("pretrained")
    if model is not None and pretrained is not None:
        raise InputError("--resume_model and --pretrained exclude each other: name one")
    if model is not None and not model.is_file():
        raise InputError(f"--resume_model {model}: no such file")
    chosen = str(model) if model is not None else pretrained or default
    if chosen is None:
        raise InputError(
            "which weights? give --resume_model FILE (or --pretrained imagenet --head gem; "
            "--pretrained none says aloud that random weights are meant)"
        )
    return chosen


def add_run(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Device, place of the run folder, and the N of recall@N."""
    group = parser.add_argument_group("Run")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    text = "run folders lie in logs/SAVE_DIR (default: default)"
    group.add_argument("--save_dir", type=Path, default=Path("default"), help=text)
    text = "the N of recall@N (default: 1 5 10 20)"
    group.add_argument("--recall_values", type=int, nargs="+", default=RECALL_VALUES, help=text)
    return group


def add_predictions(group: argparse._ArgumentGroup) -> None:
    """Pictures of the predictions."""
    text = "test queries to draw, each with its first predictions"
    group.add_argument("--num_preds_to_save", type=int, default=0, metavar="N", help=text)
    text = "draw only queries whose first prediction is wrong"
    group.add_argument("--save_only_wrong_preds", action="store_true", help=text)


def add_report(group: argparse._ArgumentGroup) -> None:
    """How large the HTML report is."""
    text = "queries in the gallery of report.html; 0: no gallery (default: %(default)s)"
    group.add_argument("--report_queries", type=int, default=50, metavar="N", help=text)


def read_report_queries(asked: Asked) -> int:
    """The number of queries that the report shows at most; InputError below 0."""
    count: int = asked.get("report_queries")
    if count < 0:
        raise InputError(f"--report_queries {count}: expected 0 or more")
    return count


def add_resizing(parser: argparse.ArgumentParser) -> None:
    """How test images are resized; without these flags they keep their size."""
    group = parser.add_argument_group("Size of test images (default: as they are)")
    text = "make the shorter side of test images --image_size"
    group.add_argument("--resize_test_imgs", action="store_true", help=text)
    text = "reduce larger test images to this longest side (landmarks: 1024)"
    group.add_argument("--longest_side", type=int, help=text)


def read_extraction(asked: Asked, image_size: int) -> ExtractConfig:
    """The `ExtractConfig` of the flags; InputError for two ways of resizing."""
    longest = asked.get("longest_side")
    if asked.get("resize_test_imgs"):
        if longest is not None:
            raise InputError("--resize_test_imgs and --longest_side exclude each other")
        return asked.config(ExtractConfig, resize="shorter", size=image_size)
    if longest is not None:
        return asked.config(ExtractConfig, resize="longest", size=longest)
    return asked.config(ExtractConfig)


def read_reranking(asked: Asked, base: RerankConfig | None = None) -> RerankConfig:
    """The `RerankConfig` of the flags; what they leave open is as in ``base``."""
    base = base or RerankConfig()
    match = asked.given(MatchConfig)
    match.pop("precision", None)  # this flag is the network's
    return dataclasses.replace(
        base,
        **asked.given(RerankConfig),
        match=dataclasses.replace(base.match, **match),
        verify=dataclasses.replace(base.verify, **asked.given(VerifyConfig)),
    )
