from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import hibiost as hb
from hibiost.errors import DataError, MissingSlotError, RunError


@pytest.fixture
def adata() -> AnnData:
    """Sentences written by hand, so that nothing but the slots is read."""
    adata = AnnData(np.zeros((3, 0), dtype=np.float32))
    adata.obs_names = ["a", "b", "c"]
    adata.obsm["gene_sentence"] = np.array([[2, 0, 1], [1, -1, -1], [-1, -1, -1]], dtype=np.int32)
    adata.uns["gene_sentence"] = {"genes": np.array(["ACTB", "ERBB2", "MGP"]), "params": {}}
    return adata


def test_sentences(adata: AnnData) -> None:
    found = hb.get.sentences(adata)
    assert isinstance(found, pd.Series)
    assert found.to_dict() == {"a": "MGP ACTB ERBB2", "b": "ERBB2", "c": ""}
    assert found.name == "gene_sentence"
    assert found.index.equals(adata.obs_names)


def test_options(adata: AnnData) -> None:
    adata.obsm["mine"], adata.uns["mine"] = adata.obsm.pop("gene_sentence"), adata.uns.pop("gene_sentence")
    assert hb.get.sentences(adata, n_genes=2, key="mine", sep=", ").tolist() == ["MGP, ACTB", "ERBB2", ""]
    assert hb.get.sentences(adata, n_genes=99, key="mine").tolist() == ["MGP ACTB ERBB2", "ERBB2", ""]


@pytest.mark.parametrize("attribute", ["obsm", "uns"])
def test_missing(adata: AnnData, attribute: str) -> None:
    del getattr(adata, attribute)["gene_sentence"]
    with pytest.raises(MissingSlotError, match=rf"no {attribute}\['gene_sentence'\].*hibiost.pp.tfidf_sentences"):
        hb.get.sentences(adata)


def test_nearest(adata: AnnData) -> None:
    with pytest.raises(MissingSlotError, match="Did you mean 'gene_sentence'"):
        hb.get.sentences(adata, key="gene_sentences")


def test_n_genes(adata: AnnData) -> None:
    with pytest.raises(DataError, match="n_genes is 0"):
        hb.get.sentences(adata, n_genes=0)


# -- predicted genes --------------------------------------------------------------------------------------------------


def predicted(**columns: list[float] | list[bool]) -> AnnData:
    adata = AnnData(np.zeros((2, 0), dtype=np.float32))
    arrays = {name: np.array(values) for name, values in columns.items()}
    adata.uns["predicted_expression"] = {"genes": np.array(["ACTB", "ERBB2", "MGP"]), "params": {}, **arrays}
    return adata


def test_predicted_genes_most_trusted_first() -> None:
    table = hb.get.predicted_genes(
        predicted(confidence=[0.5, 0.1, 0.3], expected_pcc=[np.nan, 0.4, 0.1], trusted=[False, True, False])
    )
    assert table.index.tolist() == ["ERBB2", "MGP", "ACTB"]
    assert table.index.name == "gene"
    assert table.columns.tolist() == ["confidence", "expected_pcc", "trusted"]
    assert table["trusted"].tolist() == [True, False, False]


def test_predicted_genes_of_what_was_computed() -> None:
    table = hb.get.predicted_genes(predicted(confidence=[0.5, 0.1, 0.3]))
    assert table["confidence"].to_dict() == {"ACTB": 0.5, "MGP": 0.3, "ERBB2": 0.1}
    assert table.columns.tolist() == ["confidence"]
    regression = hb.get.predicted_genes(predicted(expected_pcc=[0.2, 0.3, 0.1], trusted=[True, True, False]))
    assert regression.index.tolist() == ["ERBB2", "ACTB", "MGP"]


def test_predicted_genes_missing(adata: AnnData) -> None:
    with pytest.raises(MissingSlotError, match=r"no uns\['predicted_expression'\].*hibiost.tl.predict"):
        hb.get.predicted_genes(adata)
    with pytest.raises(MissingSlotError, match="Did you mean 'predicted_expression'"):
        hb.get.predicted_genes(predicted(), key="predicted_expresion")


# -- training --------------------------------------------------------------------------------------------------------

LINES = [
    {"event": "step", "step": 2, "epoch": 0.5, "loss": 3.5, "spot": 3.5, "lr": 1e-4, "spots_per_second": 90.0},
    {"event": "step", "step": 4, "epoch": 1.0, "loss": 3.1, "spot": 3.1, "lr": 2e-4, "spots_per_second": 95.0},
    {"event": "epoch", "step": 4, "epoch": 1, "loss": 3.3, "spot": 3.3, "scale": 14.0, "recall_5": 7.0},
    {"event": "regions", "step": 4, "epoch": 1, "n_regions": 5, "coherence": 0.75},
    {
        "event": "step",
        "step": 6,
        "epoch": 1.5,
        "loss": 3.2,
        "spot": 3.0,
        "region": 0.8,
        "region_chance": 1.5,
        "lr": 1e-4,
    },
]


def write_run(folder: Path, *, batch_size: int = 32, n_spots: tuple[int, ...] = (80, 70), tail: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    data = {f"0/s{i}": {"n_spots": n, "crc": 1} for i, n in enumerate(n_spots)}
    described = {"format_version": 1, "configuration": {"recipe": {"batch_size": batch_size}}, "data": data}
    (folder / "run.json").write_text(json.dumps(described))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES) + tail)
    return folder


@pytest.mark.parametrize("kind", [str, Path])
def test_training_of_a_run(tmp_path: Path, kind: type) -> None:
    table = hb.get.training(kind(write_run(tmp_path / "run")))
    assert list(table) == [
        "event", "step", "epoch", "loss", "spot", "spot_chance", "region", "region_chance", "scale", "recall_5", "lr",
        "spots_per_second", "n_regions", "coherence",
    ]  # fmt: skip
    assert table["event"].tolist() == ["step", "step", "epoch", "regions", "step"]
    assert table["step"].tolist() == [2, 4, 4, 4, 6]
    assert table["step"].dtype == np.int64
    assert table["epoch"].tolist() == [0.5, 1, 1, 1, 1.5]
    for name in ("loss", "spot", "region", "region_chance", "scale", "recall_5", "lr", "n_regions", "coherence"):
        np.testing.assert_array_equal(table[name], [line.get(name, np.nan) for line in LINES])
    ln32 = 3.4657359027997265
    np.testing.assert_allclose(table["spot_chance"], [ln32, ln32, ln32, np.nan, ln32])


def test_training_batch_is_no_larger_than_the_data(tmp_path: Path) -> None:
    table = hb.get.training(write_run(tmp_path, batch_size=512, n_spots=(40, 60)))
    assert table["spot_chance"].dropna().unique().tolist() == [math.log(100)]


def test_training_without_a_description_has_no_chance(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    assert "spot_chance" not in hb.get.training(tmp_path)


@pytest.mark.parametrize("tail", ['{"event": "step", "st', json.dumps(LINES[0])])
def test_training_leaves_out_a_line_that_is_being_written(tmp_path: Path, tail: str) -> None:
    pd.testing.assert_frame_equal(
        hb.get.training(write_run(tmp_path / "cut", tail=tail)), hb.get.training(write_run(tmp_path / "whole"))
    )


def test_training_of_a_model() -> None:
    history = [{"epoch": n, "loss": 3.0 / n, "spot": 3.0 / n, "scale": 14.0} for n in (1, 2)]
    info = {
        "history": history,
        "regions": [{"epoch": 1, "n_regions": 5, "coherence": 0.5}],
        "recipe": {"batch_size": 8},
    }
    table = hb.get.training(SimpleNamespace(training_info=info))
    assert table["event"].tolist() == ["epoch", "regions", "epoch"]
    np.testing.assert_array_equal(table["loss"], [3.0, np.nan, 1.5])
    np.testing.assert_array_equal(table["n_regions"], [np.nan, 5, np.nan])
    np.testing.assert_allclose(table["spot_chance"], [math.log(8), np.nan, math.log(8)])
    assert "step" not in table


def test_training_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere is no folder; expected the folder of hb.tl.pretrain"):
        hb.get.training(tmp_path / "nowhere")
    (tmp_path / "config.json").touch()
    with pytest.raises(RunError, match=r"holds \['config.json'\]; expected .* pass hb.model.load\(folder\)"):
        hb.get.training(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"event": "st')
    with pytest.raises(RunError, match="metrics.jsonl holds no whole line yet; expected"):
        hb.get.training(tmp_path)


@pytest.mark.parametrize("line", ["{", "[1]", '{"event": "step", "epoch": 1}'])
def test_training_names_a_damaged_line(tmp_path: Path, line: str) -> None:
    write_run(tmp_path, tail=f"{line}\n")
    with pytest.raises(RunError, match=r"line 6 of .*metrics.jsonl is no measurement .*Remove the line"):
        hb.get.training(tmp_path)


@pytest.mark.parametrize(
    "model", [3, SimpleNamespace(training_info={}), SimpleNamespace(training_info={"history": []})]
)
def test_training_refuses_models_without_history(model: object) -> None:
    with pytest.raises(RunError, match=f"found {type(model).__name__} without a training history; expected"):
        hb.get.training(model)  # type: ignore[arg-type]


def test_training_needs_no_torch(tmp_path: Path) -> None:
    code = (
        f"import sys, hibiost as hb; hb.get.training({str(write_run(tmp_path))!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
