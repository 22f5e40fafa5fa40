"""What is in files: hashes of their bytes, kept from call to call.

A file of the same path, size, times and inode is not read again. What is known lies in
``$XDG_CACHE_HOME/delg-delf`` (or ``~/.cache/delg-delf``); where nothing can be kept there, files
are read each time.
"""

import contextlib
import hashlib
import itertools
import os
import sqlite3
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from retrieval import progress


class _Stamp(NamedTuple):
    """What tells whether a file is still the same; times in nanoseconds.

    time is that of the content, which anybody may set; changed that of the last change of anything,
    which follows the clock (on Windows: when the file was made).
    """

    path: bytes
    size: int
    inode: int
    time: int
    changed: int


# A file that changed so few seconds ago may change again, and keep its time.
_RECENT = 2.0
_TABLE = (
    "CREATE TABLE IF NOT EXISTS files "
    "(path BLOB PRIMARY KEY, size INT, inode INT, time INT, changed INT, hash TEXT)"
)
_known: dict[_Stamp, str] = {}


def content_hashes(paths: Sequence[Path]) -> list[str | None]:
    """A hash (BLAKE2b, 128 bits) of the bytes of each file; None where there is no such file."""
    stamps = [_stamp(path) for path in paths]
    asked = {stamp for stamp in stamps if stamp is not None} - _known.keys()
    if asked:
        _known.update(_kept(sorted(asked)))
    found: dict[_Stamp, str] = {}
    unread = sorted(asked - _known.keys())
    if unread:
        with ThreadPoolExecutor() as pool, progress.bar("reading photos", len(unread)):
            for stamp, text in zip(unread, pool.map(_hash, unread), strict=True):
                found[stamp] = text
                progress.advance()
        latest = (time.time() - _RECENT) * 1e9
        settled = {stamp: text for stamp, text in found.items() if stamp.time < latest}
        _known.update(settled)
        _keep(settled)
    return [None if stamp is None else _known.get(stamp) or found[stamp] for stamp in stamps]


def fingerprint(paths: Sequence[Path], more: str = "") -> str:
    """A hash of the names and contents of these files in this order, and of ``more``."""
    digest = hashlib.sha256()
    for path, content in zip(paths, content_hashes(paths), strict=True):
        # Names need not be UTF-8.
        digest.update(f"{path.name}:{content};".encode(errors="surrogateescape"))
    digest.update(more.encode())
    return digest.hexdigest()[:16]


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    name, times = os.fsencode(path.absolute()), (found.st_mtime_ns, found.st_ctime_ns)
    return _Stamp(name, found.st_size, found.st_ino, *times)


def _hash(stamp: _Stamp) -> str:
    with open(os.fsdecode(stamp.path), "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@contextlib.contextmanager
def _database() -> Iterator[sqlite3.Connection]:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "delg-delf"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(folder / "contents.sqlite", timeout=10)) as opened:
        opened.execute(_TABLE)
        with opened:
            yield opened


def _kept(stamps: Sequence[_Stamp]) -> dict[_Stamp, str]:
    """What is known of these files, if anything."""
    found: dict[_Stamp, str] = {}
    with contextlib.suppress(OSError, RuntimeError, sqlite3.Error), _database() as opened:
        for start in range(0, len(stamps), 500):
            paths = [stamp.path for stamp in stamps[start : start + 500]]
            marks = ",".join(itertools.repeat("?", len(paths)))
            rows = opened.execute(f"SELECT * FROM files WHERE path IN ({marks})", paths)
            found |= {_Stamp(*stamp): text for *stamp, text in rows}
    return {stamp: found[stamp] for stamp in stamps if stamp in found}


def _keep(found: dict[_Stamp, str]) -> None:
    rows = [(*stamp, text) for stamp, text in found.items()]
    with contextlib.suppress(OSError, RuntimeError, sqlite3.Error), _database() as opened:
        opened.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", rows)
