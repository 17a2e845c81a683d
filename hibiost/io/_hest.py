"""HEST-1k's layout: folders ``st``, ``patches``, ``metadata`` and ``wsis`` with a file for each sample."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from scipy import sparse

from .. import inputs, keys
from .._files import make_folder, replacing
from ..errors import DataError, nearest
from ..images import PatchFile, pixel_size
from ..inputs import half_pitch
from ..settings import logger
from ._build import PixelSize, one_slide
from ._patchfiles import check_file_name, save_patches
from ._reading import reading

CONTROL = re.compile(
    r"BLANK_|NegControl|antisense_|DEPRECATED_|DeprecatedCodeword|UnassignedCodeword|Intergenic_Region", re.IGNORECASE
)
"""How the names of probes begin that measure no gene."""
ENSEMBL = re.compile(r"ENS[A-Z]*G\d{6,}(\.\d+)?$")
SYMBOLS = ("gene_symbols", "gene_symbol", "gene_names", "gene_name", "symbol", "feature_name")
POOLED = ("visium hd", "xenium")
"""Technologies whose bins or transcripts HEST pools on a square grid, with array columns that do not fit it."""
PIXEL_SIZES = ("pixel_size_um_estimated", "pixel_size_um_embedded")
HEST_SIZE, HEST_MPP = 224, 0.5
_REDUCED = "downscaled_fullres"
PIXELS = ("pxl_col_in_fullres", "pxl_row_in_fullres")
_ARRAY = ("in_tissue", "array_row", "array_col")
_SLOTS = ("layers", "obsm", "varm", "obsp", "varp")
_DENSE = 2**24  # values of a dense matrix in memory at a time


def read_hest(
    folder: str | os.PathLike[str],
    sample: str,
    *,
    image: bool | None = None,
    patches: bool | None = None,
    mpp: float | None = None,
) -> AnnData:
    """Read a sample of HEST-1k, or of a folder in its layout, such as one of :func:`hibiost.io.write_hest`.

    Memory: the sparse counts; of a dense matrix, 16 million values at a time.

    Parameters
    ----------
    folder
        The folder that holds ``st/<sample>.h5ad`` and, as far as they were fetched, ``metadata/<sample>.json``,
        ``patches/<sample>.h5`` and ``wsis/<sample>.tif``.
    sample
        Name of the sample, such as ``"TENX68"``.
    image
        Whether to attach the whole-slide image; by default where there is one.
    patches
        Whether to attach the patch file; by default where there is one. HEST leaves out patches off the tissue:
        ``True`` drops the spots without one, as patches alone cannot serve them; the default keeps all spots.
    mpp
        Micrometres per full-resolution pixel; by default ``pixel_size_um_estimated`` of the metadata, else
        ``pixel_size_um_embedded``, else that of the patch file, else that in the header of the image.

    Returns
    -------
    Spots x genes, with

    ``X``
        raw counts, CSR float32. Control probes (``BLANK_``, ``NegControl``, ``antisense_``, ``DEPRECATED_``,
        unassigned codewords) are left out.
    ``var_names``, ``var["gene_ids"]``
        gene symbols, the second of two that are equal ending in ``-1``; Ensembl identifiers where the file has them.
        Identifiers stay the names where it has no symbols: :func:`hibiost.pp.map_genes` maps them.
    ``obs``
        ``library_id`` and, where known, ``patient``, categorical; ``in_tissue``, ``array_row`` and ``array_col``, int,
        the latter two counted anew from the coordinates where those of pooled Visium HD and Xenium do not fit; and all
        further columns of the file, as in ``layers``, ``obsm``, ``varm`` and ``uns``.
    ``obsm["spatial"]``
        float64, spot centres (x, y) in pixels of the full-resolution image.
    ``uns["spatial"][sample]``
        ``images["hires"]`` (HEST's ``downscaled_fullres``) and ``scalefactors``, as scanpy and squidpy plot them;
        ``metadata``: ``mpp``, ``mpp_source``, ``source_image_path``, ``patches_path``, and the entries of the JSON
        file, such as ``species``, ``organ``, ``disease_state``, ``patient``, ``st_technology`` and ``license``.

    Raises
    ------
    DataError
        There is no such sample, or a file of it is truncated, of another kind, or absent although asked for.
    ImageError
        The image or the patch file is unreadable.

    Examples
    --------
    >>> import tempfile
    >>> import hibiost as hb
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     hb.io.write_hest(hb.datasets.tissue(60), folder)
    ...     adata = hb.io.read_hest(folder, "tissue_0")
    >>> adata.shape, adata.uns["spatial"]["tissue_0"]["metadata"]["mpp"]
    ((60, 300), 0.5)
    """
    root = Path(folder)
    whole = read_h5ad(_sample_path(root, sample))
    metadata = read_metadata(root / "metadata" / f"{sample}.json")
    recorded = metadata.get("source_image_path")
    files = {
        "source_image_path": attached(root / "wsis" / f"{sample}.tif", metadata, "source_image_path", wanted=image),
        "patches_path": attached(root / "patches" / f"{sample}.h5", metadata, "patches_path", wanted=patches),
    }
    if image is None and recorded is not None and not any(files.values()):
        logger.warning("sample %r: its image is no longer there: %s.", sample, recorded)
    whole = genes_only(whole, sample)
    whole, stored_mpp = match_patches(whole, files["patches_path"], sample, drop=patches is True)
    size = pixel_size_of(mpp, metadata, stored_mpp, files["source_image_path"])
    images, scalefactors = spatial_entry(whole.uns.pop(keys.SPATIAL, {}), sample, metadata, size)
    xy = inputs.coordinates(whole)
    adata = one_slide(
        whole.X,
        obs=_obs(whole.obs, xy, metadata, sample),
        var=whole.var,
        xy=xy,
        library_id=sample,
        image=files["source_image_path"],
        images=images,
        scalefactors=scalefactors,
        pixel_size=size,
        metadata={**metadata, **files},
    )
    for slot in _SLOTS:
        values = getattr(whole, slot)
        getattr(adata, slot).update({key: values[key] for key in values if key != keys.SPATIAL})
    adata.uns.update(whole.uns)
    return adata


def _sample_path(root: Path, sample: str) -> Path:
    expected = "expected a folder in HEST's layout, with st/<sample>.h5ad"
    if not root.is_dir():
        raise DataError(f"{root} {'is a file' if root.exists() else 'is not there'}; {expected}.")
    if not (root / "st").is_dir():
        raise DataError(f"{root} has no folder 'st' (it holds {sorted(os.listdir(root))[:8]}); {expected}.")
    path = root / "st" / f"{sample}.h5ad"
    if not path.exists():
        there = sorted(file.stem for file in (root / "st").glob("*.h5ad"))
        raise DataError(
            f"there is no sample {sample!r} in {root / 'st'}, which holds {len(there)}: {there[:5]}."
            f"{nearest(sample, there)}"
        )
    return path


def read_h5ad(path: Path) -> AnnData:
    with reading(path, "an AnnData file"), h5py.File(path) as file:
        matrix = file.get("X")
        if matrix is None or (isinstance(matrix, h5py.Dataset) and matrix.ndim != 2):
            raise DataError(f"{path} holds no counts (X); expected spots x genes.")
        parts = {name: ad.io.read_elem(file[name]) for name in ("obs", "var", "uns", *_SLOTS) if name in file}
        if isinstance(matrix, h5py.Dataset):
            step = max(1, _DENSE // max(1, matrix.shape[1]))
            blocks = [sparse.csr_matrix(matrix[start : start + step]) for start in range(0, matrix.shape[0], step)]
            counts = sparse.vstack(blocks, format="csr")
        else:
            counts = sparse.csr_matrix(ad.io.read_elem(matrix))
        if counts.shape != (len(parts["obs"]), len(parts["var"])):
            raise DataError(
                f"{path}: X has shape {counts.shape} for {len(parts['obs'])} spots and {len(parts['var'])} genes."
            )
    obs, var = parts["obs"], parts["var"]
    obs.index, var.index = (pd.Index(table.index.astype(str), name=None) for table in (obs, var))
    var.index = _unique(var.index, path)
    _check_barcodes(obs.index, path, "fetch it again")
    if keys.SPATIAL not in parts.get("obsm", {}):
        absent = [column for column in PIXELS if column not in obs]
        if absent:
            raise DataError(f"{path} has neither obsm['spatial'] nor obs[{absent[0]!r}]; expected the spots' centres.")
        parts.setdefault("obsm", {})[keys.SPATIAL] = obs[list(PIXELS)].to_numpy()
    return AnnData(counts.astype(np.float32), **parts)


def _check_barcodes(names: pd.Index, where: Any, mend: str) -> None:
    if names.has_duplicates:
        twice = names[names.duplicated()]
        raise DataError(f"{where}: {len(twice)} barcodes occur more than once, such as {str(twice[0])!r}; {mend}.")


def _unique(names: pd.Index, where: Any) -> pd.Index:
    if not names.has_duplicates:
        return names
    logger.info("%s: %d gene names occur again; -1, -2, ... is added to them.", where, int(names.duplicated().sum()))
    return make_index_unique(names)


def read_metadata(path: Path) -> dict[str, Any]:
    """Single values of a metadata file, empty ones (``NaN``, ``null``) left out; nothing where there is no file."""
    if not path.exists():
        logger.info("there is no %s; the sample is read without metadata.", path)
        return {}
    with reading(path, "a JSON file"):
        found = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(found, dict):
            raise DataError(f"{path} holds a {type(found).__name__}; expected an object with the sample's metadata.")
    known = {key: value for key, value in found.items() if isinstance(value, str | int | float) and value == value}
    return {key.replace("/", "_"): value for key, value in known.items()}


def attached(path: Path, metadata: dict[str, Any], key: str, *, wanted: bool | None) -> str | None:
    """The file in its folder, else where the metadata say; ``None`` where it is neither, or not wanted."""
    recorded = metadata.pop(key, None)
    if wanted is False:
        return None
    found = next((os.path.abspath(p) for p in (path, recorded) if p is not None and os.path.exists(p)), None)
    if found is None and wanted:
        raise DataError(f"there is no {path}{'' if recorded is None else f', nor {recorded}'}; fetch it first.")
    return found


def genes_only(adata: AnnData, sample: str) -> AnnData:
    """Without control probes, and named by unique symbols where the file knows them."""
    control = adata.var_names.str.match(CONTROL.pattern, flags=re.IGNORECASE).astype(bool)
    if control.any():
        names = list(map(str, adata.var_names[control][:3]))
        logger.info("sample %r: %d control probes are left out, such as %s.", sample, int(control.sum()), names)
        adata = adata[:, ~control].copy()
    names = adata.var_names
    if len(names) and names.str.match(ENSEMBL.pattern).mean() > 0.5:
        symbols = next((adata.var[column] for column in SYMBOLS if column in adata.var), None)
        if symbols is None:
            logger.info("sample %r: genes go by Ensembl identifiers; hb.pp.map_genes gives them symbols.", sample)
        else:
            symbols = symbols.astype(object)
            adata.var["gene_ids"] = names.to_numpy(dtype=object)
            names = pd.Index(np.where(symbols.isna() | (symbols == ""), names, symbols), dtype=object)
    adata.var_names = _unique(names, f"sample {sample!r}")
    return adata


def match_patches(adata: AnnData, path: str | None, sample: str, *, drop: bool) -> tuple[AnnData, float | None]:
    """Tell of spots without a patch, or drop them; with the pixel size in the patch file."""
    if path is None:
        return adata, None
    with PatchFile(path) as file:
        held = file.rows(adata.obs_names) >= 0
        mpp = file.pixel_size
    if held.all():
        return adata, mpp
    absent = int((~held).sum())
    if not held.any():
        raise DataError(f"{path} holds no patch of any spot of {sample!r}; is it that of another sample?")
    if not drop:
        logger.info("sample %r: %d of %d spots have no patch; patches=True drops them.", sample, absent, len(held))
        return adata, mpp
    logger.info("sample %r: %d of %d spots have no patch and are left out.", sample, absent, len(held))
    return adata[held].copy(), mpp


def pixel_size_of(
    mpp: float | None, metadata: dict[str, Any], stored: float | None, image: str | None
) -> PixelSize | None:
    source = metadata.pop("mpp_source", None)
    if mpp is not None:
        return PixelSize(mpp, "argument")
    for key in PIXEL_SIZES:
        value = metadata.get(key)
        if isinstance(value, int | float) and 0 < value < np.inf:
            return PixelSize(float(value), source or f"{key} of the metadata")
    if stored is not None:
        return PixelSize(stored, "patch file")
    found = None if image is None else pixel_size(image)
    return None if found is None else PixelSize(*found)


def spatial_entry(
    entries: Any, sample: str, metadata: dict[str, Any], size: PixelSize | None
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Images and scale factors by scanpy's names."""
    entry: dict[str, Any] = entries.get(sample) or next(iter(entries.values()), {})
    images = {name: np.asarray(pixels) for name, pixels in entry.get("images", {}).items()}
    scalefactors = {name: float(value) for name, value in entry.get("scalefactors", {}).items()}
    if _REDUCED in images and "hires" not in images and f"tissue_{_REDUCED}_scalef" in scalefactors:
        images["hires"] = images.pop(_REDUCED)
        scalefactors["tissue_hires_scalef"] = scalefactors.pop(f"tissue_{_REDUCED}_scalef")
    diameter = metadata.get("spot_diameter")
    if "spot_diameter_fullres" not in scalefactors and size is not None and isinstance(diameter, int | float):
        scalefactors["spot_diameter_fullres"] = diameter / size.mpp
    return images, scalefactors


def _obs(obs: pd.DataFrame, xy: np.ndarray, metadata: dict[str, Any], sample: str) -> pd.DataFrame:
    obs = obs.drop(columns=[keys.LIBRARY, *PIXELS], errors="ignore")
    for column in _ARRAY:
        if column in obs:
            numbers = pd.to_numeric(obs[column].astype(object), errors="coerce")
            if numbers.notna().all():
                obs[column] = numbers.astype(np.int64)
    if str(metadata.get("st_technology", "")).lower() in POOLED and not _on_grid(obs, xy):
        obs = obs.drop(columns=list(_ARRAY[1:]), errors="ignore")
        grid = _square_grid(xy)
        if grid is None:
            logger.info("sample %r: its spots lie on no square grid; array_row and array_col are left out.", sample)
        else:
            obs["array_col"], obs["array_row"] = grid.T
    if keys.PATIENT in metadata and keys.PATIENT not in obs:
        obs[keys.PATIENT] = pd.Categorical([str(metadata[keys.PATIENT])] * len(obs))
    return obs


def _on_grid(obs: pd.DataFrame, xy: np.ndarray) -> bool:
    """Whether a step along ``array_col`` or ``array_row`` is one spot to the right or down, on a grid of any turn."""
    if any(column not in obs or obs[column].dtype.kind not in "iu" for column in _ARRAY[1:]):
        return False
    design = np.column_stack([obs["array_col"], obs["array_row"], np.ones(len(obs))]).astype(np.float64)
    fit, *_ = np.linalg.lstsq(design, xy, rcond=None)
    pitch, steps = 2 * half_pitch(xy), np.linalg.norm(fit[:2], axis=1)
    near = np.abs(design @ fit - xy).max() < pitch / 4
    return bool(near and np.allclose(steps, pitch, rtol=0.1) and np.linalg.det(fit[:2]) > 0)


def _square_grid(xy: np.ndarray) -> np.ndarray | None:
    """Column and row of each spot on a square grid along the axes, from 0; ``None`` where they lie on none."""
    pitch = 2 * half_pitch(xy)
    grid = np.empty(xy.shape, dtype=np.int64)
    for axis in range(2):
        order = np.argsort(xy[:, axis], kind="stable")
        steps = np.rint(np.diff(xy[order, axis]) / pitch).astype(np.int64)
        grid[order, axis] = np.cumsum(np.concatenate([[0], steps]))
    return grid if len(np.unique(grid, axis=0)) == len(xy) else None


def write_hest(
    adata: AnnData,
    folder: str | os.PathLike[str],
    *,
    patches: bool = False,
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
    overwrite: bool = False,
) -> None:
    """Write slides in the layout of HEST-1k: a corpus, to which later calls add.

    Each slide becomes a sample by the name of its ``library_id``. Every file is complete or not there; ``st`` comes
    last, so that a sample that is there is complete. The full-resolution image is not copied: the metadata name its
    path (``source_image_path``), and a file or link ``wsis/<library_id>.tif`` goes before it when the sample is read.
    Memory: beside ``adata``, a slide and its file.

    Parameters
    ----------
    adata
        Spots with counts and ``obsm["spatial"]``.
    folder
        Folder to write to, made where it is not there.
    patches
        Write patch files too, of 224 x 224 pixels of 0.5 micrometres, as HEST's; an interrupted call continues with
        them. Other sizes: ``hb.pp.extract_patches(adata, "<folder>/patches", size=..., mpp=...)``.
    layer
        Layer with raw counts; by default ``X``.
    library_key
        Column of ``obs`` that tells slides apart.
    overwrite
        Replace samples that are there.

    Returns
    -------
    ``None``. Written are, for each slide,

    ``st/<library_id>.h5ad``
        the AnnData of its spots, with counts as CSR in ``X``, ``obs[["in_tissue", "pxl_col_in_fullres",
        "pxl_row_in_fullres"]]``, and in ``uns["spatial"]["ST"]`` the reduced image under HEST's name,
        ``downscaled_fullres``.
    ``metadata/<library_id>.json``
        ``uns["spatial"][library_id]["metadata"]``, ``mpp`` as ``pixel_size_um_estimated``; ``patient``, ``id``,
        ``spots_under_tissue``, ``adata_nb_col`` and, in micrometres, ``spot_diameter``.
    ``patches/<library_id>.h5``
        if asked for.

    Raises
    ------
    DataError
        Counts or coordinates absent or unusable, barcodes of a slide that occur twice, a sample that is there already,
        or a file cannot be written (disk full).
    ImageError
        ``patches=True``, and an image is absent or unreadable, or a patch file cannot be written.

    Examples
    --------
    >>> import os
    >>> import tempfile
    >>> import hibiost as hb
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     hb.io.write_hest(hb.datasets.tissue(60, n_slides=2), folder)
    ...     print(sorted(os.listdir(folder)), sorted(os.listdir(f"{folder}/st")))
    ['metadata', 'st'] ['tissue_0.h5ad', 'tissue_1.h5ad']
    """
    root = Path(folder)
    counts, xy = inputs.counts(adata, layer), inputs.coordinates(adata)
    libraries = inputs.libraries(adata, library_key)
    check_target(root, list(libraries), overwrite=overwrite)
    for library_id, rows in libraries.items():
        _check_barcodes(adata.obs_names[rows], f"slide {library_id!r}", "rename them: adata.obs_names_make_unique()")
    slides = inputs.slides(adata, library_key) if patches else []
    for name in ("metadata", "st"):
        make_folder(root / name)
    if patches:
        options: Any = {"size": HEST_SIZE, "mpp": HEST_MPP, "batch_size": 64, "overwrite": overwrite}
        save_patches(slides, root / "patches", **options)
    for library_id, rows in libraries.items():
        part = adata[rows].copy()
        part.X = counts[rows]
        entry = part.uns.get(keys.SPATIAL, {}).get(library_id, {})
        part.uns[keys.SPATIAL] = {"ST": _entry(entry)}
        part.obs = part.obs.assign(**dict(zip(PIXELS, xy[rows].T, strict=True)))
        part.obs = part.obs if "in_tissue" in part.obs else part.obs.assign(in_tissue=1)
        content = _metadata(part, entry, library_id)
        text = json.dumps(content, indent=1, ensure_ascii=False, default=lambda value: np.asarray(value).tolist())
        with replacing(root / "st" / f"{library_id}.h5ad") as path:
            write_h5ad(part, path)
            with replacing(root / "metadata" / f"{library_id}.json") as beside:
                beside.write_text(text, encoding="utf-8")
    logger.info("wrote %d samples of %d spots to %s.", len(libraries), adata.n_obs, root)


def write_h5ad(adata: AnnData, path: Path) -> None:
    """Write an AnnData file, made in memory first: HDF5 ends the process where the disk is full."""
    adata.strings_to_categoricals()
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        ad.io.write_elem(file, "/", adata)
    path.write_bytes(content.getvalue())  # getbuffer() crashes Python 3.12 where writing fails


def check_target(root: Path, samples: list[str], *, overwrite: bool) -> None:
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file; expected a folder, which gets st, metadata and patches.")
    for sample in samples:
        check_file_name(sample)
    there = [sample for sample in samples if (root / "st" / f"{sample}.h5ad").exists()]
    if there and not overwrite:
        raise DataError(f"{root} holds {len(there)} of these samples already ({there[:3]}); pass overwrite=True.")


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    """Images and scale factors by HEST's names."""
    images, scalefactors = dict(entry.get("images", {})), dict(entry.get("scalefactors", {}))
    if "hires" in images and "tissue_hires_scalef" in scalefactors:
        images[_REDUCED] = images.pop("hires")
        scalefactors[f"tissue_{_REDUCED}_scalef"] = scalefactors.pop("tissue_hires_scalef")
    return {"images": images, "scalefactors": scalefactors}


def _metadata(adata: AnnData, entry: dict[str, Any], library_id: str) -> dict[str, Any]:
    metadata = dict(entry.get("metadata", {}))
    mpp = metadata.pop("mpp", None)
    diameter = entry.get("scalefactors", {}).get("spot_diameter_fullres")
    if mpp is not None:
        metadata["pixel_size_um_estimated"] = mpp
        if diameter is not None:
            metadata["spot_diameter"] = diameter * mpp
    patients = adata.obs[keys.PATIENT].dropna().unique() if keys.PATIENT in adata.obs else []
    if len(patients) == 1:
        metadata[keys.PATIENT] = str(patients[0])
    under = int((adata.obs["in_tissue"] == 1).sum())
    return {**metadata, "id": library_id, "spots_under_tissue": under, "adata_nb_col": adata.n_vars}
