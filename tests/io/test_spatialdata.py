"""SpatialData and its stores: coordinates by hand through every transformation, round trips, what is refused."""

import shutil

import anndata as ad
import dask.array as da
import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
from scipy import sparse
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import (
    Affine,
    Identity,
    MapAxis,
    Scale,
    Sequence,
    Translation,
    remove_transformation,
    set_transformation,
)

import hibiost as hb
from hibiost.errors import DataError, ImageError
from hibiost.inputs._sdata import as_anndata

PIXELS = np.random.default_rng(1).integers(0, 256, (3, 240, 300), dtype=np.uint8)
XY = np.random.default_rng(2).uniform((60, 40), (240, 200), (30, 2))
NAMES = [f"spot{i}" for i in range(30)]


def rotation(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def affine(matrix):
    return Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))


def picture(transformations, **options):
    options = {"c_coords": ["r", "g", "b"], **options}
    return Image2DModel.parse(PIXELS, dims=("c", "y", "x"), transformations=transformations, **options)


def circles(xy, transformations, index=NAMES, radius=4.0):
    return ShapesModel.parse(xy, geometry=0, radius=radius, index=pd.Index(index), transformations=transformations)


def table(regions="s1", instances=NAMES):
    rng = np.random.default_rng(0)
    counts = sparse.csc_matrix(rng.poisson(1.0, (len(instances), 5)))
    regions = [regions] * len(instances) if isinstance(regions, str) else regions
    obs = pd.DataFrame(
        {"where": pd.Categorical(regions), "which": instances}, index=[f"b{i}" for i in range(len(instances))]
    )
    obs["quality"] = rng.random(len(obs))
    adata = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(5)]))
    return TableModel.parse(adata, region=sorted(set(regions)), region_key="where", instance_key="which")


def sdata(**elements):
    elements = {
        "he": picture({"global": Identity()}),
        "s1": circles(XY, {"global": Identity()}),
        "table": table(),
        **elements,
    }
    return sd.SpatialData.init_from_elements({name: e for name, e in elements.items() if e is not None})


def pixels_of(adata, size=16):
    rows, patches = zip(*hb.pp.iter_patches(adata, size=size), strict=True)
    return np.concatenate(patches)[np.argsort(np.concatenate(rows))]


# -- reading ---------------------------------------------------------------------------------------------------------


def test_slots():
    adata = hb.io.from_spatialdata(sdata())
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X.toarray(), table().X.toarray())
    assert list(adata.obs["library_id"].cat.categories) == ["s1"]
    assert list(adata.obs["which"]) == NAMES
    np.testing.assert_allclose(adata.obsm["spatial"], XY, atol=1e-9)
    assert adata.obsm["spatial"].dtype == np.float64
    slide = adata.uns["spatial"]["s1"]
    assert slide["scalefactors"] == {"spot_diameter_fullres": 8.0, "tissue_hires_scalef": 1.0}
    np.testing.assert_array_equal(slide["images"]["hires"], np.moveaxis(PIXELS, 0, -1))
    assert isinstance(slide["images"]["fullres"], da.Array)
    assert "mpp" not in slide["metadata"]
    assert "spatialdata_attrs" not in adata.uns


IMAGE_TO_WORLD = rotation(30) @ np.diag([0.5, 0.5, 1]) + np.array([[0, 0, 70], [0, 0, -20], [0, 0, 0]])
SHAPES_TO_WORLD = np.array([[0, -2.0, 15], [2.0, 0, -8], [0, 0, 1]])


def world_xy():
    """Shapes whose centres fall on XY in pixels, by the two matrices above."""
    points = np.c_[XY, np.ones(30)] @ IMAGE_TO_WORLD.T
    return (points @ np.linalg.inv(SHAPES_TO_WORLD).T)[:, :2]


def test_rotation_scale_and_translation_by_hand():
    data = sdata(
        he=picture({"world": affine(IMAGE_TO_WORLD)}), s1=circles(world_xy(), {"world": affine(SHAPES_TO_WORLD)})
    )
    adata = hb.io.from_spatialdata(data)
    np.testing.assert_allclose(adata.obsm["spatial"], XY, atol=1e-9)
    # lengths of shapes: doubled to the world, where a pixel is half as long
    assert adata.uns["spatial"]["s1"]["scalefactors"]["spot_diameter_fullres"] == pytest.approx(8 * 2 / 0.5)
    corner = np.floor(XY - 8 + 0.5).astype(int)
    for patch, (x, y) in zip(pixels_of(adata), corner, strict=True):
        np.testing.assert_array_equal(patch, np.moveaxis(PIXELS, 0, -1)[y : y + 16, x : x + 16])


def test_sequences_axes_swapped_and_channels():
    swap = MapAxis({"x": "y", "y": "x"})
    steps = Sequence([Scale([3.0, 2.0], axes=("x", "y")), Translation([5.0], axes=("y",)), swap])
    to_image = Sequence([Translation([-1.0, 4.0], axes=("x", "y")), Scale([1.0, 4.0, 2.0], axes=("c", "y", "x"))])
    data = sdata(he=picture({"w": to_image}), s1=circles(XY, {"w": steps}))
    x, y = XY.T
    world = np.c_[2 * y + 5, 3 * x]
    expected = np.c_[world[:, 0] / 2 + 1, world[:, 1] / 4 - 4]
    np.testing.assert_allclose(as_anndata(data).obsm["spatial"], expected)
    without = hb.io.from_spatialdata(sdata(he=None, s1=circles(XY, {"w": steps})))
    np.testing.assert_allclose(without.obsm["spatial"], XY)


def test_polygons_count_by_centroid_and_area():
    boxes = [shapely.box(x - 3, y - 1, x + 3, y + 5) for x, y in XY]
    frame = geopandas.GeoDataFrame({"geometry": boxes}, index=NAMES)
    adata = hb.io.from_spatialdata(sdata(s1=ShapesModel.parse(frame, transformations={"global": Identity()})))
    np.testing.assert_allclose(adata.obsm["spatial"], XY + np.array([0, 2]))
    assert adata.uns["spatial"]["s1"]["scalefactors"]["spot_diameter_fullres"] == pytest.approx(2 * np.sqrt(36 / np.pi))


def test_spots_are_found_by_instance_not_by_order():
    order = np.random.default_rng(3).permutation(30)
    data = sdata(s1=circles(XY[order], {"global": Identity()}, index=np.array(NAMES)[order]))
    np.testing.assert_allclose(hb.io.from_spatialdata(data).obsm["spatial"], XY)


def two_regions():
    half = circles(XY[:15], {"a": Identity()}, index=NAMES[:15])
    rest = circles(XY[15:] / 2, {"b": Scale([2.0, 2.0], axes=("x", "y"))}, index=NAMES[15:])
    regions = ["s1"] * 15 + ["s2"] * 15
    mixed = np.random.default_rng(0).permutation(30)
    both = table(list(np.array(regions)[mixed]), list(np.array(NAMES)[mixed]))
    return mixed, sdata(he=picture({"a": Identity()}), he2=picture({"b": Identity()}), s1=half, s2=rest, table=both)


def test_several_regions_are_several_slides():
    mixed, data = two_regions()
    adata = hb.io.from_spatialdata(data)
    np.testing.assert_allclose(adata.obsm["spatial"], XY[mixed])
    assert list(adata.obs["library_id"]) == list(np.where(mixed < 15, "s1", "s2"))
    assert set(adata.uns["spatial"]) == {"s1", "s2"}
    with pytest.raises(DataError, match="one slide, but the table annotates the regions"):
        hb.io.from_spatialdata(data, library_id="x")


def test_multiscale_image_reads_its_largest_scale(monkeypatch):
    from hibiost.inputs import _sdata
    from hibiost.io import _spatialdata

    monkeypatch.setattr(_spatialdata, "warn_background", lambda *_: None)  # noise is no tissue
    monkeypatch.setattr(_sdata, "THUMBNAIL_PX", 100)
    ramp = np.indices((240, 300)).sum(axis=0).astype(np.uint8) // 3
    options = {"dims": ("c", "y", "x"), "transformations": {"global": Identity()}}
    found = []
    for scale_factors in (None, [2, 2]):
        image = Image2DModel.parse(np.stack([ramp] * 3), scale_factors=scale_factors, **options)
        adata = hb.io.from_spatialdata(sdata(he=image))
        slide = adata.uns["spatial"]["s1"]
        assert slide["scalefactors"]["tissue_hires_scalef"] == pytest.approx(1 / 3)
        found.append((pixels_of(adata), slide["images"]["hires"].astype(int)))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1].shape == found[1][1].shape == (80, 100, 3)
    assert np.median(np.abs(found[0][1] - found[1][1])) <= 1


def test_channels_by_name():
    swapped = Image2DModel.parse(
        PIXELS[::-1], dims=("c", "y", "x"), c_coords=["b", "g", "r"], transformations={"global": Identity()}
    )
    np.testing.assert_array_equal(
        pixels_of(hb.io.from_spatialdata(sdata(he=swapped))), pixels_of(hb.io.from_spatialdata(sdata()))
    )


def test_micrometres_from_a_coordinate_system(caplog):
    um = Scale([0.25, 0.25], axes=("x", "y"))
    for elements in (
        {"he": picture({"global": Identity(), "microns": um})},
        {"s1": circles(XY, {"global": Identity(), "um": um})},
    ):
        metadata = hb.io.from_spatialdata(sdata(**elements)).uns["spatial"]["s1"]["metadata"]
        assert metadata["mpp"] == pytest.approx(0.25)
        assert "coordinate system" in metadata["mpp_source"]
    oblong = picture({"global": Identity(), "microns": Scale([0.25, 0.5], axes=("x", "y"))})
    with caplog.at_level("WARNING"):
        metadata = hb.io.from_spatialdata(sdata(he=oblong)).uns["spatial"]["s1"]["metadata"]
    assert "mpp" not in metadata
    metadata = hb.io.from_spatialdata(sdata(he=oblong), mpp=0.3).uns["spatial"]["s1"]["metadata"]
    assert (metadata["mpp"], metadata["mpp_source"]) == (0.3, "argument")


def test_library_id_names_the_only_slide():
    adata = hb.io.from_spatialdata(sdata(), library_id="patient 7")
    assert set(adata.obs["library_id"]) == set(adata.uns["spatial"]) == {"patient 7"}
    assert len(pixels_of(adata)) == 30


# -- stores and round trips ------------------------------------------------------------------------------------------


@pytest.fixture
def section():
    adata = hb.datasets.tissue(100, n_genes=20, n_slides=2, pitch_px=40)
    adata.uns["spatial"]["tissue_1"]["metadata"]["organ"] = "Breast"
    return adata


def same(again, adata):
    np.testing.assert_array_equal(again.X.toarray(), adata.X.toarray())
    np.testing.assert_allclose(again.obsm["spatial"], adata.obsm["spatial"], atol=1e-6)
    assert list(again.obs_names) == list(adata.obs_names)
    assert list(again.obs) == list(adata.obs)
    for column in adata.obs:
        assert list(again.obs[column]) == list(adata.obs[column]), column
    for library, slide in adata.uns["spatial"].items():
        other = again.uns["spatial"][library]
        given = {key: value for key, value in slide["metadata"].items() if key != "source_image_path"}
        assert given.items() <= other["metadata"].items()
        assert other["scalefactors"].keys() == slide["scalefactors"].keys()
        diameter = slide["scalefactors"]["spot_diameter_fullres"]
        assert other["scalefactors"]["spot_diameter_fullres"] == pytest.approx(diameter)


@pytest.mark.parametrize("scale_factors", [None, [2, 2]])
def test_round_trip_in_memory_and_through_a_store(section, tmp_path, scale_factors):
    sdata = hb.io.to_spatialdata(section, scale_factors=scale_factors)
    assert sorted(sdata.coordinate_systems) == ["tissue_0", "tissue_1"]
    same(hb.io.from_spatialdata(sdata), section)
    path = tmp_path / "Schnitt é.zarr"
    sdata.write(path)
    for source in (path, str(path), sd.read_zarr(path)):
        again = hb.io.from_spatialdata(source)
        same(again, section)
        assert "fullres" not in again.uns["spatial"]["tissue_0"]["images"]
        np.testing.assert_array_equal(pixels_of(again), pixels_of(section))
    again.write_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(pixels_of(ad.read_h5ad(tmp_path / "a.h5ad")), pixels_of(section))


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_an_image_in_memory_survives_files(section, tmp_path, ending):
    adata = hb.io.from_spatialdata(hb.io.to_spatialdata(section)).copy()
    path = tmp_path / f"a.{ending}"
    getattr(adata, f"write_{ending}")(path)
    np.testing.assert_array_equal(pixels_of(getattr(ad, f"read_{ending}")(path)), pixels_of(section))


def test_an_image_that_was_computed_is_not_taken_for_the_stored_one(section, tmp_path):
    hb.io.to_spatialdata(section).write(tmp_path / "s.zarr")
    data = sd.read_zarr(tmp_path / "s.zarr")
    for name in list(data.images):
        data.images[name] = 255 - data.images[name]
        set_transformation(data.images[name], Identity(), name.removesuffix("_full_image"))
    np.testing.assert_array_equal(pixels_of(hb.io.from_spatialdata(data)), 255 - pixels_of(section))


def test_large_file_is_read_by_windows(tmp_path, monkeypatch):
    section = hb.datasets.tissue(100, n_genes=20, pitch_px=100, image_path=tmp_path)
    data = hb.io.to_spatialdata(section)
    image = data["tissue_0_full_image"].data
    assert max(image.numblocks) > 1
    read = []
    from hibiost.images import PixelSource

    monkeypatch.setattr(
        PixelSource, "read", lambda *args, plain=PixelSource.read: (read.append(args[1:]), plain(*args))[1]
    )
    np.asarray(image[:, :10, :10])
    assert read == [(0, 0, 1024, 1024)] or read == [(0, 0, 10, 10)]
    same(hb.io.from_spatialdata(data), section)
    data.write(tmp_path / "s.zarr")
    again = hb.io.from_spatialdata(tmp_path / "s.zarr")
    same(again, section)
    np.testing.assert_array_equal(pixels_of(again, 64), pixels_of(section, 64))


def test_windows_can_be_sent_to_workers(tmp_path):
    import pickle

    section = hb.datasets.tissue(100, n_genes=20, pitch_px=30, image_path=tmp_path)
    image = hb.io.to_spatialdata(section)["tissue_0_full_image"].data[:, :50, :50]
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(image))), np.asarray(image))


def test_reduced_image_keeps_full_resolution_coordinates(section):
    for slide in section.uns["spatial"].values():
        slide["images"]["hires"] = np.ascontiguousarray(slide["images"]["hires"][::2, ::2])
        slide["scalefactors"]["tissue_hires_scalef"] = 0.5
    data = hb.io.to_spatialdata(section)
    assert sorted(data.images) == ["tissue_0_hires_image", "tissue_1_hires_image"]
    again = hb.io.from_spatialdata(data)
    same(again, section)
    with pytest.warns(UserWarning, match="no full-resolution image"):
        np.testing.assert_array_equal(pixels_of(again), pixels_of(section))


def test_without_image(section):
    del section.uns["spatial"]
    data = hb.io.to_spatialdata(section)
    assert not data.images
    again = hb.io.from_spatialdata(data)
    np.testing.assert_allclose(again.obsm["spatial"], section.obsm["spatial"])
    from hibiost.inputs import half_pitch

    first = section.obs["library_id"] == "tissue_0"
    assert data["tissue_0"]["radius"].iloc[0] == pytest.approx(
        half_pitch(section.obsm["spatial"][first.to_numpy()]) / 2
    )


def test_no_pixels_in_the_table(section):
    slides = hb.io.to_spatialdata(section)["table"].uns["spatial"]
    assert all(slide.keys() == {"scalefactors", "metadata"} for slide in slides.values())
    assert "images" in section.uns["spatial"]["tissue_0"], "the AnnData given is changed"
    assert "spatial" in section.obsm


@pytest.mark.data
def test_a_real_section(her2st_dir, tmp_path):
    section = hb.datasets.her2st("C2")
    data = hb.io.to_spatialdata(section)
    same(hb.io.from_spatialdata(data), section)
    data.write(tmp_path / "c2.zarr")
    again = hb.io.from_spatialdata(tmp_path / "c2.zarr")
    same(again, section)
    np.testing.assert_array_equal(pixels_of(again[:20].copy(), 224), pixels_of(section[:20].copy(), 224))


# -- what is refused -------------------------------------------------------------------------------------------------


def test_several_tables_or_images_have_to_be_named():
    data = sdata(second=table(), other=picture({"global": Identity()}))
    with pytest.raises(DataError, match=r"several, \['table', 'second'\]: name one with table_key="):
        hb.io.from_spatialdata(data)
    with pytest.raises(DataError, match=r"no table 'tabel'.*Did you mean 'table'"):
        hb.io.from_spatialdata(data, table_key="tabel")
    with pytest.raises(DataError, match=r"2 images, \['he', 'other'\], share .*name one with image_key="):
        hb.io.from_spatialdata(data, table_key="table")
    with pytest.raises(DataError, match=r"no image 'hee'; there are .*Did you mean 'he'"):
        hb.io.from_spatialdata(data, table_key="table", image_key="hee")
    with pytest.raises(DataError, match=r"names no image for region 's1'"):
        hb.io.from_spatialdata(data, table_key="table", image_key={"s2": "he"})
    for image_key in ("he", {"s1": "he"}):
        assert hb.io.from_spatialdata(data, table_key="table", image_key=image_key).n_obs == 30


def test_no_table():
    with pytest.raises(DataError, match="with one table; it holds none"):
        hb.pp.tfidf_sentences(sdata(table=None))
    with pytest.raises(DataError, match=r"no table 'table'; there are \[\]"):
        hb.io.from_spatialdata(sdata(table=None), table_key="table")
    alone = hb.io.from_spatialdata(sdata(table=None))
    assert alone.shape == (0, 0)
    np.testing.assert_array_equal(alone.uns["spatial"]["he"]["images"]["hires"], np.moveaxis(PIXELS, 0, -1))
    with pytest.raises(DataError, match="found AnnData"):
        hb.io.from_spatialdata(table())


def test_no_common_coordinate_system():
    data = sdata(he=picture({"elsewhere": Identity()}))
    for image_key, kind in ((None, ImageError), ("he", DataError)):
        with pytest.raises(kind, match=r"\['global'\], the images in {'he': \['elsewhere'\]}: none is shared"):
            hb.io.from_spatialdata(data, image_key=image_key)


def test_coordinate_systems_that_disagree():
    shift = Translation([3.0], axes=("x",))
    data = sdata(
        he=picture({"global": Identity(), "aligned": shift}),
        s1=circles(XY, {"global": Identity(), "aligned": Identity()}),
    )
    with pytest.raises(DataError, match=r"\['global', 'aligned'\], which place spots up to 3.0 pixels apart"):
        hb.io.from_spatialdata(data)
    remove_transformation(data["he"], "global")
    np.testing.assert_allclose(hb.io.from_spatialdata(data).obsm["spatial"], XY - (3, 0))


def test_coordinate_systems_that_agree_are_one():
    half = Scale([0.5, 0.5], axes=("x", "y"))
    data = sdata(
        he=picture({"global": Identity(), "small": half}), s1=circles(XY, {"global": Identity(), "small": half})
    )
    np.testing.assert_allclose(hb.io.from_spatialdata(data).obsm["spatial"], XY)


def test_tables_that_do_not_fit_their_shapes():
    with pytest.raises(
        DataError, match=r"30 of 30 spots of region 's1' are not among its shapes, such as 0; .* 'spot0'"
    ):
        hb.io.from_spatialdata(sdata(table=table(instances=list(range(30)))))
    loose = table()
    del loose.uns["spatialdata_attrs"]
    with pytest.raises(DataError, match="does not say which shapes its spots are"):
        hb.io.from_spatialdata(sdata(table=loose))
    data = sdata()
    del data["table"].obs["which"]
    with pytest.raises(DataError, match=r"no obs\['which'\]"):
        hb.io.from_spatialdata(data)
    data = sdata()
    data["table"].obs["where"] = pd.Categorical([None, *["s1"] * 29])
    with pytest.raises(DataError, match=r"obs\['where'\] is empty .NaN. for 1"):
        hb.io.from_spatialdata(data)


def test_a_table_without_counts(section):
    sdata = hb.io.to_spatialdata(section)
    sdata["table"].X = None
    with pytest.raises(DataError, match=r"the table 'table' holds no counts \(X\)"):
        hb.io.from_spatialdata(sdata)


def test_labels_are_no_shapes():
    labels = Labels2DModel.parse(np.ones((240, 300), np.int64), dims=("y", "x"), transformations={"global": Identity()})
    with pytest.raises(DataError, match=r"region 's1' is none of the shapes \[\].*to_circles"):
        hb.io.from_spatialdata(sdata(s1=labels))


def test_spots_outside_the_image():
    with pytest.raises(DataError, match="outside its image"):
        hb.io.from_spatialdata(sdata(s1=circles(XY * 5, {"global": Identity()})))


def test_fluorescence_is_refused():
    image = Image2DModel.parse(
        np.zeros((5, 240, 300), np.uint8), dims=("c", "y", "x"), transformations={"global": Identity()}
    )
    with pytest.raises(ImageError, match="1, 3 or 4 channels"):
        hb.io.from_spatialdata(sdata(he=image))


def test_paths_that_are_no_store(section, tmp_path):
    with pytest.raises(DataError, match=r"nothing\.zarr cannot be read as a SpatialData store .*there is no such file"):
        hb.io.from_spatialdata(tmp_path / "nothing.zarr")
    with pytest.raises(DataError, match=r"cannot be read as a SpatialData store .*it is a folder of \[\]"):
        hb.io.from_spatialdata(tmp_path)
    (tmp_path / "x.zarr").write_text("<html>")
    with pytest.raises(DataError, match="it is a web page"):
        hb.io.from_spatialdata(str(tmp_path / "x.zarr"))
    section.obs["library_id"] = section.obs["library_id"].astype("category")
    section.write_zarr(tmp_path / "adata.zarr")
    with pytest.raises(
        (DataError, UserWarning), match=r"cannot be read as a SpatialData store|holds none|most current"
    ):
        hb.io.from_spatialdata(tmp_path / "adata.zarr")


@pytest.mark.parametrize(
    "broken", ["zarr.json", "tables/table/zarr.json", "shapes/tissue_0/shapes.parquet", "tables/table/X/data", "images"]
)
def test_truncated_store(section, tmp_path, broken):
    path = tmp_path / "s.zarr"
    hb.io.to_spatialdata(section).write(path)
    target = path / broken
    if broken == "images":
        target = path / "images" / "tissue_0_full_image" / "zarr.json"
    if target.is_dir():
        chunk = max(
            (p for p in target.rglob("*") if p.is_file() and p.name != "zarr.json"), key=lambda p: p.stat().st_size
        )
        chunk.write_bytes(chunk.read_bytes()[:10])
    else:
        target.write_bytes(target.read_bytes()[:40])
    with pytest.raises(DataError, match=r"s\.zarr cannot be read as a SpatialData store.*truncated"):
        hb.io.from_spatialdata(path)


def test_truncated_pixels(section, tmp_path):
    path = tmp_path / "s.zarr"
    hb.io.to_spatialdata(section).write(path)
    for chunk in (path / "images").rglob("c/*/*/*"):
        chunk.write_bytes(chunk.read_bytes()[:30])
    with pytest.raises(ImageError, match="cannot be read"):
        hb.io.from_spatialdata(path)
    shutil.rmtree(path / "images" / "tissue_1_full_image")


def test_names_that_spatialdata_refuses(section):
    section.obs["library_id"] = section.obs["library_id"].cat.rename_categories({"tissue_0": "slide 1/a"})
    with pytest.raises(DataError, match="not 'slide 1/a'; rename the slide"):
        hb.io.to_spatialdata(section)


def test_what_cannot_become_a_table(section):
    twice = section.copy()
    twice.obs_names = ["x"] * twice.n_obs
    with pytest.raises(DataError, match="spot names occur more than once"):
        hb.io.to_spatialdata(twice)
    section.obs["instance_id"] = 3
    with pytest.raises(DataError, match="would be overwritten"):
        hb.io.to_spatialdata(section)
    del section.obs["instance_id"]
    section.obs["my column"] = 1
    with pytest.raises(DataError, match="(?s)spatialdata refuses the AnnData.*my column"):
        hb.io.to_spatialdata(section)
