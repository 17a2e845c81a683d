from __future__ import annotations

import os

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

import hibiost as hb
from hibiost.errors import DataError, ImageError
from hibiost.images import PatchFile
from hibiost.images.tiled import TiledSource

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 200, 300, 3), np.uint8)


@pytest.fixture
def adata(tmp_path) -> ad.AnnData:
    """Two slides, their spots in turns, some at the edge."""
    adata = ad.AnnData(np.ones((9, 2), np.float32), obs=pd.DataFrame(index=[f"spot-{i}" for i in range(9)]))
    adata.obsm["spatial"] = np.random.default_rng(1).uniform(0, 190, (9, 2))
    adata.obs["library_id"] = pd.Categorical(list("BABABABAB"))
    adata.uns["spatial"] = {}
    for name, pixels in zip("AB", PIXELS, strict=True):
        path = tmp_path / f"{name}.png"
        Image.fromarray(pixels).save(path)
        adata.uns["spatial"][name] = {"metadata": {"source_image_path": str(path), "mpp": 0.5}}
    return adata


def patches(adata, **options) -> np.ndarray:
    rows, values = zip(*hb.pp.iter_patches(adata, batch_size=2, **options), strict=True)
    return np.concatenate(values)[np.argsort(np.concatenate(rows))]


def without_images(adata) -> ad.AnnData:
    alone = adata.copy()
    for entry in alone.uns["spatial"].values():
        del entry["metadata"]["source_image_path"]
    return alone


@pytest.mark.parametrize("options", [{"size": 32}, {"size": 32, "mpp": 0.8}, {"size": 24, "mpp": 0.25}])
def test_patches_from_files_are_those_of_the_images(adata, tmp_path, options):
    expected = patches(adata, **options)
    before = adata.copy()
    folder = tmp_path / "Gewebe ü" / "patches"
    assert hb.pp.extract_patches(adata, folder, batch_size=2, **options) is None
    assert sorted(os.listdir(folder)) == ["A.h5", "B.h5"]
    for name in "AB":
        metadata = adata.uns["spatial"][name]["metadata"]
        assert metadata.pop("patches_path") == str(folder / f"{name}.h5")
        assert metadata == before.uns["spatial"][name]["metadata"]
        metadata["patches_path"] = str(folder / f"{name}.h5")
        with h5py.File(folder / f"{name}.h5") as file:
            rows = np.flatnonzero(adata.obs["library_id"] == name)
            assert [barcode.decode() for barcode in file["barcode"][:, 0]] == list(adata.obs_names[rows])
            window = options["size"] * options.get("mpp", 0.5) / 0.5
            corners = np.floor(adata.obsm["spatial"][rows] - window / 2 + 0.5)
            np.testing.assert_array_equal(file["coords"][:], corners)
            attributes = dict(file["img"].attrs)
            assert attributes["downsample"] == pytest.approx(window / options["size"])
            assert (attributes["pixel_size"], attributes["name"]) == (0.5, name)
    np.testing.assert_array_equal(patches(adata, **options), expected)
    alone = without_images(adata)
    np.testing.assert_array_equal(patches(alone, **options), expected)
    order = np.random.default_rng(2).permutation(9)[:6]
    np.testing.assert_array_equal(patches(alone[order].copy(), **options), expected[order])


def test_the_file_is_read_where_it_holds_the_patches(adata, tmp_path, monkeypatch):
    """Those it holds come from it; others from the image, as long as there is one."""
    hb.pp.extract_patches(adata, tmp_path / "p", size=32)
    expected = {size: patches(without_patches(adata), size=size) for size in (16, 40)}
    opened = []
    read = PatchFile.read
    monkeypatch.setattr(PatchFile, "read", lambda self, rows: opened.append(self.path) or read(self, rows))
    np.testing.assert_array_equal(patches(adata, size=16), expected[16])
    assert len(opened) == 5  # batches
    opened.clear()
    np.testing.assert_array_equal(patches(adata, size=40), expected[40])
    patches(adata, size=32, mpp=1.0)
    assert not opened


def without_patches(adata) -> ad.AnnData:
    plain = adata.copy()
    for entry in plain.uns["spatial"].values():
        entry["metadata"].pop("patches_path", None)
    return plain


def test_a_wide_file_serves_training_and_embedding(adata, tmp_path):
    """Patches of the image's own pixels with a margin stand for all narrower ones."""
    narrow, resized = patches(adata, size=24), patches(adata, size=16, mpp=0.6)
    hb.pp.extract_patches(adata, tmp_path / "p", size=40)
    alone = without_images(adata)
    np.testing.assert_array_equal(patches(alone, size=24), narrow)
    inner = (slice(None), slice(1, -1), slice(1, -1))
    assert np.abs(patches(alone, size=16, mpp=0.6)[inner].astype(int) - resized[inner]).max() <= 1


def test_copy(adata, tmp_path):
    changed = hb.pp.extract_patches(adata, tmp_path / "p", size=16, copy=True)
    assert "patches_path" in changed.uns["spatial"]["A"]["metadata"]
    assert "patches_path" not in adata.uns["spatial"]["A"]["metadata"]


def test_survives_files(adata, tmp_path):
    hb.pp.extract_patches(adata, tmp_path / "p", size=16)
    expected = patches(adata, size=16)
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for path in tmp_path.glob("*.png"):
        path.unlink()  # an image of another machine
    for read in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        np.testing.assert_array_equal(patches(read, size=16), expected)


def test_image_in_memory(tmp_path):
    adata = hb.datasets.tissue(60, pitch_px=48)
    expected = patches(adata, size=48)
    hb.pp.extract_patches(adata, tmp_path, size=48)
    np.testing.assert_array_equal(patches(adata, size=48), expected)
    adata.uns["spatial"]["tissue_0"]["images"] = {}
    np.testing.assert_array_equal(patches(adata, size=48), expected)


def test_interrupted_and_repeated(adata, tmp_path, monkeypatch):
    folder = tmp_path / "p"
    real = hb.inputs.Slide.iter_patches
    calls = []

    def breaking(self, **options):
        stream = real(self, **options)
        calls.append(len(self.rows))
        yield next(stream)
        if self.library_id == "A":
            raise ImageError("unreadable from here")
        yield from stream

    monkeypatch.setattr(hb.inputs.Slide, "iter_patches", breaking)
    with pytest.raises(ImageError, match="unreadable from here"):
        hb.pp.extract_patches(adata, folder, size=16, batch_size=3)
    assert sorted(os.listdir(folder)) == ["A.h5.part", "B.h5"]
    assert "patches_path" not in adata.uns["spatial"]["B"]["metadata"]
    complete = (folder / "B.h5").stat().st_mtime_ns
    monkeypatch.undo()
    hb.pp.extract_patches(adata, folder, size=16, batch_size=3)
    assert sorted(os.listdir(folder)) == ["A.h5", "B.h5"]
    assert (folder / "B.h5").stat().st_mtime_ns == complete
    np.testing.assert_array_equal(patches(adata, size=16), patches(without_patches(adata), size=16))


def test_other_patches_are_there(adata, tmp_path):
    hb.pp.extract_patches(adata, tmp_path / "p", size=16)
    with pytest.raises(DataError, match=r"B\.h5 is there already and holds other patches.*overwrite=True"):
        hb.pp.extract_patches(adata, tmp_path / "p", size=20)
    Image.fromarray(255 - PIXELS[0]).save(adata.uns["spatial"]["A"]["metadata"]["source_image_path"])
    hb.pp.extract_patches(adata, tmp_path / "p", size=16, overwrite=True)
    np.testing.assert_array_equal(patches(adata, size=16), patches(without_patches(adata), size=16))


@pytest.mark.parametrize(("name", "reason"), [("a/b", "no name for a file"), ("..", "no name for a file")])
def test_slides_that_name_no_file(adata, tmp_path, name, reason):
    adata.uns["spatial"][name] = adata.uns["spatial"].pop("A")
    adata.obs["library_id"] = adata.obs["library_id"].cat.rename_categories({"A": name})
    with pytest.raises(DataError, match=reason):
        hb.pp.extract_patches(adata, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_refused_before_writing(adata, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file is a file; expected a folder"):
        hb.pp.extract_patches(adata, tmp_path / "file")
    for options in ({"size": 0}, {"mpp": -1.0}, {"batch_size": 0}):
        with pytest.raises(DataError, match="expected"):
            hb.pp.extract_patches(adata, tmp_path / "p", **options)
    del adata.uns["spatial"]["A"]["metadata"]["mpp"]
    with pytest.raises(DataError, match="pixel size of slide 'A' is unknown"):
        hb.pp.extract_patches(adata, tmp_path / "p", mpp=0.5)
    assert not (tmp_path / "p").exists()


# ---- every verb


def test_verbs_read_patch_files(tmp_path):
    """Embeddings, training and features of patches are those of the image."""
    adata = hb.datasets.tissue(40, n_genes=40, n_slides=2, pitch_px=48)
    recipe = {"epochs": 1, "batch_size": 64, "precision": "32", "n_genes": 40}
    config = hb.model.ModelConfig(
        embed_dim=16,
        vision_cfg={"timm_model_name": "resnet10t", "timm_pool": "avg", "image_size": 32},
        text_cfg={"context_length": 48, "width": 16, "heads": 2, "layers": 1},
        patch_size=64,
        recipe={**recipe, "shift": 0.1},
    )
    model = hb.tl.pretrain(adata, image_encoder=config)
    hb.tl.embed(adata, model=model, modality="image")
    expected = adata.obsm["X_hibiost_image"]
    hb.pp.extract_patches(adata, tmp_path, size=76)  # 64 and a margin of a tenth on each side
    for entry in adata.uns["spatial"].values():
        entry["images"], entry["scalefactors"] = {}, {}
    hb.tl.embed(adata, model=model, modality="image")
    np.testing.assert_array_equal(adata.obsm["X_hibiost_image"], expected)
    again = hb.tl.pretrain(adata, image_encoder=config)
    assert again.fingerprint() == model.fingerprint()

    hb.pp.extract_patches(adata, tmp_path / "narrow", size=64)
    hb.tl.embed(adata, model=model, modality="image")
    np.testing.assert_array_equal(adata.obsm["X_hibiost_image"], expected)
    with pytest.raises(DataError, match=r"76 full-resolution pixels .*holds patches 64.*recipe=\{'shift': 0\}"):
        hb.tl.pretrain(adata, image_encoder=config)


@pytest.mark.data
def test_her2st(tmp_path):
    adata = hb.datasets.her2st("C6")
    for options in ({}, {"mpp": 0.5}):
        expected = patches(adata, **options)
        there = hb.pp.extract_patches(adata, tmp_path / str(len(options)), copy=True, **options)
        np.testing.assert_array_equal(patches(there, **options), expected)
        there = without_images(there)
        np.testing.assert_array_equal(patches(there, **options), expected)


def test_spots_of_a_tiled_image_in_any_order(tmp_path, monkeypatch):
    """Tiles are decoded once; the file tells by barcode which patch is whose, also after an interruption."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(64, 64), compression="zlib")
    centres = np.random.default_rng(1).permutation(np.mgrid[10:290:8, 10:190:8].reshape(2, -1).T.astype(float))
    adata = ad.AnnData(np.ones((len(centres), 1), np.float32), obsm={"spatial": centres})
    adata.uns["spatial"] = {"A": {"metadata": {"source_image_path": str(tmp_path / "a.tif")}}}
    decoded = []
    original = TiledSource._decode_tile
    monkeypatch.setattr("hibiost.images.tiled.TILE_CACHE", 18 * 3 * 64 * 64)
    monkeypatch.setattr(TiledSource, "_decode_tile", lambda self, *tile: decoded.append(tile) or original(self, *tile))
    hb.pp.extract_patches(adata, tmp_path / "patches", size=20, batch_size=8)
    assert len(decoded) == len(set(decoded)) == 20
    with PatchFile(tmp_path / "patches" / "A.h5") as file:
        found = file.read(file.rows(adata.obs_names))
    for (x, y), patch in zip(centres.astype(int), found, strict=True):
        np.testing.assert_array_equal(patch, pixels[y - 10 : y + 10, x - 10 : x + 10])
    written = (tmp_path / "patches" / "A.h5").stat().st_mtime_ns
    hb.pp.extract_patches(adata, tmp_path / "patches", size=20)
    assert (tmp_path / "patches" / "A.h5").stat().st_mtime_ns == written
