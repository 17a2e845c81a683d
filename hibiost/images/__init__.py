"""Pixel sources and patches; arrays in, arrays out."""

from .patches import count_padded, iter_patches
from .source import PixelSource, open_image

__all__ = ["PixelSource", "count_padded", "iter_patches", "open_image"]
