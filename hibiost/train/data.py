"""Image patches and token rows of the training spots, their order, and their augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..model.tokens import trimmed


@dataclass(frozen=True)
class Pairs:
    """Patch and token row of each spot.

    Parameters
    ----------
    patches
        uint8, at least n_spots x side x side x 3; a memory map is read as its rows are asked for.
    tokens
        int32, n_spots x context.
    rows
        Place of each spot in ``patches``; by default its own number.
    """

    patches: np.ndarray
    tokens: np.ndarray
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def patches_of(self, spots: np.ndarray) -> np.ndarray:
        """Patches of some spots, in memory."""
        return np.asarray(self.patches[spots if self.rows is None else self.rows[spots]])


class Batch(NamedTuple):
    """A process's share of a batch."""

    pixels: Tensor
    """uint8, share x side x side x 3."""
    tokens: Tensor
    """int32, share x length: columns that are padding in all rows are cut off."""
    spots: np.ndarray
    """int64: the spots of the whole batch, of all processes."""


class Shares(Dataset[Batch]):
    """What a process computes of each batch.

    Parameters
    ----------
    pairs
        The training spots.
    rank, n_ranks
        Number of this process, and of all: each takes a run of the batch.
    """

    def __init__(self, pairs: Pairs, rank: int, n_ranks: int) -> None:
        self._pairs, self._rank, self._n_ranks = pairs, rank, n_ranks

    def __getitem__(self, spots: np.ndarray) -> Batch:
        own = spots[share(len(spots), self._rank, self._n_ranks)]
        pixels = torch.from_numpy(self._pairs.patches_of(own))
        return Batch(pixels, torch.from_numpy(trimmed(self._pairs.tokens[own])), spots)


def share(n: int, rank: int, n_ranks: int) -> slice:
    """The run of ``n`` things that a process takes; the first ones take one more where they cannot be equal."""
    each, more = divmod(n, n_ranks)
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))


class Batches(Sampler[np.ndarray]):
    """Spots in random batches, which follow from the seed and the epoch alone; those left over are not used.

    Parameters
    ----------
    n_spots, batch_size
        Number of spots in all, and in a batch.
    seed
        Seed of the order.
    """

    def __init__(self, n_spots: int, batch_size: int, seed: int) -> None:
        self._n_spots, self._batch_size, self._seed, self._epoch = n_spots, batch_size, seed, 0
        self.first = 0
        """The batch at which the next epoch begins, where training goes on in the middle of one."""
        self.order: Callable[[torch.Generator], Tensor] = partial(_any_order, n_spots)
        """Draws the order of an epoch; once there are regions, see :func:`region_order`."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; Lightning calls it before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._n_spots // self._batch_size

    def __iter__(self) -> Iterator[np.ndarray]:
        order = self.order(torch.Generator().manual_seed(hash_seed(self._seed, self._epoch))).numpy()
        first, self.first = self.first, 0
        for start in range(first * self._batch_size, len(self) * self._batch_size, self._batch_size):
            yield order[start : start + self._batch_size]


def _any_order(n_spots: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(n_spots, generator=generator)


def region_order(slide: np.ndarray, regions: np.ndarray, run: int, generator: torch.Generator) -> Tensor:
    """All spots in an order in which the members of a region come together.

    Each slide is laid out region by region, regions and members in random order, and cut in runs of ``run`` spots; the
    runs of all slides are shuffled. A batch of several runs thus holds a few slides, and many spots of each.

    Parameters
    ----------
    slide, regions
        int, (n_spots,): slide and region of each spot; no two slides share a region.
    run
        Spots of a slide that follow each other.
    generator
        CPU generator.

    Returns
    -------
    int64, (n_spots,): each spot once.
    """
    spots = torch.randperm(len(slide), generator=generator).numpy()
    place = torch.randperm(int(regions.max()) + 1, generator=generator).numpy()
    spots = spots[np.lexsort((place[regions[spots]], slide[spots]))]
    _, sizes = np.unique(slide, return_counts=True)
    runs = [part[at : at + run] for part in np.split(spots, np.cumsum(sizes)[:-1]) for at in range(0, len(part), run)]
    order = torch.randperm(len(runs), generator=generator).tolist()
    return torch.from_numpy(np.concatenate([runs[number] for number in order]))


def hash_seed(seed: int, step: int) -> int:
    """A seed of its own for each step or epoch."""
    return (seed * 1_000_003 + step) % 2**63


def centre(patches: np.ndarray, size: int) -> np.ndarray:
    """Patches, n x side x side x 3, without their margin: n x ``size`` x ``size`` x 3."""
    margin = (patches.shape[1] - size) // 2
    return np.asarray(patches[:, margin : margin + size, margin : margin + size])


@dataclass(frozen=True)
class Draws:
    """What chance decides about each patch of a batch.

    Parameters
    ----------
    corner
        int64, n x 2: y and x of the crop's corner.
    symmetry
        int64, (n,): one of the eight symmetries of the square.
    channel, contrast
        float32, n x 3 x 1 x 1 and n x 1 x 1 x 1: factors on each colour channel and on the contrast; ``None`` leaves
        colours as they are.
    """

    corner: Tensor
    symmetry: Tensor
    channel: Tensor | None = None
    contrast: Tensor | None = None

    @classmethod
    def of(cls, n: int, margin: int, colour_jitter: float, generator: torch.Generator) -> Draws:
        """Draw for a whole batch on the CPU: the same on every device, whoever computes which part of the batch."""
        corner = torch.randint(margin + 1, (n, 2), generator=generator)
        symmetry = torch.randint(8, (n,), generator=generator)
        if not colour_jitter:
            return cls(corner, symmetry)
        channel = 1 + colour_jitter * (2 * torch.rand(n, 3, 1, 1, generator=generator) - 1)
        contrast = 1 + colour_jitter * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1)
        return cls(corner, symmetry, channel, contrast)

    def part(self, rows: slice, device: torch.device) -> Draws:
        """Those of some patches, on a device."""
        found = (self.corner, self.symmetry, self.channel, self.contrast)
        return Draws(*(None if each is None else each[rows].to(device, non_blocking=True) for each in found))  # type: ignore[arg-type]


def augment(pixels: Tensor, size: int, draws: Draws) -> Tensor:
    """Crop, turn or mirror each patch, and change its colours, as drawn.

    Parameters
    ----------
    pixels
        uint8, batch x side x side x 3, with a margin around the ``size`` pixels wanted.
    size
        Side of the crop.
    draws
        One for each patch, on the device of ``pixels``.

    Returns
    -------
    float32 in 0–255, batch x 3 x size x size, channels last in memory.
    """
    n, side = pixels.shape[:2]
    first = torch.arange(n, device=pixels.device) * side**2 + draws.corner[:, 0] * side + draws.corner[:, 1]
    places = first[:, None] + _symmetries(size, side, pixels.device)[draws.symmetry]
    crops = pixels.reshape(-1, 3).index_select(0, places.reshape(-1)).view(n, size, size, 3)
    out = crops.permute(0, 3, 1, 2).float()
    if draws.channel is None or draws.contrast is None:
        return out
    out = out * draws.channel
    mean = out.mean((1, 2, 3), keepdim=True)
    return ((out - mean) * draws.contrast + mean).clamp(0, 255)


@lru_cache(maxsize=4)
def _symmetries(size: int, side: int, device: torch.device) -> Tensor:
    """Places of a crop's pixels in a patch, from the crop's corner on: int64, 8 x size^2."""
    corner = torch.arange(side)[:size, None] * side + torch.arange(size)
    turned = [torch.rot90(corner, turns) for turns in range(4)]
    return torch.stack([*turned, *(each.flip(1) for each in turned)]).reshape(8, -1).to(device)
