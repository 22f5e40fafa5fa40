"""What is searched and with what."""

import os
from pathlib import Path

import pytest

from retrieval.data.photo_sets import PhotoSet


def photos(folder: Path, name: bytes) -> PhotoSet:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
    try:
        path.write_bytes(b"photo")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    return PhotoSet(folder, [path], [path])


def test_a_fingerprint_stays_what_it_was(tmp_path):
    assert photos(tmp_path, "café.jpg".encode()).fingerprint() == "7b734a69363f63c0"


def test_a_file_name_need_not_be_utf8(tmp_path):
    names = (b"caf\xe9.jpg", b"caf\xe8.jpg", "café.jpg".encode())
    assert len({photos(tmp_path, name).fingerprint() for name in names}) == 3
