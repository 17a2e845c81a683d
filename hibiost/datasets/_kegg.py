"""Human KEGG pathways from KEGG's REST service, at the user's request only; cached by date, never shipped.

An attempt asks for the list of pathways, for their genes and for the release. Where anything is wrong it is repeated as
a whole, so that its answers belong together.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import requests

from ..errors import DataError, DownloadError
from ..genes.genesets import GeneSets, distinct_names
from ..settings import logger, settings

URL = "https://rest.kegg.jp"
LICENCE = (
    "KEGG is copyrighted: for academic use by academic users, no redistribution (https://www.kegg.jp/kegg/legal.html)"
)
PAUSE = 0.4
"""Seconds before each request: KEGG allows 3 a second."""
WAITS = (2.0, 8.0, 30.0)
"""Seconds before the second attempt, the third and the fourth."""
SLOWER = 4.0
"""Factor on the waits where KEGG refuses because of too many requests."""
TIMEOUT = (10, 120)
TOO_MANY, PERMANENT = (403, 429), (400, 404)
GMT, PROVENANCE = "pathways.gmt", "provenance.json"


class _Release(NamedTuple):
    version: str
    names: dict[str, str]
    genes: dict[str, list[str]]
    """Entrez identifiers of each pathway."""


class _Failure(Exception):
    """An answer that is no use."""

    def __init__(self, url: str, came: str, status: int | None = None) -> None:
        super().__init__(f"{url} answered {came}")
        self.status = status


def kegg(*, refresh: bool) -> GeneSets:
    """Human pathways with Entrez identifiers as genes: the newest of the cache, or asked anew.

    Raises
    ------
    DownloadError
        The service does not give them, or the cache is damaged or cannot be written.
    """
    folder = settings.cache / "kegg"
    dated = sorted(folder.glob("[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"))
    return _read(_download(folder) if refresh or not dated else dated[-1])


def _read(folder: Path) -> GeneSets:
    try:
        provenance = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        if hashlib.sha256((folder / GMT).read_bytes()).hexdigest() != provenance["sha256"]:
            raise DataError(f"{GMT} is not what was written there")
        sets = GeneSets.from_gmt(folder / GMT)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DownloadError(
            f"the cached KEGG pathways in {folder} are damaged: {error}. Delete that folder, or ask KEGG anew: "
            "gene_sets('kegg', refresh=True)."
        ) from error
    return GeneSets(sets, source=provenance)


def _download(folder: Path) -> Path:
    """Ask the service and cache its answer; the folder of today appears only when it is whole."""
    logger.warning("asking %s for pathways. %s.", URL, LICENCE)
    date = datetime.now(UTC).date().isoformat()
    target = folder / date
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as scratch:
            new = Path(scratch, date)
            new.mkdir()
            _write(new, _ask(), date)
            if target.exists():
                target.rename(Path(scratch, "old"))
            new.rename(target)
    except _Failure as failure:
        raise DownloadError(
            f"no pathways from KEGG: {failure}. Try again later, or use gene_sets('reactome') or a GMT file of your "
            "own."
        ) from failure
    except OSError as error:
        raise DownloadError(
            f"the KEGG pathways cannot be cached in {folder}: {error}. Point HIBIOST_DATA_DIR "
            "(hibiost.settings.data_dir) at a folder that can be written."
        ) from error
    return target


def _write(folder: Path, release: _Release, date: str) -> None:
    lines = [
        "\t".join([name, pathway, *release.genes[pathway]]) + "\n"
        for name, pathway in distinct_names({pathway: release.names[pathway] for pathway in release.genes}).items()
    ]
    content = "".join(lines).encode()
    (folder / GMT).write_bytes(content)
    provenance = {
        "name": "kegg",
        "version": release.version,
        "date": date,
        "url": URL,
        "licence": LICENCE,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (folder / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


def _ask() -> _Release:
    with requests.Session() as session:
        for wait in WAITS:
            try:
                return _attempt(session)
            except _Failure as failure:
                if failure.status in PERMANENT:
                    raise
                seconds = wait * SLOWER if failure.status in TOO_MANY else wait
                logger.info("KEGG: %s; asking again in %g s.", failure, seconds)
                time.sleep(seconds)
        return _attempt(session)


def _attempt(session: requests.Session) -> _Release:
    names = _names(session)
    genes = _genes(session)
    if strangers := genes.keys() - names.keys():
        at = sorted(strangers)[0]
        raise _Failure(f"{URL}/list/pathway/hsa", f"without {len(strangers)} pathways that have genes, such as {at}")
    if empty := [name for pathway, name in names.items() if pathway not in genes]:
        logger.info("kegg: left out %d pathways without genes, such as %r.", len(empty), empty[0])
    return _Release(_version(session), names, genes)


def _names(session: requests.Session) -> dict[str, str]:
    """Name of each pathway; older answers write ``path:hsa00010``."""
    rows = _rows(session, "list/pathway/hsa", r"(?:path:)?(hsa\d{5})\t([^\t]+)")
    return {pathway: name.removesuffix(" - Homo sapiens (human)") for pathway, name in rows}


def _genes(session: requests.Session) -> dict[str, list[str]]:
    """Entrez identifiers of each pathway; the columns come in either order."""
    pathway, gene = r"(?:path:)?(hsa\d{5})", r"hsa:(\d+)"
    rows = _rows(session, "link/hsa/pathway", f"{pathway}\t{gene}|{gene}\t{pathway}")
    genes: dict[str, list[str]] = {}
    for first_pathway, second_gene, first_gene, second_pathway in rows:
        genes.setdefault(first_pathway or second_pathway, []).append(second_gene or first_gene)
    return genes


def _version(session: requests.Session) -> str:
    """Such as ``"115.0+/09-12"``; the pathways are of use without it."""
    try:
        found = re.search(r"\bRelease\s+([^\s,]+)", _text(session, "info/pathway"))
    except _Failure as failure:
        if failure.status not in PERMANENT:
            raise
        found = None
    return found[1] if found else "unknown"


def _rows(session: requests.Session, operation: str, pattern: str) -> list[tuple[str, ...]]:
    """The groups of each line; every line must match."""
    url, text = f"{URL}/{operation}", _text(session, operation)
    if not text.endswith("\n"):
        raise _Failure(url, f"a table cut off at {text[-80:]!r}" if "\t" in text else f"no table: {text[:80]!r}")
    rows = []
    for line in text.removesuffix("\n").split("\n"):
        match = re.fullmatch(pattern, line.rstrip("\r"))
        if match is None:
            raise _Failure(url, f"a line that is not of its table: {line[:80]!r}")
        rows.append(match.groups(default=""))
    return rows


def _text(session: requests.Session, operation: str) -> str:
    url = f"{URL}/{operation}"
    time.sleep(PAUSE)
    try:
        answer = session.get(url, timeout=TIMEOUT)
    except requests.RequestException as error:
        raise _Failure(url, f"with an error: {error}") from error
    if answer.status_code != requests.codes.ok:
        start = answer.content[:80].decode("utf-8", errors="replace")
        raise _Failure(url, f"status {answer.status_code}: {start!r}", answer.status_code)
    try:
        return answer.content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Failure(url, f"no text: {answer.content[:80]!r}") from error
