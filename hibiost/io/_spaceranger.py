"""What Space Ranger lays beside its counts: positions, scale factors and images; and the pixel size behind them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from ..errors import DataError, ImageError
from ..images import open_image, pixel_size
from ..settings import logger
from ._build import PixelSize
from ._reading import reading
from ._tenx import CountsFile

COUNTS = (
    "filtered_feature_bc_matrix.h5",
    "filtered_feature_bc_matrix",
    "raw_feature_bc_matrix.h5",
    "raw_feature_bc_matrix",
    "raw_probe_bc_matrix.h5",
)
"""In the order of preference; without ``.h5``, a folder with ``matrix.mtx``."""
POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
SQUARE = re.compile(r"square_(\d+)um")
"""Folder of the bins of a size."""
ARRAY = ["in_tissue", "array_row", "array_col"]
PIXELS = ["pxl_col_in_fullres", "pxl_row_in_fullres"]
HEADERLESS = ["barcode", *ARRAY, "pxl_row_in_fullres", "pxl_col_in_fullres"]
"""The columns of a file without header, in Space Ranger's order: the row comes before the column."""
SPOT_UM = (45.0, 80.0)
"""Nominally 55 um; versions of Space Ranger write the diameter of 55 to 70."""
LARGEST_FIT = 50_000

Missing = Literal["raise", "drop"]


def subfolder(path: str | os.PathLike[str], name: str) -> Path:
    """The folder ``name`` inside ``path`` or ``path/outs``."""
    folder = Path(path).expanduser()
    if folder.is_file():
        raise DataError(f"{folder} is a file; expected Space Ranger's outs folder: pass {folder.parent}.")
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; expected Space Ranger's outs folder: check the path.")
    for found in (folder / name, folder / "outs" / name):
        if found.is_dir():
            return found
    packed = [item.name for item in folder.glob("*.tar.gz") if name in item.name]
    mend = f"unpack {packed[0]} there first" if packed else "pass the folder that holds it"
    raise DataError(f"{folder} holds {_listed(folder)}, but no folder {name!r}; {mend}.")


def counts_path(folder: Path, counts_file: str | os.PathLike[str] | None = None) -> Path:
    """The count matrix of a folder: the one named, else the first of :data:`COUNTS`, perhaps with a sample's prefix."""
    if counts_file is not None:
        path = folder / Path(counts_file).expanduser()
        if not path.exists():
            raise DataError(f"there is no {path}; {folder} holds {_listed(folder)}: name one of them in counts_file=.")
        return path
    for name in COUNTS:
        if (folder / name).exists():
            return folder / name
    for name in COUNTS:
        prefixed = sorted(folder.glob(f"*_{name}"))
        if len(prefixed) == 1:
            return prefixed[0]
        if prefixed:
            found = [path.name for path in prefixed]
            raise DataError(f"{folder} holds {len(found)} count matrices, {found}; choose with counts_file=.")
    raise DataError(f"{folder} holds {_listed(folder)}, but no counts; expected {COUNTS[0]}: name it in counts_file=.")


def _listed(folder: Path) -> list[str]:
    names = sorted(os.listdir(folder))
    return names if len(names) <= 12 else [*names[:12], "..."]


class Positions(NamedTuple):
    """Spots of the slide, in tissue or not: barcodes, integer columns ``ARRAY``, and pixels (x, y)."""

    path: Path
    barcodes: pa.Array
    array: pd.DataFrame
    xy: np.ndarray


def read_positions(spatial: Path) -> Positions:
    """Positions as any version of Space Ranger writes them: headerless, with header, or parquet."""
    found = [spatial / name for name in POSITIONS if (spatial / name).is_file()]
    if not found:
        raise DataError(f"{spatial} holds {_listed(spatial)}; expected one of {', '.join(POSITIONS)}.")
    path = found[0]
    with reading(path, "spot positions"):
        table = pq.read_table(path) if path.suffix == ".parquet" else _read_csv(path)
        missing = [name for name in HEADERLESS if name not in table.column_names]
        if missing:
            raise ValueError(f"of its columns {table.column_names}, {missing} are missing")
        barcodes = table["barcode"].cast(pa.string()).combine_chunks()
        array = pd.DataFrame({name: _numbers(table[name], "int64") for name in ARRAY})
        xy = np.column_stack([_numbers(table[name], "float64") for name in PIXELS])
    if not len(barcodes):
        raise DataError(f"{path} holds no spots; expected one row for each: fetch or export it anew.")
    if pc.count_distinct(barcodes).as_py() != len(barcodes):
        raise DataError(f"{path} names some barcodes more than once; expected each once: export it anew.")
    return Positions(path, barcodes, array, xy)


def _numbers(column: pa.ChunkedArray, dtype: str) -> np.ndarray:
    numbers = column.cast(pa.float64()).to_numpy()
    if not np.isfinite(numbers).all():
        raise ValueError(f"{int((~np.isfinite(numbers)).sum())} rows are not complete")
    return numbers.astype(dtype)


def _read_csv(path: Path) -> pa.Table:
    with open(path, encoding="utf-8") as file:
        header = file.readline().split(",")[0].strip().strip('"') == "barcode"
    return csv.read_csv(path, read_options=csv.ReadOptions(column_names=None if header else HEADERLESS))


def place(counts: CountsFile, positions: Positions, missing: Missing) -> np.ndarray:
    """Row of the positions for each barcode of the counts; -1 for one that has none and is to be dropped."""
    rows = pc.fill_null(pc.index_in(counts.barcodes, value_set=positions.barcodes), -1).to_numpy()
    absent = np.flatnonzero(rows < 0)
    if len(absent):
        examples = counts.barcodes.take(pa.array(absent[:3])).to_pylist()
        told = f"{len(absent)} of {len(rows)} barcodes of {counts.path}, such as {examples},"
        if missing != "drop" or len(absent) == len(rows):
            known = positions.barcodes[:3].to_pylist()
            raise DataError(
                f"{told} have no position in {positions.path} (there: {known}); expected the files of one section: "
                "check that they belong together, or leave these spots out with missing='drop'."
            )
        logger.warning("%s have no position in %s and are left out.", told, positions.path.name)
    unread = len(positions.barcodes) - (len(rows) - len(absent))
    if unread:
        logger.info("%s: %d positions have no counts.", positions.path.name, unread)
    return rows


def names(counts: CountsFile, kept: np.ndarray) -> pd.Index:
    """Barcodes of some rows of the counts."""
    barcodes = pd.Index(counts.barcodes.take(pa.array(kept)).to_numpy(zero_copy_only=False))
    pa.default_memory_pool().release_unused()
    return barcodes


def check_tissue(in_tissue: np.ndarray, path: Path) -> None:
    """Say so where a filtered matrix holds spots off tissue."""
    off = int((in_tissue == 0).sum())
    if off and "filtered" in path.name:
        logger.warning(
            "%s: %d of %d spots lie off tissue by the positions, though the counts are filtered; they are kept, "
            "obs['in_tissue'] tells them.",
            path.name,
            off,
            len(in_tissue),
        )


def read_scalefactors(spatial: Path) -> dict[str, float]:
    """``scalefactors_json.json``."""
    path = spatial / "scalefactors_json.json"
    with reading(path, "scale factors"):
        factors = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(factors, dict) or "spot_diameter_fullres" not in factors:
            raise ValueError("expected an object with 'spot_diameter_fullres'")
        factors = {name: float(value) for name, value in factors.items() if isinstance(value, int | float)}
        if wrong := [name for name, value in factors.items() if not 0 < value < np.inf]:
            raise ValueError(f"{wrong[0]!r} is {factors[wrong[0]]}, expected a positive number")
    return factors


def read_images(spatial: Path) -> dict[str, np.ndarray]:
    """The reduced images there are, uint8 RGB."""
    images = {}
    for key in ("hires", "lowres"):
        path = spatial / f"tissue_{key}_image.png"
        if path.is_file():
            with open_image(path) as source:
                images[key] = source.read(0, 0, source.width, source.height)
    return images


def check_image(
    image: str | os.PathLike[str] | None,
    images: Mapping[str, np.ndarray],
    scalefactors: Mapping[str, float],
    xy: np.ndarray,
    spatial: Path,
) -> None:
    """Refuse a full-resolution image of another size than Space Ranger's, and say what stands in for a missing one."""
    hires, scale = images.get("hires"), scalefactors.get("tissue_hires_scalef")
    if hires is not None and scale:
        size = np.array(hires.shape[1::-1])
        if image is not None:
            _check_size(image, size, scale)
        else:
            outside = int(((xy * scale < 0) | (xy * scale >= size)).any(axis=1).sum())
            if outside:
                logger.warning("%s: %d of %d spots lie outside the image.", spatial, outside, len(xy))
    if image is None:
        _tell_image(images, spatial)


def _check_size(image: str | os.PathLike[str], hires: np.ndarray, scale: float) -> None:
    with open_image(image) as source:
        size = np.array([source.width, source.height])
    if (abs(size * scale - hires) > np.maximum(2, 0.01 * hires)).any():
        width, height = np.rint(hires / scale).astype(int)
        raise ImageError(
            f"{image} is {size[0]} x {size[1]} pixels, but positions and scale factors are those of an image of about "
            f"{width} x {height}; expected the full-resolution image that Space Ranger was given with --image, not a "
            "reduced or another one (such as the CytAssist's)."
        )


def _tell_image(images: Mapping[str, np.ndarray], spatial: Path) -> None:
    if not images:
        logger.warning("%s: no image; pass image= with the full-resolution microscope image.", spatial)
        return
    key, pixels = next(iter(images.items()))
    sample = pixels[:: max(1, len(pixels) // 500), :: max(1, pixels.shape[1] // 500)].astype(int)
    if np.ptp(sample) == 0:
        what = "is blank"
    elif np.ptp(sample, axis=2).mean() < 1:
        what = "is grey, perhaps the CytAssist's and not H&E"
    elif key == "hires":
        what = "is read for patches"
    else:
        what = "serves figures only"
    logger.warning("%s: no full-resolution image: pass image=. The %s image %s.", spatial, key, what)


class Lattice(NamedTuple):
    """Pixels of the slide's array: ``(array_col, array_row, 1) @ affine`` is (x, y).

    ``regular`` says whether the steps have the lengths and the right angle that the slide has.
    """

    affine: np.ndarray
    mpp: float
    regular: bool

    def at(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(x, y) of places of the array."""
        return np.column_stack([columns, rows, np.ones(len(rows))]) @ self.affine


def fit_lattice(positions: Positions, steps_um: Sequence[float]) -> Lattice | None:
    """Least squares over the spots, those far off left out; ``None`` where they do not span the plane.

    Parameters
    ----------
    positions
        All spots of the slide.
    steps_um
        Micrometres from one ``array_col`` to the next, and from one ``array_row`` to the next.
    """
    every = slice(None, None, -(-len(positions.xy) // LARGEST_FIT))
    array = positions.array[every]
    design = np.column_stack([array["array_col"], array["array_row"], np.ones(len(array))]).astype(float)
    xy, used = positions.xy[every], np.isfinite(positions.xy[every]).all(axis=1)
    affine, off = np.zeros((3, 2)), np.zeros(len(xy))
    for _ in range(5):
        if np.linalg.matrix_rank(design[used]) < 3:
            return None
        affine = np.linalg.lstsq(design[used], xy[used], rcond=None)[0]
        off = np.linalg.norm(xy - design @ affine, axis=1)
        used = off <= 4.5 * np.median(off[used]) + 1e-6
    steps = np.linalg.norm(affine[:2], axis=1)
    area = abs(np.linalg.det(affine[:2]))
    if not steps.all() or not area:
        return None
    ratio = (steps[1] / steps[0]) / (steps_um[1] / steps_um[0])
    straight = area / steps.prod() > 0.99 and np.median(off) < 0.2 * steps.min() and used.mean() > 0.5
    regular = bool(straight and 0.95 < ratio < 1.05)
    return Lattice(affine, float(np.sqrt(np.prod(steps_um) / area)), regular)


def resolve_pixel_size(
    mpp: float | None,
    scalefactors: Mapping[str, float],
    lattice: Lattice | None,
    *,
    lattice_name: str,
    image: str | os.PathLike[str] | None,
    spatial: Path,
) -> PixelSize | None:
    """The argument, Space Ranger's own, the spot lattice's or the image header's; they are held against each other."""
    given = scalefactors.get("microns_per_pixel")
    regular = lattice.mpp if lattice is not None and lattice.regular else None
    if lattice is None or not lattice.regular:
        logger.warning("%s: the spots do not lie on a regular lattice (%s).", spatial, lattice_name)
    if mpp is not None:
        known = PixelSize(float(mpp), "argument")
    elif given:
        known = PixelSize(given, "scalefactors: microns_per_pixel")
    elif regular:
        known = PixelSize(regular, f"lattice: {lattice_name}")
    else:
        header = None if image is None else pixel_size(image)
        if header is None:
            logger.warning("%s: the pixel size cannot be told from the files; pass mpp=.", spatial)
            return None
        known = PixelSize(*header)
    if regular and abs(known.mpp / regular - 1) > 0.05:
        logger.warning(
            "%s: %.4g um per pixel (%s), but the lattice (%s) says %.4g; check the files, or pass mpp=.",
            spatial,
            known.mpp,
            known.source,
            lattice_name,
            regular,
        )
    return known


def check_spot_diameter(size: PixelSize | None, scalefactors: Mapping[str, float], spatial: Path) -> None:
    """Say so where the spots of the scale factors do not have the size of Visium's."""
    if size is not None:
        diameter = scalefactors["spot_diameter_fullres"] * size.mpp
        if not SPOT_UM[0] <= diameter <= SPOT_UM[1]:
            logger.warning(
                "%s: spot_diameter_fullres is %.3g um at %.4g um per pixel (%s); expected about 55 to 70.",
                spatial,
                diameter,
                size.mpp,
                size.source,
            )


def library_name(counts: CountsFile, folder: Path) -> str:
    """The sample's name in the counts, else that of the folder."""
    named = folder.parent if folder.name == "outs" else folder
    return counts.attributes.get("library_ids", named.resolve().name).replace("/", "_") or "slide"


def metadata(counts: CountsFile, technology: str) -> dict[str, Any]:
    """Species, genome, chemistry and software, as far as the counts tell; in the words of HEST-1k."""
    return {
        "st_technology": technology,
        "species": _species(counts),
        "genome": counts.genome,
        "chemistry": counts.attributes.get("chemistry_description"),
        "software_version": counts.attributes.get("software_version"),
    }


def _species(counts: CountsFile) -> str | None:
    ids = counts.var["gene_ids"].str
    prefixes = {"Homo sapiens": "ENSG0", "Mus musculus": "ENSMUSG"}
    found = {species for species, prefix in prefixes.items() if ids.startswith(prefix).any()}
    if len(found) > 1:
        raise DataError(f"{counts.path} mixes genes of {' and '.join(sorted(found))}; expected one species.")
    genome = (counts.genome or "").casefold()
    if not found and genome.startswith(("grch", "hg")):
        return "Homo sapiens"
    if not found and genome.startswith(("grcm", "mm")):
        return "Mus musculus"
    return next(iter(found), None)
