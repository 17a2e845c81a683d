"""``hibiost pretrain``: what :func:`hibiost.tl.pretrain` does, from a configuration file."""

from __future__ import annotations

import argparse
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import hibiost as hb

from .._files import replacing
from ..errors import DataError, nearest

HELP = "train a model as a configuration file says"
DESCRIPTION = """
What hibiost.tl.pretrain does, from a TOML file: data and run, and as wanted select, validation, image_encoder, mpp,
pathways, layer, library_key, device, seed and the tables [recipe] and [engine]. The name of a configuration that ships
with hibiost does as well: hibiost-base is the paper's, for HEST-1k. --dry-run tells what it takes. The same command
goes on where a run was stopped. On several GPUs or machines: torchrun --nproc-per-node N -m hibiost pretrain
config.toml, or srun with a task for each GPU.
"""
SUFFIX = ".toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``hibiost pretrain``."""
    parser.add_argument("config", help="the configuration file, or the name of one that ships with hibiost")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="instead of what the file says, such as recipe.epochs=20; may be given again",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="train and write nothing: tell data, steps, disk, memory and hours"
    )
    parser.add_argument(
        "--samples-per-second",
        type=float,
        metavar="N",
        help="speed of one GPU with this configuration, for the hours of --dry-run; benchmarks/train.py measures it",
    )


def run(arguments: argparse.Namespace) -> None:
    """Train as the configuration file says, or tell what that takes."""
    speed, path = arguments.samples_per_second, configuration_file(arguments.config)
    if not arguments.dry_run:
        if speed is not None:
            raise DataError("--samples-per-second is for the hours that --dry-run tells; training measures its own.")
        pretrain(Configuration.read(path, arguments.overrides))
        return
    from ._dry_run import dry_run

    if speed is not None and not speed > 0:
        raise DataError(f"--samples-per-second is {speed:g}; expected a number above 0.")
    dry_run(Configuration.read(path, arguments.overrides, required=()), speed)


def configuration_file(name: str) -> Traversable:
    """A file, or a configuration that ships with hibiost.

    Raises
    ------
    DataError
        A name without suffix that is neither; those that ship are listed.
    """
    path = Path(name)
    if path.suffix or path.is_file():
        return path
    folder = resources.files(__package__) / "configs"
    known = sorted(each.name.removesuffix(SUFFIX) for each in folder.iterdir())
    if name not in known:
        raise DataError(f"no configuration {name!r}; expected a {SUFFIX} file or one of {known}.{nearest(name, known)}")
    return folder / (name + SUFFIX)


@dataclass(frozen=True)
class Configuration:
    """What ``config.toml`` may hold; all but ``data`` and ``run`` are as in :func:`hibiost.tl.pretrain`.

    Parameters
    ----------
    data
        A folder in HEST-1k's layout, or a list of such folders, ``.h5ad`` files and ``.zarr`` folders.
    run
        Folder of the run.
    select
        Condition on the columns of :attr:`hibiost.io.Corpus.index`: the slides to use.
    validation
        Condition on the same columns: slides to measure retrieval on, which are not trained on.
    """

    data: str | list[str] = field(default_factory=list)
    run: str = ""
    select: str | None = None
    validation: str | None = None
    image_encoder: str = "ViT-B-16"
    mpp: float | None = None
    pathways: str | None = None
    layer: str | None = None
    library_key: str = "library_id"
    device: str = "auto"
    seed: int = 0
    recipe: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(
        cls, path: Traversable, overrides: Sequence[str] = (), *, required: Sequence[str] = ("data", "run")
    ) -> Configuration:
        """Read a TOML file, and put ``key=value`` in place of what it says.

        Raises
        ------
        DataError
            The file cannot be read; a key is unknown, missing, or of another type.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"no configuration at {path} ({error}).") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is no TOML ({error}); a line reads: key = value, text in quotes.") from error
        for override in overrides:
            _set(values, override)
        return cls.of(values, required)

    @classmethod
    def of(cls, values: Mapping[str, Any], required: Sequence[str]) -> Configuration:
        """Checked; unknown keys are refused."""
        types = get_type_hints(cls)
        for key, value in values.items():
            if key not in types:
                raise DataError(f"a configuration has no {key!r}; it has {sorted(types)}.{nearest(key, types)}")
            if not _fits(value, types[key]):
                raise DataError(f"{key} is {value!r}; expected {_spelled(types[key])}.")
        if absent := [name for name in required if name not in values]:
            raise DataError(f"the configuration lacks {absent[0]!r}: {_HINTS[absent[0]]}")
        return cls(**values)

    def corpus(self) -> hb.io.Corpus:
        """All slides of ``data``."""
        return hb.io.Corpus(self.data, layer=self.layer, library_key=self.library_key)

    def parts(self, corpus: hb.io.Corpus) -> tuple[hb.io.Corpus, hb.io.Corpus | None]:
        """The slides to train on, and those of the validation."""
        if self.select is not None:
            corpus = corpus.select(self.select)
        if self.validation is None:
            return corpus, None
        validation = corpus.select(self.validation)
        return corpus.select(~corpus.index.index.isin(validation.index.index)), validation

    def write(self, path: Path) -> None:
        """Write as TOML, paths absolute: the file repeats the run from anywhere."""
        values = asdict(self)
        listed = [self.data] if isinstance(self.data, str) else self.data
        values["data"], values["run"] = [os.path.abspath(each) for each in listed], os.path.abspath(self.run)
        if self.pathways is not None and os.path.exists(self.pathways):
            values["pathways"] = os.path.abspath(self.pathways)
        tables = {name: values.pop(name) for name in ("recipe", "engine")}
        lines = _lines(values)
        for name, table in tables.items():
            lines += ["", f"[{name}]", *_lines(table)] if table else []
        with replacing(path) as file:
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")


_HINTS = {
    "data": "data = 'folder' (in HEST-1k's layout), or a list of .h5ad files and .zarr folders.",
    "run": "run = 'folder', for checkpoints, metrics and the model.",
}


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise DataError(f"--set {override!r}; expected key=value, such as recipe.epochs=20.")
    *tables, name = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise DataError(f"--set {override!r}: {table!r} is no table.")
    try:
        values[name] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        values[name] = text


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float)
    if kind == list[str]:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return isinstance(value, get_origin(kind) or kind)


def _spelled(kind: Any) -> str:
    names = {
        str: "text",
        float: "a number",
        int: "a whole number",
        list[str]: "a list of texts",
        dict[str, Any]: "a table",
    }
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return " or ".join(names[each] for each in kinds if each in names)


def _lines(values: Mapping[str, Any]) -> list[str]:
    """Text, numbers, truth values and lists of them: JSON writes them as TOML does."""
    return [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]


def pretrain(configuration: Configuration) -> None:
    """Train, or go on training; alone, or as one of the processes of torchrun or Slurm."""
    from ..tl._resolve import resolve_device, together
    from ..train import Run

    device = resolve_device(configuration.device)
    with together(device) as ranks:
        run = Run(Path(configuration.run))
        corpus, validation = configuration.parts(configuration.corpus())
        options = {f.name: getattr(configuration, f.name) for f in fields(Configuration)}
        for name in ("data", "select", "seed"):
            options.pop(name)
        hb.tl.pretrain(corpus, **{**options, "validation": validation, "device": device}, rng=configuration.seed)
        if ranks.first:
            configuration.write(run.folder / "config.toml")
            configuration.write(run.model / "config.toml")
            print(f"The model is in {run.model.resolve()}. To use it: export HIBIOST_MODEL={run.model.resolve()}")
