"""Hierarchical image + gene foundation models for spatial transcriptomics.

Every namespace is imported on first use, so ``import hibiost`` is fast and loads neither torch nor scanpy.
Only the settings come at once: loaded later, their module would stand where ``hibiost.settings`` is meant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .settings import settings

if TYPE_CHECKING:
    from . import benchmark, datasets, errors, genes, get, images, io, metrics, model, pl, pp, spatial, tl, train

__version__ = "0.1.0"
__all__ = [
    "benchmark",
    "datasets",
    "errors",
    "genes",
    "get",
    "images",
    "io",
    "metrics",
    "model",
    "pl",
    "pp",
    "settings",
    "spatial",
    "tl",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'hibiost' has no attribute {name!r}")
    return importlib.import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
