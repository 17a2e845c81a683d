"""How hibiost-mini was chosen, on one section left out at a time, and how it was trained, on all.

``python benchmarks/mini.py choose OUT [--seeds N] [--jobs N] [ROW ...]`` trains the rows anew for each of her2st's
sections C2 to C6 and writes the benchmark's tables to ``OUT``; ``python benchmarks/mini.py train OUT`` trains the model
that is shipped, into ``OUT/hibiost-mini``; ``python benchmarks/mini.py patients OUT`` tries it on another patient. All
go on where they were stopped.
"""

from __future__ import annotations

import argparse
import math
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from anndata import AnnData
from safetensors.torch import load_file, save_file
from scipy import sparse
from torch import Tensor, nn
from tqdm.auto import tqdm

import hibiost as hb
from hibiost import inputs
from hibiost.benchmark._contestants import Embedded
from hibiost.benchmark._genes import variable_genes
from hibiost.datasets._her2st import SECTIONS
from hibiost.datasets._registry import registry
from hibiost.model.confidence import Fit
from hibiost.model.features import Preparation
from hibiost.model.losses import info_nce
from hibiost.model.ridge import fit_ridge
from hibiost.tl._confidence import expected_pcc
from hibiost.train.cpu import kept_memory
from hibiost.train.data import hash_seed
from hibiost.train.task import learning_rate

FULL, REDUCED = ["C2", "C3", "C4", "C5", "C6"], ["A1", "A2"]
COUNTED = [name for name in SECTIONS if name != "B4"]
"""Sections whose counts are at hand: B4 was not to be had where this ran."""
MPP = 0.688
"""Micrometres per pixel of the sections of full resolution."""
PRESET = hb.model.ModelConfig.preset("ResNet-10")
MIN_SPOTS = 20


def vocabulary(held_out: set[str]) -> hb.genes.Vocabulary:
    """Genes and idf of all sections with counts but those held out."""
    counts = hb.datasets.her2st([name for name in COUNTED if name not in held_out], image=False)
    return hb.io.fit_vocabulary(counts, min_spots=MIN_SPOTS)


def held_out(reference: AnnData) -> set[str]:
    """Sections of full resolution that are not trained on."""
    return set(FULL) - set(reference.obs["library_id"])


def pretrained(reference: AnnData, seed: int, *others: AnnData, recipe: Any = None) -> hb.model.HibioModel:
    """All three levels on some sections, with the idf of all that are not held out."""
    return hb.tl.pretrain(
        [reference, *others],
        image_encoder=PRESET,
        recipe=recipe,
        pathways="reactome",
        vocabulary=vocabulary(held_out(reference)),
        mpp=MPP,
        rng=seed,
    )


def vocabulary_of_all(reference: AnnData, seed: int) -> hb.model.HibioModel:
    """The sections of full resolution."""
    return pretrained(reference, seed)


def with_reduced(reference: AnnData, seed: int) -> hb.model.HibioModel:
    """And those of another patient whose images are reduced: about as many steps."""
    recipe = {"epochs": 24, "region_start": 12, "region_every": 5}
    return pretrained(reference, seed, hb.datasets.her2st(REDUCED), recipe=recipe)


def with_mouse(reference: AnnData, seed: int) -> hb.model.HibioModel:
    """And mouse olfactory bulb through orthologs."""
    recipe = {"epochs": 16, "region_start": 8, "region_every": 3}
    mouse = hb.pp.map_genes(hb.datasets.mob_st())
    return pretrained(reference, seed, hb.datasets.her2st(REDUCED), mouse, recipe=recipe)


# -- self-supervision ------------------------------------------------------------------------------------------------

EPOCHS, BATCH_SIZE, LR, WEIGHT_DECAY = 12, 256, 1e-3, 0.05
SIDE, VIEW = 144, 80
"""Pixels of a patch with its margin, and of a view of it."""
SCALE = 5.0
SPACING_UM = 100.0


def tissue_patches(adata: AnnData) -> np.ndarray:
    """Patches on a grid over the tissue of all slides, whether there are spots or not; uint8, n x SIDE x SIDE x 3."""
    found = []
    for library_id, entry in adata.uns["spatial"].items():
        slide = AnnData(np.zeros((0, 0), dtype=np.float32), uns={"spatial": {library_id: entry}})
        hb.pp.grid(slide, spacing_um=SPACING_UM)
        size = round(PRESET.patch_size * SIDE / PRESET.image_size)
        for spots in inputs.slides(slide, "library_id"):
            found += spots.iter_patches(size=size, output=SIDE)
    return np.concatenate(found)


def view(patches: Tensor, generator: torch.Generator) -> Tensor:
    """A random part of each patch, turned, mirrored and recoloured; float32 in 0-255, n x 3 x VIEW x VIEW."""
    n, pixels = len(patches), patches.permute(0, 3, 1, 2).float()
    zoom = ((torch.rand(n, generator=generator) * 0.75 + 0.25).sqrt() * 0.9956).clamp(max=1)
    angle = torch.randint(4, (n,), generator=generator) * math.pi / 2
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    place = (torch.rand(n, 2, generator=generator) * 2 - 1) * (1 - zoom)[:, None]
    rows = [torch.stack([cos * mirror, -sin, place[:, 0]], 1), torch.stack([sin * mirror, cos, place[:, 1]], 1)]
    field = F.affine_grid(torch.stack(rows, 1), [n, 3, VIEW, VIEW], align_corners=False)
    pixels = F.grid_sample(pixels, field, align_corners=False, padding_mode="reflection")
    pixels = pixels * (1 + 0.2 * (2 * torch.rand(n, 3, 1, 1, generator=generator) - 1))
    mean = pixels.mean((1, 2, 3), keepdim=True)
    contrast = 1 + 0.2 * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1)
    pixels = ((pixels - mean) * contrast + mean).clamp(0, 255)
    grey = torch.rand(n, 1, 1, 1, generator=generator) < 0.1
    return torch.where(grey, pixels.mean(1, keepdim=True).expand_as(pixels), pixels)


def contrasted(patches: np.ndarray, seed: int) -> hb.model.HibioModel:
    """An image tower that tells patches apart by two views of each (SimCLR)."""
    alone = hb.genes.Vocabulary(("A",), np.ones(1, int), np.ones(1, int))
    model, pixels = hb.model.HibioModel(PRESET, alone, rng=seed), torch.from_numpy(patches)
    with torch.random.fork_rng(), kept_memory("cpu"):
        torch.manual_seed(seed)
        width = model.visual.trunk.num_features
        head = nn.Sequential(
            nn.Linear(width, 256, bias=False), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, PRESET.embed_dim)
        )
        optimizer = torch.optim.AdamW(
            [*model.visual.trunk.parameters(), *head.parameters()], lr=LR, weight_decay=WEIGHT_DECAY
        )
        in_epoch = len(pixels) // BATCH_SIZE
        recipe = hb.train.Recipe(warmup=0.1, final_lr=0.01)
        steps = EPOCHS * in_epoch
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps, recipe))
        model.visual.train()
        for step in tqdm(range(steps), desc="self-supervision", unit="step", disable=not hb.settings.progress):
            epoch, at = divmod(step, in_epoch)
            order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(hash_seed(seed, epoch)))
            batch = pixels[order[at * BATCH_SIZE :][:BATCH_SIZE]]
            chance = torch.Generator().manual_seed(hash_seed(seed + 1, step))
            views = [model.normalise(view(batch, chance)) for _ in range(2)]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                one, other = (head(model.visual.trunk(each)) for each in views)
            loss = info_nce(F.normalize(one.float()), F.normalize(other.float()), torch.tensor(SCALE))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def tower(reference: AnnData, seed: int, folder: Path) -> hb.model.ImageEncoder:
    """The tower that was trained without counts on the sections, kept in a folder."""
    sections = "-".join(sorted(set(reference.obs["library_id"])))
    file = folder / "towers" / f"{sections}-seed{seed}.safetensors"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        weights = contrasted(tissue_patches(reference), seed).visual.state_dict()
        save_file({name: weight.contiguous() for name, weight in weights.items()}, file)
    return hb.model.ImageEncoder("SimCLR", PRESET, file, licence="-", source="this script")


def self_supervised(reference: AnnData, seed: int, *, folder: Path) -> hb.model.FeatureEncoder:
    """No counts at all: what patches teach by themselves."""
    encoder = tower(reference, seed, folder)
    visual = encoder.tower()
    visual.load_state_dict(load_file(encoder.weights))
    prepare = Preparation(PRESET.image_size, PRESET.mean, PRESET.std, 1.0, "bilinear")
    options: Any = {"licence": encoder.licence, "source": encoder.source, "output": "pooled features"}
    return hb.model.FeatureEncoder("SimCLR", visual.trunk, prepare, patch_size=PRESET.patch_size, **options)


def warmed_up(reference: AnnData, seed: int, *, folder: Path) -> hb.model.HibioModel:
    """The image tower of all three levels starts from self-supervision."""
    return hb.tl.pretrain(reference, image_encoder=tower(reference, seed, folder), pathways="reactome", rng=seed)


# -- choosing --------------------------------------------------------------------------------------------------------

ROWS = "rows.csv"
"""Scores of all rows so far, each with the seeds it was last asked for."""
CHOSEN: dict[str, Any] = {"image_encoder": "ResNet-10", "pathways": "reactome"}


def rows(folder: Path) -> dict[str, Any]:
    """What is compared."""
    return {
        "HiBio-ST": CHOSEN,
        "idf of all": vocabulary_of_all,
        "with A1, A2": with_reduced,
        "with A1, A2, mouse": with_mouse,
        "self-supervised": partial(self_supervised, folder=folder),
        "warmed up": partial(warmed_up, folder=folder),
    }


def choose(folder: Path, names: list[str], n_seeds: int, n_jobs: int) -> None:
    """The rows by leave-one-section-out, beside the pathologist's labels of the patient's first section."""
    every = rows(folder)
    results = hb.benchmark.run(
        "her2st",
        {name: every[name] for name in names or every},
        out=folder,
        split="slide",
        n_folds="all",
        label_key="transferred_label",
        seeds=range(n_seeds),
        n_jobs=n_jobs,
    )
    table = folder / ROWS
    before = [pd.read_csv(table)] if table.exists() else []
    others = [each[~each["model"].isin(results["model"])] for each in before]
    pd.concat([results, *others]).to_csv(table, index=False)


# -- training on all -------------------------------------------------------------------------------------------------

NAME, N_GENES, PIVOTAL = "hibiost-mini", 1000, ["IGLL5", "IFI27", "MGP"]
COLUMNS = {
    "Recall@1 %": ("retrieval", "retrieval", "", "Recall@1%"),
    "Recall@5 %": ("retrieval", "retrieval", "", "Recall@5%"),
    "Recall@10 %": ("retrieval", "retrieval", "", "Recall@10%"),
    "PCC raw, ridge": ("prediction", "ridge", "raw", "pcc"),
    "PCC raw, retrieval": ("prediction", "retrieval", "raw", "pcc"),
    "PCC normalised, ridge": ("prediction", "ridge", "normalized", "pcc"),
    "PCC normalised, retrieval": ("prediction", "retrieval", "normalized", "pcc"),
    "ARI": ("clustering", "smoothed", "", "ari"),
    "NMI": ("clustering", "smoothed", "", "nmi"),
}
"""Task, method, target and metric of the columns of the card's table."""


def evaluation(results: pd.DataFrame) -> str:
    """The scores of ``choose``, a row a model; means over sections, and their standard deviation over seeds."""
    table = hb.benchmark.summary(results)
    table = table[table["scope"] == "slide"].fillna({"target": ""})
    lines = [f"| model | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for model in table["model"].unique():
        cells = []
        for wanted in COLUMNS.values():
            found = table[(table[["task", "method", "target", "metric"]] == wanted).all(axis=1)]
            values = found.loc[found["model"] == model, ["mean", "sd"]]
            digits = 1 if wanted[0] == "retrieval" else 3
            cells += [f"{mean:.{digits}f} ± {sd:.{digits}f}" for mean, sd in values.fillna(0).to_numpy()] or ["-"]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def held_out_fit(adata: AnnData, expression: sparse.csr_matrix, folder: Path) -> Fit:
    """Ridges on the features of the models that did not see the section that is predicted (seed 0)."""
    features = {}
    for fold in hb.benchmark.folds(adata, split="slide", n_folds=None):
        known = Embedded.load(folder / "embeddings" / f"hibio-st-fold{fold.number}-seed0.npz")
        features[tuple(fold.training)] = known.features

    def fit(training: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        own = features[tuple(training)]
        ridge = fit_ridge(own[training], expression[training])
        return lambda rows: ridge.predict(own[rows])

    return fit


def predictor(adata: AnnData, model: hb.model.HibioModel, folder: Path) -> hb.model.Predictor:
    """The ridge that comes with the model; what to expect of each gene is measured on sections left out."""
    counts = inputs.counts(adata, None)
    target_sum = inputs.median_total(counts)
    genes = variable_genes(adata, N_GENES, target_sum=target_sum)
    genes += [gene for gene in PIVOTAL if gene not in genes]
    fitted = hb.tl.fit_predictor(adata, model=model, genes=genes, target="normalized", calibrate=False)
    expression = inputs.log_expression(counts, target_sum=target_sum)[:, adata.var_names.get_indexer(genes)]
    return replace(fitted, calibration=expected_pcc(adata, expression, held_out_fit(adata, expression, folder)))


def trained(adata: AnnData, folder: Path) -> hb.model.HibioModel:
    """The model on all sections; how long it took is kept beside it."""
    start, told = time.perf_counter(), folder / "minutes"
    model = hb.tl.pretrain(adata, **CHOSEN, mpp=MPP, run=folder / "run", rng=0)
    if not told.exists():
        told.write_text(f"{(time.perf_counter() - start) / 60:.0f}")
    return model


def files(sections: list[str]) -> str:
    """Name and SHA-256 of the public files of some sections, a line each."""
    entries = registry("her2st")
    parts = [f"ST-cnts/{s}.tsv" for s in sections] + [f"ST-spotfiles/{s}_" for s in sections]
    parts += [f"ST-imgs/{s[0]}/{s}/" for s in sections]
    named = [path for part in parts for path in entries if part in path]
    return "\n".join(f"- `{path}`: `{entries[path].sha256}`" for path in named)


def train(folder: Path) -> None:
    """The chosen recipe on all sections: model, predictor and card."""
    adata = hb.datasets.her2st(FULL)
    model = trained(adata, folder)
    packages = ("hibiost", "torch", "timm", "open-clip-torch", "anndata", "numpy")
    card = {
        "name": NAME,
        "licence": "bsd-3-clause",
        "data": f"{DATA}\n\n{files(FULL)}",
        "evaluation": f"{EVALUATION}\n\n{evaluation(pd.read_csv(folder / ROWS))}",
        "limitations": LIMITATIONS,
        "command": "python benchmarks/mini.py train OUT",
        "hardware": f"{torch.get_num_threads()} thread of a {cpu()}",
        "duration": f"{(folder / 'minutes').read_text()} minutes",
        "environment": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }
    with tempfile.TemporaryDirectory() as half:  # the predictor reads the weights as they are kept
        kept = hb.model.load(model.save(half, precision="float16"))
    predictor(adata, kept, folder).save(folder / NAME, precision="float16", card=card)


def cpu() -> str:
    """What Linux calls the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))


DATA = """Five sections (C2 to C6) of a HER2-positive breast tumour of one patient, measured with Spatial
Transcriptomics (100 µm spots): Andersson et al., Nature Communications 12:6012 (2021), github.com/almaan/her2st. The
data state no licence; none of them are part of these files. SHA-256 of the public files:"""
EVALUATION = """Each of the five sections was left out once, and a model of the same recipe trained on the other four.
All sections are of one patient: the numbers tell how a model carries over to another section of a patient that it
knows. Retrieval of sentences by images within the section (chance: 1, 5 and 10 %); Pearson correlation over 300 genes,
log1p of raw and of library-size-normalised counts (the training mean gives 0); K-means on the image embeddings,
smoothed, against the pathologist's labels of the patient's first section. Means over sections, ± the standard deviation
over three seeds. `HiBio-ST` is the recipe of this model; `self-supervised` its image tower trained by SimCLR on the
same sections without counts (one seed): expression is predicted from it as well as from this model. What the counts
add is retrieval, and clusters nearer to the pathologist's labels."""
LIMITATIONS = """- Trained on 910 spots of one patient and one laboratory. Other organs, stains and scanners were not
  seen.
- On two sections of another patient (A1, A2), whose public images are reduced to 3.2 µm per pixel, nothing carries
  over: Recall@10 % 10.9, normalised PCC 0.03 by a ridge fitted to the known patient (colour statistics 0.03, random
  weights 0.06), 0.06 by retrieval; ARI 0.07 (colour 0.12, random weights 0.16).
- Expression predicted on raw counts follows library size and cell density: colour statistics reach nearly as much.
- Most genes are predicted poorly, IGLL5 among them; `hb.get.predicted_genes(adata)` tells what to expect of each on
  other sections of the known patient.
- The predictor knows 1,000 genes of high variance in these sections, and the paper's IGLL5, IFI27 and MGP, on
  library-size-normalised counts."""


def another_patient(folder: Path) -> None:
    """The model on sections of a patient it has not seen, whose images are reduced; ridges are fitted to patient C."""
    model = hb.model.load("hibiost-mini")
    results = hb.benchmark.run(
        hb.datasets.her2st([*REDUCED, *FULL]),
        {"HiBio-ST": model, "random weights": hb.model.untrained(model)},
        out=folder / "patients",
        n_folds="all",
        label_key="label",
        seeds=[0],
        tasks=["clustering", "prediction", "retrieval"],
    )
    print(evaluation(results[results["slide"].isin(REDUCED)]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    choosing = commands.add_parser("choose")
    choosing.add_argument("out", type=Path)
    choosing.add_argument("rows", nargs="*")
    choosing.add_argument("--seeds", type=int, default=3)
    choosing.add_argument("--jobs", type=int, default=1)
    for name in ("train", "patients"):
        commands.add_parser(name).add_argument("out", type=Path)
    given = parser.parse_args()
    if given.command == "choose":
        choose(given.out, given.rows, given.seeds, given.jobs)
    else:
        {"train": train, "patients": another_patient}[given.command](given.out)
