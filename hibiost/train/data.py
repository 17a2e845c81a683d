"""Image patches and token rows of a training corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler


def store_patches(batches: Iterable[np.ndarray], n_spots: int, side: int, path: Path) -> np.ndarray:
    """Write batches of patches to a memory-mapped file, so that slides are decoded once and none stays in memory.

    Parameters
    ----------
    batches
        uint8, batch x ``side`` x ``side`` x 3; ``n_spots`` rows in all.
    n_spots, side
        Shape of the file: ``n_spots`` x ``side`` x ``side`` x 3 bytes.
    path
        The file to write.

    Returns
    -------
    The patches, uint8, read-only, on disk.
    """
    shape = (n_spots, side, side, 3)
    stored = np.memmap(path, dtype=np.uint8, mode="w+", shape=shape)
    start = 0
    for batch in batches:
        stored[start : start + len(batch)] = batch
        start += len(batch)
    stored.flush()
    return np.memmap(path, dtype=np.uint8, mode="r", shape=shape)


class Pairs(Dataset[tuple[Tensor, Tensor, int]]):
    """Patch, token row and number of each spot.

    Parameters
    ----------
    patches
        uint8, n_spots x side x side x 3.
    tokens
        int32, n_spots x context.
    """

    def __init__(self, patches: np.ndarray, tokens: np.ndarray) -> None:
        self.patches, self.tokens = patches, tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, spot: int) -> tuple[Tensor, Tensor, int]:
        pixels = torch.from_numpy(np.array(self.patches[spot])).permute(2, 0, 1)
        return pixels, torch.from_numpy(self.tokens[spot]), spot


class EpochSampler(Sampler[int]):
    """Spots in random order, which follows from the seed and the epoch alone.

    Parameters
    ----------
    n_spots
        Number of spots.
    seed
        Seed of the order.
    """

    def __init__(self, n_spots: int, seed: int) -> None:
        self._n_spots, self._seed, self._epoch = n_spots, seed, 0
        self.order: Callable[[torch.Generator], Tensor] = partial(_any_order, n_spots)
        """Draws the order of an epoch; once there are regions, see :func:`region_order`."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; Lightning calls it before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._n_spots

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(hash_seed(self._seed, self._epoch))
        return iter(self.order(generator).tolist())


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


def augment(pixels: Tensor, size: int, colour_jitter: float, generator: torch.Generator) -> Tensor:
    """Random crop, one of the eight symmetries of the square, and colour jitter, for each patch of a batch.

    Parameters
    ----------
    pixels
        uint8, batch x 3 x side x side, with a margin around the ``size`` pixels wanted.
    size
        Side of the crop.
    colour_jitter
        Largest relative change of each channel and of the contrast; 0 for none.
    generator
        CPU generator: the draws are the same on every device.

    Returns
    -------
    float32 in 0–255, batch x 3 x size x size.
    """
    n, margin = len(pixels), pixels.shape[-1] - size
    corner = torch.randint(margin + 1, (n, 2), generator=generator).tolist()
    symmetry = torch.randint(8, (n,), generator=generator).tolist()
    crops = []
    for patch, (y, x), turn in zip(pixels, corner, symmetry, strict=True):
        crop = torch.rot90(patch[:, y : y + size, x : x + size], turn % 4, (1, 2))
        crops.append(crop.flip(2) if turn >= 4 else crop)
    out = torch.stack(crops).float()
    if colour_jitter:
        channel = 1 + colour_jitter * (2 * torch.rand(n, 3, 1, 1, generator=generator) - 1)
        contrast = 1 + colour_jitter * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1)
        out = out * channel.to(out.device)
        centre = out.mean((1, 2, 3), keepdim=True)
        out = ((out - centre) * contrast.to(out.device) + centre).clamp(0, 255)
    return out
