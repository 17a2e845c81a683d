from __future__ import annotations

import re
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import hibiost as hb
from hibiost.errors import DataError, MissingSlotError
from hibiost.genes import Vocabulary
from hibiost.io import _vocabulary

GENES = {"a": ["ACTB", "ERBB2", "MGP", "TP53"], "b": ["MGP", "ERBB2", "XIST"], "c": ["ACTB", "XIST", "CD3D", "CD8A"]}
SPECIES = {"a": "Homo sapiens", "b": "Homo sapiens", "c": "Mus musculus"}
N_SPOTS = {"a": 23, "b": 11, "c": 7}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_vocabulary, "BLOCK", 12)


def slide(name: str) -> ad.AnnData:
    rng = np.random.default_rng(ord(name))
    counts = rng.poisson(0.7, (N_SPOTS[name], len(GENES[name]))).astype("float32")
    adata = ad.AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=GENES[name]))
    adata.obs_names = [f"{name}{i}" for i in range(adata.n_obs)]
    adata.obs["library_id"] = pd.Categorical([name] * adata.n_obs)
    metadata = {"species": SPECIES[name], "organ": "Breast", "st_technology": "Visium", "mpp": 0.5}
    adata.uns["spatial"] = {name: {"metadata": metadata, "images": {"hires": np.zeros((4, 4, 3), "uint8")}}}
    return adata


def expected(*names: str, min_spots: int = 1) -> dict[str, tuple[int, int]]:
    """Spots that express, and spots that could, counted gene by gene on dense tables."""
    found = {}
    for gene in sorted({gene for name in names for gene in GENES[name]}):
        columns = [slide(name).to_df()[gene] for name in names if gene in GENES[name]]
        if (seen := sum(int((column > 0).sum()) for column in columns)) >= min_spots:
            found[gene] = (seen, sum(map(len, columns)))
    return found


def read(vocabulary: Vocabulary) -> dict[str, tuple[int, int]]:
    return dict(
        zip(
            vocabulary.genes, zip(vocabulary.n_spots.tolist(), vocabulary.n_measured.tolist(), strict=True), strict=True
        )
    )


def as_h5ad(adata: ad.AnnData, folder: Path) -> Path:
    adata.write_h5ad(folder / "Schnitt ä.h5ad")
    return folder / "Schnitt ä.h5ad"


def as_zarr(adata: ad.AnnData, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(folder / "slide.zarr")
    return folder / "slide.zarr"


def as_backed(adata: ad.AnnData, folder: Path) -> ad.AnnData:
    return ad.read_h5ad(as_h5ad(adata, folder), backed="r")


def as_dask(adata: ad.AnnData, folder: Path) -> ad.AnnData:
    da = pytest.importorskip("dask.array")
    result = adata.copy()
    dense = adata.X.toarray() if sparse.issparse(adata.X) else adata.X
    result.X = da.from_array(dense, chunks=(5, 2)).map_blocks(sparse.csr_matrix)
    return result


def as_is(adata: ad.AnnData, folder: Path) -> ad.AnnData:
    return adata


FORMS = [as_is, as_h5ad, as_zarr, as_backed, as_dask]


@pytest.mark.parametrize(
    "matrix", [sparse.csr_matrix, sparse.csc_matrix, lambda x: x.toarray()], ids=["csr", "csc", "dense"]
)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(form: Callable, matrix: Callable, tmp_path: Path) -> None:
    adata = slide("a")
    adata.X = matrix(adata.X)
    vocabulary = hb.io.fit_vocabulary(form(adata, tmp_path))
    assert read(vocabulary) == expected("a")
    assert vocabulary.metadata == {"organ:breast": 23, "species:homo sapiens": 23, "st_technology:visium": 23}
    assert vocabulary == Vocabulary.fit([(adata.var_names, adata.X)])


def test_a_list_that_mixes_them(tmp_path: Path) -> None:
    sources = [as_h5ad(slide("a"), tmp_path), str(as_zarr(slide("b"), tmp_path)), slide("c")]
    vocabulary = hb.io.fit_vocabulary(sources)
    assert read(vocabulary) == expected("a", "b", "c")
    assert vocabulary.species == {"homo sapiens": 34, "mus musculus": 7}
    assert vocabulary.to_dict() == hb.io.fit_vocabulary(sources[::-1]).to_dict()
    assert read(hb.io.fit_vocabulary(sources, min_spots=9)) == expected("a", "b", "c", min_spots=9)
    parts = [hb.io.fit_vocabulary(each, min_spots=0) for each in sources]
    assert Vocabulary.merge(parts).to_dict() == vocabulary.to_dict()


@pytest.mark.parametrize("matrix", [sparse.csr_matrix, sparse.csc_matrix], ids=["csr", "csc"])
@pytest.mark.parametrize("form", FORMS)
def test_genes_count_in_the_slides_that_measured_them(form: Callable, matrix: Callable, tmp_path: Path) -> None:
    a, b = slide("a"), slide("b")
    joined = ad.concat([a, b], join="outer", uns_merge="unique", fill_value=0)
    joined.X = matrix(joined.X)
    joined.varm["measured"] = pd.DataFrame({name: joined.var_names.isin(GENES[name]) for name in "ab"}).set_axis(
        joined.var_names
    )
    joined.layers["counts"] = joined.X.copy()
    vocabulary = hb.io.fit_vocabulary(form(joined, tmp_path))
    assert read(vocabulary) == expected("a", "b")
    assert vocabulary.species == {"homo sapiens": 34}


@pytest.mark.parametrize("form", [as_is, as_h5ad, as_zarr, as_backed])
def test_layers_and_other_names_of_the_slide(form: Callable, tmp_path: Path) -> None:
    adata = slide("a")
    adata.layers["counts"], adata.X = adata.X.copy(), adata.X.log1p()
    adata.obs["section"] = adata.obs.pop("library_id")
    source = form(adata, tmp_path)
    assert read(hb.io.fit_vocabulary(source, layer="counts", library_key="section")) == expected("a")
    with pytest.raises(DataError, match="X holds .* values that are no counts"):
        hb.io.fit_vocabulary(source, library_key="section")
    with pytest.raises(MissingSlotError, match=r"no layer 'count'; the layers are \['counts'\].*'counts'"):
        hb.io.fit_vocabulary(source, layer="count")
    with pytest.raises(MissingSlotError, match="no obs\\['sections'\\]"):
        hb.io.fit_vocabulary(source, layer="counts", library_key="sections")


def test_without_slides_or_metadata(tmp_path: Path) -> None:
    bare = ad.AnnData(slide("a").X, var=pd.DataFrame(index=GENES["a"]))
    for form in FORMS:
        vocabulary = hb.io.fit_vocabulary(form(bare, tmp_path))
        assert read(vocabulary) == expected("a")
        assert vocabulary.metadata == {}


def test_no_more_than_a_block_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    counts = _vocabulary.inputs.counts

    def watched(adata: ad.AnnData, layer: str | None) -> sparse.csr_matrix:
        matrix = counts(adata, layer)
        sizes.append(matrix.nnz)
        return matrix

    monkeypatch.setattr(_vocabulary.inputs, "counts", watched)
    adata = slide("a")
    hb.io.fit_vocabulary(as_h5ad(adata, tmp_path))
    assert sum(sizes) == adata.X.nnz
    assert len(sizes) >= 3
    assert max(sizes) <= 2 * _vocabulary.BLOCK


@pytest.mark.filterwarnings("ignore:Couldn't detect a suitable IP address:RuntimeWarning")  # tests have no network
@pytest.mark.global_rng
def test_workers_of_dask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    for name in "ab":
        (tmp_path / name).mkdir()
    paths = [as_h5ad(slide("a"), tmp_path / "a"), as_zarr(slide("b"), tmp_path / "b")]
    alone = hb.io.fit_vocabulary([*paths, slide("c")])
    readers = []
    part = _vocabulary._part
    monkeypatch.setattr(
        _vocabulary, "_part", lambda *args, **kw: readers.append(threading.current_thread().name) or part(*args, **kw)
    )
    with distributed.Client(
        processes=False,
        n_workers=1,
        threads_per_worker=2,
        dashboard_address=None,
        scheduler_kwargs={"dashboard": False},
    ):
        assert hb.io.fit_vocabulary([*paths, slide("c")]).to_dict() == alone.to_dict()
        assert len(readers) == 3
        assert sum(name == threading.current_thread().name for name in readers) == 1
        with pytest.raises(DataError, match="absent.h5ad cannot be read .*no such file"):
            hb.io.fit_vocabulary([*paths, tmp_path / "absent.h5ad"])
    readers.clear()
    assert hb.io.fit_vocabulary(paths[0]).genes == ("ACTB", "ERBB2", "MGP", "TP53")
    assert readers == [threading.current_thread().name]


# -- refused ---------------------------------------------------------------------------------------------------------


def refused(source: object, message: str, error: type[Exception] = DataError) -> None:
    with pytest.raises(error, match=message) as raised:
        hb.io.fit_vocabulary(source)
    if isinstance(source, Path):
        assert str(source) in str(raised.value)


def test_arguments_that_are_refused(tmp_path: Path) -> None:
    refused([], "no sources")
    refused([3], "a source is a int; expected AnnData, or a path")
    path = as_h5ad(slide("a"), tmp_path)
    (tmp_path / "sub").mkdir()
    refused([path, tmp_path / "sub" / ".." / path.name], "1 files are given twice")
    with pytest.raises(DataError, match="none of 4 genes is seen in 24 spots"):
        hb.io.fit_vocabulary(path, min_spots=24)


def test_files_that_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent.h5ad", "cannot be read")
    good = as_h5ad(slide("a"), tmp_path)
    broken = {"empty": b"", "a web page": b"<!DOCTYPE html><html>404</html>", "truncated": good.read_bytes()[:3000]}
    for found, content in broken.items():
        path = tmp_path / "bad.h5ad"
        path.write_bytes(content)
        refused(path, f"cannot be read as an AnnData .* it is {found}.*export it anew")
    with h5py.File(tmp_path / "tenx.h5", "w") as file:
        file["matrix/data"] = [1]
    refused(tmp_path / "tenx.h5", r"is no AnnData, it has no 'obs'; found \['matrix'\]")
    with h5py.File(good, "a") as file:
        del file["obs"].attrs["encoding-type"]
    refused(good, "before 0.7")


def test_folders_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"cannot be read .* it is a folder of \[\]")
    good = as_zarr(slide("a"), tmp_path)
    store = tmp_path / "sdata.zarr" / "tables"
    shutil.copytree(good, store / "table")
    for name in (".zgroup", ".zattrs", "zarr.json"):
        if (good / name).is_file():
            for folder in (store, store.parent):
                shutil.copy(good / name, folder)
    for consolidated in (*store.parent.glob(".zmetadata"), *store.parent.glob("zarr.json")):
        consolidated.write_text(
            re.sub(r'"consolidated_metadata".*', '"node_type": "group"}', consolidated.read_text(), flags=re.DOTALL)
        )
    refused(store.parent, "no 'obs'; .*SpatialData store holds its tables under tables/")
    chunks = [
        p for p in (good / "X" / "data").rglob("*") if p.is_file() and p.name not in (".zarray", ".zattrs", "zarr.json")
    ]
    chunks[0].write_bytes(chunks[0].read_bytes()[:10])
    refused(good, "cannot be read .* it is truncated")


@pytest.mark.parametrize("form", [as_is, as_h5ad, as_zarr])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.X.data.__setitem__(-1, 0.5), "1 values that are no counts, such as 0.5"),
        (lambda a: a.X.data.__setitem__(-1, -1), "negative"),
        (lambda a: a.X.data.__setitem__(-1, np.nan), "1 NaN"),
        (lambda a: setattr(a, "var_names", ["A", "A", "B", "C"]), r"1 gene names occur more than once .*\['A'\]"),
        (lambda a: setattr(a, "X", None), "X is empty"),
        (lambda a: setattr(a, "var_names", [f"{16 * base}-1" for base in "ACGT"]), "'A{16}-1': .* looks transposed"),
    ],
)
@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_data_that_are_refused(form: Callable, change: Callable, message: str, tmp_path: Path) -> None:
    adata = slide("a")
    change(adata)
    refused(form(adata, tmp_path), message)


def test_no_spots(tmp_path: Path) -> None:
    refused(as_h5ad(slide("a")[:0].copy(), tmp_path), "holds no spots")
