"""The flags of example.finetuning, .attention and .extract_features, and of demo_delf.py.

They are those of delf_pytorch and of cirtorch, on which it is built; together they make the run's
long directory name.
"""

import functools
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from retrieval.commands import flags
from retrieval.commands import shared_flags as shared
from retrieval.commands.flags import Asked, Parser
from retrieval.configs.describe import (
    ATTENTION,
    GLOBAL_SCALES,
    LOCAL_SCALES,
    DelfConfig,
    ExtractConfig,
    Layer,
    LocalConfig,
    PcaConfig,
)
from retrieval.configs.learn import BEST_MODEL, MiningConfig, RunConfig, TuneConfig
from retrieval.configs.run import Resources
from retrieval.configs.setting import Config, argument, setting
from retrieval.errors import InputError

log = logging.getLogger(__name__)

TEST_SIZE = 1024  # longest side of test images, as in cirtorch
_LAYER = "map of the network that the attention is of, and whose cells are the local features"


@dataclass(frozen=True)
class TestSettings:
    """On what a network is tested, and how.

    data_root, names: where the test sets lie, and which. extract: how their photos are read.
    scales: of global descriptors. whiten: the training set that a whitening is learnt on, or "".
    whiten_extract: how its photos are read.
    """

    data_root: Path
    names: tuple[str, ...]
    extract: ExtractConfig
    scales: tuple[float, ...]
    whiten: str
    whiten_extract: ExtractConfig


@dataclass(frozen=True)
class DelfOptions(shared.DataRootFlags, shared.ResourceFlags, group="Network"):
    """What all three commands are asked for; ``pretrained`` is a name or a file."""

    directory: Path = argument("results lie in DIR/<long directory name>", "DIR")
    training_dataset: str = setting(
        "retrieval-SfM-120k", "photos to train on, a folder of DATA_ROOT/train", group="Data"
    )
    pretrained: str = setting("imagenet", shared.PRETRAINED)
    not_pretrained: bool = setting(False, "the same as --pretrained none")
    gpu_id: str | None = setting(None, "GPUs that may be used, as in 0 or 0,1", "ID", group="Run")
    multiscale: tuple[float, ...] = setting(
        (1.0,), GLOBAL_SCALES, "X", flag="global_scales", old=("multiscale",), group="Photos"
    )
    network: DelfConfig = field(default_factory=DelfConfig)
    mining: MiningConfig = field(default_factory=MiningConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    run: RunConfig = field(default_factory=RunConfig)
    resources: Resources = field(
        default_factory=lambda: Resources(num_workers=min(8, os.cpu_count() or 1))
    )

    def __post_init__(self) -> None:
        if self.gpu_id is not None:
            _see_only(self.gpu_id, self.resources.device)
        super().__post_init__()

    @property
    def name(self) -> str:
        """The long directory name."""
        pretrained = self.pretrained != "none" and not self.not_pretrained
        return directory_name(
            self.training_dataset, self.network, self.mining, self.tune, pretrained=pretrained
        )

    @property
    def folder(self) -> Path:
        """Where this run writes: DIR/<long directory name>."""
        return self.directory / self.name

    @property
    def training_set(self) -> Path:
        """The folder of the training photos."""
        return self.data_root / "train" / self.training_dataset

    @property
    def test(self) -> TestSettings:
        """On what the network is tested, and how."""
        return TestSettings(
            self.data_root,
            self.test_datasets,
            self.extraction(TEST_SIZE),
            self.multiscale,
            self.run.test_whiten,
            self.extraction(self.tune.image_size),
        )

    def extraction(self, size: int) -> ExtractConfig:
        """How images are read of which descriptors are taken: longest side at most ``size``."""
        return ExtractConfig(
            resize="longest",
            size=size,
            precision=self.tune.precision,
            skip_bad_images=self.tune.skip_bad_images,
        )


@dataclass(frozen=True)
class SecondStageFlags(Config, group="Network"):
    """The network of the step before."""

    param_directory: Path | None = setting(
        None, "take the network that the step before made: its DIR", "DIR"
    )
    layer: Layer | None = setting(None, _LAYER)


@dataclass(frozen=True)
class FinetuningOptions(SecondStageFlags, DelfOptions, shared.ResumeFlags, group="Training"):
    """What a training is asked for; ``pretrained`` is the earlier run's file for attention."""

    train_all: bool = setting(False, "train the whole network, not the attention alone")


@dataclass(frozen=True)
class DelfExtractionOptions(SecondStageFlags, DelfOptions, group="Local features"):
    """What extract_features is asked for; ``layer`` is None where the network's is meant."""

    pretrained: str = setting("", shared.PRETRAINED, group="Network")
    scales: tuple[float, ...] = setting(
        (0.25, 2**-1.5, 0.5, 2**-0.5, 1.0, 2**0.5, 2.0),
        LOCAL_SCALES,
        "X",
        flag="local_scales",
        old=("scales",),
    )
    attention: Literal["learned", "norm"] = setting("learned", ATTENTION, group="Network")
    local: LocalConfig = field(default_factory=LocalConfig)
    pca: PcaConfig = field(default_factory=PcaConfig)

    @property
    def local_extraction(self) -> ExtractConfig:
        """How images are read and which cells are kept: attention above --alpha-thresh."""
        above = np.nextafter(np.float32(self.local.alpha_thresh), np.float32(np.inf))
        return replace(
            self.extraction(TEST_SIZE),
            local_scales=self.scales,
            max_features=self.local.feature_num,
            min_score=float(above),
        )

    @property
    def name(self) -> str:
        """The fine-tuning's long directory name; of a network that is none, what it is itself."""
        if self.param_directory is not None:
            return super().name
        layer = self.layer or self.network.layer
        parts = [self.network.arch, Path(self.pretrained).stem, layer, self.attention]
        parts += [f"pca{self.pca.pca_dim}"] * (self.pca.pca_photos is not None)
        return "_".join(parts)


@dataclass(frozen=True)
class DelfDemoOptions(Config, group="Network"):
    """What demo_delf.py is asked for."""

    pretrained: Path | None = setting(
        None,
        "weights to start from: a file, ImageNet's or cirtorch's (default: random weights)",
        "FILE",
        is_file=True,
    )


def directory_name(
    training_dataset: str,
    network: DelfConfig,
    mining: MiningConfig,
    tune: TuneConfig,
    *,
    pretrained: bool,
) -> str:
    """The long directory name of cirtorch, which tells all settings of a fine-tuning."""
    parts = [training_dataset, network.arch, network.pool]
    parts += ["lwhiten"] * network.local_whitening + ["r"] * network.regional
    parts += ["whiten"] * network.whitening + ["notpretrained"] * (not pretrained)
    parts += [f"{tune.loss}_m{tune.loss_margin:.2f}"]
    parts += [f"{tune.optimizer}_lr{tune.lr:.1e}_wd{tune.weight_decay:.1e}"]
    parts += [f"nnum{mining.neg_num}_qsize{mining.query_size}_psize{mining.pool_size}"]
    parts += [f"bsize{tune.batch_size}_uevery{tune.update_every}_imsize{tune.image_size}"]
    return "_".join(parts)


def trained_model(param_directory: Path | None, name: str) -> Path:
    """The best weights of an earlier run; InputError that lists the runs that are there."""
    if param_directory is None:
        raise InputError("--param-directory is needed: the DIR that the step before wrote to")
    file = param_directory / name / BEST_MODEL
    if file.is_file():
        return file
    if not param_directory.is_dir():
        raise InputError(f"--param-directory {param_directory}: no such folder")
    found = sorted(each.parent.name for each in param_directory.glob(f"*/{BEST_MODEL}"))
    raise InputError(
        f"{file}: no such file. The flags make the directory name; {param_directory} has "
        + (", ".join(found) or "no finished epoch of any run")
    )


def read_finetuning(description: str | None, argv: Sequence[str] | None) -> FinetuningOptions:
    """Read the command line of example.finetuning; InputError for flags that cannot be."""
    parser = Parser(description)
    parser.add(FinetuningOptions, but=("param_directory", "layer", "train_all"))
    asked = parser.read(argv)
    return asked.config(FinetuningOptions, pretrained=_pretrained(asked), train_all=True)


def read_attention(description: str | None, argv: Sequence[str] | None) -> FinetuningOptions:
    """Read the command line of example.attention; InputError for flags that cannot be."""
    parser = Parser(description)
    texts = {"layer": f"{_LAYER} (default: {DelfConfig.layer})"}
    parser.add(FinetuningOptions, but=("pretrained",), texts=texts)
    options = parser.read(argv).config(FinetuningOptions)
    layer = options.layer or DelfConfig.layer
    return replace(
        options,
        network=replace(options.network, attention="learned", layer=layer, local_layer=layer),
        pretrained=str(trained_model(options.param_directory, options.name)),
    )


def read_delf_extraction(
    description: str | None, argv: Sequence[str] | None
) -> DelfExtractionOptions:
    """Read the command line of extract_features; InputError for flags that cannot be."""
    parser = Parser(description)
    texts = {"layer": f"{_LAYER} (default: that of the attention)"}
    parser.add(DelfExtractionOptions, texts=texts)
    asked = parser.read(argv)
    options = asked.config(DelfExtractionOptions, pretrained=_pretrained(asked))
    if asked.get("pretrained") is None:
        parent = trained_model(options.param_directory, options.name)
        return replace(options, pretrained=str(parent))
    if options.param_directory is not None:
        raise InputError("--param-directory and --pretrained exclude each other: name one network")
    return options


def read_delf_demo(description: str | None, argv: Sequence[str] | None) -> DelfDemoOptions:
    """Read the command line of demo_delf.py; InputError if there is no such file."""
    return flags.read(DelfDemoOptions, description, argv)


def _pretrained(asked: Asked) -> str:
    given = asked.get("pretrained")
    if asked.get("not_pretrained"):
        if given is not None:
            raise InputError("--pretrained and --not-pretrained exclude each other")
        return "none"
    return given or "imagenet"


@functools.cache  # a script reads its command line twice
def _see_only(gpu_id: str, device: str) -> None:
    """Let the process see the GPUs of --gpu-id alone; warn where there is none."""
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu_id
    import torch  # here, since -h need not wait for it

    if device == "auto" and not torch.cuda.is_available():
        log.warning("--gpu-id %s: this machine offers no such GPU; using the CPU", gpu_id)
