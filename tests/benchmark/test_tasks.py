"""The paper's tasks against the public pieces put together by hand, on embeddings that know part of the truth."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.linear_model import RidgeCV
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hibiost as hb
from hibiost.benchmark import _tasks as tasks
from hibiost.benchmark._contestants import Embedded
from hibiost.errors import DataError
from hibiost.model.ridge import ALPHAS

PROTOCOL = tasks.Protocol(n_genes=12, pivotal=("ERBB2", "absent"), label_key="region_truth")


def _embedded(adata, rng):
    truth = np.eye(4)[adata.obs["region_truth"].cat.codes] * 2
    images, sentences = (truth + rng.normal(size=truth.shape) for _ in range(2))
    images, sentences = (np.float32(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in (images, sentences))
    return Embedded(images, images @ rng.normal(size=(4, 6)).astype(np.float32), sentences)


@pytest.fixture(scope="module")
def case():
    adata = hb.datasets.tissue(100, n_genes=60, n_slides=4)
    held_out = adata.obs["library_id"].isin(["tissue_2", "tissue_3"]).to_numpy()
    reference, adata = adata[~held_out].copy(), adata[held_out].copy()
    rng = np.random.default_rng(0)
    return tasks.Case(reference, adata, _embedded(reference, rng), _embedded(adata, rng), PROTOCOL)


def scores(rows, **where):
    table = pd.DataFrame(list(rows))
    for column, wanted in where.items():
        table = table[table[column] == wanted]
    return table.set_index("slide")["value"]


def test_clustering(case):
    rows = list(tasks.clustering(case))
    for slide, spots in case.slides.items():
        labels = case.adata.obs["region_truth"].iloc[spots]
        k = labels.nunique()
        found = KMeans(k, n_init=500, max_iter=500, random_state=0).fit_predict(case.embedded.images[spots])
        found = pd.Series(found).map(pd.Series(found).value_counts().rank(ascending=False, method="first")).to_numpy()
        smooth = hb.spatial.majority_vote(found, case.adata.obsm["spatial"][spots], k=5)
        for method, clusters in (("raw", found), ("smoothed", smooth)):
            for metric, score in (("ari", adjusted_rand_score), ("nmi", normalized_mutual_info_score)):
                value = scores(rows, method=method, metric=metric)[slide]
                assert value == pytest.approx(score(labels, clusters), abs=0.02)


def test_chance_clusters_know_nothing(case):
    chance = [replace(case, known=None, embedded=None, seed=seed) for seed in range(20)]
    found = [scores(tasks.clustering(each), method="raw", metric="ari").mean() for each in chance]
    assert abs(np.mean(found)) < 0.02
    assert scores(tasks.clustering(case), method="raw", metric="ari").mean() > 0.2


def test_one_class_is_left_out_and_spots_without_a_label_do_not_count(case):
    adata = case.adata.copy()
    labels = adata.obs["region_truth"].astype(object)
    first = adata.obs["library_id"] == "tissue_2"
    labels[first] = "one"
    labels.iloc[np.flatnonzero(~first)[:30]] = np.nan
    adata.obs["region_truth"] = labels
    found = scores(tasks.clustering(replace(case, adata=adata)), method="raw", metric="ari")
    assert found.index.tolist() == ["tissue_3"]


def test_retrieval(case):
    rows = list(tasks.retrieval(case))
    for slide, spots in case.slides.items():
        similarity = case.embedded.images[spots] @ case.embedded.sentences[spots].T
        rank = (similarity >= np.diag(similarity)[:, None]).sum(axis=1)
        for percent in (1, 5, 10):
            expected = 100 * np.mean(rank <= np.ceil(percent / 100 * len(spots)))
            assert scores(rows, metric=f"Recall@{percent}%")[slide] == pytest.approx(expected)
    assert scores(tasks.retrieval(replace(case, known=None, embedded=None)), metric="Recall@5%").tolist() == [5, 5]
    blind = replace(case.embedded, sentences=None)
    assert list(tasks.retrieval(replace(case, embedded=blind))) == []


def _expression(case, target):
    known, truth = case.reference.X.toarray(), case.adata.X.toarray()
    if target == "normalized":
        target_sum = np.median(known.sum(axis=1))
        known, truth = (x * target_sum / x.sum(axis=1, keepdims=True) for x in (known, truth))
    known, truth = np.log1p(known), np.log1p(truth)
    slides = case.reference.obs["library_id"].to_numpy()
    variance = np.mean([known[slides == slide].var(axis=0) for slide in np.unique(slides)], axis=0)
    columns = np.argsort(-variance, kind="stable")[:12]
    return known, truth, columns


@pytest.mark.parametrize("target", ["raw", "normalized"])
def test_prediction(case, target):
    rows = list(tasks.prediction(case))
    known, truth, columns = _expression(case, target)
    ridge = make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(case.known.features, known[:, columns])
    similarity = case.embedded.images @ case.known.sentences.T
    best = np.argsort(-similarity, axis=1)[:, :100]
    weights = np.clip(np.take_along_axis(similarity, best, axis=1), 0, None)
    retrieved = np.einsum("sk,skg->sg", weights / weights.sum(axis=1, keepdims=True), known[best])[:, columns]
    for method, predicted in (("ridge", ridge.predict(case.embedded.features)), ("retrieval", retrieved)):
        where = {"target": target, "method": method}
        for slide, spots in case.slides.items():
            mine, theirs = predicted[spots], truth[np.ix_(spots, columns)]
            pcc = np.mean([stats.pearsonr(mine[:, i], theirs[:, i])[0] for i in range(12)])
            assert scores(rows, metric="pcc", **where)[slide] == pytest.approx(pcc, abs=1e-3)
            assert scores(rows, metric="mae", **where)[slide] == pytest.approx(np.abs(mine - theirs).mean(), rel=1e-3)
        mse = np.mean((predicted - truth[:, columns]) ** 2)
        assert scores(rows, metric="mse", **where)["pooled"] == pytest.approx(mse, rel=1e-3)


def test_pivotal_genes_are_predicted_whether_they_vary_much_or_not(case):
    rows = list(tasks.prediction(case))
    known, truth, columns = _expression(case, "raw")
    column = case.adata.var_names.get_loc("ERBB2")
    ridge = make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(case.known.features, known[:, [*columns, column]])
    predicted = ridge.predict(case.embedded.features)[:, -1]
    spots = case.slides["tissue_2"]
    expected = stats.pearsonr(predicted[spots], truth[spots, column])[0]
    found = scores(rows, metric="pcc ERBB2", target="raw", method="ridge")
    assert found["tissue_2"] == pytest.approx(expected, abs=0.02)
    assert not any("absent" in row["metric"] for row in rows)


def test_chance_predicts_the_training_mean(case):
    rows = list(tasks.prediction(replace(case, known=None, embedded=None)))
    known, truth, columns = _expression(case, "raw")
    expected = np.mean((truth[:, columns] - known[:, columns].mean(axis=0)) ** 2)
    assert scores(rows, target="raw", metric="mse")["pooled"] == pytest.approx(expected, rel=1e-4)
    assert (scores(rows, target="raw", metric="pcc") == 0).all()


def test_fewer_shots_are_part_of_more_and_from_every_slide(case):
    drawn = [tasks.few(case, fraction) for fraction in (0.001, 0.1, 0.5, 1.0)]
    assert [len(rows) for rows in drawn] == [2, 20, 100, 200]
    for less, more in pairwise(drawn):
        assert set(less) <= set(more)
    slides = case.reference.obs["library_id"].to_numpy()
    assert pd.Series(slides[drawn[1]]).value_counts().tolist() == [10, 10]
    assert not np.array_equal(drawn[1], tasks.few(replace(case, seed=1), 0.1))


def test_few_shots_equal_a_ridge_on_those_spots(case):
    rows = tasks.few_shot(replace(case, protocol=replace(PROTOCOL, fractions=(0.25,), targets=("raw",), pivotal=())))
    few = tasks.few(case, 0.25)
    known, truth, columns = _expression(case, "raw")
    ridge = make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(case.known.features[few], known[np.ix_(few, columns)])
    predicted = ridge.predict(case.embedded.features)
    expected = np.mean((predicted - truth[:, columns]) ** 2)
    rows = list(rows)
    assert {row["method"] for row in rows} == {"ridge"}
    assert {row["fraction"] for row in rows} == {0.25}
    assert scores(rows, metric="mse")["pooled"] == pytest.approx(expected, rel=1e-3)


def test_genes_by_name_and_genes_that_are_missing(case):
    named = replace(case, protocol=replace(PROTOCOL, genes=("MGP", "NOSUCH", "ERBB2"), pivotal=()))
    assert named.expressions["raw"].genes == ["MGP", "ERBB2"]
    adata = case.adata.copy()
    adata.varm["measured"] = pd.DataFrame(True, adata.var_names, ["tissue_2", "tissue_3"])
    adata.varm["measured"].loc["MGP", "tissue_3"] = False
    assert replace(named, adata=adata).expressions["raw"].genes == ["ERBB2"]
    adata.var_names = [f"X{i}" for i in range(adata.n_vars)]
    with pytest.raises(DataError, match="no gene in common"):
        replace(case, adata=adata).expressions["raw"]
