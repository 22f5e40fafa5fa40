"""Weights of a `Delf`: its own checkpoints, cirtorch's, or a backbone's alone."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrieval import checkpoint
from retrieval.checkpoint import PartsReport, State, Weights
from retrieval.configs.describe import DelfConfig
from retrieval.errors import InputError
from retrieval.networks.backbone import BACKBONES, PRETRAINED
from retrieval.networks.delf import Delf
from retrieval.whitening import Projection

# cirtorch numbers a ResNet's children in their order.
_FEATURES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")

# Prefix in cirtorch's file -> prefix here. The longest that matches counts.
CIRTORCH_KEYS = {
    **{f"features.{i}.": f"backbone.body.{child}." for i, child in enumerate(_FEATURES)},
    "pool.": "pool.",
    "pool.rpool.": "pool.pool.",
    "whiten.": "whiten.",
    "lwhiten.": "local_whiten.",
}

# Arrays in pickles, under the names that numpy 1 and 2 give them; nothing that runs code.
_ARRAYS: list[Any] = [
    *(np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")}),
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, function in (
            ("_reconstruct", np.zeros(1).__reduce__()[0]),
            ("scalar", np.float64().__reduce__()[0]),
        )
    ),
]


@dataclass(frozen=True)
class DelfFile:
    """A file of weights.

    config:     the network they are of; None where the file holds a backbone only.
    whitenings: learned whitenings (Lw) by the name of the data set they were learned on, and "ss"
        or "ms": for descriptors of a single scale, or of multiple.
    """

    weights: Weights
    config: DelfConfig | None
    whitenings: dict[tuple[str, str], Projection] = field(default_factory=dict)


def contents(model: Delf) -> dict[str, Any]:
    """What a checkpoint of the network holds: config, weights and cirtorch's meta."""
    return {"config": asdict(model.config), "model": model.state_dict(), "meta": model.meta()}


def read_file(path: str | Path) -> DelfFile:
    """Read weights of this project or of cirtorch, or those of a backbone in any known layout.

    Raises InputError for a file that is missing, damaged or of another layout.
    """
    path = Path(path)
    with torch.serialization.safe_globals(_ARRAYS):
        found = checkpoint.load(path)
    if isinstance(found, dict) and isinstance(found.get("config"), dict):
        known = {each.name for each in fields(DelfConfig)}
        if "arch" in found["config"] and found["config"].keys() <= known:
            config = DelfConfig(**found["config"])
            return DelfFile(Weights(path, "delf", found["config"], found["model"], ()), config)
    if isinstance(found, dict) and {"meta", "state_dict"} <= found.keys():
        return _from_cirtorch(path, found)
    weights = checkpoint.read_weights(path)
    body = {key: t for key, t in weights.state.items() if key.startswith("backbone.")}
    rest = tuple(key for key in weights.state if key not in body)
    kept = Weights(path, weights.layout, None, body, weights.dropped + rest)
    return DelfFile(kept, None)


def _from_cirtorch(path: Path, found: Mapping[str, Any]) -> DelfFile:
    meta = found["meta"]
    arch = meta.get("architecture") if isinstance(meta, dict) else None
    if not str(arch).startswith("resnet") or arch not in BACKBONES:
        raise InputError(f"{path}: a cirtorch network of architecture {arch}; expected a ResNet")
    config = DelfConfig(
        arch=arch,
        pool=meta["pooling"],
        local_whitening=bool(meta.get("local_whitening")),
        regional=bool(meta.get("regional")),
        whitening=bool(meta.get("whitening")),
    )
    state: State = {}
    for key, tensor in found["state_dict"].items():
        match = max((p for p in CIRTORCH_KEYS if key.startswith(p)), key=len, default=None)
        if match is None:
            raise InputError(f"{path}: looks like cirtorch's weights, but has also {key}")
        state[CIRTORCH_KEYS[match] + key.removeprefix(match)] = tensor
    weights = Weights(path, "cirtorch", None, checkpoint.with_batch_counts(state), ())
    learned = found.get("Lw") or meta.get("Lw") or {}
    return DelfFile(weights, config, _whitenings(learned))


def _whitenings(learned: Mapping[str, Any]) -> dict[tuple[str, str], Projection]:
    """cirtorch's Lw: ``{data set: {"ss" or "ms": {"m": (D, 1), "P": (D, D)}}}``, P applied left."""
    found = {}
    for name, kinds in learned.items():
        for kind, one in kinds.items():
            mean, matrix = (np.asarray(one[key], np.float32) for key in ("m", "P"))
            found[name, kind] = Projection(mean.reshape(-1), np.ascontiguousarray(matrix.T))
    return found


def create(
    config: DelfConfig, pretrained: str = "imagenet"
) -> tuple[Delf, PartsReport, dict[tuple[str, str], Projection]]:
    """The network with the weights that ``pretrained`` names; what they filled; whitenings.

    pretrained: one of `backbone.PRETRAINED`, or the path of a file that `read_file` knows. Raises
    InputError if the weights can't be had or are of another network.
    """
    if pretrained in PRETRAINED:
        model = Delf(config, pretrained)
        every = checkpoint.parts(model.state_dict())
        loaded = () if pretrained == "none" else ("backbone",)
        missing = tuple(part for part in every if part not in loaded)
        return model, PartsReport(model.backbone.weights_name, loaded, missing), {}
    if not Path(pretrained).is_file():
        raise InputError(
            f"--pretrained {pretrained}: neither a file nor one of {', '.join(PRETRAINED)}"
        )
    file = read_file(pretrained)
    if file.config is not None:
        _check_config(config, file.config, pretrained)
    model = Delf(config, "none")
    return model, checkpoint.load_parts(model, file.weights), file.whitenings


def _check_config(config: DelfConfig, saved: DelfConfig, path: str) -> None:
    """Compare what shapes the descriptor; an attention may be added, layers may differ."""
    names = ("arch", "pool", "local_whitening", "regional", "whitening")
    wrong = [
        f"{name} {getattr(config, name)}, but the file has {getattr(saved, name)}"
        for name in names
        if getattr(config, name) != getattr(saved, name)
    ]
    if saved.attention and config.attention and saved.layer != config.layer:
        wrong.append(f"attention on {config.layer}, but the file has it on {saved.layer}")
    if wrong:
        raise InputError(f"{path}: weights of another network: {'; '.join(wrong)}")
