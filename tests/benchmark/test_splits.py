import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hibiost as hb
from hibiost.errors import DataError


@pytest.fixture(scope="module")
def slides():
    """Eight slides of four patients, two each."""
    adata = hb.datasets.tissue(20, n_genes=40, n_slides=8)
    number = adata.obs["library_id"].astype(str).str.removeprefix("tissue_").astype(int)
    adata.obs["patient"] = "P" + (number // 2).astype(str)
    return adata


@given(n_folds=st.sampled_from([2, 3, 4, None]), split=st.sampled_from(["patient", "slide"]))
@settings(max_examples=8)
def test_each_spot_is_held_out_once_and_no_group_is_split(slides, n_folds, split):
    groups = slides.obs["patient" if split == "patient" else "library_id"].to_numpy().astype(str)
    parts = hb.benchmark.folds(slides, split=split, n_folds=n_folds)
    assert len(parts) == (n_folds or len(set(groups)))
    assert sorted(np.concatenate([part.held_out for part in parts])) == list(range(slides.n_obs))
    for part in parts:
        assert not set(groups[part.training]) & set(groups[part.held_out])
        assert len(part.training) + len(part.held_out) == slides.n_obs


def test_patients_from_the_metadata_of_slides(slides):
    adata = slides.copy()
    for slide, spots in hb.inputs.libraries(adata).items():
        adata.uns["spatial"][slide]["metadata"]["patient"] = adata.obs["patient"].iloc[spots[0]]
    del adata.obs["patient"]
    for found, expected in zip(hb.benchmark.folds(adata), hb.benchmark.folds(slides), strict=True):
        np.testing.assert_array_equal(found.held_out, expected.held_out)


def test_slides_of_one_patient_on_both_sides_are_told(slides, caplog):
    hb.benchmark.folds(slides, split="patient")
    assert not caplog.records
    hb.benchmark.folds(slides, split="slide")
    assert "slides of one patient are trained on and held out" in caplog.text


def test_refusals(slides):
    with pytest.raises(DataError, match=r"4 patients cannot be split into 5 folds.*split='slide'"):
        hb.benchmark.folds(slides, n_folds=5)
    with pytest.raises(DataError, match="8 slides cannot be split into 1 folds"):
        hb.benchmark.folds(slides, split="slide", n_folds=1)
    with pytest.raises(DataError, match=r"split is 'patients'.*'patient'"):
        hb.benchmark.folds(slides, split="patients")
    adata = slides.copy()
    adata.obs["patient"] = [f"P{i}" for i in range(adata.n_obs)]
    with pytest.raises(DataError, match="slide 'tissue_0' has 20 patients"):
        hb.benchmark.folds(adata)
    adata.obs["patient"] = np.nan
    with pytest.raises(DataError, match=r"patient of 8 slides is not known.*split='slide'"):
        hb.benchmark.folds(adata)
