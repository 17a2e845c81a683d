from __future__ import annotations

import threading
from collections import Counter, OrderedDict

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from hibiost.errors import ImageError
from hibiost.images import iter_patches, open_image
from hibiost.images import patches as cutting
from hibiost.images.tiled import TiledSource, tile_order

HEIGHT, WIDTH, SIDE = 300, 420, 40
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
PLANES = np.ascontiguousarray(np.moveaxis(PIXELS, 2, 0))
BINS = np.random.default_rng(1).permutation(np.mgrid[0:WIDTH:4, 0:HEIGHT:4].reshape(2, -1).T.astype(float))
"""Centres 4 pixels apart, shuffled; windows at the edges reach over them."""


def expected(centres: np.ndarray) -> np.ndarray:
    padded = np.pad(PIXELS, ((SIDE, SIDE), (SIDE, SIDE), (0, 0)), constant_values=255)
    corners = np.floor(centres - SIDE / 2 + 0.5).astype(int) + SIDE
    return np.stack([padded[y : y + SIDE, x : x + SIDE] for x, y in corners])


def tiff(path, pixels=PIXELS, **options):
    tifffile.imwrite(path, pixels, photometric="rgb", compression="zlib", **options)
    return path


def layers(folder):
    zarr.create_array(folder, data=PLANES, chunks=(3, 50, 60), overwrite=True)
    return folder


IMAGES = {
    "tiles": lambda folder: tiff(folder / "a.tif", tile=(64, 64)),
    "planes": lambda folder: tiff(folder / "a.tif", PLANES, planarconfig="separate", tile=(64, 64)),
    "strips": lambda folder: tiff(folder / "a.tif", rowsperstrip=7),
    "wide strips": lambda folder: tiff(folder / "a.tif", rowsperstrip=150),
    "zarr": lambda folder: layers(folder / "a.zarr"),
    "dask": lambda folder: da.from_array(PIXELS, chunks=(100, 70, 3)),
}


@pytest.fixture
def decoded(monkeypatch) -> Counter:
    """How often each tile was decoded."""
    counts: Counter = Counter()
    original = TiledSource._decode_tile
    monkeypatch.setattr(TiledSource, "_decode_tile", lambda self, *tile: counts.update([tile]) or original(self, *tile))
    return counts


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_shuffled_bins_decode_each_tile_once(tmp_path, monkeypatch, decoded, image):
    monkeypatch.setattr("hibiost.images.tiff._ROWS", 32)
    with open_image(image(tmp_path)) as source:
        height, width = source._tile_shape
    kept = (-(-SIDE // height) + 2) * (-(-WIDTH // width) + 1)
    monkeypatch.setattr("hibiost.images.tiled.TILE_CACHE", kept * 3 * height * width)
    with open_image(image(tmp_path)) as source:
        order = source.reading_order(np.floor(BINS - SIDE / 2 + 0.5), SIDE)
        found = np.concatenate(list(iter_patches(source, BINS[order], window=SIDE, size=SIDE)))
        assert source._tiles.cache_info().currsize <= max(kept, 4)
    np.testing.assert_array_equal(found, expected(BINS[order]))
    assert len(decoded) == -(-HEIGHT // height) * -(-WIDTH // width)
    assert set(decoded.values()) == {1}


def test_an_image_too_wide_for_the_cache_is_read_in_blocks(tmp_path, monkeypatch, decoded):
    monkeypatch.setattr("hibiost.images.tiled.TILE_CACHE", 12 * 3 * 64 * 64)
    with open_image(tiff(tmp_path / "a.tif", tile=(64, 64))) as source:
        order = source.reading_order(np.floor(BINS - SIDE / 2 + 0.5), SIDE)
        for _ in iter_patches(source, BINS[order], window=SIDE, size=SIDE, batch_size=8):
            pass
    assert len(decoded) == 35
    assert max(decoded.values()) == 2


places = st.tuples(st.integers(-30, 200), st.integers(-30, 200))


@given(
    st.lists(places, min_size=1, max_size=80),
    st.integers(1, 50),
    st.tuples(st.integers(5, 60), st.integers(5, 60)),
    st.integers(0, 20),
)
@settings(max_examples=200)
def test_order_suits_a_cache_of_the_tiles_used_last(corners, window, tile, spare):
    """Counted by a cache in its plainest form."""
    corners = np.array(corners, float)

    def touched(corner):
        (left, right), (top, bottom) = ((max(int(v), 0), int(v) + window - 1) for v in corner)
        rows, columns = range(top // tile[0], bottom // tile[0] + 1), range(left // tile[1], right // tile[1] + 1)
        return [(i, j) for i in rows for j in columns]

    columns = 1 + max((j for corner in corners for _, j in touched(corner)), default=0)
    kept = (-(-window // tile[0]) + 2) * (columns + -(-window // tile[1])) + spare
    order = tile_order(corners, window, tile, kept)
    assert sorted(order) == list(range(len(corners)))
    cache, decoded = OrderedDict(), Counter()
    for corner in corners[order]:
        for key in touched(corner):
            decoded[key] += key not in cache
            cache[key] = cache.pop(key, None)
            if len(cache) > kept:
                cache.popitem(last=False)
    assert set(decoded.values()) <= {1}


@given(st.lists(st.tuples(st.floats(0, WIDTH), st.floats(0, HEIGHT)), min_size=1, max_size=30), st.randoms())
@settings(max_examples=30)
def test_the_order_of_spots_changes_no_patch(centres, random):
    with open_image(da.from_array(PIXELS, chunks=(100, 70, 3))) as source:
        found = []
        for _ in range(2):
            batches = iter_patches(source, np.array(centres), window=33.3, size=20, batch_size=4)
            found.append(dict(zip(centres, np.concatenate(list(batches)), strict=True)))
            random.shuffle(centres)
    for centre in centres:
        np.testing.assert_array_equal(found[0][centre], found[1][centre])


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("batch_size", [1, 5, 64, 1000])
def test_threads_change_nothing(tmp_path, monkeypatch, threads, batch_size):
    monkeypatch.setattr(cutting, "cpu_count", lambda: threads)
    with open_image(tiff(tmp_path / "a.tif", tile=(64, 64))) as source:
        batches = list(iter_patches(source, BINS[:150], window=SIDE, size=SIDE, batch_size=batch_size))
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    np.testing.assert_array_equal(np.concatenate(batches), expected(BINS[:150]))


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("hibiost-patches")]


def test_a_consumer_that_stops_ends_the_reading(monkeypatch):
    begun = []
    batches = cutting.in_batches(lambda patches, places: begun.append(places), n=1000, size=2, batch_size=10)
    assert not begun
    next(batches)
    assert readers()
    batches.close()
    assert not readers()
    assert 1 <= len(begun) <= 1 + cutting.AHEAD


def test_errors_of_threads_are_passed_on_in_their_turn():
    def fill(patches, places):
        if places.start == 30:
            raise ImageError("damaged")
        patches[:] = places.start

    batches = cutting.in_batches(fill, n=60, size=1, batch_size=10)
    assert [int(next(batches)[0, 0, 0, 0]) for _ in range(3)] == [0, 10, 20]
    with pytest.raises(ImageError, match="damaged"):
        next(batches)
    assert not readers()
