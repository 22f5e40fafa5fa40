"""Pickles from strangers, read safely: plain values and arrays of them, nothing that runs.

A pickle is a program. Before it is run, its operations are looked through: only those that build
plain values are let by. What it names is not what it gets: arrays and their types are put together
here, out of checked bytes, since numpy believes a state that lies.
"""

import io
import math
import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.errors import InputError

# Values in all containers together, and how deep these may lie in each other.
MOST_VALUES, MOST_DEEP = 50_000_000, 20

_REFUSED = {"PERSID", "BINPERSID", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
_REFUSED |= {"NEXT_BUFFER", "READONLY_BUFFER"}
# Plain numbers, truths and texts; `O` stands for a list of other plain values.
_KINDS = "biufSUO"


class _Type:
    """A numpy type in the making; its state adds the order of its bytes, and more that is not."""

    def __init__(self, name: object, *_: object) -> None:
        self.dtype = np.dtype(str(name))
        if self.dtype.kind not in _KINDS or self.dtype.fields or self.dtype.subdtype:
            raise pickle.UnpicklingError(f"arrays of type {name}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if self.dtype.kind != "O" and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array in the making: its value is known when its state has been set."""

    value: Any = None

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *_, shape, kind, in_columns, data = state
        self.value = _array(data, kind, shape, "F" if in_columns else "C").value


def _array(data: Any, kind: Any, shape: Any, order: Any = "C") -> _Array:
    """The array of these bytes (of kind `O`: of this list)."""
    if not isinstance(kind, _Type) or not all(isinstance(side, int) for side in shape):
        raise pickle.UnpicklingError("an array without type or shape")
    found = _Array()
    if kind.dtype.kind == "O":
        if not isinstance(data, list) or len(shape) != 1:
            raise pickle.UnpicklingError("an array of objects of more than one dimension")
        found.value = data
    else:
        raw = bytes(data) if isinstance(data, bytes | bytearray | memoryview) else b""
        if len(raw) != math.prod(shape) * kind.dtype.itemsize:
            raise pickle.UnpicklingError(f"{len(raw)} bytes for an array of shape {shape}")
        flat = np.frombuffer(raw, kind.dtype)
        found.value = flat.reshape(shape, order="F" if order == "F" else "C").copy()
    return found


def _scalar(kind: Any, data: bytes = b"") -> Any:
    return _array(data, kind, (1,)).value[0].item()


def _nothing() -> bytes:
    """How empty bytes are written for Python 2."""
    return b""


def _latin1(text: str, _encoding: str) -> bytes:
    """How other bytes are."""
    return text.encode("latin1")


class _Maker:
    """A function that a pickle may call, and not change."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, _: object) -> None:
        raise pickle.UnpicklingError("it gives a state to what has none")


# All that a pickle may name, and what it gets instead.
_NAMED = {
    "builtins.bytes": _Maker(_nothing),
    "_codecs.encode": _Maker(_latin1),
    "numpy.ndarray": _Maker(_Array),
    "numpy.dtype": _Maker(_Type),
    "numpy.core.multiarray._reconstruct": _Maker(_Array),
    "numpy.core.multiarray.scalar": _Maker(_scalar),
    "numpy.core.numeric._frombuffer": _Maker(_array),
}


class _PlainUnpickler(pickle.Unpickler):
    """Gives a pickle the entries of `_NAMED`, by its names of today or of older Pythons."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name; UnpicklingError for one that is not known."""
        known = {"__builtin__": "builtins"}.get(module, module.replace("numpy._core", "numpy.core"))
        if f"{known}.{name}" not in _NAMED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return _NAMED[f"{known}.{name}"]


def _check_operations(data: bytes) -> None:
    """UnpicklingError for operations that build more than plain values, or take too much room."""
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in _REFUSED:
            raise pickle.UnpicklingError(f"it uses {operation.name}")
        if operation.name.endswith("PUT") and int(argument or 0) > len(data):
            raise pickle.UnpicklingError(f"it numbers a value {argument}")


class _Plain:
    """Puts arrays in their places, and counts values: one that is shared counts each time."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[Any, int]] = {}
        self._kept: list[Any] = []  # so that no number of a value is given to another one

    def __call__(self, value: Any, depth: int = 0) -> tuple[Any, int]:
        """The plain value, and how many values it consists of; UnpicklingError for other ones."""
        if isinstance(value, _Array):
            value = value.value
            if isinstance(value, np.ndarray):
                return value, 1
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return value, 1
        if depth > MOST_DEEP:
            raise pickle.UnpicklingError(f"lists more than {MOST_DEEP} deep")
        if id(value) not in self._done:
            self._kept.append(value)
            self._done[id(value)] = self._of_container(value, depth + 1)
            if self._done[id(value)][1] > MOST_VALUES:
                raise pickle.UnpicklingError(f"more than {MOST_VALUES} values")
        return self._done[id(value)]

    def _of_container(self, value: Any, depth: int) -> tuple[Any, int]:
        if isinstance(value, dict):
            if not all(isinstance(key, str | int | bytes) for key in value):
                raise pickle.UnpicklingError("a key that is neither text nor number")
            found = {key: self(each, depth) for key, each in value.items()}
            return {key: each for key, (each, _) in found.items()}, 1 + _total(found.values())
        if not isinstance(value, list | tuple | set | frozenset):
            raise pickle.UnpicklingError(f"a value of type {type(value).__name__.strip('_')}")
        parts = [self(each, depth) for each in value]
        return type(value)([each for each, _ in parts]), 1 + _total(parts)


def _total(parts: Any) -> int:
    return sum(count for _, count in parts)


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """The content of a pickle of plain values and arrays of them; nothing else is ever built.

    An array of objects is read as a list. Raises InputError for a file that cannot be read, and for
    a pickle that holds anything else, or more than `MOST_VALUES`.
    """
    source = Path(path)
    try:
        data = source.read_bytes()
        _check_operations(data)
        built = _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
        return _Plain()(built)[0]
    except (
        *(OSError, pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError),
        *(LookupError, ArithmeticError, MemoryError, RecursionError),
    ) as error:
        raise InputError(
            f"{source}: cannot be read as a pickle of plain values and numpy arrays ({error})"
        ) from error
