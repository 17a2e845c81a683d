"""How training uses the machine: options that do not change its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from ..errors import DataError, check_choice, nearest

LOGGERS = ("tensorboard", "wandb")
Unreadable = Literal["stop", "skip"]


@dataclass(frozen=True)
class Engine:
    """How training uses the machine; the weights it ends with do not depend on it.

    Up to rounding, and with two exceptions: ``unreadable="skip"`` trains on fewer slides, and batch normalisation,
    where an image tower has it, sees the spots of one ``micro_batch`` of each process.

    Parameters
    ----------
    n_workers
        Processes that read patches ahead; by default 4 beside a GPU, none on a CPU.
    micro_batch
        Spots that a process takes through the towers at a time; their features are computed a second time in the
        backward pass, so that every spot of the batch stays a negative of every other. By default all of its share.
    gradient_checkpointing
        Keep the input of each block only, and compute the rest a second time: less memory, a third more time.
    compile
        Compile the towers with ``torch.compile``.
    checkpoint_minutes
        Time from one checkpoint to the next, where there is a folder of the run; one is written after each epoch too.
    log_every
        Steps from one line of the metrics to the next.
    loggers
        ``"tensorboard"`` and ``"wandb"``, beside the metrics that are always written.
    unreadable
        ``"stop"`` at a slide that cannot be read, or ``"skip"`` it, named and counted; where only its image is damaged,
        its genes still count for idf.
    """

    n_workers: int | None = None
    micro_batch: int | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    checkpoint_minutes: float = 10.0
    log_every: int = 10
    loggers: tuple[str, ...] = ()
    unreadable: Unreadable = "stop"

    def __post_init__(self) -> None:
        given: Any = self.loggers
        object.__setattr__(self, "loggers", (given,) if isinstance(given, str) else tuple(given))
        for name, low, optional in (("n_workers", 0, True), ("micro_batch", 1, True), ("log_every", 1, False)):
            value = getattr(self, name)
            if not (optional and value is None) and (not isinstance(value, int) or value < low):
                raise DataError(f"engine: {name} is {value!r}; expected a whole number of {low} or more.")
        for name in ("gradient_checkpointing", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise DataError(f"engine: {name} is {getattr(self, name)!r}; expected true or false.")
        minutes: Any = self.checkpoint_minutes
        if not isinstance(minutes, int | float) or not minutes >= 0:
            raise DataError(f"engine: checkpoint_minutes is {minutes!r}; expected 0 or more.")
        for each in self.loggers:
            check_choice("engine: loggers", each, LOGGERS)
        check_choice("engine: unreadable", self.unreadable, get_args(Unreadable))

    @classmethod
    def of(cls, values: Mapping[str, Any] | Engine | None) -> Engine:
        """From a mapping; unknown names are refused."""
        if isinstance(values, Engine):
            return values
        known = {f.name for f in fields(cls)}
        for key in values or {}:
            if key not in known:
                raise DataError(f"the engine has no {key!r}; it has {sorted(known)}.{nearest(key, known)}")
        return replace(cls(), **(values or {}))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "loggers": list(self.loggers)}
