"""Downloads from a server on this machine, which can break off and send parts."""

import hashlib
import io
import random
import shutil
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import get_data
from retrieval.data.download import download, unpack
from retrieval.errors import InputError

DATA = bytes(range(256)) * 20_000
SHA256 = hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Sends ``content``; breaks off after ``most`` bytes; knows ranges if ``ranges``.

    ``tags`` are headers that name this version of the content; it looks at If-Range, unless it is
    ``careless``. ``shift``: how far what it sends lies behind what was asked for.
    """

    content, most, ranges, careless, shift = DATA, 10**9, True, False, 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []
        self.tags: dict[str, str] = {}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.headers.get("Range"))
        if self.path == "/nothing":
            self.send_error(404)
            return
        start = 0
        same = self.headers.get("If-Range") in (None, *server.tags.values())
        wanted = self.headers.get("Range") if same or server.careless else None
        if server.ranges and wanted:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.content)}")
                self.end_headers()
                return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start + server.shift}-")
        for name, value in server.tags.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: server.most])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def url(server):
    return f"http://127.0.0.1:{server.server_port}/set.zip"


def test_a_file_is_fetched_once(server, url, tmp_path):
    path = download(url, tmp_path / "a" / "set", SHA256)
    assert path.read_bytes() == DATA
    download(url, path, SHA256)
    assert server.asked == [None]
    assert [each.name for each in path.parent.iterdir()] == ["set"]


@pytest.mark.parametrize("ranges", [True, False])
def test_what_was_cut_off_goes_on(server, url, tmp_path, ranges):
    server.most, server.ranges = 2_000_000, ranges
    with pytest.raises(InputError, match=r"set\.part, and the same command goes on"):
        download(url, tmp_path / "set", SHA256)
    there = (tmp_path / "set.part").stat().st_size
    assert 0 < there <= 2_000_000
    server.most = 10**9
    assert download(url, tmp_path / "set", SHA256).read_bytes() == DATA
    assert server.asked == [None, f"bytes={there}-"]


def test_a_whole_part_file_is_taken(server, url, tmp_path):
    (tmp_path / "set.part").write_bytes(DATA)
    assert download(url, tmp_path / "set", SHA256).read_bytes() == DATA
    assert server.asked == [f"bytes={len(DATA)}-"]


def test_a_part_that_is_longer_than_the_file_is_refused(server, url, tmp_path):
    (tmp_path / "set.part").write_bytes(DATA + b"!")
    with pytest.raises(InputError, match=r"416 .*; delete .*set\.part to fetch it anew"):
        download(url, tmp_path / "set")


MONDAY, TUESDAY = "Mon, 01 Jan 2024 00:00:00 GMT", "Tue, 02 Jan 2024 00:00:00 GMT"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"ETag": '"1"'}, {"ETag": '"2"'}),
        ({"Last-Modified": MONDAY}, {"Last-Modified": TUESDAY}),
        ({"ETag": 'W/"1"', "Last-Modified": MONDAY}, {"ETag": 'W/"2"', "Last-Modified": TUESDAY}),
    ],
)
def test_a_file_that_changed_meanwhile_is_fetched_anew(server, url, tmp_path, before, after):
    server.most, server.tags = 2_000_000, before
    for _ in range(2):  # cut off twice: the second call goes on, and keeps what the first was told
        with pytest.raises(InputError, match="goes on"):
            download(url, tmp_path / "set")
    assert server.asked[1] is not None
    assert 2_000_000 < (tmp_path / "set.part").stat().st_size <= 4_000_000
    server.most, server.tags, server.content = 10**9, after, DATA[::-1]
    assert download(url, tmp_path / "set").read_bytes() == DATA[::-1]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_halves_are_not_mixed_where_the_server_is_careless(server, url, tmp_path):
    server.most, server.tags, server.careless = 2_000_000, {"ETag": '"1"'}, True
    with pytest.raises(InputError, match="goes on"):
        download(url, tmp_path / "set")
    server.most, server.tags, server.content = 10**9, {"ETag": '"2"'}, DATA[::-1]
    with pytest.raises(InputError, match=r"has changed; 0 bytes are in .*the same command goes on"):
        download(url, tmp_path / "set")
    assert download(url, tmp_path / "set").read_bytes() == DATA[::-1]


def test_a_file_in_the_way_of_the_folder_is_named(url, tmp_path):
    (tmp_path / "data").write_text("")
    for folder in ("data", "data/deeper"):
        with pytest.raises(InputError, match=f"{folder}: no folder can be made there"):
            download(url, tmp_path / folder / "set")


def test_a_wrong_checksum_is_said_and_nothing_deleted(server, url, tmp_path):
    for _ in range(2):
        with pytest.raises(InputError, match=rf"set.part: its SHA-256 is {SHA256}, not 00; delete"):
            download(url, tmp_path / "set", "00")
    assert (tmp_path / "set.part").read_bytes() == DATA
    assert not (tmp_path / "set").exists()
    assert download(url, tmp_path / "set", SHA256).read_bytes() == DATA
    assert len(server.asked) == 3
    with pytest.raises(InputError, match="SHA-256"):
        download(url, tmp_path / "set", "00")


def test_what_cannot_be_fetched_is_said(url, tmp_path):
    with pytest.raises(InputError, match="the server says 404"):
        download(url.replace("set.zip", "nothing"), tmp_path / "set")
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9/"):
        download("http://127.0.0.1:9/", tmp_path / "set")
    with pytest.raises(InputError, match="unknown url type"):
        download("set.zip", tmp_path / "set")


def archive(kind: Any, name: str = "set/train/a.jpg", content: bytes = b"photo") -> bytes:
    """An archive with one file; kind: zip, or how `tarfile` opens (w, w:gz, …)."""
    data = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(data, "w") as members:
            members.writestr(name, content)
    else:
        with tarfile.open(fileobj=data, mode=kind) as members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            members.addfile(member, io.BytesIO(content))
    return data.getvalue()


@pytest.mark.parametrize("kind", ["zip", "w:gz"])
def test_an_archive_is_unpacked_by_the_command(server, url, tmp_path, kind):
    server.content = archive(kind)
    sha256 = hashlib.sha256(server.content).hexdigest()
    get_data.main([url, str(tmp_path), "--sha256", sha256])
    assert (tmp_path / "set/train/a.jpg").read_bytes() == b"photo"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_no_archive_and_one_that_reaches_outside(tmp_path):
    file = tmp_path / "a"
    for content in (b"no archive", archive("zip")[:-10], archive("w:gz")[:40]):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"no archive .*; if it is damaged, delete it"):
            unpack(file, tmp_path)
    file.write_bytes(archive("w:gz", "../outside"))
    with pytest.raises(InputError, match="outside"):
        unpack(file, tmp_path / "in")
    file.write_bytes(archive("zip", "../outside"))
    unpack(file, tmp_path / "in")  # zipfile leaves the ".." out
    assert not (tmp_path / "outside").exists()


def tree(folder) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", ["w:gz", "w:bz2", "w:xz", "zip"])
def test_a_damaged_archive_leaves_nothing_behind(tmp_path, kind):
    # Noise, which a flipped bit changes to other noise: only checksums tell.
    noise = random.Random(0).randbytes(3000)
    whole, file, folder = archive(kind, content=noise), tmp_path / "a", tmp_path / "in"
    draw = random.Random(1)
    for position in [len(whole) // 2, len(whole) // 3, *draw.sample(range(len(whole)), 60)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        try:
            unpack(file, folder)
        except InputError:
            assert list(folder.iterdir()) == []
        else:  # a date, or another name
            assert list(tree(folder).values()) == [noise]
            shutil.rmtree(folder)
    file.write_bytes(whole[:-7])
    with pytest.raises(InputError):
        unpack(file, folder)


def test_a_damaged_header_is_not_the_end_of_a_tar(tmp_path):
    data, file = io.BytesIO(), tmp_path / "a.tar"
    with tarfile.open(fileobj=data, mode="w") as members:
        for name in ("a", "b"):
            members.addfile(tarfile.TarInfo(name))
    damaged = bytearray(data.getvalue())
    damaged[tarfile.BLOCKSIZE] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(InputError, match="damaged header at byte 512"):
        unpack(file, tmp_path / "in")


@pytest.mark.parametrize(
    ("local", "central", "value", "message"),
    [(6, 8, 1, "encrypted"), (8, 10, 97, "compression method")],
)
def test_a_zip_that_cannot_be_read_is_refused(tmp_path, local, central, value, message):
    data, file = bytearray(archive("zip")), tmp_path / "a.zip"
    data[local] = data[data.index(b"PK\x01\x02") + central] = value
    file.write_bytes(data)
    with pytest.raises(InputError, match=rf"a\.zip: no archive .*{message}"):
        unpack(file, tmp_path / "in")


@pytest.mark.parametrize("kind", ["zip", "w"])
def test_what_is_there_stays_but_for_files_of_the_same_name(tmp_path, kind):
    file, folder = tmp_path / "a", tmp_path / "in"
    file.write_bytes(archive(kind))
    (folder / "set/train").mkdir(parents=True)
    (folder / "set/train/a.jpg").write_bytes(b"old")
    (folder / "set/train/b.jpg").write_bytes(b"other")
    (folder / ".a.unpacking").mkdir()  # of a call that was killed
    (folder / ".a.unpacking/half").write_bytes(b"ph")
    unpack(file, folder)
    assert tree(folder) == {"set/train/a.jpg": b"photo", "set/train/b.jpg": b"other"}
    file.write_bytes(archive(kind, "set/train"))
    with pytest.raises(InputError, match="set/train"):
        unpack(file, folder)


def linked(kind: bytes) -> bytes:
    """An archive of a link that leads outside."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as members:
        member = tarfile.TarInfo("data/link")
        member.type, member.linkname = kind, "../../outside"
        members.addfile(member)
    return data.getvalue()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_in_archives_are_refused(tmp_path, kind):
    file = tmp_path / "a.tar"
    file.write_bytes(linked(kind))
    with pytest.raises(InputError, match=r"data/link is no plain file or folder but a link"):
        unpack(file, tmp_path / "in")
    assert not list((tmp_path / "in").iterdir())


def test_nothing_is_written_through_a_link_that_is_there(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "set").symlink_to(tmp_path / "outside")
    file = tmp_path / "a.zip"
    file.write_bytes(archive("zip"))
    with pytest.raises(InputError, match=r"in/set is a link: what lies behind it is left alone"):
        unpack(file, tmp_path / "in")
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("kind", ["zip", "w:gz"])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, url, server, kind):
    server.content = bomb(kind)
    with pytest.raises(InputError, match=r"take 0\.02 GB unpacked, more than 0\.00 GB.*--max_size"):
        get_data.main([url, str(tmp_path / "in")])
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["set.zip"]
    get_data.main([url, str(tmp_path / "in"), "--max_size", "0.1"])
    assert (tmp_path / "in/zeros").stat().st_size == 20_000_000


def bomb(kind: str) -> bytes:
    data = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as members:
            members.writestr("zeros", bytes(20_000_000))
    else:
        with tarfile.open(fileobj=data, mode="w:gz") as members:
            member = tarfile.TarInfo("zeros")
            member.size = 20_000_000
            members.addfile(member, io.BytesIO(bytes(member.size)))
    return data.getvalue()


def test_another_part_than_was_asked_for_is_refused(server, url, tmp_path):
    server.most = 2_000_000
    with pytest.raises(InputError, match="goes on"):
        download(url, tmp_path / "set")
    server.most, server.shift = 10**9, 7
    with pytest.raises(InputError, match=r"asked for bytes from \d+ on, the server sends 'bytes"):
        download(url, tmp_path / "set")
    server.shift = 0
    assert download(url, tmp_path / "set").read_bytes() == DATA
