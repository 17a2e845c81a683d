from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import hibiost as hb
from hibiost.errors import DataError


@pytest.fixture
def results():
    """Three models on six slides, two seeds; the second is always better than the first, the third is noise."""
    rng = np.random.default_rng(0)
    rows = []
    for (number, model), slide, seed in product(enumerate("abc"), range(6), (0, 1)):
        value = {"a": slide, "b": slide + 1 + 0.1 * slide, "c": 3}[model] + 0.01 * rng.normal() + 0.1 * seed
        row = {"model": model, "seed": seed, "fold": slide // 3, "slide": f"S{slide}", "value": value}
        rows.append(
            {"task": "prediction", "method": "ridge", "target": "raw", "fraction": np.nan, "metric": "pcc", **row}
        )
        if slide % 3 == 0:
            rows.append({**rows[-1], "slide": "pooled", "value": 10.0 * number + seed + slide})
    return pd.DataFrame(rows).assign(note="")


def test_mean_over_slides_then_over_seeds(results):
    table = hb.benchmark.summary(results).set_index(["model", "scope"])
    for model in "abc":
        own = results[(results["model"] == model) & (results["slide"] != "pooled")]
        means = [own.loc[own["seed"] == seed, "value"].mean() for seed in (0, 1)]
        found = table.loc[(model, "slide")]
        assert found["mean"] == pytest.approx(np.mean(means))
        assert found["sd"] == pytest.approx(np.std(means, ddof=1))
        assert (found["n_seeds"], found["n_slides"]) == (2, 6)
    assert table.loc[("b", "pooled"), "mean"] == pytest.approx(10 + 0.5 + 1.5)


def test_slides_without_a_value_are_left_out(results):
    results.loc[(results["slide"] == "S5"), "value"] = np.nan
    table = hb.benchmark.summary(results).set_index(["model", "scope"])
    assert table.loc[("a", "slide"), "n_slides"] == 5
    assert table.loc[("a", "slide"), "mean"] == pytest.approx(2.05, abs=0.02)


def test_pairs_by_wilcoxon_and_holm(results):
    table = hb.benchmark.compare(results, "pcc", task="prediction", target="raw").set_index(["first", "second"])
    by_slide = results[results["slide"] != "pooled"].groupby(["model", "slide"])["value"].mean()
    expected = {}
    for first, second in (("a", "b"), ("a", "c"), ("b", "c")):
        difference = by_slide[first] - by_slide[second]
        found = table.loc[(f"{first}, ridge", f"{second}, ridge")]
        assert found["difference"] == pytest.approx(difference.mean())
        assert found["wins"] == (difference > 0).sum()
        assert found["p"] == pytest.approx(stats.wilcoxon(difference).pvalue)
        expected[first, second] = found["p"]
    smallest, middle, largest = sorted(expected.values())
    corrected = np.maximum.accumulate([3 * smallest, 2 * middle, largest]).clip(max=1)
    np.testing.assert_allclose(np.sort(table["p_holm"]), corrected)
    assert table.loc[("a, ridge", "b, ridge"), "p"] == pytest.approx(2 / 2**6)


def test_equal_rows_have_no_p(results):
    twin = results[results["model"] == "a"].assign(model="twin")
    table = hb.benchmark.compare(
        pd.concat([results[results["model"] == "a"], twin]), "pcc", task="prediction", target="raw"
    )
    assert table["difference"].tolist() == [0]
    assert table[["p", "p_holm"]].isna().all(axis=None)


def test_nothing_to_compare(results):
    with pytest.raises(DataError, match=r"0 rows have 'pcc' of 'retrieval'"):
        hb.benchmark.compare(results, "pcc", task="retrieval")


def test_tables(results):
    table = hb.benchmark.tables(results)["Gene expression prediction"]
    row = hb.benchmark.summary(results).set_index(["model", "scope"]).loc[("b", "slide")]
    assert table.columns.tolist() == ["PCC raw", "PCC raw pooled"]
    assert table.loc["b, ridge"].tolist() == [f"{row['mean']:.3f} ± {row['sd']:.3f}", "12.000 ± 0.707"]


def test_a_model_without_weights_has_no_number(results):
    absent = pd.DataFrame([{"task": "prediction", "model": "uni", "note": "weights not available"}])
    table = hb.benchmark.tables(pd.concat([results, absent]))["Gene expression prediction"]
    assert table.loc["uni"].tolist() == ["weights not available", ""]
