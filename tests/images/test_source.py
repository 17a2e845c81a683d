from __future__ import annotations

import gc
import os
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile

from hibiost.errors import ImageError
from hibiost.images import open_image
from hibiost.images.source import PngImageFile

HEIGHT, WIDTH = 301, 420


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def crop(pixels: np.ndarray, x: int, y: int, width: int, height: int) -> np.ndarray:
    """By Pillow, which fills black outside: hence the negative."""
    negative = Image.fromarray(255 - pixels).crop((x, y, x + width, y + height))
    return 255 - np.asarray(negative)


WINDOWS = [
    (0, 0, 5, 7),
    (60, 120, 150, 90),
    (-3, -4, 20, 10),
    (WIDTH - 5, HEIGHT - 6, 20, 11),
    (-10, -10, WIDTH + 20, HEIGHT + 20),
    (WIDTH, 0, 4, 4),
    (-50, 3, 20, 4),
]


def check(path, pixels: np.ndarray) -> None:
    with open_image(path) as image:
        assert (image.height, image.width) == pixels.shape[:2]
        for window in WINDOWS:
            found = image.read(*window)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, crop(pixels, *window))


def test_array(pixels):
    check(pixels, pixels)
    check(pixels[..., 0], np.repeat(pixels[..., :1], 3, axis=2))
    check(pixels / np.float32(255), pixels)


def test_read_gives_a_copy(pixels):
    image = open_image(pixels)
    image.read(0, 0, 4, 4)[:] = 7
    np.testing.assert_array_equal(image.read(0, 0, 4, 4), pixels[:4, :4])


def over_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:] / 255.0
    return np.floor(rgba[..., :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)


def test_transparency_over_white(tmp_path):
    rgba = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
    rgba[0, 0] = 9, 9, 9, 0
    expected = over_white(rgba)
    assert expected[0, 0].tolist() == [255, 255, 255]
    check(rgba, expected)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    check(tmp_path / "a.png", expected)
    for name, compression in (("raw", None), ("zlib", "zlib")):
        tifffile.imwrite(tmp_path / f"{name}.tif", rgba, photometric="rgb", extrasamples=[2], compression=compression)
        check(tmp_path / f"{name}.tif", expected)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_jpeg_and_png(tmp_path, pixels, name):
    Image.fromarray(pixels).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        expected = np.asarray(image)
    check(tmp_path / name, expected)
    check(str(tmp_path / name), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P"])
def test_png_modes(tmp_path, pixels, mode):
    image = Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "a.png")
    check(tmp_path / "a.png", np.asarray(image.convert("RGB")))


def test_png_with_a_transparent_colour(tmp_path):
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[:, 100:] = 1
    image = Image.fromarray(pixels).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png", transparency=0)
    expected = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    expected[:, 100:] = 40, 50, 60
    check(tmp_path / "a.png", expected)


def test_decoded_in_bands(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr("hibiost.images.source.BAND", 70 * WIDTH + 5)  # 301 = 4 x 70 + 21
    Image.fromarray(pixels).save(tmp_path / "a.png")
    check(tmp_path / "a.png", pixels)


@pytest.mark.parametrize(
    ("name", "decoder"),
    [("a.jpg", (imagecodecs, "jpeg8_decode")), ("a.png", (PngImageFile, "load_prepare"))],
)
def test_decoded_once_at_the_first_read(tmp_path, pixels, monkeypatch, name, decoder):
    Image.fromarray(pixels).save(tmp_path / name)
    decoded = []
    original = getattr(*decoder)
    monkeypatch.setattr(*decoder, lambda given: (decoded.append(1), original(given))[1])
    with open_image(tmp_path / name) as image:
        assert not decoded
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda x: image.read(x, 5, 10, 10), range(8)))
        assert len(decoded) == 1
        image.close()
        image.read(5, 5, 10, 10)
        assert len(decoded) == 2


def test_no_guard_against_large_images_and_no_global_changed(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 4)
    for name in ("a.jpg", "a.png"):
        Image.fromarray(pixels).save(tmp_path / name)
        with pytest.raises(Image.DecompressionBombError):
            Image.open(tmp_path / name)
        with open_image(tmp_path / name) as image:
            monkeypatch.setattr("hibiost.images.source.BAND", 20 * WIDTH)
            assert image.read(0, 0, WIDTH, HEIGHT).shape == pixels.shape
    assert Image.MAX_IMAGE_PIXELS == HEIGHT * WIDTH // 4
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


TIFFS = {
    "mapped": {},
    "mapped-big-endian": {"byteorder": ">", "bigtiff": True},
    "tiled": {"tile": (64, 96)},
    "tiled-zlib": {"tile": (64, 96), "compression": "zlib", "predictor": True},
    "striped-zlib": {"rowsperstrip": 17, "compression": "zlib"},
    "one-strip-zlib": {"rowsperstrip": HEIGHT, "compression": "zlib"},
    "planar": {"planarconfig": "separate"},
    "planar-tiled-zlib": {"planarconfig": "separate", "tile": (64, 96), "compression": "zlib"},
}


@pytest.mark.parametrize("options", TIFFS.values(), ids=TIFFS)
def test_tiff(tmp_path, pixels, options):
    layers = np.moveaxis(pixels, 2, 0) if "planarconfig" in options else pixels
    tifffile.imwrite(tmp_path / "a.tif", np.ascontiguousarray(layers), photometric="rgb", **options)
    check(tmp_path / "a.tif", pixels)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_of_one_page_a_channel_and_of_grey(tmp_path, pixels, compression):
    options = {"photometric": "minisblack", "compression": compression}
    layers = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
    tifffile.imwrite(tmp_path / "a.ome.tif", layers, ome=True, metadata={"axes": "CYX"}, **options)
    check(tmp_path / "a.ome.tif", pixels)
    tifffile.imwrite(tmp_path / "grey.tif", layers[0], **options)
    check(tmp_path / "grey.tif", np.repeat(pixels[..., :1], 3, axis=2))


@pytest.mark.parametrize("options", [{}, {"tile": (64, 64), "compression": "zlib"}])
def test_pyramid_is_read_at_its_largest_level(tmp_path, pixels, options):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        options = {"photometric": "rgb", **options}
        file.write(pixels, subifds=1, **options)
        file.write(np.ascontiguousarray(pixels[::2, ::2]), subfiletype=1, **options)
    check(tmp_path / "a.tif", pixels)


def test_tiff_of_jpeg_tiles(tmp_path):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    smooth = np.stack([x % 200, y % 200, (x + y) // 4 % 250], axis=2).astype(np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif", smooth, photometric="rgb", tile=(64, 64), compression="jpeg", compressionargs={"level": 95}
    )
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].photometric == tifffile.PHOTOMETRIC.YCBCR
        expected = file.asarray()
    check(tmp_path / "a.tif", expected)
    with open_image(tmp_path / "a.tif") as image:
        assert np.median(np.abs(image.read(0, 0, WIDTH, HEIGHT).astype(int) - smooth)) <= 3


def test_tiled_tiff_reads_only_the_tiles_of_the_window_and_once(tmp_path, pixels, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(64, 64), compression="zlib")
    read = []
    original = tifffile.FileHandle.read
    monkeypatch.setattr(
        tifffile.FileHandle, "read", lambda self, size=-1, /: (read.append(size), original(self, size))[1]
    )
    with open_image(tmp_path / "a.tif") as image:
        size = os.path.getsize(tmp_path / "a.tif")
        read.clear()
        image.read(10, 10, 100, 20)  # two of 35 tiles
        once = sum(read)
        assert 0 < once < size / 10
        image.read(12, 30, 90, 10)
        assert sum(read) == once


def test_absent_tiles_are_white(tmp_path):
    tiles = iter([np.full((64, 64, 3), 9, np.uint8), None])
    tifffile.imwrite(
        tmp_path / "a.tif",
        tiles,
        shape=(64, 128, 3),
        dtype=np.uint8,
        photometric="rgb",
        tile=(64, 64),
        compression="zlib",
    )
    with open_image(tmp_path / "a.tif") as image:
        assert image.read(60, 0, 8, 1)[0, :, 0].tolist() == [9] * 4 + [255] * 4


def test_tile_cache_is_bounded(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr("hibiost.images.tiled.TILE_CACHE", 4 * 64 * 64 * 3)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(64, 64), compression="zlib")
    with open_image(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(image.read(0, 0, WIDTH, HEIGHT), pixels)
        assert image._tiles.cache_info().maxsize == image._tiles.cache_info().currsize == 4


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_kinds_are_told_apart(tmp_path, pixels, compression):
    """Grey, white as zero, palettes of 16 and 8 bits, 1 bit, CMYK, and what the fourth channel means."""
    grey = pixels[..., 0]
    rgba = np.dstack([pixels, grey])
    premultiplied = (rgba // 2) | np.uint8(0)
    premultiplied[..., :3] = np.minimum(premultiplied[..., :3], premultiplied[..., 3:])
    colours = np.random.default_rng(3).integers(0, 256, (3, 256)).astype(np.uint16)
    three = np.repeat(grey[..., None], 3, axis=2)
    ink = 1 - rgba[..., :3] / 255
    black = 1 - rgba[..., 3:] / 255
    cases = [
        (grey, three, {"photometric": "minisblack"}, 0),
        (grey, 255 - three, {"photometric": "miniswhite"}, 0),
        (grey, colours.T[grey], {"photometric": "palette", "colormap": colours * 257}, 0),
        (grey, colours.T[grey], {"photometric": "palette", "colormap": colours}, 0),
        (rgba, pixels, {"photometric": "rgb", "extrasamples": [0]}, 0),
        (rgba, over_white(rgba), {"photometric": "rgb", "extrasamples": [2]}, 0),
        (
            premultiplied,
            premultiplied[..., :3] + 255 - premultiplied[..., 3:],
            {"photometric": "rgb", "extrasamples": [1]},
            0,
        ),
        (255 - rgba, np.rint(255 * (1 - ink) * (1 - black)), {"photometric": "separated"}, 1),
    ]
    for i, (stored, expected, options, tolerance) in enumerate(cases):
        path = tmp_path / f"{i}.tif"
        tifffile.imwrite(path, stored, compression=compression, **options)
        with open_image(path) as image:
            found = image.read(0, 0, WIDTH, HEIGHT).astype(int)
        assert np.abs(found - expected).max() <= tolerance, options


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "tiff_deflate"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK"])
def test_tiff_of_pillow(tmp_path, pixels, mode, compression):
    image = Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "a.tif", compression=compression)
    check(tmp_path / "a.tif", np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_modes(tmp_path, pixels, mode):
    """Pillow writes and reads inverted CMYK, as Adobe does: what comes back is near the picture that went in."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    picture = Image.fromarray(np.stack([x // 2, y // 2 + 60, 255 - x // 2], axis=2).astype(np.uint8))
    picture.convert(mode).save(tmp_path / "a.jpg", quality=95)
    assert (mode == "CMYK") == (b"Adobe" in (tmp_path / "a.jpg").read_bytes())
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.mode == mode
        check(tmp_path / "a.jpg", np.asarray(image.convert("RGB")))
    with open_image(tmp_path / "a.jpg") as image:
        expected = np.asarray(picture.convert("L").convert("RGB") if mode == "L" else picture).astype(int)
        assert np.abs(image.read(0, 0, WIDTH, HEIGHT) - expected).mean() < 3


def test_large_tiff_header(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(64, 64), compression="lzw", bigtiff=True)
    assert (tmp_path / "a.tif").read_bytes()[:4] == b"II+\0"
    check(tmp_path / "a.tif", pixels)


def test_aperio(tmp_path, pixels):
    """A pyramid with a thumbnail, a label and an overview, as Aperio writes them."""
    description = "Aperio Image Library v12.0.5\n{} (64x64) JPEG/RGB Q=70|AppMag = 40|MPP = 0.25"
    options = {"photometric": "rgb", "metadata": None, "compression": "lzw"}
    with tifffile.TiffWriter(tmp_path / "a.svs", bigtiff=True) as file:
        for factor, tile in ((1, (64, 64)), (7, None), (2, (64, 64))):
            level = np.ascontiguousarray(pixels[::factor, ::factor])
            file.write(level, tile=tile, description=description.format(f"{WIDTH}x{HEIGHT} -> {factor}"), **options)
        for name in ("label", "macro"):
            file.write(pixels[:50, :50], subfiletype=1, description=f"Aperio\n{name} 50x50", **options)
    check(tmp_path / "a.svs", pixels)
    with open_image(tmp_path / "a.svs") as image, image.reduced(100, 100) as level:
        assert level.width == WIDTH // 2


# ---- refusals


def test_absent_file(tmp_path):
    with pytest.raises(ImageError, match=r"no image file .*nowhere\.jpg; check the path"):
        open_image(tmp_path / "nowhere.jpg")


def test_folder(tmp_path):
    with pytest.raises(ImageError, match="is a folder; expected an image file"):
        open_image(tmp_path)
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(ImageError, match=r"a\.jpg is a folder"):
        open_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("content", [b"no image at all", b"GIF89a", b'{"error": 404}'])
def test_not_an_image(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.jpg is neither a JPEG, a PNG nor a TIFF file.*convert"):
        open_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["a.jpg", "a.tif", "a.svs", "a.mrxs"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\).*fetch it again"),
        (b"<!DOCTYPE html>\n<html><body>404 Not Found", "is no image but a web page.*fetch it again"),
        (b"\xef\xbb\xbf\r\n  <HTML>", "is no image but a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied', "is no image but an XML text"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is no image but a pointer of Git LFS .git lfs pull"),
    ],
)
def test_something_else_in_place_of_the_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=name + " " + message):
        open_image(tmp_path / name)


def test_unreadable_file(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(b"x")

    def forbidden(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", forbidden)
    with pytest.raises(ImageError, match=r"a\.jpg cannot be opened \(Permission denied\)"):
        open_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["ä ö/組織 é.tif", "ä ö/組織 é.jpg"])
def test_names_beyond_ascii(tmp_path, pixels, name):
    (tmp_path / name).parent.mkdir()
    if name.endswith("tif"):
        tifffile.imwrite(tmp_path / name, pixels, photometric="rgb", tile=(64, 64))
    else:
        Image.fromarray(pixels).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        expected = np.asarray(image)
    check(tmp_path / name, expected)


@pytest.mark.parametrize("magic", [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0+"])
@pytest.mark.parametrize("rest", [b"", b"\0" * 40, b"\x08" * 40])
def test_broken_header(tmp_path, magic, rest):
    (tmp_path / "a.img").write_bytes(magic + rest)
    with pytest.raises(ImageError, match=r"a\.img"):
        open_image(tmp_path / "a.img").read(0, 0, 1, 1)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_jpeg_and_png(tmp_path, pixels, name, share):
    Image.fromarray(pixels).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with open_image(tmp_path / name) as image:
        for _ in range(2):
            with pytest.raises(ImageError, match=rf"{name} cannot be read .*truncated.*fetch it again"):
                image.read(0, 0, 10, 10)


@pytest.mark.parametrize("tag", ["ImageWidth", "TileLength"])
def test_damaged_tiff_header(tmp_path, pixels, tag):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[tag].overwrite(0)
    with pytest.raises(ImageError, match=r"a\.tif cannot be read .ZeroDivisionError"):
        open_image(path)


@pytest.mark.parametrize("options", TIFFS.values(), ids=TIFFS)
@pytest.mark.parametrize("share", [0.0005, 0.3, 0.99])
def test_truncated_tiff(tmp_path, pixels, options, share):
    layers = np.moveaxis(pixels, 2, 0) if "planarconfig" in options else pixels
    tifffile.imwrite(tmp_path / "a.tif", np.ascontiguousarray(layers), photometric="rgb", **options)
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ImageError, match=r"a\.tif .*truncated"):
        open_image(tmp_path / "a.tif")


def test_damaged_tile(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        start, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[start : start + length] = b"\xff" * length
    with pytest.raises(zlib.error):
        zlib.decompress(content[start : start + length])
    (tmp_path / "a.tif").write_bytes(content)
    with open_image(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(image.read(100, 100, 50, 50), pixels[100:150, 100:150])
        with pytest.raises(ImageError, match=r"a\.tif cannot be read"):
            image.read(0, 0, 50, 50)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.zeros((5, 5, 2), np.uint8), r"shape \(5, 5, 2\)"),
        (np.zeros((3, 5, 5), np.uint8), r"shape \(3, 5, 5\)"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        (np.zeros((5, 5), np.uint16), "dtype uint16"),
        (np.zeros((5, 5), bool), "dtype bool"),
        (np.full((5, 5), 2.0), "floats from 2 to 2"),
        (np.full((5, 5), np.nan), "floats from nan to nan"),
    ],
)
def test_unsupported_array(array, message):
    with pytest.raises(ImageError, match=message):
        open_image(array)


def test_16_bit(tmp_path):
    Image.fromarray(np.zeros((5, 5), np.uint16)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", np.full((50, 50, 3), 255, np.uint16), photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((50, 50), np.uint16), photometric="minisblack")
    for name in ("a.png", "a.tif", "b.tif"):
        with pytest.raises(ImageError, match=rf"{name} has 16-bit pixels; expected 8 bits.*255 / white"):
            open_image(tmp_path / name)


def test_the_advice_on_16_bit_images_works(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "16bit.tif", pixels.astype(np.uint16) * 257, photometric="rgb")
    with pytest.raises(ImageError) as refused:
        open_image(tmp_path / "16bit.tif")
    code = str(refused.value).partition("as in ")[2].removesuffix(".").replace("'8bit.tif'", "out")
    names = {"tifffile": tifffile, "path": tmp_path / "16bit.tif", "out": tmp_path / "8bit.tif", "white": 65535}
    exec(code, names)
    check(tmp_path / "8bit.tif", pixels)


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (np.zeros((50, 50), np.float32), {"photometric": "minisblack"}),
        (np.zeros((50, 50, 3), np.uint32), {"photometric": "rgb"}),
        (np.zeros((5, 50, 50), np.uint8), {"photometric": "minisblack"}),
        (np.zeros((5, 50, 50, 3), np.uint8), {"photometric": "rgb"}),
        (np.zeros((50, 50, 5), np.uint8), {"photometric": "separated"}),
    ],
)
def test_unsupported_tiff(tmp_path, array, options):
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    with pytest.raises(ImageError, match=r"a\.tif holds .* convert it to 8-bit RGB"):
        open_image(tmp_path / "a.tif")


def test_fax_is_refused(tmp_path, pixels):
    Image.fromarray(pixels).convert("1").save(tmp_path / "a.tif", compression="group4")
    with pytest.raises(ImageError, match=r"a\.tif holds colours that are not read .*CCITTFAX4.*convert"):
        open_image(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("names", [["DAPI", "CD3", "CD8"], ["DAPI", "CD3"], ["DAPI", "CD3", "CD8", "PanCK", "CD20"]])
def test_fluorescence_is_refused_by_name(tmp_path, names, dtype):
    metadata = {"axes": "CYX", "Channel": {"Name": names}}
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        np.zeros((len(names), 64, 96), dtype),
        photometric="minisblack",
        ome=True,
        metadata=metadata,
    )
    told = ", ".join(names)
    with pytest.raises(ImageError, match=rf"holds {len(names)} channels \({told}\), as of fluorescence.*8-bit RGB"):
        open_image(tmp_path / "a.ome.tif")


def test_channels_of_imagej_are_refused(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((3, 64, 96), np.uint8), imagej=True, metadata={"axes": "CYX", "mode": "composite"}
    )
    with pytest.raises(ImageError, match=r"a\.tif holds 3 channels, as of fluorescence"):
        open_image(tmp_path / "a.tif")


def test_planes_that_are_named_colours(tmp_path, pixels):
    metadata = {"axes": "CYX", "Channel": {"Name": ["Red", "Green", "Blue"]}}
    layers = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
    tifffile.imwrite(tmp_path / "a.ome.tif", layers, photometric="minisblack", ome=True, metadata=metadata)
    check(tmp_path / "a.ome.tif", pixels)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_pixels_go_with_their_source(tmp_path, pixels, name):
    """At once: whole sections wait for no garbage collector."""
    Image.fromarray(pixels).save(tmp_path / name)
    image = open_image(tmp_path / name)
    image.read(0, 0, 1, 1)
    gone = weakref.ref(image)
    gc.disable()
    try:
        del image
        assert gone() is None
    finally:
        gc.enable()
