"""Synthetic sections: counts, coordinates and an H&E image drawn from the same hidden regions."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from tqdm.auto import tqdm

from .. import inputs, keys
from .._random import RNG, generator
from ..errors import DataError, ImageError
from ..settings import logger, settings
from ._histology import LOOKS, Section

MARKERS = {
    "tumour": "ERBB2 KRT19 EPCAM CD24 GRB7 IFI27 MUC1 KRT8",
    "stroma": "COL1A1 MGP COL1A2 FN1 SPARC COL3A1 LUM DCN",
    "immune": "IGLL5 CD3D IGKC CD74 HLA-DRA PTPRC CXCL9 MS4A1",
    "adipose": "FABP4 ADIPOQ PLIN1 PLIN4 ADH1B LPL LEP CFD",
    "gland": "SCGB2A2 AZGP1 LTF APOD KRT14 KRT5 NDRG2 MYH11",
    "necrosis": "VEGFA CA9 SLC2A1 ADM NDRG1 BNIP3 HK2 ANKRD37",
}
HOUSEKEEPING = "ACTB GAPDH B2M MALAT1 RPLP0 EEF1A1 TPT1 UBC"
MARKER_FOLD, MARKER_SHARE = 5.0, 0.4
"""Over-expression of markers in their region; share of the numbered genes which are markers."""
SHAPE = 5.0
"""Shape of the negative binomial (variance = mean + mean^2 / SHAPE)."""
MARGIN, GLASS, SPOT = 1.5, 0.4, 0.55
"""In units of the pitch: border around the spots, part of it that is glass, spot diameter."""
MIN_PITCH = 4
MAX_MEGAPIXELS = 100
THUMBNAIL_PX = 1000
CHUNK = 2**22
"""Counts drawn at a time."""


class _Layout(NamedTuple):
    row: np.ndarray
    column: np.ndarray
    x: np.ndarray
    y: np.ndarray
    height: int
    width: int


def tissue(
    n_spots: int = 400,
    *,
    n_genes: int = 300,
    counts_per_gene: float = 2.0,
    n_regions: int = 4,
    n_slides: int = 1,
    grid: Literal["hex", "square"] = "hex",
    pitch_px: float = 112.0,
    mpp: float = 0.5,
    image: bool = True,
    image_path: str | Path | None = None,
    rng: RNG = 0,
) -> AnnData:
    """Synthetic sections with known truth: hidden regions decide both the counts and the H&E image.

    Every region has its own gene programme (markers over a common background; negative binomial counts whose depth
    varies by region, by local cell density and by spot) and its own look (nuclei, fibres, empty spaces, stain). Slides
    share programmes and looks, and differ in layout and in the strength of the stain.

    Parameters
    ----------
    n_spots
        Spots per slide; 100 to 1,000,000 is what it is made for.
    n_genes
        Genes; the first bear names such as ERBB2, COL1A1, IGLL5 (markers of their region) and ACTB (of none), the
        others GENE0001, GENE0002 ..., of which about 40 % are markers.
    counts_per_gene
        Mean count of a gene in a spot; about 0.12 makes the bins of Visium HD, with a tenth of the genes in each.
    n_regions
        Kinds of tissue, at most 6: tumour, stroma, immune, adipose, gland, necrosis, in this order.
    n_slides
        Slides, each of another patient.
    grid
        Arrangement of the spots: ``"hex"`` as in Visium, or ``"square"``.
    pitch_px
        Distance between neighbouring spots, pixels. An image has about ``n_spots * pitch_px**2`` pixels: for very many
        spots choose a smaller pitch (1,000,000 spots at 16 px: 14,900 x 14,900 px) or ``image=False``.
    mpp
        Micrometres per pixel, 0.1 to 2; it scales what is drawn.
    image
        Draw the image.
    image_path
        Folder, made where absent, in which each slide's full image is written as ``<library_id>.tif`` (tiled, without
        compression), tile by tile. ``None`` keeps the full images in memory, at most 100 megapixels in all.
    rng
        Seed or generator.

    Returns
    -------
    Spots x genes, with

    ``X``
        counts, CSR float32, never dense: 1,000,000 spots x 300 genes take 3 GB at the peak, and half a minute.
    ``obs``
        ``library_id`` (``"tissue_0"`` ...), ``patient`` (``"P0"`` ...) and ``region_truth``, categorical;
        ``array_row``, ``array_col``, int (in a hex grid, columns of odd rows are odd, as in Visium);
        ``cellularity_truth``, float, cell density relative to what the region has.
    ``var["marker_of"]``
        categorical, the region that a gene marks, or ``"none"``.
    ``varm["profile_truth"]``
        float DataFrame, genes x regions: expected share of each gene in a region's counts.
    ``obsm["spatial"]``
        float64, spot centres (x, y), pixels of the full image; a border of 1.5 pitches surrounds them.
    ``uns["spatial"][library_id]``
        ``images["hires"]`` (uint8; the full image, or its thumbnail beside ``image_path``), ``scalefactors``, and in
        ``metadata``: ``mpp`` and, with ``image_path``, ``source_image_path``.
    ``uns["tissue"]``
        ``params``.

    Raises
    ------
    DataError
        An argument out of its range, images too large for memory, or a file in ``image_path`` that already exists.
    ImageError
        ``image_path`` cannot be written; nothing is left there.

    Examples
    --------
    >>> import hibiost as hb
    >>> adata = hb.datasets.tissue(100, n_regions=2)
    >>> adata.shape
    (100, 300)
    >>> adata.uns["spatial"]["tissue_0"]["images"]["hires"].shape
    (1209, 1400, 3)
    >>> list(adata.obs["region_truth"].cat.categories)
    ['tumour', 'stroma']
    """
    _check(n_spots, n_genes, n_regions, n_slides, grid=grid, pitch_px=pitch_px, mpp=mpp)
    if not 0 < counts_per_gene < np.inf:
        raise DataError(f"counts_per_gene is {counts_per_gene}; expected a positive number.")
    layout = _layout(n_spots, grid, pitch_px)
    names = [f"tissue_{i}" for i in range(n_slides)]
    folder = _check_image(names, layout, image=image, image_path=image_path)
    programme, *seeds = generator(rng).integers(2**63, size=1 + n_slides)
    looks = LOOKS[:n_regions]
    var, profile = _programme([look.name for look in looks], n_genes, np.random.default_rng(programme))
    sections, slides = {}, []
    for name, seed in zip(names, seeds, strict=True):
        shape_rng, count_rng = np.random.default_rng(seed).spawn(2)
        sections[name] = Section.random(
            layout.height, layout.width, mpp=mpp, margin=GLASS * pitch_px, looks=looks, rng=shape_rng
        )
        slides.append(_slide(name, sections[name], layout, profile, counts_per_gene, count_rng))
    spatial = _spatial(sections, pitch_px, image=image, folder=folder)
    counts, obs = zip(*slides, strict=True)
    adata = AnnData(counts[0] if n_slides == 1 else sparse.vstack(counts, format="csr"), _join(obs), var)
    adata.varm["profile_truth"] = pd.DataFrame(profile.T, index=var.index, columns=[look.name for look in looks])
    adata.obsm[keys.SPATIAL] = np.tile(np.column_stack([layout.x, layout.y]), (n_slides, 1))
    adata.uns[keys.SPATIAL] = spatial
    params = {"n_spots": n_spots, "n_genes": n_genes, "counts_per_gene": counts_per_gene}
    params |= {"n_regions": n_regions, "n_slides": n_slides}
    seed = rng if isinstance(rng, int) else None
    inputs.record(adata, "tissue", params={**params, "grid": grid, "pitch_px": pitch_px, "mpp": mpp, "rng": seed})
    logger.info("tissue: %d spots, %d genes, %d slide(s).", adata.n_obs, adata.n_vars, n_slides)
    return adata


def _check(
    n_spots: int, n_genes: int, n_regions: int, n_slides: int, *, grid: str, pitch_px: float, mpp: float
) -> None:
    sizes: dict[str, object] = {"n_spots": n_spots, "n_genes": n_genes, "n_regions": n_regions, "n_slides": n_slides}
    for name, value in sizes.items():
        if not (isinstance(value, int | np.integer) and value >= 1):
            raise DataError(f"{name} is {value!r}; expected a whole number from 1 upwards.")
    if n_regions > len(LOOKS):
        raise DataError(f"n_regions is {n_regions}; expected at most {len(LOOKS)}: {[look.name for look in LOOKS]}.")
    if grid not in ("hex", "square"):
        raise DataError(f"grid is {grid!r}; expected 'hex' or 'square'.")
    if not MIN_PITCH <= pitch_px < np.inf:
        raise DataError(f"pitch_px is {pitch_px}; expected a number from {MIN_PITCH} upwards.")
    if not 0.1 <= mpp <= 2:
        raise DataError(f"mpp is {mpp}; expected 0.1 to 2 micrometres per pixel.")


def _check_image(names: list[str], layout: _Layout, *, image: bool, image_path: str | Path | None) -> Path | None:
    """The folder to write to, if any."""
    if image_path is None:
        megapixels = len(names) * layout.height * layout.width / 1e6
        if image and megapixels > MAX_MEGAPIXELS:
            raise DataError(
                f"the full images have {megapixels:,.0f} megapixels, more than the {MAX_MEGAPIXELS} that are kept in "
                "memory; pass image_path= to write them to disk, a smaller pitch_px=, or image=False."
            )
        return None
    if not image:
        raise DataError("image_path is given with image=False; leave one of them out.")
    folder = Path(image_path).expanduser().absolute()
    for name in names:
        if (folder / f"{name}.tif").exists():
            raise DataError(f"{folder / name}.tif already exists; delete it or pass another image_path.")
    return folder


def _layout(n_spots: int, grid: str, pitch: float) -> _Layout:
    """Spots row by row, about as many rows as make a square; the last row may be short."""
    step = np.sqrt(0.75) if grid == "hex" else 1.0
    n_columns = int(np.ceil(np.sqrt(n_spots * step)))
    row, column = np.divmod(np.arange(n_spots), n_columns)
    odd = row % 2 if grid == "hex" else np.zeros_like(row)
    x, y = (column + 0.5 * odd + MARGIN) * pitch, (row * step + MARGIN) * pitch
    height, width = (int(np.ceil(axis.max() + MARGIN * pitch)) for axis in (y, x))
    return _Layout(row, 2 * column + odd if grid == "hex" else column, x, y, height, width)


def _programme(regions: list[str], n_genes: int, rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """Genes with the region they mark, and the expected share of each in a region's counts (regions x genes)."""
    by_rank = zip(*(MARKERS[region].split() for region in regions), strict=True)
    named = {symbol: i for symbols in by_rank for i, symbol in enumerate(symbols)}
    named |= dict.fromkeys(HOUSEKEEPING.split(), len(regions))
    n_more = max(0, n_genes - len(named))
    marker = rng.random(n_more) < MARKER_SHARE
    owners = np.where(marker, rng.integers(len(regions), size=n_more), len(regions))
    symbols = [*named, *(f"GENE{i:04d}" for i in range(1, n_more + 1))][:n_genes]
    marks = np.array([*named.values(), *owners])[:n_genes]
    fold = np.where(marks == np.arange(len(regions))[:, None], MARKER_FOLD, 1.0)
    profile = fold * rng.lognormal(size=n_genes)
    var = pd.DataFrame({"marker_of": pd.Categorical.from_codes(marks, [*regions, "none"])}, index=symbols)
    return var, profile / profile.sum(1, keepdims=True)


def _slide(
    name: str,
    section: Section,
    layout: _Layout,
    profile: np.ndarray,
    counts_per_gene: float,
    rng: np.random.Generator,
) -> tuple[sparse.csr_matrix, pd.DataFrame]:
    """Counts and ``obs`` of a slide."""
    region = section.weights(layout.x, layout.y).argmax(-1)
    cellularity = section.cellularity(layout.x, layout.y)
    usual = np.array([look.cellularity for look in section.looks])[region]
    depth = counts_per_gene * profile.shape[1] * usual * cellularity * rng.lognormal(sigma=0.25, size=len(region))
    obs = pd.DataFrame(index=[f"{name}_{x}x{y}" for x, y in zip(layout.column, layout.row, strict=True)])
    obs[keys.LIBRARY] = pd.Categorical.from_codes(np.zeros(len(obs), np.int8), [name])
    obs["array_row"], obs["array_col"] = layout.row, layout.column
    obs["region_truth"] = pd.Categorical.from_codes(region, [look.name for look in section.looks])
    obs["cellularity_truth"] = cellularity
    return _counts(profile, region, depth, rng), obs


def _counts(profile: np.ndarray, region: np.ndarray, depth: np.ndarray, rng: np.random.Generator) -> sparse.csr_matrix:
    """Negative binomial counts of spots x genes, ``CHUNK`` at a time; the size of a chunk does not change them."""
    n_spots, n_genes = len(region), profile.shape[1]
    step = max(1, CHUNK // n_genes)
    values, columns, lengths = [], [], [np.zeros(1, np.int64)]
    for start in tqdm(range(0, n_spots, step), "counts", delay=2, disable=not settings.progress):
        chunk = slice(start, start + step)
        mean = profile[region[chunk]] * depth[chunk, None]
        dense = rng.negative_binomial(SHAPE, SHAPE / (SHAPE + mean))
        spot, gene = np.nonzero(dense)
        values.append(dense[spot, gene].astype(np.float32))
        columns.append(gene.astype(np.int32))
        lengths.append(np.bincount(spot, minlength=len(dense)))
    data = np.concatenate(values)
    values.clear()
    return sparse.csr_matrix((data, np.concatenate(columns), np.cumsum(np.concatenate(lengths))), (n_spots, n_genes))


def _join(slides: tuple[pd.DataFrame, ...]) -> pd.DataFrame:
    obs = pd.concat(slides)
    codes = np.repeat(np.arange(len(slides)), len(slides[0]))
    obs[keys.LIBRARY] = pd.Categorical.from_codes(codes, [slide[keys.LIBRARY].cat.categories[0] for slide in slides])
    obs.insert(1, keys.PATIENT, pd.Categorical.from_codes(codes, [f"P{i}" for i in range(len(slides))]))
    return obs


def _spatial(sections: dict[str, Section], pitch: float, *, image: bool, folder: Path | None) -> dict[str, Any]:
    """``uns["spatial"]``; images go to the folder, if there is one, only once all of them are written."""
    spatial = {
        name: {
            "images": {},
            "scalefactors": {"spot_diameter_fullres": SPOT * pitch},
            "metadata": {"mpp": section.mpp},
        }
        for name, section in sections.items()
    }
    if image and folder is None:
        for name, section in sections.items():
            _attach(spatial[name], section.image(), 1.0)
    elif folder is not None:
        try:
            _write(sections, spatial, folder)
        except OSError as error:
            raise ImageError(f"could not write images to image_path {folder}: {error}.") from error
    return spatial


def _write(sections: dict[str, Section], spatial: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tissue-", dir=folder) as scratch:
        for name, section in sections.items():
            _attach(spatial[name], *section.write(Path(scratch, name), THUMBNAIL_PX))
            spatial[name]["metadata"]["source_image_path"] = str(folder / f"{name}.tif")
        for name in sections:
            Path(scratch, name).rename(folder / f"{name}.tif")


def _attach(entry: dict[str, Any], hires: np.ndarray, scale: float) -> None:
    entry["images"]["hires"] = hires
    entry["scalefactors"]["tissue_hires_scalef"] = scale
