"""Exceptions. Each message says what was found, what was expected and what mends it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "DataError",
    "DownloadError",
    "HibiostError",
    "ImageError",
    "MissingSlotError",
    "ModelError",
    "RunError",
    "WeightsUnavailableError",
]


class HibiostError(Exception):
    """Base class of everything hibiost refuses."""


class DataError(HibiostError, ValueError):
    """An AnnData (or array) that does not hold what a function needs."""


class MissingSlotError(HibiostError, KeyError):
    """A slot of the AnnData that another call has to write first."""

    def __str__(self) -> str:
        return str(self.args[0])


class ImageError(HibiostError, OSError):
    """An image that is absent or unreadable."""


class DownloadError(HibiostError, OSError):
    """A public file that could not be fetched or does not match its hash."""


class ModelError(HibiostError, ValueError):
    """A model that is absent, unreadable or does not fit the data."""


class WeightsUnavailableError(ModelError):
    """Weights that are not on this machine and cannot be had now; the message tells where they are."""


class RunError(HibiostError, RuntimeError):
    """A training run that cannot begin, go on or be read."""


def check_choice(name: str, value: object, known: Iterable[object], error: type[HibiostError] = DataError) -> None:
    """Refuse a value that is none of the known ones."""
    known = list(known)
    if value not in known:
        raise error(f"{name} is {value!r}; expected one of {known}.{nearest(value, known)}")


def nearest(name: object, known: Iterable[object], n: int = 3) -> str:
    """A phrase with the names most like ``name``, empty where none is near."""
    folded = {k.casefold(): k for k in map(str, known)}
    hits = [folded[h] for h in difflib.get_close_matches(str(name).casefold(), folded, n=n, cutoff=0.6)]
    return f" Did you mean {' or '.join(repr(h) for h in hits)}?" if hits else ""
