from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import hibiost as hb
from hibiost.errors import DataError
from hibiost.io import Corpus, _survey
from hibiost.tl._spots import parts

N_SLIDES = 7
METADATA = {"species": "Homo sapiens", "organ": "Breast", "st_technology": "Visium", "license": "CC BY 4.0"}


@pytest.fixture(scope="module")
def _sections():
    with hb.settings.override(verbosity="error", progress=False):
        adata = hb.datasets.tissue(40, n_genes=60, n_slides=N_SLIDES, pitch_px=24)
    for entry in adata.uns["spatial"].values():
        entry["metadata"] |= METADATA
    adata.uns["spatial"]["tissue_1"]["metadata"]["organ"] = "Kidney"
    return adata


@pytest.fixture(scope="module")
def _written(_sections, tmp_path_factory):
    folder = tmp_path_factory.mktemp("Korpus ä")
    hb.io.write_hest(_sections, folder)
    return folder


@pytest.fixture
def sections(_sections):
    return _sections.copy()


@pytest.fixture
def folder(_written, tmp_path):
    return Path(shutil.copytree(_written, tmp_path / "Korpus ä"))


def part(adata, *names):
    chosen = adata[adata.obs["library_id"].isin(names).to_numpy()].copy()
    chosen.uns["spatial"] = {name: chosen.uns["spatial"][name] for name in names}
    return chosen


def write_zarr(adata, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(path)


def told(corpus, slide):
    found = corpus.problems
    return {row.problem: bool(row.blocking) for row in found[found["slide"] == slide].itertuples()}


def edit(folder, slide):
    return h5py.File(folder / "st" / f"{slide}.h5ad", "r+")


# -- index -----------------------------------------------------------------------------------------------------------


def test_index_of_a_hest_folder(folder):
    corpus = Corpus(folder)
    names = [f"tissue_{i}" for i in range(N_SLIDES)]
    assert list(corpus.index.index) == names
    assert len(corpus) == N_SLIDES
    assert repr(corpus) == "Corpus(7 slides, 280 spots)"
    row = corpus.index.loc["tissue_1"].to_dict()
    assert row == {
        "path": str(folder / "st" / "tissue_1.h5ad"),
        "n_spots": 40,
        "n_genes": 60,
        "gene_names": "symbols in human case",
        "species": "Homo sapiens",
        "organ": "Kidney",
        "disease_state": pytest.approx(np.nan, nan_ok=True),
        "patient": "P1",
        "st_technology": "Visium",
        "license": "CC BY 4.0",
        "mpp": 0.5,
        "has_image": True,
        "has_patches": False,
        "n_problems": 0,
        "usable": True,
    }
    assert corpus.problems.empty
    corpus.check()


def test_files_of_every_kind_and_of_several_slides(sections, tmp_path):
    part(sections, "tissue_0").write_h5ad(tmp_path / "a.h5ad")
    write_zarr(part(sections, "tissue_1", "tissue_2"), tmp_path / "b.zarr")
    bare = ad.AnnData(sections[:40].X.toarray(), obs=pd.DataFrame(index=[f"s{i}" for i in range(40)]))
    bare.var_names = sections.var_names
    bare.write_h5ad(tmp_path / "bare.h5ad")
    hb.io.write_hest(part(sections, "tissue_3"), tmp_path / "hest")
    memory = part(sections, "tissue_4", "tissue_5")
    corpus = Corpus([tmp_path / "a.h5ad", str(tmp_path / "b.zarr"), tmp_path / "bare.h5ad", tmp_path / "hest", memory])
    assert list(corpus.index.index) == ["tissue_0", "tissue_1", "tissue_2", "bare", "tissue_3", "tissue_4", "tissue_5"]
    assert corpus.index["n_spots"].tolist() == [40] * 7
    assert corpus.index["path"].map(lambda path: Path(path).name).tolist() == [
        *("a.h5ad", "b.zarr", "b.zarr", "bare.h5ad", "tissue_3.h5ad", "", "")
    ]
    assert corpus.index["usable"].tolist() == [True, True, True, False, True, True, True]
    for name, adata in zip(corpus.index.index, corpus, strict=True):
        assert adata.obs["library_id"].unique().tolist() == [name]
        assert corpus[name].n_obs == 40
        if name != "bare":
            assert list(adata.uns["spatial"]) == [name]
            assert (adata.X != part(sections, name).X).nnz == 0


def test_survey_reads_no_matrix(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a whole file was read")

    for function in ("read_hest", "read_h5ad"):
        monkeypatch.setattr(_survey, function, refuse)
    monkeypatch.setattr(ad, "read_h5ad", refuse)
    monkeypatch.setattr(_survey, "SAMPLE", 30)
    with edit(folder, "tissue_2") as file:
        data = file["X/data"]
        data[100] = -7.5  # beside what is looked at
    corpus = Corpus(folder)
    assert corpus.problems.empty
    with edit(folder, "tissue_2") as file:
        file["X/data"][len(file["X/data"]) - 3] = -7.5
    assert told(Corpus(folder), "tissue_2") == {
        "X holds 1 values that are no counts, such as -7.5; hibiost needs raw counts: name the layer that holds them "
        "with layer=.": True
    }


def test_slides_are_read_one_at_a_time(folder, monkeypatch):
    calls = []
    read = _survey.read_hest
    monkeypatch.setattr(_survey, "read_hest", lambda root, name, **kw: calls.append(name) or read(root, name, **kw))
    slides = iter(Corpus(folder))
    assert calls == []
    next(slides)
    assert calls == ["tissue_0"]
    next(slides)
    assert calls == ["tissue_0", "tissue_1"]


def test_a_file_of_several_slides_is_read_once(sections, tmp_path, monkeypatch):
    sections.write_h5ad(tmp_path / "all.h5ad")
    corpus = Corpus(tmp_path / "all.h5ad")
    calls = []
    read = ad.read_h5ad
    monkeypatch.setattr(ad, "read_h5ad", lambda path: calls.append(path) or read(path))
    assert sum(adata.n_obs for adata in corpus) == 280
    assert len(calls) == 1


def test_only_the_spots_with_a_patch_where_there_is_no_image(sections, tmp_path):
    adata = part(sections, "tissue_0")
    hb.io.write_hest(adata, tmp_path, patches=True)
    with h5py.File(tmp_path / "patches" / "tissue_0.h5", "r+") as file:
        kept = {name: file[name][:30] for name in ("img", "coords", "barcode")}
        attributes = dict(file["img"].attrs)
        for name, values in kept.items():
            del file[name]
            file[name] = values
        file["img"].attrs.update(attributes)
    with edit(tmp_path, "tissue_0") as file:
        del file["uns/spatial/ST/images"]
    corpus = Corpus(tmp_path)
    assert told(corpus, "tissue_0") == {"10 of 40 spots have no patch and are left out.": False}
    assert corpus.index.loc["tissue_0", ["n_spots", "has_image", "has_patches", "usable"]].tolist() == [
        *(30, False, True, True)
    ]
    assert corpus["tissue_0"].n_obs == 30
    assert corpus.vocabulary() == hb.io.fit_vocabulary(part(sections, "tissue_0")[:30].copy())


# -- problems --------------------------------------------------------------------------------------------------------


def test_every_problem_of_every_slide_at_once(folder):
    path = folder / "st" / "tissue_0.h5ad"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with edit(folder, "tissue_1") as file:
        file["X/data"][:] = np.log1p(file["X/data"][:])
    with edit(folder, "tissue_2") as file:
        del file["obsm/spatial"], file["obs/pxl_col_in_fullres"]
        del file["uns/spatial/ST/images"]
    with edit(folder, "tissue_3") as file:
        file["obsm/spatial"][:] = file["obsm/spatial"][:] * 50
    (folder / "metadata" / "tissue_4.json").write_text("<!doctype html>")
    with edit(folder, "tissue_5") as file:
        names = file["obs"][file["obs"].attrs["_index"]]
        names = names["values"] if isinstance(names, h5py.Group) else names  # anndata 0.13
        names[3] = names[7]
    corpus = Corpus(folder)
    assert corpus.index["usable"].tolist() == [False] * 6 + [True]
    with pytest.raises(DataError) as error:
        corpus.check()
    lines = str(error.value).splitlines()
    assert lines[0].startswith(
        "6 of 7 slides cannot be used. Mend them, or go on without them: corpus.select('usable')"
    )
    for slide, words in {
        "tissue_0": "it is truncated, damaged or of another kind",
        "tissue_1": "values that are no counts",
        "tissue_2": "no image and no patches for slide",
        "tissue_3": "spots of slide 'tissue_3' lie outside its image",
        "tissue_4": "it is a web page",
        "tissue_5": "1 barcodes occur more than once",
    }.items():
        assert any(line.startswith(f"  {slide}: ") and words in line for line in lines), (slide, lines)
    assert any(line.startswith("  tissue_2: no obsm['spatial']") for line in lines)
    assert not any("tissue_6" in line for line in lines)
    corpus.select("usable").check()
    with pytest.raises(DataError, match=r"6 of 7 slides cannot be used(.|\n)*tissue_5: "):
        hb.tl.pretrain(folder)


def test_what_is_absent_but_does_not_hinder(folder, caplog):
    (folder / "metadata" / "tissue_0.json").unlink()
    corpus = Corpus(folder)
    assert told(corpus, "tissue_0") == {
        "has no metadata/tissue_0.json.": False,
        "its pixel size is unknown: patches can be cut in full-resolution pixels only.": False,
        "its species is unknown (metadata 'species').": False,
    }
    assert np.isnan(corpus.index.loc["tissue_0", "mpp"])
    logging.getLogger("hibiost").propagate = True
    try:
        with caplog.at_level(logging.WARNING, logger="hibiost"):
            corpus.check()
    finally:
        logging.getLogger("hibiost").propagate = False
    assert "all 7 slides can be used" in caplog.text
    assert "(tissue_0: its species is unknown" in caplog.text


def test_problems_of_slides_together(sections, tmp_path):
    hb.io.write_hest(sections, tmp_path)
    shutil.copy(tmp_path / "st" / "tissue_0.h5ad", tmp_path / "st" / "again.h5ad")
    content = json.loads((tmp_path / "metadata" / "tissue_0.json").read_text())
    (tmp_path / "metadata" / "again.json").write_text(json.dumps(content | {"id": "again"}))
    mouse = part(sections, "tissue_5")
    mouse.var_names = mouse.var_names.str.capitalize()
    mouse.uns["spatial"]["tissue_5"]["metadata"]["species"] = "Mus musculus"
    hb.io.write_hest(mouse, tmp_path, overwrite=True)
    corpus = Corpus([tmp_path, part(sections, "tissue_6")])
    assert told(corpus, "tissue_0") == {
        "has the barcodes, coordinates and counts of 'again': the section is there twice.": True,
        "it is of Homo sapiens, other slides of Mus musculus.": False,
    }
    assert told(corpus, "tissue_5") == {
        "its genes are symbols in mouse case, those of most slides symbols in human case; bring them to one: "
        "hb.pp.map_genes.": True,
        "it is of Mus musculus, other slides of Homo sapiens.": False,
    }
    twice = corpus.problems[corpus.problems["slide"] == "tissue_6"]["problem"].tolist()
    assert "2 slides bear this name; it is in memory." in twice
    with pytest.raises(DataError, match="2 slides are named 'tissue_6'"):
        corpus["tissue_6"]
    alone = corpus.select("species == 'Homo sapiens' and path != ''").select(["tissue_0", "tissue_1"])
    assert alone.problems.empty


def test_ensembl_identifiers_beside_symbols(sections, tmp_path):
    ensembl = part(sections, "tissue_0")
    ensembl.var["gene_symbols"] = list(ensembl.var_names)
    ensembl.var_names = [f"ENSG{i:011d}" for i in range(60)]
    hb.io.write_hest(ensembl, tmp_path)
    hb.io.write_hest(part(sections, "tissue_1", "tissue_2"), tmp_path)
    corpus = Corpus(tmp_path)
    assert corpus.problems.empty  # read_hest names them by symbol
    assert corpus.vocabulary() == hb.io.fit_vocabulary(part(sections, "tissue_0", "tissue_1", "tissue_2"))
    del ensembl.var["gene_symbols"]
    hb.io.write_hest(ensembl, tmp_path, overwrite=True)
    corpus = Corpus(tmp_path)
    assert corpus.index["gene_names"].tolist() == ["Ensembl identifiers", *["symbols in human case"] * 2]
    assert any("its genes are Ensembl identifiers" in problem for problem in told(corpus, "tissue_0"))


def test_problems_of_plain_files(sections, tmp_path):
    adata = part(sections, "tissue_0")
    adata.uns["spatial"]["tissue_0"]["metadata"] |= {"mpp": -1.0, "source_image_path": str(tmp_path / "no.tif")}
    adata.var_names = ["ACTB", "ACTB", *adata.var_names[2:]]
    adata.write_h5ad(tmp_path / "a.h5ad")
    empty = part(sections, "tissue_1")
    empty.X = sparse.csr_matrix(empty.shape, dtype="float32")
    empty.write_h5ad(tmp_path / "b.h5ad")
    transposed = part(sections, "tissue_2")
    transposed.write_h5ad(tmp_path / "c.h5ad")
    with h5py.File(tmp_path / "c.h5ad", "r+") as file:
        file["X"].attrs["shape"] = (60, 40)
    mixed = hb.datasets.tissue(50)
    mixed.var_names = [f"ENS{'MUS' * (i % 3 == 0)}G{i:011d}" for i in range(mixed.n_vars)]
    mixed.write_h5ad(tmp_path / "mixed.h5ad")
    files = [tmp_path / f"{name}.h5ad" for name in ("a", "b", "c", "d", "mixed")]
    corpus = Corpus([*files, tmp_path])
    a = " ".join(told(corpus, "tissue_0"))
    assert "2 gene names occur more than once, such as 'ACTB'" in a
    assert "['mpp'] is -1" in a or "no.tif" in a
    assert told(corpus, "tissue_1") == {"all counts are zero.": True}
    assert told(corpus, "tissue_2") == {"X has shape (60, 40) for 40 spots and 60 genes.": True}
    assert "there is no such file" in next(iter(told(corpus, "d")))
    assert "neither a zarr store nor a folder in HEST's layout" in next(iter(told(corpus, tmp_path.stem)))
    problems = corpus.problems["problem"]
    assert problems.str.startswith("mixes species: 200 of its genes are of human and 100 of mouse").sum() == 1


def test_an_image_that_is_gone(tmp_path, caplog):
    adata = hb.datasets.tissue(40, n_genes=60, n_slides=2, pitch_px=200, image_path=tmp_path / "scans")
    for entry in adata.uns["spatial"].values():
        entry["metadata"]["species"] = "Homo sapiens"
    hb.io.write_hest(adata, tmp_path / "hest")
    adata.write_h5ad(tmp_path / "both.h5ad")
    assert Corpus(tmp_path / "hest").problems.empty
    lost = tmp_path / "scans" / "tissue_1.tif"
    lost.unlink()
    corpus = Corpus(tmp_path / "hest")
    reduced = adata.uns["spatial"]["tissue_1"]["scalefactors"]["tissue_hires_scalef"]
    assert reduced < 0.9
    assert told(corpus, "tissue_0") == {}
    gone, small = told(corpus, "tissue_1")
    assert gone == f"its image is no longer there: {lost}."
    assert f"no full-resolution image: patches are read from images['hires'], at {reduced:.1%}" in small
    assert corpus.index["usable"].all()
    assert corpus.index["has_image"].tolist() == [True, False]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "hibiost"):
        hb.io.read_hest(tmp_path / "hest", "tissue_0")
        assert not caplog.text
        hb.io.read_hest(tmp_path / "hest", "tissue_1", image=False)
        assert not caplog.text
        hb.io.read_hest(tmp_path / "hest", "tissue_1")
    assert f"'tissue_1': its image is no longer there: {lost}" in caplog.text
    assert any(
        str(lost) in problem and blocking
        for problem, blocking in told(Corpus(tmp_path / "both.h5ad"), "tissue_1").items()
    )


def test_counts_in_a_layer_and_slides_by_another_column(sections, tmp_path):
    adata = part(sections, "tissue_0", "tissue_1")
    adata.layers["counts"], adata.X = adata.X.copy(), adata.X.log1p()
    adata.obs["section"] = adata.obs.pop("library_id")
    adata.write_h5ad(tmp_path / "a.h5ad")
    wrong = Corpus(tmp_path / "a.h5ad", library_key="section")
    assert "values that are no counts" in " ".join(told(wrong, "tissue_1"))
    assert "no layer" not in str(wrong.problems)
    assert "the layers are ['counts']" in str(
        list(told(Corpus(tmp_path / "a.h5ad", library_key="section", layer="raw"), "tissue_0"))
    )
    nameless = Corpus([tmp_path / "a.h5ad", part(sections, "tissue_2")])
    assert "no obs['library_id']" in " ".join(told(nameless, "a"))
    corpus = Corpus(tmp_path / "a.h5ad", library_key="section", layer="counts")
    assert corpus.problems.empty
    assert corpus.vocabulary() == hb.io.fit_vocabulary(part(sections, "tissue_0", "tissue_1"))


@pytest.mark.parametrize("backed", [False, True])
def test_dense_counts(sections, tmp_path, backed):
    adata = part(sections, "tissue_0")
    adata.X = adata.X.toarray()
    adata.X[20, 5] = np.nan
    adata.write_h5ad(tmp_path / "a.h5ad")
    source = ad.read_h5ad(tmp_path / "a.h5ad", backed="r") if backed else tmp_path / "a.h5ad"
    corpus = Corpus(source)
    assert next(iter(told(corpus, "tissue_0"))).startswith("X holds 1 NaN or infinite values")


def test_refused_at_once(folder, tmp_path):
    with pytest.raises(DataError, match=r"no slides: the list is empty"):
        Corpus([])
    with pytest.raises(DataError, match=r"a source is a int; expected AnnData, or a path"):
        Corpus([3])
    with pytest.raises(DataError, match=r"1 of 1 slides cannot be used(.|\n)*there is no such file"):
        Corpus(tmp_path / "nothing.h5ad")
    (tmp_path / "empty" / "st").mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds no .h5ad file; expected a folder in HEST's layout"):
        Corpus(tmp_path / "empty")
    corpus = Corpus(folder)
    with pytest.raises(DataError, match=r"no slide 'tissue_61' among 7.*Did you mean .*'tissue_6'"):
        corpus["tissue_61"]


# -- selections ------------------------------------------------------------------------------------------------------


def test_select(folder):
    corpus = Corpus(folder)
    for which in ("organ == 'Kidney'", corpus.index["organ"] == "Kidney", ["tissue_1"], pd.Index(["tissue_1"])):
        assert list(corpus.select(which).index.index) == ["tissue_1"]
    held_out = corpus.select("patient not in ['P0', 'P3']")
    assert held_out.index["patient"].tolist() == ["P1", "P2", "P4", "P5", "P6"]
    assert [adata.obs["patient"].iloc[0] for adata in held_out] == held_out.index["patient"].tolist()
    assert len(corpus) == N_SLIDES
    for which in ("organ == 'Lung'", [True], []):
        with pytest.raises(DataError, match="selects none of 7 slides, or is of another length"):
            corpus.select(which)
    with pytest.raises(DataError, match=r"'organs == 1' is no condition on \['path', 'n_spots'"):
        corpus.select("organs == 1")
    with pytest.raises(DataError, match="no slide 'x' among 7"):
        corpus.select(["x"])


# -- vocabulary, sentences, dask -------------------------------------------------------------------------------------


def n_counts(adata, factor=1):
    return str(adata.obs["library_id"].iloc[0]), factor * int(adata.X.sum())


def test_vocabulary_is_that_of_all_slides_in_memory(sections, folder):
    vocabulary = Corpus(folder).vocabulary(min_spots=5)
    assert vocabulary == hb.io.fit_vocabulary(sections, min_spots=5)
    assert vocabulary.metadata["organ:kidney"] == 40
    assert Corpus(sections).vocabulary(min_spots=5) == vocabulary
    assert Corpus(sections).select(["tissue_1", "tissue_4"]).vocabulary() == hb.io.fit_vocabulary(
        part(sections, "tissue_1", "tissue_4")
    )


def test_map(sections, folder):
    expected = [n_counts(part(sections, f"tissue_{i}")) for i in range(N_SLIDES)]
    assert list(Corpus(folder).map(n_counts)) == expected
    assert list(Corpus(folder).map(n_counts, factor=2))[3] == (expected[3][0], 2 * expected[3][1])


@pytest.mark.filterwarnings("ignore:Couldn't detect a suitable IP address:RuntimeWarning")  # tests have no network
@pytest.mark.global_rng
def test_dask_gives_the_same(sections, folder, tmp_path):
    distributed = pytest.importorskip("distributed")
    memory = part(sections, "tissue_6")
    (folder / "st" / "tissue_6.h5ad").unlink()
    corpus = Corpus([folder, memory])
    vocabulary = corpus.vocabulary()
    options = {"vocabulary": vocabulary, "n_genes": 20, "layer": None, "library_key": "library_id"}

    def sentences():
        return [(slides[0].library_id, table.tolist(), words) for slides, table, words in corpus.map(parts, **options)]

    def thread(adata):
        return threading.current_thread().name

    alone = sentences()
    assert [name for name, *_ in alone] == [f"tissue_{i}" for i in range(N_SLIDES)]
    here = threading.current_thread().name
    assert list(corpus.map(thread)) == [here] * N_SLIDES
    with (
        distributed.LocalCluster(
            processes=False,
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
            scheduler_kwargs={"dashboard": False},
        ) as cluster,
        distributed.Client(cluster),
    ):
        assert corpus.vocabulary() == vocabulary
        assert sentences() == alone
        assert [name == here for name in corpus.map(thread)] == [False] * 6 + [True]
        written = corpus.write(tmp_path / "new", hb.pp.tfidf_sentences, vocabulary=vocabulary, n_genes=20)
        assert {spot: words for adata in written for spot, words in sentences_of(adata).items()} == in_memory(
            sections, vocabulary
        )
        tables = corpus.map(hb.pp.tfidf_sentences, vocabulary=vocabulary, n_genes=20, copy=True)
        assert [sentences_of(adata) for adata in tables] == [sentences_of(adata) for adata in written]
        path = folder / "st" / "tissue_3.h5ad"
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(DataError, match="tissue_3.h5ad cannot be read"):
            corpus.vocabulary()


# -- writing ---------------------------------------------------------------------------------------------------------


def sentences_of(adata):
    table = adata.obsm["gene_sentence"]
    genes = np.array([*adata.uns["gene_sentence"]["genes"], ""], dtype=object)
    return dict(zip(adata.obs_names, genes[table].tolist(), strict=True))


def in_memory(sections, vocabulary):
    expected = sections.copy()
    hb.pp.tfidf_sentences(expected, vocabulary=vocabulary, n_genes=20)
    return sentences_of(expected)


def test_sentences_of_a_corpus_on_disk(sections, folder, tmp_path):
    untouched = part(sections, "tissue_6")
    untouched.uns["spatial"]["tissue_6"]["metadata"]["organ"] = "Lung"
    (folder / "st" / "tissue_6.h5ad").unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    given = untouched.copy()
    corpus = Corpus([folder, given])
    vocabulary = corpus.vocabulary()
    written = corpus.write(tmp_path / "Sätze", hb.pp.tfidf_sentences, vocabulary=vocabulary, n_genes=20)
    expected = in_memory(sections, vocabulary)
    found = {}
    for adata in written:
        found |= sentences_of(adata)
        assert "tfidf" in adata.layers
    assert found == expected
    assert written.index["organ"].tolist() == ["Breast", "Kidney", *["Breast"] * 4, "Lung"]
    assert written.index["n_problems"].sum() == 0
    assert (written["tissue_2"].X != part(sections, "tissue_2").X).nnz == 0
    assert {path: path.read_bytes() for path in before} == before
    assert given.obsm.keys() == untouched.obsm.keys()
    assert given.uns["spatial"]["tissue_6"]["metadata"] == untouched.uns["spatial"]["tissue_6"]["metadata"]
    assert "idf" not in given.var


def other_slide(adata):
    adata.uns["spatial"][adata.obs["library_id"].iloc[0]]["metadata"]["organ"] = "Skin"
    return adata[:30, ::-1].copy()


@pytest.mark.parametrize("names", [["tissue_0"], ["tissue_0", "tissue_3"]])
def test_written_is_what_the_function_returns(sections, tmp_path, names):
    given = part(sections, *names)
    written = Corpus(given).write(tmp_path / "a", other_slide)
    assert written.index["n_spots"].tolist() == [30] * len(names)
    assert written.index["organ"].tolist() == ["Skin"] * len(names)
    assert list(written[names[-1]].var_names) == list(sections.var_names[::-1])
    assert [given.uns["spatial"][name]["metadata"]["organ"] for name in names] == ["Breast"] * len(names)


def test_written_from_a_layer_and_another_column(sections, tmp_path):
    adata = part(sections, "tissue_0", "tissue_1")
    adata.layers["counts"], adata.X = adata.X.copy(), adata.X.log1p()
    adata.obs["section"] = adata.obs.pop("library_id")
    adata.write_h5ad(tmp_path / "a.h5ad")
    corpus = Corpus(tmp_path / "a.h5ad", library_key="section", layer="counts")
    written = corpus.write(tmp_path / "new", hb.pp.tfidf_sentences, layer="counts", library_key="section")
    assert list(written.index.index) == ["tissue_0", "tissue_1"]
    assert (adata[40:].layers["counts"] != written["tissue_1"].X).nnz == 0
    assert set(written["tissue_1"].obs["section"]) == {"tissue_1"}


class Failing:
    """Fails at a slide, and tells the slides it was called with."""

    def __init__(self, bad=""):
        self.bad, self.seen = bad, []

    def __call__(self, adata, **options):
        self.seen.append(adata.obs["library_id"].iloc[0])
        if self.seen[-1] == self.bad:
            raise RuntimeError("out of luck")
        hb.pp.tfidf_sentences(adata, **options)


def test_a_failed_run_goes_on_where_it_stopped(folder, tmp_path, caplog):
    corpus, new = Corpus(folder), tmp_path / "new"
    failing, working = Failing("tissue_3"), Failing()
    with pytest.raises(RuntimeError, match="out of luck") as caught:
        corpus.write(new, failing, n_genes=20)
    assert caught.value.__notes__ == ["This was slide 'tissue_3' of the corpus."]
    assert sorted(path.name for path in new.rglob("*.*")) == sorted(
        f"tissue_{i}.{ending}" for i in range(3) for ending in ("h5ad", "json")
    )
    first = (new / "st" / "tissue_0.h5ad").read_bytes()
    with caplog.at_level(logging.INFO, "hibiost"):
        written = corpus.write(new, working, n_genes=20)
    assert "3 of 7 slides are in" in caplog.text
    assert working.seen == ["tissue_3", "tissue_4", "tissue_5", "tissue_6"]
    assert (new / "st" / "tissue_0.h5ad").read_bytes() == first
    assert len(written) == N_SLIDES
    part_of_it = corpus.select(["tissue_1", "tissue_5"]).write(new, Failing("any"), n_genes=20)
    assert list(part_of_it.index.index) == ["tissue_1", "tissue_5"]
    assert part_of_it["tissue_1"].obsm["gene_sentence"].shape == (40, 20)
    again = corpus.select(["tissue_1"]).write(new, hb.pp.tfidf_sentences, overwrite=True, n_genes=10)
    assert again["tissue_1"].obsm["gene_sentence"].shape == (40, 10)


KILLED = """
import os, sys
from pathlib import Path
import hibiost as hb
whole = Path.write_bytes
def write_bytes(path, content):
    if path.name.startswith("tissue_2.h5ad"):
        whole(path, content[:5000])
        os._exit(9)
    return whole(path, content)
Path.write_bytes = write_bytes
hb.io.Corpus(sys.argv[1]).write(sys.argv[2], hb.pp.tfidf_sentences, n_genes=20)
"""


def test_killed_while_writing(folder, tmp_path):
    new = tmp_path / "new"
    killed = subprocess.run([sys.executable, "-c", KILLED, folder, new], capture_output=True, text=True, check=False)
    assert killed.returncode == 9, killed.stderr
    assert sorted(path.name for path in (new / "st").glob("*.h5ad")) == ["tissue_0.h5ad", "tissue_1.h5ad"]
    assert (new / "st" / "tissue_2.h5ad.part").stat().st_size == 5000
    assert Corpus(new).index["usable"].tolist() == [True, True]
    written = Corpus(folder).write(new, hb.pp.tfidf_sentences, n_genes=20)
    straight = Corpus(folder).write(tmp_path / "straight", hb.pp.tfidf_sentences, n_genes=20)
    assert [sentences_of(adata) for adata in written] == [sentences_of(adata) for adata in straight]
    assert not list(new.rglob("*.part"))


def test_refusals_of_writing(sections, folder, tmp_path):
    corpus = Corpus(folder)
    with pytest.raises(DataError, match="is the folder that slides are read from; choose another"):
        corpus.write(folder, hb.pp.tfidf_sentences, overwrite=True)
    with pytest.raises(DataError, match="is the folder that slides are read from; choose another"):
        corpus.select(["tissue_1"]).write(folder / "st" / "..", hb.pp.tfidf_sentences)
    with pytest.raises(DataError, match="several slides are named 'tissue_1'"):
        Corpus([folder, part(sections, "tissue_1")]).write(tmp_path / "new", hb.pp.tfidf_sentences)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is a file; expected a folder"):
        corpus.write(tmp_path / "file", hb.pp.tfidf_sentences)
    nameless = part(sections, "tissue_0")
    nameless.obs["library_id"] = "a/b"
    nameless.uns["spatial"] = {"a/b": nameless.uns["spatial"]["tissue_0"]}
    with pytest.raises(DataError, match="'a/b', which is no name for a file"):
        Corpus(nameless).write(tmp_path / "new", hb.pp.tfidf_sentences)
    assert not (tmp_path / "new").exists()
    with pytest.raises(DataError, match=r"the function returned a tuple; .* corpus.map\(function\)"):
        corpus.write(tmp_path / "new", n_counts)
    assert not (tmp_path / "new").exists()


# -- training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return hb.model.ModelConfig(
        embed_dim=8,
        vision_cfg={"timm_model_name": "resnet10t", "timm_pool": "avg", "image_size": 32},
        text_cfg={"context_length": 32, "width": 8, "heads": 2, "layers": 1},
        patch_size=32,
        recipe={"epochs": 1, "batch_size": 32, "lr": 1e-3, "precision": "32", "shift": 0, "n_genes": 20},
    )


def train(adata, tiny):
    return hb.tl.pretrain(adata, image_encoder=tiny).fingerprint()


def test_training_on_files_is_training_on_what_they_hold(sections, folder, tiny):
    names = ["tissue_1", "tissue_4"]
    memory = [part(sections, name) for name in names]
    expected = train(memory, tiny)
    assert train(Corpus(folder).select(names), tiny) == expected
    for name, adata in zip(names, memory, strict=True):
        adata.write_h5ad(folder / f"{name}.h5ad")
    assert train([folder / f"{name}.h5ad" for name in names], tiny) == expected
    for path in (folder / "st").glob("*.h5ad"):
        if path.stem not in names:
            path.unlink()
    assert train(str(folder), tiny) == expected
    with pytest.raises(DataError, match="list is empty"):
        hb.tl.pretrain([])
