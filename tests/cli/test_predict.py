import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import hibiost as hb
from hibiost.cli import main

GENES = ["ERBB2", "IGLL5"]


def predict(shelf, out, *arguments, slide="third.h5ad"):
    arguments = [str(shelf / text) if (shelf / text).exists() else text for text in arguments]
    return main(["predict", str(shelf / slide), "--out", str(out), *arguments])


@pytest.fixture
def from_hest():
    return ["--reference", "hest", "--model", "model"]


def test_by_retrieval_as_the_verbs_do(shelf, tmp_path, capsys, from_hest):
    assert predict(shelf, tmp_path, *from_hest, "--target", "normalized") == 0
    found = ad.read_h5ad(tmp_path / "tissue_2.h5ad")
    slide, model = ad.read_h5ad(shelf / "third.h5ad"), hb.model.load(shelf / "model")
    reference = hb.io.concat(list(hb.io.Corpus(shelf / "hest")))
    hb.tl.embed(reference, model=model, modality="image")
    hb.tl.predict(slide, reference, model=model, target="normalized")
    pd.testing.assert_frame_equal(
        found.obsm["predicted_expression"], slide.obsm["predicted_expression"], check_names=False
    )
    trusted = hb.get.predicted_genes(slide)["trusted"].sum()
    assert hb.get.predicted_genes(found)["trusted"].sum() == trusted
    told = f"tissue_2: 80 genes of 30 spots, {trusted} of them trusted (expected PCC of at least 0.2 on slides "
    told += "like the reference's)\n"
    assert capsys.readouterr().out == told
    assert predict(shelf, tmp_path, *from_hest, "--genes", "ERBB2") == 1
    assert "made by another command or with other options" in capsys.readouterr().err


def test_an_image_alone(shelf, tmp_path, capsys, from_hest):
    options = ["--genes", ",".join(GENES), "--mpp", "0.5", "--spacing-um", "20"]
    assert predict(shelf, tmp_path, *from_hest, *options, slide="tumour.png") == 0
    found = ad.read_h5ad(tmp_path / "tumour.h5ad")
    assert list(found.obsm["predicted_expression"].columns) == GENES
    assert re.match(f"tumour: 2 genes of {found.n_obs} spots, [012] of them trusted", capsys.readouterr().out)
    hb.pl.spatial_pred(found, gene="IGLL5")


def test_embeddings_of_the_reference_are_not_made_anew(shelf, tmp_path, monkeypatch, from_hest):
    assert predict(shelf, tmp_path / "fresh", *from_hest) == 0
    assert main(["embed", str(shelf / "hest"), "--model", str(shelf / "model"), "--out", str(tmp_path / "known")]) == 0
    known = sorted(map(str, (tmp_path / "known").iterdir()))
    monkeypatch.setattr(hb.tl, "embed", None)
    assert predict(shelf, tmp_path / "again", "--reference", *known, "--model", "model") == 0
    fresh, again = (ad.read_h5ad(tmp_path / name / "tissue_2.h5ad") for name in ("fresh", "again"))
    pd.testing.assert_frame_equal(fresh.obsm["predicted_expression"], again.obsm["predicted_expression"])
    np.testing.assert_array_equal(hb.get.predicted_genes(fresh), hb.get.predicted_genes(again))


def test_a_reference_without_images(shelf, tmp_path, capsys):
    bare = ad.read_h5ad(shelf / "third.h5ad")
    bare.uns["spatial"] = {}
    bare.obsm["X_hibiost_image"] = np.full((bare.n_obs, 16), np.nan)
    bare.write_h5ad(tmp_path / "bare.h5ad")
    command = ["--reference", str(tmp_path / "bare.h5ad"), "--model", "model"]
    assert predict(shelf, tmp_path / "out", *command, slide="hest") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(";")[0] for line in lines] == [f"tissue_{n}: 80 genes of 30 spots" for n in (0, 1)]


def test_by_regression_and_by_a_predictor(shelf, tmp_path, capsys, from_hest):
    reference = hb.io.concat(list(hb.io.Corpus(shelf / "hest")))
    hb.tl.fit_predictor(reference, model=hb.model.load(shelf / "model"), genes=GENES).save(tmp_path / "predictor")
    fitted = ["--method", "regression", "--genes", "ERBB2,IGLL5"]
    assert predict(shelf, tmp_path / "a", *from_hest, *fitted) == 0
    assert predict(shelf, tmp_path / "b", "--predictor", str(tmp_path / "predictor")) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert re.match("tissue_2: 2 genes of 30 spots, [012] of them trusted", first)
    a, b = (ad.read_h5ad(tmp_path / name / "tissue_2.h5ad") for name in "ab")
    pd.testing.assert_frame_equal(a.obsm["predicted_expression"], b.obsm["predicted_expression"])
    assert predict(shelf, tmp_path / "b", "--predictor", str(tmp_path / "predictor"), "--model", "model") == 1
    assert "--model is for --reference" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reference", "hest", "--genes", "ERBB3"], "not in the reference, such as 'ERBB3'.*'ERBB2'"),
        (["--reference", "hest", "--genes", "ERBB3", "--method", "regression"], "not in the reference"),
        (["--reference", "no-such-folder"], "no-such-folder"),
        (["--predictor", "model"], "no predictor at"),
    ],
    ids=str,
)
def test_refusals_leave_nothing(shelf, tmp_path, capsys, arguments, message):
    model = [] if "--predictor" in arguments else ["--model", "model"]
    assert predict(shelf, tmp_path / "out", *arguments, *model) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_reference_or_predictor_or_the_one_that_ships(shelf, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        predict(shelf, tmp_path, "--reference", "hest", "--predictor", "model")
    assert predict(shelf, tmp_path / "out", "--genes", "MGP,IGLL5") == 0
    assert predict(shelf, tmp_path / "other", "--model", "model") == 1
    told = capsys.readouterr()
    assert "tissue_2: 2 genes of 30 spots, 1 of them trusted" in told.out
    assert re.search(r"no reference given, and .*model brings no predictor", told.err)


def test_retrieval_reads_sentences(shelf, tmp_path, capsys, monkeypatch):
    encoder = object.__new__(hb.model.FeatureEncoder)
    encoder.name = "uni"
    monkeypatch.setattr("hibiost.cli._slides.model_of", lambda name, device: encoder)
    assert predict(shelf, tmp_path, "--reference", "hest", "--model", "uni") == 1
    assert "uni reads images only" in capsys.readouterr().err
