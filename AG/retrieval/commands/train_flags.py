"""The flags of train.py and train_only_local.py."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from retrieval.commands import shared_flags as shared
from retrieval.commands.flags import Asked, Parser
from retrieval.configs.describe import DelgConfig
from retrieval.configs.judge import EvaluationConfig, PositivesConfig, Source
from retrieval.configs.learn import SIZE, Recipe, Where
from retrieval.configs.setting import setting
from retrieval.errors import InputError

_IMAGE_SIZE = f"{SIZE}: the side of a training image; with --resize_test_imgs the shorter side of "
_TEXTS = {"image_size": _IMAGE_SIZE + "validation and test photos too"}
_OF_EVALUATION = ("pca", "all_local_features")
_OF_RERANKING = ("rerank", "local_scales", "max_features", "min_score", "threads")
_OF_JOINT_TRAINING = (
    *("global_loss", "margin_scale", "margin", "global_weight"),
    *("test_set_folder", "num_preds_to_save", "save_only_wrong_preds"),
)


@dataclass(frozen=True)
class TrainingOptions(
    shared.PlaceFlags,
    shared.NetworkFlags,
    shared.ResizeFlags,
    shared.ResumeFlags,
    shared.PlaceRunFlags,
    group="Run",
):
    """All that train.py and train_only_local.py are asked for."""

    use_amp16: bool = setting(False, "the same as --precision fp16")
    augmentation_device: Literal["cpu", "cuda"] = setting(
        "cpu",
        "where training photos are augmented. cuda: in batches, on the GPU; cpu: one by one, by "
        "the helper processes",
    )
    recipe: Recipe = field(default_factory=Recipe)
    positives: PositivesConfig = field(default_factory=PositivesConfig)
    judged: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augmentation_device == "cuda":
            from retrieval import devices  # here, since it loads torch

            device = devices.choose_device(self.resources.device)
            if device.type != "cuda":
                raise InputError(f"--augmentation_device cuda needs --device cuda, not {device}")

    def split(self, name: str) -> Source:
        """Where the split train, val or test lies."""
        return self.split_source(name, self.positives)

    @property
    def test(self) -> Source | None:
        """The test set if it is there; a data set without one can be trained on."""
        data, there = self.dataset_folder, self.test_set_folder is not None
        if data is not None and data.is_file():
            from retrieval.data.manifest import read_manifest  # here, since it loads torch

            there = there or "test" in read_manifest(data).parts
        there = there or (data is not None and (data / "test").is_dir())
        return self.split("test") if there else None

    @property
    def where(self) -> Where:
        """Where the training runs and writes."""
        return Where(self.root, self.resources.device, self.augmentation_device, self.resume_train)


def read_training(description: str | None, argv: Sequence[str] | None) -> TrainingOptions:
    """Read the command line of train.py; InputError for flags that contradict each other."""
    parser = Parser(description)
    texts = _TEXTS | {"pretrained": f"{shared.PRETRAINED} (default: imagenet)"}
    parser.add(TrainingOptions, but=(*_OF_EVALUATION, *_OF_RERANKING), texts=texts)
    parser.add(DelgConfig)
    return _read(parser.read(argv), "imagenet", only_local=False)


def read_local_training(description: str | None, argv: Sequence[str] | None) -> TrainingOptions:
    """Read the command line of train_only_local.py.

    It starts from ``--resume_model``, and has no flags for the global head's loss.
    """
    parser = Parser(description)
    parser.add(TrainingOptions, but=(*_OF_EVALUATION, *_OF_JOINT_TRAINING), texts=_TEXTS)
    parser.add(DelgConfig)
    return _read(parser.read(argv), None, only_local=True)


def _read(asked: Asked, default: str | None, *, only_local: bool) -> TrainingOptions:
    recipe = replace(asked.config(Recipe), only_local=only_local)
    if asked.get("use_amp16"):
        recipe = replace(recipe, train=replace(recipe.train, precision="fp16"))
    judged = asked.config(EvaluationConfig, extract=shared.read_extraction(asked))
    options = asked.config(
        TrainingOptions,
        weights=shared.read_weights(asked, default),
        written=asked.given(DelgConfig),
        recipe=recipe,
        judged=judged if only_local else replace(judged, rerank=None),
    )
    for split in ("train", "val"):
        options.split(split)  # says at once what is missing
    return options
