"""A network of a config, with the weights that ``--pretrained`` names."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, overload

from retrieval.configs.describe import BACKBONE_NAMES, DelfConfig, DelgConfig
from retrieval.devices import choose_device
from retrieval.errors import InputError
from retrieval.networks.backbone import PRETRAINED
from retrieval.networks.delf import Delf
from retrieval.networks.delg import Delg
from retrieval.networks.weights import (
    PartsReport,
    Weights,
    Whitenings,
    load_parts,
    parts,
    read_weights,
)

AnyNetwork = TypeVar("AnyNetwork", Delg, Delf)


class Created(NamedTuple, Generic[AnyNetwork]):
    """A network; what its weights filled; learned whitenings that came with them (none of DELG)."""

    network: AnyNetwork
    report: PartsReport
    whitenings: Whitenings


@overload
def create(config: DelgConfig, pretrained: str = "imagenet") -> Created[Delg]: ...
@overload
def create(config: DelfConfig, pretrained: str = "imagenet") -> Created[Delf]: ...
def create(config: DelgConfig | DelfConfig, pretrained: str = "imagenet") -> Created[Any]:
    """The network of ``config`` with the weights that ``pretrained`` names.

    pretrained: one of `backbone.PRETRAINED`, or the path of a file that `read_weights` knows. Of a
    file of another kind of network the backbone alone is taken. Raises InputError if the weights
    can't be had or are of another shape.
    """
    weights = _read(pretrained)
    if weights is None:
        network = _build(config, pretrained)
        loaded = () if pretrained == "none" else ("backbone",)
        missing = tuple(part for part in parts(network.state_dict()) if part not in loaded)
        return Created(network, PartsReport(network.backbone.weights_name, loaded, missing), {})
    _check_config(config, weights)
    network = _build(config, "none")
    report = load_parts(network, _fitting(weights, config), config.weight_fields)
    return Created(network, report, weights.whitenings)


def load_network(
    source: str | Path, *, pretrained: str = "imagenet", device: str = "auto"
) -> Delg | Delf:
    """A network ready to use: from a file of weights, or a backbone by its name.

    source: a file of weights that carries the config of its network; or one of `BACKBONE_NAMES`,
    used as it is with ImageNet's weights ``pretrained``: pooled by GeM, the norm of its activations
    for attention.
    Raises InputError for anything else.
    """
    name = str(source).lower()
    if name in BACKBONE_NAMES:
        config: DelgConfig | DelfConfig = DelgConfig(name, head="gem", attention="norm")
    else:
        pretrained = str(source)
        saved = saved_config(pretrained)
        if saved is None:
            raise InputError(
                f"{source}: neither one of {', '.join(BACKBONE_NAMES)}, nor a file that tells its "
                "network; create(config, file) takes one that does not"
            )
        config = saved
    network = create(config, pretrained).network
    return network.eval().to(choose_device(device))


def saved_config(pretrained: str) -> DelgConfig | DelfConfig | None:
    """The config that a file of weights carries; None if it has none or ``pretrained`` is no path.

    Raises InputError if it is no file that `read_weights` knows.
    """
    weights = _read(pretrained)
    return None if weights is None else weights.config


def resolve_config(given: Mapping[str, Any], pretrained: str) -> DelgConfig:
    """The config of the fields ``given``; the rest as a checkpoint has them, or the defaults.

    Raises InputError as `saved_config` does.
    """
    saved = saved_config(pretrained)
    return DelgConfig(**{**(asdict(saved) if isinstance(saved, DelgConfig) else {}), **given})


def _read(pretrained: str) -> Weights | None:
    if pretrained in PRETRAINED:
        return None
    if not Path(pretrained).is_file():
        raise InputError(
            f"--pretrained {pretrained}: neither a file nor one of {', '.join(PRETRAINED)}"
        )
    return read_weights(pretrained)


def _build(config: DelgConfig | DelfConfig, pretrained: str) -> Delg | Delf:
    return Delf(config, pretrained) if isinstance(config, DelfConfig) else Delg(config, pretrained)


def _fitting(weights: Weights, config: DelgConfig | DelfConfig) -> Weights:
    """The weights without the parts that a network of this config has no use for."""
    if weights.of_delf != isinstance(config, DelfConfig):
        return weights.only(["backbone"])
    if config.attention == "norm":
        return weights.only([part for part in parts(weights.state) if part != "attention"])
    return weights


def _check_config(config: DelgConfig | DelfConfig, weights: Weights) -> None:
    """InputError where fields differ that shape weights of both networks; others may differ."""
    saved = weights.config
    if saved is None or type(saved) is not type(config):
        return
    wrong = [
        f"--{name} {getattr(config, name)}, but the file has {getattr(saved, name)}"
        for name in config.weight_fields
        if name in saved.weight_fields and getattr(saved, name) != getattr(config, name)
    ]
    if wrong:
        raise InputError(f"{weights.path}: weights of another network: {'; '.join(wrong)}")
