"""Pixels are Pillow's, whatever the sizes and the part of the image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hibiost.images.resize import resize_into


def resized(pixels, box, shape) -> np.ndarray:
    out = np.full((*shape, 3), 7, np.uint8)
    resize_into(out, pixels, box)
    return out


def by_pillow(pixels, box, shape) -> np.ndarray:
    """The width first, then the height: left to itself, Pillow 13 takes the height first for some sizes."""
    (left, top, right, bottom), (height, width) = box, shape
    bicubic = Image.Resampling.BICUBIC
    narrow = Image.fromarray(pixels).resize((width, len(pixels)), bicubic, box=(left, 0, right, len(pixels)))
    return np.asarray(narrow.resize((width, height), bicubic, box=(0, top, width, bottom)))


def image(seed: int, height: int, width: int, *, harsh: bool) -> np.ndarray:
    """Noise; or black and white alone, beyond which the filter's negative weights reach."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return (255 * (pixels > 127) if harsh else pixels).astype(np.uint8)


@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    part=st.tuples(*[st.floats(0, 1)] * 4),
    harsh=st.booleans(),
)
@settings(max_examples=300)
def test_part_of_an_image(seed, height, width, shape, part, harsh):
    left, top = part[0] * (width - 1), part[1] * (height - 1)
    right, bottom = left + 1 + part[2] * (width - 1 - left), top + 1 + part[3] * (height - 1 - top)
    pixels, box = image(seed, height, width, harsh=harsh), (left, top, min(right, width), min(bottom, height))
    np.testing.assert_array_equal(resized(pixels, box, shape), by_pillow(pixels, box, shape))


@pytest.mark.parametrize("side", [224, 308, 448])
@pytest.mark.parametrize("offset", [0.0, 0.37])
def test_patches_of_a_slide(side, offset):
    pixels = image(0, side + 1, side + 1, harsh=False)
    box = (offset, offset, offset + side, offset + side)
    whole = Image.fromarray(pixels).resize((112, 112), Image.Resampling.BICUBIC, box=box)
    np.testing.assert_array_equal(resized(pixels, box, (112, 112)), np.asarray(whole))


def test_strips_of_an_array():
    """Pixels and result may be parts of larger arrays, the pixels such as nobody may write."""
    pixels = image(0, 40, 50, harsh=False)
    pixels.flags.writeable = False
    batch = np.zeros((2, 10, 10, 3), np.uint8)
    resize_into(batch[1], pixels[5:35, 10:40], (0.0, 0.0, 30.0, 30.0))
    expected = Image.fromarray(pixels[5:35, 10:40]).resize((10, 10), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(batch[1], np.asarray(expected))
    assert not batch[0].any()
