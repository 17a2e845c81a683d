"""Public files by name, address and hash: one table ``registry/<dataset>.tsv`` per dataset, one cache for all."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError, DownloadError, nearest
from ..settings import settings


class Entry(NamedTuple):
    """One public file."""

    path: str
    sha256: str
    bytes: int
    url: str


@cache
def registry(dataset: str) -> dict[str, Entry]:
    """The files of a dataset, by their path relative to the dataset's folder.

    Raises
    ------
    DataError
        There is no such dataset.
    """
    folder = files(__package__) / "registry"
    table = folder / f"{dataset}.tsv"
    if not table.is_file():
        known = sorted(Path(f.name).stem for f in folder.iterdir())
        raise DataError(f"no dataset {dataset!r}; the datasets are {known}.{nearest(dataset, known)}")
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines(), delimiter="\t")
    return {row["path"]: Entry(row["path"], row["sha256"], int(row["bytes"]), row["url"]) for row in rows}


def section_names(
    dataset: str, sections: str | Sequence[str] | None, *, known: Sequence[str], default: Sequence[str], expected: str
) -> list[str]:
    """The sections that were asked for; ``expected`` says which there are.

    Raises
    ------
    DataError
        No section, an unknown one, or one named twice.
    """
    if sections is None:
        return list(default)
    if isinstance(sections, str | int):
        sections = known if sections == "all" else [sections]
    names = list(sections)
    if not names:
        raise DataError(
            f"no section given; expected at least one, such as {default[0]!r}, or None for {', '.join(default)}."
        )
    for name in names:
        if name not in known:
            raise DataError(f"no {dataset} section {name!r}; expected {expected}.{nearest(name, known)}")
        if names.count(name) > 1:
            raise DataError(f"section {name!r} is named {names.count(name)} times; name it once.")
    return names


def fetch(dataset: str, path: str) -> Path:
    """The local copy of a public file, downloaded where it is absent.

    A file that is there is verified and returned; nothing is then written, so the cache may be read-only.

    Parameters
    ----------
    dataset
        Name of the dataset: its table in the registry and its folder in the cache.
    path
        Path of the file inside the dataset.

    Returns
    -------
    ``settings.cache / dataset / path``.

    Raises
    ------
    DataError
        The registry knows no such dataset or path.
    DownloadError
        The local copy has another hash, or the download failed; nothing half-written is left.
    """
    entries = registry(dataset)
    if path not in entries:
        raise DataError(f"the registry of {dataset!r} has no file {path!r}.{nearest(path, entries)}")
    entry = entries[path]
    target = settings.cache / dataset / path
    if target.is_file():
        _verify(target, entry)
    else:
        _download(target, entry)
    return target


def _verify(target: Path, entry: Entry) -> None:
    with target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry.sha256:
        raise DownloadError(
            f"{target} is not the published file: its sha256 is {found}, expected {entry.sha256}; "
            "delete it to download again."
        )


def _download(target: Path, entry: Entry) -> None:
    import pooch

    downloader = pooch.HTTPDownloader(progressbar=settings.progress)
    try:
        pooch.retrieve(entry.url, f"sha256:{entry.sha256}", target.name, target.parent, downloader=downloader)
    except (OSError, ValueError) as error:
        raise DownloadError(
            f"could not download {entry.url} ({entry.bytes:,} bytes) into {target.parent}: {error}. "
            f"Put the file there by hand as {target.name}, or point HIBIOST_DATA_DIR (hibiost.settings.data_dir) at a "
            "folder that holds it or can be written."
        ) from error
