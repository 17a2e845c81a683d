from __future__ import annotations

import io
import struct
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from hibiost.errors import ImageError
from hibiost.images import open_image, pixel_size, thumbnail, wsi

openslide = pytest.importorskip("openslide")

HEIGHT, WIDTH, TILE = 320, 512, 64
WINDOWS = [(0, 0, 5, 7), (60, 120, 150, 90), (-3, -4, 20, 10), (WIDTH - 5, HEIGHT - 6, 20, 11), (-50, 3, 20, 4)]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def check(source, pixels: np.ndarray, tolerance: int = 0) -> None:
    padded = np.pad(pixels.astype(int), ((60, 60), (60, 60), (0, 0)), constant_values=255)
    assert (source.height, source.width) == pixels.shape[:2]
    for x, y, width, height in WINDOWS:
        found = source.read(x, y, width, height)
        assert found.dtype == np.uint8
        assert np.abs(found - padded[y + 60 : y + 60 + height, x + 60 : x + 60 + width]).max() <= tolerance


def mirax(path, pixels: np.ndarray) -> None:
    """A slide of one level in PNG tiles, in 3DHISTECH's layout: a JPEG beside a folder of the same name."""
    Image.new("RGB", (9, 9)).save(path, format="JPEG")
    folder = path.with_suffix("")
    folder.mkdir()
    slide_id = b"0123456789ABCDEF0123456789ABCDEF"
    rows, columns = HEIGHT // TILE, WIDTH // TILE
    sections = {
        "GENERAL": {
            "SLIDE_VERSION": "01.02",
            "SLIDE_ID": slide_id.decode(),
            "IMAGENUMBER_X": columns,
            "IMAGENUMBER_Y": rows,
            "OBJECTIVE_MAGNIFICATION": 20,
        },
        "HIERARCHICAL": {
            "HIER_COUNT": 1,
            "NONHIER_COUNT": 0,
            "INDEXFILE": "Index.dat",
            "HIER_0_NAME": "Slide zoom level",
            "HIER_0_COUNT": 1,
            "HIER_0_VAL_0_SECTION": "LEVEL_0",
        },
        "DATAFILE": {"FILE_COUNT": 1, "FILE_0": "Data0000.dat"},
        "LEVEL_0": {
            "OVERLAP_X": 0,
            "OVERLAP_Y": 0,
            "MICROMETER_PER_PIXEL_X": 0.325,
            "MICROMETER_PER_PIXEL_Y": 0.325,
            "IMAGE_FILL_COLOR_BGR": 16777215,
            "DIGITIZER_WIDTH": TILE,
            "DIGITIZER_HEIGHT": TILE,
            "IMAGE_FORMAT": "PNG",
            "IMAGE_CONCAT_FACTOR": 0,
        },
    }
    text = "".join(
        f"[{name}]\r\n" + "".join(f"{key} = {value}\r\n" for key, value in entries.items())
        for name, entries in sections.items()
    )
    (folder / "Slidedat.ini").write_text(text, encoding="utf-8")
    data, entries = b"01.02" + slide_id, []
    for i in range(rows * columns):
        y, x = TILE * (i // columns), TILE * (i % columns)
        buffer = io.BytesIO()
        Image.fromarray(pixels[y : y + TILE, x : x + TILE]).save(buffer, format="PNG")
        entries.append(struct.pack("<4i", i, len(data), buffer.tell(), 0))
        data += buffer.getvalue()
    (folder / "Data0000.dat").write_bytes(data)
    start = 5 + len(slide_id)
    index = b"01.02" + slide_id + struct.pack("<2i", start + 8, start + 8)  # roots of both hierarchies
    index += struct.pack("<i", start + 12)  # the only level: its pages
    index += struct.pack("<2i", 0, start + 20)
    index += struct.pack("<2i", len(entries), 0) + b"".join(entries)
    (folder / "Index.dat").write_bytes(index)


def leica(path, pixels: np.ndarray) -> None:
    """A BigTIFF of an overview and of a scan of two levels, its top left quarter, told apart by XML only."""
    um = 500  # nanometres per pixel
    width, height = WIDTH * um, HEIGHT * um
    levels = "".join(f'<dimension sizeX="{WIDTH >> i}" sizeY="{HEIGHT >> i}" r="{i}" ifd="{i + 1}"/>' for i in range(2))
    view = (
        "<scanSettings><illuminationSettings><illuminationSource>brightfield</illuminationSource>"
        "</illuminationSettings><objectiveSettings><objective>{}</objective></objectiveSettings></scanSettings>"
    )
    xml = f"""<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection sizeX="{2 * width}" sizeY="{2 * height}">
<image><pixels sizeX="128" sizeY="128"><dimension sizeX="128" sizeY="128" r="0" ifd="0"/></pixels>
<view sizeX="{2 * width}" sizeY="{2 * height}" offsetX="0" offsetY="0"/>{view.format(1)}</image>
<image><pixels sizeX="{WIDTH}" sizeY="{HEIGHT}">{levels}</pixels>
<view sizeX="{width}" sizeY="{height}" offsetX="0" offsetY="0"/>{view.format(20)}</image>
</collection></scn>"""
    options = {
        "photometric": "rgb",
        "tile": (TILE, TILE),
        "metadata": None,
        "compression": "lzw",
        "resolutionunit": "CENTIMETER",
    }
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(np.zeros((128, 128, 3), np.uint8), description=xml, resolution=(2500, 2500), **options)
        file.write(pixels, resolution=(20000, 20000), **options)
        file.write(np.ascontiguousarray(pixels[::2, ::2]), subfiletype=1, **options)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_generic_tiff_as_by_tifffile(tmp_path, pixels, compression):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(TILE, TILE), compression=compression)
    with wsi.OpenSlideSource(str(path)) as slide, open_image(path) as image:
        assert type(image) is not type(slide)
        check(slide, pixels)
        check(image, pixels)


def test_mirax(tmp_path, pixels):
    mirax(tmp_path / "ä slide.mrxs", pixels)
    with open_image(tmp_path / "ä slide.mrxs") as slide:
        check(slide, pixels)
    assert pixel_size(tmp_path / "ä slide.mrxs") == (0.325, "openslide.mpp-x")


def test_leica(tmp_path, pixels):
    """What was not scanned is white."""
    leica(tmp_path / "a.scn", pixels)
    expected = np.full((2 * HEIGHT, 2 * WIDTH, 3), 255, np.uint8)
    expected[:HEIGHT, :WIDTH] = pixels
    with tifffile.TiffFile(tmp_path / "a.scn") as file:
        assert file.is_scn
    with open_image(tmp_path / "a.scn") as slide:
        check(slide, expected)
        with slide.reduced(300, 300) as level:
            assert (level.width, level.height) == (WIDTH, HEIGHT)
            np.testing.assert_array_equal(level.read(10, 20, 300, 40), expected[::2, ::2][20:60, 10:310])
        with slide.reduced(600, 100) as level:
            assert level is slide
        small, scale = thumbnail(slide, max_px=512)
        np.testing.assert_array_equal(small, expected[::2, ::2])
        assert scale == 0.5
    assert pixel_size(tmp_path / "a.scn") == (pytest.approx(0.5), "openslide.mpp-x")


def test_colours_that_tifffile_leaves_as_they_are(tmp_path):
    """Uncompressed YCbCr: libtiff, in OpenSlide, makes RGB of it."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (200, 80, 140))
    stored = np.asarray(image.convert("YCbCr"))
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="ycbcr", tile=(TILE, TILE), subsampling=(1, 1))
    with open_image(tmp_path / "a.tif") as slide:
        check(slide, np.asarray(image), tolerance=2)


def test_jpeg_2000_of_aperio(tmp_path):
    """Compression 33003 holds YCbCr whatever its tag of colours says."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (200, 80, 140))
    tifffile.imwrite(
        tmp_path / "a.svs",
        np.asarray(image.convert("YCbCr")),
        photometric="rgb",
        tile=(TILE, TILE),
        compression=33003,
        compressionargs={"mct": False, "level": 0},
        description="Aperio Image Library v10\n|MPP = 0.5",
        metadata=None,
    )
    with open_image(tmp_path / "a.svs") as slide:
        check(slide, np.asarray(image), tolerance=2)


# ---- refusals


@pytest.fixture
def no_openslide(monkeypatch):
    find = wsi.find_spec
    monkeypatch.setattr(wsi, "find_spec", lambda name: None if name == "openslide" else find(name))
    monkeypatch.setitem(sys.modules, "openslide", None)


@pytest.mark.usefixtures("no_openslide")
def test_without_openslide(tmp_path, pixels):
    mirax(tmp_path / "a.mrxs", pixels)
    leica(tmp_path / "a.scn", pixels)
    for name in ("a.mrxs", "a.scn"):
        with pytest.raises(ImageError, match=rf"{name} is a slide that OpenSlide reads.*pip install 'hibiost\[wsi\]'"):
            open_image(tmp_path / name)
    assert pixel_size(tmp_path / "a.scn") is None
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(TILE, TILE))
    with open_image(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(image.read(0, 0, WIDTH, HEIGHT), pixels)
    assert pixel_size(tmp_path / "a.tif") is None
    (tmp_path / "a.dat").write_bytes(b"something else")
    with pytest.raises(ImageError, match=r"a\.dat is neither"):
        open_image(tmp_path / "a.dat")


def test_mirax_without_its_folder(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.mrxs", format="JPEG")
    with pytest.raises(ImageError, match=r"a\.mrxs cannot be read .*Unsupported"):
        open_image(tmp_path / "a.mrxs")


def test_damaged_tile(tmp_path, pixels):
    mirax(tmp_path / "a.mrxs", pixels)
    data = tmp_path / "a" / "Data0000.dat"
    content = bytearray(data.read_bytes())
    content[100:2000] = b"?" * 1900
    data.write_bytes(content)
    with open_image(tmp_path / "a.mrxs") as slide, pytest.raises(ImageError, match=r"a\.mrxs cannot be read"):
        slide.read(0, 0, 50, 50)


def test_truncated_slide(tmp_path, pixels):
    mirax(tmp_path / "a.mrxs", pixels)
    data = tmp_path / "a" / "Data0000.dat"
    data.write_bytes(data.read_bytes()[:40_000])
    with pytest.raises(ImageError, match=r"a\.mrxs cannot be read .*truncated"):
        open_image(tmp_path / "a.mrxs")
    leica(tmp_path / "a.scn", pixels)
    content = (tmp_path / "a.scn").read_bytes()
    (tmp_path / "a.scn").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"a\.scn .*truncated"):
        open_image(tmp_path / "a.scn").read(0, 0, WIDTH, HEIGHT)


def test_windows_are_read_in_the_order_of_tiles(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(TILE, TILE), compression="deflate")
    corners = np.random.default_rng(1).uniform(0, (WIDTH - 20, HEIGHT - 20), (50, 2)).round()
    with wsi.OpenSlideSource(str(tmp_path / "a.tif")) as source:
        order = source.reading_order(corners, 20)
    expected = sorted(range(50), key=lambda i: (corners[i, 1] // TILE, corners[i, 0] // TILE, i))
    assert order.tolist() == expected
