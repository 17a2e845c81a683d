from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import images, inputs, keys
from ..errors import DataError, MissingSlotError
from ..settings import logger

if TYPE_CHECKING:
    from anndata import AnnData


@inputs.takes_spatialdata
def tissue_mask(
    adata: AnnData,
    *,
    min_area: float = 0.1,
    max_hole: float = 0.1,
    key_added: str = keys.TISSUE_MASK,
    copy: bool = False,
) -> AnnData | None:
    """Find the tissue of each slide in its H&E.

    It is looked for in ``images["hires"]``, or in a reduced full-resolution image where that is absent or coarser than
    30 micrometres a pixel; see :func:`hibiost.images.tissue_mask` for how. Memory: about 60 bytes a pixel of the mask,
    which has 1000 pixels a side, or pixels of 15 micrometres where that is more.

    The log tells the share of tissue, slides without any, and those whose pixel size is unknown, of which the longer
    side is taken for 10 mm.

    Parameters
    ----------
    adata
        Slides in ``uns["spatial"]``; spots are not needed.
    min_area
        Smaller pieces of tissue are left out, unless they fill a tenth of the picture; square millimetres.
    max_hole
        Smaller holes are filled; square millimetres.
    key_added
        Slot written.
    copy
        Return a changed copy instead of changing ``adata``.

    Returns
    -------
    ``None``, or the changed copy. Written is

    ``uns["tissue_mask"]``
        ``slides``: for each library_id a dict of ``mask`` (bool, height x width) and ``scale``, pixels of the mask per
        full-resolution pixel; and ``params``.

    Raises
    ------
    MissingSlotError
        No slides in ``uns["spatial"]``.
    ImageError
        A slide has no image, or one that cannot be read.
    DataError
        An area is negative, or a pixel size or scale factor is not a positive number.

    Examples
    --------
    >>> import hibiost as hb
    >>> adata = hb.datasets.tissue(100)
    >>> hb.pp.tissue_mask(adata)
    >>> bool(adata.uns["tissue_mask"]["slides"]["tissue_0"]["mask"].any())
    True
    """
    if not hasattr(adata, "uns"):
        raise DataError(f"expected an AnnData, found {type(adata).__name__}.")
    known = adata.uns.get(keys.SPATIAL, {})
    if not known:
        raise MissingSlotError(
            f"no slides in uns[{keys.SPATIAL!r}]; read an image with hb.io.read_image, or set uns[{keys.SPATIAL!r}]."
        )
    found = {}
    for library_id in known:
        pixels, scale, mpp = inputs.overview(adata, library_id)
        mask = images.tissue_mask(
            pixels, mpp=None if mpp is None else mpp / scale, min_area=min_area, max_hole=max_hole
        )
        found[library_id] = {"mask": mask, "scale": scale}
        _tell(library_id, mask, mpp)
    adata = adata.copy() if copy else adata
    inputs.record(adata, key_added, slides=found, params={"min_area": min_area, "max_hole": max_hole})
    return adata if copy else None


def _tell(library_id: str, mask: np.ndarray, mpp: float | None) -> None:
    if mpp is None:
        logger.warning("slide %r: pixel size unknown, its longer side is taken for 10 mm.", library_id)
    if mask.any():
        logger.info("slide %r: %.1f %% of the image is tissue.", library_id, 100 * mask.mean())
    else:
        logger.warning("slide %r: no tissue found; is it H&E?", library_id)
