"""Patches: cut from a decoded image and from a tiled one, beside other tools; and decoding a JPEG.

Run: python benchmarks/patches.py [SIDE BINS]

SIDE and BINS (20,000 pixels and 100,000) are those of the tiled image; with others, nothing is written. Needs the
image of her2st C6.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import anndata as ad
import imagecodecs
import numpy as np
import openslide
import spatialdata as sd
import tifffile
import zarr
from _bench import Table, seconds_of
from PIL import Image

import hibiost as hb
from hibiost.images import iter_patches, open_image

SIDE, BINS = 20_000, 100_000
SIZE, TILE = 224, 256
FEW = 1_000
"""Patches by which naive random access is measured."""
BYTES = 3 * SIZE**2
Image.MAX_IMAGE_PIXELS = None


def consumed(batches: Iterator[Any]) -> int:
    """Take patches batch by batch and drop them, as a model does."""
    return sum(len(batch) for batch in batches)


def one_by_one(patches: Iterator[np.ndarray]) -> int:
    """Put single patches into batches."""
    return consumed(np.stack(part) for part in iter(lambda: list(islice(patches, 64)), []))


def sliced(image: np.ndarray, corners: np.ndarray) -> Iterator[np.ndarray]:
    """The least that has to be done: a copy of each window, in batches."""
    for start in range(0, len(corners), 64):
        part = corners[start : start + 64]
        batch = np.empty((len(part), SIZE, SIZE, 3), np.uint8)
        for patch, (x, y) in zip(batch, part, strict=True):
            patch[:] = image[y : y + SIZE, x : x + SIZE]
        yield batch


def boxes(corners: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """Left, top, right and bottom of the windows."""
    return ((x, y, x + SIZE, y + SIZE) for x, y in corners.tolist())


def spots_of(path: str, centres: np.ndarray, corners: np.ndarray, table: Table) -> None:
    """Patches of the spots of a section."""
    source = open_image(path)
    image = source.read(0, 0, source.width, source.height)
    pillow = Image.fromarray(image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import squidpy as sq

        container = sq.im.ImageContainer(image)
    element = sd.models.Image2DModel.parse(np.moveaxis(image, 2, 0), dims=("c", "y", "x"))

    def by_pillow(image: Image.Image) -> int:
        return one_by_one(np.asarray(image.crop(box)) for box in boxes(corners))

    def by_spatialdata(box: tuple[int, int, int, int]) -> np.ndarray:
        query = {"min_coordinate": [box[1], box[0]], "max_coordinate": [box[3], box[2]]}
        found = sd.bounding_box_query(element, axes=("y", "x"), target_coordinate_system="global", **query)
        return np.moveaxis(found.to_numpy(), 0, -1)

    def by_files() -> int:
        with tempfile.TemporaryDirectory() as folder:
            for number, box in enumerate(boxes(corners)):
                pillow.crop(box).save(f"{folder}/{number}.png")
            return one_by_one(np.asarray(Image.open(f"{folder}/{number}.png")) for number in range(len(corners)))

    def by_squidpy() -> int:
        crops = (container.crop_center(int(y), int(x), radius=SIZE // 2) for x, y in corners + SIZE // 2)
        return one_by_one(crop["image"].to_numpy() for crop in crops)

    size = f"{len(corners)} patches of {SIZE} px"
    limit = seconds_of(bytes_moved=2 * BYTES * len(corners))
    ways = {
        "hibiost": lambda: consumed(iter_patches(source, centres, window=SIZE, size=SIZE)),
        "NumPy slices": lambda: consumed(sliced(image, corners)),
        "Pillow, crop": lambda: by_pillow(pillow),
        "squidpy, crop_center": by_squidpy,
        "SpatialData, bounding_box_query": lambda: one_by_one(by_spatialdata(box) for box in boxes(corners)),
        "crops saved as PNG and opened (Loki)": by_files,
    }
    table.measure(f"{size}, image decoded before", ways, rounds=5, limit=limit, once=tuple(ways)[3:])
    ways = {
        "hibiost": lambda: consumed(iter_patches(source, centres, window=SIZE, size=112)),
        "Pillow, crop and resize": lambda: one_by_one(
            np.asarray(pillow.crop(box).resize((112, 112), Image.Resampling.BICUBIC)) for box in boxes(corners)
        ),
    }
    table.measure("the same, reduced to 112 px", ways, rounds=5, limit=limit)
    ways = {
        "hibiost": lambda: consumed(iter_patches(open_image(path), centres, window=SIZE, size=SIZE)),
        "imagecodecs, NumPy slices": lambda: consumed(
            sliced(imagecodecs.jpeg8_decode(Path(path).read_bytes()), corners)
        ),
        "Pillow, crop": lambda: by_pillow(Image.open(path)),
    }
    table.measure(f"{size}, with decoding the JPEG", ways, rounds=7, limit=seconds_of(bytes_moved=image.nbytes))


def decoding(path: str, table: Table) -> None:
    """Decoders of the whole image."""
    with Image.open(path) as image:
        case = f"a JPEG of {image.width:,} x {image.height:,}"
        pixels = 3 * image.width * image.height
    ways = {
        "hibiost": lambda: open_image(path).read(0, 0, 1, 1),
        "imagecodecs (libjpeg-turbo)": lambda: imagecodecs.jpeg8_decode(Path(path).read_bytes()),
        "Pillow": lambda: np.asarray(Image.open(path)),
    }
    table.measure(case, ways, rounds=7, limit=seconds_of(bytes_moved=pixels))


def write_tiled(path: str, section: str, side: int) -> None:
    """A TIFF of JPEG tiles, of a piece of a section and its mirror images."""
    with Image.open(section) as image:
        piece = np.asarray(image.convert("RGB"))[2000:7000, 2000:7000]
    piece = np.concatenate([piece, piece[::-1]])
    piece = np.concatenate([piece, piece[:, ::-1]], axis=1)
    times = -(-side // len(piece))
    pixels = np.tile(piece, (times, times, 1))[:side, :side]
    options = {"compression": "jpeg", "compressionargs": {"level": 85}}
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(TILE, TILE), **options)


def scaled(table: Table, case: str, ways: Mapping[str, Callable[[], Any]], *, times: float, limit: float) -> None:
    """Ways that are measured on a part."""
    part = Table("", "", ours=next(iter(ways)))
    part.measure(f"{case}, in part", ways, rounds=2)
    for row in part.rows:
        seconds = [times * second for second in row.seconds]
        table.rows.append(replace(row, case=case, name=f"{row.name} *", seconds=seconds, limit=limit))


def tiled(path: str, side: int, n: int, table: Table) -> None:
    """Overlapping patches of HD bins that come in any order."""
    rng = np.random.default_rng(0)
    across = np.linspace(SIZE, side - SIZE, round(n**0.5))
    centres = rng.permutation(np.array(np.meshgrid(across, across)).reshape(2, -1).T)
    corners = np.floor(centres - SIZE / 2 + 0.5).astype(int)
    bins = ad.AnnData(np.zeros((len(centres), 1), np.float32), obsm={"spatial": centres})
    bins.uns["spatial"] = {"slide": {"metadata": {"source_image_path": path}}}
    slide, store = openslide.OpenSlide(path), tifffile.imread(path, aszarr=True)
    array = zarr.open_array(store, mode="r")

    case = f"{len(centres):,} patches of a tiled {side:,} x {side:,} TIFF"
    limit = seconds_of(bytes_moved=2 * BYTES * len(corners))
    ways = {
        "hibiost": lambda: consumed(patches for _, patches in hb.pp.iter_patches(bins, size=SIZE)),
        "whole image decoded, NumPy slices": lambda: consumed(sliced(tifffile.imread(path), corners)),
    }
    table.measure(case, ways, limit=limit)
    few = corners[:FEW]
    naive = {
        "openslide-python, read_region": lambda: one_by_one(
            np.asarray(slide.read_region(tuple(corner), 0, (SIZE, SIZE)).convert("RGB")) for corner in few.tolist()
        ),
        "tifffile + zarr, slices": lambda: one_by_one(array[y : y + SIZE, x : x + SIZE] for x, y in few),
    }
    scaled(table, case, naive, times=len(corners) / len(few), limit=limit)
    slide.close()
    store.close()


def main(side: int = SIDE, n: int = BINS) -> None:
    """Measure, and write the table."""
    table = Table(
        "patches",
        "Patches of 224 px around spots and bins, and decoding a JPEG. The limit is the time to copy the patches, or "
        "to write the decoded image.",
        "hibiost",
    )
    adata = hb.datasets.her2st("C6")
    path = adata.uns["spatial"]["C6"]["metadata"]["source_image_path"]
    centres = adata.obsm["spatial"]
    corners = np.floor(centres - SIZE / 2 + 0.5).astype(int)
    with open_image(path) as image:
        whole = ((corners >= 0) & (corners + SIZE <= [image.width, image.height])).all(axis=1)
    spots_of(path, centres[whole], corners[whole], table)
    decoding(path, table)
    with tempfile.TemporaryDirectory() as folder:
        write_tiled(f"{folder}/tiled.tif", path, side)
        tiled(f"{folder}/tiled.tif", side, n, table)
    each = {(row.case, row.name): row.median for row in table.rows}
    table.notes = notes(each, n=round(n**0.5) ** 2, n_spots=int(whole.sum()))
    print(table.notes)
    if (side, n) == (SIDE, BINS):
        table.write()


def notes(seconds: Mapping[tuple[str, str], float], *, n: int, n_spots: int) -> str:
    """Time of one patch, in words."""
    decoded = "; ".join(
        f"{name} {1e3 * took / n_spots:.2f}" for (case, name), took in seconds.items() if "decoded before" in case
    )
    bins = "; ".join(f"{name} {1e6 * took / n:,.0f}" for (case, name), took in seconds.items() if "tiled" in case)
    return (
        f"Milliseconds a patch of a decoded image: {decoded}. squidpy's crops are of {SIZE + 1} px.\n\n"
        f"Microseconds a patch of the tiled image, whose bins come in random order: {bins}. Ways marked * were "
        f"measured on {FEW:,} patches."
    )


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
