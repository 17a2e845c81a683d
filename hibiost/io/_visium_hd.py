from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ..errors import DataError
from . import _spaceranger as sr
from ._build import one_slide
from ._tenx import CountsFile


def read_visium_hd(
    path: str | os.PathLike[str],
    *,
    bin_um: int = 8,
    pool_um: int | None = None,
    image: str | os.PathLike[str] | None = None,
    mpp: float | None = None,
    library_id: str | None = None,
    genome: str | None = None,
    missing: Literal["raise", "drop"] = "raise",
) -> AnnData:
    """Read the output of Space Ranger for a Visium HD section.

    At the peak, the counts of the result are held once, and a block of 4 million entries; with ``pool_um``, the pooled
    counts are held twice. Of a full-resolution image, only the header is read.

    Parameters
    ----------
    path
        Space Ranger's ``outs`` folder (the one with ``binned_outputs``), or the folder around it.
    bin_um
        Side of the bins in micrometres: 2, 8 or 16, or any other that Space Ranger was asked for.
    pool_um
        Sum the bins to squares of this side, a multiple of ``bin_um``, such as 128 (HEST-1k's).
    image
        Full-resolution microscope image, the one given to Space Ranger. Without it, patches are read from the reduced
        ``tissue_hires_image.png``.
    mpp
        Micrometres per full-resolution pixel. By default Space Ranger's ``microns_per_pixel``.
    library_id
        Name of the slide; by default the sample's name in the counts, else that of the folder.
    genome
        Which one, where the counts mix several.
    missing
        What to do with barcodes that have no position: ``"raise"`` an error, or ``"drop"`` them and say so.

    Returns
    -------
    Bins x genes, as :func:`hibiost.io.read_visium` describes. Pooled, they are squares x genes: those with at least one
    bin, by row and column; ``obs_names`` like ``0007x0018`` (row, column of the squares), ``array_row`` and
    ``array_col`` of the squares, ``in_tissue`` where any bin is, ``obs["n_bins"]`` (int) their number, and
    ``obsm["spatial"]`` their centres by the lattice of the bins.

    Raises
    ------
    DataError
        There are no bins of this size, or ``pool_um`` is no multiple of it; a file is missing, unreadable or
        transposed, barcodes occur twice or have no position, or genomes are mixed.
    ImageError
        An image is unreadable, or not of the size that Space Ranger was given.

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.io.read_visium_hd("no-such-run", pool_um=128)
    Traceback (most recent call last):
    ...
    hibiost.errors.DataError: there is no folder no-such-run; expected Space Ranger's outs folder: check the path.
    """
    binned = sr.subfolder(path, "binned_outputs")
    folder = _square(binned, bin_um)
    factor = _factor(bin_um, pool_um)
    spatial = folder / "spatial"
    counts = CountsFile(sr.counts_path(folder), genome=genome)
    positions, scalefactors = sr.read_positions(spatial), sr.read_scalefactors(spatial)
    lattice = sr.fit_lattice(positions, (bin_um, bin_um))
    size = sr.resolve_pixel_size(
        mpp, scalefactors, lattice, lattice_name=f"{bin_um} um between bins", image=image, spatial=spatial
    )
    rows = sr.place(counts, positions, missing)
    kept = np.flatnonzero(rows >= 0)
    obs, xy = positions.array.iloc[rows[kept]], positions.xy[rows[kept]]
    sr.check_tissue(obs["in_tissue"].to_numpy(), counts.path)
    if factor == 1:
        obs = obs.set_axis(sr.names(counts, kept))
        matrix = counts.read()
        matrix = matrix if len(kept) == len(rows) else matrix[kept]
    elif lattice is None:
        raise DataError(
            f"{positions.path}: the bins do not span a plane; expected a lattice, of which to pool squares."
        )
    else:
        square, obs = _squares(obs, factor)
        matrix = _pooled(counts, kept, square, len(obs))
        corner, centre = obs[["array_col", "array_row"]].to_numpy() * factor, (factor - 1) / 2
        xy = lattice.at(*(corner + centre).T)
        for name in {"spot_diameter_fullres", "bin_size_um"} & set(scalefactors):
            scalefactors[name] *= factor
    images = sr.read_images(spatial)
    sr.check_image(image, images, scalefactors, xy, spatial)
    return one_slide(
        matrix,
        obs=obs,
        var=counts.var,
        xy=xy,
        library_id=library_id or sr.library_name(counts, binned.parent),
        image=image,
        images=images,
        scalefactors=scalefactors,
        pixel_size=size,
        metadata=sr.metadata(counts, "Visium HD"),
    )


def _square(binned: Path, bin_um: int) -> Path:
    sizes = {int(match[1]): item for item in binned.iterdir() if (match := sr.SQUARE.fullmatch(item.name))}
    if bin_um not in sizes:
        raise DataError(f"{binned} holds no bins of {bin_um} um; expected bin_um= to be one of {sorted(sizes)}.")
    return sizes[bin_um]


def _factor(bin_um: int, pool_um: int | None) -> int:
    """Bins along the side of a square."""
    if pool_um is None:
        return 1
    if pool_um < bin_um or pool_um % bin_um:
        raise DataError(f"pool_um is {pool_um}; expected a multiple of the bins' {bin_um} um, such as {16 * bin_um}.")
    return int(pool_um // bin_um)


def _squares(bins: pd.DataFrame, factor: int) -> tuple[np.ndarray, pd.DataFrame]:
    """The square of each bin, and the squares by row and column."""
    places = bins[["array_row", "array_col"]].to_numpy() // factor
    width = int(places[:, 1].max()) + 1
    found, square = np.unique(places[:, 0] * width + places[:, 1], return_inverse=True)
    row, column = np.divmod(found, width)
    in_tissue = np.zeros(len(found), dtype=np.int64)
    np.maximum.at(in_tissue, square, bins["in_tissue"].to_numpy())
    obs = pd.DataFrame(
        {"in_tissue": in_tissue, "array_row": row, "array_col": column, "n_bins": np.bincount(square)},
        index=[f"{r:04d}x{c:04d}" for r, c in zip(row, column, strict=True)],
    )
    return square, obs


def _pooled(counts: CountsFile, kept: np.ndarray, square: np.ndarray, n_squares: int) -> sparse.csr_matrix:
    """Counts of the squares, summed block by block."""
    pooled = sparse.csr_matrix((n_squares, len(counts.var)), dtype=np.float32)
    for rows, block in counts.blocks():
        first, last = np.searchsorted(kept, (rows.start, rows.stop))
        entries = (np.ones(last - first, np.float32), (square[first:last], kept[first:last] - rows.start))
        pooled = pooled + sparse.csr_matrix(entries, shape=(n_squares, block.shape[0])) @ block
    pooled.sort_indices()
    return pooled
