import anndata as ad
import numpy as np
import pandas as pd
import pytest

import hibiost as hb
from hibiost.errors import DataError, MissingSlotError, ModelError

BANK = {"image": "X_hibiost_gene", "gene": "X_hibiost_image"}


@pytest.mark.parametrize("query", ["image", "gene"])
@pytest.mark.parametrize("own", [False, True])
def test_equals_brute_force(embedded, model, query, own):
    slide, reference = embedded
    hb.tl.retrieve(slide, None if own else reference, query=query, model=model, top_k=7)
    bank = (slide if own else reference).obsm[BANK[query]]
    cosine = slide.obsm[f"X_hibiost_{query}"].astype(float) @ bank.T.astype(float)
    expected = -np.sort(-cosine, axis=1)[:, :7]
    rows, similarity = slide.obsm["retrieved"], slide.obsm["retrieved_similarity"]
    assert (rows.dtype, similarity.dtype) == (np.int32, np.float32)
    np.testing.assert_allclose(similarity, expected, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(cosine, rows.astype(int), axis=1), expected, atol=1e-5)
    assert all(len(set(row)) == 7 for row in rows)
    params = slide.uns["retrieved"]["params"]
    assert (params["query"], params["top_k"], params["own"]) == (query, 7, own)
    assert slide.uns["retrieved"]["fingerprint"] == model.fingerprint()


@pytest.mark.filterwarnings("ignore:.*zarr v[23]:UserWarning")
def test_one_spot_after_files_and_subsets(embedded, model, tmp_path):
    slide, reference = embedded
    hb.tl.retrieve(slide, reference, model=model, top_k=4)
    spot = slide.obs_names[30]
    table = hb.get.retrieved(slide, spot, reference=reference, n_genes=3)
    rows = slide.obsm["retrieved"][30]
    assert table.index.tolist() == [1, 2, 3, 4]
    assert table["row"].tolist() == rows.tolist()
    assert table["spot"].tolist() == reference.obs_names[rows].tolist()
    assert table["library_id"].tolist() == reference.obs["library_id"].iloc[rows].tolist()
    assert table["sentence"].tolist() == hb.get.sentences(reference, n_genes=3).iloc[rows].tolist()
    np.testing.assert_array_equal(table["similarity"], slide.obsm["retrieved_similarity"][30])
    slide.write_h5ad(tmp_path / "a.h5ad")
    slide.write_zarr(tmp_path / "a.zarr")
    for back in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr"), slide[20:40, :9].copy()):
        pd.testing.assert_frame_equal(hb.get.retrieved(back, spot), table.drop(columns="sentence"))


def test_matches_in_the_same_anndata_are_found_by_name(embedded, model):
    slide, _ = embedded
    hb.tl.retrieve(slide, model=model, top_k=5)
    spot = slide.obs_names[3]
    whole = hb.get.retrieved(slide, spot)
    assert whole["sentence"].tolist() == hb.get.sentences(slide, n_genes=10)[whole["spot"]].tolist()
    lost = whole["spot"].iloc[1]
    cut = slide[[name for name in slide.obs_names[::-1] if name != lost or name == spot]].copy()
    after = hb.get.retrieved(cut, spot)
    pd.testing.assert_frame_equal(after.drop(columns="sentence"), whole.drop(columns="sentence"))
    assert after["sentence"].isna().tolist() == [False, lost != spot, False, False, False]


def test_embeddings_are_computed_where_they_lack(embedded, model, unchanged):
    slide, reference = embedded
    hb.tl.retrieve(slide, reference, model=model, top_k=3)
    bank = reference.copy()
    for key in ("X_hibiost_image", "X_hibiost_gene"):
        bank.obsm.pop(key)
    bank.uns.pop("X_hibiost")
    with unchanged(bank):
        again = hb.tl.retrieve(slide, bank, model=model, top_k=3, copy=True)
    np.testing.assert_allclose(again.obsm["retrieved_similarity"], slide.obsm["retrieved_similarity"], atol=1e-5)
    few = hb.tl.retrieve(slide, bank[:2].copy(), model=model, copy=True)
    assert few.obsm["retrieved"].shape == (100, 2)


def test_a_reference_of_another_model_is_refused(embedded, unchanged):
    slide, reference = embedded
    reference.uns["X_hibiost"]["fingerprint"] = "another"
    with unchanged(slide), pytest.raises(ModelError, match="the reference with another: they cannot be"):
        hb.tl.retrieve(slide, reference)


def test_refusals(embedded, model, unchanged):
    slide, reference = embedded
    with unchanged(slide):
        with pytest.raises(DataError, match=r"query is 'images'.*Did you mean 'image'"):
            hb.tl.retrieve(slide, reference, query="images", model=model)
        with pytest.raises(DataError, match="top_k is 0"):
            hb.tl.retrieve(slide, reference, top_k=0, model=model)
        with pytest.raises(MissingSlotError, match=r"hibiost\.tl\.retrieve"):
            hb.get.retrieved(slide, slide.obs_names[0])
        bare = ad.AnnData(obs=slide.obs, obsm={"spatial": slide.obsm["spatial"]})
        with pytest.raises(DataError, match="no genes"):
            hb.tl.retrieve(slide, bare, model=model)
        twice = reference[[0, 1]].copy()
        twice.obs_names = ["x", "x"]
        with pytest.raises(DataError, match="several spots of the reference are called 'x'"):
            hb.tl.retrieve(slide, twice, model=model)
    hb.tl.retrieve(slide, reference, model=model)
    with pytest.raises(DataError, match="no spot 'nowhere'"):
        hb.get.retrieved(slide, "nowhere")
    with pytest.raises(DataError, match="not the one that was searched, with 200 spots"):
        hb.get.retrieved(slide, slide.obs_names[0], reference=slide)
