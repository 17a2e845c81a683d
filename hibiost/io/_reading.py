"""Files that cannot be read: one error for whatever their parsers raise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DataError, HibiostError


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever a parser raises into an error that names the file, what it holds and what was expected."""
    try:
        yield
    except HibiostError:
        raise
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as {expected}: {_found(path, error)}; fetch or export it anew."
        ) from error


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr store, of version 2 or 3."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs"))


def _found(path: Path, error: Exception) -> str:
    damaged = f"it is truncated, damaged or of another kind ({type(error).__name__}: {error})"
    if path.is_dir():
        return damaged if is_zarr(path) else f"it is a folder of {sorted(os.listdir(path))[:5]}"
    if not path.exists():
        return "there is no such file"
    if not os.access(path, os.R_OK):
        return "it may not be read by this user"
    if not path.stat().st_size:
        return "it is empty"
    with open(path, "rb") as file:
        start = file.read(25)
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return f"it is a web page (it starts with {start!r}), such as the error page of a download"
    if start == b"version https://git-lfs.g":
        return "it is a pointer of Git LFS (git lfs pull fetches the file)"
    return damaged
