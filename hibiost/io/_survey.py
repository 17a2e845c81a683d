"""What is known of the slides of a source before its counts are read, and all that is wrong with them."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from scipy import sparse

from .. import inputs, keys
from ..errors import DataError, HibiostError
from ..genes.vocabulary import looks
from ..images import PatchFile
from ._checks import warn_mixed_species
from ._hest import (
    PIXELS,
    SYMBOLS,
    attached,
    genes_only,
    match_patches,
    pixel_size_of,
    read_h5ad,
    read_hest,
    read_metadata,
    spatial_entry,
)
from ._reading import is_zarr, reading

SAMPLE = 30_000
"""Stored counts of a source that are looked at: a third each at the beginning, the middle and the end."""
NAMES = 1000
"""Gene names that are looked at."""
FULL = 0.999
"""Scale from which on an image counts as one of full resolution."""
DESCRIBED = ("species", "organ", "disease_state", "patient", "st_technology", "license")
"""Columns of the index that come from the metadata of a slide."""
_UNREADABLE = (AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class Problem(NamedTuple):
    """What is wrong with a slide."""

    text: str
    blocking: bool = True
    """Whether the slide cannot be trained on."""


@dataclass(frozen=True, eq=False)
class Source:
    """Where slides come from: an AnnData, an AnnData file, or a sample of a folder in HEST's layout."""

    place: AnnData | Path
    hest: bool
    library_key: str

    @property
    def name(self) -> str:
        """Of a slide that bears no other."""
        return "slide" if isinstance(self.place, AnnData) else self.place.stem

    @property
    def root(self) -> Path:
        """The HEST folder."""
        return Path() if isinstance(self.place, AnnData) else self.place.parent.parent

    def read(self) -> AnnData:
        """All of it: of a HEST sample without image, the spots that have a patch."""
        if isinstance(self.place, AnnData):
            return self.place
        if self.hest:
            patches = True if _patches_only(self._files(self._metadata())) else None
            adata = read_hest(self.root, self.name, patches=patches)
            adata.obs[self.library_key] = adata.obs[keys.LIBRARY]
            return adata
        with reading(self.place, "an AnnData file"):
            adata = ad.read_zarr(self.place) if self.place.is_dir() else ad.read_h5ad(self.place)
        return self.named(adata)

    def read_counts(self) -> AnnData:
        """Without what only images need."""
        if not self.hest or isinstance(self.place, AnnData):
            return self.read()
        metadata = self._metadata()
        files = self._files(metadata)
        patches = files["patches_path"] if _patches_only(files) else None
        whole, _ = match_patches(genes_only(read_h5ad(self.place), self.name), patches, self.name, drop=True)
        adata = AnnData(whole.X, obs=whole.obs[[]], var=whole.var[[]], varm=dict(whole.varm))
        adata.obs[self.library_key] = pd.Categorical([self.name] * adata.n_obs)
        adata.uns[keys.SPATIAL] = {self.name: {"metadata": metadata}}
        return adata

    def header(self, layer: str | None, problems: list[Problem]) -> _Header:
        """What surrounds the counts, and some of them; what is absent is told by the checks that need it."""
        if isinstance(self.place, AnnData):
            return _header_in_memory(self.place, layer, problems)
        with reading(self.place, "an AnnData file"), _opened(self.place) as group:
            header = _stored_header(self, group, layer, problems)
        return self._with_files(header, problems) if self.hest else header

    def named(self, adata: AnnData) -> AnnData:
        """A file that does not name its only slide: its key in ``uns["spatial"]``, else the name of the file."""
        known = list(adata.uns.get(keys.SPATIAL, {}))
        if self.library_key == keys.LIBRARY and self.library_key not in adata.obs and len(known) <= 1:
            adata.obs[keys.LIBRARY] = pd.Categorical([str(known[0]) if known else self.name] * adata.n_obs)
        return adata

    def _metadata(self) -> dict[str, Any]:
        """Of a HEST sample."""
        return read_metadata(Path(self.root, "metadata", f"{self.name}.json"))

    def _files(self, metadata: dict[str, Any]) -> dict[str, str | None]:
        """Image and patch file of a HEST sample; their places are taken out of the metadata."""
        return {
            key: attached(Path(self.root, folder, f"{self.name}{suffix}"), metadata, key, wanted=None)
            for key, folder, suffix in (("source_image_path", "wsis", ".tif"), ("patches_path", "patches", ".h5"))
        }

    def _with_files(self, header: _Header, problems: list[Problem]) -> _Header:
        """As :func:`read_hest` joins them."""
        metadata: dict[str, Any] = {}
        stored = size = None
        with collecting(problems):
            metadata = self._metadata()
            if not metadata:
                problems.append(Problem(f"has no metadata/{self.name}.json.", blocking=False))
        recorded = metadata.get("source_image_path")
        files = self._files(metadata)
        if recorded is not None and not any(files.values()):
            problems.append(Problem(f"its image is no longer there: {recorded}.", blocking=False))
        with collecting(problems):
            if files["patches_path"] is not None:
                with PatchFile(files["patches_path"]) as file:
                    stored, held = file.pixel_size, file.rows(header.obs.index) >= 0
                header = header.only(held, problems) if _patches_only(files) else header
        with collecting(problems):
            size = pixel_size_of(None, metadata, stored, files["source_image_path"])
        images, scalefactors = spatial_entry(header.entries, self.name, metadata, size)
        metadata |= {key: path for key, path in files.items() if path is not None}
        metadata |= {} if size is None else {"mpp": size.mpp}
        obs = header.obs.assign(**{self.library_key: self.name})
        entry = {"images": images, "scalefactors": scalefactors, "metadata": metadata}
        return header._replace(obs=obs, entries={self.name: entry})


class _Header(NamedTuple):
    obs: pd.DataFrame
    """Barcodes; the columns that name slides and patients."""
    genes: pd.Index
    xy: Any
    entries: dict[str, Any]
    """Of ``uns["spatial"]``; for each image of a file, an array of its shape that takes no memory."""
    values: np.ndarray
    """Some counts."""

    def only(self, held: np.ndarray, problems: list[Problem]) -> _Header:
        """Spots with a patch."""
        if held.all() or not held.any():
            if not held.any():
                problems.append(Problem("not one of its spots has a patch; is it the patch file of another?"))
            return self
        text = f"{int((~held).sum())} of {len(held)} spots have no patch and are left out."
        problems.append(Problem(text, blocking=False))
        return self._replace(obs=self.obs[held], xy=None if self.xy is None else np.asarray(self.xy)[held])


def _patches_only(files: Mapping[str, str | None]) -> bool:
    return files["source_image_path"] is None and files["patches_path"] is not None


class collecting:
    """What is raised or warned of becomes a problem."""

    def __init__(self, problems: list[Problem], prefix: str = "") -> None:
        self._problems, self._prefix = problems, prefix
        self._caught = warnings.catch_warnings(record=True)

    def __enter__(self) -> None:
        self._told: list[Any] = self._caught.__enter__()
        warnings.simplefilter("always")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        self._caught.__exit__(kind, error, trace)
        texts = [str(warning.message) for warning in self._told if warning.category is UserWarning]
        if isinstance(error, HibiostError):
            self._problems.append(Problem(str(error).removeprefix(self._prefix)))
        elif isinstance(error, _UNREADABLE):
            self._problems.append(Problem(f"cannot be read ({type(error).__name__}: {error})."))
        self._problems += [Problem(text.removeprefix(self._prefix), blocking=False) for text in texts]
        return error is None or isinstance(error, (HibiostError, *_UNREADABLE))


@dataclass(eq=False)
class Surveyed:
    """A slide: its row of the index and its problems."""

    id: str
    source: Source
    row: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)
    fingerprint: str = ""
    """The same for the same barcodes, coordinates and counts."""


def survey(source: Source, layer: str | None) -> list[Surveyed]:
    """The slides of a source; nothing is raised."""
    problems: list[Problem] = []
    row: dict[str, Any] = {"path": "" if isinstance(source.place, AnnData) else str(source.place)}
    header = None
    with collecting(problems):
        header = source.header(layer, problems)
    if header is None:
        return [Surveyed(source.name, source, row, problems)]
    row |= {"n_spots": len(header.obs), "n_genes": len(header.genes), "gene_names": _kind(header.genes)}
    if header.genes.has_duplicates and not source.hest:  # read_hest makes them unique
        twice = header.genes[header.genes.duplicated()]
        problems.append(Problem(f"{len(twice)} gene names occur more than once, such as {twice[0]!r}."))
    with collecting(problems, f"slide {source.name!r} "):
        warn_mixed_species(AnnData(var=pd.DataFrame(index=header.genes)), source.name)
    slides: dict[str, np.ndarray] = {}
    with collecting(problems):
        spots = header.obs.set_axis(pd.RangeIndex(len(header.obs)).astype(str))
        shell = AnnData(obs=spots, uns={keys.SPATIAL: header.entries})
        slides = inputs.libraries(source.named(shell), source.library_key)
    if not slides:
        return [Surveyed(source.name, source, row, problems)]
    return [_slide(Surveyed(name, source, dict(row), list(problems)), header, rows) for name, rows in slides.items()]


def _slide(found: Surveyed, header: _Header, rows: np.ndarray) -> Surveyed:
    """Complete a slide of a source by what its spots, image and patches tell."""
    problems, entry = found.problems, header.entries.get(found.id, {})
    names = header.obs.index[rows]
    if names.has_duplicates:
        twice = names[names.duplicated()]
        text = f"{len(twice)} barcodes occur more than once, such as {twice[0]!r}; expected each once."
        problems.append(Problem(text))
        names = make_index_unique(names)
    part = AnnData(obs=header.obs.iloc[rows].set_axis(names), uns={keys.SPATIAL: {found.id: entry}})
    part.obs[keys.LIBRARY] = found.id
    before = len(problems)
    with collecting(problems):
        if header.xy is not None:
            part.obsm[keys.SPATIAL] = np.asarray(header.xy)[rows]
        inputs.coordinates(part)
    located = len(problems) == before
    if not located:  # the image is checked all the same
        part.obsm[keys.SPATIAL] = np.zeros((part.n_obs, 2))
    slide, told = None, list[Problem]()
    with collecting(told, f"slide {found.id!r}: "):
        slide = inputs.slides(part)[0]
        if slide.image is None:
            _check_patches(slide)
    problems += [problem for problem in told if located or problem.blocking]
    metadata = entry.get("metadata", {})
    found.row |= {"n_spots": len(rows), **_described(part, metadata), **_pictures(entry)}
    found.row["mpp"] = _size(metadata.get("mpp") if slide is None else slide.mpp)
    if np.isnan(found.row["mpp"]):
        text = "its pixel size is unknown: patches can be cut in full-resolution pixels only."
        problems.append(Problem(text, blocking=False))
    if not isinstance(found.row["species"], str):
        problems.append(Problem("its species is unknown (metadata 'species').", blocking=False))
    content = hashlib.blake2b("\n".join(names).encode(), digest_size=16)
    for values in (part.obsm[keys.SPATIAL], header.values):
        content.update(np.asarray(values, dtype=np.float64).tobytes())
    found.fingerprint = content.hexdigest()
    return found


def _check_patches(slide: inputs.Slide) -> None:
    with PatchFile(str(slide.patches)) as file:
        absent = int((file.rows(slide.barcodes) < 0).sum())
    if absent:
        raise DataError(f"{absent} of {len(slide.rows)} spots have no patch in {slide.patches}; leave these spots out.")


def _size(mpp: Any) -> float:
    return float(mpp) if isinstance(mpp, int | float | np.floating) and 0 < float(mpp) < np.inf else np.nan


def _described(part: AnnData, metadata: Mapping[str, Any]) -> dict[str, Any]:
    row = {key: str(metadata[key]) if metadata.get(key) not in (None, "") else np.nan for key in DESCRIBED}
    if keys.PATIENT in part.obs:
        patients = part.obs[keys.PATIENT].dropna().astype(str).unique()
        row[keys.PATIENT] = ", ".join(patients) if len(patients) else np.nan
    return row


def _pictures(entry: Mapping[str, Any]) -> dict[str, bool]:
    metadata, scale = entry.get("metadata", {}), entry.get("scalefactors", {}).get("tissue_hires_scalef", 0)
    images = entry.get("images", {})
    whole = "source_image_path" in metadata or "fullres" in images or ("hires" in images and scale >= FULL)
    return {"has_image": bool(whole), "has_patches": "patches_path" in metadata}


def _kind(genes: pd.Index) -> str:
    """What most genes are named by."""
    step = max(1, len(genes) // NAMES)
    return looks([str(name) for name in genes[::step]]).partition(" such as ")[0] if len(genes) else ""


def _header_in_memory(adata: AnnData, layer: str | None, problems: list[Problem]) -> _Header:
    inputs.check_spots(adata)
    values = _some_counts(adata.X, adata.layers, layer, adata.shape, problems)
    xy = adata.obsm.get(keys.SPATIAL)
    return _Header(adata.obs, adata.var_names, xy, dict(adata.uns.get(keys.SPATIAL, {})), values)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if path.is_dir():
        import zarr

        if not is_zarr(path):
            raise DataError(
                f"{path} is neither a zarr store nor a folder in HEST's layout (st/<sample>.h5ad); it holds "
                f"{sorted(os.listdir(path))[:5]}."
            )
        yield zarr.open_group(path, mode="r")
    else:
        import h5py

        with h5py.File(path) as file:
            yield file


def _stored_header(source: Source, group: Any, layer: str | None, problems: list[Problem]) -> _Header:
    """Of an AnnData file, names, coordinates, metadata and some counts."""
    absent = [name for name in ("obs", "var") if name not in group]
    if absent or any(group[name].attrs.get("encoding-type") != "dataframe" for name in ("obs", "var")):
        raise DataError(f"{source.place} is no AnnData of version 0.7 or later; it holds {sorted(group)}.")
    obs, var = group["obs"], group["var"]
    wanted = (source.library_key, keys.PATIENT, keys.BARCODE, *PIXELS)
    table = pd.DataFrame({name: ad.io.read_elem(obs[name]) for name in wanted if name in obs})
    table = table.set_axis(_index(obs)) if len(table.columns) else pd.DataFrame(index=_index(obs))
    genes = _index(var)
    symbols = next((name for name in SYMBOLS if name in var), None)
    if source.hest and symbols is not None and _kind(genes) == "Ensembl identifiers":
        genes = pd.Index(np.asarray(ad.io.read_elem(var[symbols]), dtype=object).astype(str), dtype=object)
    obsm = group.get("obsm", {})
    xy = ad.io.read_elem(obsm[keys.SPATIAL]) if keys.SPATIAL in obsm else None
    if xy is None and source.hest and all(name in table for name in PIXELS):
        xy = table[list(PIXELS)].to_numpy()
    stored = group["uns"].get(keys.SPATIAL, {}) if "uns" in group else {}
    entries = {str(name): _stored_entry(stored[name]) for name in stored}
    layers = group.get("layers", {})
    values = _some_counts(group.get("X"), layers, layer, (len(table), len(genes)), problems)
    return _Header(table, genes, xy, entries, values)


def _stored_entry(group: Any) -> dict[str, Any]:
    entry = {name: ad.io.read_elem(group[name]) if name in group else {} for name in ("scalefactors", "metadata")}
    images = group.get("images", {})
    stand_ins = {name: np.broadcast_to(np.zeros((), images[name].dtype), images[name].shape) for name in images}
    return {"images": stand_ins, **entry}


def _some_counts(
    matrix: Any, layers: Any, layer: str | None, shape: tuple[int, ...], problems: list[Problem]
) -> np.ndarray:
    """Some counts, checked; empty where there are none."""
    where, values = "X" if layer is None else f"layers[{layer!r}]", np.zeros(0)
    with collecting(problems):
        if layer is not None:
            matrix = layers.get(layer)
        matrix = getattr(matrix, "group", matrix)  # of a backed AnnData
        attributes = getattr(matrix, "attrs", {})
        if matrix is None or attributes.get("encoding-type") == "null":
            there = f" (the layers are {sorted(layers)})" if len(layers) else ""
            raise DataError(f"there are no counts in {where}{there}; name the layer that holds them with layer=.")
        found = tuple(int(n) for n in attributes.get("shape", getattr(matrix, "shape", ())))
        if found != shape:
            raise DataError(f"{where} has shape {found} for {shape[0]} spots and {shape[1]} genes.")
        values = _values(matrix)
        inputs.check_counts(values, where)
    return values


def _values(matrix: Any) -> np.ndarray:
    """Stored values, or those of whole rows, of a matrix or the group of a file."""
    stored = matrix.data if sparse.issparse(matrix) else None if hasattr(matrix, "shape") else matrix["data"]
    if stored is None:
        size = max(1, SAMPLE // 3 // matrix.shape[1])
        rows = [matrix[part] for part in _thirds(matrix.shape[0], size)]
        rows = [part.compute() if hasattr(part, "compute") else part for part in rows]
        return np.concatenate([sparse.csr_matrix(part).data for part in rows])
    if not stored.shape[0]:
        raise DataError("all counts are zero.")
    return np.concatenate([stored[part] for part in _thirds(stored.shape[0], SAMPLE // 3)])


def _thirds(length: int, size: int) -> list[slice]:
    """The beginning, the middle and the end."""
    last = max(0, length - size)
    return [slice(start, start + size) for start in dict.fromkeys((0, last // 2, last))]


def _index(table: Any) -> pd.Index:
    return pd.Index(np.asarray(ad.io.read_elem(table[table.attrs["_index"]]), dtype=object).astype(str), dtype=object)
