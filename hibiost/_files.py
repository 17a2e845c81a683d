"""Files that are complete or not there, and folders to write to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import DataError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside ``path``, which it replaces once it is complete, and only then.

    Raises
    ------
    DataError
        It cannot be written: disk full, no such folder, no right to.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # the latter of HDF5
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink()


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there.

    Raises
    ------
    DataError
        A file stands in its place, or it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: Exception) -> DataError:
    code = getattr(error, "errno", None)
    why = str(error) if code is None else os.strerror(code)
    return DataError(f"{path} cannot be written ({why}); free some space or choose another place.")
