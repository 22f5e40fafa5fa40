"""Downloads that go on where they were cut off, are verified, and appear whole or not at all."""

import hashlib
import http.client
import math
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path

from retrieval import progress
from retrieval.errors import InputError
from retrieval.files import ARCHIVE_ERRORS, one_line

_BLOCK = 1 << 20
_TIMEOUT = 60  # seconds without a byte


def download(url: str, path: Path, sha256: str | None = None) -> Path:
    """Fetch ``url`` into the file ``path``, unless it is there; returns ``path``.

    What has come so far lies in PATH.part, and the next call goes on from there where the server
    can send a part and its file is still the same (PATH.part.tag keeps what the server calls it).
    Raises InputError where nothing can be fetched, the connection breaks, or the file's SHA-256 is
    not ``sha256``.
    """
    if not path.exists():
        part = path.with_name(f"{path.name}.part")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{part.parent}: no folder can be made there ({error})") from error
        try:
            _fetch(url, part)
        except urllib.error.HTTPError as error:
            remedy = f"; delete {part} to fetch it anew" if error.code == 416 else ""
            raise InputError(
                f"{url}: the server says {error.code} {error.reason}{remedy}"
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise InputError(
                f"{url}: {error}; {_size(part)} bytes are in {part}, and the same command goes on"
            ) from error
        _verify(part, sha256)
        os.replace(part, path)
        _tag_file(part).unlink(missing_ok=True)
    else:
        _verify(path, sha256)
    return path


def _fetch(url: str, part: Path) -> None:
    request = urllib.request.Request(url)
    there, tag = _size(part), _read_tag(part)
    if there:
        request.add_header("Range", f"bytes={there}-")
        if tag:
            request.add_header("If-Range", tag)  # the whole file, if it has changed
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{there}":
            return  # nothing is left to send
        raise
    goes_on = response.status == 206
    with response, open(part, "ab" if goes_on else "wb") as file:
        if goes_on and tag and _tag_of(response.headers) not in ("", tag):
            file.truncate(0)
            raise ConnectionError("the file there has changed")
        sent = response.headers.get("Content-Range", f"bytes {there}-")
        if goes_on and not sent.startswith(f"bytes {there}-"):
            raise ConnectionError(f"asked for bytes from {there} on, the server sends {sent!r}")
        if not goes_on:
            _tag_file(part).write_text(_tag_of(response.headers), encoding="utf-8")
        there = file.tell()
        length = response.headers.get("Content-Length")
        total = None if length is None else there + int(length)
        with progress.bar(part.stem, total, "B", done=there):
            while block := response.read(_BLOCK):
                file.write(block)
                progress.advance(len(block))
        there = file.tell()
    if total is not None and there != total:
        raise ConnectionError(f"the connection broke after {there} of {total} bytes")


def _tag_of(headers: Mapping[str, str]) -> str:
    """What tells this version of a file from others in If-Range, which takes no weak ETag."""
    etag = headers.get("ETag", "")
    return headers.get("Last-Modified", "") if etag.startswith("W/") or not etag else etag


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _read_tag(part: Path) -> str:
    file = _tag_file(part)
    return file.read_text(encoding="utf-8") if file.exists() else ""


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


def unpack(archive: Path, folder: Path, most_bytes: float = math.inf) -> None:
    """Unpack a .zip or .tar(.gz, …) below ``folder``; only plain files and folders.

    What is unpacked takes its place when the whole archive has been read and its checksums hold;
    files that are there already are replaced. Raises InputError for a file that is no archive, a
    damaged or an encrypted one, for links and members that would lie outside, for a link in the
    way, and where what is unpacked is more than ``most_bytes`` or than the disk has left.
    """
    unfinished = folder / f".{archive.name}.unpacking"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a call that was killed
        unfinished.mkdir(parents=True)
        room = min(most_bytes, shutil.disk_usage(unfinished).free)
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as members:
                _check_room(archive, sum(each.file_size for each in members.infolist()), room)
                members.extractall(unfinished)  # never a link; no more than it declares
        else:
            _extract_tar(archive, unfinished, room)
        _move(unfinished, folder)
    except (*ARCHIVE_ERRORS, tarfile.TarError) as error:
        raise InputError(
            f"{archive}: no archive that can be unpacked ({one_line(error)}); if it is damaged, "
            "delete it to fetch it again"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check_room(archive: Path, size: int, room: float) -> None:
    if size > room:
        raise InputError(
            f"{archive} would take {size / 1e9:.2f} GB unpacked, more than {room / 1e9:.2f} GB: "
            "make room on the disk, or raise --max_size"
        )


def _extract_tar(archive: Path, folder: Path, room: float) -> None:
    size = 0
    with tarfile.open(archive) as members:
        for member in members:
            if not (member.isreg() or member.isdir()):
                raise tarfile.ReadError(f"{member.name} is no plain file or folder but a link")
            size += member.size
            _check_room(archive, size, room)
            members.extract(member, folder, filter="data")
        file = members.fileobj
        assert file is not None
        # tarfile takes a damaged header for the end of the archive, which is a block of zeros.
        file.seek(members.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"a damaged header at byte {members.offset}")
        while file.read(_BLOCK):  # to the end, where gzip compares its checksum
            pass


def _move(source: Path, target: Path) -> None:
    """Rename; a folder that is there already takes in the other's entries; no link is followed."""
    if target.is_symlink():
        raise InputError(f"{target} is a link: what lies behind it is left alone; remove it first")
    if source.is_dir() and target.is_dir():
        for entry in list(source.iterdir()):
            _move(entry, target / entry.name)
    else:
        os.replace(source, target)
