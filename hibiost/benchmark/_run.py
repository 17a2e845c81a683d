"""The paper's protocols on any slides, resumed where they were interrupted."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from .. import inputs, keys
from .._files import make_folder, replacing
from ..errors import DataError, WeightsUnavailableError, nearest
from ..io import Corpus
from ..settings import logger, settings
from ..tl._resolve import resolve_device
from ..train import Run
from ._contestants import Contestant, Embedded, Setting, Spec, contestants, slug
from ._data import slides_of
from ._paper import recipe
from ._report import write_report
from ._splits import Fold, folds
from ._tables import NO_WEIGHTS
from ._tasks import TASKS, Case, Protocol, Target

if TYPE_CHECKING:
    from anndata import AnnData

COLUMNS = (
    "task", "model", "method", "target", "fraction", "metric", "slide", "fold", "seed", "value", "note",
)  # fmt: skip
CHANCE = "chance"


def run(
    data: AnnData | Corpus | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    models: Spec | Sequence[str] | Mapping[str, Spec],
    *,
    out: str | os.PathLike[str],
    dataset: str | None = None,
    tasks: Sequence[str] | None = None,
    split: Literal["patient", "slide"] = "patient",
    n_folds: int | Literal["all"] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    n_genes: int = 300,
    genes: Sequence[str] | None = None,
    pivotal: Sequence[str] = ("IGLL5", "IFI27", "MGP"),
    targets: Sequence[Target] = ("raw", "normalized"),
    fractions: Sequence[float] = (0.1, 0.25, 0.5),
    top_k: int = 100,
    label_key: str | None = None,
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
    patient_key: str = keys.PATIENT,
    n_jobs: int = 1,
    device: str = "auto",
) -> pd.DataFrame:
    """Run the protocols of HiBio-ST's tables (section 4, C.2) by cross-validation, and print its tables.

    ``clustering``: K-means of each held-out slide's image features, raw and smoothed, against labels (Tables 1, 6, 7).
    ``prediction``: expression of the most variable genes by ridge on the features and by retrieval (Tables 2, 4, 8).
    ``few-shot``: the ridge from a share of the training spots (Figure 2). ``retrieval``: Recall@p% of images among the
    sentences of their slide (Tables 3, 5, 9). Genes, library sizes and penalties are learned on training slides alone.
    Chance, the training mean, a ridge on colour statistics and, for presets, random weights stand beside the models.

    Every embedding and every task of a model, fold and seed is a file in ``out``; what is there is not computed again,
    so that an interrupted run, or one with more models, tasks or seeds, goes on. Memory holds the counts of all slides
    (sparse), and one decoded image for each process.

    Parameters
    ----------
    data
        Slides with images and counts: AnnData, ``"her2st"``, a :class:`hibiost.io.Corpus`, or what makes one: a folder
        in HEST-1k's layout, or a list of files.
    models
        Names, or a dict of names and what they stand for: a preset (``"ResNet-10"``) or options of
        :func:`hibiost.tl.pretrain` (a dict), both trained on the training slides of each fold; a function of these
        slides (an AnnData) and a seed that returns a model or an encoder; a model, or what :func:`hibiost.model.load`
        takes; or an image encoder, see :func:`hibiost.model.feature_encoder`.
    out
        Folder of embeddings, results, tables and figures.
    dataset
        One of :func:`hibiost.benchmark.recipes`: its slides are taken from ``data``, with its folds and labels, and the
        paper's own numbers stand beside the results.
    tasks
        Of the four; by default all, and clustering where there are labels.
    split
        ``"patient"``: the slides of a patient stay together. ``"slide"``: they need not, as in the paper.
    n_folds
        Folds of the cross-validation, by default the paper's: 4, or what the ``dataset`` says. ``"all"`` holds out one
        patient (or slide) at a time.
    seeds
        Of training, K-means and few-shot draws.
    n_genes, genes
        Genes of highest mean per-slide variance in the training slides; or genes by name.
    pivotal
        Genes whose own correlation is reported.
    targets
        ``"raw"``: log1p of counts, the paper's; it follows library size. ``"normalized"``: scaled to the median total
        of the training spots first.
    fractions
        Shares of the training spots of each slide, for ``few-shot``.
    top_k
        Spots averaged by retrieval.
    label_key
        Column of ``obs`` that clusters are compared with.
    layer
        Layer that holds raw counts; ``X`` where not given.
    library_key, patient_key
        Columns of ``obs`` that tell slides and patients.
    n_jobs
        Processes; each takes models, folds and seeds of its own. The result does not depend on it.
    device
        ``"cpu"``, ``"cuda"``, ``"mps"``, or ``"auto"`` for a GPU where there is one.

    Returns
    -------
    Tidy scores with the columns ``task``, ``model``, ``method``, ``target``, ``fraction``, ``metric``, ``slide`` (or
    ``"pooled"``: all held-out spots of a fold), ``fold``, ``seed``, ``value`` and ``note``: a model whose weights
    cannot be had has no value and says so; one that was trained on a held-out slide says that. Written to ``out`` are
    ``results.csv``; ``report.md``, ``report.tex`` and ``report.html``, see :func:`hibiost.benchmark.tables`;
    ``comparisons.csv``, see :func:`hibiost.benchmark.compare`; and figures, see :func:`hibiost.pl.benchmark`.

    Raises
    ------
    DataError
        Unknown tasks or models, fewer patients than folds, no labels to cluster against, or no gene in common.
    RunError
        ``out`` holds results of other data or of another protocol.

    Examples
    --------
    >>> import tempfile
    >>> import hibiost as hb
    >>> slides = hb.datasets.tissue(40, n_slides=2)
    >>> preset = {"image_encoder": "ResNet-10", "epochs": 1, "recipe": {"batch_size": 32, "lambda3": 0}}
    >>> with tempfile.TemporaryDirectory() as out:
    ...     options = {"n_folds": 2, "seeds": [0], "n_genes": 20, "tasks": ["retrieval"]}
    ...     results = hb.benchmark.run(slides, {"HiBio-ST": preset}, out=out, **options)
    >>> sorted(results["model"].unique())
    ['HiBio-ST', 'chance']
    """
    known = None if dataset is None else recipe(dataset)
    adata = slides_of(data, known, layer=layer, library_key=library_key)
    label_key = label_key or (known.label if known else None)
    tasks = _tasks(tasks, adata, label_key)
    protocol = Protocol(
        n_genes, None if genes is None else tuple(genes), tuple(pivotal), tuple(targets), tuple(fractions), top_k,
        label_key, layer, library_key,
    )  # fmt: skip
    inputs.counts(adata, layer)
    number = n_folds or ((known.folds or "all") if known else 4)
    parts = folds(
        adata,
        split=split,
        n_folds=None if number == "all" else number,
        library_key=library_key,
        patient_key=patient_key,
    )
    rows = contestants(models)
    folder = Path(out).expanduser()
    setting = Setting(adata, layer, library_key, resolve_device(device), folder)
    _check_same(folder, adata, protocol, parts, rows)
    cells = [Cell(row, fold, seed) for row, fold, seed in product([*rows, None], parts, map(int, seeds))]
    absent = _embed(setting, cells, n_jobs)
    _score(setting, protocol, cells, tasks, absent, n_jobs)
    scores = [row for task in tasks for cell in cells for row in _read(folder, cell, task, absent)]
    results = pd.DataFrame(scores, columns=list(COLUMNS))
    about = [_about(adata, protocol, parts, split, seeds)]
    write_report(results, folder, about=about, paper=None if known is None else known.title)
    return results


_APART = {
    "patient": "Slides of a patient stay together.",
    "slide": (
        "Slides of one patient may be on both sides, as in the paper: scores tell how a model carries over to another "
        "section of a patient it knows."
    ),
}


def _about(adata: AnnData, protocol: Protocol, parts: Sequence[Fold], split: str, seeds: Sequence[int]) -> str:
    slides = inputs.libraries(adata, protocol.library_key)
    names = ", ".join(slides) if len(slides) <= 12 else f"{len(slides)} slides"
    genes = f"{protocol.n_genes} genes of highest mean per-slide variance in the training slides"
    genes = f"{len(protocol.genes)} named genes" if protocol.genes else genes
    return (
        f"{adata.n_obs} spots of {names}; {len(parts)} folds by {split}. {_APART[split]} Seeds "
        f"{', '.join(map(str, seeds))}. Expression of {genes}: log1p of raw counts, and of counts scaled to the median "
        "total. Means over slides (pooled: over all held-out spots of a fold), ± the standard deviation over seeds."
    )


@dataclass(frozen=True)
class Cell:
    """A contestant (or chance) on a fold, with a seed."""

    row: Contestant | None
    fold: Fold
    seed: int

    @property
    def name(self) -> str:
        return CHANCE if self.row is None else self.row.name

    def embeddings(self, folder: Path) -> Path | None:
        """Where its embeddings are."""
        return None if self.row is None else folder / "embeddings" / f"{self.row.key(self.fold, self.seed)}.npz"

    def scores(self, folder: Path, task: str) -> Path:
        """Where its scores are."""
        return folder / "cells" / f"{slug(self.name)}-fold{self.fold.number}-seed{self.seed}-{task}.csv"


def _tasks(tasks: Sequence[str] | None, adata: AnnData, label_key: str | None) -> list[str]:
    if tasks is None:
        tasks = [task for task in TASKS if task != "clustering" or label_key is not None]
    for task in tasks:
        if task not in TASKS:
            raise DataError(f"no task {task!r}; expected some of {list(TASKS)}.{nearest(task, TASKS)}")
    if "clustering" in tasks and label_key not in adata.obs:
        raise DataError(
            f"clustering is compared with labels, and obs holds no {label_key!r} (there: {list(adata.obs)}); name the "
            "column with label_key=, or leave 'clustering' out of tasks=."
        )
    return [task for task in TASKS if task in tasks]


def _check_same(
    folder: Path, adata: AnnData, protocol: Protocol, parts: Sequence[Fold], rows: Iterable[Contestant]
) -> None:
    """Refuse to mix results of other data, of another protocol, or of other models under the same name."""
    known = Run(folder)
    counts = inputs.counts(adata, protocol.layer)
    data = {
        slide: {"n_spots": len(spots), "crc": zlib.crc32(counts[spots].data.tobytes())}
        for slide, spots in inputs.libraries(adata, protocol.library_key).items()
    }
    mend = "Give the same, or name another folder with out=."
    known.check("data", data, write=True, mend=mend)
    known.check("protocol", asdict(protocol), write=True, mend=mend)
    held_out = {str(part.number): zlib.crc32(part.held_out.tobytes()) for part in parts}
    known.check("folds", held_out, write=True, mend=mend)
    for row in rows:
        known.check(f"model {row.name}", {"is": row.description()}, write=True, mend="Give the model another name.")


def _embed(setting: Setting, cells: Sequence[Cell], n_jobs: int) -> set[str]:
    """Make the embeddings that are missing; names of the models whose weights cannot be had."""
    make_folder(setting.out / "embeddings")
    missing = {
        path: (setting, cell.row, cell.fold, cell.seed, path)
        for cell in cells
        if (path := cell.embeddings(setting.out)) and not path.exists()
    }
    done = _parallel(_embed_one, list(missing.values()), "embed", n_jobs)
    return {name for name in done if name is not None}


def _embed_one(setting: Setting, row: Contestant, fold: Fold, seed: int, path: Path) -> str | None:
    try:
        embedded = row.embedded(setting, fold, seed)
    except WeightsUnavailableError as error:
        logger.warning("%s: %s", row.name, error)
        return row.name
    embedded.save(path)
    return None


def _score(
    setting: Setting, protocol: Protocol, cells: Sequence[Cell], tasks: Sequence[str], absent: set[str], n_jobs: int
) -> None:
    """Solve the tasks that are missing."""
    make_folder(setting.out / "cells")
    missing = [
        (setting, protocol, cell, todo)
        for cell in cells
        if cell.name not in absent and (todo := [task for task in tasks if not cell.scores(setting.out, task).exists()])
    ]
    _parallel(_score_one, missing, "score", n_jobs)


def _score_one(setting: Setting, protocol: Protocol, cell: Cell, tasks: Sequence[str]) -> None:
    path = cell.embeddings(setting.out)
    embedded = None if path is None else Embedded.load(path)
    known, own = (None if embedded is None else embedded.of(rows) for rows in (cell.fold.training, cell.fold.held_out))
    reference, adata = (setting.adata[rows].copy() for rows in (cell.fold.training, cell.fold.held_out))
    case = Case(reference, adata, known, own, protocol, cell.seed)
    seen = () if embedded is None else embedded.seen
    for task in tasks:
        table = pd.DataFrame(list(TASKS[task](case)), columns=[c for c in COLUMNS if c not in KEYS])
        table["note"] = np.where(table["slide"].isin(seen), "trained on this slide", "")
        with replacing(cell.scores(setting.out, task)) as part:
            table.to_csv(part, index=False)


KEYS = ("task", "model", "fold", "seed")


def _read(folder: Path, cell: Cell, task: str, absent: set[str]) -> list[dict[str, Any]]:
    common = {"task": task, "model": cell.name, "fold": cell.fold.number, "seed": cell.seed}
    if cell.name in absent:
        return [{**common, **dict.fromkeys(("method", "target", "metric", "slide"), ""), "note": NO_WEIGHTS}]
    missing = {"value": "", "fraction": ""}
    table = pd.read_csv(cell.scores(folder, task), keep_default_na=False, na_values=missing, dtype={"slide": str})
    return [{**common, **row} for row in table.to_dict("records")]


def _parallel(function: Any, arguments: Sequence[tuple[Any, ...]], name: str, n_jobs: int) -> list[Any]:
    """Results in the order of the arguments."""
    from joblib import Parallel, delayed
    from tqdm.auto import tqdm

    asked = vars(settings) | ({} if n_jobs == 1 else {"verbosity": "warning", "progress": False})
    calls = (delayed(_with_settings)(asked, function, each) for each in arguments)
    jobs = Parallel(n_jobs=n_jobs, return_as="generator")(calls)
    return list(tqdm(jobs, total=len(arguments), desc=name, unit="cell", disable=not settings.progress))


def _with_settings(asked: Mapping[str, Any], function: Any, arguments: tuple[Any, ...]) -> Any:
    """In another process settings are those of the environment."""
    with settings.override(**asked):
        return function(*arguments)
