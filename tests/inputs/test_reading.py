from __future__ import annotations

import threading
from types import SimpleNamespace

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hibiost as hb
from hibiost import inputs
from hibiost.images import PixelSource
from hibiost.tl._embed import of_patches

HEIGHT, WIDTH, SIZE = 200, 300, 20
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
PADDED = np.pad(PIXELS, ((SIZE, SIZE), (SIZE, SIZE), (0, 0)), constant_values=255)
IMAGES = {"array": PIXELS, "tiles": da.from_array(PIXELS, chunks=(64, 64, 3))}
"""Decoded whole, and read by tiles."""


def section(xy, image, slides=None) -> ad.AnnData:
    adata = ad.AnnData(np.ones((len(xy), 1), np.float32))
    adata.obsm["spatial"] = np.asarray(xy, float)
    names = ["A"] * len(xy) if slides is None else [f"slide {number}" for number in slides]
    adata.obs["library_id"] = pd.Categorical(names)
    adata.uns["spatial"] = {name: {"images": {"fullres": image}} for name in names}
    return adata


def expected(xy) -> np.ndarray:
    corners = np.floor(np.asarray(xy) - SIZE / 2 + 0.5).astype(int) + SIZE
    return np.stack([PADDED[y : y + SIZE, x : x + SIZE] for x, y in corners])


places = st.tuples(st.integers(0, 11).map(lambda x: 25 * x), st.integers(0, 4).map(lambda y: 49.8 * y))
spots = st.lists(st.tuples(places, st.integers(0, 2)), min_size=1, max_size=40)


@given(spots, st.sampled_from(sorted(IMAGES)), st.integers(1, 7))
@settings(max_examples=60)
def test_each_spot_gets_its_patch(spots, image, batch_size):
    xy, slides = zip(*spots, strict=True)
    adata = section(xy, IMAGES[image], slides)
    options = {"size": SIZE, "batch_size": batch_size}
    found = inputs.slides(adata)
    rows, patches = zip(*inputs.numbered_patches(found, **options), strict=True)
    np.testing.assert_array_equal(np.concatenate(patches), expected(adata.obsm["spatial"][np.concatenate(rows)]))
    assert sorted(np.concatenate(rows)) == list(range(len(xy)))
    if image == "array":
        assert np.concatenate(rows).tolist() == [row for slide in found for row in slide.rows]

    batches = list(inputs.distinct_patches(found, **options))
    rows = np.concatenate([rows for rows, _, _ in batches])
    values = np.concatenate([patches[numbers] for _, numbers, patches in batches])
    np.testing.assert_array_equal(values, expected(adata.obsm["spatial"][rows]))
    assert sorted(rows) == list(range(len(xy)))
    windows = {(slide, *np.floor(np.array(place) + 0.5)) for place, slide in spots}
    assert sum(len(patches) for _, _, patches in batches) == len(windows)
    assert max(len(patches) for _, _, patches in batches) <= batch_size


def test_only_windows_of_the_same_pixels_coincide():
    xy = [[50.0, 60], [50.2, 60], [50.6, 60], [60, 50], [50, 60]]
    (slide,) = inputs.slides(section(xy, PIXELS))
    assert inputs.PatchReader.of(slide, size=SIZE).windows().tolist() == [0, 0, 1, 2, 0]
    adata = section(xy, PIXELS)
    adata.uns["spatial"]["A"]["metadata"] = {"mpp": 0.5}
    (slide,) = inputs.slides(adata)
    fractions = inputs.PatchReader.of(slide, size=SIZE, mpp=0.51)
    assert fractions.windows().tolist() == [0, 1, 2, 3, 0]


def test_a_patch_file_is_read_for_each_spot(tmp_path):
    """Its patches need not be those of the image."""
    adata = section([[50.0, 60], [50, 60], [90, 70]], PIXELS)
    stored = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    hb.images.write_patches(
        tmp_path / "a.h5",
        lambda start: [stored[start:]],
        coords=[[80, 60], [40, 50], [40, 50]],
        barcodes=adata.obs_names[[2, 0, 1]],
        size=SIZE,
        window=SIZE,
    )
    adata.uns["spatial"]["A"]["metadata"] = {"patches_path": str(tmp_path / "a.h5")}
    (batch,) = inputs.distinct_patches(inputs.slides(adata), size=SIZE)
    rows, numbers, patches = batch
    assert rows.tolist() == [2, 0, 1]
    np.testing.assert_array_equal(patches[numbers], stored)


@pytest.mark.parametrize("read", [inputs.numbered_patches, inputs.distinct_patches])
def test_the_image_is_closed_by_a_consumer_that_stops(monkeypatch, read):
    still_open = []
    monkeypatch.setattr(PixelSource, "__enter__", lambda self: (still_open.append(self), self)[1])
    monkeypatch.setattr(PixelSource, "__exit__", lambda self, *error: still_open.remove(self))
    adata = section(np.random.default_rng(0).uniform(0, 200, (100, 2)), PIXELS)
    batches = read(inputs.slides(adata), size=SIZE, batch_size=2)
    assert not still_open
    next(batches)
    assert len(still_open) == 1
    batches.close()
    assert not still_open
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hibiost-patches")]


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_what_several_spots_show_is_computed_once(image):
    rng = np.random.default_rng(0)
    xy = rng.permutation(np.repeat(rng.uniform(0, 200, (9, 2)), 4, axis=0))
    seen = []

    def colour(patches) -> torch.Tensor:
        seen.append(len(patches))
        return torch.from_numpy(patches.mean(axis=(1, 2)))

    config = SimpleNamespace(patch_size=SIZE, image_size=SIZE, mpp=None)
    model = SimpleNamespace(config=config, training_info={})
    batches = list(of_patches(inputs.slides(section(xy, image)), model, colour, batch_size=4, desc="colours"))
    assert seen == [4, 4, 1]
    for rows, values in batches:
        np.testing.assert_array_equal(values, expected(xy[rows]).mean(axis=(1, 2)))
    assert sorted(np.concatenate([rows for rows, _ in batches])) == list(range(36))
