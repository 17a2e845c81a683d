from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from .. import inputs, keys
from ..io._patchfiles import save_patches
from ..settings import logger

if TYPE_CHECKING:
    from anndata import AnnData


@inputs.takes_spatialdata
def iter_patches(
    adata: AnnData, *, size: int = 224, mpp: float | None = None, batch_size: int = 64, library_key: str = keys.LIBRARY
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Image patches around the spots, slide by slide, in batches.

    Patches are cut from the image on disk, ``uns["spatial"][library_id]["metadata"]["source_image_path"]``, or else
    from ``["images"]["hires"]``; or read from a patch file, ``["metadata"]["patches_path"]``, where it holds them. What
    lies outside the image is white; the log tells how many patches that touches.
    Spots of a tiled image come in the order of its tiles, of which each is decoded once.
    Memory: one decoded image (3 bytes a pixel) or, of a compressed TIFF, up to 256 MiB of tiles, and three batches.

    Parameters
    ----------
    adata
        Spots with centres in ``obsm["spatial"]``, in pixels of the full-resolution image.
    size
        Side of the patches in pixels.
    mpp
        Micrometres per pixel to resample to, by ``uns["spatial"][library_id]["metadata"]["mpp"]``; by default the
        full-resolution pixels as they are.
    batch_size
        Patches in a batch; a batch never spans two slides.
    library_key
        Column of ``obs`` that tells slides apart.

    Returns
    -------
    Iterator over pairs: row positions in ``adata`` (batch, int64) and patches (batch x size x size x 3, uint8, RGB).

    Raises
    ------
    MissingSlotError, DataError, ImageError
        Coordinates, image or pixel size absent or unusable; raised at the call. Only damage that shows when the image
        is decoded is raised at the first batch of its slide.

    Examples
    --------
    >>> import anndata as ad
    >>> import numpy as np
    >>> import hibiost as hb
    >>> adata = ad.AnnData(np.ones((2, 3), np.float32))
    >>> adata.obsm["spatial"] = np.array([[150.0, 50.0], [20.0, 50.0]])
    >>> slide = {"images": {"hires": np.zeros((100, 200, 3), np.uint8)}, "scalefactors": {"tissue_hires_scalef": 1.0}}
    >>> adata.uns["spatial"] = {"A1": slide}
    >>> for rows, patches in hb.pp.iter_patches(adata, size=32):
    ...     print(rows, patches.shape)
    [0 1] (2, 32, 32, 3)
    """
    return inputs.numbered_patches(inputs.slides(adata, library_key), size=size, mpp=mpp, batch_size=batch_size)


@inputs.takes_spatialdata
def extract_patches(
    adata: AnnData,
    path: str | os.PathLike[str],
    *,
    size: int = 224,
    mpp: float | None = None,
    batch_size: int = 64,
    library_key: str = keys.LIBRARY,
    overwrite: bool = False,
    copy: bool = False,
) -> AnnData | None:
    """Write the image patches around the spots to files, one for each slide, in the layout of HEST-1k.

    Every verb reads them from there, many times faster than from a compressed image, and also where the image is gone.
    A file is complete or not there: it is written as ``<library_id>.h5.part`` and renamed. A call that was interrupted
    continues where it stopped when it is made again, and leaves alone what is written already. Patches of a tiled image
    lie in the order of its tiles. Files take 3 x ``size`` x ``size`` bytes a spot (150 kB at 224). Memory: as
    :func:`hibiost.pp.iter_patches`.

    Parameters
    ----------
    adata
        Spots with centres in ``obsm["spatial"]``, and the images of their slides. All of its spots get a patch, named
        by ``obs["barcode"]`` where there is such a column, else by ``obs_names``.
    path
        Folder to write to, made where it is not there. ``<corpus>/patches`` makes them part of a corpus of
        :func:`hibiost.io.write_hest`.
    size
        Side of the patches in pixels. Training shifts patches within a margin, which has to be in the file: for
        patches of 224 pixels and shifts of 0.1, 268.
    mpp
        Micrometres per pixel to resample to; by default the full-resolution pixels as they are.
    batch_size
        Patches cut at a time.
    library_key
        Column of ``obs`` that tells slides apart.
    overwrite
        Write anew what is there: needed after a change of the image itself.
    copy
        Return a changed copy instead of changing ``adata``.

    Returns
    -------
    ``None``, or the changed copy. Written is, once all files are,

    ``uns["spatial"][library_id]["metadata"]["patches_path"]``
        Path of the file ``<path>/<library_id>.h5`` (see :func:`hibiost.images.write_patches`).

    Raises
    ------
    MissingSlotError, DataError, ImageError
        Coordinates, image or pixel size absent or unusable; a file of other patches is there; or a file cannot be
        written, as on a full disk.

    Examples
    --------
    >>> import tempfile
    >>> import hibiost as hb
    >>> adata = hb.datasets.tissue(50)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     hb.pp.extract_patches(adata, folder, size=64)
    ...     file = hb.images.PatchFile(adata.uns["spatial"]["tissue_0"]["metadata"]["patches_path"])
    ...     with file:
    ...         print(len(file), file.size, file.pixel_size)
    50 64 0.5
    """
    slides = inputs.slides(adata, library_key)
    written = save_patches(slides, path, size=size, mpp=mpp, batch_size=batch_size, overwrite=overwrite)
    adata = adata.copy() if copy else adata
    spatial = {name: dict(entry) for name, entry in adata.uns[keys.SPATIAL].items()}
    for library_id, file in written.items():
        spatial[library_id]["metadata"] = {**spatial[library_id].get("metadata", {}), "patches_path": file}
    adata.uns[keys.SPATIAL] = spatial
    logger.info("patches of %d spots are in %s.", adata.n_obs, os.path.abspath(path))
    return adata if copy else None
