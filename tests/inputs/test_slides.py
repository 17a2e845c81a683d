from __future__ import annotations

import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hibiost import inputs
from hibiost.errors import DataError, ImageError, MissingSlotError
from hibiost.settings import logger, settings

HEIGHT, WIDTH = 200, 300
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture
def path(tmp_path) -> str:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def section(xy, **uns) -> ad.AnnData:
    adata = ad.AnnData(np.ones((len(xy), 2), np.float32))
    adata.obsm["spatial"] = np.asarray(xy)
    adata.uns["spatial"] = uns
    return adata


def hires(scale: float = 1.0, pixels: np.ndarray = PIXELS) -> dict:
    return {"images": {"hires": pixels}, "scalefactors": {"tissue_hires_scalef": scale}}


@pytest.fixture
def messages(monkeypatch, caplog):
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, "hibiost")
    return caplog


# ---- coordinates


def test_coordinates():
    xy = np.array([[1, 2], [3, 4]])
    found = inputs.coordinates(section(xy))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, xy)
    frame = section(xy)
    frame.obsm["spatial"] = pd.DataFrame(xy, columns=["x", "y"], index=frame.obs_names)
    np.testing.assert_array_equal(inputs.coordinates(frame), xy)


def test_no_coordinates():
    adata = ad.AnnData(np.ones((2, 2), np.float32))
    adata.obsm["X_pca"] = np.ones((2, 2))
    with pytest.raises(MissingSlotError, match=r"no obsm\['spatial'\] .*X_pca.*set adata\.obsm\['spatial'\]"):
        inputs.coordinates(adata)


@pytest.mark.parametrize(
    ("xy", "message"),
    [
        (np.ones((2, 3)), r"shape \(2, 3\); expected \(2, 2\)"),
        (np.array([[1, np.nan], [2, 3]]), "NaN or infinite coordinates for 1 spots"),
        (np.array([[1, np.inf], [np.nan, 3]]), "for 2 spots"),
        (np.array([["a", "b"], ["c", "d"]]), "does not hold numbers"),
    ],
)
def test_unusable_coordinates(xy, message):
    with pytest.raises(DataError, match=message):
        inputs.coordinates(section(xy))


def test_no_spots():
    with pytest.raises(DataError, match="no spots"):
        inputs.coordinates(ad.AnnData(np.ones((0, 2), np.float32)))


# ---- libraries


@pytest.mark.parametrize("kind", ["category", "str", "object", "int"])
def test_libraries_in_order_of_appearance(kind):
    ids = {"int": [10, 9, 10, 2, 9]}.get(kind, ["b10", "a9", "b10", "a2", "a9"])
    adata = section(np.ones((5, 2)))
    adata.obs["library_id"] = pd.Series(ids, index=adata.obs_names, dtype=kind)
    if kind == "category":
        adata.obs["library_id"] = adata.obs["library_id"].cat.add_categories("unused")
    found = inputs.libraries(adata)
    assert list(found) == [str(i) for i in dict.fromkeys(ids)]
    assert [rows.tolist() for rows in found.values()] == [[0, 2], [1, 4], [3]]
    adata.obs["section"] = adata.obs.pop("library_id")
    assert list(inputs.libraries(adata, "section")) == list(found)


@pytest.mark.parametrize(("uns", "name"), [({}, "slide"), ({"C2": {}}, "C2")])
def test_one_slide_without_library_id(uns, name):
    found = inputs.libraries(section(np.ones((3, 2)), **uns))
    assert list(found) == [name]
    assert found[name].tolist() == [0, 1, 2]
    adata = ad.AnnData(np.ones((3, 2), np.float32))
    assert list(inputs.libraries(adata)) == ["slide"]


def test_slides_that_cannot_be_told_apart():
    adata = section(np.ones((3, 2)), C2={}, C3={})
    adata.obs["library_ID"] = "C2"
    with pytest.raises(MissingSlotError, match=r"no obs\['library_id'\] .*'C2', 'C3'.*Did you mean 'library_ID'"):
        inputs.libraries(adata)


def test_named_library_key_has_to_be_there():
    with pytest.raises(MissingSlotError, match=r"no obs\['batch'\]"):
        inputs.libraries(section(np.ones((3, 2)), C2={}), "batch")


@pytest.mark.parametrize("dtype", ["category", "object"])
def test_spots_without_slide(dtype):
    adata = section(np.ones((3, 2)))
    adata.obs["library_id"] = pd.Series(["C2", None, "C2"], index=adata.obs_names, dtype=dtype)
    with pytest.raises(DataError, match=r"obs\['library_id'\] is empty \(NaN\) for 1 of 3 spots"):
        inputs.libraries(adata)


# ---- slides


def test_slides(path):
    adata = section(
        [[10, 20], [100, 90], [299.9, 199.9]],
        C3={"metadata": {"source_image_path": path, "mpp": np.float32(0.5)}, **hires(0.1)},
        C2=hires(),
    )
    adata.obs["library_id"] = pd.Categorical(["C2", "C3", "C2"])
    second, first = inputs.slides(adata)
    assert (first.library_id, first.image, first.scale, first.mpp) == ("C3", path, 1.0, 0.5)
    assert (second.library_id, second.scale, second.mpp) == ("C2", 1.0, None)
    assert second.rows.tolist() == [0, 2]
    np.testing.assert_array_equal(second.xy, [[10, 20], [299.9, 199.9]])
    np.testing.assert_array_equal(second.image, PIXELS)
    with first.open() as source:
        assert (source.height, source.width) == (HEIGHT, WIDTH)


def test_only_headers_are_opened(path, monkeypatch):
    def fail(self):
        raise AssertionError("decoded")

    monkeypatch.setattr("hibiost.images.source._PillowSource._decode", fail)
    adata = section([[10, 20]], C2={"metadata": {"source_image_path": path}})
    (slide,) = inputs.slides(adata)
    with pytest.raises(AssertionError, match="decoded"):
        next(slide.iter_patches(size=8))


@pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning", "ignore:The '.*' option is deprecated")
def test_subsets_and_views_and_files(path, tmp_path):
    adata = section([[10, 20], [30, 40]], C2={"metadata": {"source_image_path": path, "mpp": 0.5}}, C3=hires())
    adata.obs["library_id"] = pd.Categorical(["C2", "C3"])
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for read in (adata, ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        first, second = inputs.slides(read)
        assert (first.image, first.mpp, first.scale) == (path, 0.5, 1.0)
        np.testing.assert_array_equal(next(second.iter_patches(size=10))[0], PIXELS[35:45, 25:35])
    (only,) = inputs.slides(adata[1:])
    assert (only.library_id, only.rows.tolist()) == ("C3", [0])


def test_reduced_image_warns_and_is_scaled():
    adata = section([[400, 200]], C2=hires(0.25))
    with pytest.warns(UserWarning, match=r"'C2' has no full-resolution image.*25\.0% of the full resolution"):
        (slide,) = inputs.slides(adata)
    assert slide.scale == 0.25
    patch = next(slide.iter_patches(size=80, output=20))[0]
    np.testing.assert_array_equal(patch, PIXELS[40:60, 90:110])
    resized = next(slide.iter_patches(size=80))[0]
    expected = Image.fromarray(PIXELS[40:60, 90:110]).resize((80, 80), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resized, np.asarray(expected))


def test_float_hires_as_scanpy_reads_it():
    (slide,) = inputs.slides(section([[50, 60]], C2=hires(1.0, PIXELS / np.float32(255))))
    np.testing.assert_array_equal(next(slide.iter_patches(size=10))[0], PIXELS[55:65, 45:55])


def test_physical_scale(path):
    adata = section([[150, 100]], C2={"metadata": {"source_image_path": path, "mpp": 0.1}})
    (slide,) = inputs.slides(adata)
    crop = Image.fromarray(PIXELS).crop((150 - 48, 100 - 48, 150 + 48, 100 + 48))  # 32 x 0.3 / 0.1 = 96, not 95.99...
    np.testing.assert_array_equal(
        next(slide.iter_patches(size=32, mpp=0.3))[0], np.asarray(crop.resize((32, 32), Image.Resampling.BICUBIC))
    )
    np.testing.assert_array_equal(
        next(slide.iter_patches(size=32, mpp=0.3, output=16))[0],
        np.asarray(crop.resize((16, 16), Image.Resampling.BICUBIC)),
    )
    np.testing.assert_array_equal(next(slide.iter_patches(size=32, mpp=0.1))[0], PIXELS[84:116, 134:166])


def test_padded_patches_are_told(path, messages):
    adata = section([[150, 100], [3, 100], [150, 195]], C2={"metadata": {"source_image_path": path}})
    (slide,) = inputs.slides(adata)
    slide.iter_patches(size=20)
    assert "slide 'C2': 2 of 3 patches reach over the edge" in messages.text


# ---- refusals


def test_image_of_another_machine():
    adata = section([[1, 1]], C2={"metadata": {"source_image_path": "/nowhere/a.jpg"}, **hires()})
    with pytest.raises(
        ImageError,
        match=r"slide 'C2': there is no image file /nowhere/a\.jpg.*\['C2'\]\['metadata'\]\['source_image_path'\]",
    ):
        inputs.slides(adata)


@pytest.mark.parametrize(
    "uns",
    [
        {},
        {"C2": {}},
        {"C2": {"images": {"hires": PIXELS}}},
        {"C2": {"scalefactors": {"tissue_hires_scalef": 1.0}, "images": {"lowres": PIXELS}}},
    ],
)
def test_no_image(uns):
    adata = section([[1, 1]], **uns)
    adata.obs["library_id"] = pd.Categorical(["C2"])
    with pytest.raises(ImageError, match=r"no image and no patches for slide 'C2': expected .*source_image_path"):
        inputs.slides(adata)
    del adata.uns["spatial"]
    with pytest.raises(ImageError, match="no image and no patches for slide 'C2'"):
        inputs.slides(adata)


def test_unusable_hires():
    with pytest.raises(ImageError, match=r"slide 'C2': .*dtype uint16.*\['images'\]\['hires'\]"):
        inputs.slides(section([[1, 1]], C2=hires(1.0, PIXELS.astype(np.uint16))))


@pytest.mark.parametrize("spot", [[-0.1, 5], [5, -1], [WIDTH, 5], [5, HEIGHT], [5, 250]])
def test_spots_outside_the_image(spot):
    adata = section([[1, 1], [20, 30], spot], C2=hires())
    with pytest.raises(
        DataError, match=r"1 of 3 spots of slide 'C2' lie outside its image of 300 x 200 pixels.*x from .*swapped"
    ):
        inputs.slides(adata)


@pytest.mark.parametrize("mpp", [0.0, -1.0, np.nan, "half"])
def test_unusable_pixel_size(mpp):
    with pytest.raises(DataError, match=r"\['C2'\]\['metadata'\]\['mpp'\] is .*expected a positive number"):
        inputs.slides(section([[1, 1]], C2={"metadata": {"mpp": mpp}, **hires()}))


@pytest.mark.parametrize("scale", [0.0, np.nan])
def test_unusable_scale(scale):
    with pytest.raises(DataError, match="tissue_hires_scalef"):
        inputs.slides(section([[1, 1]], C2=hires(scale)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mpp": 0.5}, r"slide 'C2' is unknown; set adata\.uns\['spatial'\]\['C2'\]\['metadata'\]\['mpp'\] = "),
        ({"mpp": 0.0}, "mpp is 0"),
        ({"size": 0}, "size is 0"),
        ({"output": 0}, "output 0"),
        ({"batch_size": 0}, "batch_size 0"),
    ],
)
def test_patches_refused_at_the_call(options, message):
    (slide,) = inputs.slides(section([[1, 1]], C2=hires()))
    with pytest.raises(DataError, match=message):
        slide.iter_patches(**options)


# ---- real data

HER2ST = Path(settings.cache) / "her2st" / "data"
C2_IMAGE = HER2ST / "ST-imgs" / "C" / "C2" / "5714_HE_BT_C2.jpg"


@pytest.mark.skipif(not C2_IMAGE.exists(), reason="her2st C2 is not in the data folder")
def test_her2st_c2(messages):
    spots = pd.read_csv(HER2ST / "ST-spotfiles" / "C2_selection.tsv", sep="\t")
    xy = spots[["pixel_x", "pixel_y"]].to_numpy()
    adata = section(xy, C2={"metadata": {"source_image_path": str(C2_IMAGE), "mpp": 0.69}})
    (slide,) = inputs.slides(adata)
    patches = np.concatenate(list(slide.iter_patches()))
    assert patches.shape == (187, 224, 224, 3)
    assert "padded" not in messages.text
    with pytest.warns(Image.DecompressionBombWarning):
        image = Image.open(C2_IMAGE)
    with image:
        assert image.size == (9274, 9911)
        for patch, (x, y) in zip(patches, xy, strict=True):
            left, top = int(np.floor(x - 112 + 0.5)), int(np.floor(y - 112 + 0.5))
            np.testing.assert_array_equal(patch, np.asarray(image.crop((left, top, left + 224, top + 224))))
