"""``hibiost bench``: what :func:`hibiost.benchmark.run` does, from a shell."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hibiost as hb

from ..errors import DataError

HELP = "compare models by the paper's protocols: tables, figures, floors"
DESCRIPTION = """
What hibiost.benchmark.run does: zero-shot clustering, expression prediction, few-shot prediction and retrieval by
cross-validation, beside chance, training mean, colour and random features. The same command goes on where it was
stopped.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``hibiost bench``."""
    several: dict[str, Any] = {"type": lambda text: text.split(","), "metavar": "A,B"}
    parser.add_argument("--data", nargs="+", required=True, help="'her2st', a folder in HEST-1k's layout, or files")
    parser.add_argument(
        "--models",
        default=["ResNet-10"],
        help="presets (trained on each fold), models (names, folders), encoders; or a .toml file with a table of "
        "options of hibiost.tl.pretrain for each model (default: ResNet-10)",
        **several,
    )
    parser.add_argument("--out", type=Path, default=Path("hibiost-bench"), help="folder for the results (%(default)s)")
    parser.add_argument(
        "--dataset", help="a dataset of the paper: its slides, folds and labels, and its numbers beside"
    )
    parser.add_argument(
        "--tasks", help="clustering,prediction,few-shot,retrieval (default: all that can be)", **several
    )
    parser.add_argument(
        "--split", choices=("patient", "slide"), default="patient", help="what stays together (patient)"
    )
    parser.add_argument("--folds", help="number of folds, or 'all' for one patient or slide each (the paper's)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (%(default)s)")
    parser.add_argument("--genes", type=int, default=300, help="genes of highest variance (%(default)s)")
    parser.add_argument("--labels", help="column of obs that clusters are compared with")
    parser.add_argument("--jobs", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (%(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Run the benchmark and print its tables."""
    import matplotlib as mpl

    mpl.use("Agg")
    data = arguments.data[0] if len(arguments.data) == 1 else arguments.data
    hb.benchmark.run(
        data,
        _models(arguments.models),
        out=arguments.out,
        dataset=arguments.dataset,
        tasks=arguments.tasks,
        split=arguments.split,
        n_folds=_folds(arguments.folds),
        seeds=range(arguments.seeds),
        n_genes=arguments.genes,
        label_key=arguments.labels,
        n_jobs=arguments.jobs,
        device=arguments.device,
    )
    print((arguments.out / "report.md").read_text(encoding="utf-8"))
    print(f"Everything is in {arguments.out.resolve()}.")


def _models(names: Sequence[str]) -> Any:
    if len(names) != 1 or not names[0].endswith(".toml"):
        return names
    try:
        return tomllib.loads(Path(names[0]).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"no models at {names[0]} ({error}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{names[0]} is no TOML ({error}); expected a table for each model: [name].") from error


def _folds(text: str | None) -> Any:
    if text is None or text == "all":
        return text
    if not text.isdecimal():
        raise DataError(f"--folds is {text!r}; expected a number or 'all'.")
    return int(text)
