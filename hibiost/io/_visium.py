from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
from anndata import AnnData

from ..errors import DataError
from ..settings import logger
from . import _spaceranger as sr
from ._build import one_slide
from ._tenx import CountsFile

PITCH_UM = 100.0
STEPS_UM = (PITCH_UM / 2, PITCH_UM * 3**0.5 / 2)
"""Spots lie 100 um apart on a hexagonal lattice: neighbours in a row have ``array_col`` two apart."""


def read_visium(
    path: str | os.PathLike[str],
    *,
    counts_file: str | os.PathLike[str] | None = None,
    image: str | os.PathLike[str] | None = None,
    mpp: float | None = None,
    library_id: str | None = None,
    genome: str | None = None,
    missing: Literal["raise", "drop"] = "raise",
) -> AnnData:
    """Read the output of Space Ranger for a Visium section, of any version.

    At the peak, the counts of the result are held once, and a block of 4 million entries. Of a full-resolution image,
    only the header is read.

    Parameters
    ----------
    path
        Space Ranger's ``outs`` folder (the one with ``spatial``), or the folder around it.
    counts_file
        Count matrix in that folder, an HDF5 file or a folder with ``matrix.mtx``. By default the filtered matrix, else
        the raw one, else ``raw_probe_bc_matrix.h5``, whose probes are summed to genes.
    image
        Full-resolution microscope image, the one given to Space Ranger. Without it, patches are read from the reduced
        ``tissue_hires_image.png``.
    mpp
        Micrometres per full-resolution pixel. By default Space Ranger's ``microns_per_pixel``, else from the 100 um
        between spots (least squares over the lattice), else from the header of ``image``.
    library_id
        Name of the slide; by default the sample's name in the counts, else that of the folder.
    genome
        Which one, where the counts mix several.
    missing
        What to do with barcodes that have no position: ``"raise"`` an error, or ``"drop"`` them and say so.

    Returns
    -------
    Spots x genes, with

    ``X``
        raw counts, CSR float32; features other than gene expression left out.
    ``obs_names``, ``var_names``, ``var["gene_ids"]``
        barcodes; gene symbols (the second of two that share one ends in ``-1``); identifiers, mostly of Ensembl.
    ``obs``
        ``library_id``, categorical; ``in_tissue``, ``array_row`` and ``array_col``, int. All spots of the matrix are
        kept: of a filtered one, those in tissue.
    ``obsm["spatial"]``
        float64, spot centres (x, y) in pixels of the full-resolution image.
    ``uns["spatial"][library_id]``
        ``images`` (``hires``, ``lowres``, uint8), the published ``scalefactors``, and ``metadata``: ``mpp`` and
        ``mpp_source``, ``source_image_path``, ``st_technology``, ``species``, ``genome``, ``chemistry``,
        ``software_version``, as far as known.

    Raises
    ------
    DataError
        A file is missing, unreadable or transposed, barcodes occur twice or have no position, or genomes are mixed.
    ImageError
        An image is unreadable, or not of the size that Space Ranger was given.

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.io.read_visium("no-such-run")
    Traceback (most recent call last):
    ...
    hibiost.errors.DataError: there is no folder no-such-run; expected Space Ranger's outs folder: check the path.
    """
    _refuse_hd(Path(path).expanduser())
    spatial = sr.subfolder(path, "spatial")
    folder = spatial.parent
    counts = CountsFile(sr.counts_path(folder, counts_file), genome=genome)
    positions, scalefactors = sr.read_positions(spatial), sr.read_scalefactors(spatial)
    positions = _in_order(positions)
    lattice = sr.fit_lattice(positions, STEPS_UM)
    size = sr.resolve_pixel_size(
        mpp, scalefactors, lattice, lattice_name="100 um between spots", image=image, spatial=spatial
    )
    sr.check_spot_diameter(size, scalefactors, spatial)
    rows = sr.place(counts, positions, missing)
    kept = np.flatnonzero(rows >= 0)
    xy = positions.xy[rows[kept]]
    obs = positions.array.iloc[rows[kept]].set_axis(sr.names(counts, kept))
    sr.check_tissue(obs["in_tissue"].to_numpy(), counts.path)
    images = sr.read_images(spatial)
    sr.check_image(image, images, scalefactors, xy, spatial)
    matrix = counts.read()
    return one_slide(
        matrix if len(kept) == len(rows) else matrix[kept],
        obs=obs,
        var=counts.var,
        xy=xy,
        library_id=library_id or sr.library_name(counts, folder),
        image=image,
        images=images,
        scalefactors=scalefactors,
        pixel_size=size,
        metadata=sr.metadata(counts, "Visium"),
    )


def _refuse_hd(path: Path) -> None:
    binned = any((folder / "binned_outputs").is_dir() for folder in (path, path / "outs"))
    if binned or sr.SQUARE.fullmatch(path.name):
        raise DataError(f"{path} is a run of Visium HD (with bins); read it with hb.io.read_visium_hd.")


def _in_order(positions: sr.Positions) -> sr.Positions:
    """Positions whose array columns some early files exchange: a slide's columns are half a pitch apart."""
    exchanged = positions._replace(
        array=positions.array.rename(columns={"array_row": "array_col", "array_col": "array_row"})[sr.ARRAY]
    )
    lattice, other = (sr.fit_lattice(each, STEPS_UM) for each in (positions, exchanged))
    if other is None or not other.regular or (lattice is not None and lattice.regular):
        return positions
    logger.warning("%s: array_row and array_col are exchanged by its lattice; they are put right.", positions.path)
    return exchanged
