"""Flags that several scripts share: folders, weights, sizes of photos, results, the run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from retrieval.commands.flags import Asked
from retrieval.commands.script import LOGS
from retrieval.configs.describe import DelgConfig, ExtractConfig
from retrieval.configs.judge import PositivesConfig, Source
from retrieval.configs.learn import SIZE, AugmentConfig
from retrieval.configs.run import Resources
from retrieval.configs.setting import Config, setting
from retrieval.errors import InputError

PRETRAINED = "weights to start from: imagenet, imagenet_v2, none (random weights), or a file"
WEIGHTS = "file of the weights of a whole network, such as best_model.pth"


@dataclass(frozen=True)
class NetworkFlags(Config, group="Network"):
    """The DELG network that flags name.

    weights: what `create` takes as ``pretrained``. written: the fields of `DelgConfig` that
    were given; what they leave open, a file of weights says.
    """

    pretrained: str | None = setting(None, PRETRAINED)
    resume_model: Path | None = setting(None, WEIGHTS, "FILE", is_file=True)
    weights: str = ""
    written: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def network(self) -> DelgConfig:
        """What the network is made of; reads the file of weights."""
        from retrieval.networks.create import resolve_config  # here, since it loads torch

        return resolve_config(self.written, self.weights)


def read_weights(asked: Asked, default: str | None = None) -> str:
    """What `create` takes as ``pretrained``; InputError if two are named, or none."""
    asked.config(DelgConfig)  # says at once what no network can have
    model, pretrained = asked.get("resume_model"), asked.get("pretrained")
    if model is not None and pretrained is not None:
        raise InputError("--resume_model and --pretrained exclude each other: name one")
    chosen = str(model) if model is not None else pretrained or default
    if chosen is None:
        raise InputError(
            "which weights? give --resume_model FILE (or --pretrained imagenet --head gem "
            "--attention norm; --pretrained none says aloud that random weights are meant)"
        )
    return chosen


@dataclass(frozen=True)
class PlaceFlags(Config, group="Data"):
    """Where a data set in the layout of SF-XS lies."""

    dataset_folder: Path | None = setting(
        None,
        "folder with train/, val/ and test/; only the splits that a command uses must exist. Or a "
        "manifest of prepare.py. Or photos alone: tested on, each is searched among the others; "
        "trained on, the last fifth along their widest axis is held out. To test on, also "
        "database/ with queries/, or jpg/ with gnd_NAME.pkl, as roxford5k",
    )
    train_set_folder: Path | None = setting(None, "its train split, if it lies elsewhere")
    val_set_folder: Path | None = setting(None, "its val split, if it lies elsewhere")
    test_set_folder: Path | None = setting(None, "its test split, if it lies elsewhere")

    def split_source(self, split: str, positives: PositivesConfig) -> Source:
        """Where a split lies; InputError if the flags name none, or one that is not there."""
        named: Path | None = getattr(self, f"{split}_set_folder")
        if named is not None or self.dataset_folder is None:
            return Source(dataset=self._there(split, named), positives=positives)
        from retrieval.data import layouts  # here, since it loads torch

        whole = self.dataset_folder
        if whole.is_file():  # a manifest
            return Source(dataset=whole, positives=positives, split=split)
        tested = split == "test" and layouts.find_pair(whole) is not None
        if tested or (not (whole / split).is_dir() and layouts.is_single(whole)):
            return Source(dataset=whole, positives=positives, split=split)
        return Source(dataset=self._there(split, whole / split), positives=positives)

    def _there(self, split: str, folder: Path | None) -> Path:
        if folder is None:
            raise InputError(
                f"where are the images? give --dataset_folder (or --{split}_set_folder)"
            )
        if not folder.is_dir():
            raise InputError(
                f"{folder}: no such folder; --dataset_folder must hold {split} "
                f"(or name it with --{split}_set_folder)"
            )
        return folder


@dataclass(frozen=True)
class TestSetFlags(Config, group="Data"):
    """Test sets in the layout of revisited Oxford and Paris, by their names."""

    test_datasets: tuple[str, ...] = setting(
        ("roxford5k", "rparis6k"), "names of test sets, between commas"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.test_datasets)) < len(self.test_datasets):
            raise InputError(f"--test_datasets {','.join(self.test_datasets)}: a name comes twice")


@dataclass(frozen=True)
class DataRootFlags(TestSetFlags, group="Data"):
    """Where the data sets of DELF lie."""

    data_root: Path = setting(Path("data"), "folder of train/ and test/")


@dataclass(frozen=True)
class ResourceFlags(Config):
    """With what the work is done."""

    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resources.device not in ("auto", "cpu"):
            from retrieval import devices  # here, since it loads torch

            devices.choose_device(self.resources.device)


@dataclass(frozen=True)
class ResumeFlags(Config, group="Run"):
    """The checkpoint that a training goes on from."""

    resume_train: Path | None = setting(
        None,
        "checkpoint to go on from, such as another run's last_checkpoint.pth (default: this run's, "
        "if it was stopped)",
        "FILE",
        old=("resume",),
        is_file=True,
    )


@dataclass(frozen=True)
class PlaceRunFlags(ResourceFlags, group="Run"):
    """A run folder, and pictures of the predictions."""

    save_dir: Path = setting(Path("default"), "the folder of this run is made in logs/NAME", "NAME")
    num_preds_to_save: int = setting(
        0, "test queries to draw, each with its first predictions", group="Results"
    )
    save_only_wrong_preds: bool = setting(
        False, "draw only queries whose first prediction is wrong", group="Results"
    )

    @property
    def root(self) -> Path:
        """Where run folders are made."""
        return LOGS / self.save_dir


@dataclass(frozen=True)
class ReportFlags(Config, group="Results"):
    """How large the HTML report is."""

    report_queries: int = setting(
        50, "queries in the gallery of report.html; 0: no gallery", least=0
    )


@dataclass(frozen=True)
class ResizeFlags(Config, group="Photos"):
    """How test images are resized; without these flags they keep their size."""

    resize_test_imgs: bool = setting(
        False,
        "bring the shorter side of test photos to --image_size; else they keep their size",
    )
    image_size: int = setting(
        AugmentConfig.image_size,
        f"{SIZE}: their shorter side, with --resize_test_imgs",
        "PIXELS",
        least=32,
    )
    longest_side: int | None = setting(
        None,
        "reduce larger photos until their longest side is this (default: they keep their size; "
        "landmarks: 1024)",
        "PIXELS",
        least=1,
    )
    extract: ExtractConfig = field(default_factory=ExtractConfig)


def read_extraction(asked: Asked) -> ExtractConfig:
    """The `ExtractConfig` of the flags; InputError for two ways of resizing."""
    size = asked.config(ResizeFlags)
    if size.resize_test_imgs and size.longest_side is not None:
        raise InputError("--resize_test_imgs and --longest_side exclude each other")
    if size.resize_test_imgs:
        return replace(size.extract, resize="shorter", size=size.image_size)
    if size.longest_side is not None:
        return replace(size.extract, resize="longest", size=size.longest_side)
    return size.extract


@dataclass(frozen=True)
class PhotoSetFlags(PlaceFlags, group="Data"):
    """A photo set in any layout: SF-XS's, revisited Oxford's, or two folders of photos."""

    database_folder: Path | None = setting(None, "any folder of photos to search")
    queries_folder: Path | None = setting(None, "any folder of photos to search with")
    positives_file: Path | None = setting(
        None, "right answers of two folders, as .csv, .json or .npy", "FILE", flag="positives"
    )
    labels: bool = setting(True, "there are no right answers: predictions only, no figures")
    keep_self: bool = setting(
        False, "leave a query that is in the database too among its own answers"
    )
    right: PositivesConfig = field(default_factory=PositivesConfig)

    @property
    def source(self) -> Source:
        """Where the photos lie, and what is right in them; InputError for flags that exclude."""
        if (self.database_folder is None) != (self.queries_folder is None):
            raise InputError("--database_folder and --queries_folder go together")
        whole = [name for name in ("dataset_folder", "test_set_folder") if getattr(self, name)]
        if self.database_folder is not None and whole:
            raise InputError(f"--{whole[0]} and --database_folder exclude each other")
        if self.database_folder is None and self.positives_file is not None:
            raise InputError("--positives goes with --database_folder and --queries_folder")
        dataset = Source(positives=self.right)
        if self.database_folder is None:
            dataset = self._dataset()
        return replace(
            dataset,
            database=self.database_folder,
            queries=self.queries_folder,
            positives_file=self.positives_file,
            labels=self.labels,
            keep_self=self.keep_self,
        )

    def _dataset(self) -> Source:
        from retrieval.data.photo_sets import find_gnd  # here, since it loads torch

        folder = self.dataset_folder
        alone = folder is not None and self.test_set_folder is None and not folder.is_file()
        if folder is not None and alone and find_gnd(folder):
            return Source(dataset=folder, positives=self.right)
        return self.split_source("test", self.right)


@dataclass(frozen=True)
class NoRerankFlags(Config, group="Re-ranking"):
    """No re-ranking."""

    no_rerank: bool = setting(False, "do not re-rank", names=("no_ransac",))
