"""Legacy Spatial Transcriptomics: count table, spot file and image -> one slide."""

from __future__ import annotations

import csv
import gzip
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from scipy import sparse
from scipy.spatial import cKDTree

from ..errors import DataError
from ..images import pixel_size
from ..settings import logger
from ._build import PixelSize, one_slide
from ._reading import reading

SPOT_UM = 100.0
SQUARE_PITCH_UM = 200.0
ARRAY_SIDE = 100
"""No array has this many columns or rows: spot ids below are places on the array, not pixels."""
ID_TOLERANCE = 0.01
"""In steps of the array: ids of adjusted tables are rounded to two decimals."""
FEW_ABSENT = 0.05
"""Part of the table's spots that the spot file may lack without a warning in the log."""
SPOT_ID = re.compile(r"X?(\d+(?:\.\d+)?)[x_](\d+(?:\.\d+)?)")
"""``10x21``; ``12.97x8.02`` in adjusted tables, ``10_21``, and ``X10x21``, which R makes of column names."""
SPECIES = {"ENSG": "Homo sapiens", "ENSMUSG": "Mus musculus"}
ENSEMBL_ID = re.compile(r"(ENS[A-Z]*G)\d{11}(?:\.\d+)?")


def read_st(
    counts: str | os.PathLike[str],
    spots: str | os.PathLike[str] | None = None,
    *,
    image: str | os.PathLike[str] | None = None,
    mpp: float | None = None,
    pitch_um: float | None = None,
    library_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> AnnData:
    r"""A slide of legacy Spatial Transcriptomics: a count table, a spot file and the H&E image.

    The table is read a line at a time and never held dense.

    Parameters
    ----------
    counts
        Tab- or comma-separated table, plain or gzipped, of spots x genes or genes x spots: the spot ids (``10x21``;
        ``12.97x8.02`` in adjusted tables; ``10_21``) tell which.
    spots
        Table with a header and the columns ``x``, ``y`` (place on the array), ``pixel_x``, ``pixel_y`` (column and row
        of the image), and where known ``new_x``, ``new_y`` (measured place on the array) and ``selected`` (1: on
        tissue; other spots are left out). Without one, the ids have to be pixels.
    image
        Full-resolution image.
    mpp
        Micrometres per pixel; by default from the pitch and the places of the spots in the image.
    pitch_um
        Micrometres between the centres of neighbouring spots. By default 200 where the spots stand in a square lattice,
        as on every array of 33 x 35 spots. Spots in alternating rows ("2k" arrays) are said to lie 150 or 141 um apart;
        there the pixel size stays unknown unless ``pitch_um``, ``mpp`` or the header of the image tells.
    library_id
        Name of the slide, by default that of the count table.
    metadata
        Further entries of ``metadata``, such as ``organ`` and ``species``; the latter is by default read off Ensembl
        ids (human and mouse).

    Returns
    -------
    Spots x genes, spots in the order of the table, with

    ``X``
        raw counts, CSR float32.
    ``var_names``
        gene symbols or Ensembl ids as in the table, these also in ``var["gene_ids"]``. A name that occurs twice is
        made unique (``GENE-1``).
    ``obs``
        ``library_id``; ``array_row`` and ``array_col``, int, where there is a spot file; ``in_tissue`` (1) where it
        has ``selected``.
    ``obsm["spatial"]``
        float64, spot centres (x, y) in pixels of the full-resolution image.
    ``uns["spatial"][library_id]``
        ``images``, ``scalefactors`` and ``metadata`` (``mpp``, ``mpp_source``, ``source_image_path``, ``species``,
        ...); ``spot_diameter_fullres`` (100 um) where the pixel size is known.

    Raises
    ------
    DataError
        A file is absent, truncated, empty or no such table; no spot of the table is in the spot file; spot ids without
        a spot file are places on the array; spots lie outside the image; ``mpp`` or ``pitch_um`` is not positive.
    ImageError
        The image is absent or unreadable.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import hibiost as hb
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "S1.tsv").write_text("\tERBB2\tACTB\n1x1\t3\t0\n2x1\t0\t5\n1x2\t1\t1\n")
    >>> _ = (folder / "spots.csv").write_text("x,y,pixel_x,pixel_y\n1,1,50,60\n2,1,150,60\n1,2,50,160\n")
    >>> adata = hb.io.read_st(folder / "S1.tsv", folder / "spots.csv")
    >>> round(adata.uns["spatial"]["S1"]["metadata"]["mpp"], 3)
    2.0
    """
    for argument, value in (("mpp", mpp), ("pitch_um", pitch_um)):
        if value is not None and not 0 < value < np.inf:
            raise DataError(f"{argument} is {value}; expected micrometres, a positive number.")
    name = Path(counts).name.split(".")[0] if library_id is None else library_id
    table = read_table(counts)
    places = None if spots is None else _read_spots(Path(spots))
    table = _spots_by_genes(table, places, counts, spots)
    if places is None:
        kept, obs, xy, known = _ids_as_pixels(table.rows, counts)
    else:
        kept, obs, xy = _located(table.rows, places, counts, spots)
        known = _pixel_size(places, pitch_um, image)
    if mpp is not None:
        known = PixelSize(mpp, "argument")
    return one_slide(
        table.values[kept],
        obs=obs,
        var=_genes(table.columns, name),
        xy=xy,
        library_id=name,
        image=image,
        scalefactors={} if known is None else {"spot_diameter_fullres": SPOT_UM / known.mpp},
        pixel_size=known,
        metadata={"species": _species(table.columns), "st_technology": "Spatial Transcriptomics", **(metadata or {})},
    )


class Table(NamedTuple):
    """Rows, columns and values of a count table."""

    rows: list[str]
    columns: list[str]
    values: sparse.csr_matrix


def read_table(path: str | os.PathLike[str]) -> Table:
    """A table of counts with a header and a first column of names, tab- or comma-separated, plain or gzipped.

    Read a line at a time: memory is that of the counts above zero.

    Raises
    ------
    DataError
        The file is absent, truncated, empty, or no table of counts.
    """
    rows: list[str] = []
    values: list[np.ndarray] = []
    columns: list[np.ndarray] = []
    with _lines(path) as lines:
        header, separator = _header(lines)
        for number, line in enumerate(lines, start=2):
            if not line.strip():
                continue
            name, _, numbers = line.partition(separator)
            row = _numbers(numbers, separator, f"{path}, line {number} ({name!r})")
            if not rows:
                header = header[len(header) - len(row) :] if len(header) - len(row) == 1 else header
            if len(row) != len(header):
                raise DataError(
                    f"{path}, line {number} ({name!r}): {len(row)} numbers, expected {len(header)}, one for each name "
                    "of the header; is the file truncated?"
                )
            hits = np.flatnonzero(row)
            rows.append(name.strip('"'))
            values.append(row[hits].astype(np.float32))
            columns.append(hits.astype(np.int32))
    if not rows:
        raise DataError(f"{path} has a header and no rows; expected a table of counts.")
    indptr = np.cumsum([0, *map(len, columns)])
    shape = (len(rows), len(header))
    return Table(rows, header, sparse.csr_matrix((np.concatenate(values), np.concatenate(columns), indptr), shape))


@contextmanager
def _lines(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """The lines of a text file, plain or gzipped."""
    with reading(Path(path), "a table of text with a header (.tsv, .csv, or gzipped)"), open(path, "rb") as raw:
        zipped = raw.peek(2)[:2] == b"\x1f\x8b"
        with gzip.open(raw) if zipped else raw as data, io.TextIOWrapper(data, encoding="utf-8-sig") as lines:
            yield lines


def _header(lines: TextIO) -> tuple[list[str], str]:
    """Names and separator of the first line."""
    line = lines.readline()
    if not line.strip() or line.lstrip().startswith("<"):
        raise ValueError("no header")
    separator = "\t" if "\t" in line else ","
    return next(csv.reader([line.rstrip("\r\n")], delimiter=separator)), separator


def _numbers(text: str, separator: str, where: str) -> np.ndarray:
    """Counts of a line; whole numbers are read ten times faster than counts written as ``3.0``."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # numpy below 2.3 stops there with a warning
        try:
            row = np.fromstring(text, dtype=np.int64, sep=separator)
        except (ValueError, DeprecationWarning):
            try:
                row = np.fromstring(text, dtype=np.float64, sep=separator)
            except (ValueError, DeprecationWarning) as error:
                raise DataError(f"{where}: something else than numbers, such as {text[:20].strip()!r}...") from error
    if not (row >= 0).all():
        raise DataError(f"{where}: holds {row[~(row >= 0)][0]:g}; expected counts.")
    return row


def _read_spots(path: Path) -> pd.DataFrame:
    """The numbers of a spot file."""
    with _lines(path) as lines:
        columns, separator = _header(lines)
        table = pd.read_csv(lines, sep=separator, header=None, names=columns, skip_blank_lines=True, index_col=False)
    absent = [column for column in ("x", "y", "pixel_x", "pixel_y") if column not in table]
    if absent:
        swapped = " Is it the count table? The spot file comes second." if len(columns) > 20 else ""
        raise DataError(
            f"{path} has no column {', '.join(absent)} (of {len(columns)}: {columns[:8]}); expected x, y (place on the "
            f"array), pixel_x, pixel_y (pixels of the image), and where known new_x, new_y, selected.{swapped}"
        )
    wanted = ["x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"]
    spots = table[[column for column in wanted if column in table]].apply(pd.to_numeric, errors="coerce")
    if len(spots) == 0 or spots.isna().to_numpy().any():
        bad = spots.index[spots.isna().any(axis=1)]
        found = f"line {bad[0] + 2} holds something else than numbers" if len(bad) else "no rows"
        raise DataError(f"{path}: {found}; expected numbers in {list(spots)}. Is the file truncated?")
    return spots


def _spots_by_genes(
    table: Table, places: pd.DataFrame | None, counts: str | os.PathLike[str], spots: str | os.PathLike[str] | None
) -> Table:
    """The table with spots in its rows; which they are is told by their ids."""
    rows, columns = _n_spots(table.rows, places), _n_spots(table.columns, places)
    if max(rows, columns) == 0:
        expected = "such as 10x21 or 12.97x8.02"
        if places is not None:
            x, y = places.iloc[0][["x", "y"]]
            expected = f"of a spot in {spots}, such as {x:g}x{y:g}"
        raise DataError(
            f"{counts}: neither its rows ({_some(table.rows)}) nor its columns ({_some(table.columns)}) are named by "
            f"ids {expected}; do the files belong together?"
        )
    if rows >= columns:
        return table
    logger.info("%s holds genes x spots; turned round.", counts)
    return Table(table.columns, table.rows, table.values.T.tocsr())


def _n_spots(names: Sequence[str], places: pd.DataFrame | None) -> int:
    found = np.isfinite(_parsed(names)).all(axis=1) if places is None else _match(names, places) >= 0
    return int(found.sum())


def _parsed(names: Sequence[str]) -> np.ndarray:
    """The two numbers of each spot id, NaN for what is none."""
    matches = (SPOT_ID.fullmatch(name) for name in names)
    numbers = [match.groups() if match else (np.nan, np.nan) for match in matches]
    return np.array(numbers, dtype=np.float64).reshape(-1, 2)


def _match(names: Sequence[str], places: pd.DataFrame) -> np.ndarray:
    """Row of each name's spot in the spot file, -1 where there is none; the ids are those of the best fitting pair."""
    ids = _parsed(names)
    best = np.full(len(ids), -1)
    for pair in (["x", "y"], ["new_x", "new_y"], ["pixel_x", "pixel_y"]):
        if pair[0] in places:
            distance, row = cKDTree(places[pair]).query(np.nan_to_num(ids, nan=-1e9))
            rows = np.where(distance <= ID_TOLERANCE, row, -1)
            best = rows if (rows >= 0).sum() > (best >= 0).sum() else best
    return best


def _located(
    names: list[str], places: pd.DataFrame, counts: str | os.PathLike[str], spots: str | os.PathLike[str] | None
) -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    """Rows of the table that have a spot on tissue, their ``obs`` and their pixels."""
    rows = _match(names, places)
    found = rows >= 0
    if not found.all():
        logger.log(
            logging.WARNING if found.mean() < 1 - FEW_ABSENT else logging.INFO,
            "%s: %d of %d spots are not in %s and left out, such as %s.",
            *(counts, (~found).sum(), len(names), spots, names[int(np.flatnonzero(~found)[0])]),
        )
    if len(np.unique(rows[found])) < found.sum():
        raise DataError(f"{counts}: several spot ids stand for the same spot of {spots}; expected each spot once.")
    if (empty := len(places) - found.sum()) > 0:
        logger.info("%s: %d of %d spots have no counts.", spots, empty, len(places))
    if "selected" in places:
        on_tissue = found & (places["selected"].to_numpy()[rows] == 1)
        logger.info("%s: %d of %d spots are on tissue (selected).", spots, on_tissue.sum(), found.sum())
        if not on_tissue.any():
            raise DataError(f"{spots}: selected is 1 for none of the {found.sum()} spots with counts.")
        found = on_tissue
    kept = np.flatnonzero(found)
    chosen = places.iloc[rows[kept]]
    grid = chosen[["y", "x"]].round().astype(int).to_numpy()
    obs = pd.DataFrame(grid, index=pd.Index([names[i] for i in kept]), columns=["array_row", "array_col"])
    if "selected" in places:
        obs.insert(0, "in_tissue", 1)
    return kept, obs, chosen[["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64)


def _ids_as_pixels(
    names: list[str], counts: str | os.PathLike[str]
) -> tuple[np.ndarray, pd.DataFrame, np.ndarray, None]:
    """All rows, at the pixels that their ids name."""
    xy = _parsed(names)
    if not np.isfinite(xy).all():
        bad = names[int(np.flatnonzero(~np.isfinite(xy).all(axis=1))[0])]
        raise DataError(f"{counts}: {bad!r} is no spot id such as 10x21; give the spot file: read_st(counts, spots).")
    if xy.max() < ARRAY_SIDE:
        raise DataError(
            f"{counts}: the spot ids, such as {names[0]!r}, are places on the array, and where these lie in the image "
            "is not known; give the spot file (x, y, pixel_x, pixel_y): read_st(counts, spots)."
        )
    return np.arange(len(names)), pd.DataFrame(index=pd.Index(names)), xy, None


def _pixel_size(places: pd.DataFrame, pitch_um: float | None, image: str | os.PathLike[str] | None) -> PixelSize | None:
    """From the pitch; in alternating rows it has to be given, or the header of the image tells."""
    steps, square = _steps(places)
    if steps is not None and (square or pitch_um is not None):
        pitch = SQUARE_PITCH_UM if pitch_um is None else pitch_um
        source = "of square arrays" if pitch_um is None else "given as pitch_um"
        mpp = float(np.mean(pitch / steps))
        return PixelSize(mpp, f"pitch of {pitch:g} um ({source}) over {np.mean(steps):.2f} px between spots")
    if image is not None and (found := pixel_size(image)) is not None:
        return PixelSize(*found)
    logger.info("the distance of neighbouring spots in micrometres is not known: pass pitch_um= (150 in 2k arrays).")
    return None


def _steps(places: pd.DataFrame) -> tuple[np.ndarray | None, bool]:
    """Pixels from a spot to its two kinds of nearest neighbours, fitted over all spots; whether the lattice is square.

    In alternating rows, x + y is even for all spots (or odd for all) and neighbours are diagonal.
    """
    square = (places["x"] + places["y"]).round().mod(2).nunique() > 1
    lattice = places[["new_x", "new_y"] if "new_x" in places else ["x", "y"]].to_numpy(dtype=np.float64)
    lattice = np.column_stack([lattice, np.ones(len(lattice))])
    if np.linalg.matrix_rank(lattice) < 3:
        return None, square
    fit, *_ = np.linalg.lstsq(lattice, places[["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64), rcond=None)
    neighbours = np.array([[1, 0], [0, 1]] if square else [[1, 1], [1, -1]])
    return np.linalg.norm(neighbours @ fit[:2], axis=1), square


def _genes(names: list[str], slide: str) -> pd.DataFrame:
    """``var``: unique names, and Ensembl ids as ``gene_ids``."""
    index = pd.Index(names)
    if twice := int(index.duplicated().sum()):
        logger.info("slide %r: %d gene names occur again and get a suffix such as -1.", slide, twice)
    var = pd.DataFrame(index=make_index_unique(index))
    if _prefixes(names):
        var["gene_ids"] = names
    return var


def _prefixes(names: list[str]) -> set[str]:
    return {match[1] for match in map(ENSEMBL_ID.fullmatch, names) if match}


def _species(names: list[str]) -> str | None:
    """Species of the Ensembl ids, where there is exactly one that is known."""
    found = _prefixes(names)
    return SPECIES.get(found.pop()) if len(found) == 1 else None


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + ", ..."
