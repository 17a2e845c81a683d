"""JPEG files decode to Pillow's pixels, and are refused where Pillow refuses them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from hibiost.errors import ImageError
from hibiost.images import open_image

HEIGHT, WIDTH = 131, 203
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
TISSUE = Image.fromarray(PIXELS).filter(ImageFilter.GaussianBlur(3))


def saved(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def with_thumbnail() -> bytes:
    thumbnail = saved(TISSUE.resize((20, 20)))
    return saved(TISSUE, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail)


JPEGS = {
    "4:2:0": saved(TISSUE, quality=90),
    "4:2:2": saved(TISSUE, subsampling=1),
    "4:4:4": saved(TISSUE, subsampling=0),
    "progressive": saved(TISSUE, progressive=True),
    "restart markers": saved(TISSUE, restart_marker_blocks=3),
    "RGB": saved(TISSUE, keep_rgb=True),
    "grey": saved(TISSUE.convert("L")),
    "grey, progressive": saved(TISSUE.convert("L"), progressive=True),
    "CMYK": saved(TISSUE.convert("CMYK")),
    "noise": saved(Image.fromarray(PIXELS), quality=100),
    "thumbnail": with_thumbnail(),
    "bytes behind": saved(TISSUE) + b"junk\xff\xda\xff",
    "two in a file": saved(TISSUE) + saved(TISSUE.resize((20, 20))),
}


def by_pillow(content: bytes) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError):
        return None


def by_hibiost(content: bytes, path) -> np.ndarray | None:
    path.write_bytes(content)
    try:
        with open_image(path) as image:
            return image.read(0, 0, image.width, image.height)
    except ImageError:
        return None


@pytest.mark.parametrize("content", JPEGS.values(), ids=JPEGS)
def test_pixels_are_those_of_pillow(tmp_path, content):
    expected = by_pillow(content)
    assert expected is not None
    np.testing.assert_array_equal(by_hibiost(content, tmp_path / "a.jpg"), expected)


@pytest.mark.parametrize("name", ["4:2:0", "progressive", "grey", "thumbnail", "restart markers"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.999])
def test_cut_off_files_are_refused(tmp_path, name, share):
    content = JPEGS[name]
    assert by_hibiost(content[: int(share * len(content))], tmp_path / "a.jpg") is None


@given(st.sampled_from(sorted(JPEGS)), st.data())
@settings(max_examples=150)
def test_damage_is_judged_as_by_pillow(tmp_path_factory, name, data):
    """Bytes cut out, cut off or changed."""
    content = bytearray(JPEGS[name])
    start = data.draw(st.integers(200, len(content)))
    length = data.draw(st.sampled_from([0, 1, 2, 50, len(content)]))
    content[start : start + length] = data.draw(st.binary(max_size=4))
    expected = by_pillow(bytes(content))
    found = by_hibiost(bytes(content), tmp_path_factory.getbasetemp() / "damaged.jpg")
    assert (found is None) == (expected is None)
    if expected is not None and found is not None:
        np.testing.assert_array_equal(found, expected)
