"""Time and memory of indexing a corpus of many slides in HEST's layout, and of fitting its vocabulary.

``python benchmarks/corpus.py FOLDER [--slides 1000] [--spots 1600] [--genes 2000] [--images 50] [--vocabulary]`` makes
the corpus in ``FOLDER`` where it is not there, and surveys it in a fresh process. Only ``--distinct`` (4) sections are
synthesised; each slide is a copy of one of them, with coordinates shifted (by parts of a pixel) and metadata of its
own. ``--images`` of them have a full-resolution TIFF (by links to the files of the sections), the others only the image
in their ``.h5ad``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py

import hibiost as hb

ORGANS = ("Breast", "Kidney", "Brain", "Lung", "Liver")
PITCH_PX = 24


def make(folder: Path, arguments: argparse.Namespace) -> None:
    """Write the sections, then the slides."""
    sections = folder / "sections"
    for number in range(arguments.distinct):
        if (sections / str(number) / "st" / "tissue_0.h5ad").exists():
            continue
        section = hb.datasets.tissue(
            arguments.spots,
            n_genes=arguments.genes,
            pitch_px=PITCH_PX,
            image_path=sections / str(number) / "images",
            rng=number,
        )
        hb.io.write_hest(section, sections / str(number))
    for name in ("st", "metadata", "wsis"):
        (folder / "corpus" / name).mkdir(parents=True, exist_ok=True)
    for number in range(arguments.slides):
        copy_slide(
            sections / str(number % arguments.distinct), folder / "corpus", number, image=number < arguments.images
        )


def copy_slide(section: Path, corpus: Path, number: int, *, image: bool) -> None:
    """A slide of its own name, place and metadata."""
    name = f"S{number:04d}"
    target = corpus / "st" / f"{name}.h5ad"
    if target.exists():
        return
    metadata = json.loads((section / "metadata" / "tissue_0.json").read_text())
    path = metadata.pop("source_image_path")
    metadata |= {"id": name, "species": "Homo sapiens", "organ": ORGANS[number % 5], "patient": f"P{number // 4}"}
    metadata |= {"st_technology": "Visium", "license": "synthetic"}
    (corpus / "metadata" / f"{name}.json").write_text(json.dumps(metadata))
    if image and not (corpus / "wsis" / f"{name}.tif").exists():
        (corpus / "wsis" / f"{name}.tif").symlink_to(path)
    part = target.with_suffix(".part")
    shutil.copyfile(section / "st" / "tissue_0.h5ad", part)
    with h5py.File(part, "r+") as file:
        file["obsm/spatial"][:] += number / 1e4
    part.rename(target)


def measure(folder: Path, *, vocabulary: bool) -> None:
    """Survey the corpus; print what it took, as Markdown."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    corpus = hb.io.Corpus(folder)
    report("index", started, before)
    problems = corpus.problems
    print(f"{corpus!r}; {len(problems)} problems, {int(problems['blocking'].sum())} of them blocking")
    if vocabulary:
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        print(corpus.vocabulary())
        report("vocabulary", started, before)


def report(what: str, started: float, before: resource.struct_rusage) -> None:
    """Wall time, processor time and peak memory."""
    now = resource.getrusage(resource.RUSAGE_SELF)
    busy = now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"| {what} | {time.perf_counter() - started:.1f} s | {busy:.1f} s CPU | {now.ru_maxrss / 2**20:.2f} GiB peak |"
    )


def main() -> None:
    """Make the corpus, and measure in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, default in (("slides", 1000), ("spots", 1600), ("genes", 2000), ("images", 50), ("distinct", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--vocabulary", action="store_true")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    hb.settings.progress = False
    if arguments.measure:
        measure(arguments.folder / "corpus", vocabulary=arguments.vocabulary)
        return
    make(arguments.folder, arguments)
    subprocess.run([sys.executable, *sys.argv, "--measure"], check=True, env=os.environ)


if __name__ == "__main__":
    main()
