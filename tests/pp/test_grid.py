from __future__ import annotations

import logging
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import hibiost as hb
from hibiost.errors import DataError, ImageError, MissingSlotError

MPP = 2.0
TISSUE = (slice(200, 500), slice(100, 700))
"""Rows and columns of the image that are tissue: 0.6 x 1.2 mm."""


def painted(folder, name="tumour", *, tissue=True) -> str:
    """A slide of 1.2 x 1.6 mm on disk."""
    rng = np.random.default_rng(0)
    pixels = np.full((600, 800, 3), (240, 238, 242), np.uint8)
    if tissue:
        nuclei = rng.random((300, 600, 1)) < 0.3
        pixels[TISSUE] = np.where(nuclei, (110, 70, 150), (225, 150, 195))
    path = folder / f"{name}.png"
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture
def slide(tmp_path) -> ad.AnnData:
    return hb.io.read_image(painted(tmp_path), mpp=MPP)


@pytest.fixture
def two(tmp_path) -> ad.AnnData:
    """Two slides in one AnnData, of different pixel sizes."""
    slide = hb.io.read_image(painted(tmp_path, "A"), mpp=MPP)
    slide.uns["spatial"]["B"] = hb.io.read_image(painted(tmp_path, "B"), mpp=2 * MPP).uns["spatial"]["B"]
    return slide


def tables(adata):
    return {name: sorted(map(str, getattr(adata, name))) for name in ("obs", "var", "obsm", "uns")}, adata.shape


def test_the_mask_shows_the_tissue(slide):
    hb.pp.tissue_mask(slide)
    found = slide.uns["tissue_mask"]["slides"]["tumour"]
    truth = np.zeros((600, 800), bool)
    truth[TISSUE] = True
    assert found["scale"] == 1.0
    assert (found["mask"] & truth).sum() / (found["mask"] | truth).sum() > 0.9
    assert slide.uns["tissue_mask"]["params"] == {"min_area": 0.1, "max_hole": 0.1}
    assert set(slide.uns["spatial"]["tumour"]["images"]) == {"hires"}


def test_the_mask_of_measured_slides(caplog):
    adata = hb.datasets.tissue(100, n_slides=2)
    del adata.uns["spatial"]["tissue_1"]["metadata"]["mpp"]
    changed = hb.pp.tissue_mask(adata, key_added="mine", copy=True)
    assert "mine" not in adata.uns
    assert set(changed.uns["mine"]["slides"]) == {"tissue_0", "tissue_1"}
    assert "'tissue_1': pixel size unknown" in caplog.text
    assert changed.n_obs == 200


def test_a_coarse_thumbnail_gives_way_to_the_image(slide, tmp_path):
    """Of 64 x 48 pixels of 25 um, and of 16 x 12 of 100 um; without the image, whatever there is."""
    entry = slide.uns["spatial"]["tumour"]
    full = entry["images"]["hires"]
    for step, expected in ((12, 1 / 12), (50, 1.0)):
        entry["images"]["hires"] = full[::step, ::step]
        entry["scalefactors"]["tissue_hires_scalef"] = 1 / step
        hb.pp.tissue_mask(slide)
        assert slide.uns["tissue_mask"]["slides"]["tumour"]["scale"] == pytest.approx(expected)
    (tmp_path / "tumour.png").unlink()
    hb.pp.tissue_mask(slide)
    assert slide.uns["tissue_mask"]["slides"]["tumour"]["mask"].shape == (12, 16)
    del entry["images"]["hires"]
    with pytest.raises(ImageError, match=r"no image file .*tumour\.png"):
        hb.pp.tissue_mask(slide)


def test_spots_stand_on_the_tissue(slide):
    same = slide
    assert hb.pp.grid(slide, spacing_um=100) is None
    assert same.shape == (slide.n_obs, 0)
    # squares of 50 px: the tissue is 12 columns and 6 rows of them, from column 2 and row 4
    inside = slide.obs["array_col"].between(2, 13) & slide.obs["array_row"].between(4, 9)
    assert inside.sum() == 72
    assert slide.n_obs == 72
    assert slide.obs_names[0] == "0002x0004"
    assert slide.obs["array_row"].dtype == np.int64
    expected = np.column_stack([slide.obs["array_col"], slide.obs["array_row"]]) * 50 + 25.0
    np.testing.assert_array_equal(slide.obsm["spatial"], expected)
    assert isinstance(slide.obs["library_id"].dtype, pd.CategoricalDtype)
    assert set(slide.obs["library_id"]) == {"tumour"}
    assert slide.uns["spatial"]["tumour"]["scalefactors"]["spot_diameter_fullres"] == 50.0
    assert slide.uns["grid"]["params"] == {"spacing_um": 100, "min_tissue": 0.5, "use_mask": "tissue_mask"}


def test_finer_spots_and_less_tissue(slide):
    fine = hb.pp.grid(slide, spacing_um=30, copy=True)
    every = hb.pp.grid(slide, spacing_um=100, min_tissue=0.0, copy=True)
    full = hb.pp.grid(slide, spacing_um=100, min_tissue=1.0, copy=True)
    assert slide.shape == (0, 0)
    assert "tissue_mask" not in slide.uns
    assert fine.n_obs == pytest.approx(72 * (100 / 30) ** 2, rel=0.1)
    assert full.n_obs <= 72 < every.n_obs


def test_centres_lie_inside_the_image(slide):
    slide.uns["tissue_mask"] = {"slides": {"tumour": {"mask": np.ones((600, 800), bool), "scale": 1.0}}}
    hb.pp.grid(slide, spacing_um=70, min_tissue=0.01)
    assert (slide.obsm["spatial"] < (800, 600)).all()
    assert slide.obs["array_col"].max() == 22
    hb.pp.iter_patches(slide)


def test_a_mask_of_ones_own(slide):
    mask = np.zeros((60, 80), bool)
    mask[10:20, 40:60] = True
    slide.uns["mine"] = {"slides": {"tumour": {"mask": mask, "scale": 0.1}}}
    hb.pp.grid(slide, spacing_um=200, use_mask="mine", library_key="section")
    assert list(slide.obs_names) == ["0004x0001", "0005x0001"]
    assert list(slide.obs["section"]) == ["tumour"] * 2
    assert "tissue_mask" not in slide.uns


def test_several_slides(two):
    hb.pp.grid(two, spacing_um=100)
    assert two.obs_names.is_unique
    counts = two.obs["library_id"].value_counts()
    assert counts["A"] == 72
    assert counts["B"] == pytest.approx(4 * 72, rel=0.1)
    assert two.obs_names[0] == "A_0002x0004"
    diameters = [two.uns["spatial"][name]["scalefactors"]["spot_diameter_fullres"] for name in "AB"]
    assert diameters == [50.0, 25.0]


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_it_survives_the_disk(two, tmp_path, ending):
    hb.pp.grid(two)
    path = tmp_path / f"slide.{ending}"
    getattr(two, f"write_{ending}")(path)
    back = getattr(ad, f"read_{ending}")(path)
    pd.testing.assert_frame_equal(back.obs, two.obs, check_names=False)
    assert back.shape == two.shape
    for name in "AB":
        kept, written = back.uns["tissue_mask"]["slides"][name], two.uns["tissue_mask"]["slides"][name]
        assert kept["mask"].dtype == bool
        np.testing.assert_array_equal(kept["mask"], written["mask"])
        assert kept["scale"] == written["scale"]


@pytest.mark.global_rng
def test_scanpy_and_squidpy_draw_it(slide):
    import scanpy as sc
    import squidpy as sq

    hb.pp.grid(slide)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pl.spatial(slide, color="array_row", library_id="tumour", show=False)
        sq.pl.spatial_scatter(slide, color="array_row", library_id="tumour")


def test_it_grows_views_and_copies_alike(slide):
    view = slide[:]
    hb.pp.grid(view)
    assert not view.is_view
    assert view.n_obs == 72
    assert slide.n_obs == 0
    again = view[view.obs["array_row"] == 4].copy()
    assert again.n_obs == 12


def without_mpp(slide):
    del slide.uns["spatial"]["tumour"]["metadata"]["mpp"]


def not_its_mask(slide):
    slide.uns["tissue_mask"] = {"slides": {"other": {}}}


@pytest.mark.parametrize(
    ("spoil", "options", "error", "words"),
    [
        (without_mpp, {}, DataError, r"pixel size of slide 'tumour' is unknown.*pass mpp= to hb\.io\.read_image"),
        (not_its_mask, {}, MissingSlotError, r"no mask of slide 'tumour' \(there: \['other'\]\)"),
        (lambda slide: slide.uns.clear(), {}, MissingSlotError, r"no slides in uns\['spatial'\].*read_image"),
        (None, {"spacing_um": 0.0}, DataError, "spacing_um is 0.0"),
        (None, {"min_tissue": 2.0}, DataError, "min_tissue is 2.0"),
        (None, {"spacing_um": 5000.0}, DataError, r"no square of 2500 pixels holds 50%"),
    ],
)
def test_refused_and_nothing_written(slide, spoil, options, error, words):
    if spoil:
        spoil(slide)
    before = tables(slide)
    with pytest.raises(error, match=words):
        hb.pp.grid(slide, **options)
    assert tables(slide) == before


def test_a_blank_slide(tmp_path, caplog):
    slide = hb.io.read_image(painted(tmp_path, "blank", tissue=False), mpp=MPP)
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match=r"no spot on slide 'blank': 0\.0% .* blank"):
        hb.pp.grid(slide)
    assert "'blank': no tissue found" in caplog.text
    assert set(slide.uns) == {"spatial"}


def test_a_small_piece_in_a_corner_is_no_reason_to_warn(tmp_path):
    pixels = np.full((2400, 3200, 3), (240, 238, 242), np.uint8)
    with Image.open(painted(tmp_path)) as picture:
        pixels[:600, :800] = np.asarray(picture)
    Image.fromarray(pixels).save(tmp_path / "biopsy.png")
    slide = hb.io.read_image(tmp_path / "biopsy.png", mpp=MPP)
    hb.pp.grid(slide)
    assert slide.n_obs > 20
    assert (slide.obsm["spatial"] < [800, 600]).all()
    assert sum(len(rows) for rows, _ in hb.pp.iter_patches(slide, size=32)) == slide.n_obs
    del slide.uns["grid"]
    with pytest.warns(UserWarning, match="top left corner"):
        hb.pp.iter_patches(slide, size=32)


def test_spots_that_are_there_are_never_replaced():
    adata = hb.datasets.tissue(100)
    with pytest.raises(DataError, match=r"100 spots and 300 genes already.*read_image"):
        hb.pp.grid(adata)
    with pytest.raises(DataError, match=r"0 spots and 300 genes already"):
        hb.pp.grid(adata[:0].copy())
    assert adata.n_obs == 100


def test_no_anndata():
    with pytest.raises(DataError, match=r"expected an AnnData of hb\.io\.read_image, found str"):
        hb.pp.grid("tumour.png")
    with pytest.raises(DataError, match="found str"):
        hb.pp.tissue_mask("tumour.png")
    with pytest.raises(MissingSlotError, match=r"no slides in uns\['spatial'\]"):
        hb.pp.tissue_mask(ad.AnnData(np.ones((2, 2))))


def test_a_slide_without_image(slide):
    slide.uns["spatial"]["bare"] = {"metadata": {"mpp": 1.0}}
    before = tables(slide)
    with pytest.raises(ImageError, match=r"slide 'bare' has no image.*source_image_path"):
        hb.pp.tissue_mask(slide)
    slide.uns["spatial"]["bare"] = {"metadata": {"mpp": -1.0}}
    with pytest.raises(DataError, match=r"\['mpp'\] is -1\.0"):
        hb.pp.tissue_mask(slide)
    assert tables(slide) == before
