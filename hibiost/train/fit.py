"""The objective (HiBio-ST, eq 14), run by Lightning's Trainer."""

from __future__ import annotations

import logging
import math
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..model import HibioModel
from ..model.losses import info_nce, region_alignment
from ..settings import logger
from .data import EpochSampler, Pairs, augment, hash_seed, region_order
from .groups import parameter_groups
from .pathways import PathwayAnchors
from .recipe import Recipe
from .regions import Regions, joint_embeddings

SLIDES_PER_BATCH = 4
"""About as many slides meet in a batch once there are regions."""


class Alignment(lightning.LightningModule):
    """The objective on three levels: spots, pathways, regions (HiBio-ST, eq 14).

    Parameters
    ----------
    model
        The towers to train.
    pairs
        The training spots.
    recipe
        Training parameters.
    seed
        Draws of the augmentation and of the negatives follow from the seed and the step alone.
    pathways
        Level two; ``None`` leaves it out.
    regions
        Level three; ``None`` leaves it out.
    """

    def __init__(
        self,
        model: HibioModel,
        pairs: Pairs,
        recipe: Recipe,
        seed: int,
        pathways: PathwayAnchors | None = None,
        regions: Regions | None = None,
    ) -> None:
        super().__init__()
        self.model, self.pairs, self.recipe, self.seed = model, pairs, recipe, seed
        self.pathways, self.regions = pathways, regions
        self.sampler = EpochSampler(len(pairs), seed)
        self.history: list[dict[str, float]] = []
        self.renewals: list[dict[str, float]] = []
        self._steps: list[dict[str, Tensor]] = []
        model.freeze_image(recipe.freeze_image)
        model.train()

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        pixels, tokens, spots = batch
        pixels = augment(pixels, self.model.config.image_size, self.recipe.colour_jitter, self._generator())
        image, gene = self.model.encode_image(pixels), self.model.encode_genes(tokens)
        with torch.autocast(image.device.type, enabled=False):
            terms = self._terms(image, gene, spots)
        loss = terms["spot"]
        for level, weight in (("pathway", self.recipe.lambda2), ("region", self.recipe.lambda3)):
            if level in terms:
                loss = loss + weight * terms[level]
        self._steps.append({"loss": loss.detach(), **{name: value.detach() for name, value in terms.items()}})
        return loss

    def _terms(self, image: Tensor, gene: Tensor, spots: Tensor) -> dict[str, Tensor]:
        """Each level's loss, and what tells how to read it."""
        terms = {"spot": info_nce(image, gene, self.model.scale)}
        if self.pathways is not None:
            embeddings = self.model.gene_token_embeddings
            terms["pathway"], share = self.pathways(image, spots, embeddings, self._generator(negatives=True))
            terms["with_pathway"] = torch.tensor(share)
        if self.regions is not None and self.renewals:
            ids = torch.from_numpy(self.regions.ids[spots.cpu().numpy()]).to(spots.device)
            terms["region"], n_regions = region_alignment(image, gene, ids, self.model.scale)
            terms["region_chance"] = torch.tensor(math.log(max(1, n_regions)))
        return terms

    def _generator(self, *, negatives: bool = False) -> torch.Generator:
        step = hash_seed(self.seed, self.global_step)
        return torch.Generator().manual_seed(hash_seed(step, 1) if negatives else step)

    def on_train_epoch_start(self) -> None:
        """Renew the regions when it is time, before the epoch's batches are drawn."""
        since = self.current_epoch - self.recipe.region_start
        if self.regions is None or since < 0 or since % self.recipe.region_every:
            return
        embeddings = joint_embeddings(self.model, self.pairs, self.recipe.batch_size)
        self.renewals.append(self.regions.renew(embeddings, self.current_epoch))
        _log(
            "after epoch {epoch}: {n_regions} regions; {coherence:.0%} of a spot's nearest spots are in its region",
            self.renewals[-1],
        )
        run = max(2, self.recipe.batch_size // SLIDES_PER_BATCH)
        self.sampler.order = partial(region_order, self.regions.slide, self.regions.ids.copy(), run)

    def on_train_epoch_end(self) -> None:
        """Keep the epoch's mean of every term."""
        means = {name: torch.stack([step[name] for step in self._steps]).mean().item() for name in self._steps[0]}
        self._steps.clear()
        if not math.isfinite(means["loss"]):
            raise FloatingPointError(
                f"the loss is {means['loss']} in epoch {self.current_epoch + 1}; lower the recipe's lr."
            )
        self.history.append({"epoch": self.current_epoch + 1, **means, "scale": self.model.scale.item()})
        chance = math.log(self.recipe.batch_size)
        text = f"epoch {{epoch}}/{self.recipe.epochs}: loss {{loss:.3f}}; spot {{spot:.3f}} (chance {chance:.3f})"
        if "pathway" in means:
            text += ", pathway {pathway:.4f} ({with_pathway:.0%} of the spots have one)"
        if "region" in means:
            text += ", region {region:.3f} (chance {region_chance:.3f})"
        _log(text, self.history[-1])

    def configure_optimizers(self) -> Any:
        """AdamW, linear warm-up, then a cosine."""
        groups = parameter_groups(self, self.recipe, tower=self.model.visual)
        optimizer = torch.optim.AdamW(groups, lr=self.recipe.lr, betas=self.recipe.betas)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps, self.recipe))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _log(text: str, values: dict[str, float]) -> None:
    """Write a line above the progress bar."""
    with tqdm.external_write_mode():
        logger.info(text.format(**values))


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Learning rate at a step as a share of the highest."""
    warm = max(1, round(recipe.warmup * steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return recipe.final_lr + (1 - recipe.final_lr) * (1 + math.cos(math.pi * done)) / 2


def lightning_precision(precision: str, accelerator: str) -> Any:
    """Lightning's name of a recipe's precision on an accelerator."""
    if precision == "auto":
        on_gpu = accelerator == "cuda" and torch.cuda.is_bf16_supported()
        on_cpu = accelerator == "cpu" and torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if on_gpu or on_cpu else "32"
    return {"bf16": "bf16-mixed", "32": "32-true"}[precision]


class _EpochBar(lightning.Callback):
    def __init__(self, *, disable: bool) -> None:
        self._disable = disable

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        steps = int(trainer.estimated_stepping_batches)
        self._chance = math.log(pl_module.recipe.batch_size)
        self._bar = tqdm(total=steps, desc="pretrain", unit="step", disable=self._disable)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        loss = pl_module._steps[-1]["spot"].item()
        self._bar.set_postfix_str(
            f"epoch {trainer.current_epoch + 1}, spot loss {loss:.2f} (chance {self._chance:.2f})", refresh=False
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
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # a frozen tower
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
    pathways: PathwayAnchors | None = None,
    regions: Regions | None = None,
    n_workers: int = 0,
    accelerator: str = "cpu",
    progress: bool = True,
    callbacks: Sequence[lightning.Callback] = (),
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
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
    pathways
        Overlaps of the spots and the head that learns from them; without, level two is left out.
    regions
        Slides and places of the spots, renewed here; without, level three is left out.
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
    One entry an epoch: means of ``loss``, ``spot``, ``pathway``, ``region`` and what belongs to them, and the logit
    ``scale``; and one entry a renewal of the regions.
    """
    task = Alignment(model, pairs, recipe, seed, pathways, regions)
    loader = DataLoader(
        pairs,
        batch_size=recipe.batch_size,
        sampler=task.sampler,
        drop_last=True,
        num_workers=n_workers,
        persistent_workers=n_workers > 0,
        pin_memory=accelerator == "cuda",
        generator=torch.Generator().manual_seed(seed),
    )
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
    return task.history, task.renewals


def _run(trainer: lightning.Trainer, task: Alignment, loader: DataLoader[Any]) -> None:
    """Fit; an interrupt stays one, where Lightning would exit and ignore every later one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(task, loader)
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
