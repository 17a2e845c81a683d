from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import hibiost as hb
from hibiost.errors import DataError, MissingSlotError


def slide(name: str | None, genes: list[str], spots: list[str], *, seed: int = 0, **metadata: object) -> AnnData:
    counts = np.random.default_rng(seed).poisson(1.0, (len(spots), len(genes)))
    adata = AnnData(
        sparse.csr_matrix(counts, dtype=np.float32), obs=pd.DataFrame(index=spots), var=pd.DataFrame(index=genes)
    )
    adata.obsm["spatial"] = np.arange(2.0 * len(spots)).reshape(-1, 2) + seed
    if name is not None:
        adata.obs["library_id"] = pd.Categorical([name] * len(spots))
        adata.uns["spatial"] = {name: {"images": {}, "scalefactors": {}, "metadata": {"mpp": 0.5, **metadata}}}
    return adata


def dense(adata: AnnData) -> pd.DataFrame:
    return pd.DataFrame(adata.X.toarray(), index=list(adata.obs_names), columns=list(adata.var_names))


@pytest.fixture
def parts() -> list[AnnData]:
    return [
        slide("S2", ["MYC", "ACTB", "B2M"], ["a", "b", "c"], seed=1),
        slide("S1", ["GAPDH", "B2M", "ALB", "MYC"], ["d", "e"], seed=2),
    ]


def test_union_of_genes(parts):
    joined = hb.io.concat(parts)
    assert list(joined.var_names) == ["MYC", "ACTB", "B2M", "GAPDH", "ALB"]
    expected = pd.concat([dense(part) for part in parts]).fillna(0)[list(joined.var_names)]
    pd.testing.assert_frame_equal(dense(joined), expected)
    assert isinstance(joined.X, sparse.csr_matrix)
    assert joined.X.has_canonical_format
    assert joined.X.dtype == np.float32
    assert list(joined.obs["library_id"].cat.categories) == ["S2", "S1"]
    assert joined.obs["library_id"].tolist() == ["S2", "S2", "S2", "S1", "S1"]
    np.testing.assert_array_equal(joined.obsm["spatial"], np.vstack([part.obsm["spatial"] for part in parts]))
    assert joined.varm["measured"].to_dict("list") == {
        "S2": [True, True, True, False, False],
        "S1": [True, False, True, True, True],
    }
    assert list(joined.uns["spatial"]) == ["S2", "S1"]


def test_inputs_are_left_as_they_are(parts):
    before = [(part.copy(), list(part.obs), list(part.varm)) for part in parts]
    joined = hb.io.concat(parts)
    joined.uns["spatial"]["S1"]["metadata"]["mpp"] = 7.0
    joined.X.data[:] = 0
    joined.obsm["spatial"][:] = 0
    for part, (copy, obs, varm) in zip(parts, before, strict=True):
        assert (part.X != copy.X).nnz == 0
        np.testing.assert_array_equal(part.obsm["spatial"], copy.obsm["spatial"])
        assert (list(part.obs), list(part.varm)) == (obs, varm)
    assert parts[1].uns["spatial"]["S1"]["metadata"]["mpp"] == 0.5


def test_names_of_spots_get_their_slide_only_where_needed(parts):
    assert list(hb.io.concat(parts).obs_names) == ["a", "b", "c", "d", "e"]
    parts[1].obs_names = ["a", "e"]
    assert list(hb.io.concat(parts).obs_names) == ["S2_a", "S2_b", "S2_c", "S1_a", "S1_e"]


def test_slides_named_by_a_dict():
    first, second = slide(None, ["MYC"], ["a"]), slide("S1", ["MYC"], ["a"], seed=1)
    joined = hb.io.concat({"x": first, "y": second})
    assert joined.obs["library_id"].tolist() == ["x", "y"]
    assert list(joined.uns["spatial"]) == ["y"]
    assert list(joined.varm["measured"]) == ["x", "y"]
    assert second.obs["library_id"].tolist() == ["S1"]
    with pytest.raises(DataError, match=r"'z' holds 2 slides \(\['x', 'y'\]\)"):
        hb.io.concat({"z": joined})


def test_joined_twice(parts):
    """What one slide has not measured stays so."""
    third = slide("S3", ["ALB", "TP53"], ["f"], seed=3)
    joined = hb.io.concat([hb.io.concat(parts), third])
    at_once = hb.io.concat([*parts, third])
    pd.testing.assert_frame_equal(joined.varm["measured"], at_once.varm["measured"])
    pd.testing.assert_frame_equal(dense(joined), dense(at_once))
    assert list(joined.uns["spatial"]) == ["S2", "S1", "S3"]


def test_columns_and_layers(parts):
    parts[0].obs["label"] = pd.Categorical(["x", None, "y"])
    parts[0].layers["raw"] = parts[0].X.copy()
    parts[1].layers["raw"] = parts[1].X.copy()
    parts[0].var["gene_ids"], parts[0].var["n_spots"] = ["E1", "E2", "E3"], [1, 2, 3]
    parts[1].var["gene_ids"], parts[1].var["n_spots"] = ["E4", "E3", "E5", "E1"], [1, 1, 1, 1]
    joined = hb.io.concat(parts)
    assert joined.obs["label"].dropna().to_dict() == {"a": "x", "c": "y"}
    assert isinstance(joined.obs["label"].dtype, pd.CategoricalDtype)
    assert (joined.layers["raw"] != joined.X).nnz == 0
    assert joined.var["gene_ids"].tolist() == ["E1", "E2", "E3", "E4", "E5"]
    assert "n_spots" not in joined.var


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_round_trip(parts, tmp_path, suffix):
    joined = hb.io.concat(parts)
    getattr(joined, f"write_{suffix}")(tmp_path / f"a.{suffix}")
    back = getattr(anndata, f"read_{suffix}")(tmp_path / f"a.{suffix}")
    pd.testing.assert_frame_equal(dense(back), dense(joined))
    pd.testing.assert_frame_equal(back.varm["measured"], joined.varm["measured"])


def test_refusals(parts):
    with pytest.raises(DataError, match="no slides to join"):
        hb.io.concat([])
    with pytest.raises(DataError, match=r"slide 'S1' occurs 2 times.*a name of its own: hb\.io\.concat\(\{"):
        hb.io.concat([*parts, parts[1]])
    parts[0].var_names = ["MYC", "MYC", "B2M"]
    with pytest.raises(DataError, match=r"1 gene names occur more than once, such as \['MYC'\]"):
        hb.io.concat(parts)
    two = hb.io.concat([slide("S5", ["MYC"], ["a"]), slide("S6", ["MYC"], ["a"])])
    del two.obs["library_id"]
    with pytest.raises(MissingSlotError, match="library_id"):
        hb.io.concat([two])


def test_mixed_species():
    human = slide("S1", ["MYC", "ACTB"], ["a"], species="Homo sapiens")
    mouse = slide("S2", ["Myc", "Actb"], ["b"], species="Mus musculus")
    with pytest.raises(DataError, match=r"Homo sapiens and Mus musculus share 0\.0% of their genes.*hb\.pp\.map_genes"):
        hb.io.concat([human, mouse])
    mouse.var_names = mouse.var_names.str.upper()
    assert hb.io.concat([human, mouse]).shape == (2, 2)
