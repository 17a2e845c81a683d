from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hibiost.errors import DataError, ImageError, MissingSlotError
from hibiost.pp._patches import iter_patches

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 200, 300, 3), np.uint8)


@pytest.fixture
def adata(tmp_path) -> ad.AnnData:
    """Two slides, their spots in turns."""
    adata = ad.AnnData(np.ones((7, 2), np.float32))
    adata.obsm["spatial"] = np.random.default_rng(1).uniform(40, 160, (7, 2))
    adata.obs["library_id"] = pd.Categorical(list("BABABAB"))
    adata.uns["spatial"] = {}
    for name, pixels in zip("AB", PIXELS, strict=True):
        path = tmp_path / f"{name}.png"
        Image.fromarray(pixels).save(path)
        adata.uns["spatial"][name] = {"metadata": {"source_image_path": str(path), "mpp": 0.5}}
    return adata


def test_slide_by_slide(adata):
    found = list(iter_patches(adata, size=32, batch_size=3))
    assert [rows.tolist() for rows, _ in found] == [[0, 2, 4], [6], [1, 3, 5]]
    for rows, patches in found:
        assert patches.shape == (len(rows), 32, 32, 3)
        assert patches.dtype == np.uint8
        for row, patch in zip(rows, patches, strict=True):
            left, top = np.floor(adata.obsm["spatial"][row] - 16 + 0.5).astype(int)
            pixels = PIXELS["AB".index(adata.obs["library_id"].iloc[row])]
            np.testing.assert_array_equal(patch, pixels[top : top + 32, left : left + 32])


def test_physical_scale_and_library_key(adata):
    adata.obs["section"] = adata.obs.pop("library_id")
    (rows, patches), *_ = iter_patches(adata, size=16, mpp=1.0, library_key="section")
    left, top = np.floor(adata.obsm["spatial"][rows[1]] - 16 + 0.5).astype(int)
    crop = Image.fromarray(PIXELS[1]).crop((left, top, left + 32, top + 32))
    np.testing.assert_array_equal(patches[1], np.asarray(crop.resize((16, 16), Image.Resampling.BICUBIC)))


def test_nothing_is_written(adata):
    before = adata.copy()
    list(iter_patches(adata, size=8))
    assert list(adata.obsm) == list(before.obsm)
    assert adata.uns == before.uns
    pd.testing.assert_frame_equal(adata.obs, before.obs)


def test_refused_at_the_call(adata):
    del adata.uns["spatial"]["A"]["metadata"]["mpp"]
    with pytest.raises(DataError, match="pixel size of slide 'A' is unknown"):
        iter_patches(adata, mpp=1.0)
    with pytest.raises(DataError, match="size is 0"):
        iter_patches(adata, size=0)
    adata.uns["spatial"]["A"]["metadata"]["source_image_path"] = "nowhere.png"
    with pytest.raises(ImageError, match=r"no image file nowhere\.png"):
        iter_patches(adata)
    del adata.obsm["spatial"]
    with pytest.raises(MissingSlotError, match=r"no obsm\['spatial'\]"):
        iter_patches(adata)
