from __future__ import annotations

import gc
import hashlib
import re
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pooch
import pytest

from hibiost.datasets import _registry
from hibiost.datasets._registry import Entry, fetch, registry
from hibiost.errors import DataError, DownloadError
from hibiost.settings import settings

BODY = b"spots and genes\n" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/absent":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write({"/good": BODY, "/corrupt": BODY[::-1], "/truncated": BODY[:100]}[self.path])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Make a registry of one file, ``toy/folder/file.txt``, at some address."""
    settings.data_dir = tmp_path / "cache"
    settings.progress = False

    def _publish(url: str) -> Path:
        entry = Entry("folder/file.txt", SHA256, len(BODY), url)
        monkeypatch.setattr(_registry, "registry", lambda dataset: {entry.path: entry})
        return tmp_path / "cache" / "toy" / "folder" / "file.txt"

    yield _publish
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # requests leaves the socket of a failed download open
        gc.collect()


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_download_then_offline(server: str, publish, monkeypatch: pytest.MonkeyPatch) -> None:
    target = publish(f"{server}/good")
    assert fetch("toy", "folder/file.txt") == target
    assert target.read_bytes() == BODY
    assert files_below(settings.cache) == [target]
    publish("http://127.0.0.1:9/unreachable")
    assert fetch("toy", "folder/file.txt") == target


def test_a_file_that_is_there_is_returned_without_writing(publish, monkeypatch: pytest.MonkeyPatch) -> None:
    target = publish("http://127.0.0.1:9/unreachable")
    target.parent.mkdir(parents=True)
    target.write_bytes(BODY)
    monkeypatch.setattr(pooch, "retrieve", lambda *args, **kwargs: pytest.fail("asked for a download"))
    for path in (target, target.parent):
        path.chmod(path.stat().st_mode & ~0o222)
    before = {path: path.stat().st_mtime_ns for path in settings.cache.rglob("*")}
    assert fetch("toy", "folder/file.txt") == target
    assert {path: path.stat().st_mtime_ns for path in settings.cache.rglob("*")} == before
    target.parent.chmod(0o755)


def test_a_wrong_local_copy_is_neither_returned_nor_overwritten(server: str, publish) -> None:
    target = publish(f"{server}/good")
    target.parent.mkdir(parents=True)
    target.write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(DownloadError, match="delete it to download again") as error:
        fetch("toy", "folder/file.txt")
    assert all(part in str(error.value) for part in (str(target), found, SHA256))
    assert target.read_bytes() == b"something else"


@pytest.mark.parametrize(
    ("page", "reason"), [("corrupt", "hash"), ("truncated", "IncompleteRead"), ("absent", "404 Client Error")]
)
def test_a_bad_download_leaves_nothing(server: str, publish, page: str, reason: str) -> None:
    target = publish(f"{server}/{page}")
    with pytest.raises(DownloadError, match=reason) as error:
        fetch("toy", "folder/file.txt")
    expected = (f"{server}/{page}", str(target.parent), "HIBIOST_DATA_DIR", "by hand as file.txt")
    assert all(part in str(error.value) for part in expected)
    assert files_below(settings.cache) == []


def test_no_network(publish) -> None:
    publish("http://127.0.0.1:9/refused")
    with pytest.raises(DownloadError, match=r"could not download http://127\.0\.0\.1:9/refused"):
        fetch("toy", "folder/file.txt")
    assert files_below(settings.cache) == []


def test_a_folder_that_cannot_be_written(server: str, publish, tmp_path: Path) -> None:
    publish(f"{server}/good")
    (tmp_path / "file").write_text("no folder")
    settings.data_dir = tmp_path / "file"
    with pytest.raises(DownloadError, match=r"can be written"):
        fetch("toy", "folder/file.txt")
    assert (tmp_path / "file").read_text() == "no folder"


def test_unknown_names() -> None:
    with pytest.raises(DataError, match=r"no dataset 'her2'; .* Did you mean 'her2st'"):
        fetch("her2", "x")
    with pytest.raises(DataError, match=r"no file 'data/ST-cnts/C2.tsv'.* Did you mean 'data/ST-cnts/C2.tsv.gz'"):
        fetch("her2st", "data/ST-cnts/C2.tsv")


def test_the_her2st_registry() -> None:
    entries = registry("her2st")
    assert len(entries) == 36 * 3 + 8 + 8 + 1
    for path, entry in entries.items():
        assert entry.path == path
        assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert entry.bytes > 0
        assert entry.url.startswith("https://")
        assert entry.url.endswith(path)
