"""The objective (HiBio-ST, eq 14): forward, losses and report."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

from .._ranks import ALONE, Ranks
from ..errors import RunError
from ..metrics import recall_at_percent
from ..model import HibioModel
from ..model.losses import info_nce, region_alignment
from ..settings import logger
from .cpu import quick_attention
from .data import Batch, Batches, Draws, Pairs, augment, centre, hash_seed, region_order, share
from .groups import parameter_groups
from .pathways import PathwayAnchors
from .ranks import gather, still_batch_norm
from .recipe import Recipe
from .regions import Regions

SLIDES_PER_BATCH = 4
"""About as many slides meet in a batch once there are regions."""


class Alignment(lightning.LightningModule):
    """The objective on three levels: spots, pathways, regions (HiBio-ST, eq 14), over the batch of all processes.

    Each process embeds its share of a batch; the embeddings are gathered with gradient, and each computes the same
    losses of the whole batch. What chance decides follows from the seed and the step alone.

    Parameters
    ----------
    model, pairs, recipe, seed, pathways, regions, validation
        As of :func:`hibiost.train.fit`.
    ranks
        The processes that train together.
    micro_batch
        Spots that go through the towers at a time, ``None`` for all.
    """

    def __init__(
        self,
        model: HibioModel,
        pairs: Pairs,
        recipe: Recipe,
        seed: int,
        *,
        pathways: PathwayAnchors | None = None,
        regions: Regions | None = None,
        validation: tuple[Pairs, np.ndarray] | None = None,
        ranks: Ranks = ALONE,
        micro_batch: int | None = None,
    ) -> None:
        super().__init__()
        self.model, self.pairs, self.recipe, self.seed = model, pairs, recipe, seed
        self.pathways, self.regions, self.validation = pathways, regions, validation
        self.ranks, self.micro_batch = ranks, micro_batch
        self.batches = Batches(len(pairs), recipe.batch_size, seed)
        self.history: list[dict[str, float]] = []
        self.renewals: list[dict[str, float]] = []
        self.latest: dict[str, Tensor] = {}
        """The terms of the last step."""
        self._sums: dict[str, Tensor] = {}
        """Of the steps of this epoch."""
        model.freeze_image(recipe.freeze_image)
        model.train()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        pixels, tokens, spots = batch
        torch.manual_seed(hash_seed(self._step_seed, 2 + self.ranks.rank))  # for towers with dropout
        image, gene = self._features(pixels, tokens, len(spots))
        with torch.autocast(image.device.type, enabled=False):
            terms = self._terms(image, gene, spots)
        loss = terms["spot"]
        for level, weight in (("pathway", self.recipe.lambda2), ("region", self.recipe.lambda3)):
            if level in terms:
                loss = loss + weight * terms[level]
        self.latest = {"loss": loss.detach(), **{name: value.detach() for name, value in terms.items()}}
        self._sums = {name: value + self._sums.get(name, 0) for name, value in self.latest.items()}
        return loss

    def _features(self, pixels: Tensor, tokens: Tensor, n_spots: int) -> tuple[Tensor, Tensor]:
        """Image and gene embeddings of the whole batch; of this process's share with gradient."""
        size, step = self.model.config.image_size, torch.Generator().manual_seed(self._step_seed)
        draws = Draws.of(n_spots, pixels.shape[1] - size, self.recipe.colour_jitter, step)
        own = share(n_spots, self.ranks.rank, self.ranks.size)
        draws = draws.part(own, pixels.device)

        def towers(rows: slice) -> tuple[Tensor, Tensor]:
            with quick_attention(pixels.device):
                image = self.model.encode_image(augment(pixels[rows], size, draws.part(rows, pixels.device)))
                return image, self.model.encode_genes(tokens[rows])

        if self.micro_batch is None or self.micro_batch >= len(pixels):
            features = towers(slice(None))
        else:
            starts = range(0, len(pixels), self.micro_batch)
            again: Any = partial(_contexts, self.model)
            parts = [
                checkpoint(towers, slice(at, at + self.micro_batch), use_reentrant=False, context_fn=again)
                for at in starts
            ]
            features = torch.cat([image for image, _ in parts]), torch.cat([gene for _, gene in parts])
        sizes = [len(range(n_spots)[share(n_spots, rank, self.ranks.size)]) for rank in range(self.ranks.size)]
        return gather(features[0], sizes, self.ranks.rank), gather(features[1], sizes, self.ranks.rank)

    def _terms(self, image: Tensor, gene: Tensor, spots: np.ndarray) -> dict[str, Tensor]:
        """Each level's loss, and what tells how to read it."""
        terms = {"spot": info_nce(image, gene, self.model.scale)}
        if self.pathways is not None:
            negatives = torch.Generator().manual_seed(hash_seed(self._step_seed, 1))
            embeddings = self.model.gene_token_embeddings
            terms["pathway"], part = self.pathways(image, spots, embeddings, negatives)
            terms["with_pathway"] = torch.tensor(part)
        if self.regions is not None and self.renewals:
            ids = torch.from_numpy(self.regions.ids[spots]).to(image.device)
            terms["region"], n_regions = region_alignment(image, gene, ids, self.model.scale)
            terms["region_chance"] = torch.tensor(math.log(max(1, n_regions)))
        return terms

    @property
    def _step_seed(self) -> int:
        return hash_seed(self.seed, self.global_step)

    def check_finite(self) -> None:
        """Stop where loss or weights are no numbers any more."""
        loss = self.latest["loss"].item()
        weights = torch.stack([each.detach().isfinite().all() for each in self.parameters()]).all()
        if not (math.isfinite(loss) and weights):
            what = f"the loss is {loss:g}" if not math.isfinite(loss) else "weights are no numbers"
            raise RunError(
                f"{what} after step {self.global_step}; lower the recipe's lr. A checkpoint that was written is kept."
            )

    def on_train_epoch_end(self) -> None:
        """Keep the epoch's mean of every term, measure retrieval, and renew the regions when it is time."""
        done = self.current_epoch + 1
        means = {name: (total / len(self.batches)).item() for name, total in self._sums.items()}
        self._sums = {}
        self.check_finite()
        self.history.append({"epoch": done, **means, "scale": self.model.scale.item(), **self._validated()})
        self._tell(self.history[-1])
        since = done - self.recipe.region_start
        if self.regions is None or done >= self.recipe.epochs or since < 0 or since % self.recipe.region_every:
            return
        threads = torch.get_num_threads()
        self.renewals.append(self.regions.renew(self._joint, done, self.ranks))
        torch.set_num_threads(threads)  # numba's OpenMP sets them back, and sums of floats depend on them
        _log(
            "after epoch {epoch}: {n_regions} regions; {coherence:.0%} of a spot's nearest spots are in its region",
            self.renewals[-1],
        )
        self._order_by_region()

    def _order_by_region(self) -> None:
        if self.regions is not None and self.renewals:
            run = max(2, self.recipe.batch_size // SLIDES_PER_BATCH)
            self.batches.order = partial(region_order, self.regions.slide, self.regions.ids.copy(), run)

    def _tell(self, entry: dict[str, float]) -> None:
        chance = math.log(self.recipe.batch_size)
        text = f"epoch {{epoch}}/{self.recipe.epochs}: loss {{loss:.3f}}; spot {{spot:.3f}} (chance {chance:.3f})"
        if "pathway" in entry:
            text += ", pathway {pathway:.4f} ({with_pathway:.0%} of the spots have one)"
        if "region" in entry:
            text += ", region {region:.3f} (chance {region_chance:.3f})"
        if "recall_5" in entry:
            text += "; validation Recall@1/5/10 % {recall_1:.1f} / {recall_5:.1f} / {recall_10:.1f} (chance 1 / 5 / 10)"
        _log(text, entry)

    def _embedded(self, pairs: Pairs, spots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image and gene embeddings of some spots, without augmentation."""
        size, step = self.model.config.image_size, self.micro_batch or self.recipe.batch_size
        training = [(module, module.training) for module in self.model.modules()]
        parts = [spots[at : at + step] for at in range(0, len(spots), step)]
        with self.trainer.precision_plugin.forward_context():
            image = [self.model.embed_images(centre(pairs.patches_of(part), size)) for part in parts]
            gene = [self.model.embed_genes(pairs.tokens[part]) for part in parts]
        for module, mode in training:
            module.training = mode
        return np.concatenate(image), np.concatenate(gene)

    def _joint(self, spots: np.ndarray) -> np.ndarray:
        return np.concatenate(self._embedded(self.pairs, spots), axis=1)

    def _validated(self) -> dict[str, float]:
        """Recall@p% of the validation slides, each searched in itself, weighted by their spots."""
        if self.validation is None:
            return {}
        pairs, slide = self.validation
        numbers = np.unique(slide)
        own = {}
        for number in numbers[self.ranks.rank :: self.ranks.size]:
            spots = np.flatnonzero(slide == number)
            own[int(number)] = len(spots), recall_at_percent(*self._embedded(pairs, spots))
        found = {number: entry for part in self.ranks.collect(own) for number, entry in part.items()}
        weights = [found[int(number)][0] for number in numbers]
        return {
            f"recall_{p}": float(np.average([found[int(number)][1][p] for number in numbers], weights=weights))
            for p in (1, 5, 10)
        }

    def configure_optimizers(self) -> Any:
        """AdamW, linear warm-up, then a cosine."""
        groups = parameter_groups(self, self.recipe, tower=self.model.visual)
        optimizer = torch.optim.AdamW(groups, lr=self.recipe.lr, betas=self.recipe.betas, fused=True)
        steps = int(self.trainer.estimated_stepping_batches)
        rate: Callable[[int], float] = partial(learning_rate, steps=steps, recipe=self.recipe)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put what Lightning does not know of into a checkpoint."""
        regions = self.regions
        checkpoint["hibiost"] = {
            "history": self.history,
            "renewals": self.renewals,
            "sums": {name: total.cpu() for name, total in self._sums.items()},
            "regions": None if regions is None else torch.from_numpy(regions.ids),
            "region_history": {}
            if regions is None
            else {epoch: torch.from_numpy(ids) for epoch, ids in regions.history.items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back, and find the batch to go on with."""
        kept = checkpoint["hibiost"]
        self.history, self.renewals = kept["history"], kept["renewals"]
        self._sums = {name: total.to(self.device) for name, total in kept["sums"].items()}
        if self.regions is not None:
            self.regions.ids = kept["regions"].numpy()
            self.regions.history = {epoch: ids.numpy() for epoch, ids in kept["region_history"].items()}
        self._order_by_region()
        epoch, self.batches.first = divmod(checkpoint["global_step"], len(self.batches))
        self.batches.set_epoch(epoch)


def _contexts(model: HibioModel) -> tuple[Any, Any]:
    """Around the first computation of features, and around the second."""
    return nullcontext(), still_batch_norm(model)


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
