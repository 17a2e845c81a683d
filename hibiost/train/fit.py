"""Training by Lightning's Trainer: on one device, or on those of all processes that torchrun or Slurm started."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from .._ranks import Ranks, current
from ..model import HibioModel
from .cpu import kept_memory
from .data import Batch, Pairs, Shares
from .engine import Engine
from .pathways import PathwayAnchors
from .ranks import shared_batch_norm
from .recipe import Recipe
from .regions import Regions
from .run import Run, SafeCheckpoints
from .task import Alignment
from .watch import Keeper, Reporter

GPU_WORKERS = 4


def fit(
    model: HibioModel,
    pairs: Pairs,
    *,
    recipe: Recipe,
    seed: int,
    pathways: PathwayAnchors | None = None,
    regions: Regions | None = None,
    validation: tuple[Pairs, np.ndarray] | None = None,
    engine: Engine = Engine(),  # noqa: B008 - frozen
    run: Run | None = None,
    accelerator: str = "cpu",
    progress: bool = True,
    callbacks: Sequence[lightning.Callback] = (),
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Train a model in place on pairs of patches and token rows.

    Where processes of torchrun or Slurm have joined, each embeds its share of every batch, and the losses are those of
    the whole batch.

    Parameters
    ----------
    model
        The model, changed in place.
    pairs
        uint8 patches and int token rows.
    recipe
        Training parameters.
    seed
        The same seed gives the same weights, whatever the ``engine``, and whether or not training was interrupted.
    pathways
        Overlaps of the spots and the head that learns from them; without, level two is left out.
    regions
        Slides and places of the spots, renewed here; without, level three is left out.
    validation
        Spots of other slides, and the slide of each (int): Recall@p% is measured on them after each epoch.
    engine
        How the machine is used.
    run
        Where checkpoints and metrics go; a checkpoint that is there is gone on with.
    accelerator
        ``"cpu"``, ``"cuda"`` or ``"mps"``.
    progress
        Show a progress bar.
    callbacks
        Further Lightning callbacks.

    Returns
    -------
    One entry an epoch: means of ``loss``, ``spot``, ``pathway``, ``region`` and what belongs to them, the logit
    ``scale``, and ``recall_1``, ``recall_5`` and ``recall_10`` (%) of the validation; and one entry a renewal of the
    regions.

    Raises
    ------
    RunError
        The loss or the weights are no longer finite, or a checkpoint cannot be written or read.

    Examples
    --------
    >>> import numpy as np, hibiost as hb
    >>> vocabulary = hb.genes.Vocabulary(("ERBB2", "MGP"), np.array([1, 2]), np.array([3, 3]))
    >>> model = hb.model.HibioModel(hb.model.ModelConfig.preset("ResNet-10"), vocabulary)
    >>> tokens = model.tokenizer(np.array([[0, 1], [1, -1], [0, -1], [1, 0]]))
    >>> pairs = hb.train.Pairs(np.zeros((4, 112, 112, 3), dtype=np.uint8), tokens)
    >>> recipe = hb.train.Recipe(epochs=1, batch_size=4, shift=0)
    >>> history, _ = hb.train.fit(model, pairs, recipe=recipe, seed=0, progress=False)
    >>> [entry["epoch"] for entry in history]
    [1]
    """
    ranks = current()
    task = Alignment(
        model,
        pairs,
        recipe,
        seed,
        pathways=pathways,
        regions=regions,
        validation=validation,
        ranks=ranks,
        micro_batch=engine.micro_batch,
    )
    beside: list[lightning.Callback] = [Reporter(engine, ranks, run, progress=progress)]
    if run is not None:
        beside.append(Keeper(run, engine.checkpoint_minutes, ranks))
    devices = [torch.cuda.current_device()] if accelerator == "cuda" else []
    with (
        _quiet_lightning(),
        as_asked(model, engine),
        kept_memory(accelerator),
        shared_batch_norm(model, ranks),
        torch.random.fork_rng(devices=devices),
    ):
        torch.manual_seed(seed)
        trainer = lightning.Trainer(
            max_epochs=recipe.epochs,
            accelerator=accelerator,
            devices=ranks.local_size,
            num_nodes=ranks.n_nodes,
            strategy=_strategy(ranks),
            precision=lightning_precision(recipe.precision, accelerator),
            callbacks=[*beside, *callbacks],
            plugins=[SafeCheckpoints()],
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        _run(trainer, task, _loader(task, engine, accelerator), run)
    return task.history, task.renewals


def _strategy(ranks: Ranks) -> Any:
    if ranks.size == 1:
        return "auto"
    return DDPStrategy(gradient_as_bucket_view=True)


class _Loader(DataLoader[Batch]):
    """Its place follows from the step, see :attr:`Batches.first`; so there is nothing to keep."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _loader(task: Alignment, engine: Engine, accelerator: str) -> _Loader:
    on_gpu = accelerator == "cuda"
    n_workers = engine.n_workers if engine.n_workers is not None else GPU_WORKERS * on_gpu
    return _Loader(
        Shares(task.pairs, task.ranks.rank, task.ranks.size),
        batch_size=None,
        sampler=task.batches,
        collate_fn=_as_it_is,
        num_workers=n_workers,
        persistent_workers=n_workers > 0,
        pin_memory=on_gpu,
        generator=torch.Generator().manual_seed(task.seed),
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def lightning_precision(precision: str, accelerator: str) -> Any:
    """Lightning's name of a recipe's precision on an accelerator."""
    if precision == "auto":
        on_gpu = accelerator == "cuda" and torch.cuda.is_bf16_supported()
        on_cpu = accelerator == "cpu" and torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if on_gpu or on_cpu else "32"
    return {"bf16": "bf16-mixed", "32": "32-true"}[precision]


@contextmanager
def as_asked(model: HibioModel, engine: Engine) -> Iterator[None]:
    """Towers compiled and checkpointed as the engine says, for the time of training."""
    towers: list[Any] = [model.visual, model.text]
    for tower in towers:
        if engine.gradient_checkpointing:
            tower.set_grad_checkpointing(True)
        if engine.compile:
            tower.compile()
    try:
        yield
    finally:
        for tower in towers:
            if engine.gradient_checkpointing:
                tower.set_grad_checkpointing(False)
            tower._compiled_call_impl = None


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # a frozen tower
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _run(trainer: lightning.Trainer, task: Alignment, loader: DataLoader[Any], run: Run | None) -> None:
    """Fit, from a checkpoint where there is one.

    An interrupt stays one, where Lightning would exit and ignore every later one.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(task, loader, ckpt_path=run.checkpoint if run is not None and run.checkpoint.exists() else None)
    except SystemExit as exit_:
        if not (trainer.interrupted and exit_.code == 1):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
