from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import keys
from ..errors import DataError, ImageError, MissingSlotError, nearest
from ..images import PatchFile, PixelSource, open_image
from ._counts import check_spots, slide_metadata
from ._reading import PatchReader

if TYPE_CHECKING:
    from anndata import AnnData

    from ..images.lazy import LazyArray

_CORNER = 0.25
"""Part of the image's sides: spots that all lie within are told."""
_FEW = 10
"""So few spots may lie anywhere."""
_ARRAY = 200
"""Arrays have fewer columns and rows, binned ones aside: whole numbers below are places on one."""
_XY = f"adata.obsm[{keys.SPATIAL!r}]"
_MICROMETRES = f"The coordinates look like micrometres: set {_XY} = {_XY} / {{mpp:.6g}}, the micrometres of a pixel."


def coordinates(adata: AnnData) -> np.ndarray:
    """Spot centres (x, y) in full-resolution pixels, float64, n_obs x 2.

    Raises
    ------
    MissingSlotError
        There is no ``obsm["spatial"]``.
    DataError
        It is not n_obs x 2 finite numbers.
    """
    check_spots(adata)
    where = f"obsm[{keys.SPATIAL!r}]"
    if keys.SPATIAL not in adata.obsm:
        raise MissingSlotError(
            f"no {where} in the AnnData (there: {list(adata.obsm)}); set adata.{where} to the spot centres (x, y) "
            "in pixels of the full-resolution image, n_obs x 2."
        )
    try:
        xy = np.asarray(adata.obsm[keys.SPATIAL], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} does not hold numbers ({error}); expected (x, y) in pixels.") from error
    if xy.shape != (adata.n_obs, 2):
        raise DataError(f"{where} has shape {xy.shape}; expected {(adata.n_obs, 2)}: (x, y) of each spot.")
    bad = ~np.isfinite(xy).all(axis=1)
    if bad.any():
        raise DataError(f"{where} holds NaN or infinite coordinates for {int(bad.sum())} spots; drop these spots.")
    return xy


def libraries(adata: AnnData, library_key: str = keys.LIBRARY) -> dict[str, np.ndarray]:
    """Row positions of each slide's spots, slides in order of first appearance.

    Without ``obs["library_id"]`` all spots belong to one slide: the only one in ``uns["spatial"]``, or ``"slide"``
    where that holds none.

    Raises
    ------
    MissingSlotError
        There is no ``obs[library_key]`` and the slides cannot be told apart without.
    DataError
        Some spots have no slide.
    """
    check_spots(adata)
    if library_key in adata.obs:
        column = adata.obs[library_key]
        if column.isna().any():
            raise DataError(
                f"obs[{library_key!r}] is empty (NaN) for {int(column.isna().sum())} of {adata.n_obs} spots; "
                "give each spot its slide, or drop these spots."
            )
        codes, ids = pd.factorize(column.astype(str))
        ends = np.cumsum(np.bincount(codes))[:-1]
        return dict(zip(map(str, ids), np.split(np.argsort(codes, kind="stable"), ends), strict=True))
    known = list(adata.uns.get(keys.SPATIAL, {}))
    if library_key == keys.LIBRARY and len(known) <= 1:
        return {str(known[0]) if known else "slide": np.arange(adata.n_obs)}
    columns = list(map(str, adata.obs.columns))
    raise MissingSlotError(
        f"no obs[{library_key!r}] (slides in uns['spatial']: {known}); the obs columns are {columns}: name the one "
        f"that tells the slides apart with library_key=.{nearest(library_key, columns)}"
    )


def spread(rows: Mapping[str, np.ndarray], n: int) -> np.ndarray:
    """The name of each of ``n`` rows, object, from the rows of each name."""
    names = np.empty(n, dtype=object)
    for name, where in rows.items():
        names[where] = name
    return names


def patients(adata: AnnData, library_key: str, patient_key: str = keys.PATIENT) -> dict[str, list[str]]:
    """Patients of each slide, of ``obs`` or else of the slide's metadata; none where they are not known."""
    slides = libraries(adata, library_key)
    if patient_key not in adata.obs:
        told = {slide: slide_metadata(adata, slide).get(keys.PATIENT) for slide in slides}
        return {slide: [] if patient is None else [str(patient)] for slide, patient in told.items()}
    column = adata.obs[patient_key]
    return {slide: column.iloc[rows].dropna().astype(str).unique().tolist() for slide, rows in slides.items()}


@dataclass(frozen=True, eq=False)
class Slide:
    """One slide of an AnnData: its spots and its image or patch file.

    Attributes
    ----------
    library_id
        Key of the slide in ``uns["spatial"]``.
    rows
        Positions of its spots in the AnnData.
    xy
        Spot centres in full-resolution pixels, float64, n x 2.
    mpp
        Micrometres per full-resolution pixel, where known.
    image
        Path or pixels; ``None`` where there is a patch file only.
    scale
        Pixels of ``image`` per full-resolution pixel: 1 for the full-resolution image.
    patches
        Path of the patch file, where there is one.
    names
        Barcode of each spot of the AnnData.
    """

    library_id: str
    rows: np.ndarray
    xy: np.ndarray
    mpp: float | None
    image: str | np.ndarray | LazyArray | None
    scale: float
    patches: str | None
    names: pd.Index

    @property
    def barcodes(self) -> pd.Index:
        """Barcode of each of its spots."""
        return self.names[self.rows]

    def open(self) -> PixelSource:
        """Open the image; only its header is read."""
        if self.image is None:
            raise ImageError(
                f"slide {self.library_id!r} has patches only, no image; set "
                f"{_slot(self.library_id, 'metadata', 'source_image_path')} to the path of its image."
            )
        return open_image(self.image)

    def iter_patches(
        self, *, size: int = 224, mpp: float | None = None, output: int | None = None, batch_size: int = 64
    ) -> Iterator[np.ndarray]:
        """Patches around the spots, in batches, in the order of ``rows``; see :func:`hibiost.images.iter_patches`.

        They are read from the patch file where it holds them as they would be cut from the image, or where there is
        no image.

        Parameters
        ----------
        size
            Side of the patches in pixels of ``mpp`` micrometres.
        mpp
            Micrometres per pixel; by default the slide's own full-resolution pixels.
        output
            Side in pixels at which the patches are delivered, where not ``size``.
        batch_size
            Patches in a batch.

        Raises
        ------
        DataError
            ``mpp`` is asked for and the slide's own is unknown, an argument is not positive, or there is a patch file
            only and it does not hold these patches.
        """
        reader = PatchReader.of(self, size=size, mpp=mpp, output=output, batch_size=batch_size)
        return reader.batches(np.arange(len(self.rows)))

    def window(self, size: int, mpp: float | None = None) -> float:
        """Side in full-resolution pixels of a patch of ``size`` pixels of ``mpp`` micrometres.

        Rounded, so that 0.3 / 0.1 of a whole number is a whole number.
        """
        if mpp is None:
            return float(size)
        if not 0 < mpp < np.inf:
            raise DataError(f"mpp is {mpp}; expected micrometres per pixel, a positive number such as 0.5.")
        if self.mpp is None:
            raise DataError(
                f"patches at {mpp} micrometres per pixel were asked for, but the pixel size of slide "
                f"{self.library_id!r} is unknown; set {_slot(self.library_id, 'metadata', 'mpp')} = ..., "
                "micrometres per full-resolution pixel, or leave out mpp=."
            )
        return round(size * (mpp / self.mpp), 6)


def slides(adata: AnnData, library_key: str = keys.LIBRARY) -> list[Slide]:
    """The slides of an AnnData in order of first appearance, checked by opening the header of each image.

    The image is ``uns["spatial"][library_id]["metadata"]["source_image_path"]`` or the full-resolution array
    ``["images"]["fullres"]``; without one, the patch file ``["metadata"]["patches_path"]`` is read, or else the reduced
    ``["images"]["hires"]`` at its ``tissue_hires_scalef``, with a warning where that is below 1. Spots are found in a
    patch file by ``obs["barcode"]``, or by their names where there is no such column.

    Raises
    ------
    MissingSlotError
        No coordinates, or slides that cannot be told apart.
    ImageError
        A slide has neither image nor patch file, or one that cannot be opened.
    DataError
        Spots lie outside the image (those with ``obs["in_tissue"]`` 0 may), or a pixel size or scale factor is not a
        positive number.

    Warns
    -----
    UserWarning
        All spots lie in the top left corner of the image, as micrometres and places on the array do; or only a reduced
        image is there.
    """
    xy = coordinates(adata)
    names = pd.Index(adata.obs[keys.BARCODE].astype(str)) if keys.BARCODE in adata.obs else adata.obs_names
    on_tissue = adata.obs["in_tissue"].to_numpy() != 0 if "in_tissue" in adata.obs else np.ones(adata.n_obs, dtype=bool)
    found = []
    for library_id, rows in libraries(adata, library_key).items():
        entry = adata.uns.get(keys.SPATIAL, {}).get(library_id, {})
        image, scale, where = _image(entry, library_id)
        mpp = entry.get("metadata", {}).get("mpp")
        if mpp is not None:
            mpp = _positive(mpp, _slot(library_id, "metadata", "mpp"))
        patches = entry.get("metadata", {}).get("patches_path")
        try:
            if image is None:
                with PatchFile(patches) as file:
                    mpp = file.pixel_size if mpp is None else mpp
            slide = Slide(library_id, rows, xy[rows], mpp, image, scale, patches, names)
            if image is not None:
                with slide.open() as source:
                    of_interest = slide.xy[on_tissue[rows]] * scale
                    _check_inside(slide, source, of_interest)
                    if keys.GRID not in adata.uns:  # hb.pp.grid places spots on the tissue, wherever that is
                        _warn_corner(slide, source, of_interest)
        except ImageError as error:
            raise ImageError(f"slide {library_id!r}: {error} It is named in {where}; mend it there.") from error
        found.append(slide)
    return found


def _image(entry: dict[str, Any], library_id: str) -> tuple[str | np.ndarray | LazyArray | None, float, str]:
    """Image, its scale and the slot that names it, of an entry of ``uns["spatial"]``; of a patch file only its slot.

    A patch file goes before a reduced image, and before an image that is not on this machine.
    """
    path_slot = _slot(library_id, "metadata", "source_image_path")
    path = entry.get("metadata", {}).get("source_image_path")
    patched = entry.get("metadata", {}).get("patches_path") is not None
    if path is not None and not (patched and not os.path.exists(path)):
        return str(path), 1.0, path_slot
    fullres = entry.get("images", {}).get("fullres")
    if fullres is not None:
        return fullres, 1.0, _slot(library_id, "images", "fullres")
    hires = entry.get("images", {}).get("hires")
    scale = entry.get("scalefactors", {}).get("tissue_hires_scalef")
    reduced = True
    if hires is not None and scale is not None:
        scale = _positive(scale, _slot(library_id, "scalefactors", "tissue_hires_scalef"))
        reduced = scale < 0.999
    elif not patched:
        raise ImageError(
            f"no image and no patches for slide {library_id!r}: expected {path_slot} (a JPEG, PNG or TIFF file), "
            "['metadata']['patches_path'] (of hb.pp.extract_patches, or HEST's) or ['images']['hires'] with "
            "['scalefactors']['tissue_hires_scalef'] beside it; set the path of the full-resolution image there."
        )
    if patched and reduced:
        return None, 1.0, _slot(library_id, "metadata", "patches_path")
    if reduced:
        warnings.warn(
            f"slide {library_id!r} has no full-resolution image: patches are read from images['hires'], at "
            f"{scale:.1%} of the full resolution; set {path_slot} to read the original.",
            UserWarning,
            stacklevel=3,
        )
    return np.asarray(hires), scale, _slot(library_id, "images", "hires")


def half_pitch(xy: np.ndarray) -> float:
    """Half the median distance to the nearest spot: the spot diameter where none is recorded."""
    from scipy.spatial import KDTree

    if len(xy) < 2:
        return 1.0
    return float(np.median(KDTree(xy).query(xy, k=2)[0][:, 1])) / 2 or 1.0


def _check_inside(slide: Slide, source: PixelSource, xy: np.ndarray) -> None:
    """Refuse spots, in pixels of the image, that lie outside it."""
    size = (source.width, source.height)
    outside = ((xy < 0) | (xy >= size)).any(axis=1)
    if outside.any():
        (left, top), (right, bottom) = xy.min(axis=0), xy.max(axis=0)
        raise DataError(
            f"{int(outside.sum())} of {len(xy)} spots of slide {slide.library_id!r} lie outside its image of "
            f"{size[0]} x {size[1]} pixels: x from {left:.1f} to {right:.1f}, y from {top:.1f} to {bottom:.1f} in "
            f"pixels of the image. {_why_outside(slide, xy, size)}"
        )


def _warn_corner(slide: Slide, source: PixelSource, xy: np.ndarray) -> None:
    """Warn of spots, in pixels of the image, that all lie in its top left corner."""
    size = (source.width, source.height)
    if len(xy) >= _FEW and (xy < np.array(size) * _CORNER).all():
        warnings.warn(
            f"all {len(xy)} spots of slide {slide.library_id!r} lie in the top left corner of its image of "
            f"{size[0]} x {size[1]} pixels: x up to {xy[:, 0].max():.1f}, y up to {xy[:, 1].max():.1f}. "
            f"{_why_in_corner(slide, xy, size)}",
            UserWarning,
            stacklevel=3,
        )


def _why_outside(slide: Slide, xy: np.ndarray, size: tuple[int, int]) -> str:
    """The likely reason for spots outside the image, and what mends it."""
    if _micrometres(slide, xy, size):
        return _MICROMETRES.format(mpp=slide.mpp)
    if ((xy[:, ::-1] >= 0) & (xy[:, ::-1] < size)).all():
        return f"x and y look swapped: set {_XY} = {_XY}[:, ::-1]."
    return (
        f"Are obsm[{keys.SPATIAL!r}] and the image of different resolution, is it in micrometres instead of pixels, or "
        "are x and y swapped?"
    )


def _why_in_corner(slide: Slide, xy: np.ndarray, size: tuple[int, int]) -> str:
    """The likely reason for spots in a corner of the image, and what mends it."""
    if (slide.xy == np.rint(slide.xy)).all() and slide.xy.max() < _ARRAY:
        return f"The coordinates look like places on the array; set {_XY} to pixels of the full-resolution image."
    if _micrometres(slide, xy, size):
        return _MICROMETRES.format(mpp=slide.mpp)
    return (
        f"Do the coordinates look like micrometres, or like pixels of a reduced image? Multiply {_XY} by the pixels in "
        "each of their units."
    )


def _micrometres(slide: Slide, xy: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether the spots, taken for micrometres, fit the image."""
    if slide.mpp is None:
        return False
    pixels = xy / slide.mpp
    return bool(((pixels >= 0) & (pixels < size)).all() and (pixels.max(axis=0) >= np.array(size) * _CORNER).any())


def _positive(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not 0 < number < np.inf:
        raise DataError(f"{where} is {value!r}; expected a positive number.")
    return number


def _slot(library_id: str, *names: str) -> str:
    return f"adata.uns[{keys.SPATIAL!r}]" + "".join(f"[{name!r}]" for name in (library_id, *names))
