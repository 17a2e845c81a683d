from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import hibiost as hb
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
    def fail(image):
        raise AssertionError("decoded")

    monkeypatch.setattr("hibiost.images.source._decode", fail)
    adata = section([[10, 20]], C2={"metadata": {"source_image_path": path}})
    (slide,) = inputs.slides(adata)
    with pytest.raises(ImageError, match="decoded"):
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


@pytest.mark.parametrize("spot", [[5, 250], [150, 280]])
def test_swapped_axes(spot):
    with pytest.raises(DataError, match=r"1 of 3 spots .* lie outside .*x and y look swapped: set .*\[:, ::-1\]"):
        inputs.slides(section([[1, 1], [20, 30], spot], C2=hires()))


GRID = np.stack(np.meshgrid(np.arange(4), np.arange(3)), axis=-1).reshape(-1, 2)


def test_only_spots_on_tissue_have_to_lie_inside(path):
    """A raw matrix of Space Ranger has spots at the margins of the array, beside the image."""
    adata = section([[10, 10], [-5, 10], [200, 100]], C2={"metadata": {"source_image_path": path}})
    adata.obs["in_tissue"] = [1, 0, 1]
    (slide,) = inputs.slides(adata)
    assert len(slide.xy) == 3
    adata.obs["in_tissue"] = [1, 1, 0]
    with pytest.raises(DataError, match="1 of 2 spots of slide 'C2' lie outside"):
        inputs.slides(adata)


def test_micrometres_outside_the_image():
    """Pixels of 4 micrometres: 150 pixels are 600 micrometres."""
    pixels = 50.0 + GRID * [60, 40]
    adata = section(pixels * 4, C2={**hires(), "metadata": {"mpp": 4.0}})
    with pytest.raises(DataError, match=r"12 of 12 spots|lie outside") as error:
        inputs.slides(adata)
    assert "look like micrometres: set adata.obsm['spatial'] = adata.obsm['spatial'] / 4, " in str(error.value)
    adata.obsm["spatial"] = adata.obsm["spatial"] / 4
    inputs.slides(adata)


def test_micrometres_in_a_corner():
    adata = section((50.0 + GRID * [60, 40]) * 0.25, C2={**hires(), "metadata": {"mpp": 0.25}})
    with pytest.warns(
        UserWarning, match=r"all 12 spots of slide 'C2' lie in the top left corner.*micrometres: set .*0\.25"
    ):
        inputs.slides(adata)
    del adata.uns["spatial"]["C2"]["metadata"]
    with pytest.warns(UserWarning, match=r"x up to 57\.5, y up to 32\.5\. .*micrometres, or like pixels of a reduced"):
        inputs.slides(adata)


def test_places_on_the_array_in_a_corner():
    with pytest.warns(UserWarning, match="12 spots .* corner .* look like places on the array; set .*full-resolution"):
        inputs.slides(section(GRID, C2=hires()))


def test_micrometres_of_a_reduced_image():
    pixels = 200.0 + GRID * [240, 160]
    adata = section(pixels * 4, C2={**hires(0.25), "metadata": {"mpp": 4.0}})
    with (
        pytest.warns(UserWarning, match="no full-resolution image"),
        pytest.raises(DataError, match=r"micrometres: set .* / 4"),
    ):
        inputs.slides(adata)


def test_few_spots_may_lie_anywhere():
    inputs.slides(section(GRID[:9], C2=hires()))
    inputs.slides(section(np.vstack([GRID, [[150, 20]]]), C2=hires()))


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


# ---- patch files


def patch_file(path, names, xy, window=20, size=10, **attributes) -> str:
    """As HEST writes it."""
    with h5py.File(path, "w") as file:
        file["img"] = np.random.default_rng(5).integers(0, 256, (len(names), size, size, 3), np.uint8)
        file["img"].attrs.update({"downsample": window / size, "patch_size_target": size, **attributes})
        file["coords"] = np.floor(np.asarray(xy) - window / 2).astype(int)
        file.create_dataset("barcode", data=np.array(names, object)[:, None], dtype=h5py.string_dtype())
    return str(path)


XY = np.array([[30.0, 40.0], [150.0, 90.0], [260.0, 170.0]])


def patched(tmp_path, names=("2", "0", "1"), xy=XY[[2, 0, 1]], **entry) -> ad.AnnData:
    """Three spots and a file of their patches in another order, of 20 full-resolution pixels shown as 10."""
    file = patch_file(tmp_path / "p.h5", names, xy, pixel_size=0.5)
    return section(XY, C2={"metadata": {"patches_path": file}, **entry})


def test_patches_are_joined_by_barcode(tmp_path):
    adata = patched(tmp_path)
    (slide,) = inputs.slides(adata)
    assert (slide.image, slide.mpp, slide.scale) == (None, 0.5, 1.0)
    with h5py.File(tmp_path / "p.h5") as file:
        stored = file["img"][:][[1, 2, 0]]
    np.testing.assert_array_equal(np.concatenate(list(slide.iter_patches(size=10, mpp=1.0, batch_size=2))), stored)
    np.testing.assert_array_equal(np.concatenate(list(slide.iter_patches(size=20, output=10))), stored)
    larger = next(slide.iter_patches(size=20))
    for patch, kept in zip(larger, stored, strict=True):
        resized = Image.fromarray(kept).resize((20, 20), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(patch, np.asarray(resized))
    part = replace(slide, rows=slide.rows[[2]], xy=slide.xy[[2]])
    np.testing.assert_array_equal(next(part.iter_patches(size=10, mpp=1.0)), stored[[2]])
    with pytest.raises(ImageError, match="slide 'C2' has patches only, no image"):
        slide.open()


def test_renamed_spots_keep_their_patches(tmp_path):
    adata = patched(tmp_path)
    adata.obs["barcode"] = adata.obs_names.to_numpy()
    expected = next(inputs.slides(adata)[0].iter_patches(size=20))
    adata.obs_names = ["C2_" + name for name in adata.obs_names]
    np.testing.assert_array_equal(next(inputs.slides(adata)[0].iter_patches(size=20)), expected)


def test_a_patch_file_goes_before_a_reduced_image(tmp_path, path):
    (slide,) = inputs.slides(patched(tmp_path, **hires(0.25)))
    assert slide.image is None
    adata = patched(tmp_path)
    metadata = adata.uns["spatial"]["C2"]["metadata"]
    metadata["source_image_path"] = path
    (slide,) = inputs.slides(adata)
    assert slide.image == path
    metadata["source_image_path"] = str(tmp_path / "elsewhere.png")
    (slide,) = inputs.slides(adata)
    assert slide.image is None


def test_the_image_is_read_where_the_file_does_not_serve(tmp_path, path, messages):
    adata = patched(tmp_path, names=("2", "0", "9"))
    adata.uns["spatial"]["C2"]["metadata"] |= {"source_image_path": path, "mpp": 0.5}
    (slide,) = inputs.slides(adata)
    np.testing.assert_array_equal(next(slide.iter_patches(size=20))[0], PIXELS[30:50, 20:40])
    assert "read from the image. 1 of 3 spots have no patch" in messages.text
    (tmp_path / "p.h5").write_bytes(b"")
    np.testing.assert_array_equal(next(slide.iter_patches(size=20))[0], PIXELS[30:50, 20:40])
    assert "p.h5 cannot be read as a patch file" in messages.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"size": 30},
            r"patches 30 full-resolution pixels \(15 micrometres\) wide .*20 full-resolution pixels \(10 mic",
        ),
        ({"size": 30}, r"10 x 10 pixels; ask for those \(size=10, mpp=1\), or extract wider .*recipe=\{'shift': 0\}"),
        ({"size": 12, "mpp": 1.0}, r"patches 24 full-resolution pixels \(12 micrometres\)"),
    ],
)
def test_wider_patches_than_stored(tmp_path, options, message):
    (slide,) = inputs.slides(patched(tmp_path))
    with pytest.raises(DataError, match=message):
        slide.iter_patches(**options)


def test_spots_without_patch(tmp_path):
    (slide,) = inputs.slides(patched(tmp_path, names=("2", "8", "9")))
    message = r"slide 'C2': 2 of 3 spots have no patch in .*such as \['0', '1'\] \(it holds \['2', '8', '9'\].*isin"
    with pytest.raises(DataError, match=message):
        slide.iter_patches(size=20)


def test_patches_of_another_section(tmp_path):
    (slide,) = inputs.slides(patched(tmp_path, xy=XY + 100))
    with pytest.raises(DataError, match=r"lie \d+ pixels from their spots.*patch file of this section"):
        slide.iter_patches(size=20)


def test_a_file_that_does_not_tell_its_scale(tmp_path):
    adata = patched(tmp_path)
    with h5py.File(tmp_path / "p.h5", "r+") as file:
        del file["img"].attrs["downsample"]
    (slide,) = inputs.slides(adata)
    with pytest.raises(DataError, match="does not tell how wide its patches are"):
        slide.iter_patches(size=20)


@pytest.mark.parametrize("content", [None, b"", b"<!DOCTYPE html>"])
def test_unreadable_patch_file(tmp_path, content):
    adata = patched(tmp_path)
    (tmp_path / "p.h5").unlink()
    if content is not None:
        (tmp_path / "p.h5").write_bytes(content)
    with pytest.raises(ImageError, match=r"slide 'C2': .*p\.h5.*\['C2'\]\['metadata'\]\['patches_path'\]"):
        inputs.slides(adata)


def test_joined_slides_keep_their_patches(tmp_path):
    """Barcodes that two slides share, as those of Visium do."""
    slides = {}
    for name in ("A", "B"):
        (tmp_path / name).mkdir()
        slides[name] = patched(tmp_path / name)
    expected = [next(inputs.slides(slide)[0].iter_patches(size=20)) for slide in slides.values()]
    for slide, found in zip(inputs.slides(hb.io.concat(slides)), expected, strict=True):
        np.testing.assert_array_equal(next(slide.iter_patches(size=20)), found)


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
