"""What processes that train together share of a batch: features with gradient, and statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from .._ranks import Ranks


class _Gather(torch.autograd.Function):
    """Rows of all processes; each computes the same loss of them, and gets the gradient of its own rows.

    DDP then takes the mean over the processes, hence the factor.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int], rank: int) -> Tensor:
        ctx.start, ctx.stop, ctx.n_ranks = sum(sizes[:rank]), sum(sizes[: rank + 1]), len(sizes)
        padded = rows.new_zeros(max(sizes), rows.shape[1])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.start : ctx.stop] * ctx.n_ranks, None, None


def gather(rows: Tensor, sizes: Sequence[int], rank: int) -> Tensor:
    """The rows of all processes one after the other, with gradient.

    Parameters
    ----------
    rows
        n x dim of this process.
    sizes
        Number of rows of each process.
    rank
        This process.
    """
    return rows if len(sizes) == 1 else _Gather.apply(rows, sizes, rank)


class _Sum(torch.autograd.Function):
    """Sum over the processes; so is the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _normalised(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch normalisation by the statistics of all processes."""
    dims = (0, 2, 3)
    count = _Sum.apply(torch.tensor([x.numel() / x.shape[1]], device=x.device))
    mean = _Sum.apply(x.float().sum(dims)) / count
    centred = x.float() - mean[:, None, None]
    variance = _Sum.apply(centred.square().sum(dims)) / count
    if norm.track_running_stats and norm.momentum:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            norm.running_mean.lerp_(mean, norm.momentum)  # type: ignore[union-attr]
            norm.running_var.lerp_(variance * count / (count - 1), norm.momentum)  # type: ignore[union-attr]
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return (centred * scale[:, None, None] + norm.bias[:, None, None]).to(x.dtype)


class _SharedNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return _normalised(self, input) if self.training else super().forward(input)


class _SharedNormAct(BatchNormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(_normalised(self, x))) if self.training else super().forward(x)


@contextmanager
def shared_batch_norm(model: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Let batch normalisation see the whole batch while processes train together, on any device."""
    kinds = {nn.BatchNorm2d: _SharedNorm, BatchNormAct2d: _SharedNormAct}
    norms = [(module, type(module)) for module in model.modules() if type(module) in kinds and ranks.size > 1]
    for module, kind in norms:
        module.__class__ = kinds[kind]
    try:
        yield
    finally:
        for module, kind in norms:
            module.__class__ = kind


@contextmanager
def still_batch_norm(model: nn.Module) -> Iterator[None]:
    """Leave running statistics alone while features are computed a second time."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
