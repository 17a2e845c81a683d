from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hibiost.errors import DataError, ImageError
from hibiost.images import count_padded, iter_patches, open_image

HEIGHT, WIDTH = 90, 130
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
SOURCE = open_image(PIXELS)
inside = st.tuples(st.floats(0, WIDTH - 0.01), st.floats(0, HEIGHT - 0.01))


def patches(source, centres, **options) -> np.ndarray:
    return np.concatenate(list(iter_patches(source, np.asarray(centres, float), **options)))


@given(st.lists(inside, min_size=1, max_size=9), st.integers(1, 40), st.integers(1, 5))
@settings(max_examples=60)
def test_equals_a_crop_pixel_by_pixel(centres, size, batch_size):
    batches = list(iter_patches(SOURCE, np.array(centres), window=size, size=size, batch_size=batch_size))
    assert [len(b) for b in batches[:-1]] == [batch_size] * (len(batches) - 1)
    found = np.concatenate(batches)
    assert found.shape == (len(centres), size, size, 3)
    assert found.dtype == np.uint8
    padded = 0
    for patch, (x, y) in zip(found, centres, strict=True):
        left, top = int(np.floor(x - size / 2 + 0.5)), int(np.floor(y - size / 2 + 0.5))
        over = False
        for row in range(size):
            for column in range(size):
                there = 0 <= top + row < HEIGHT and 0 <= left + column < WIDTH
                expected = PIXELS[top + row, left + column] if there else (255, 255, 255)
                assert (patch[row, column] == expected).all()
                over |= not there
        padded += over
    assert count_padded((HEIGHT, WIDTH), np.array(centres), window=size) == padded


def test_batches_are_new_arrays():
    first, second = iter_patches(SOURCE, np.array([[50.0, 50], [60, 50]]), window=8, size=8, batch_size=1)
    assert not np.shares_memory(first, second)
    assert not np.shares_memory(first, PIXELS)


@pytest.mark.parametrize(("window", "size"), [(60, 30), (61, 30), (20, 33)])
def test_whole_windows_are_resized_crops(window, size):
    x, y = 64.0, 45.0
    left, top = int(np.floor(x - window / 2 + 0.5)), int(np.floor(y - window / 2 + 0.5))
    crop = Image.fromarray(PIXELS).crop((left, top, left + window, top + window))
    expected = np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(patches(SOURCE, [(x, y)], window=window, size=size)[0], expected)


def ramp(along: int) -> np.ndarray:
    """Grey value 2 x the coordinate of the pixel's centre along x or y."""
    y, x = np.mgrid[:120, :120]
    return np.repeat((2 * (x if along == 0 else y) + 1)[..., None], 3, axis=2).astype(np.uint8)


@given(st.floats(45, 75), st.floats(45, 75), st.floats(10, 60), st.integers(8, 40))
@settings(max_examples=60)
def test_geometry_of_resampling(x, y, window, size):
    """On a ramp, each patch pixel is the coordinate it is centred on."""
    if window == round(window):
        window += 0.25
    for along, centre in enumerate((x, y)):
        patch = patches(open_image(ramp(along)), [(x, y)], window=window, size=size)[0, ..., 0].astype(float)
        profile = patch.mean(axis=along)
        expected = 2 * (centre - window / 2 + (np.arange(size) + 0.5) * window / size)
        inner = slice(size // 4, -(size // 4))
        np.testing.assert_allclose(profile[inner], expected[inner], atol=0.75)


def test_reduction_does_not_alias():
    stripes = np.zeros((200, 200, 3), np.uint8)
    stripes[:, 1::2] = 255
    patch = patches(open_image(stripes), [(100, 100)], window=128, size=32)[0, 1:-1, 1:-1]
    assert np.abs(patch - 127.5).max() < 3


def test_resized_at_the_corner_is_white_outside():
    black = open_image(np.zeros((100, 100, 3), np.uint8))
    patch = patches(black, [(0, 0)], window=40.5, size=20)[0, ..., 0]
    assert (patch[:8] == 255).all()
    assert (patch[:, :8] == 255).all()
    assert (patch[12:, 12:] == 0).all()


def test_no_centres():
    assert list(iter_patches(SOURCE, np.empty((0, 2)), window=8, size=8)) == []
    assert count_padded((HEIGHT, WIDTH), np.empty((0, 2)), window=8) == 0


@pytest.mark.parametrize(
    ("centres", "options", "message"),
    [
        (np.zeros((3, 3)), {}, r"shape \(3, 3\)"),
        (np.zeros(2), {}, r"shape \(2,\)"),
        (np.array([[np.nan, 1]]), {}, "finite"),
        (np.ones((1, 2)), {"window": 0}, "window is 0"),
        (np.ones((1, 2)), {"window": np.nan}, "window is nan"),
        (np.ones((1, 2)), {"size": 0}, "size is 0"),
        (np.ones((1, 2)), {"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_refused_at_the_call(centres, options, message):
    with pytest.raises(DataError, match=message):
        iter_patches(SOURCE, centres, **{"window": 8, "size": 8, **options})


def test_truncated_image(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with open_image(tmp_path / "a.jpg") as image:
        batches = iter_patches(image, np.array([[50.0, 50]]), window=8, size=8)
        with pytest.raises(ImageError, match=r"a\.jpg cannot be read"):
            next(batches)
