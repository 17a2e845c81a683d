from __future__ import annotations

import logging
import tracemalloc

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage.transform import downscale_local_mean

import hibiost.images.source
from hibiost.errors import DataError, ImageError
from hibiost.images import open_image, pixel_size, thumbnail
from hibiost.settings import logger

RNG = np.random.default_rng(0)


@pytest.fixture
def messages(monkeypatch, caplog):
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.WARNING, "hibiost")
    return caplog


def smooth(height: int, width: int) -> np.ndarray:
    """A picture without fine detail, so that ways of reducing it agree."""
    y, x = np.mgrid[:height, :width]
    waves = np.sin(x / 40) + np.cos(y / 55), np.sin((x + y) / 60), np.cos((x - y) / 50)
    return np.stack([127 + 60 * wave for wave in waves], axis=2).astype(np.uint8)


# ---- thumbnail


def test_thumbnail_is_the_mean_over_areas():
    pixels = RNG.integers(0, 256, (400, 600, 3), np.uint8)
    with open_image(pixels) as image:
        small, scale = thumbnail(image, max_px=150)
    assert (small.dtype, small.shape, scale) == (np.uint8, (100, 150, 3), 0.25)
    np.testing.assert_allclose(small, downscale_local_mean(pixels, (4, 4, 1)), atol=1)


@pytest.mark.parametrize("shape", [(401, 603), (90, 3000), (3000, 1), (1999, 1000)])
def test_thumbnail_of_any_shape_is_pillows(shape):
    pixels = RNG.integers(0, 256, (*shape, 3), np.uint8)
    with open_image(pixels) as image:
        small, scale = thumbnail(image, max_px=100)
    assert scale == 100 / max(shape)
    assert small.shape == (*(max(1, round(side * scale)) for side in shape), 3)
    whole = Image.fromarray(pixels).resize(small.shape[1::-1], Image.Resampling.BOX)
    np.testing.assert_array_equal(small, np.asarray(whole))


def test_small_images_are_given_as_they_are():
    pixels = RNG.integers(0, 256, (40, 60, 3), np.uint8)
    with open_image(pixels) as image:
        small, scale = thumbnail(image, max_px=60)
        assert scale == 1
        np.testing.assert_array_equal(small, pixels)
        np.testing.assert_array_equal(thumbnail(image)[0], pixels)


@pytest.mark.parametrize(
    "options", [{"tile": (64, 96)}, {"tile": (64, 96), "compression": "zlib"}, {"rowsperstrip": 7}]
)
def test_thumbnail_read_in_bands(tmp_path, monkeypatch, options):
    pixels = RNG.integers(0, 256, (700, 900, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **options)
    with open_image(tmp_path / "a.tif") as image:
        whole, _ = thumbnail(image, max_px=90)
    read = []
    original = hibiost.images.PixelSource.read
    monkeypatch.setattr("hibiost.images.header.BAND", 20_000)
    monkeypatch.setattr(
        hibiost.images.PixelSource, "read", lambda self, *at: (read.append(at[2] * at[3]), original(self, *at))[1]
    )
    with open_image(tmp_path / "a.tif") as image:
        image.tile_rows = min(image.tile_rows, 64)
        banded, _ = thumbnail(image, max_px=90)
    np.testing.assert_array_equal(banded, whole)
    assert len(read) > 20
    assert max(read) <= 21_000


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_decoded_at_a_part_of_its_size(tmp_path, monkeypatch, progressive):
    pixels = smooth(805, 1211)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95, progressive=progressive)
    sizes = []
    original = hibiost.images.source._decode
    monkeypatch.setattr(hibiost.images.source, "_decode", lambda image: (sizes.append(image.size), original(image))[1])
    with open_image(tmp_path / "a.jpg") as image:
        small, scale = thumbnail(image, max_px=100)
    assert sizes == [(152, 101)]
    assert (small.shape, scale) == ((66, 100, 3), 100 / 1211)
    expected = np.asarray(Image.fromarray(pixels).resize((100, 66), Image.Resampling.BOX))
    assert np.abs(small.astype(int) - expected).max() <= 9
    assert np.abs(small.astype(int) - expected).mean() < 1.5


@pytest.mark.parametrize("rounded_up", [False, True])
def test_thumbnail_reads_the_smallest_level_that_suffices(tmp_path, monkeypatch, rounded_up):
    pixels = smooth(1601, 2403)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        options = {"photometric": "rgb", "tile": (128, 128), "compression": "zlib"}
        file.write(pixels, subifds=3, **options)
        for factor in (2, 4, 8):
            height, width = (-(-n // factor) if rounded_up else n // factor for n in pixels.shape[:2])
            level = pixels[::factor, ::factor][:height, :width]
            file.write(np.full_like(level, 0) + level, subfiletype=1, **options)
    read = []
    original = tifffile.FileHandle.read
    monkeypatch.setattr(
        tifffile.FileHandle, "read", lambda self, size=-1, /: (read.append(size), original(self, size))[1]
    )
    with open_image(tmp_path / "a.tif") as image:
        with image.reduced(400, 267) as level:
            assert (level.width, level.height) == ((601, 401) if rounded_up else (600, 400))
        with image.reduced(2000, 500) as level:
            assert level is image
        read.clear()
        small, scale = thumbnail(image, max_px=400)
        assert sum(read) < (tmp_path / "a.tif").stat().st_size / 8
        assert image.read(0, 0, 1, 1).shape == (1, 1, 3)
    assert (small.shape, scale) == ((267, 400, 3), 400 / 2403)
    expected = np.asarray(Image.fromarray(pixels).resize((400, 267), Image.Resampling.BOX))
    assert np.abs(small.astype(int) - expected).max() <= 12


def test_thumbnail_of_a_large_image_takes_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("hibiost.images.tiled.TILE_CACHE", 2**20)
    monkeypatch.setattr("hibiost.images.header.BAND", 2**18)
    tifffile.imwrite(
        tmp_path / "a.tif",
        (np.full((256, 256, 3), i, np.uint8) for i in range(12 * 12)),
        shape=(12 * 256, 12 * 256, 3),
        dtype=np.uint8,
        photometric="rgb",
        tile=(256, 256),
        compression="zlib",
    )
    tracemalloc.start()
    try:
        with open_image(tmp_path / "a.tif") as image:
            small, _ = thumbnail(image, max_px=120)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(small[5::10, 5::10, 0], np.arange(12 * 12).reshape(12, 12))
    assert peak < 2**20 + 12 * 2**18 < 3072**2 * 3 / 6


@pytest.mark.data
def test_thumbnail_of_a_real_section(her2st_dir):
    path = her2st_dir / "data" / "ST-imgs" / "C" / "C2" / "5714_HE_BT_C2.jpg"
    with open_image(path) as image:
        small, scale = thumbnail(image)
        green = image.read(0, 0, image.width, image.height)[..., 1]
    assert green.shape == (9911, 9274)
    assert (small.shape, scale) == ((1000, 936, 3), 1000 / 9911)
    means = np.asarray(Image.fromarray(green).resize((936, 1000), Image.Resampling.BOX)).astype(float)

    def difference(y: int, x: int) -> float:
        """Between the thumbnail and the means moved by some pixels."""
        return np.abs(small[2:-2, 2:-2, 1] - np.roll(means, (y, x), (0, 1))[2:-2, 2:-2]).mean()

    assert difference(0, 0) < 2
    assert all(difference(y, x) > 2 * difference(0, 0) for y, x in [(0, 1), (0, -1), (1, 0), (-1, 0)])
    assert abs(small[..., 1].mean() - green.mean()) < 0.3


def test_thumbnail_of_no_size():
    with open_image(np.zeros((5, 5, 3), np.uint8)) as image, pytest.raises(DataError, match="max_px is 0; expected"):
        thumbnail(image, max_px=0)


# ---- pixel size


def tiff(path, **options):
    options = {"photometric": "rgb", **options}
    tifffile.imwrite(path, np.zeros((64, 96, 3), np.uint8), **options)
    return path


def ome(path, **metadata):
    return tiff(path, ome=True, metadata={"axes": "YXS", **metadata})


@pytest.mark.parametrize(
    ("x", "unit", "mpp"),
    [(0.25, None, 0.25), (250, "nm", 0.25), (0.0005, "mm", 0.5), (0.5, "µm", 0.5), (2e-5, "cm", 0.2)],
)
def test_ome(tmp_path, x, unit, mpp):
    units = {} if unit is None else {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    path = ome(tmp_path / "a.ome.tif", PhysicalSizeX=x, PhysicalSizeY=x, **units)
    found, source = pixel_size(path)
    assert found == pytest.approx(mpp)
    assert source == "OME PhysicalSizeX"
    assert pixel_size(str(path)) == (found, source)


def test_ome_of_one_axis(tmp_path):
    assert pixel_size(ome(tmp_path / "a.ome.tif", PhysicalSizeX=0.3))[0] == pytest.approx(0.3)


@pytest.mark.parametrize("metadata", [{}, {"PhysicalSizeX": 1.0, "PhysicalSizeXUnit": "pixel"}, {"PhysicalSizeX": 0}])
def test_ome_without_a_size_of_use(tmp_path, metadata):
    assert pixel_size(ome(tmp_path / "a.ome.tif", **metadata)) is None


def test_pixels_that_are_not_square(tmp_path, messages):
    path = ome(tmp_path / "a.ome.tif", PhysicalSizeX=0.5, PhysicalSizeY=0.25)
    assert pixel_size(path) is None
    assert "a.ome.tif has pixels of 0.5 x 0.25 um (OME PhysicalSizeX): not square" in messages.text
    assert "mpp=" in messages.text
    path = ome(tmp_path / "b.ome.tif", PhysicalSizeX=0.5, PhysicalSizeY=0.502)
    assert pixel_size(path)[0] == pytest.approx(0.501)


APERIO = "Aperio Image Library v12.0.5\n96x64 [0,0 96x64] (240x240) JPEG/RGB Q=70|AppMag = 40|MPP = 0.2527|Left = 25.6"


def test_aperio(tmp_path):
    assert pixel_size(tiff(tmp_path / "a.svs", description=APERIO, metadata=None)) == (0.2527, "Aperio MPP")
    without = APERIO.replace("|MPP = 0.2527", "")
    assert pixel_size(tiff(tmp_path / "b.svs", description=without, metadata=None)) is None


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize(("unit", "per_unit"), [("CENTIMETER", 1e4 / 0.5), ("INCH", 25400 / 0.5)])
def test_resolution(tmp_path, unit, per_unit, tile):
    path = tiff(tmp_path / "a.tif", resolution=(per_unit, per_unit), resolutionunit=unit, tile=tile)
    found, source = pixel_size(path)
    assert found == pytest.approx(0.5)
    assert source == "TIFF XResolution"


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("per_inch", [1, 72, 96, 300, 300.4, 600, 2e6])
def test_resolutions_that_tell_nothing(tmp_path, per_inch, tile):
    for unit, per_unit in (("INCH", per_inch), ("CENTIMETER", per_inch / 2.54)):
        path = tiff(tmp_path / "a.tif", resolution=(per_unit, per_unit), resolutionunit=unit, tile=tile)
        assert pixel_size(path) is None


def test_resolution_without_a_unit(tmp_path):
    assert pixel_size(tiff(tmp_path / "a.tif", resolution=(20000, 20000), resolutionunit="NONE")) is None
    assert pixel_size(tiff(tmp_path / "b.tif")) is None


@pytest.mark.parametrize(("unit", "per_unit"), [("um", 4), ("micron", 4), (r"\u00B5m", 4), ("mm", 4000), ("cm", 40000)])
def test_imagej(tmp_path, unit, per_unit):
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.zeros((50, 50), np.uint8),
        imagej=True,
        resolution=(per_unit, per_unit),
        metadata={"unit": unit},
    )
    found, source = pixel_size(tmp_path / "a.tif")
    assert found == pytest.approx(0.25)
    assert source == "ImageJ unit"


def test_imagej_pixels(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((50, 50), np.uint8), imagej=True, resolution=(4, 4), metadata={})
    assert pixel_size(tmp_path / "a.tif") is None


def test_the_first_of_several_sources_counts(tmp_path):
    resolution = {"resolution": (1e4, 1e4), "resolutionunit": "CENTIMETER"}
    path = tiff(tmp_path / "a.svs", description=APERIO, metadata=None, **resolution)
    assert pixel_size(path) == (0.2527, "Aperio MPP")
    absurd = APERIO.replace("0.2527", "0.0001")
    path = tiff(tmp_path / "b.svs", description=absurd, metadata=None, **resolution)
    assert pixel_size(path) == (pytest.approx(1.0), "TIFF XResolution")


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_print_resolution_of_jpeg_and_png_is_passed_over(tmp_path, name):
    Image.new("RGB", (20, 20)).save(tmp_path / name, dpi=(5080, 5080))
    assert pixel_size(tmp_path / name) is None


def test_damaged_header(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0" + b"\x08" * 40)
    with pytest.raises(ImageError, match=r"a\.tif cannot be read"):
        pixel_size(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes(b"")
    with pytest.raises(ImageError, match=r"b\.tif is empty"):
        pixel_size(tmp_path / "b.tif")
    with pytest.raises(ImageError, match="is a folder"):
        pixel_size(tmp_path)
