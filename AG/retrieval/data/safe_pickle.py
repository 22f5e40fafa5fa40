"""Pickles from strangers, read safely: plain values and numpy arrays, nothing that runs."""

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.errors import InputError


def _latin1(text: str, _encoding: str) -> bytes:
    """How Python 3 writes bytes into a pickle for Python 2."""
    return text.encode("latin1")


# All that a pickle may name. Numpy's private functions are taken from what arrays pickle into.
_PICKLED: dict[str, Any] = {
    "builtins.bytes": bytes,
    "_codecs.encode": _latin1,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "numpy.core.multiarray._reconstruct": np.zeros(1).__reduce__()[0],
    "numpy.core.multiarray.scalar": np.float64().__reduce__()[0],
    "numpy.core.numeric._frombuffer": np.zeros(1).__reduce_ex__(5)[0],
}


class _PlainUnpickler(pickle.Unpickler):
    """Builds plain values and numpy arrays; other pickles could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        """The object a pickle names, by its name of today or of older Pythons and numpys."""
        known = {"__builtin__": "builtins"}.get(module, module.replace("numpy._core", "numpy.core"))
        if f"{known}.{name}" not in _PICKLED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return _PICKLED[f"{known}.{name}"]


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """The content of a pickle of plain values and numpy arrays; nothing else is ever built.

    Raises InputError for a file that cannot be read, and for a pickle that names anything else.
    """
    source = Path(path)
    try:
        with source.open("rb") as file:
            return _PlainUnpickler(file, encoding="latin1").load()
    except (
        OSError,
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        MemoryError,
        RecursionError,
        struct.error,
    ) as error:
        raise InputError(
            f"{source}: cannot be read as a pickle of plain values and numpy arrays ({error})"
        ) from error
