"""Downloads that go on where they were cut off, are verified, and appear whole or not at all."""

import hashlib
import http.client
import os
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from retrieval.errors import InputError

_BLOCK = 1 << 20
_TIMEOUT = 60  # seconds without a byte


def download(
    url: str,
    path: Path,
    sha256: str | None = None,
    progress: Callable[[int, int | None], object] | None = None,
) -> Path:
    """Fetch ``url`` into the file ``path``, unless it is there; returns ``path``.

    What has come so far lies in PATH.part, and the next call goes on from there where the server
    can send a part. progress is called with the bytes that are there and the bytes of the whole
    (None where the server does not say). Raises InputError where nothing can be fetched, the
    connection breaks, or the file's SHA-256 is not ``sha256``.
    """
    if not path.exists():
        part = path.with_name(f"{path.name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            _fetch(url, part, progress)
        except urllib.error.HTTPError as error:
            raise InputError(f"{url}: the server says {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise InputError(
                f"{url}: {error}; {_size(part)} bytes are in {part}, and the same command goes on"
            ) from error
        _verify(part, sha256)
        os.replace(part, path)
    else:
        _verify(path, sha256)
    return path


def _fetch(url: str, part: Path, progress: Callable[[int, int | None], object] | None) -> None:
    request = urllib.request.Request(url)
    there = _size(part)
    if there:
        request.add_header("Range", f"bytes={there}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{there}":
            return  # nothing is left to send
        raise
    with response, open(part, "ab" if response.status == 206 else "wb") as file:
        there = file.tell()
        length = response.headers.get("Content-Length")
        total = None if length is None else there + int(length)
        while block := response.read(_BLOCK):
            file.write(block)
            there += len(block)
            if progress is not None:
                progress(there, total)
    if total is not None and there != total:
        raise ConnectionError(f"the connection broke after {there} of {total} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _verify(path: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise InputError(
            f"{path}: its SHA-256 is {found}, not {sha256}; delete it to fetch it again"
        )


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip or .tar(.gz, …) below ``folder``; members that would lie outside are refused.

    Raises InputError for a file that is no archive, or a damaged one.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as members:
                members.extractall(folder)
        else:
            with tarfile.open(archive) as members:
                members.extractall(folder, filter="data")
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{archive}: no archive that can be unpacked ({error})") from error
