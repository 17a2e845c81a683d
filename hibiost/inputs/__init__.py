"""What the verbs read from an AnnData, validated; and how they leave their parameters behind."""

from ._counts import (
    check_spots,
    counts,
    log_expression,
    median_total,
    record,
    representation,
    slide_metadata,
    slot,
)
from ._measured import slide_counts
from ._slides import Slide, coordinates, libraries, numbered_patches, slides

__all__ = [
    "Slide",
    "check_spots",
    "coordinates",
    "counts",
    "libraries",
    "log_expression",
    "median_total",
    "numbered_patches",
    "record",
    "representation",
    "slide_counts",
    "slide_metadata",
    "slides",
    "slot",
]
