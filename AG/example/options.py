"""What the three commands share: S2's and cirtorch's flags, and the run's long directory name."""

import argparse
import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from example.scales import parse_scales
from example.settings import HELP
from retrieval.commands import flags
from retrieval.commands.flags import Asked
from retrieval.configs.describe import DelfConfig, ExtractConfig, Layer, LocalConfig, PcaConfig
from retrieval.configs.learn import MiningConfig, RunConfig, TuneConfig
from retrieval.errors import InputError
from retrieval.training import run_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What all three commands are asked for."""

    directory: Path
    name: str
    data_root: Path
    training_set: Path
    test_datasets: tuple[str, ...]
    network: DelfConfig
    pretrained: str
    mining: MiningConfig
    tune: TuneConfig
    run: RunConfig
    multiscale: tuple[float, ...]
    device: str

    @property
    def folder(self) -> Path:
        """Where this run writes: DIR/<long directory name>."""
        return self.directory / self.name

    def extraction(self, size: int) -> ExtractConfig:
        """How images are read of which descriptors are taken: longest side at most ``size``."""
        return ExtractConfig(
            resize="longest",
            size=size,
            infer_batch_size=self.run.infer_batch_size,
            num_workers=self.run.workers,
            precision=self.tune.precision,
        )


@dataclass(frozen=True)
class TuningOptions(Options):
    """What a training is asked for; ``pretrained`` is the earlier run's file for attention."""

    resume: Path | None
    train_all: bool


@dataclass(frozen=True)
class ExtractionOptions(Options):
    """What extract_features is asked for; ``layer`` is None where the network's is meant."""

    local: LocalConfig
    layer: Layer | None
    scales: tuple[float, ...]
    attention: Literal["learned", "norm"]
    pca: PcaConfig


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
    file = param_directory / name / run_folder.BEST_MODEL
    if file.is_file():
        return file
    if not param_directory.is_dir():
        raise InputError(f"--param-directory {param_directory}: no such folder")
    found = sorted(each.parent.name for each in param_directory.glob(f"*/{run_folder.BEST_MODEL}"))
    raise InputError(
        f"{file}: no such file. The flags make the directory name; {param_directory} has "
        + (", ".join(found) or "no finished epoch of any run")
    )


def read_tuning(
    description: str | None, argv: Sequence[str] | None, *, attention: bool
) -> TuningOptions:
    """Read the command line of a training script; InputError for flags that cannot be."""
    parser = _make_parser(description, pretrained=not attention)
    run = parser.add_argument_group("Going on")
    text = "checkpoint to go on from (default: this run's own, where there is one)"
    run.add_argument("--resume", type=Path, metavar="FILE", help=text)
    if attention:
        group = parser.add_argument_group("Attention")
        _add_param_directory(group)
        _add_layer(group, "the map that the attention weights (default: layer4)")
        text = "train the whole network, not the attention alone"
        group.add_argument("--train_all", action="store_true", help=text)
    asked = flags.parse(parser, argv)
    shared = _shared(asked)
    if attention:
        parent = trained_model(asked.get("param_directory"), shared["name"])
        layer = asked.get("layer") or DelfConfig.layer
        network = dataclasses.replace(
            shared["network"], attention=True, layer=layer, local_layer=layer
        )
        shared |= {"pretrained": str(parent), "network": network}
    resume = asked.get("resume")
    if resume is not None and not resume.is_file():
        raise InputError(f"--resume {resume}: no such file")
    return TuningOptions(**shared, resume=resume, train_all=not attention or asked.get("train_all"))


def read_extraction(description: str | None, argv: Sequence[str] | None) -> ExtractionOptions:
    """Read the command line of extract_features; InputError for flags that cannot be."""
    parser = _make_parser(description, pretrained=True)
    group = parser.add_argument_group("Local features")
    _add_param_directory(group)
    flags.add_configs(parser, LocalConfig, PcaConfig, texts=HELP)
    _add_layer(group, "the map whose cells are the features (default: the attention's)")
    text = "sizes of an image at which features are taken (default: %(default)s)"
    group.add_argument("--scales", default="1/4, 2**-1.5, 1/2, 2**-0.5, 1, 2**0.5, 2", help=text)
    text = "learned, or norm: of the activation, for a network without attention"
    group.add_argument("--attention", choices=("learned", "norm"), default="learned", help=text)
    asked = flags.parse(parser, argv)
    shared = _shared(asked)
    trained = asked.get("param_directory")
    if trained is not None and asked.get("pretrained") is not None:
        raise InputError("--param-directory and --pretrained exclude each other: name one network")
    if asked.get("pretrained") is None:
        shared["pretrained"] = str(trained_model(trained, shared["name"]))
    return ExtractionOptions(
        **shared,
        local=asked.config(LocalConfig),
        layer=asked.get("layer"),
        scales=parse_scales("--scales", asked.get("scales")),
        attention=asked.get("attention"),
        pca=asked.config(PcaConfig),
    )


def _make_parser(description: str | None, *, pretrained: bool) -> argparse.ArgumentParser:
    parser = flags.make_parser(description)
    text = "results lie in DIR/<long directory name>"
    parser.add_argument("directory", type=Path, metavar="DIR", help=text)
    data = parser.add_argument_group("Data")
    text = "folder with train/ and test/ (default: data)"
    data.add_argument("--data_root", type=Path, default=Path("data"), help=text)
    text = "a folder of DATA_ROOT/train (default: %(default)s)"
    data.add_argument("--training_dataset", default="retrieval-SfM-120k", help=text)
    text = "names between commas, '' for none (default: %(default)s)"
    data.add_argument("--test_datasets", default="roxford5k,rparis6k", help=text)
    flags.add_configs(parser, DelfConfig, MiningConfig, TuneConfig, RunConfig, texts=HELP)
    weights = parser.add_argument_group("Weights")
    weights.add_argument("--not_pretrained", action="store_true", help="random weights")
    if pretrained:
        text = "weights to use: imagenet, imagenet_v2, or a file (default in training: imagenet)"
        weights.add_argument("--pretrained", help=text)
    else:
        parser.set_defaults(pretrained=None)
    run = parser.add_argument_group("Run")
    run.add_argument("--gpu_id", metavar="ID", help="GPUs to use, as in '0' or '0,1'")
    run.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    text = "sizes of a test image to average descriptors of, as in '[1, 1/2**(1/2), 1/2]'"
    run.add_argument("--multiscale", default="[1]", help=text)
    return parser


def _add_param_directory(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--param_directory", type=Path, metavar="DIR", help="the DIR of the step before"
    )


def _add_layer(group: argparse._ArgumentGroup, text: str) -> None:
    group.add_argument("--layer", choices=("layer3", "layer4"), help=text)


def _shared(asked: Asked) -> dict[str, Any]:
    """The fields of `Options`."""
    # --attention and --layer of the second stage are no flags of the network that they start from.
    given = {name: v for name, v in asked.given(DelfConfig).items() if name in HELP}
    network, mining = DelfConfig(**given), asked.config(MiningConfig)
    tune = asked.config(TuneConfig)
    pretrained = asked.get("pretrained")
    if asked.get("not_pretrained"):
        if pretrained is not None:
            raise InputError("--pretrained and --not-pretrained exclude each other")
        pretrained = "none"
    dataset = asked.get("training_dataset")
    return {
        "directory": asked.get("directory"),
        "name": directory_name(dataset, network, mining, tune, pretrained=pretrained != "none"),
        "data_root": asked.get("data_root"),
        "training_set": asked.get("data_root") / "train" / dataset,
        "test_datasets": flags.split_names("--test-datasets", asked.get("test_datasets")),
        "network": network,
        "pretrained": pretrained or "imagenet",
        "mining": mining,
        "tune": tune,
        "run": asked.config(RunConfig),
        "multiscale": parse_scales("--multiscale", asked.get("multiscale")),
        "device": _choose_device(asked.get("gpu_id"), asked.get("device")),
    }


def _choose_device(gpu_id: str | None, device: str) -> str:
    """Let the process see the GPUs of --gpu-id alone; warn where there is none."""
    if gpu_id is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_id
        if device == "auto" and not torch.cuda.is_available():
            log.warning("--gpu-id %s: this machine offers no such GPU; using the CPU", gpu_id)
    return device
