"""``hb.tl.embed`` beside the bare forward pass, the plain loop over batches, and one image at a time.

``python benchmarks/embed.py [N_SPOTS [N_TURNS]]`` writes a synthetic slide (4,000 spots) to a tiled TIFF, embeds its
patches by hibiost-mini in turns, and prints medians as Markdown. The loops are what a script would do: Pillow decodes
the slide once, crops and resizes each patch, and torch computes in float32. The bare forward pass has all patches in
memory.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from anndata import AnnData
from PIL import Image

import hibiost as hb
from hibiost import inputs

BATCH_SIZE = 64


def cropped(adata: AnnData, model: hb.model.HibioModel) -> list[Image.Image]:
    """The patch of each spot by Pillow, as the model wants it."""
    (entry,) = adata.uns["spatial"].values()
    Image.MAX_IMAGE_PIXELS = None
    slide = Image.open(entry["metadata"]["source_image_path"]).convert("RGB")
    half = model.config.patch_size * (model.config.mpp or entry["metadata"]["mpp"]) / entry["metadata"]["mpp"] / 2
    size = (model.config.image_size, model.config.image_size)
    boxes = ((x - half, y - half, x + half, y + half) for x, y in adata.obsm["spatial"])
    return [slide.resize(size, Image.Resampling.BICUBIC, box=box) for box in boxes]


def in_batches(adata: AnnData, model: hb.model.HibioModel, size: int) -> np.ndarray:
    """Embeddings of the cropped patches, ``size`` at a time."""
    images = cropped(adata, model)
    parts = [images[at : at + size] for at in range(0, len(images), size)]
    return np.concatenate([model.embed_images(np.stack([np.asarray(image) for image in part])) for part in parts])


def bare(patches: np.ndarray, model: hb.model.HibioModel) -> np.ndarray:
    """The forward pass alone."""
    parts = [patches[at : at + BATCH_SIZE] for at in range(0, len(patches), BATCH_SIZE)]
    return np.concatenate([model.embed_images(part) for part in parts])


def embedded(adata: AnnData) -> np.ndarray:
    """By the verb, with the model that comes with the package."""
    hb.tl.embed(adata, modality="image")
    return adata.obsm["X_hibiost_image"]


def measured(ways: dict[str, Callable[[], np.ndarray]], n_turns: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Median seconds of each way, and what it gives."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for _ in range(n_turns):
        for name, way in ways.items():
            start = time.perf_counter()
            found[name] = way()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}, found


def main(n_spots: int, n_turns: int) -> None:
    """Print the table."""
    hb.settings.progress, hb.settings.verbosity = False, "warning"
    model = hb.model.load("hibiost-mini")
    with tempfile.TemporaryDirectory() as folder:
        adata = hb.datasets.tissue(n_spots, n_genes=50, image_path=folder)
        options = {"size": model.config.patch_size, "mpp": model.config.mpp, "output": model.config.image_size}
        patches = np.concatenate([p for s in inputs.slides(adata, "library_id") for p in s.iter_patches(**options)])
        ways = {
            "hb.tl.embed": lambda: embedded(adata),
            "bare forward pass": lambda: bare(patches, model),
            "plain loop, batches": lambda: in_batches(adata, model, BATCH_SIZE),
            "plain loop, one image at a time": lambda: in_batches(adata, model, 1),
        }
        seconds, found = measured(ways, n_turns)
    print(f"{n_spots} spots, {torch.get_num_threads()} threads, medians of {n_turns}\n")
    print("| way | seconds | spots/s | of hb.tl.embed | lowest cosine |\n|---|---|---|---|---|")
    for name, value in seconds.items():
        cosine = (found[name] * found["hb.tl.embed"]).sum(axis=1).min()
        print(f"| {name} | {value:.1f} | {n_spots / value:.0f} | {value / seconds['hb.tl.embed']:.2f} | {cosine:.4f} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:] + ["4000", "5"][len(sys.argv) - 1 :]))
