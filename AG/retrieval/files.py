"""Files that appear whole or not at all; archives that are read whole or refused."""

import contextlib
import io
import json
import lzma
import os
import shlex
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from retrieval.errors import InputError

# What the libraries raise for an archive that is missing, cut short, changed, encrypted, or packed
# in a way that they do not know.
ARCHIVE_ERRORS = (
    OSError, EOFError, ValueError, LookupError, RuntimeError, MemoryError, struct.error,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write; it takes its name when the block ends, being whole and on the disk.

    An interrupted block leaves what was there before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_atomically(path: str | Path, data: bytes | str) -> None:
    """Write bytes, or text as UTF-8, by way of `atomic_file`.

    File names in the text that are not UTF-8 are written as the bytes that they are.
    """
    with atomic_file(path) as file:
        file.write(data.encode(errors="surrogateescape") if isinstance(data, str) else data)


def one_line(error: Exception) -> str:
    """What an error says, in one line; its name where it says nothing."""
    return " ".join(str(error).split()) or repr(error)


def read_npz(path: Path, names: Sequence[str], remedy: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz file, by their names; ``names`` must be among them.

    Raises InputError, which ends with ``remedy``, for a file that is missing, lacks a name, or of
    which a byte has changed: unlike numpy's reader, this one reads every array's file to its end,
    where its checksum is compared.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {
                name.removesuffix(".npy"): np.load(
                    io.BytesIO(archive.read(name)), allow_pickle=False
                )
                for name in archive.namelist()
            }
    except ARCHIVE_ERRORS as error:
        raise InputError(f"{path} cannot be read ({one_line(error)}): {remedy}") from error
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(f"{path} cannot be read (it has no {', '.join(missing)}): {remedy}")
    return arrays


def new_folder(root: Path) -> Path:
    """A new folder below ``root``, named after the time."""
    name = start = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    count = 1
    while True:
        try:
            (root / name).mkdir(parents=True)
            return root / name
        except FileExistsError:
            count += 1
            name = f"{start}_{count}"


def newest_folder(root: Path) -> Path:
    """The newest run folder below ``root``; InputError if there is none."""
    folders = [path for path in root.glob("*/") if path.is_dir()]
    if not folders:
        raise InputError(f"{root}: no run folder here; run the step that makes one first")
    return max(folders)


def command_line() -> str:
    """The command that this process was started by, as it can be typed; empty in a notebook."""
    if not hasattr(sys.modules["__main__"], "__file__"):
        return ""
    script, *words = sys.argv or [""]
    return shlex.join(["python3", script, *words])


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that appears whole or not at all."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")
