"""Downloads from a server on this machine, which can break off and send parts."""

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import get_data
from retrieval.download import download, unpack
from retrieval.errors import InputError

DATA = bytes(range(256)) * 20_000
SHA256 = hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Sends ``content``; breaks off after ``most`` bytes; knows ranges if ``ranges``."""

    content, most, ranges = DATA, 10**9, True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.headers.get("Range"))
        if self.path == "/nothing":
            self.send_error(404)
            return
        start = 0
        if server.ranges and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.content)}")
                self.end_headers()
                return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
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
    told = []
    path = download(url, tmp_path / "a" / "set", SHA256, lambda *numbers: told.append(numbers))
    assert path.read_bytes() == DATA
    assert told[-1] == (len(DATA), len(DATA))
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
    with pytest.raises(InputError, match="416"):
        download(url, tmp_path / "set")


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


def archive(kind: str, name: str = "set/train/a.jpg") -> bytes:
    data = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(data, "w") as members:
            members.writestr(name, b"photo")
    else:
        with tarfile.open(fileobj=data, mode="w:gz") as members:
            member = tarfile.TarInfo(name)
            member.size = 5
            members.addfile(member, io.BytesIO(b"photo"))
    return data.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_is_unpacked_by_the_command(server, url, tmp_path, kind):
    server.content = archive(kind)
    sha256 = hashlib.sha256(server.content).hexdigest()
    get_data.main([url, str(tmp_path), "--sha256", sha256])
    assert (tmp_path / "set/train/a.jpg").read_bytes() == b"photo"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_no_archive_and_one_that_reaches_outside(tmp_path):
    file = tmp_path / "a"
    for content in (b"no archive", archive("zip")[:-10], archive("tar")[:40]):
        file.write_bytes(content)
        with pytest.raises(InputError, match="no archive"):
            unpack(file, tmp_path)
    file.write_bytes(archive("tar", "../outside"))
    with pytest.raises(InputError, match="outside"):
        unpack(file, tmp_path / "in")
    file.write_bytes(archive("zip", "../outside"))
    unpack(file, tmp_path / "in")  # zipfile leaves the ".." out
    assert not (tmp_path / "outside").exists()
