"""The folder of a training run: what it was asked for, how far it is, and what it measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO

from .._files import make_folder, replacing
from ..errors import DataError, RunError

FORMAT_VERSION = 1


class Run:
    """Files of a training run; the same call on the same folder goes on where it stopped.

    Parameters
    ----------
    folder
        Made if absent.

    Attributes
    ----------
    description
        ``run.json``: configuration and fingerprints of the data.
    checkpoint
        ``checkpoint.pt``: all that training needs to go on.
    metrics
        ``metrics.jsonl``: a JSON object a line.
    patches, validation
        ``patches.uint8`` and ``validation.uint8``: the patches of the spots, while training lasts.
    model
        ``model``: the trained model, once it is.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self.folder = folder
        self.description, self.checkpoint = folder / "run.json", folder / "checkpoint.pt"
        self.metrics, self.model = folder / "metrics.jsonl", folder / "model"
        self.patches, self.validation = folder / "patches.uint8", folder / "validation.uint8"

    @property
    def finished(self) -> bool:
        """Whether the model is there."""
        return (self.model / "config.json").is_file()

    def check(self, part: str, values: Mapping[str, Any], *, write: bool, mend: str) -> None:
        """Compare what is asked for with what the run began with; keep it where it begins.

        Parameters
        ----------
        part
            ``"configuration"`` or ``"data"``.
        values
            Plain JSON values.
        write
            Whether this process writes.
        mend
            What a user can do about differences.

        Raises
        ------
        RunError
            They differ: every difference is listed.
        """
        known = self._read()
        asked = json.loads(json.dumps(values))
        if part in known:
            if listed := list(_differences(known[part], asked)):
                raise RunError(
                    f"{self.folder} holds a run of other {part}: {'; '.join(listed[:20])}"
                    + (f"; and {len(listed) - 20} more" if len(listed) > 20 else "")
                    + f". {mend}"
                )
        elif write:
            with replacing(self.description) as file:
                file.write_text(json.dumps({**known, part: asked}, indent=1))

    def _read(self) -> dict[str, Any]:
        if not self.description.exists():
            if self.checkpoint.exists() or self.finished:
                raise RunError(
                    f"{self.folder} holds a checkpoint or a model, but no {self.description.name}; name another folder."
                )
            return {"format_version": FORMAT_VERSION}
        try:
            known: dict[str, Any] = json.loads(self.description.read_text())
            version = known["format_version"]
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{self.description} describes no run ({error!r}); name another folder.") from error
        if version != FORMAT_VERSION:
            raise RunError(
                f"{self.folder} is a run of format {version!r}, this hibiost knows {FORMAT_VERSION}; name another one."
            )
        return known

    def cut_metrics(self, step: int) -> None:
        """Forget what was measured after a step: it is measured again."""
        if not self.metrics.exists():
            return
        kept = [line for line in self.metrics.read_bytes().splitlines(keepends=True) if _step(line) <= step]
        with replacing(self.metrics) as file:
            file.write_bytes(b"".join(kept))

    def clear(self) -> None:
        """Remove what only an unfinished run needs."""
        stores = [self.patches, self.validation]
        for path in (self.checkpoint, *stores, *(store.with_suffix(".json") for store in stores)):
            path.unlink(missing_ok=True)


def _step(line: bytes) -> float:
    """The step of a line; of a line that was cut off, infinity."""
    try:
        return float(json.loads(line)["step"])
    except (KeyError, TypeError, ValueError):
        return float("inf")


def _differences(known: Any, asked: Any, name: str = "") -> Iterator[str]:
    if isinstance(known, dict) and isinstance(asked, dict):
        for key in sorted(known.keys() | asked.keys()):
            place = f"{name}.{key}" if name else key
            if key not in known:
                yield f"{place} is new ({asked[key]!r})"
            elif key not in asked:
                yield f"{place} is missing (was {known[key]!r})"
            else:
                yield from _differences(known[key], asked[key], place)
    elif known != asked:
        yield f"{name} was {known!r}, now {asked!r}"


class SafeCheckpoints(CheckpointIO):
    """Checkpoints that are whole or not there, and that cannot execute code when they are read."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write beside, then rename: where that fails, the last checkpoint is still there."""
        try:
            with replacing(Path(path)) as file:
                torch.save(checkpoint, file)
        except DataError as error:
            kept = "The last one is kept, and the same call goes on from there." if Path(path).exists() else ""
            raise RunError(f"the checkpoint {path} was not written: {error} {kept}") from error

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Tensors and plain values only."""
        try:
            loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise RunError(
                f"the checkpoint {path} cannot be read ({type(error).__name__}: {error}). Remove it to begin anew, or "
                "name another folder."
            ) from error
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)
