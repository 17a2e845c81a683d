"""Pixel sources and patches; arrays in, arrays out."""

from .grid import tissue_grid
from .header import pixel_size, thumbnail
from .mask import tissue_mask
from .patches import count_padded, iter_patches
from .patchfile import PatchFile, write_patches
from .source import PixelSource, open_image

__all__ = [
    "PatchFile",
    "PixelSource",
    "count_padded",
    "iter_patches",
    "open_image",
    "pixel_size",
    "thumbnail",
    "tissue_grid",
    "tissue_mask",
    "write_patches",
]
