"""Zarr and dask arrays as pixel sources: the same windows as of the array in memory, read by chunks."""

import dask.array as da
import numpy as np
import pytest
import zarr

from hibiost.errors import ImageError
from hibiost.images import open_image, thumbnail

PIXELS = np.random.default_rng(0).integers(0, 256, (130, 170, 3), dtype=np.uint8)
WINDOWS = [(0, 0, 170, 130), (-3, 120, 20, 20), (60, 60, 9, 9), (165, -2, 40, 300)]


class Counting:
    """An array that tells what was read of it."""

    def __init__(self, array, chunks):
        self.array, self.chunks, self.read = array, chunks, []
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, index):
        part = self.array[index]
        self.read.append(part.shape)
        return part


def stored(path, pixels, chunks):
    array = zarr.create_array(path, shape=pixels.shape, dtype=pixels.dtype, chunks=chunks)
    array[:] = pixels
    return path


def kinds(tmp_path):
    first = np.moveaxis(PIXELS, -1, 0)
    yield zarr.open_array(stored(tmp_path / "last.zarr", PIXELS, (64, 50, 3)), mode="r")
    yield str(stored(tmp_path / "erste Scheibe é.zarr", first, (1, 64, 50)))
    yield da.from_array(first, chunks=(3, 33, 170))
    yield da.from_array(PIXELS.astype(np.float32) / 255, chunks=(40, 40, 3))


@pytest.mark.parametrize("kind", range(4))
def test_windows_are_those_of_the_array(tmp_path, kind):
    source = list(kinds(tmp_path))[kind]
    with open_image(PIXELS) as expected, open_image(source) as image:
        assert (image.height, image.width) == (130, 170)
        for window in WINDOWS:
            np.testing.assert_array_equal(image.read(*window), expected.read(*window))
        np.testing.assert_array_equal(thumbnail(image, max_px=50)[0], thumbnail(expected, max_px=50)[0])


def test_grey_and_transparent():
    grey = PIXELS[..., 0]
    for array in (grey, grey[None], grey[..., None]):
        with open_image(da.from_array(array)) as image:
            np.testing.assert_array_equal(image.read(3, 4, 5, 6), grey[4:10, 3:8, None].repeat(3, axis=2))
    alpha = np.dstack([PIXELS, np.zeros_like(grey)])
    with open_image(da.from_array(alpha)) as image:
        assert (image.read(0, 0, 9, 9) == 255).all()


def test_chunks_are_read_once_and_nothing_at_opening():
    array = Counting(PIXELS, (64, 64, 3))
    with open_image(array) as image:
        assert array.read == []
        for _ in range(3):
            image.read(60, 60, 8, 8)
        assert array.read == [(64, 64, 3)] * 4


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((5, 40, 40), np.uint8), "shape .5, 40, 40.*1, 3 or 4 channels"),
        (np.zeros((40, 0, 3), np.uint8), "shape"),
        (np.zeros((40, 40, 3), np.uint16), "dtype uint16.*which value is white"),
    ],
)
def test_what_is_no_picture_is_refused(array, words):
    with pytest.raises(ImageError, match=words):
        open_image(Counting(array, array.shape))


def test_floats_beyond_one_are_refused_where_they_are_read():
    array = np.zeros((40, 40, 3))
    array[30, 30] = 200
    with open_image(Counting(array, (20, 20, 3))) as image:
        image.read(0, 0, 10, 10)
        with pytest.raises(ImageError, match="floats from 0 to 200; expected 0 to 1"):
            image.read(25, 25, 10, 10)


def test_damaged_and_wrong_stores(tmp_path):
    path = stored(tmp_path / "a.zarr", PIXELS, (64, 64, 3))
    chunk = max(path.rglob("c/*/*/*"))
    chunk.write_bytes(chunk.read_bytes()[:20])
    with open_image(path) as image, pytest.raises(ImageError, match=r"a\.zarr cannot be read"):
        image.read(0, 0, 170, 130)
    (path / "zarr.json").write_text("{")
    with pytest.raises(ImageError, match=r"a\.zarr cannot be read"):
        open_image(path)
    zarr.create_group(tmp_path / "g.zarr").create_array("s0", shape=(4, 4), dtype="u1")
    with pytest.raises(ImageError, match=r"zarr group of \['s0'\]; expected the array"):
        open_image(tmp_path / "g.zarr")
