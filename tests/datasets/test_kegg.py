"""The KEGG client against a local server that answers in every way KEGG has been seen, or feared, to answer."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from hibiost.datasets import _kegg
from hibiost.datasets._kegg import kegg
from hibiost.errors import DownloadError
from hibiost.settings import settings

LIST = (
    "hsa00010\tGlycolysis / Gluconeogenesis - Homo sapiens (human)\n"
    "hsa00020\tCitrate cycle (TCA cycle) - Homo sapiens (human)\n"
)
OLD_LIST = LIST.replace("hsa0", "path:hsa0")
LINKS = "path:hsa00010\thsa:10327\npath:hsa00010\thsa:2645\npath:hsa00020\thsa:1431\n"
GENES_FIRST = "hsa:10327\tpath:hsa00010\nhsa:2645\tpath:hsa00010\nhsa:1431\tpath:hsa00020\n"
INFO = (
    "pathway          KEGG Pathway Database\n"
    "path             Release 115.0+/09-12, Sep 25\n"
    "                 Kanehisa Laboratories\n"
    "                 1,246,812 entries\n"
)
PAGE = "<!DOCTYPE html>\n<html><body>We are busy\t</body></html>\n"
SETS = {"Glycolysis / Gluconeogenesis": ("10327", "2645"), "Citrate cycle (TCA cycle)": ("1431",)}


class Answer(NamedTuple):
    body: str | bytes
    status: int = 200
    missing: int = 0
    """Bytes that the length promises and the body lacks."""


class Service:
    """What the server answers to each operation: the answers in turn, the last one for good; and what was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[str] = []
        for operation, body in {"list/pathway/hsa": LIST, "link/hsa/pathway": LINKS, "info/pathway": INFO}.items():
            self.say(operation, Answer(body))

    def say(self, operation: str, *answers: Answer) -> None:
        self.answers[f"/{operation}"] = list(answers)

    def next(self, path: str) -> Answer:
        self.asked.append(path)
        answers = self.answers[path]
        return answers.pop(0) if len(answers) > 1 else answers[0]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Service]:
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body, status, missing = service.next(self.path)
            content = body.encode() if isinstance(body, str) else body
            self.send_response(status)
            self.send_header("Content-Length", str(len(content) + missing))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    settings.data_dir = tmp_path / "cache"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(_kegg, "PAUSE", 0.0)
    monkeypatch.setattr(_kegg, "WAITS", (0.0, 0.0, 0.0))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr(_kegg, "URL", f"http://127.0.0.1:{running.server_port}")
        yield service
        running.shutdown()
        thread.join()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits, not waited for."""
    seconds: list[float] = []
    monkeypatch.setattr(_kegg.time, "sleep", seconds.append)
    return seconds


def cached() -> list[str]:
    return sorted(str(path.relative_to(settings.cache)) for path in settings.cache.rglob("*"))


# -- what is asked and kept -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listed", [LIST, OLD_LIST, LIST.replace("\n", "\r\n")], ids=["new", "old", "CRLF"])
@pytest.mark.parametrize("links", [LINKS, GENES_FIRST, LINKS.replace("path:", "")], ids=["first", "second", "bare"])
def test_every_format(service: Service, listed: str, links: str) -> None:
    service.say("list/pathway/hsa", Answer(listed))
    service.say("link/hsa/pathway", Answer(links))
    assert dict(kegg(refresh=False)) == SETS
    assert service.asked == ["/list/pathway/hsa", "/link/hsa/pathway", "/info/pathway"]


def test_the_cache_holds_sets_and_provenance(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    sets = kegg(refresh=False)
    today = sets.source["date"]
    assert date.fromisoformat(today)
    assert cached() == ["kegg", f"kegg/{today}", f"kegg/{today}/pathways.gmt", f"kegg/{today}/provenance.json"]
    folder = settings.cache / "kegg" / today
    assert json.loads((folder / "provenance.json").read_text()) == sets.source
    assert (folder / "pathways.gmt").read_text().splitlines()[
        0
    ] == "Glycolysis / Gluconeogenesis\thsa00010\t10327\t2645"
    assert sets.source["version"] == "115.0+/09-12"
    assert sets.source["name"] == "kegg"
    assert "academic use" in sets.source["licence"]
    assert "https://www.kegg.jp/kegg/legal.html" in sets.source["licence"]
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 1
    assert all(part in warned[0] for part in ("academic", "no redistribution", "https://www.kegg.jp/kegg/legal.html"))


def test_the_newest_date_is_used_without_asking(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    kegg(refresh=False)
    folder = settings.cache / "kegg"
    (fetched,) = folder.iterdir()
    fetched.rename(folder / "2020-02-02")
    service.say("link/hsa/pathway", Answer(LINKS + "path:hsa00020\thsa:47\n"))
    kegg(refresh=True)
    (folder / ".partial-left-by-a-crash").mkdir()
    asked = len(service.asked)
    caplog.clear()
    assert kegg(refresh=False)["Citrate cycle (TCA cycle)"] == ("1431", "47")
    assert len(service.asked) == asked
    assert caplog.text == ""


def test_refresh_replaces_what_was_fetched_today(service: Service) -> None:
    kegg(refresh=False)
    before = cached()
    service.say("info/pathway", Answer(INFO.replace("115.0", "116.0")))
    assert kegg(refresh=True).source["version"] == "116.0+/09-12"
    assert cached() == before


def test_pathways_without_genes_are_left_out_and_told(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    service.say("list/pathway/hsa", Answer(LIST + "hsa09999\tNothing - Homo sapiens (human)\n"))
    with caplog.at_level("INFO", "hibiost"):
        assert dict(kegg(refresh=False)) == SETS
    assert "left out 1 pathways without genes, such as 'Nothing'" in caplog.text


def test_names_that_occur_twice_are_told_apart(service: Service) -> None:
    service.say("list/pathway/hsa", Answer("hsa00010\tCycle - Homo sapiens (human)\nhsa00020\tCycle\n"))
    assert list(kegg(refresh=False)) == ["Cycle (hsa00010)", "Cycle (hsa00020)"]


@pytest.mark.parametrize("answer", [Answer("pathway, but no number\n"), Answer(PAGE), Answer("", 404)])
def test_a_release_that_is_not_told_is_unknown(service: Service, answer: Answer) -> None:
    service.say("info/pathway", answer)
    assert kegg(refresh=False).source["version"] == "unknown"


# -- answers that are no use ------------------------------------------------------------------------------------------

BAD = {
    "web page": (Answer(PAGE), "a line that is not of its table: '<!DOCTYPE html>'"),
    "web page, no newline": (Answer("<html></html>"), "no table: '<html></html>'"),
    "text without tabs": (Answer("Access is limited.\n"), "not of its table: 'Access is limited.'"),
    "nothing": (Answer(""), "no table: ''"),
    "blank line": (Answer("\n"), "not of its table: ''"),
    "short of its length": (Answer(LINKS, missing=10), "with an error: .*IncompleteRead"),
    "last line cut off": (Answer(LINKS[:-5]), "a table cut off at 'path:hsa00010.*:'"),
    "gene without number": (Answer(LINKS + "path:hsa00020\thsa:X\n"), "not of its table: .*hsa:X"),
    "not UTF-8": (Answer(b"path:hsa00010\thsa:10327\n\xff\xfe\n"), "no text: .*xff"),
    "unknown pathway": (
        Answer(LINKS + "path:hsa09998\thsa:1\n"),
        "without 1 pathways that have genes, such as hsa09998",
    ),
    "slow down": (Answer("Forbidden", 403), "status 403: 'Forbidden'"),
    "too many": (Answer("", 429), "status 429"),
    "outage": (Answer(b"<html>\xff", 500), "status 500: '<html>"),
    "overload": (Answer("", 503), "status 503"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_is_asked_again(service: Service, name: str) -> None:
    service.say("link/hsa/pathway", BAD[name][0], Answer(LINKS))
    assert dict(kegg(refresh=False)) == SETS
    assert service.asked.count("/link/hsa/pathway") == 2


@pytest.mark.parametrize("name", BAD)
def test_bad_answers_are_not_asked_for_ever(service: Service, name: str) -> None:
    answer, reason = BAD[name]
    service.say("link/hsa/pathway", answer)
    with pytest.raises(DownloadError, match=reason) as error:
        kegg(refresh=False)
    assert re.search(r"no pathways from KEGG: http://127\.0\.0\.1:\d+/li\w+/", str(error.value))
    assert "gene_sets('reactome') or a GMT file" in str(error.value)
    assert service.asked.count("/link/hsa/pathway") == 4
    assert cached() == ["kegg"]


@pytest.mark.parametrize("status", [400, 404])
def test_a_refused_question_is_asked_once(service: Service, status: int) -> None:
    service.say("list/pathway/hsa", Answer("", status))
    with pytest.raises(DownloadError, match=f"/list/pathway/hsa answered status {status}"):
        kegg(refresh=False)
    assert service.asked == ["/list/pathway/hsa"]


def test_a_list_that_lacks_pathways_is_asked_again(service: Service) -> None:
    service.say("list/pathway/hsa", Answer(LIST.splitlines(keepends=True)[0]), Answer(LIST))
    assert dict(kegg(refresh=False)) == SETS


def test_an_outage_of_the_release_is_no_unknown_release(service: Service) -> None:
    service.say("info/pathway", Answer("", 503), Answer(INFO))
    assert kegg(refresh=False).source["version"] == "115.0+/09-12"


def test_no_connection(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kegg, "URL", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:9/list/pathway/hsa answered with an error"):
        kegg(refresh=False)
    assert cached() == ["kegg"]


def test_waits_grow_and_are_longer_after_too_many_requests(
    service: Service, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_kegg, "PAUSE", 0.4)
    monkeypatch.setattr(_kegg, "WAITS", (1.0, 10.0, 100.0))
    service.say("list/pathway/hsa", Answer("", 500), Answer("", 429), Answer("", 403), Answer(LIST))
    kegg(refresh=False)
    assert slept == [0.4, 1.0, 0.4, 40.0, 0.4, 400.0, 0.4, 0.4, 0.4]


def test_at_most_three_requests_a_second() -> None:
    assert _kegg.PAUSE > 1 / 3
    assert list(_kegg.WAITS) == sorted(_kegg.WAITS)
    assert _kegg.SLOWER > 1
    assert _kegg.URL == "https://rest.kegg.jp"


# -- a cache that is no use -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refresh", [False, True])
def test_a_cache_that_cannot_be_written_is_told_before_asking(service: Service, tmp_path: Path, refresh: bool) -> None:
    (tmp_path / "file").write_text("no folder")
    settings.data_dir = tmp_path / "file"
    with pytest.raises(DownloadError, match=r"cannot be cached in .*kegg: .* HIBIOST_DATA_DIR .* can be written"):
        kegg(refresh=refresh)
    assert service.asked == []
    assert (tmp_path / "file").read_text() == "no folder"


def test_a_failed_write_leaves_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*args: object, **kwargs: object) -> str:
        raise OSError("no space left on device")

    monkeypatch.setattr(_kegg.json, "dumps", full_disk)
    with pytest.raises(DownloadError, match="cannot be cached in .*no space left on device"):
        kegg(refresh=False)
    assert cached() == ["kegg"]


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("pathways.gmt", "one\t\t1\n", "is not what was written there"),
        ("pathways.gmt", None, "No such file"),
        ("provenance.json", None, "No such file"),
        ("provenance.json", "{", "Expecting"),
        ("provenance.json", "[]", "list indices"),
        ("provenance.json", "{}", "sha256"),
    ],
)
def test_a_damaged_cache_is_refused_by_name(service: Service, file: str, content: str | None, reason: str) -> None:
    (settings.cache / "kegg").mkdir(parents=True)
    folder = settings.cache / "kegg" / kegg(refresh=True).source["date"]
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    asked = len(service.asked)
    with pytest.raises(DownloadError, match=rf"in {folder} are damaged: .*{reason}.*Delete that folder.*refresh=True"):
        kegg(refresh=False)
    assert len(service.asked) == asked
    assert dict(kegg(refresh=True)) == SETS


def test_a_failed_refresh_leaves_the_copy_there_was(service: Service) -> None:
    kegg(refresh=False)
    before = cached()
    service.say("link/hsa/pathway", Answer(PAGE))
    with pytest.raises(DownloadError):
        kegg(refresh=True)
    assert cached() == before
    assert dict(kegg(refresh=False)) == SETS
