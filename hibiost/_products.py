"""Inner products of many rows with many rows: quickly and roughly, by how much at most, and exactly for a pair.

A search first takes rough products in blocks, in bfloat16 where the machine multiplies that fastest, and looks at a
pair exactly only where the bound on the error leaves its rank open. What it finds does not depend on the roughness,
and so neither on the machine nor on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Self, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Bits: TypeAlias = NDArray[np.int16] | NDArray[np.int32]
"""Products as the upper bits of float32, see :func:`widen`."""
STRIP = 256
"""Products that are judged at a time."""
SINGLE = 2.0**-20
"""More than the relative error of a few sums and products in single precision."""
_BFLOAT16, _FLOAT32 = 2.0**-8, 2.0**-24
"""Largest relative error of rounding to each."""


@dataclass
class RoughRows:
    """Rows less a centre, rounded; with ``centre``, all that is needed to tell products and their error.

    The centre takes away what all rows share, and with it most of the error.

    Attributes
    ----------
    rows
        bfloat16 or float32, n x dim: ``(scale * row - centre)``, rounded.
    along
        float64, (n,): product of each scaled row with the centre.
    length
        float64, (n,): length of each rounded row.
    lost
        float64, (n,): length of what rounding took from each row.
    """

    rows: torch.Tensor
    along: NDArray[np.float64]
    length: NDArray[np.float64]
    lost: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        rows: NDArray,
        centre: NDArray[np.float64],
        *,
        scale: NDArray[np.float64] | None = None,
        order: NDArray[np.intp] | None = None,
        device: str = "cpu",
    ) -> Self:
        """Round rows.

        Parameters
        ----------
        rows
            Float, n x dim.
        centre
            What is taken away, (dim,).
        scale
            Factor of each row, (n,); 1 where it is not given.
        order
            The rows wanted, in their order; all where it is not given.
        device
            Where to multiply.
        """
        import torch

        order = np.arange(len(rows)) if order is None else order
        scale = np.ones(len(rows)) if scale is None else scale
        dtype = _rough_dtype(device)
        bits = np.empty((len(order), rows.shape[1]), dtype=f"u{dtype.itemsize}")
        along, length, lost = np.empty((3, len(order)))
        _round(rows, order, scale, centre, bits, along, length, lost)
        signed = bits.view(f"i{dtype.itemsize}")
        return cls(torch.from_numpy(signed).view(dtype).to(device), along, length, lost)

    def __len__(self) -> int:
        return len(self.along)

    def __getitem__(self, part: slice | NDArray[np.intp]) -> RoughRows:
        import torch

        if isinstance(part, slice):
            rows = self.rows[part]
        else:
            rows = self.rows.index_select(0, torch.from_numpy(part).to(self.rows.device))
        return RoughRows(rows, self.along[part], self.length[part], self.lost[part])

    def room(self, n_rows: int, n_columns: int) -> torch.Tensor:
        """Memory for the products of so many rows and columns, to be used again and again."""
        return self.rows.new_empty(n_rows * n_columns)

    def times(self, bank: RoughRows, room: torch.Tensor) -> Bits:
        """Rough products with the rows of ``bank``, in ``room``."""
        import torch

        shape = len(self), len(bank)
        found = torch.mm(self.rows, bank.rows.T, out=room[: shape[0] * shape[1]].view(shape)).cpu()
        return found.view(torch.int16 if found.dtype == torch.bfloat16 else torch.int32).numpy()

    def error(self, bank: RoughRows) -> NDArray[np.float64]:
        """How far a product ``along + rough + bank.along - |centre|^2`` may be from the exact one, for each row.

        With ``a = a' + da`` and ``b = b' + db``, rounded and lost, ``|ab - a'b'| <= |da||b| + |a'||db|``; the sum of
        ``dim`` terms in float32 adds ``dim * 2**-24 * |a'||b'|``, and rounding it to bfloat16 ``2**-8 * |a'||b'|``.
        """
        import torch

        slack = 2 * (self.rows.shape[1] + 4) * _FLOAT32
        if self.rows.dtype == torch.bfloat16:
            slack += _BFLOAT16
        elif self.rows.device.type != "cpu" or torch.get_float32_matmul_precision() != "highest":
            slack += 2 * _BFLOAT16
        length, lost = bank.length.max(), bank.lost.max()
        return self.lost * (length + lost) + self.length * (lost + slack * length)


@cache
def _rough_dtype(device: str) -> torch.dtype:
    """bfloat16 on a CPU that multiplies it natively."""
    import torch

    native = device == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32


@numba.njit(parallel=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _round(
    rows: np.ndarray,
    order: np.ndarray,
    scale: np.ndarray,
    centre: np.ndarray,
    bits: np.ndarray,
    along: np.ndarray,
    length: np.ndarray,
    lost: np.ndarray,
) -> None:
    """Scale rows, take away the centre, and keep the upper bits of float32, rounded half to even."""
    dim, shift = centre.size, np.uint32(8 * (4 - bits.itemsize))
    half, last = np.uint32(2**shift // 2), np.uint32(2**shift - 1)
    for r in numba.prange(order.size):
        whole, single = np.empty(dim), np.empty(dim, dtype=np.float32)
        wide = single.view(np.uint32)
        row, factor = rows[order[r]], scale[order[r]]
        upon = 0.0
        for i in range(dim):
            value = row[i] * factor
            upon += value * centre[i]
            whole[i] = value - centre[i]
            single[i] = whole[i]
        if shift:
            for i in range(dim):
                wide[i] = (wide[i] + half - np.uint32(1) + ((wide[i] >> shift) & np.uint32(1))) & ~last
        kept, gone = 0.0, 0.0
        for i in range(dim):
            bits[r, i] = wide[i] >> shift
            kept += np.float64(single[i]) * np.float64(single[i])
            gone += (whole[i] - single[i]) * (whole[i] - single[i])
        along[r], length[r], lost[r] = upon, np.sqrt(kept), np.sqrt(gone)


@numba.njit(cache=True, inline="always")
def widen(bits: np.ndarray, out: np.ndarray) -> None:
    """Put the bits of rough products where float32 is read: ``out`` is uint32, seen as float32 elsewhere."""
    shift = np.uint32(8 * (4 - bits.itemsize))
    for i in range(bits.size):
        out[i] = np.uint32(bits[i]) << shift


@numba.njit(cache=True)
def reaches(bits: np.ndarray, low: np.float32) -> bool:
    """Whether one of the rough products may be ``low`` or more; always where ``low`` is not positive.

    As whole numbers, bits of positive floats are in their order, and those of negative ones below them.
    """
    if not low > 0:
        return True
    lowest, found = bits.dtype.type(np.float32(low).view(np.int32) >> np.int32(8 * (4 - bits.itemsize))), False
    for i in range(bits.size):
        found |= bits[i] >= lowest
    return found


@numba.njit(cache=True, fastmath={"reassoc", "contract", "nsz"})
def dot(a: np.ndarray, b: np.ndarray) -> float:
    """Inner product of two rows in double precision."""
    total = 0.0
    for i in range(a.size):
        total += np.float64(a[i]) * np.float64(b[i])
    return total
