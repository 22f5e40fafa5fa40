"""Files that appear whole; archives of arrays that are read whole or refused."""

import io
import os
import platform
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from retrieval.errors import InputError
from retrieval.files import (
    alone,
    newest_folder,
    read_json,
    read_npz,
    sealed,
    write_atomically,
    write_json,
)

ARRAYS = {
    "counts": np.random.default_rng(0).integers(0, 9, (5, 40)),
    "names": np.array(["some", "words"]),
}


def read(path):
    return read_npz(path, ["counts", "names"], "write it again")


@pytest.fixture(params=[np.savez, np.savez_compressed])
def file(tmp_path, request):
    request.param(tmp_path / "a.npz", **ARRAYS)
    return tmp_path / "a.npz"


def test_arrays_come_back(file):
    arrays = read(file)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_a_flipped_bit_is_refused_or_changes_nothing(file):
    whole = file.read_bytes()
    rng = np.random.default_rng(1)
    messages = []
    for position in rng.integers(len(whole), size=300):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        try:
            arrays = read(file)
        except InputError as error:
            messages.append(str(error))
        else:
            for name, array in ARRAYS.items():
                np.testing.assert_array_equal(arrays[name], array)
    assert len(messages) > 150
    for said in messages:
        assert said.startswith(f"{file} cannot be read (")
        assert said.endswith(": write it again")


def npz(header: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in ("counts", "names"):
            member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
            archive.writestr(f"{name}.npy", member)
    return data.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 cut short",
        npz("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,)}\n"),
        npz("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n"),
        npz("no header\n"),
    ],
    ids=["empty", "cut", "huge", "objects", "no header"],  # not by content: it holds the time
)
def test_what_is_no_archive_of_arrays_is_refused(tmp_path, content):
    file = tmp_path / "a.npz"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"a.npz cannot be read \(.+\): write it again"):
        read(file)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none.npz cannot be read .*: write it again"):
        read(tmp_path / "none.npz")
    np.savez(tmp_path / "a.npz", names=ARRAYS["names"], others=np.zeros(2))
    with pytest.raises(InputError, match=r"it has no counts\): write it again"):
        read(tmp_path / "a.npz")
    assert read_npz(tmp_path / "a.npz", ["names"], "").keys() == {"names", "others"}


def test_a_name_that_is_not_utf8_is_written_as_it_is(tmp_path):
    write_atomically(tmp_path / "a.csv", "café, " + os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "a.csv").read_bytes() == "café, ".encode() + b"caf\xe9"


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_file_leaves_what_was_there(tmp_path, monkeypatch, problem):
    file = tmp_path / "deeper" / "a"
    write_atomically(file, b"old")

    def interrupted(_):
        raise problem

    monkeypatch.setattr(os, "fsync", interrupted)
    expected = KeyboardInterrupt if isinstance(problem, KeyboardInterrupt) else InputError
    with pytest.raises(expected, match=r"deeper/a cannot be written \(No space left|^$"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert [path.name for path in file.parent.iterdir()] == ["a"]


def test_what_only_one_may_do_is_refused_to_a_second(tmp_path):
    with (
        alone(tmp_path / "city", "building"),
        pytest.raises(InputError, match=r"city: another process is building; wait"),
        alone(tmp_path / "city", "building"),
    ):
        pass
    with alone(tmp_path / "city", "building"):
        pass


def test_what_dead_processes_left_is_swept_and_what_living_ones_write_is_kept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = platform.node()
    for number in (dead.pid, os.getppid()):
        (tmp_path / f".a.pth.{host}.{number}.tmp").touch()
    (tmp_path / f".a.pth.elsewhere.{dead.pid}.tmp").touch()
    (tmp_path / "mine.tmp").touch()
    write_atomically(tmp_path / "b", "b")
    kept = {
        f".a.pth.{host}.{os.getppid()}.tmp",
        f".a.pth.elsewhere.{dead.pid}.tmp",
        "mine.tmp",
        "b",
    }
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_sealed_object_tells_when_it_has_changed(tmp_path):
    file = tmp_path / "a.json"
    content = {"a": [1, 2.5, None], "b": {"c": "ü"}}
    write_json(file, sealed(content))
    assert read_json(file) == content
    file.write_text(file.read_text().replace("2.5", "2.6"))
    with pytest.raises(ValueError, match="checksum"):
        read_json(file)
    write_json(file, content)
    assert read_json(file) == content


def test_the_newest_of_many_folders_of_one_second(tmp_path):
    for end in ("", "_2", "_9", "_10"):
        (tmp_path / f"2026-01-02_03-04-05{end}").mkdir()
    (tmp_path / "2026-01-01_23-59-59_11").mkdir()
    assert newest_folder(tmp_path).name == "2026-01-02_03-04-05_10"
