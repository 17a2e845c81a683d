from __future__ import annotations

import logging
import os
import warnings

import anndata as ad
import numpy as np
import pytest
import tifffile
from PIL import Image

import hibiost as hb
from hibiost.errors import DataError, ImageError
from hibiost.settings import logger

PIXELS = np.random.default_rng(0).integers(0, 256, (1200, 1500, 3), np.uint8)


@pytest.fixture
def path(tmp_path):
    tifffile.imwrite(
        tmp_path / "tumour.ome.tif",
        PIXELS,
        photometric="rgb",
        ome=True,
        metadata={"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5},
    )
    return tmp_path / "tumour.ome.tif"


def test_slide_without_spots(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    adata = hb.io.read_image("tumour.ome.tif")
    assert adata.shape == (0, 0)
    assert list(adata.obs["library_id"].cat.categories) == ["tumour"]
    assert adata.obsm["spatial"].shape == (0, 2)
    assert list(adata.uns["spatial"]) == ["tumour"]
    entry = adata.uns["spatial"]["tumour"]
    assert entry["images"]["hires"].shape == (800, 1000, 3)
    assert entry["images"]["hires"].dtype == np.uint8
    expected = Image.fromarray(PIXELS).resize((1000, 800), Image.Resampling.BOX)
    np.testing.assert_array_equal(entry["images"]["hires"], np.asarray(expected))
    assert entry["scalefactors"] == {"tissue_hires_scalef": pytest.approx(2 / 3)}
    assert entry["metadata"] == {
        "source_image_path": str(path),
        "width": 1500,
        "height": 1200,
        "mpp": 0.5,
        "mpp_source": "OME PhysicalSizeX",
    }
    assert os.path.isabs(entry["metadata"]["source_image_path"])


def test_arguments_come_first(path):
    entry = hb.io.read_image(str(path), mpp=0.25, library_id="B 7").uns["spatial"]["B 7"]
    assert (entry["metadata"]["mpp"], entry["metadata"]["mpp_source"]) == (0.25, "argument")


def test_what_was_read_is_told(path, monkeypatch, caplog):
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, "hibiost")
    hb.io.read_image(path)
    assert "'tumour': 1500 x 1200 pixels of 0.5 um (OME PhysicalSizeX)" in caplog.text


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_survives_files(path, tmp_path, kind):
    adata = hb.io.read_image(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(adata, f"write_{kind}")(tmp_path / f"a.{kind}")
        again = getattr(ad, f"read_{kind}")(tmp_path / f"a.{kind}")
    assert again.shape == (0, 0)
    assert list(again.obs["library_id"].cat.categories) == ["tumour"]
    assert again.obsm["spatial"].shape == (0, 2)
    before, after = (a.uns["spatial"]["tumour"] for a in (adata, again))
    np.testing.assert_array_equal(after["images"]["hires"], before["images"]["hires"])
    assert after["metadata"] == before["metadata"]
    assert after["scalefactors"] == before["scalefactors"]


@pytest.mark.data
def test_real_section(her2st_dir):
    path = her2st_dir / "data" / "ST-imgs" / "C" / "C2" / "5714_HE_BT_C2.jpg"
    with pytest.raises(DataError, match=r"5714_HE_BT_C2\.jpg does not tell the size of its pixels; pass mpp="):
        hb.io.read_image(path)
    entry = hb.io.read_image(path, mpp=0.67).uns["spatial"]["5714_HE_BT_C2"]
    reference = hb.datasets.her2st("C2").uns["spatial"]["C2"]
    assert entry["metadata"]["source_image_path"] == reference["metadata"]["source_image_path"]
    assert (entry["metadata"]["width"], entry["metadata"]["height"]) == (9274, 9911)
    assert entry["images"]["hires"].shape == reference["images"]["hires"].shape
    assert np.abs(entry["images"]["hires"].astype(int) - reference["images"]["hires"]).mean() < 4


# ---- refusals


def test_unknown_pixel_size(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png does not tell the size of its pixels; pass mpp=.*0\.25.*40x"):
        hb.io.read_image(tmp_path / "a.png")


@pytest.mark.parametrize("mpp", [0, -1.0, float("nan"), float("inf")])
def test_unusable_pixel_size(path, mpp):
    with pytest.raises(DataError, match=r"mpp is .*; expected micrometres per pixel"):
        hb.io.read_image(path, mpp=mpp)


@pytest.mark.parametrize("name", ["", "a/b"])
def test_unusable_name(path, name):
    with pytest.raises(DataError, match=rf"library_id is '{name}'; expected a name without '/'"):
        hb.io.read_image(path, library_id=name)


def test_no_image(tmp_path):
    with pytest.raises(ImageError, match=r"there is no image file .*a\.svs"):
        hb.io.read_image(tmp_path / "a.svs", mpp=0.5)
    with pytest.raises(ImageError, match="is a folder"):
        hb.io.read_image(tmp_path, mpp=0.5)
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, photometric="rgb", compression="zlib", tile=(64, 64))
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"a\.tif is truncated"):
        hb.io.read_image(tmp_path / "a.tif", mpp=0.5)
