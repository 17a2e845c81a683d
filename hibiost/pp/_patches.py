from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from .. import inputs, keys

if TYPE_CHECKING:
    from anndata import AnnData


def iter_patches(
    adata: AnnData, *, size: int = 224, mpp: float | None = None, batch_size: int = 64, library_key: str = keys.LIBRARY
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Image patches around the spots, slide by slide, in batches.

    Patches are cut from the image on disk, ``uns["spatial"][library_id]["metadata"]["source_image_path"]``, or else
    from ``["images"]["hires"]``. What lies outside the image is white; the log tells how many patches that touches.
    Memory: one decoded image (3 bytes a pixel) or, of a compressed TIFF, up to 256 MiB of tiles, and one batch.

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
