"""Known public data and synthetic tissue, as AnnData."""

from ._her2st import her2st
from ._tissue import tissue

__all__ = ["her2st", "tissue"]
