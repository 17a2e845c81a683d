"""What the verbs read from an AnnData, validated; and how they leave their parameters behind."""

from ._counts import (
    check_counts,
    check_genes,
    check_spots,
    count_blocks,
    counts,
    loaded,
    log_expression,
    median_total,
    record,
    representation,
    slide_metadata,
    slot,
    windows,
)
from ._measured import slide_counts, spots_by_word
from ._overview import overview
from ._reading import PatchReader, distinct_patches, numbered_patches
from ._sdata import is_spatialdata, takes_spatialdata
from ._slides import Slide, coordinates, half_pitch, libraries, patients, slides, spread

__all__ = [
    "PatchReader",
    "Slide",
    "check_counts",
    "check_genes",
    "check_spots",
    "coordinates",
    "count_blocks",
    "counts",
    "distinct_patches",
    "half_pitch",
    "is_spatialdata",
    "libraries",
    "loaded",
    "log_expression",
    "median_total",
    "numbered_patches",
    "overview",
    "patients",
    "record",
    "representation",
    "slide_counts",
    "slide_metadata",
    "slides",
    "slot",
    "spots_by_word",
    "spread",
    "takes_spatialdata",
    "windows",
]
