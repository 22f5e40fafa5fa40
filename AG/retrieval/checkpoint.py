"""Checkpoints: tensors and plain values, written atomically, read safely and strictly."""

import hashlib
import io
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from retrieval.errors import InputError
from retrieval.files import ARCHIVE_ERRORS, one_line, write_atomically


def save(path: str | Path, contents: Mapping[str, Any]) -> None:
    """Write tensors, plain values, and lists, tuples and dicts of them; atomically.

    NumPy scalars become Python's; TypeError for what `load` would refuse.
    """
    data = io.BytesIO()
    torch.save(_plain(contents, "contents"), data)
    write_atomically(path, data.getbuffer())


def model_contents(model: nn.Module) -> dict[str, Any]:
    """The checkpoint of a network that has a `config`: {"config": its fields, "model": state}."""
    return {"config": asdict(cast(Any, model).config), "model": model.state_dict()}


def save_model(path: str | Path, model: nn.Module) -> None:
    """Write `model_contents`, which `weights.read_weights` reads."""
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

    No code of the file is run (weights_only). What torch.save writes is a zip archive, of which
    torch compares no checksum: here they are all compared first. InputError if it is missing,
    damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from error
    # What unpickling raises on bytes that are no pickle: whatever the bytes happen to ask for.
    except (
        *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError),
        *(LookupError, AttributeError, ImportError, AssertionError, MemoryError),
    ) as error:
        raise InputError(f"{path}: not a readable checkpoint: {_reason(path, error)}") from error


def _check_archive(path: Path) -> None:
    """EOFError where a file that begins as an archive is none, or a checksum in it is wrong."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":
            return  # of before torch 1.6, or none at all
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except ARCHIVE_ERRORS as error:
        raise EOFError(f"the archive is damaged: {error}") from error
    if damaged is not None:
        raise EOFError(f"the checksum of {damaged} in it is wrong")


# How files begin that are found in the place of a checkpoint, and what they are.
_OTHERS = {
    b"<!doctype": "a web page, as servers send instead of a file: download it again",
    b"<html": "a web page, as servers send instead of a file: download it again",
    b"version https://git-lfs": "a pointer of Git LFS: `git lfs pull` fetches the file itself",
}


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be loaded; torch's own words advise to switch its safety off."""
    with path.open("rb") as file:
        begin = file.read(100).lower()
    for known, what in _OTHERS.items():
        if begin.lstrip().startswith(known):
            return f"it is {what}"
    if not begin:
        return "it is empty: download or write it again"
    named = re.search(r"\bGLOBAL ([\w.]+)", str(error))
    if named:
        return (
            f"it holds more than tensors and plain values (it refers to {named[1]}); save its "
            "state dict alone"
        )
    words = "" if isinstance(error, pickle.UnpicklingError) else f" ({one_line(error)[:200]})"
    return f"expected a whole file of tensors and plain values{words}"


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Fill all of `model`; InputError listing the keys and shapes that differ from `source`."""
    check_state(model.state_dict(), state, source)
    model.load_state_dict(state)


def check_state(
    expected: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    source: str | Path,
    remedy: str = "",
) -> None:
    """InputError, ending in ``remedy``, that lists the keys and shapes in which the two differ."""
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
        lines = [f"{name}: {first_of(keys)}" for name, keys in differences.items() if keys]
        raise InputError(
            f"{source}: these weights are of another network; the file {'; '.join(lines)}{remedy}"
        )


def first_of(keys: Sequence[str], most: int = 8) -> str:
    """The keys in words; those after the first ``most`` are only counted."""
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
