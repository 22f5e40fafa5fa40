"""Files that appear whole; archives of arrays that are read whole or refused."""

import io
import os
import zipfile

import numpy as np
import pytest

from retrieval.errors import InputError
from retrieval.files import atomic_file, read_npz, write_atomically

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


def test_an_interrupted_file_leaves_what_was_there(tmp_path):
    file = tmp_path / "deeper" / "a"
    with atomic_file(file) as opened:
        opened.write(b"old")

    def interrupted():
        with atomic_file(file) as opened:
            opened.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_bytes() == b"old"
    assert [path.name for path in file.parent.iterdir()] == ["a"]
