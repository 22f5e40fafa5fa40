"""Hashes of files: of their bytes, and read once."""

import os
import sqlite3
import time
from pathlib import Path

import pytest

from retrieval.data import contents
from retrieval.data.contents import content_hashes

LONG_AGO = 10**18


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As in a process that has just begun, with nothing kept; returns the folder of what is."""
    monkeypatch.setattr(contents, "_known", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    return tmp_path / "kept" / "delg-delf"


def write(path: Path, data: bytes, at: int = LONG_AGO) -> Path:
    path.write_bytes(data)
    os.utime(path, ns=(at, at))
    return path


def reads(monkeypatch) -> list[Path]:
    """The files that are read from now on."""
    found: list[Path] = []
    hash_of = contents._hash

    def noted(stamp):
        found.append(Path(os.fsdecode(stamp[0])))
        return hash_of(stamp)

    monkeypatch.setattr(contents, "_hash", noted)
    return found


def test_equal_bytes_have_equal_hashes_whatever_the_name(tmp_path, fresh):
    paths = [write(tmp_path / name, data) for name, data in (("a", b"1"), ("b", b"1"), ("c", b"2"))]
    first, second, third, none = content_hashes([*paths, tmp_path / "none"])
    assert first == second != third
    assert none is None


def test_a_file_is_read_once_by_all_processes(tmp_path, fresh, monkeypatch):
    path = write(tmp_path / os.fsdecode(b"caf\xe9"), b"1")
    before = content_hashes([path])
    monkeypatch.setattr(contents, "_known", {})
    read = reads(monkeypatch)
    assert content_hashes([path, path]) == [*before, *before]
    assert read == []
    write(path, b"2", LONG_AGO + 1)
    assert content_hashes([path]) != before
    assert read == [path]


def test_a_photo_replaced_in_place_under_its_old_time_is_read_again(tmp_path, fresh):
    path = write(tmp_path / "a", b"1")
    before = content_hashes([path])
    time.sleep(0.05)  # a tick of the file system's clock
    write(path, b"2")
    assert content_hashes([path]) != before


def test_one_that_has_just_changed_is_not_believed(tmp_path, fresh, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"1")
    before = content_hashes([path])
    stamp = path.stat().st_mtime_ns
    write(path, b"2", stamp)  # as large, and in the same tick
    assert content_hashes([path]) != before


@pytest.mark.parametrize("problem", ["damaged", "a file", "read only"])
def test_where_nothing_can_be_kept_files_are_read_each_time(tmp_path, fresh, monkeypatch, problem):
    path = write(tmp_path / "a", b"1")
    fresh.parent.mkdir()
    if problem == "damaged":
        fresh.mkdir()
        (fresh / "contents.sqlite").write_bytes(b"no database " * 1000)
    elif problem == "a file":
        fresh.write_text("")
    else:
        monkeypatch.setattr(sqlite3, "connect", lambda *_, **__: (_ for _ in ()).throw(OSError()))
    assert len(content_hashes([path])[0] or "") == 32
