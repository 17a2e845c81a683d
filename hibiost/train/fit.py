"""Level 1 of the objective, run by Lightning's Trainer."""

from __future__ import annotations

import logging
import math
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..model import HibioModel
from ..model.losses import info_nce
from .data import EpochSampler, Pairs, augment, hash_seed
from .recipe import Recipe


class SpotAlignment(lightning.LightningModule):
    """Aligns a spot's patch with its gene sentence (HiBio-ST, level 1, eqs 9 and 10).

    Parameters
    ----------
    model
        The towers to train.
    recipe
        Training parameters.
    seed
        Draws of the augmentation follow from the seed and the step alone.
    """

    def __init__(self, model: HibioModel, recipe: Recipe, seed: int) -> None:
        super().__init__()
        self.model, self.recipe, self.seed = model, recipe, seed
        self.history: list[dict[str, float]] = []
        self._losses: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        pixels, tokens = batch
        generator = torch.Generator().manual_seed(hash_seed(self.seed, self.global_step))
        pixels = augment(pixels, self.model.config.image_size, self.recipe.colour_jitter, generator)
        loss = info_nce(self.model.encode_image(pixels), self.model.encode_genes(tokens), self.model.scale)
        self._losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        """Keep the epoch's mean loss."""
        loss = torch.stack(self._losses).mean().item()
        self._losses.clear()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} in epoch {self.current_epoch + 1}; lower the recipe's lr.")
        self.history.append({"epoch": self.current_epoch + 1, "loss": loss, "scale": self.model.scale.item()})

    def configure_optimizers(self) -> Any:
        """AdamW, linear warm-up, then a cosine."""
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, self.recipe.weight_decay), lr=self.recipe.lr, betas=self.recipe.betas
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps, self.recipe))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Learning rate at a step as a share of the highest."""
    warm = max(1, round(recipe.warmup * steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return recipe.final_lr + (1 - recipe.final_lr) * (1 + math.cos(math.pi * done)) / 2


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight matrices and embeddings with decay; biases, norms, positions and the logit scale without."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        without = parameter.ndim < 2 or name.endswith(("positional_embedding", "pos_embed", "cls_token"))
        (plain if without else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def lightning_precision(precision: str, accelerator: str) -> Any:
    """Lightning's name of a recipe's precision on an accelerator."""
    if precision == "auto":
        on_gpu = accelerator == "cuda" and torch.cuda.is_bf16_supported()
        on_cpu = accelerator == "cpu" and torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if on_gpu or on_cpu else "32"
    return {"bf16": "bf16-mixed", "32": "32-true"}[precision]


class _EpochBar(lightning.Callback):
    def __init__(self, *, disable: bool) -> None:
        from tqdm.auto import tqdm

        self._tqdm, self._disable = tqdm, disable

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        steps = int(trainer.estimated_stepping_batches)
        self._chance = math.log(pl_module.recipe.batch_size)
        self._bar = self._tqdm(total=steps, desc="pretrain", unit="step", disable=self._disable)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        self._bar.set_postfix_str(
            f"epoch {trainer.current_epoch + 1}, loss {pl_module._losses[-1].item():.2f} (chance {self._chance:.2f})",
            refresh=False,
        )
        self._bar.update()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._bar.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if hasattr(self, "_bar"):
            self._bar.close()


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def fit(
    model: HibioModel,
    pairs: Pairs,
    *,
    recipe: Recipe,
    seed: int,
    n_workers: int = 0,
    accelerator: str = "cpu",
    progress: bool = True,
    callbacks: Sequence[lightning.Callback] = (),
) -> list[dict[str, float]]:
    """Train a model in place on pairs of patches and token rows.

    Parameters
    ----------
    model
        The model, changed in place.
    pairs
        uint8 patches (3 x side x side) and int token rows.
    recipe
        Training parameters.
    seed
        The same seed gives the same weights, whatever ``n_workers``.
    n_workers
        Processes that read patches.
    accelerator
        ``"cpu"``, ``"cuda"`` or ``"mps"``.
    progress
        Show a progress bar.
    callbacks
        Further Lightning callbacks.

    Returns
    -------
    One entry an epoch: ``epoch``, ``loss`` and the logit ``scale``.
    """
    loader = DataLoader(
        pairs,
        batch_size=recipe.batch_size,
        sampler=EpochSampler(len(pairs), seed),
        drop_last=True,
        num_workers=n_workers,
        persistent_workers=n_workers > 0,
        pin_memory=accelerator == "cuda",
        generator=torch.Generator().manual_seed(seed),
    )
    task = SpotAlignment(model, recipe, seed)
    devices = [torch.cuda.current_device()] if accelerator == "cuda" else []
    with _quiet_lightning(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        trainer = lightning.Trainer(
            max_epochs=recipe.epochs,
            accelerator=accelerator,
            devices=1,
            precision=lightning_precision(recipe.precision, accelerator),
            callbacks=[_EpochBar(disable=not progress), *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        _run(trainer, task, loader)
    return task.history


def _run(trainer: lightning.Trainer, task: SpotAlignment, loader: DataLoader[tuple[Tensor, Tensor]]) -> None:
    """Fit; an interrupt stays one, where Lightning would exit and ignore every later one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(task, loader)
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
