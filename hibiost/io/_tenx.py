"""Count matrices of 10x Genomics, HDF5 or Matrix Market, read in blocks of spots."""

from __future__ import annotations

import gzip
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
from anndata.utils import make_index_unique
from scipy import sparse

from ..errors import DataError
from ..settings import logger
from ._reading import reading

BLOCK = 2**22
"""Entries of a matrix in memory beside the result."""
EXPRESSION = "Gene Expression"
_GENOME_PREFIX = re.compile(r"^(\w+?)_+(?=ENS[A-Z]*G\d)")


class _Parts(NamedTuple):
    """Where a file keeps its matrix, checked; spots x features in CSR."""

    features: pd.DataFrame
    barcodes: pa.Array
    indptr: np.ndarray
    group: str | None
    matrix: sparse.csr_matrix | None
    attributes: dict[str, str]


class CountsFile:
    """Raw counts of spots x genes in a file; nothing but names and row pointers of an HDF5 file are held.

    Other feature types than gene expression are left out, probes are summed to genes.

    Attributes
    ----------
    path
        The file, or the folder of a Matrix Market export.
    barcodes
        Spots, an arrow array of strings, each once.
    var
        Genes by unique symbol, with ``gene_ids``.
    genome
        Reference genome, ``None`` where the file does not tell.
    attributes
        ``library_ids``, ``chemistry_description`` and ``software_version``, as far as the file has them.
    """

    def __init__(self, path: Path, *, genome: str | None = None) -> None:
        self.path = path
        if path.is_dir():
            parts = _open_mtx(path)
        else:
            with reading(path, "a 10x HDF5 matrix"):
                parts = _open_h5(path, genome)
        self._indptr, self._group, self._matrix = parts.indptr, parts.group, parts.matrix
        self._n_features = len(parts.features)
        self.barcodes, self.attributes = parts.barcodes, parts.attributes
        kept, self.genome = _one_genome(_expression(parts.features, path), genome, path)
        self.var, self._to_genes = _genes(kept, self._n_features, path)
        _check_barcodes(self.barcodes, path)

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """Consecutive rows and their counts (CSR float32, genes sorted), of about ``size`` entries each."""
        if self._matrix is not None:
            yield slice(0, self._matrix.shape[0]), self._genes_of(self._matrix)
            return
        with reading(self.path, "a 10x HDF5 matrix"), h5py.File(self.path) as file:
            group, start = file[self._group], 0
            while start < len(self.barcodes):
                first = self._indptr[start]
                stop = max(start + 1, int(np.searchsorted(self._indptr, first + size, side="right")) - 1)
                entries = slice(int(first), int(self._indptr[stop]))
                values = group["data"][entries].astype(np.float32, copy=False)
                indices = group["indices"][entries]
                if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < self._n_features:
                    raise DataError(
                        f"{self.path} is damaged: it points at feature {int(indices.max())} of {self._n_features}; "
                        "fetch or export it anew."
                    )
                pointers = (self._indptr[start : stop + 1] - first).astype(np.int32)
                parts = (values, indices.astype(np.int32, copy=False), pointers)
                block = sparse.csr_matrix(parts, shape=(stop - start, self._n_features))
                yield slice(start, stop), self._genes_of(block)
                start = stop

    def _genes_of(self, block: sparse.csr_matrix) -> sparse.csr_matrix:
        if self._to_genes is not None:
            block = block @ self._to_genes
        block.sum_duplicates()
        return block

    def read(self) -> sparse.csr_matrix:
        """The whole matrix: its own size and a block are held at the peak."""
        shape, n = (len(self.barcodes), len(self.var)), int(self._indptr[-1])
        index = np.int32 if max(n, *shape) < 2**31 else np.int64
        data, indices, indptr = np.empty(n, np.float32), np.empty(n, index), np.zeros(shape[0] + 1, index)
        end = 0
        for rows, block in self.blocks():
            start, end = end, end + block.nnz
            data[start:end], indices[start:end] = block.data, block.indices
            indptr[rows.start + 1 : rows.stop + 1] = block.indptr[1:] + index(start)
        data.resize(end, refcheck=False)
        indices.resize(end, refcheck=False)
        return sparse.csr_matrix((data, indices, indptr), shape=shape, copy=False)


def _open_h5(path: Path, genome: str | None) -> _Parts:
    with h5py.File(path) as file:
        if "matrix" in file:
            group = file["matrix"]
            features = _features_h5(group["features"])
        else:
            group = file[_legacy_genome(file, genome, path)]
            features = pd.DataFrame({"id": _text(group["genes"]), "name": _text(group["gene_names"])})
            features["type"], features["genome"] = EXPRESSION, group.name.strip("/")
        barcodes = pa.array(group["barcodes"][()]).cast(pa.string())
        indptr = group["indptr"][()].astype(np.int64)
        _check_shape(path, tuple(group["shape"][()].tolist()), len(features), len(barcodes), "genes x spots")
        if len(indptr) != len(barcodes) + 1:
            _refuse_shape(
                path, len(indptr) == len(features) + 1, f"{len(indptr) - 1} rows", len(features), len(barcodes)
            )
        entries = len(group["data"])
        if indptr[0] != 0 or indptr[-1] != entries or (np.diff(indptr) < 0).any() or len(group["indices"]) != entries:
            raise DataError(f"{path} is damaged: its row pointers do not fit its {entries} entries; fetch it again.")
        wanted = ("library_ids", "chemistry_description", "software_version")
        attributes = {name: _attribute(file.attrs[name]) for name in wanted if name in file.attrs}
        return _Parts(features, barcodes, indptr, group.name, None, attributes)


def _features_h5(group: h5py.Group) -> pd.DataFrame:
    """Identifier, symbol, type, genome of each feature; of probes, those of their gene and whether they count."""
    probes = "gene_id" in group
    features = pd.DataFrame(
        {
            "id": _text(group["gene_id" if probes else "id"]),
            "name": _text(group["gene_name" if "gene_name" in group else "name"]),
            "type": _text(group["feature_type"]) if "feature_type" in group else EXPRESSION,
        }
    )
    features["genome"] = _text(group["genome"]) if "genome" in group else ""
    if probes:
        features["counts"] = group["filtered_probes"][()].astype(bool) if "filtered_probes" in group else True
    return features


def _legacy_genome(file: h5py.File, genome: str | None, path: Path) -> str:
    """The group of the only genome, or of the one asked for, in a file of Cell Ranger 2."""
    genomes = [name for name, item in file.items() if isinstance(item, h5py.Group) and "gene_names" in item]
    if not genomes:
        raise DataError(
            f"{path} holds {sorted(file)}; expected the group 'matrix' of a Space Ranger count matrix: name the counts "
            "with counts_file=."
        )
    if len(genomes) == 1:
        return genomes[0]
    return _chosen(genomes, genome, path)


def _open_mtx(folder: Path) -> _Parts:
    from scipy.io import mmread

    matrix_path, features_path, barcodes_path = (
        _either(folder, names) for names in (("matrix.mtx",), ("features.tsv", "genes.tsv"), ("barcodes.tsv",))
    )
    with reading(features_path, "a table of features"):
        table = _table(features_path)
        if table.shape[1] < 2:
            raise ValueError("it has one column instead of identifier, symbol and type")
    with reading(barcodes_path, "a list of barcodes"):
        barcodes = pa.array(_table(barcodes_path)[0].to_numpy(dtype=object), type=pa.string())
    features = table.iloc[:, :2].set_axis(["id", "name"], axis=1)
    features["type"] = table[2] if table.shape[1] > 2 else EXPRESSION
    features["genome"] = ""
    with reading(matrix_path, "a Matrix Market file"):
        with _opened(matrix_path) as file:  # of a damaged file that is no BytesIO, mmread ends the process
            matrix = mmread(io.BytesIO(file.read()), spmatrix=True)
        _check_shape(matrix_path, matrix.shape, len(features), len(barcodes), "genes x spots")
        counts = sparse.csr_matrix(matrix.T, dtype=np.float32)
    return _Parts(features, barcodes, counts.indptr, None, counts, {})


def _table(path: Path) -> pd.DataFrame:
    with _opened(path) as file:
        return pd.read_csv(file, sep="\t", header=None, dtype=str, keep_default_na=False)


def _opened(path: Path) -> Any:
    """The file, unpacked where it is packed: some that end in ``.gz`` are not."""
    with open(path, "rb") as file:
        start = file.read(2)
    if start[:1] == b"<":
        raise ValueError("it starts like a web page")
    return gzip.open(path) if start == b"\x1f\x8b" else open(path, "rb")


def _either(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():
                return path
    raise DataError(
        f"{folder} holds {sorted(os.listdir(folder))[:10]}; expected matrix.mtx, features.tsv and barcodes.tsv, each "
        f"plain or .gz, but there is no {' or '.join(names)}."
    )


def _check_shape(path: Path, shape: tuple[int, ...], n_features: int, n_barcodes: int, expected: str) -> None:
    if shape != (n_features, n_barcodes):
        found = f"a matrix of {' x '.join(map(str, shape))}"
        _refuse_shape(path, shape == (n_barcodes, n_features), found, n_features, n_barcodes)


def _refuse_shape(path: Path, transposed: bool, found: str, n_features: int, n_barcodes: int) -> None:  # noqa: FBT001
    what = "is transposed (spots x genes)" if transposed else "does not fit its names"
    raise DataError(
        f"{path} {what}: it holds {found} for {n_features} features and {n_barcodes} barcodes; expected genes x spots, "
        "as Space Ranger writes it: export it anew."
    )


def _check_barcodes(barcodes: pa.Array, path: Path) -> None:
    import pyarrow.compute as pc

    if pc.count_distinct(barcodes).as_py() != len(barcodes):
        seen = pc.value_counts(barcodes).to_pandas()
        twice = [item["values"] for item in seen if item["counts"] > 1]
        raise DataError(
            f"{path}: {len(twice)} barcodes occur more than once, such as {twice[:3]}; expected each once: are several "
            "slides merged in it?"
        )


def _expression(features: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The features that are genes, or probes of genes."""
    kept = features[features["type"] == EXPRESSION]
    if len(kept) < len(features):
        others = features["type"][features["type"] != EXPRESSION].value_counts().to_dict()
        logger.info("%s: left out features that are no genes: %s.", path.name, others)
    if kept.empty:
        raise DataError(f"{path} holds features of the types {sorted(set(features['type']))}; expected {EXPRESSION!r}.")
    if "counts" in kept and not kept["counts"].all():
        logger.info("%s: left out %d probes that Space Ranger excludes.", path.name, int((~kept["counts"]).sum()))
        kept = kept[kept["counts"]]
    return kept


def _one_genome(features: pd.DataFrame, genome: str | None, path: Path) -> tuple[pd.DataFrame, str | None]:
    """The features of one genome, without its prefix, and its name."""
    prefixes = features["id"].str.extract(_GENOME_PREFIX, expand=True)[0].fillna("")
    labels = features["genome"].where(features["genome"] != "", prefixes)
    genomes = [name for name in dict.fromkeys(labels) if name]
    chosen = _chosen(genomes, genome, path) if genome is not None or len(genomes) > 1 else next(iter(genomes), None)
    if len(genomes) > 1:
        features = features[labels == chosen]
        logger.info(
            "%s: %d genes of %s; left out those of %s.", path.name, len(features), chosen, set(genomes) - {chosen}
        )
    if chosen and features["id"].str.startswith(f"{chosen}_").all():
        prefix = re.compile(rf"^{re.escape(chosen)}_+")
        features = features.assign(
            **{part: features[part].str.replace(prefix, "", regex=True) for part in ("id", "name")}
        )
    return features, chosen


def _chosen(genomes: list[str], genome: str | None, path: Path) -> str:
    if genome is None:
        raise DataError(f"{path} mixes the genomes {genomes}; expected one species: choose with genome={genomes[0]!r}.")
    if genome not in genomes:
        raise DataError(f"{path} has no genome {genome!r}; expected one of {genomes}, or none.")
    return genome


def _genes(kept: pd.DataFrame, n_features: int, path: Path) -> tuple[pd.DataFrame, sparse.csr_matrix | None]:
    """Genes by unique symbol, and features x genes where the two differ."""
    genes = kept.drop_duplicates("id") if "counts" in kept else kept
    names = pd.Index(genes["name"].to_numpy(dtype=object))
    if not names.is_unique:
        logger.info(
            "%s: %d gene symbols occur again; they end in -1, -2, ...", path.name, int(names.duplicated().sum())
        )
        names = make_index_unique(names)
    var = pd.DataFrame({"gene_ids": genes["id"].to_numpy(dtype=object)}, index=names)
    if len(genes) == n_features:
        return var, None
    columns = pd.Index(genes["id"]).get_indexer(kept["id"]) if "counts" in kept else np.arange(len(kept))
    ones = np.ones(len(kept), np.float32)
    return var, sparse.csr_matrix((ones, (kept.index.to_numpy(), columns)), shape=(n_features, len(genes)))


def _text(dataset: h5py.Dataset) -> np.ndarray:
    return dataset.asstr()[()]


def _attribute(value: Any) -> str:
    """First entry of an attribute, which some versions write as an array of bytes."""
    first = np.atleast_1d(value)[0]
    return first.decode() if isinstance(first, bytes) else str(first)
