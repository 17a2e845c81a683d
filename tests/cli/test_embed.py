import re

import anndata as ad
import numpy as np
import pytest

import hibiost as hb
from hibiost.cli import main


def embed(shelf, out, *arguments, slides=("hest", "third.h5ad")):
    model = [] if "--model" in arguments else ["--model", str(shelf / "model")]
    return main(["embed", *(str(shelf / name) for name in slides), "--out", str(out), *model, *arguments])


@pytest.fixture(scope="module")
def embedded(shelf, tmp_path_factory):
    out = tmp_path_factory.mktemp("embedded")
    assert embed(shelf, out) == 0
    return out


def test_what_the_verbs_write(shelf, embedded):
    assert sorted(path.name for path in embedded.iterdir()) == ["tissue_0.h5ad", "tissue_1.h5ad", "tissue_2.h5ad"]
    model = hb.model.load(shelf / "model")
    for name, adata in (
        ("tissue_1", hb.io.read_hest(shelf / "hest", "tissue_1")),
        ("tissue_2", ad.read_h5ad(shelf / "third.h5ad")),
    ):
        found = ad.read_h5ad(embedded / f"{name}.h5ad")
        hb.pp.tfidf_sentences(adata, vocabulary=model.vocabulary, n_genes=40)
        hb.tl.embed(adata, model=model)
        assert hb.get.sentences(found).tolist() == hb.get.sentences(adata).tolist()
        for key in ("X_hibiost_image", "X_hibiost_gene"):
            np.testing.assert_array_equal(found.obsm[key], adata.obsm[key])
        assert found.uns["X_hibiost"]["fingerprint"] == model.fingerprint()
        np.testing.assert_array_equal(found.X.toarray(), adata.X.toarray())
        assert list(found.uns["spatial"]) == [name]


def test_it_goes_on_where_it_was_stopped(shelf, embedded, tmp_path, capsys):
    kept = {path: path.stat().st_mtime_ns for path in embedded.iterdir()}
    assert embed(shelf, embedded) == 0
    assert capsys.readouterr().out == ""
    assert {path: path.stat().st_mtime_ns for path in embedded.iterdir()} == kept
    assert embed(shelf, tmp_path, slides=["third.h5ad"]) == 0
    capsys.readouterr()
    assert embed(shelf, tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"tissue_{n}: 30 spots, embeddings of images and genes" for n in (0, 1)]
    assert embed(shelf, tmp_path, "--modality", "image") == 1
    assert "made by another command or with other options" in capsys.readouterr().err
    assert embed(shelf, tmp_path, "--modality", "image", "--overwrite", slides=["third.h5ad"]) == 0
    assert capsys.readouterr().out == "tissue_2: 30 spots, embeddings of images\n"
    assert "gene_sentence" not in ad.read_h5ad(tmp_path / "tissue_2.h5ad").obsm


def test_slides_without_counts(shelf, tmp_path):
    """An image alone, and a slide of normalised expression of which only the image is wanted."""
    assert embed(shelf, tmp_path, "--mpp", "0.5", "--spacing-um", "20", slides=["tumour.png"]) == 0
    found = ad.read_h5ad(tmp_path / "tumour.h5ad")
    assert found.n_vars == 0
    assert found.obsm["X_hibiost_image"].shape == (found.n_obs, 16)
    adata = ad.read_h5ad(shelf / "third.h5ad")
    adata.X = adata.X / 7
    adata.write_zarr(tmp_path / "normal.zarr")
    command = ["embed", str(tmp_path / "normal.zarr"), "--out", str(tmp_path), "--model", str(shelf / "model")]
    assert main(command) == 1
    assert main([*command, "--modality", "image"]) == 0
    assert (ad.read_h5ad(tmp_path / "tissue_2.h5ad").X != adata.X).nnz == 0


def test_a_frozen_encoder(shelf, tmp_path, monkeypatch):
    """By its name, from a file in its place."""
    import torch

    trunk = hb.model.load(shelf / "model").visual.trunk
    torch.save(trunk.state_dict(), tmp_path / "weights.pt")
    encoder = hb.model.feature_encoder("timm:resnet10t", tmp_path / "weights.pt", patch_size=32)
    monkeypatch.setattr(hb.model, "feature_encoder", lambda name, device: {"timm:resnet10t": encoder}[name])
    assert embed(shelf, tmp_path, "--model", "timm:resnet10t", slides=["third.h5ad"]) == 0
    found = ad.read_h5ad(tmp_path / "tissue_2.h5ad")
    assert found.obsm["X_hibiost_image"].shape == (30, 512)
    assert "gene_sentence" not in found.obsm


@pytest.mark.parametrize(
    ("slides", "arguments", "message"),
    [
        (["fourth.h5ad"], [], "there is no .*fourth.h5ad"),
        (["third.h5ad", "third.h5ad"], [], "2 slides are named 'tissue_2'"),
        (["third.h5ad"], ["--mpp", "1"], "--mpp is of images"),
        (["third.h5ad"], ["--model", "no/model"], "no model at no/model"),
        (["third.h5ad"], ["--model", "unii"], "Did you mean 'uni'"),
        (["third.h5ad"], ["--device", "gpu"], "device is 'gpu'"),
        (["third.h5ad"], ["--layer", "raw"], "slide 'tissue_2': no layer 'raw'"),
        (["tumour.png"], [], "does not tell the size of its pixels"),
        (["model"], [], "neither a zarr store nor a folder in HEST's layout"),
        (["third.h5ad", "broken.h5ad"], [], "slide 'broken' cannot be read: .*it is empty"),
    ],
    ids=str,
)
def test_refusals_leave_nothing(shelf, tmp_path, capsys, slides, arguments, message):
    (shelf / "broken.h5ad").touch()
    assert embed(shelf, tmp_path / "out", *arguments, slides=slides) == 1
    assert re.search(message, capsys.readouterr().err)
    assert list((tmp_path / "out").glob("*")) == []


def test_no_slide_that_is_read_is_replaced(shelf, capsys):
    before = (shelf / "hest" / "st" / "tissue_0.h5ad").read_bytes()
    assert embed(shelf, shelf / "hest" / "st", "--overwrite", slides=["hest"]) == 1
    assert "is a slide that is read; choose another --out" in capsys.readouterr().err
    assert (shelf / "hest" / "st" / "tissue_0.h5ad").read_bytes() == before


def test_processes_share_the_slides(shelf, embedded, tmp_path, monkeypatch):
    """Each of two takes its slides, and waits for nobody."""
    monkeypatch.setattr("torch.distributed.init_process_group", None)
    around = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    around |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for rank, names in enumerate((["tissue_0", "tissue_2"], ["tissue_1"])):
        for key, value in {**around, "RANK": str(rank), "LOCAL_RANK": str(rank)}.items():
            monkeypatch.setenv(key, value)
        assert embed(shelf, tmp_path / str(rank), "--device", "cpu") == 0
        assert sorted(path.stem for path in (tmp_path / str(rank)).iterdir()) == names
    one, other = (ad.read_h5ad(folder / "tissue_1.h5ad") for folder in (embedded, tmp_path / "1"))
    np.testing.assert_array_equal(one.obsm["X_hibiost_gene"], other.obsm["X_hibiost_gene"])
