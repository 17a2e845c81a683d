"""SpatialData objects and their zarr stores -> the AnnData of the contract, and back."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from .. import inputs, keys
from ..errors import DataError
from ..images import open_image
from ..inputs._sdata import as_anndata, image_alone, pick_table, shallow
from ..settings import logger
from ._checks import warn_background
from ._reading import is_zarr, reading

if TYPE_CHECKING:
    from spatialdata import SpatialData

INSTANCE = "instance_id"
CHUNK = 1024
_NAME = re.compile(r"[\w.-]+", re.ASCII)


def from_spatialdata(
    sdata: SpatialData | str | os.PathLike[str],
    *,
    table_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    library_id: str | None = None,
    mpp: float | None = None,
) -> AnnData:
    """A table of a SpatialData object, with coordinates in pixels of the H&E image, as one AnnData.

    Each region that the table annotates is a slide. Its spots are the centroids of its shapes (circles or polygons),
    taken through the coordinate system that shapes and image share to pixels of the image's largest scale; where they
    share several, all have to agree. Pixels are read when they are asked for: an image in a zarr store is named by its
    path, which survives ``.h5ad``; one that is in memory or computed stays a dask array, which ``.h5ad`` writes whole.

    The verbs of ``hb.pp``, ``hb.tl`` and ``hb.pl`` take SpatialData objects themselves; this is for what else is done
    with AnnData. Where there is no table, the image alone becomes a slide without spots, for :func:`hibiost.pp.grid`;
    :func:`hibiost.io.to_spatialdata` then takes its spots back.

    Parameters
    ----------
    sdata
        A SpatialData object, or the zarr store of one.
    table_key
        The table; needed where there are several.
    image_key
        The H&E image, or a dict of the image of each region; needed where the shapes share a coordinate system with
        several images.
    library_id
        Name of the slide, where the table annotates one region; by default the region's.
    mpp
        Micrometres per pixel of the image. Where not given, that of the table's
        ``uns["spatial"][region]["metadata"]``, or that of a transformation to a coordinate system named ``"um"``,
        ``"microns"`` or the like.

    Returns
    -------
    AnnData with ``obs``, ``var`` and further slots of the table, and

    ``X``
        CSR float32.
    ``obs["library_id"]``
        Categorical, the region.
    ``obsm["spatial"]``
        float64, spot centres (x, y) in pixels of the image; of the shapes, where there is no image.
    ``uns["spatial"][library_id]``
        ``images["hires"]`` (thumbnail, uint8), ``scalefactors``, and in ``metadata``: ``mpp`` and ``mpp_source`` where
        known, and ``source_image_path``; or else ``images["fullres"]``, a dask array (height x width x channels).

    Raises
    ------
    DataError
        The path is no SpatialData store, or a damaged one; several tables or images and none named, or none of that
        name; shapes and image without a common coordinate system, or with several that disagree; spots without shape,
        or outside the image.
    ImageError
        The image is unreadable, not 8-bit grey, RGB or RGBA, or shares no coordinate system with the shapes.

    Examples
    --------
    >>> import hibiost as hb
    >>> sdata = hb.io.to_spatialdata(hb.datasets.tissue(100))
    >>> adata = hb.io.from_spatialdata(sdata)
    >>> adata.shape, list(adata.uns["spatial"]), adata.uns["spatial"]["tissue_0"]["metadata"]["mpp"]
    ((100, 300), ['tissue_0'], 0.5)
    """
    if isinstance(sdata, str | os.PathLike):
        sdata = _read_store(Path(sdata).expanduser())
    if not inputs.is_spatialdata(sdata):
        raise DataError(f"expected a SpatialData object or the path of its store, found {type(sdata).__name__}.")
    if sdata.tables or table_key is not None:
        adata = _spots(sdata, table_key, image_key)
    else:
        adata = image_alone(sdata, image_key)
    slides: dict[str, Any] = adata.uns[keys.SPATIAL]
    if library_id is not None:
        _rename(adata, slides, library_id)
    for entry in slides.values():
        entry["images"] = {
            key: value if key == "fullres" else np.asarray(value) for key, value in entry["images"].items()
        }
        if mpp is not None:
            entry["metadata"] |= {"mpp": mpp, "mpp_source": "argument"}
    if adata.n_obs and all(
        "fullres" in entry["images"] or "source_image_path" in entry["metadata"] for entry in slides.values()
    ):
        inputs.slides(adata)
    for name in slides if adata.n_obs else ():
        warn_background(adata, name)
    sizes = {name: entry["metadata"].get("mpp", "unknown: pass mpp=") for name, entry in slides.items()}
    logger.info("%d spots, %d genes; slides and their pixel sizes in um: %s.", adata.n_obs, adata.n_vars, sizes)
    return adata


def _spots(sdata: SpatialData, table_key: str | None, image_key: str | Mapping[str, str] | None) -> AnnData:
    """The table, with counts in CSR and without what only a SpatialData object needs."""
    name, table = pick_table(sdata, table_key)
    if table.X is None:
        raise DataError(
            f"the table {name!r} holds no counts (X); expected spots x genes: set X, or name another table."
        )
    adata = as_anndata(sdata, table_key=table_key, image_key=image_key)
    adata.X = sparse.csr_matrix(table.X, dtype=np.float32)
    instance_key = adata.uns.pop("spatialdata_attrs")["instance_key"]
    if (adata.obs[instance_key].astype(str) == adata.obs_names).all():
        del adata.obs[instance_key]
    return adata


def _read_store(path: Path) -> SpatialData:
    from spatialdata import read_zarr

    with reading(path, "a SpatialData store (the folder that sdata.write() makes)"):
        if not is_zarr(path):
            raise ValueError("no zarr store")
        return read_zarr(path, selection=("images", "shapes", "tables"))


def _rename(adata: AnnData, slides: dict[str, Any], library_id: str) -> None:
    if len(slides) > 1:
        raise DataError(f"library_id= names one slide, but the table annotates the regions {list(slides)}.")
    slides[library_id] = slides.pop(*slides)
    adata.obs[keys.LIBRARY] = pd.Categorical([library_id] * adata.n_obs)


def to_spatialdata(
    adata: AnnData,
    *,
    library_key: str = keys.LIBRARY,
    table_key: str = "table",
    scale_factors: Sequence[int] | None = None,
) -> SpatialData:
    """An AnnData as SpatialData: a table, and of each slide its spots as circles and its image, lazy.

    Each slide has a coordinate system of its name, whose unit is the pixel of the full-resolution image.
    :func:`hibiost.io.from_spatialdata` gives counts, coordinates, ``obs`` and pixel sizes back.

    Parameters
    ----------
    adata
        Spots of one or more slides.
    library_key
        Column of ``obs`` that tells slides apart.
    table_key
        Name of the table.
    scale_factors
        Reductions from each scale of the images to the next, such as ``[2, 2, 2]``, computed when they are read or
        written; one scale where not given.

    Returns
    -------
    SpatialData with

    ``shapes[library_id]``
        Circles in full-resolution pixels, of the diameter ``spot_diameter_fullres``, or of half the distance between
        spots where that is not known.
    ``images[f"{library_id}_full_image"]``
        The full-resolution image (c, y, x), uint8 RGB, in chunks of 1024 x 1024 that are read from the file when they
        are used: it has to stay where it is, until ``sdata.write()``. A JPEG or PNG is kept decoded once read. Where
        there is a reduced image only, that, as ``f"{library_id}_hires_image"``, with its scale as transformation;
        where there is none, nothing.
    ``tables[table_key]``
        The AnnData with other slots than ``obsm["spatial"]``; its region is ``library_key``, its instance
        ``obs["instance_id"]``. ``uns["spatial"][library_id]`` keeps scale factors and metadata, no images.

    Raises
    ------
    MissingSlotError
        There are no coordinates.
    DataError
        Names that spatialdata refuses, or spot names that occur twice.
    ImageError
        An image is absent or unreadable.

    Examples
    --------
    >>> import hibiost as hb
    >>> sdata = hb.io.to_spatialdata(hb.datasets.tissue(100))
    >>> sorted(name for _, name, _ in sdata.gen_elements())
    ['table', 'tissue_0', 'tissue_0_full_image']
    >>> hb.pp.tfidf_sentences(sdata, n_genes=20)
    >>> sdata["table"].obsm["gene_sentence"].shape
    (100, 20)
    """
    xy = inputs.coordinates(adata)
    slides = inputs.libraries(adata, library_key)
    _check_names(adata, [*slides, table_key])
    table = shallow(adata)
    table.obs[library_key] = pd.Categorical(inputs.spread(slides, adata.n_obs))
    table.obs[INSTANCE] = adata.obs_names.to_numpy(dtype=object)
    del table.obsm[keys.SPATIAL]
    elements: dict[str, Any] = {}
    entries = {}
    for name, rows in slides.items():
        entry = adata.uns.get(keys.SPATIAL, {}).get(name, {})
        elements[name] = _circles(name, xy[rows], adata.obs_names[rows], entry)
        entries[name] = {part: dict(entry.get(part, {})) for part in ("scalefactors", "metadata")}
        if (found := _image(name, entry, scale_factors)) is not None:
            key, scale, elements[key] = found
            entries[name]["metadata"].pop("source_image_path", None)
            entries[name]["metadata"] |= {"image_key": key, "image_scale": scale}
    table.uns[keys.SPATIAL] = entries
    return _assembled(elements, table, list(slides), library_key, table_key)


def _check_names(adata: AnnData, names: list[str]) -> None:
    bad = [name for name in names if not _NAME.fullmatch(name) or name.startswith((".", "__"))]
    if bad:
        raise DataError(
            f"spatialdata takes names of letters, digits, '_', '-' and '.' alone, not {bad[0]!r}; rename the slide in "
            "obs and in uns['spatial'], or the table."
        )
    if not adata.obs_names.is_unique:
        raise DataError("spot names occur more than once; call adata.obs_names_make_unique() first.")
    if INSTANCE in adata.obs and not (adata.obs[INSTANCE].astype(str) == adata.obs_names).all():
        raise DataError(f"obs[{INSTANCE!r}] is there already, and would be overwritten; rename it.")


def _circles(name: str, xy: np.ndarray, barcodes: pd.Index, entry: Mapping[str, Any]) -> Any:
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    diameter = entry.get("scalefactors", {}).get("spot_diameter_fullres", inputs.half_pitch(xy))
    radius = np.full(len(xy), float(diameter) / 2)
    return ShapesModel.parse(xy, geometry=0, radius=radius, index=barcodes, transformations={name: Identity()})


def _image(name: str, entry: Mapping[str, Any], scale_factors: Sequence[int] | None) -> tuple[str, float, Any] | None:
    """Name, scale and element of a slide's image, None where there is none."""
    import dask.array as da
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity, Scale

    metadata, images = entry.get("metadata", {}), entry.get("images", {})
    hires_scale = entry.get("scalefactors", {}).get("tissue_hires_scalef")
    full = metadata.get("source_image_path", images.get("fullres"))
    if full is None and ("hires" not in images or hires_scale is None):
        return None
    pixels, scale = (images["hires"], float(hires_scale)) if full is None else (full, 1.0)
    windows = _Windows(pixels)
    data = da.from_array(windows, chunks=(CHUNK, CHUNK, 3), name=False, asarray=True, lock=True).transpose(2, 0, 1)
    key = f"{name}_full_image" if scale > 0.999 else f"{name}_hires_image"
    element = Image2DModel.parse(
        data,
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=None if scale_factors is None else list(scale_factors),
        chunks=(3, CHUNK, CHUNK),
        transformations={name: Identity() if scale == 1 else Scale([1 / scale, 1 / scale], axes=("x", "y"))},
    )
    return key, scale, element


class _Windows:
    """What dask slices: an image, opened again where it is sent."""

    def __init__(self, image: Any) -> None:
        self._image, self._source = image, open_image(image)
        self.shape, self.dtype, self.ndim = (self._source.height, self._source.width, 3), np.dtype(np.uint8), 3
        weakref.finalize(self, self._source.close)

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray:
        (top, bottom, _), (left, right, _) = (
            part.indices(size) for part, size in zip(index[:2], self.shape[:2], strict=True)
        )
        return self._source.read(left, top, right - left, bottom - top)[..., index[2]]

    def __reduce__(self) -> tuple[Any, ...]:
        return _Windows, (self._image,)


def _assembled(
    elements: dict[str, Any], table: AnnData, regions: list[str], library_key: str, table_key: str
) -> SpatialData:
    from spatialdata import SpatialData
    from spatialdata.models import TableModel

    try:
        parsed = TableModel.parse(
            table, region=regions, region_key=library_key, instance_key=INSTANCE, overwrite_metadata=True
        )
        return SpatialData.init_from_elements({**elements, table_key: parsed})
    except ValueError as error:
        raise DataError(f"spatialdata refuses the AnnData: {error}") from error
