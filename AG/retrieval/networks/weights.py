"""Files of weights: this project's, and those of other projects, under this project's keys.

A network's parts are its children (``backbone``, ``global_head``, ``attention`` …): a file may lack
whole parts, which the report names, but within a part every key and shape must agree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from retrieval import checkpoint
from retrieval.checkpoint import first_of
from retrieval.configs.describe import BACKBONE_NAMES, DelfConfig, DelgConfig
from retrieval.errors import InputError
from retrieval.whitening import Projection

State = dict[str, torch.Tensor]
# Prefix in the file -> prefix here, or None for what is left out. The longest that matches counts.
Prefixes = dict[str, str | None]
# By the name of the data set it was learned on, and "ss" or "ms": for descriptors of a single scale
# of a photo, or of multiple scales.
Whitenings = Mapping[tuple[str, str], Projection]


@dataclass(frozen=True)
class Weights:
    """What a file holds, under this project's keys.

    layout:     whose keys the file had: "delg" or "delf" (ours), "first PyTorch DELG", "CosPlace",
                "cirtorch" or "torchvision".
    config:     the network they are of, if the file says it.
    state:      parts of that network's state dict.
    dropped:    the file's keys that are of no use here, such as classifiers.
    whitenings: learned whitenings that came with them (cirtorch's Lw).
    """

    path: Path
    layout: str
    config: DelgConfig | DelfConfig | None
    state: State
    dropped: tuple[str, ...] = ()
    whitenings: Whitenings = field(default_factory=dict)

    @property
    def of_delf(self) -> bool:
        """Whether they are those of a DELF; of a DELG or of a backbone alone otherwise."""
        return self.layout in ("delf", "cirtorch")

    def only(self, kept: Sequence[str]) -> "Weights":
        """Those of the parts ``kept``; the others are dropped."""
        state = {key: tensor for key, tensor in self.state.items() if _part(key) in kept}
        others = tuple(key for key in self.state if key not in state)
        return replace(self, state=state, dropped=self.dropped + others)


@dataclass(frozen=True)
class PartsReport:
    """Which parts of a network were filled from `source`, and which are as initialised.

    of_delf: whether the source is a file of a DELF.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    of_delf: bool = False

    def __str__(self) -> str:
        """One sentence for a log."""
        text = f"{self.source}: {', '.join(self.loaded) or 'nothing'} loaded"
        if self.missing:
            text += f"; random, since not loaded: {', '.join(self.missing)}"
        return text + (f"; left out: {first_of(self.dropped, 4)}" if self.dropped else "")


def parts(state: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Names of the parts that a network's state dict has, in its order."""
    return tuple(dict.fromkeys(map(_part, state)))


def _part(key: str) -> str:
    return key.split(".")[0]


def load_parts(network: nn.Module, weights: Weights, flags: Sequence[str]) -> PartsReport:
    """Fill the parts that ``weights`` have; InputError, naming ``flags``, where one differs."""
    own = network.state_dict()
    present = parts(weights.state)
    expected = {key: tensor for key, tensor in own.items() if _part(key) in present}
    remedy = f". Give the --{', --'.join(flags)} it was trained with"
    checkpoint.check_state(expected, weights.state, weights.path, remedy)
    broken = [key for key, tensor in weights.state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise InputError(
            f"{weights.path}: NaN or infinite values in {first_of(broken)}; take a "
            "checkpoint of before the training went wrong"
        )
    network.load_state_dict({**own, **weights.state})
    missing = tuple(part for part in parts(own) if part not in present)
    source = f"{weights.path} ({weights.layout} keys)"
    return PartsReport(source, present, missing, weights.dropped, weights.of_delf)


def read_weights(path: str | Path) -> Weights:
    """Read a file of any known layout; InputError that lists the keys if none fits.

    Known, bare or under "model", "model_state_dict" or "state_dict", with or without what wrappers
    put before all keys ("module.", "_orig_mod.", "model."): weights of this project; of the first
    PyTorch DELG; of CosPlace and EigenPlaces; of cirtorch, whose format delf_pytorch uses; of
    torchvision.
    """
    path = Path(path)
    with torch.serialization.safe_globals(_ARRAYS):
        contents = checkpoint.load(path)
    state, layout, prefixes = _recognised(contents, _unwrap(contents, path), path)
    config = _read_config(contents, layout, path)
    renamed: State = {}
    dropped, unknown = [], []
    for key, tensor in state.items():
        match = max((p for p in prefixes if key.startswith(p)), key=len, default=None)
        if match is None:
            unknown.append(key)
        elif (to := prefixes[match]) is None:
            dropped.append(key)
        else:
            renamed[to + key.removeprefix(match)] = tensor
    if unknown:
        raise InputError(f"{path}: looks like {layout} weights, but has also: {first_of(unknown)}")
    _add_batch_counts(renamed)
    whitenings = _read_whitenings(contents, path) if layout == "cirtorch" else {}
    return Weights(path, layout, config, renamed, tuple(dropped), whitenings)


_PLAIN = "?bBhHiIlLqQefd"  # types of plain numbers

# Arrays in pickles, under the names that numpy 1 and 2 give them; nothing that runs code.
_ARRAYS: list[Any] = [
    *(np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in _PLAIN}),
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, function in (
            ("_reconstruct", np.zeros(1).__reduce__()[0]),
            ("scalar", np.float64().__reduce__()[0]),
        )
    ),
]


def _unwrap(contents: Any, path: Path) -> State:
    for name in ("model", "model_state_dict", "state_dict"):
        if isinstance(contents, dict) and isinstance(contents.get(name), dict):
            contents = contents[name]
            break
    if not (
        isinstance(contents, dict)
        and contents
        and all(isinstance(key, str) for key in contents)
        and all(isinstance(value, torch.Tensor) for value in contents.values())
    ):
        raise InputError(
            f"{path}: holds no state dict; expected tensors by name, bare or under 'model', "
            "'model_state_dict' or 'state_dict'"
        )
    return contents


def _recognised(
    contents: Mapping[str, Any], state: State, path: Path
) -> tuple[State, str, Prefixes]:
    """The state without what wrappers put before all its keys, and its layout."""
    bare = state
    while True:
        try:
            return bare, *_recognise(contents, bare, path)
        except InputError:
            wrapper, *others = parts(bare)
            if others or wrapper in bare:
                return state, *_recognise(contents, state, path)
            bare = {key.removeprefix(f"{wrapper}."): tensor for key, tensor in bare.items()}


def _add_batch_counts(state: State) -> None:
    """Add BatchNorm's batch counts, which files from before PyTorch 0.4.1 lack, as torch does."""
    for key in [key for key in state if key.endswith(".running_var")]:
        count = key.removesuffix("running_var") + "num_batches_tracked"
        state.setdefault(count, torch.tensor(0))


def _read_config(
    contents: Mapping[str, Any], layout: str, path: Path
) -> DelgConfig | DelfConfig | None:
    """The network that the file says its weights are of."""
    if layout == "cirtorch":
        return _cirtorch_config(contents["meta"], path)
    saved = contents.get("config")
    if layout not in ("delg", "delf") or not isinstance(saved, dict):
        return None
    kind = DelgConfig if layout == "delg" else DelfConfig
    unknown = sorted(saved.keys() - {each.name for each in fields(kind)})
    if unknown:
        raise InputError(
            f"{path}: its network has settings that this version does not know: "
            f"{', '.join(unknown)}; save its state dict alone, and give the settings by flags"
        )
    if isinstance(saved.get("attention"), bool):  # as the first versions of DelfConfig had it
        saved = {**saved, "attention": "learned" if saved["attention"] else "norm"}
    default = kind()
    for name, value in saved.items():
        wanted = type(getattr(default, name))
        if not isinstance(value, wanted) and not (wanted is float and isinstance(value, int)):
            raise InputError(f"{path}: its network's {name} is {value!r}")
    return kind(**saved)


def _cirtorch_config(meta: Mapping[str, Any], path: Path) -> DelfConfig:
    arch = meta.get("architecture")
    if not str(arch).startswith("resnet") or arch not in BACKBONE_NAMES:
        raise InputError(f"{path}: a cirtorch network of architecture {arch}; expected a ResNet")
    if "pooling" not in meta:
        raise InputError(f"{path}: cirtorch weights whose meta does not tell their pooling")
    return DelfConfig(
        arch=arch,
        pool=meta["pooling"],
        local_whitening=bool(meta.get("local_whitening")),
        regional=bool(meta.get("regional")),
        whitening=bool(meta.get("whitening")),
    )


def _read_whitenings(contents: Mapping[str, Any], path: Path) -> Whitenings:
    """cirtorch's Lw: ``{data set: {"ss" or "ms": {"m": (D, 1), "P": (D, D)}}}``, P applied left."""
    learned = contents.get("Lw") or contents["meta"].get("Lw") or {}
    found = {}
    try:
        for name, kinds in learned.items():
            for kind, one in kinds.items():
                mean, matrix = (np.asarray(one[key], np.float32) for key in ("m", "P"))
                found[name, kind] = Projection(mean.reshape(-1), np.ascontiguousarray(matrix.T))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its learned whitenings (Lw) cannot be read ({error})") from error
    return found


# ---- Layouts and their prefixes

_OF_DELG = ("backbone", "global_head", "attention", "autoencoder")
_OF_DELF = ("backbone", "attention", "pool", "whiten", "local_whiten")
_OURS: Prefixes = {f"{part}.": f"{part}." for part in (*_OF_DELG, *_OF_DELF)}

# CosPlace, cirtorch and the first PyTorch DELG number a ResNet's children in their order.
_RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")

# The global head of CosPlace and the first PyTorch DELG: Sequential(L2Norm, GeM, Flatten, Linear,
# L2Norm).
_AGGREGATION: Prefixes = {
    "aggregation.1.": "global_head.pool.",
    "aggregation.3.": "global_head.linear.",
}


def _resnet(prefix: str) -> Prefixes:
    return {f"{prefix}.{i}.": f"backbone.body.{child}." for i, child in enumerate(_RESNET)}


def _first_pytorch_delg(backbone: str) -> Prefixes:
    return {
        **_resnet(backbone),
        **_AGGREGATION,
        "layers_4.": "backbone.body.layer4.",
        "attention.": "attention.",
        "autoencoder.conv1.": "autoencoder.reduce.",
        "autoencoder.conv2.": "autoencoder.expand.",
        "attn_classifier.": None,
    }


def _cosplace(state: State) -> Prefixes:
    if "backbone.0.0.0.weight" in state:  # EfficientNet: Sequential(features)
        return {**_AGGREGATION, "backbone.0.": "backbone.body.features."}
    if "backbone.1.running_var" in state:  # ResNet
        return {**_AGGREGATION, **_resnet("backbone")}
    return {**_AGGREGATION, "backbone.": "backbone.body.features."}  # VGG-16


_CIRTORCH: Prefixes = {
    **_resnet("features"),
    "pool.": "pool.",
    "pool.rpool.": "pool.pool.",
    "whiten.": "whiten.",
    "lwhiten.": "local_whiten.",
}


def _torchvision(state: State) -> Prefixes:
    heads = ("fc", "classifier", "_fc")
    return {
        f"{part}.": None if part in heads else f"backbone.body.{part}." for part in parts(state)
    }


def _recognise(contents: Mapping[str, Any], state: State, path: Path) -> tuple[str, Prefixes]:
    """Name and prefixes of the layout; InputError if it is none of those known."""
    first = set(parts(state))
    if any(key.startswith("backbone.body.") for key in state):
        saved = contents.get("config")
        of_delf = (isinstance(saved, dict) and "arch" in saved) or not first <= set(_OF_DELG)
        return "delf" if of_delf and first <= set(_OF_DELF) else "delg", _OURS
    for backbone in ("backbone_after_3", "backbone_until_3"):
        if backbone in first:
            return "first PyTorch DELG", _first_pytorch_delg(backbone)
    if {"backbone", "aggregation"} <= first:
        return "CosPlace", _cosplace(state)
    if "state_dict" in contents and isinstance(contents.get("meta"), dict):
        return "cirtorch", _CIRTORCH
    if first & {"conv1", "features", "_conv_stem"}:
        return "torchvision", _torchvision(state)
    raise InputError(
        f"{path}: weights of an unknown layout, with keys such as {first_of(list(state), 4)}; "
        "expected those of this project, of the first PyTorch DELG, of CosPlace or EigenPlaces, of "
        "delf_pytorch or cirtorch, or of torchvision"
    )
