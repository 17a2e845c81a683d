"""The whole benchmark on synthetic tissue, with a model that trains in a second."""

import numpy as np
import pandas as pd
import pytest

import hibiost as hb
from hibiost.benchmark import _run as bench
from hibiost.errors import DataError, RunError, WeightsUnavailableError

TINY = hb.model.ModelConfig(
    embed_dim=16,
    vision_cfg={"timm_model_name": "resnet10t", "timm_pool": "avg", "image_size": 32},
    text_cfg={"context_length": 48, "width": 16, "heads": 2, "layers": 1},
    patch_size=64,
    recipe={"epochs": 1, "batch_size": 32, "precision": "32", "n_genes": 40, "lambda3": 0},
)
OPTIONS = {"n_folds": "all", "seeds": [0, 1], "n_genes": 20, "label_key": "region_truth", "pivotal": ["ERBB2"]}
MODELS = {"HiBio-ST": {"image_encoder": TINY}, "uni": "uni"}


@pytest.fixture(scope="module")
def slides():
    return hb.datasets.tissue(40, n_genes=60, n_slides=2, pitch_px=48)


def _absent(*args, **kwargs):
    raise WeightsUnavailableError("uni: no network")


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    """The hub answers as it does without a network, only at once."""
    monkeypatch.setattr("hibiost.benchmark._contestants.feature_encoder", _absent)


@pytest.fixture(scope="module")
def done(slides, tmp_path_factory):
    """Results of a whole run, and its folder."""
    out = tmp_path_factory.mktemp("bench") / "out"
    with pytest.MonkeyPatch.context() as patch, hb.settings.override(progress=False):
        patch.setattr("hibiost.benchmark._contestants.feature_encoder", _absent)
        return hb.benchmark.run(slides, MODELS, out=out, **OPTIONS), out


def test_rows_and_floors(done):
    results, _ = done
    assert results.columns.tolist() == list(bench.COLUMNS)
    rows = {task: set(zip(part["model"], part["method"], strict=True)) for task, part in results.groupby("task")}
    floors = {("colour statistics", "ridge"), ("untrained HiBio-ST", "ridge"), ("chance", "training mean")}
    assert floors | {("HiBio-ST", "ridge"), ("HiBio-ST", "retrieval")} <= rows["prediction"]
    assert ("HiBio-ST", "retrieval") not in rows["few-shot"]
    assert {("HiBio-ST", "retrieval"), ("chance", "retrieval")} <= rows["retrieval"]
    assert ("colour statistics", "smoothed") in rows["clustering"]
    known = results[results["value"].notna()]
    assert set(known["slide"]) == {"tissue_0", "tissue_1", "pooled"}
    assert set(known["fold"]) == set(known["seed"]) == {0, 1}
    identifying = ["task", "model", "method", "target", "fraction", "metric", "slide", "fold", "seed"]
    assert not known.duplicated(identifying).any()


def test_without_weights_there_is_a_row_and_no_number(done):
    results, out = done
    own = results[results["model"] == "uni"]
    assert own["value"].isna().all()
    assert set(own["note"]) == {"weights not available"}
    assert "| uni | weights not available |" in (out / "report.md").read_text()


def test_files(done):
    results, out = done
    stored = pd.read_csv(out / "results.csv", keep_default_na=False, na_values={"value": "", "fraction": ""})
    np.testing.assert_allclose(stored["value"], results["value"])
    names = {"report.md", "report.tex", "report.html", "comparisons.csv", "scores.png"}
    assert names <= {path.name for path in out.iterdir()}
    assert not list(out.rglob("*.part"))


def test_what_is_there_is_not_computed_again(done, slides, monkeypatch):
    results, out = done

    def refuse(*args, **kwargs):
        raise AssertionError("computed again")

    lost = out / "cells" / "hibio-st-fold1-seed0-retrieval.csv"
    lost.unlink()
    monkeypatch.setattr("hibiost.benchmark._contestants.image_embeddings", refuse)
    monkeypatch.setattr("hibiost.benchmark._contestants.colours", refuse)
    again = hb.benchmark.run(slides, MODELS, out=out, **OPTIONS)
    pd.testing.assert_frame_equal(again, results)


@pytest.mark.slow
def test_two_processes_give_the_same(done, slides, tmp_path):
    results, _ = done
    options = {**OPTIONS, "seeds": [0]}
    again = hb.benchmark.run(slides, {"HiBio-ST": MODELS["HiBio-ST"]}, out=tmp_path, n_jobs=2, **options)
    expected = results[(results["seed"] == 0) & (results["model"] != "uni")].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, expected, rtol=1e-4)


def test_a_model_that_saw_the_slides_is_told(done, slides, tmp_path):
    _, out = done
    model = out / "models" / "hibio-st-fold0-seed0" / "model"
    trained_on = hb.model.load(model).training_info["slides"]
    results = hb.benchmark.run(slides, {"mine": str(model)}, out=tmp_path, **{**OPTIONS, "tasks": ["retrieval"]})
    own = results[results["model"] == "mine"]
    assert (own["note"] == "trained on this slide").eq(own["slide"].isin(trained_on)).all()
    assert own["note"].any()


def test_a_function_trains_on_the_other_slides(done, slides, tmp_path):
    seen = []

    def training(reference, seed):
        seen.append((reference.obs["library_id"].unique().tolist(), seed))
        return hb.tl.pretrain(reference, image_encoder=TINY, rng=seed)

    with hb.settings.override(progress=False):
        results = hb.benchmark.run(slides, {"mine": training}, out=tmp_path, tasks=["retrieval"], **OPTIONS)
    assert sorted(seen) == [(["tissue_0"], 0), (["tissue_0"], 1), (["tissue_1"], 0), (["tissue_1"], 1)]
    same, _ = done
    expected = same[(same["model"] == "HiBio-ST") & (same["task"] == "retrieval")]["value"].tolist()
    assert results[results["model"] == "mine"]["value"].tolist() == expected


def test_other_data_or_another_protocol_are_not_mixed(done, slides):
    _, out = done
    with pytest.raises(RunError, match=r"other protocol.*n_genes.*20.*30"):
        hb.benchmark.run(slides, MODELS, out=out, **{**OPTIONS, "n_genes": 30})
    other = slides.copy()
    other.X.data[:5] = 7
    with pytest.raises(RunError, match=r"other data.*tissue_0"):
        hb.benchmark.run(other, MODELS, out=out, **OPTIONS)
    with pytest.raises(RunError, match="other model HiBio-ST"):
        hb.benchmark.run(slides, {"HiBio-ST": "ResNet-10"}, out=out, **OPTIONS)


@pytest.fixture
def hest(slides, tmp_path):
    """Two slides under the ids of the paper's HER2 set, and one that is not of it, as HEST-1k lays them out."""
    parts = {}
    for number, name in enumerate(("SPA119", "SPA154", "OTHER")):
        part = slides[(slides.obs["library_id"] == f"tissue_{number % 2}").to_numpy()].copy()
        part.uns["spatial"] = {f"tissue_{number % 2}": part.uns["spatial"][f"tissue_{number % 2}"]}
        part.obs["patient"] = f"P{number}"
        parts[name] = part
    hb.io.write_hest(hb.io.concat(parts), tmp_path / "hest")
    return tmp_path / "hest"


def test_a_data_set_of_the_paper_with_its_numbers_beside(hest, tmp_path, caplog):
    untrained = hb.model.HibioModel(TINY, hb.genes.Vocabulary(("ERBB2", "MGP"), np.array([1, 2]), np.array([3, 3])))
    options = {"dataset": "her2", "n_folds": "all", "seeds": [0], "n_genes": 10, "tasks": ["prediction"]}
    results = hb.benchmark.run(hest, {"mine": untrained}, out=tmp_path / "out", **options)
    assert set(results["slide"]) == {"SPA119", "SPA154", "pooled"}
    assert "2 of the 36 slides of her2 are there" in caplog.text
    table = hb.benchmark.tables(results, paper="HER2")["Gene expression prediction"]
    assert table.loc["paper: HiBio-ST", ["MSE raw", "MAE raw", "PCC raw"]].tolist() == ["0.8298", "0.7298", "0.3172"]
    assert (table.loc["paper: HiBio-ST", ["PCC raw pooled", "PCC normalized"]] == "").all()
    assert "| paper: ST-Net | 0.9225 | 0.7578 | 0.2829 |" in (tmp_path / "out" / "report.md").read_text()
    with pytest.raises(DataError, match=r"hold none of the data set 'kidney'.*NCBI692"):
        hb.benchmark.run(hest, {"mine": untrained}, out=tmp_path / "k", **{**options, "dataset": "kidney"})


def test_refusals(slides, tmp_path):
    def run(models="ResNet-10", **options):
        hb.benchmark.run(slides, models, out=tmp_path, **{**OPTIONS, **options})

    with pytest.raises(DataError, match=r"2 patients cannot be split into 4 folds"):
        run(n_folds=None)
    with pytest.raises(DataError, match=r"no task 'cluster'.*'clustering'"):
        run(tasks=["cluster"])
    with pytest.raises(DataError, match=r"obs holds no 'layer'.*label_key="):
        run(label_key="layer", tasks=["clustering"])
    with pytest.raises(DataError, match="no models to compare"):
        run({})
    with pytest.raises(DataError, match="would share their files"):
        run({"a b": "ResNet-10", "A-B": "uni"})
    assert not list(tmp_path.iterdir())
