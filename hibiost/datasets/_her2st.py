"""HER2-positive breast tumours (Andersson et al. 2021): files of the registry -> one AnnData."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import cKDTree

from .. import keys
from ..images import open_image, thumbnail
from ..io import concat
from ..io._st import read_table
from ..settings import logger
from ._registry import fetch, registry, section_names

DATASET = "her2st"
SECTIONS = tuple(f"{patient}{i}" for patient in "ABCDEFGH" for i in range(1, 7 if patient in "ABCD" else 4))
DEFAULT = ("C2", "C3", "C4", "C5", "C6")
PITCH_UM, SPOT_UM = 200.0, 100.0
METADATA = {
    "species": "Homo sapiens",
    "organ": "Breast",
    "disease_state": "Cancer",
    "st_technology": "Spatial Transcriptomics",
}
"""In the words of HEST-1k's metadata."""
LABEL_TOLERANCE = 0.02
ALIGNED = "ABCD"
"""Patients whose sections were seen to lie right over the labelled first one."""
REDUCED = {"A1": 2000 / 6954, "A2": 2000 / 6966}
"""Width of the obtainable image over the width of the frame its coordinates refer to; A2's image lies in A1's frame."""


def her2st(sections: str | Sequence[str] | None = None, *, image: bool = True) -> AnnData:
    """HER2-positive breast tumours measured with Spatial Transcriptomics: 36 sections of 8 patients.

    Files come from the cache (``hibiost.settings.data_dir``), or are downloaded into it and checked by hash. Full-size
    images stay on disk; five sections take a second or two and about 80 MB.

    Parameters
    ----------
    sections
        A section (``"C2"``), several, or ``"all"``. ``None`` stands for C2-C6, the five sections of patient C whose
        full-resolution H&E is public. B4 has one too; A1 and A2 have one reduced to 2000 px; the others have none.
    image
        Attach the H&E where there is one. ``False`` leaves images out (and downloads none), for counts alone.

    Returns
    -------
    Spots x genes, the genes of all sections (outer join, absent ones zero), with

    ``X``
        raw counts, CSR float32. Near-empty spots of the publication (1-2 counts) are kept.
    ``obs``
        ``library_id`` (section) and ``patient``, categorical; ``array_row`` and ``array_col``, int, the spot's place on
        the grid. Categorical, NaN where a spot has none, and left out where no section has any: ``label``, the
        pathologist's (sections A1-F1, G2, H1); ``transferred_label`` (A2-A6 to D2-D6), that of the nearest spot of the
        patient's first section, laid over it as published, at most one pitch away; ``published_cluster`` (``"C-5"``:
        cluster 5 of patient C, found per patient from the same counts) and ``published_annotation``, its published
        name.
    ``varm["measured"]``
        bool DataFrame, genes x sections: whether the section's table has the gene at all.
    ``obsm["spatial"]``
        float64, spot centres (x, y) in pixels of the full-resolution image; for A1 and A2, of the reduced one.
    ``uns["spatial"][section]``
        ``images["hires"]`` (uint8, at most 1000 px), ``scalefactors``, and in ``metadata``: ``mpp`` (micrometres per
        pixel, from the 200 um pitch) and ``source_image_path``; no image, no ``images`` and no path.

    Raises
    ------
    DataError
        No section, an unknown one, or one named twice.
    DownloadError
        A file is neither in the cache nor to be had.

    Notes
    -----
    Andersson et al., Nature Communications 12:6012 (2021). The files state no licence: cite, do not redistribute.

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.datasets.her2st("X9")
    Traceback (most recent call last):
    ...
    hibiost.errors.DataError: no her2st section 'X9'; expected A1-A6, B1-B6, C1-C6, D1-D6, E1-E3, F1-F3, G1-G3, H1-H3.
    """
    names = section_names(
        DATASET,
        sections,
        known=SECTIONS,
        default=DEFAULT,
        expected="A1-A6, B1-B6, C1-C6, D1-D6, E1-E3, F1-F3, G1-G3, H1-H3",
    )
    adata = concat([_read_section(name, image=image) for name in names])
    for column in (keys.PATIENT, "label", "transferred_label", "published_cluster", "published_annotation"):
        if categories := sorted(adata.obs[column].dropna().unique()):
            adata.obs[column] = pd.Categorical(adata.obs[column], categories=categories)
        else:
            del adata.obs[column]
    logger.info("her2st: %d spots, %d genes, sections %s.", adata.n_obs, adata.n_vars, ", ".join(names))
    return adata


def _read_section(name: str, *, image: bool) -> AnnData:
    """A section; spots without counts are left out (the files hold no counts without a spot)."""
    table = read_table(fetch(DATASET, f"data/ST-cnts/{name}.tsv.gz"))
    spots = _read_spots(name).loc[table.rows].join(_read_clusters(name), on=["pixel_x", "pixel_y"])
    scale = REDUCED.get(name, 1.0)
    pixels = _warped(spots) if name == "A2" else spots[["pixel_x", "pixel_y"]].to_numpy()
    pitch = [_pitch(spots, axis) for axis in "xy"]
    obs = pd.DataFrame({keys.LIBRARY: name, keys.PATIENT: name[0]}, index=f"{name}_" + spots.index)
    obs["array_row"], obs["array_col"] = spots["y"].to_numpy(), spots["x"].to_numpy()
    obs["label"], obs["transferred_label"] = _read_labels(name, spots), _transferred_labels(name, spots)
    for column in ("published_cluster", "published_annotation"):
        obs[column] = spots[column].to_numpy(dtype=object)
    part = AnnData(table.values, obs=obs, var=pd.DataFrame(index=table.columns), obsm={keys.SPATIAL: pixels * scale})
    mpp = float(np.mean(PITCH_UM / np.array(pitch))) / scale
    part.uns[keys.SPATIAL] = {name: _spatial_entry(name, mpp, image=image)}
    return part


def _read_spots(name: str) -> pd.DataFrame:
    """The spot file, indexed as the counts are."""
    spots = pd.read_csv(fetch(DATASET, f"data/ST-spotfiles/{name}_selection.tsv"), sep="\t")
    spots.index = spots["x"].astype(str) + "x" + spots["y"].astype(str)
    return spots


def _read_clusters(name: str) -> pd.DataFrame:
    """Published cluster, its name and the warped coordinates, indexed by the pixel position of the spot."""
    table = pd.read_csv(fetch(DATASET, f"res/ST-cluster/lbl/{name}-cluster-annotation.tsv.gz"), sep="\t", index_col=0)
    annotation = _read_annotations()
    ids = name[0] + "-" + table["label"].astype(str)
    table = table.assign(published_cluster=ids, published_annotation=ids.map(annotation))
    columns = ["published_cluster", "published_annotation", "warped_x", "warped_y"]
    return table.set_index(["pixel_x", "pixel_y"])[columns]


def _read_annotations() -> dict[str, str]:
    """Published name of each cluster, ``{"C-5": ...}``; the names hold commas that the file does not quote."""
    text = fetch(DATASET, "res/ST-cluster/motivation.csv").read_text(encoding="utf-8")
    rows = re.findall(r"^([A-H]),(\d+),(.+?),(?=Marker|,)", text, flags=re.MULTILINE)
    return {f"{patient}-{cluster}": name.strip() for patient, cluster, name in rows}


def _read_labels(name: str, spots: pd.DataFrame) -> np.ndarray:
    """The pathologist's label of each spot, None where there is none."""
    labels = np.full(len(spots), None, dtype=object)
    path = f"data/ST-pat/lbl/{name}_labeled_coordinates.tsv"
    if path in registry(DATASET):
        table = pd.read_csv(fetch(DATASET, path), sep="\t").dropna()
        distance, row = cKDTree(table[["x", "y"]]).query(spots[["new_x", "new_y"]])
        found = distance <= LABEL_TOLERANCE
        labels[found] = table["label"].to_numpy(dtype=object)[row[found]]
    return labels


def _transferred_labels(name: str, spots: pd.DataFrame) -> np.ndarray:
    """The label of the nearest spot of the patient's first section; None where it is further than a pitch."""
    labels = np.full(len(spots), None, dtype=object)
    first = f"{name[0]}1"
    if name[0] in ALIGNED and name != first:
        there = _read_spots(first)
        known = _read_labels(first, there)
        there, known = there[pd.notna(known)], known[pd.notna(known)]
        pitch = _pitch(there, "x")
        distance, row = cKDTree(there[["pixel_x", "pixel_y"]]).query(_warped(spots))
        labels[distance <= pitch] = known[row[distance <= pitch]]
    return labels


def _pitch(spots: pd.DataFrame, axis: str) -> float:
    """Pixels from a spot to the next."""
    return float(spots[f"pixel_{axis}"].sum() / (spots[f"new_{axis}"] - 1).sum())


def _warped(obs: pd.DataFrame) -> np.ndarray:
    """Coordinates in the frame of the patient's first section, for every spot.

    Published for the clustered spots only. They are a rotation and a shift of the pixel coordinates, so a linear fit
    gives the others to 0.01 px.
    """
    pixels = np.column_stack([obs["pixel_x"], obs["pixel_y"], np.ones(len(obs))])
    warped = obs[["warped_x", "warped_y"]].to_numpy()
    known = ~np.isnan(warped[:, 0])
    fit, *_ = np.linalg.lstsq(pixels[known], warped[known], rcond=None)
    return pixels @ fit


def _spatial_entry(name: str, mpp: float, *, image: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "images": {},
        "scalefactors": {"spot_diameter_fullres": SPOT_UM / mpp},
        "metadata": {"mpp": mpp, **METADATA},
    }
    path = _image_path(name)
    if image and path is None:
        logger.info("her2st: section %s has no public image; loaded without one.", name)
    if image and path is not None:
        file = fetch(DATASET, path)
        with open_image(file) as source:
            entry["images"]["hires"], entry["scalefactors"]["tissue_hires_scalef"] = thumbnail(source)
        entry["metadata"]["source_image_path"] = str(file.absolute())
    return entry


def _image_path(name: str) -> str | None:
    folders = (f"data/ST-imgs/{name[0]}/{name}/", f"app/www/imgs/{name}_")
    return next((path for path in registry(DATASET) if path.startswith(folders)), None)
