import numpy as np
import pytest

import hibiost as hb
from hibiost.errors import DataError, MissingSlotError, ModelError


@pytest.fixture
def parts():
    """Reference (two slides) and held-out slide, with embeddings that know part of the truth."""
    adata = hb.datasets.tissue(100, n_genes=40, n_slides=3, pitch_px=48)
    rng = np.random.default_rng(0)
    truth = np.eye(4)[adata.obs["region_truth"].cat.codes] * 2
    for key in ("X_hibiost_image", "X_hibiost_gene"):
        rows = truth + rng.normal(size=truth.shape)
        adata.obsm[key] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    adata.uns["X_hibiost"] = {"fingerprint": "a"}
    held_out = (adata.obs["library_id"] == "tissue_2").to_numpy()
    return adata[~held_out].copy(), adata[held_out].copy()


def value(table, **where):
    for column, wanted in where.items():
        table = table[table[column] == wanted]
    assert len(table) == 1
    return table["value"].item()


@pytest.mark.parametrize("target", ["raw", "normalized"])
def test_scores_equal_the_public_pieces_put_together(parts, target):
    reference, test = parts
    table = hb.benchmark.spot_level(reference, test, n_genes=12)
    for percent, expected in hb.metrics.recall_at_percent(
        test.obsm["X_hibiost_image"], test.obsm["X_hibiost_gene"]
    ).items():
        assert value(table, method="HiBio-ST", metric=f"Recall@{percent}%") == pytest.approx(expected)
        assert value(table, method="chance", metric=f"Recall@{percent}%") == percent

    counts, known = test.X.toarray().astype(float), reference.X.toarray().astype(float)
    target_sum = None
    if target == "normalized":
        target_sum = np.median(known.sum(axis=1))
        counts, known = (c * target_sum / c.sum(axis=1, keepdims=True) for c in (counts, known))
    genes = hb.benchmark.variable_genes(reference, 12, target_sum=target_sum)
    columns = test.var_names.get_indexer(genes)
    truth, known = np.log1p(counts[:, columns]), np.log1p(known[:, columns])
    hb.tl.predict(test, reference, genes=genes, target=target)
    expected = {
        "HiBio-ST, retrieval": test.obsm["predicted_expression"].to_numpy(),
        "HiBio-ST, ridge on features": hb.benchmark.ridge(
            reference.obsm["X_hibiost_image"], known, queries=test.obsm["X_hibiost_image"]
        ),
        "mean of the reference": np.broadcast_to(known.mean(axis=0), truth.shape),
    }
    for method, predicted in expected.items():
        mse = np.mean((truth - predicted) ** 2)
        assert value(table, target=target, method=method, metric="mse") == pytest.approx(mse, rel=1e-4)
        pcc = np.nan_to_num(hb.metrics.pcc(truth, predicted)).mean()
        assert value(table, target=target, method=method, metric="pcc") == pytest.approx(pcc, abs=1e-4)


def test_colour_floor_reads_each_spots_own_patch(parts):
    reference, test = parts
    order = np.random.default_rng(1).permutation(reference.n_obs)
    tables = [hb.benchmark.spot_level(part, test, n_genes=12) for part in (reference, reference[order].copy())]
    first, second = (value(t, target="raw", method="ridge on colour statistics", metric="pcc") for t in tables)
    assert first == pytest.approx(second, abs=1e-4)
    assert first > 0.1


def test_genes_are_those_of_both(parts):
    reference, test = parts
    fewer = test[:, 5:].copy()
    table = hb.benchmark.spot_level(reference, fewer, n_genes=40)
    assert np.isfinite(table["value"]).all()
    fewer.var_names = [f"X{i}" for i in range(fewer.n_vars)]
    with pytest.raises(DataError, match="no gene in common"):
        hb.benchmark.spot_level(reference, fewer)


def test_refusals(parts):
    reference, test = parts
    with pytest.raises(DataError, match=r"'tissue_0'.*both in the reference and held out"):
        hb.benchmark.spot_level(reference, reference)
    test.uns["X_hibiost"]["fingerprint"] = "b"
    with pytest.raises(ModelError, match="weights a, the held-out slides with b"):
        hb.benchmark.spot_level(reference, test)
    del test.uns["X_hibiost"]
    with pytest.raises(MissingSlotError, match=r"hb\.tl\.embed"):
        hb.benchmark.spot_level(reference, test)
