"""The processes of torchrun or Slurm that work together: who they are, what they share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from .errors import RunError

T = TypeVar("T")
_APART: ContextVar[bool] = ContextVar("apart", default=False)
"""Whether this process takes no notice of the others."""
_STARTED = {"TORCHELASTIC_RUN_ID", "SLURM_NTASKS"}
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
        _dist().all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.size > 1:
            _dist().barrier()

    def highest(self, value: int, device: Any) -> int:
        """The highest of the values of all processes."""
        if self.size == 1:
            return value
        import torch

        shared = torch.tensor([value], device=device)
        _dist().all_reduce(shared, _dist().ReduceOp.MAX)
        return int(shared.item())


ALONE = Ranks()


def current() -> Ranks:
    """The processes that have joined, see :func:`joined`; this one alone where none have."""
    environment = _environment()
    if environment is None or not _dist().is_initialized():
        return ALONE
    return _place(environment)


@contextmanager
def apart(device: str) -> Iterator[Ranks]:
    """The place of this process among those of torchrun or Slurm, which work on their own: none waits for another.

    Raises
    ------
    RunError
        There are fewer GPUs than processes on this machine.
    """
    environment = _environment()
    if environment is None:
        yield ALONE
        return
    if device == "cuda":
        _take_gpu(environment)
    token = _APART.set(True)
    try:
        yield _place(environment)
    finally:
        _APART.reset(token)


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Work together with the other processes of torchrun or Slurm, where this is one of theirs.

    Raises
    ------
    RunError
        There are fewer GPUs than processes on this machine, or the processes cannot reach each other.
    """
    environment = _environment()
    if environment is None or _dist().is_initialized():
        yield current()
        return
    if device == "cuda":
        _take_gpu(environment)
    elif device != "cpu":
        raise RunError(f"{environment.world_size()} processes cannot share device {device!r}; use device='cpu'.")
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    try:
        _dist().init_process_group(
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
        _dist().destroy_process_group()


def _dist() -> Any:
    import torch.distributed

    return torch.distributed


def _environment() -> Any:
    """Torchrun's or Slurm's, as Lightning knows them; nothing is imported where neither started this process."""
    if _APART.get() or not _STARTED & os.environ.keys():
        return None
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect():
            environment: Any = kind()
            return environment if environment.world_size() > 1 else None
    return None


def _place(environment: Any) -> Ranks:
    """As torchrun or Slurm say."""
    number, size = environment.global_rank(), environment.world_size()
    return Ranks(number, size, environment.local_rank(), _local_size(environment))


def _local_size(environment: Any) -> int:
    """Processes on this machine, as torchrun or Slurm say."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    return int(environment.world_size()) // int(os.environ.get("SLURM_NNODES", 1))


def _take_gpu(environment: Any) -> None:
    import torch

    there, asked = torch.cuda.device_count(), _local_size(environment)
    if asked > there:
        raise RunError(
            f"{asked} processes on this machine, but {there} GPUs; start one process for each GPU: "
            f"torchrun --nproc-per-node {max(1, there)}."
        )
    torch.cuda.set_device(environment.local_rank())
