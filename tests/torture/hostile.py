"""Pickles and archives that strangers made to do harm, drawn at random."""

import io
import pickle
import random
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from retrieval.data.download import unpack
from retrieval.data.safe_pickle import read_pickle

MARK = "HARM"  # a file of this name, anywhere: something ran, or was written outside


def make(folder: Path) -> list[Path]:
    """The one file that is read; what it holds is drawn anew each time."""
    (folder / "outside").mkdir()
    file = folder / "stranger"
    file.write_bytes(pickle.dumps({"names": ["a"]}))
    return [file]


def _check(folder: Path, inside: Path | None = None) -> None:
    """AssertionError where something ran, or was written elsewhere than ``inside``."""
    left = [path for path in folder.rglob("*") if path.name != "stranger"]
    if inside is not None:
        left = [p for p in left if p != inside.parent and not p.is_relative_to(inside)]
    assert [path.name for path in left] == ["outside"], left
    assert not Path(MARK).exists()


# ---- pickles

_GLOBALS = (
    *("os system", "posix system", "builtins eval", "builtins exec", "builtins open"),
    *("subprocess Popen", "numpy dtype", "numpy ndarray", "numpy.core.multiarray scalar"),
    *("numpy._core.multiarray _reconstruct", "numpy._core.multiarray _frombuffer"),
    *("torch._utils _rebuild_tensor_v2", "pathlib Path", "codecs encode", "builtins bytearray"),
)


def _value(rng: random.Random, deep: int = 0) -> bytes:
    """Operations that leave one value on the stack."""
    big = rng.choice((0, -1, 1 << 31, (1 << 63) - 1, 1 << 62))
    parts: list[Any] = [
        lambda: b"J" + struct.pack("<i", rng.choice((0, -1, 7, 2**31 - 1))),
        lambda: b"\x8a\x08" + struct.pack("<q", big),
        lambda: _text(rng.choice(("f8", "O", "V8", "(2,2)f4", "S2000000000", f"touch {MARK}"))),
        lambda: b"B" + struct.pack("<I", 4) + rng.randbytes(4),
        lambda: b"\x8e" + struct.pack("<Q", rng.choice((4, 1 << 40))) + rng.randbytes(4),
        lambda: b"c" + rng.choice(_GLOBALS).replace(" ", "\n").encode() + b"\n",
        lambda: b"h" + bytes([rng.randrange(256)]),
        lambda: b"j" + struct.pack("<I", rng.choice((0, 5, 2**32 - 1))),
    ]
    if deep < 4:
        parts += [
            lambda: b"(" + b"".join(_value(rng, deep + 1) for _ in range(rng.randrange(4))) + b"t",
            lambda: b"](" + b"".join(_value(rng, deep + 1) for _ in range(3)) + b"e",
            lambda: _value(rng, deep + 1) + b"(" + _value(rng, deep + 1) + b"tR",
            lambda: _value(rng, deep + 1) + _value(rng, deep + 1) + b"b",
            lambda: b"]" * rng.randrange(2, 300) + b"a" * 200,
            lambda: b"].." + b"]q\x00(" + b"h\x00" * 9 + b"e",
        ]
    return rng.choice(parts)()


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def hostile_pickle(whole: bytes, rng: random.Random) -> bytes:
    """A pickle that calls, that lies about types and sizes, or that holds itself."""
    kind = rng.randrange(4)
    if kind == 0:  # a call
        module, name = rng.choice(_GLOBALS).split()
        return f"c{module}\n{name}\n(S'touch {MARK}'\ntR.".encode()
    if kind == 1:  # an array with a state that lies
        shape = tuple(rng.choice((0, 3, 2**31, 2**40)) for _ in range(rng.randrange(1, 4)))
        array = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntC\x01btR"
        kinds = rng.choice((b"f8", b"O8", b"V16", b"U1000000000", b"M8[D]"))
        dtype = b"cnumpy\ndtype\n(S'" + kinds + b"'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
        data = b"C" + bytes([24]) + bytes(24)
        sides = b"(" + b"".join(b"L%dL\n" % side for side in shape) + b"t"
        return b"\x80\x03" + array + b"(I1\n" + sides + dtype + b"I00\n" + data + b"tb."
    if kind == 2:  # lists of lists, each ten times in the next: 10 ** depth values
        depth = rng.randrange(5, 60)
        program = b"]q\x00"
        for i in range(depth):
            program += b"](" + (b"h" + bytes([i])) * 10 + b"eq" + bytes([i + 1])
        return b"\x80\x02" + program + b"."
    return b"\x80\x04" + b"".join(_value(rng) for _ in range(rng.randrange(1, 4))) + b"."


def read_hostile_pickle(folder: Path) -> Any:
    """What the pickle holds."""
    try:
        return read_pickle(folder / "stranger")
    finally:
        _check(folder)


# ---- archives

_NAMES = (
    *("a.jpg", "set/a.jpg", "../HARM", "/HARM", "set/../../HARM", "./../HARM", "set/./b.jpg"),
    *("..", ".", "", "link", "link/HARM", "link/../HARM", "a.jpg/below", "..\\HARM", "C:\\HARM"),
    *("outside/HARM", "../outside/HARM", "x" * 300, "a\x01b", "set", "set/"),
)
_LINKS = ("../outside", "..", "/", "outside", "../../outside", "set/a.jpg", "link")
_TAR_TYPES = (
    *(tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE),
    *(tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE),
)


def hostile_archive(whole: bytes, rng: random.Random) -> bytes:
    """A .tar or .zip of members that lead outside, of links, devices, and of sizes that lie."""
    data = io.BytesIO()
    if rng.random() < 0.5:
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as members:
            for _ in range(rng.randrange(1, 5)):
                info = zipfile.ZipInfo("a")
                info.filename = rng.choice(_NAMES)
                if rng.random() < 0.4:
                    info.external_attr = 0o120777 << 16  # a link, as zips have it
                bomb = rng.random() < 0.1
                text = bytes(200_000_000) if bomb else rng.choice(_LINKS).encode()
                members.writestr(info, text)
        return data.getvalue()
    how = rng.choice(("w", "w:gz", "w:xz"))
    with tarfile.open(fileobj=data, mode=how) as tar:  # type: ignore[call-overload]
        for _ in range(rng.randrange(1, 6)):
            member = tarfile.TarInfo(rng.choice(_NAMES))
            member.type = rng.choice(_TAR_TYPES)
            member.linkname, member.mode = rng.choice(_LINKS), rng.choice((0o644, 0o4777, 0))
            member.size = 10 if member.type == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(bytes(10)) if member.size else None)
    found = bytearray(data.getvalue())
    if how == "w" and rng.random() < 0.2:  # a size that lies
        found[124:136] = b"77777777777\0"
    return bytes(found)


def read_hostile_archive(folder: Path) -> Any:
    """The names and sizes of what is unpacked; no more than 100 MB."""
    target = folder / "in" / "data"
    shutil.rmtree(target.parent, ignore_errors=True)  # of the one before
    if (folder / "stranger").read_bytes()[:1] == b"\x80":
        return None  # the whole file, which is no archive
    try:
        unpack(folder / "stranger", target, 1e8)
        found = sorted(target.rglob("*"))
        assert not any(path.is_symlink() for path in found), found
        return [(str(path.relative_to(target)), path.stat().st_size) for path in found]
    finally:
        _check(folder, target)
