"""Decoded patches on disk, written by all processes and read by all of them."""

from __future__ import annotations

import math
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import RunError


def stored_side(image_size: int, shift: float) -> int:
    """Side of a stored patch in pixels: the crop, and the margin in which it is shifted."""
    return image_size + 2 * round(shift * image_size)


class PatchStore:
    """A file of uint8 patches, one after the other; it is read as a memory map, which processes share.

    Parameters
    ----------
    path
        The file.
    n_spots, side
        Number of patches, and their side in pixels.
    """

    def __init__(self, path: Path, n_spots: int, side: int) -> None:
        self.path, self._shape = path, (n_spots, side, side, 3)

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return math.prod(self._shape)

    def create(self) -> None:
        """Make the file at its full size.

        Raises
        ------
        RunError
            There is not enough room.
        """
        needed = self.n_bytes
        there = self.path.stat().st_size if self.path.exists() else 0
        if (free := shutil.disk_usage(self.path.parent).free + there) < needed:
            raise RunError(
                f"{self.path} needs {needed / 1e9:.1f} GB for the patches of {self._shape[0]} spots, and only "
                f"{free / 1e9:.1f} GB are free; make room, or name another place (run=, or TMPDIR)."
            )
        with self.path.open("ab") as file:
            file.truncate(needed)

    def write(self, first: int, batches: Iterable[np.ndarray]) -> int:
        """Write batches of patches from patch ``first`` on; returns their CRC-32."""
        crc = 0
        with self.path.open("r+b") as file:
            file.seek(first * int(np.prod(self._shape[1:])))
            for batch in batches:
                content = np.ascontiguousarray(batch).data
                crc = zlib.crc32(content, crc)
                try:
                    file.write(content)
                    file.flush()
                except OSError as error:
                    raise RunError(f"patches could not be written to {self.path} ({error}); make room.") from error
        return crc

    def read(self) -> np.ndarray:
        """The patches, uint8, n_spots x side x side x 3, read-only, on disk."""
        return np.memmap(self.path, dtype=np.uint8, mode="r", shape=self._shape)
