"""User settings, each also readable from an environment variable ``HIBIOST_<NAME>``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TextIO

logger = logging.getLogger("hibiost")
"""The package's logger; ``settings.verbosity`` sets its level."""

PRECISIONS = "float32", "bfloat16", "auto"
"""In which models infer."""
DEFAULT_MODEL = "hibiost-mini"
"""It comes with the package."""
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


def _default_data_dir() -> Path:
    import pooch

    return Path(pooch.os_cache("hibiost"))


def _as_bool(name: str, value: Any) -> bool:
    text = str(value).lower()
    if text not in _TRUE | _FALSE:
        raise ValueError(f"settings.{name} is {value!r}; expected True or False (environment: 1 or 0).")
    return text in _TRUE


@dataclass
class Settings:
    """Settings of hibiost; assign to an attribute, or use :meth:`override` for a while.

    Attributes
    ----------
    data_dir
        Folder in which public data are cached, laid out as ``<data_dir>/<dataset>/<path>``.
    model
        Model that :func:`hibiost.tl.embed` and :func:`hibiost.tl.predict` use when none is given: the name of one that
        ships, a folder or a repository of the hub, see :func:`hibiost.model.load`; by default, and for ``None``,
        ``"hibiost-mini"``.
    precision
        In which models infer in the verbs of :mod:`hibiost.tl`: ``"float32"``, the same embeddings on every machine up
        to rounding; ``"bfloat16"``, faster on CPUs that multiply in it; ``"auto"``, bfloat16 there and on GPUs, float32
        elsewhere. Embeddings of the two can be compared: for the presets their cosine is above 0.999.
    progress
        Show progress bars on long steps.
    verbosity
        Level of the messages on stderr: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``.
    """

    data_dir: Path | None = None
    model: str = DEFAULT_MODEL
    precision: str = "float32"
    progress: bool = True
    verbosity: str = "info"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = os.environ.get(f"HIBIOST_{field.name.upper()}")
            if value:
                setattr(self, field.name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in {f.name for f in fields(self)}:
            known = ", ".join(f.name for f in fields(self))
            raise AttributeError(f"hibiost has no setting {name!r}; the settings are {known}.")
        if name == "data_dir":
            value = None if value is None else Path(value).expanduser()
        elif name == "model":
            value = DEFAULT_MODEL if value is None else str(value)
        elif name == "precision":
            value = str(value).lower()
            if value not in PRECISIONS:
                raise ValueError(f"settings.precision is {value!r}; expected 'float32', 'bfloat16' or 'auto'.")
        elif name == "progress":
            value = _as_bool(name, value)
        elif name == "verbosity":
            value = str(value).lower()
            if value not in ("debug", "info", "warning", "error"):
                raise ValueError(f"settings.verbosity is {value!r}; expected 'debug', 'info', 'warning' or 'error'.")
            logger.setLevel(value.upper())
        object.__setattr__(self, name, value)

    @property
    def cache(self) -> Path:
        """``data_dir``, or the user's cache folder where it is not set."""
        return self.data_dir or _default_data_dir()

    @contextmanager
    def override(self, **values: Any) -> Iterator[Settings]:
        """Set some settings for the length of a ``with`` block."""
        before = vars(self).copy()
        try:
            for name, value in values.items():
                setattr(self, name, value)
            yield self
        finally:
            for name, value in before.items():
                setattr(self, name, value)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever ``sys.stderr`` is at the time: notebooks and tests replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


if not logger.handlers:
    logger.addHandler(_StderrHandler())

settings = Settings()
