"""The processes that train together: who they are, what each takes, and what they share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from ..errors import RunError

T = TypeVar("T")
PATIENCE = timedelta(hours=6)
"""How long a process waits for the others: slides are decoded meanwhile."""


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that work together.

    Attributes
    ----------
    rank, size
        Number of this process among all, and how many there are.
    local_rank, local_size
        The same on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def n_nodes(self) -> int:
        """Machines."""
        return self.size // self.local_size

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def collect(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.size > 1:
            dist.barrier()

    def highest(self, value: int, device: torch.device) -> int:
        """The highest of the values of all processes."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], device=device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared.item())


def current() -> Ranks:
    """The processes that have joined, see :func:`joined`; this one alone where none have."""
    if not (dist.is_available() and dist.is_initialized()):
        return Ranks()
    environment = _environment()
    local_rank = environment.local_rank() if environment else 0
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, _local_size())


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Work together with the other processes of torchrun or Slurm, where this is one of theirs.

    Raises
    ------
    RunError
        There are fewer GPUs than processes on this machine, or the processes cannot reach each other.
    """
    environment = _environment()
    if environment is None or dist.is_initialized():
        yield current()
        return
    if device == "cuda":
        _take_gpu(environment.local_rank())
    elif device != "cpu":
        raise RunError(f"{environment.world_size()} processes cannot share device {device!r}; use device='cpu'.")
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    try:
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            rank=environment.global_rank(),
            world_size=environment.world_size(),
            timeout=PATIENCE,
        )
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"process {environment.global_rank()} of {environment.world_size()} could not join the others at "
            f"{environment.main_address}:{environment.main_port} ({error}). Is the port in use? Choose another one: "
            "torchrun --rdzv-backend=c10d --rdzv-endpoint=localhost:0, or the environment variable MASTER_PORT."
        ) from error
    try:
        yield current()
    finally:
        dist.destroy_process_group()


def _environment() -> Any:
    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect():
            environment: Any = kind()
            return environment if environment.world_size() > 1 else None
    return None


def _local_size() -> int:
    """Processes on this machine, as torchrun or Slurm say."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    return dist.get_world_size() // int(os.environ.get("SLURM_NNODES", 1))


def _take_gpu(local_rank: int) -> None:
    there, asked = torch.cuda.device_count(), max(_local_size_asked(), local_rank + 1)
    if asked > there:
        raise RunError(
            f"{asked} processes on this machine, but {there} GPUs; start one process for each GPU: "
            f"torchrun --nproc-per-node {max(1, there)}."
        )
    torch.cuda.set_device(local_rank)


def _local_size_asked() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", 1)))


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
