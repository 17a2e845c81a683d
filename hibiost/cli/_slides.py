"""Slides that a command changes, one after the other, each into a file of its own."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hibiost as hb

from .._files import make_folder, replacing
from ..errors import DataError, HibiostError
from ..settings import logger

if TYPE_CHECKING:
    from anndata import AnnData

    from .._ranks import Ranks
    from ..io import Corpus
    from ..model import FeatureEncoder, HibioModel

TABLES = (".h5ad", ".zarr")
COMMAND = "command"
"""Entry of ``uns[key]["params"]``: what a file was made with, as JSON."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of commands that change slides."""
    parser.add_argument(
        "slides",
        nargs="+",
        type=Path,
        metavar="SLIDE",
        help=".h5ad file, .zarr folder, folder in HEST-1k's layout, or an image of H&E alone",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, an .h5ad file for each slide")
    parser.add_argument("--overwrite", action="store_true", help="write slides anew that are in the folder")
    parser.add_argument("--layer", help="layer that holds raw counts (default: X)")
    parser.add_argument("--mpp", type=float, help="of images: micrometres per pixel (default: what the file tells)")
    parser.add_argument(
        "--spacing-um", type=float, default=100.0, help="of images: distance of the spots that are placed (%(default)g)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (%(default)s)")


def model_of(name: str | None, device: str) -> HibioModel | FeatureEncoder:
    """The model of that name or in that folder, by default the one of the settings; or the encoder of that name."""
    from ..model import feature_encoder
    from ..model.registry import ours
    from ..tl._resolve import resolve_model

    if name is None or ours(name) or Path(name).exists() or ("/" in name and ":" not in name):
        return resolve_model(name, device)
    return feature_encoder(name, device=device)


@dataclass(frozen=True, eq=False)
class Slides:
    """Slides of files, and images without spots, each to be written under its name.

    Attributes
    ----------
    corpus
        Those of files, where there are any.
    images
        Paths by name.
    arguments
        Of :func:`add_arguments`.
    """

    corpus: Corpus | None
    images: Mapping[str, Path]
    arguments: argparse.Namespace

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Slides:
        """Checked before anything is computed.

        Raises
        ------
        DataError
            A file is absent or no slide, two slides bear one name, or a result would replace what is read.
        """
        from ..io._image import slide_name
        from ..io._patchfiles import check_file_name

        if absent := [path for path in arguments.slides if not path.exists()]:
            raise DataError(f"there is no {absent[0]}; expected an .h5ad file, a .zarr or HEST folder, or an image.")
        tables = [path for path in arguments.slides if path.is_dir() or path.suffix in TABLES]
        images = [path for path in arguments.slides if path not in tables]
        if arguments.mpp is not None and not images:
            raise DataError("--mpp is of images, and there are none; the other slides tell their own pixel size.")
        corpus = hb.io.Corpus(tables, layer=arguments.layer) if tables else None
        found = [(slide_name(path), path) for path in images] + _readable(corpus)
        for name, times in Counter(name for name, _ in found).items():
            check_file_name(name)
            if times > 1:
                raise DataError(f"{times} slides are named {name!r}; give each slide a name of its own.")
        result = cls(corpus, {slide_name(path): path for path in images}, arguments)
        given = {path.resolve() for _, path in found}
        for name, _ in found:
            if result.target(name).resolve() in given:
                raise DataError(f"{result.target(name)} is a slide that is read; choose another --out.")
        return result

    def target(self, name: str) -> Path:
        """The file of a slide."""
        out: Path = self.arguments.out
        return out / f"{name}.h5ad"

    def write(self, change: Callable[[AnnData], str], key: str, made: Mapping[str, Any], ranks: Ranks) -> None:
        """Change each slide and write it; the processes share the slides, and what is there already stays.

        Parameters
        ----------
        change
            Changes a slide and tells, in words, what became of it.
        key
            Slot of ``uns`` that it writes.
        made
            What the result depends on: files made with anything else are refused.
        ranks
            Of :func:`hibiost._ranks.apart`.
        """
        from ..io._hest import write_h5ad

        made = {**made, "layer": self.arguments.layer, "mpp": self.arguments.mpp, "um": self.arguments.spacing_um}
        command = json.dumps(made, sort_keys=True)
        names = [*([] if self.corpus is None else self.corpus.index.index), *self.images]
        left = [name for name in names[ranks.rank :: ranks.size] if not self._kept(name, key, command)]
        make_folder(self.arguments.out)
        for name, adata in self._read(left):
            try:
                told = change(adata)
            except HibiostError as error:
                raise type(error)(f"slide {name!r}: {error}") from error
            adata.uns[key]["params"][COMMAND] = command
            with replacing(self.target(name)) as file:
                write_h5ad(adata, file)
            print(f"{name}: {told}", flush=True)

    def _kept(self, name: str, key: str, command: str) -> bool:
        """Whether it was written by the same command."""
        path = self.target(name)
        if self.arguments.overwrite or not path.exists():
            return False
        if _made_with(path, key) != command:
            raise DataError(
                f"{path} was made by another command or with other options; choose another --out, or pass --overwrite."
            )
        logger.info("%s is there already; --overwrite writes it anew.", path)
        return True

    def _read(self, names: Sequence[str]) -> Iterator[tuple[str, AnnData]]:
        """One slide at a time."""
        in_files = [name for name in names if name not in self.images]
        if self.corpus is not None and in_files:
            yield from zip(in_files, self.corpus.select(in_files), strict=True)
        for name in names:
            if name in self.images:
                slide = hb.io.read_image(self.images[name], mpp=self.arguments.mpp)
                hb.pp.grid(slide, spacing_um=self.arguments.spacing_um)
                yield name, slide


def _readable(corpus: Corpus | None) -> list[tuple[str, Path]]:
    """Names and files of the slides; a file that cannot be read is refused."""
    if corpus is None:
        return []
    index, problems = corpus.index, corpus.problems
    if unread := list(index.index[index["n_spots"] == 0]):
        told = problems.loc[problems["slide"] == unread[0], "problem"]
        raise DataError(f"slide {unread[0]!r} cannot be read: {' '.join(told)}")
    return list(zip(index.index, map(Path, index["path"]), strict=True))


def _made_with(path: Path, key: str) -> str | None:
    """The command that a file tells, see :data:`COMMAND`."""
    import h5py

    from ..io._reading import reading

    with reading(path, "an AnnData file"), h5py.File(path) as file:
        found = file.get(f"uns/{key}/params/{COMMAND}")
        return None if found is None else str(found.asstr()[()])
