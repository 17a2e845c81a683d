from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from scipy import sparse

from .. import keys
from ..errors import DataError, MissingSlotError, nearest

if TYPE_CHECKING:
    from anndata import AnnData


_SPOT = re.compile(r"[ACGT]{14,}(-\d+)?|s_\d+um_\d+_\d+-\d|\d+x\d+")
"""How 10x Genomics and legacy ST name spots."""
BLOCK = 2_000_000
"""Stored values of a block of a matrix, about."""
_PARTS = 64
"""Parts in which values are checked, in parallel."""


def check_spots(adata: AnnData) -> None:
    """Refuse what is no AnnData, and an AnnData without spots."""
    if not hasattr(adata, "obsm"):
        raise DataError(f"expected an AnnData, found {type(adata).__name__}.")
    if adata.n_obs == 0:
        slide_alone = adata.n_vars == 0 and keys.SPATIAL in adata.uns
        hint = "hb.pp.grid(adata) places them on the tissue." if slide_alone else "was it filtered too hard?"
        raise DataError(f"the AnnData holds no spots (n_obs = 0); {hint}")


@dataclass(frozen=True)
class CountBlocks:
    """Raw counts as blocks of rows: CSR with sorted indices, checked as they are read.

    Parameters
    ----------
    matrix
        Sparse or dense; in memory, in a file (backed), or a dask array.
    where
        How errors name it.
    """

    matrix: Any
    where: str

    @property
    def in_memory(self) -> bool:
        """Whether reading it anew costs nothing."""
        return sparse.issparse(self.matrix) or isinstance(self.matrix, np.ndarray)

    def __iter__(self) -> Iterator[sparse.csr_matrix]:
        if sparse.issparse(self.matrix):
            yield _checked(self.matrix, self.where)
            return
        if getattr(self.matrix, "format", "csr") != "csr":
            raise DataError(
                f"{self.where} is a {self.matrix.format.upper()} matrix in a file, of which no rows can be read alone; "
                "write it as CSR (adata.X.to_memory().tocsr()), or read it into memory: adata.to_memory()."
            )
        for rows in windows(self.matrix, size=BLOCK):
            yield _checked(loaded(self.matrix[rows]), self.where)


def count_blocks(adata: AnnData, layer: str | None = None) -> CountBlocks:
    """Raw counts of ``X`` or a layer as blocks of rows: about two million values, or the rows of a chunk of dask.

    Sparse counts in memory are one block.

    Raises
    ------
    DataError
        No spots, no genes, duplicate gene names or no matrix; while blocks are read, values that are no counts.
    MissingSlotError
        ``layer`` is not there.
    """
    check_spots(adata)
    check_genes(adata)
    if layer is not None and layer not in adata.layers:
        raise MissingSlotError(
            f"no layer {layer!r}; the layers are {list(adata.layers)}.{nearest(layer, adata.layers)}"
        )
    where = "X" if layer is None else f"layers[{layer!r}]"
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise DataError(f"{where} is empty (None); expected raw counts, or name their layer with layer=.")
    return CountBlocks(sparse.csr_matrix(matrix) if sparse.issparse(matrix) else matrix, where)


def counts(adata: AnnData, layer: str | None = None) -> sparse.csr_matrix:
    """Raw counts of ``X`` or a layer as CSR in memory, checked; see :func:`count_blocks`."""
    blocks = count_blocks(adata, layer)
    return _checked(loaded(blocks.matrix), blocks.where)


def loaded(matrix: Any) -> Any:
    """A matrix in memory: what dask computes, or what a file holds."""
    for load in ("compute", "to_memory"):
        if hasattr(matrix, load):
            return getattr(matrix, load)()
    return matrix


def windows(matrix: Any, *, size: int, axis: int = 0) -> list[slice]:
    """Rows, or columns, that hold about ``size`` values each; of a dask array, its chunks."""
    length = matrix.shape[axis]
    if hasattr(matrix, "dask"):
        edges = np.cumsum([0, *matrix.chunks[axis]]).tolist()
    else:
        stored = getattr(matrix, "group", {}).get("data", matrix)
        n_values = int(getattr(stored, "nnz", np.prod(stored.shape)))
        edges = [*range(0, length, max(1, size * length // max(n_values, 1))), length]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _checked(matrix: Any, where: str) -> sparse.csr_matrix:
    """CSR with sorted indices and no duplicates, whose values are counts."""
    matrix = matrix if isinstance(matrix, sparse.csr_matrix) else sparse.csr_matrix(matrix)
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    check_counts(matrix.data, where)
    return matrix


def check_genes(adata: AnnData) -> None:
    """Refuse an AnnData without genes, with spots in their place, or with a gene name that occurs twice."""
    if adata.n_vars == 0:
        raise DataError("the AnnData holds no genes (n_vars = 0).")
    if all(_SPOT.fullmatch(str(name)) for name in adata.var_names[:100]):
        raise DataError(
            f"the genes are named like spots, {str(adata.var_names[0])!r}: the matrix looks transposed; expected spots "
            "x genes: adata.T."
        )
    if not adata.var_names.is_unique:
        twice = adata.var_names[adata.var_names.duplicated()].unique()
        raise DataError(
            f"{len(twice)} gene names occur more than once (for example {list(map(str, twice[:3]))}); "
            "call adata.var_names_make_unique() or sum them first."
        )


def check_counts(values: np.ndarray, where: str) -> None:
    """Refuse values that are no raw counts; ``where`` names them."""
    hint = "hibiost needs raw counts: name the layer that holds them with layer=."
    if values.dtype.kind not in "biuf":
        raise DataError(f"{where} has dtype {values.dtype}; {hint}")
    if values.dtype in (np.float32, np.float64) and _are_counts(values.ravel()):
        return
    if values.dtype.kind == "f":
        bad = ~np.isfinite(values)
        if bad.any():
            raise DataError(f"{where} holds {int(bad.sum())} NaN or infinite values; {hint}")
        broken = values != np.rint(values)
        if broken.any():
            raise DataError(
                f"{where} holds {int(broken.sum())} values that are no counts, such as {values[broken][0]:.4g}; {hint}"
            )
    if values.size and values.min() < 0:
        raise DataError(f"{where} holds negative values, such as {values.min():.4g}; {hint}")


@numba.njit(parallel=True, cache=True)
def _are_counts(values: np.ndarray) -> np.bool_:
    fine = np.ones(_PARTS, dtype=np.bool_)
    for part in numba.prange(_PARTS):
        some, found = values[values.size * part // _PARTS : values.size * (part + 1) // _PARTS], True
        for i in range(some.size):
            found &= (some[i] >= 0) & (some[i] < np.inf) & (some[i] == np.rint(some[i]))
        fine[part] = found
    return fine.all()


def log_expression(matrix: sparse.csr_matrix, *, target_sum: float | None = None) -> sparse.csr_matrix:
    """log1p of counts, float32; with ``target_sum`` each spot is scaled to that many counts first."""
    result = sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
    if target_sum is not None:
        totals = np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel()
        factors = np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals > 0)
        result.data *= np.repeat(factors, np.diff(result.indptr)).astype(np.float32)
    np.log1p(result.data, out=result.data)
    return result


def median_total(matrix: sparse.csr_matrix) -> float:
    """Median of the spots' total counts, empty spots left out."""
    totals = np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel()
    if not totals.any():
        raise DataError(f"all {len(totals)} spots are empty; there is no library size to scale to.")
    return float(np.median(totals[totals > 0]))


def slot(adata: AnnData, attribute: str, key: str, call: str) -> Any:
    """``adata.<attribute>[key]``, or an error that names the call which writes it."""
    mapping = getattr(adata, attribute)
    if key not in mapping:
        found = [str(k) for k in mapping]
        raise MissingSlotError(
            f"no {attribute}[{key!r}] in the AnnData (there: {found}); call {call} first.{nearest(key, found)}"
        )
    return mapping[key]


def representation(adata: AnnData, key: str, call: str) -> Any:
    """``obsm[key]`` as a table of finite numbers, n_obs x dims; dense, or CSR where it is sparse.

    Raises
    ------
    MissingSlotError
        It is not there; ``call`` is named.
    DataError
        It holds NaN, infinite values or no numbers, or is no table.
    """
    values = slot(adata, "obsm", key, call)
    values = sparse.csr_matrix(values) if sparse.issparse(values) else np.asarray(values)
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise DataError(
            f"obsm[{key!r}] has {values.ndim} dimensions and dtype {values.dtype}; expected numbers, n_obs x dims."
        )
    finite = np.isfinite(values.data if sparse.issparse(values) else values)
    if not finite.all():
        raise DataError(f"obsm[{key!r}] holds {int((~finite).sum())} NaN or infinite values; embed the spots anew.")
    return values


def record(adata: AnnData, key: str, **entries: Any) -> None:
    """Write ``uns[key]``; ``None`` parameters are left out, since not every file format can hold them."""
    params = {k: v for k, v in entries.pop("params", {}).items() if v is not None}
    adata.uns[key] = {**entries, "params": params}


def slide_metadata(adata: AnnData, library: str) -> dict[str, Any]:
    """``uns["spatial"][library]["metadata"]``, empty where there is none."""
    return dict(adata.uns.get(keys.SPATIAL, {}).get(library, {}).get("metadata", {}))
