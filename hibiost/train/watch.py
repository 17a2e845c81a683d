"""What happens beside training: a bar and metrics to look at, checkpoints to go on from, signals to heed.

Both callbacks are Lightning's ``Checkpoint``, which it calls last: after the task has summed up the epoch.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint
from tqdm.auto import tqdm

from .._ranks import Ranks
from ..errors import RunError
from ..settings import logger
from .engine import Engine
from .run import Run
from .task import Alignment


class Reporter(Checkpoint):
    """A progress bar with spots a second and the time left, and a line of metrics every few steps.

    Parameters
    ----------
    engine
        How often, and which loggers beside the metrics file.
    ranks
        The first process reports.
    run
        Where the metrics go; nowhere without.
    progress
        Show the bar.
    """

    def __init__(self, engine: Engine, ranks: Ranks, run: Run | None, *, progress: bool) -> None:
        self._engine, self._ranks, self._run, self._progress = engine, ranks, run, progress
        self._loggers = [_logger(name, run) for name in engine.loggers if ranks.first]
        self._bar = tqdm(disable=True)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Begin where training begins, or goes on; metrics of later steps are taken back."""
        if self._run is not None and self._ranks.first:
            self._run.cut_metrics(trainer.global_step)
        if self._run is not None and trainer.global_step:
            logger.info("going on from step %d, as kept in %s", trainer.global_step, self._run.folder)
        size, total = pl_module.recipe.batch_size, int(trainer.estimated_stepping_batches)
        self._bar = tqdm(
            total=total * size,
            initial=trainer.global_step * size,
            desc="pretrain",
            unit=" spots",
            unit_scale=True,
            disable=not (self._progress and self._ranks.first),
        )
        self._since, self._clock = trainer.global_step, time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        """Every few steps, look at the loss: on a GPU that waits for it."""
        task, step = pl_module, trainer.global_step
        self._bar.update(task.recipe.batch_size)
        if step % self._engine.log_every and not trainer.is_last_batch:
            return
        values = {name: value.item() for name, value in task.latest.items()}
        if not math.isfinite(values["loss"]):
            task.check_finite()
        self._bar.set_postfix_str(f"epoch {trainer.current_epoch + 1}, spot loss {values['spot']:.2f}", refresh=False)
        now = time.perf_counter()
        speed = (step - self._since) * task.recipe.batch_size / max(now - self._clock, 1e-9)
        self._since, self._clock = step, now
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self._write("step", step, {"epoch": step / len(task.batches), **values, "lr": rate, "spots_per_second": speed})

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """The epoch as the model file remembers it; and the regions, where they were renewed."""
        self._write("epoch", trainer.global_step, pl_module.history[-1])
        if pl_module.renewals and pl_module.renewals[-1]["epoch"] == pl_module.history[-1]["epoch"]:
            self._write("regions", trainer.global_step, pl_module.renewals[-1])
        self._since, self._clock = trainer.global_step, time.perf_counter()

    def _write(self, event: str, step: int, values: dict[str, float]) -> None:
        if not self._ranks.first:
            return
        if self._run is not None:
            with self._run.metrics.open("a") as file:
                file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        for each in self._loggers:
            each.log_metrics({f"{event}/{name}": value for name, value in values.items()}, step)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Close bar and loggers."""
        self._close("success")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close bar and loggers."""
        self._close("failed")

    def _close(self, status: str) -> None:
        self._bar.close()
        for each in self._loggers:
            each.finalize(status)


def _logger(name: str, run: Run | None) -> Any:
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

    folder = Path() if run is None else run.folder
    try:
        if name == "wandb":
            return WandbLogger(name=folder.name, save_dir=folder)
        return TensorBoardLogger(folder, name="tensorboard", version="")
    except ModuleNotFoundError as error:
        raise RunError(f"the logger {name!r} is not installed ({error}): pip install {name}") from error


class Keeper(Checkpoint):
    """Checkpoints every few minutes, after each epoch, and where SIGTERM or Ctrl-C asks the run to stop.

    Parameters
    ----------
    run
        Where the checkpoint goes.
    minutes
        From one checkpoint to the next.
    ranks
        All stop at the same step.
    """

    def __init__(self, run: Run, minutes: float, ranks: Ranks) -> None:
        self._run, self._seconds, self._ranks = run, 60 * minutes, ranks
        self._signal = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Heed signals; Lightning takes its own handlers away again when training ends."""
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._asked)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self._signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._signal = number

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        """Save where it is time or asked for; the last batch of an epoch leaves that to the epoch's end."""
        if not trainer.is_last_batch:
            self._keep(trainer, pl_module, due=time.monotonic() - self._saved >= self._seconds)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Save."""
        self._keep(trainer, pl_module, due=True)

    def _keep(self, trainer: lightning.Trainer, task: Alignment, *, due: bool) -> None:
        asked = self._ranks.highest(self._signal or int(due), task.device)  # a signal's number, or 1 where it is time
        if not asked:
            return
        task.check_finite()
        trainer.save_checkpoint(self._run.checkpoint)
        self._saved = time.monotonic()
        if asked > 1:
            name = signal.Signals(asked).name
            logger.warning(
                "%s: stopped after step %d of %d, and kept in %s. The same call goes on from there.",
                name, trainer.global_step, int(trainer.estimated_stepping_batches), self._run.folder,
            )  # fmt: skip
            raise KeyboardInterrupt if asked == signal.SIGINT else SystemExit(128 + asked)
