import subprocess
import sys

import pandas as pd
import pytest

import hibiost as hb
from hibiost.cli import demo, main


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "hibiost", *arguments], capture_output=True, text=True, check=False)


def test_help_and_version():
    result = run("--version")
    assert result.stdout.strip() == hb.__version__
    assert "demo" in run("--help").stdout
    assert run("nonsense").returncode == 2


def test_a_refusal_is_one_line(tmp_path, capsys):
    assert main(["demo", "--synthetic", "--image-encoder", "ResNet-11", "--out", str(tmp_path)]) == 1
    assert "Did you mean 'ResNet-10'" in capsys.readouterr().err


def test_demo_on_synthetic_tissue(tmp_path, capsys, monkeypatch):
    """All steps from raw data to figures, where no real section can be reached."""
    monkeypatch.setattr(demo, "SYNTHETIC_SPOTS", 40)
    with hb.settings.override(data_dir=tmp_path / "empty", verbosity="warning", progress=False):
        assert main(["demo", "--epochs", "1", "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert "runs on synthetic tissue" in captured.err
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert {"clusters.png", "predicted_IGLL5.png", "training.png"} <= names
    assert (out / "report.md").read_text() in captured.out
    scores = pd.read_csv(out / "scores.csv")
    assert set(scores["task"]) == {"retrieval", "prediction", "clustering"}
    assert {"chance", "ridge on colour statistics", "mean of the reference"} <= set(scores["method"])
    import anndata as ad

    test = ad.read_h5ad(out / "test.h5ad")
    model = hb.model.load(out / "model")
    assert test.uns["X_hibiost"]["fingerprint"] == model.fingerprint()
    hb.pl.spatial_pred(test, gene="IGLL5")


def test_table():
    scores = pd.DataFrame(
        [("a", "raw", "x", "pcc", 0.5), ("a", "raw", "x", "mse", 2.0), ("b", "raw", "y", "pcc", 1.0)],
        columns=["task", "target", "method", "metric", "value"],
    )
    expected = "| target | method | pcc | mse |\n|---|---|---|---|\n| raw | x | 0.500 | 2.000 |"
    assert demo._table(scores, "a", ("target", "method")) == expected


@pytest.mark.data
def test_the_demos_sections(her2st_dir):
    reference, test, truth = demo._sections(synthetic=False, seed=0)
    assert (reference.n_obs, test.n_obs) == (732, 178)
    assert test.obs[truth].nunique() == 7
    assert set(reference.obs["library_id"]) & set(test.obs["library_id"]) == set()
