"""``hb.tl.embed`` beside the bare forward pass, the plain loop over batches, and one image at a time as Loki does.

``python benchmarks/embed.py [N_SPOTS [N_SPOTS_VIT]]``. A synthetic slide in a tiled TIFF is embedded by hibiost-mini
(2,000 spots) and by a ViT-B/16 of random weights (96). The loops are what a script would do: Pillow decodes the slide
once, crops and resizes each patch, and torch computes in float32, with the weights as they are. The bare forward
passes have all patches in memory.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from _bench import Table, seconds_of
from anndata import AnnData
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import hibiost as hb
from hibiost import inputs

SIZES = 2_000, 96
BATCH_SIZES = 4, 8, 16, 32, 64
OURS, LOKI = "hb.tl.embed", "one image at a time (Loki)"


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


def bare(patches: np.ndarray, forward: Callable[[np.ndarray], np.ndarray], size: int) -> np.ndarray:
    """The forward pass alone."""
    return np.concatenate([forward(patches[at : at + size]) for at in range(0, len(patches), size)])


def best_batch(patches: np.ndarray, forward: Callable[[np.ndarray], np.ndarray]) -> int:
    """The batch size by which a few patches are embedded soonest."""
    seconds = {}
    for size in (size for size in BATCH_SIZES if size <= len(patches)):
        forward(patches[:size])
        start = time.perf_counter()
        bare(patches, forward, size)
        seconds[size] = time.perf_counter() - start
    return min(seconds, key=seconds.__getitem__)


def cast(model: hb.model.HibioModel) -> Callable[[np.ndarray], np.ndarray]:
    """The forward pass of the tower with its weights cast to bfloat16."""
    tower = copy.deepcopy(model.visual).bfloat16()

    @torch.inference_mode()
    def forward(patches: np.ndarray) -> np.ndarray:
        pixels = model.normalise(torch.tensor(patches).permute(0, 3, 1, 2)).bfloat16()
        return F.normalize(tower(pixels).float(), dim=-1).numpy()

    return forward


def embedded(adata: AnnData, model: hb.model.HibioModel, precision: str) -> np.ndarray:
    """By the verb."""
    hb.tl.embed(adata, model=model, modality="image", precision=precision)
    return adata.obsm["X_hibiost_image"]


def compare(table: Table, name: str, model: hb.model.HibioModel, n_spots: int, rounds: int) -> str:
    """Add the ways of a model to the table; what the embeddings are like."""
    config, case = model.config, f"{name}, {n_spots:,} spots"
    with tempfile.TemporaryDirectory() as folder:
        adata = hb.datasets.tissue(n_spots, n_genes=50, image_path=folder)
        options = {"size": config.patch_size, "mpp": config.mpp, "output": config.image_size}
        patches = np.concatenate([part for slide in inputs.slides(adata) for part in slide.iter_patches(**options)])
        forwards = {"float32": model.embed_images, "bfloat16": cast(model)}
        sizes = {precision: best_batch(patches[:128], forward) for precision, forward in forwards.items()}
        ways = {
            OURS: lambda: embedded(adata, model, "float32"),
            f"{OURS}, bfloat16": lambda: embedded(adata, model, "bfloat16"),
            **{
                f"bare forward, {precision}": partial(bare, patches, forward, sizes[precision])
                for precision, forward in forwards.items()
            },
            "plain loop, batches of 32": lambda: in_batches(adata, model, 32),
            LOKI: lambda: in_batches(adata, model, 1),
        }
        found = table.measure(case, ways, rounds=rounds, once=(LOKI,))
    with FlopCounterMode(display=False) as counter:
        model.embed_images(patches[:1])
    for row in table.rows:
        if row.case == case:
            dtype = torch.bfloat16 if "bfloat16" in row.name else torch.float32
            row.limit = seconds_of(flops=n_spots * counter.get_total_flops(), dtype=dtype)
    exact = found["bare forward, float32"]
    cosines = ", ".join(f"{(values * exact).sum(axis=1).min():.5f} {way}" for way, values in found.items())
    chosen = " and ".join(f"{size} in {precision}" for precision, size in sizes.items())
    return f"{case}: the bare forward has batches of {chosen}; lowest cosine to it in float32: {cosines}."


def main(n_mini: int, n_vit: int) -> None:
    """Measure both models; write the table if the sizes are the default ones."""
    hb.settings.progress, hb.settings.verbosity = False, "warning"
    table = Table(
        "embed",
        "H&E patches of a tiled TIFF to embeddings, by hibiost-mini (ResNet-10, 112 px) and by a ViT-B/16 of random "
        "weights (224 px). Limit: operations of the forward pass at the speed of a matrix product in its precision; "
        "oneDNN's convolutions are faster than MKL's float32 products on CPUs of AMD.",
        OURS,
    )
    mini = hb.model.load("hibiost-mini")
    vit = hb.model.HibioModel(hb.model.ModelConfig.preset("ViT-B-16"), mini.vocabulary)
    notes = [compare(table, "hibiost-mini", mini, n_mini, 3), compare(table, "ViT-B/16", vit, n_vit, 2)]
    table.notes = "\n".join(f"- {note}" for note in notes)
    print(table.notes)
    if (n_mini, n_vit) == SIZES:
        table.write()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3] + list(map(str, SIZES))[len(sys.argv[1:3]) :]))
