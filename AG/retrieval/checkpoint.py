"""Checkpoints: tensors and plain values, written atomically, read safely and strictly.

Also the key maps by which weights of other projects fill this project's network. A network's parts
are its children (``backbone``, ``global_head``, ``attention``, ``autoencoder``): a file may lack
whole parts, which the report names, but within a part every key and shape must agree.
"""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from retrieval.errors import InputError
from retrieval.files import atomic_file

State = dict[str, torch.Tensor]


def save(path: str | Path, contents: Mapping[str, Any]) -> None:
    """Write tensors, plain values, and lists, tuples and dicts of them; atomically.

    NumPy scalars become Python's; TypeError for what `load` would refuse.
    """
    plain = _plain(contents, "contents")
    with atomic_file(path) as file:
        torch.save(plain, file)


def model_contents(model: nn.Module) -> dict[str, Any]:
    """The checkpoint of a network that has a `config`: {"config": its fields, "model": state}."""
    return {"config": asdict(cast(Any, model).config), "model": model.state_dict()}


def save_model(path: str | Path, model: nn.Module) -> None:
    """Write `model_contents`, what `read_weights` reads."""
    save(path, model_contents(model))


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, torch.Tensor | bool | int | float | str | bytes):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    raise TypeError(f"{where} is a {type(value).__name__}; a checkpoint holds plain values only")


def load(path: str | Path) -> Any:
    """What `save` wrote, on the CPU; or the tensors of a .safetensors file.

    No code of the file is run (weights_only). InputError if it is missing, damaged, or holds more
    than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from error
    # What unpickling raises on bytes that are no pickle: whatever the bytes happen to ask for.
    except (
        *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError),
        *(LookupError, AttributeError, ImportError, AssertionError, MemoryError),
    ) as error:
        raise InputError(
            f"{path}: not a readable checkpoint ({type(error).__name__}: {_first_line(error)}). "
            "Expected a whole file of tensors and plain values; from an older checkpoint that "
            "holds more, save its state dict alone"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0]


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Fill all of `model`; InputError listing the keys and shapes that differ from `source`."""
    _check(model.state_dict(), state, source)
    model.load_state_dict(state)


def _check(
    expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], source: str | Path
) -> None:
    shapes = [
        f"{key} {tuple(state[key].shape)}, expected {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    differences = {
        "lacks": [key for key in expected if key not in state],
        "has, unexpected": [key for key in state if key not in expected],
        "has other shapes": shapes,
    }
    if any(differences.values()):
        lines = [f"{name}: {_some(keys)}" for name, keys in differences.items() if keys]
        raise InputError(
            f"{source}: these weights are of another network; the file "
            + "; ".join(lines)
            + ". Give the --backbone, --head, --fc_output_dim, --reduction and "
            "--fm_reduction_dim it was trained with"
        )


def _some(keys: list[str], most: int = 8) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def weights_hash(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) of the tensors, their names, types and shapes, in order of the names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Weights:
    """Weights under this project's keys.

    layout:  "delg" (ours), "s1", "cosplace" or "torchvision": whose keys the file had.
    config:  the fields of a DelgConfig, if the file carries them.
    state:   parts of a Delg's state dict.
    dropped: the file's keys that a Delg has no use for (classifiers).
    """

    path: Path
    layout: str
    config: dict[str, Any] | None
    state: State
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class PartsReport:
    """Which parts of a network were filled from `source`, and which are as initialised."""

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    dropped: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One sentence for a log."""
        text = f"{self.source}: {', '.join(self.loaded) or 'nothing'} loaded"
        if self.missing:
            text += f"; random, since not loaded: {', '.join(self.missing)}"
        return text + (f"; left out: {_some(list(self.dropped), 4)}" if self.dropped else "")


def parts(state: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Names of the parts that a network's state dict has, in its order."""
    return tuple(dict.fromkeys(key.split(".")[0] for key in state))


def load_parts(model: nn.Module, weights: Weights) -> PartsReport:
    """Fill the parts of a Delg that `weights` has; strict within each of them (InputError)."""
    own = model.state_dict()
    present = parts(weights.state)
    expected = {key: tensor for key, tensor in own.items() if key.split(".")[0] in present}
    _check(expected, weights.state, weights.path)
    model.load_state_dict({**own, **weights.state})
    missing = tuple(part for part in parts(own) if part not in present)
    source = f"{weights.path} ({weights.layout} keys)"
    return PartsReport(source, present, missing, weights.dropped)


def read_weights(path: str | Path) -> Weights:
    """Read a file of any known layout; InputError that lists the keys if none fits.

    Known, bare or under "model", "model_state_dict" or "state_dict", with or without the
    "module." of parallel training: this project's checkpoints; S1's; CosPlace's and EigenPlaces';
    torchvision's networks.
    """
    path = Path(path)
    contents = load(path)
    config = contents.get("config") if isinstance(contents, dict) else None
    state = _unwrap(contents, path)
    layout, prefixes = _recognise(state, path)
    renamed: State = {}
    dropped, unknown = [], []
    for key, tensor in state.items():
        match = max((p for p in prefixes if key.startswith(p)), key=len, default=None)
        if match is None:
            unknown.append(key)
        elif (to := prefixes[match]) is None:
            dropped.append(key)
        else:
            renamed[to + key[len(match) :]] = tensor
    if unknown:
        raise InputError(f"{path}: looks like {layout} weights, but has also: {_some(unknown)}")
    return Weights(path, layout, config, with_batch_counts(renamed), tuple(dropped))


def _unwrap(contents: Any, path: Path) -> State:
    for name in ("model", "model_state_dict", "state_dict"):
        if isinstance(contents, dict) and isinstance(contents.get(name), dict):
            contents = contents[name]
            break
    if not (
        isinstance(contents, dict)
        and contents
        and all(isinstance(value, torch.Tensor) for value in contents.values())
    ):
        raise InputError(
            f"{path}: holds no state dict; expected tensors by name, bare or under 'model', "
            "'model_state_dict' or 'state_dict'"
        )
    if all(key.startswith("module.") for key in contents):
        contents = {key.removeprefix("module."): tensor for key, tensor in contents.items()}
    return contents


def with_batch_counts(state: State) -> State:
    """Add BatchNorm's batch counts, which files from before PyTorch 0.4.1 lack, as torch does."""
    for key in [key for key in state if key.endswith(".running_var")]:
        count = key.removesuffix("running_var") + "num_batches_tracked"
        state.setdefault(count, torch.tensor(0))
    return state


# ---- Key maps: prefix in the file -> prefix here, or None for what is left out. The longest
# matching prefix counts.

_OURS: dict[str, str | None] = {
    f"{part}.": f"{part}." for part in ("backbone", "global_head", "attention", "autoencoder")
}

# CosPlace and S1 number a ResNet's children in their order.
_RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")

# Their global head is Sequential(L2Norm, GeM, Flatten, Linear, L2Norm).
_AGGREGATION: dict[str, str | None] = {
    "aggregation.1.": "global_head.pool.",
    "aggregation.3.": "global_head.linear.",
}


def _resnet(trunk: str) -> dict[str, str | None]:
    return {f"{trunk}.{i}.": f"backbone.body.{child}." for i, child in enumerate(_RESNET)}


def _s1(trunk: str) -> dict[str, str | None]:
    return {
        **_resnet(trunk),
        **_AGGREGATION,
        "layers_4.": "backbone.body.layer4.",
        "attention.": "attention.",
        "autoencoder.conv1.": "autoencoder.reduce.",
        "autoencoder.conv2.": "autoencoder.expand.",
        "attn_classifier.": None,
    }


def _cosplace(state: State) -> dict[str, str | None]:
    if "backbone.0.0.0.weight" in state:  # EfficientNet: Sequential(features)
        return {**_AGGREGATION, "backbone.0.": "backbone.body.features."}
    if "backbone.1.running_var" in state:  # ResNet
        return {**_AGGREGATION, **_resnet("backbone")}
    return {**_AGGREGATION, "backbone.": "backbone.body.features."}  # VGG-16


def _torchvision(state: State) -> dict[str, str | None]:
    kept = {f"{key.split('.')[0]}." for key in state}
    heads = ("fc.", "classifier.", "_fc.")
    return {name: None if name in heads else f"backbone.body.{name}" for name in kept}


def _recognise(state: State, path: Path) -> tuple[str, dict[str, str | None]]:
    first = {key.split(".")[0] for key in state}
    if any(key.startswith("backbone.body.") for key in state):
        return "delg", _OURS
    for trunk in ("backbone_after_3", "backbone_until_3"):
        if trunk in first:
            return "s1", _s1(trunk)
    if {"backbone", "aggregation"} <= first:
        return "cosplace", _cosplace(state)
    if first & {"conv1", "features", "_conv_stem"}:
        return "torchvision", _torchvision(state)
    raise InputError(
        f"{path}: weights of an unknown layout, with keys such as {_some(list(state), 4)}; "
        "expected those of this project, of S1, of CosPlace or EigenPlaces, or of torchvision"
    )
