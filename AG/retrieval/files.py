"""Files that appear whole or not at all, and are read whole or refused.

While it is written a file is called ``.NAME.HOST.PID.tmp``. What a killed process has left of it is
swept by the next one on that machine that writes into the folder.
"""

import contextlib
import functools
import getpass
import glob
import hashlib
import io
import json
import logging
import logging.handlers
import lzma
import os
import platform
import re
import shlex
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from retrieval.errors import InputError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# What the libraries raise for an archive that is missing, cut short, changed, encrypted, or packed
# in a way that they do not know.
ARCHIVE_ERRORS = (
    OSError, EOFError, ValueError, LookupError, RuntimeError, MemoryError, struct.error,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


def write_atomically(path: str | Path, data: bytes | memoryview | str) -> None:
    """Write bytes, or text as UTF-8, to a file that is then whole and on the disk.

    File names in the text that are not UTF-8 are written as the bytes that they are. An interrupted
    call, and one that raises InputError where nothing can be written, leave what was there before.
    """
    path = Path(path)
    unfinished = unfinished_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent.absolute())
        with open(unfinished, "wb") as file:
            file.write(data.encode(errors="surrogateescape") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): make room or name another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def unfinished_name(path: Path) -> Path:
    """What this process calls a file beside ``path`` until it is whole, and gets that name."""
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")


@contextlib.contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Do something to ``path`` that no two processes of a user and machine may do at once.

    Raises InputError, with the words ``doing``, where another one is at it.
    """
    key = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:24]
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    locks = Path(tempfile.gettempdir()) / f"delg-delf-{user}"  # a lock's file stays: not by path
    locks.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(locks / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise InputError(f"{path}: another process is {doing}; wait until it has ended") from error
    try:
        yield
    finally:
        lock.release()


@functools.lru_cache(1024)  # once for each folder and process
def _sweep(folder: Path) -> None:
    """Remove what processes of this machine that were killed left unfinished in ``folder``."""
    for path in folder.glob(f".*.{glob.escape(platform.node())}.*.tmp"):
        number = path.name.split(".")[-2]
        if number.isdigit() and not _is_running(int(number)):
            with contextlib.suppress(OSError):  # another process sweeps too; not ours to remove
                path.unlink()


def _is_running(process: int) -> bool:
    if os.name != "posix":
        return False  # elsewhere (Windows) a file that is open cannot be removed
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy, whole or not at all."""
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    write_atomically(path, data.getbuffer())


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by their names as a compressed .npz, whole or not at all."""
    data = io.BytesIO()
    np.savez_compressed(data, allow_pickle=False, **arrays)
    write_atomically(path, data.getbuffer())


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
    # Of one second, _10 comes after _9.
    return max(folders, key=lambda path: (path.name[:19], len(path.name), path.name))


def command_line() -> str:
    """The command that this process was started by, as it can be typed; empty in a notebook."""
    if not hasattr(sys.modules["__main__"], "__file__"):
        return ""
    return shlex.join(["python3", *sys.orig_argv[1:]])  # sys.argv has a path for -m MODULE


def keep_log(folder: Path) -> logging.Handler:
    """Write what this process has logged, and will, to info.log in a folder."""
    file = logging.FileHandler(folder / "info.log", encoding="utf-8")
    file.setFormatter(PlainText("%(asctime)s %(message)s"))
    root = logging.getLogger()
    for kept in [each for each in root.handlers if type(each) is logging.handlers.MemoryHandler]:
        kept.setTarget(file)
        kept.close()
        root.removeHandler(kept)
    root.addHandler(file)
    return file


class PlainText(logging.Formatter):
    """Lines in which what would steer a terminal is written out: names may hold anything."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return without_escapes(super().format(record))


def without_escapes(text: str) -> str:
    """The text with its control characters, but for ends of lines and tabs, as ``\\x1b``."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that appears whole or not at all."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, its checksum being compared where it was `sealed`.

    FileNotFoundError, OSError, or ValueError for what is damaged.
    """
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return unsealed(content)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with their checksum, which `unsealed` compares."""
    return {"checksum": _checksum(content), **content}


def unsealed(content: Mapping[str, Any], *, must_be: bool = False) -> dict[str, Any]:
    """What was `sealed`; ValueError if it has changed.

    What never was is returned as it is, unless it ``must_be``.
    """
    values = {name: value for name, value in content.items() if name != "checksum"}
    if (must_be or "checksum" in content) and content.get("checksum") != _checksum(values):
        raise ValueError("its checksum is wrong")
    return values


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return f"{zlib.crc32(text.encode(errors='surrogateescape')):08x}"
