"""Folders of safetensors and JSON: tensors, and what is to be known of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from .._files import make_folder, replacing
from ..errors import ModelError


@contextmanager
def writing(folder: Path, files: tuple[str, str], tensors: Mapping[str, Tensor], about: Any) -> Iterator[None]:
    """Write tensors and JSON, each beside its place; they take their places when the block has ended well.

    Parameters
    ----------
    folder
        Made if absent.
    files
        Names of the two files, ``.safetensors`` and ``.json``.
    tensors
        By name.
    about
        Plain JSON values, among them ``format_version``.

    Raises
    ------
    DataError
        A file cannot be written.
    """
    from safetensors.torch import save

    make_folder(folder)
    with replacing(folder / files[1]) as text, replacing(folder / files[0]) as weights:
        weights.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
        text.write_text(json.dumps(about, indent=1), encoding="utf-8")
        yield


def read(folder: Path, files: tuple[str, ...], *, version: int, kind: str, mend: str) -> Any:
    """The JSON of a folder that :func:`writing` wrote.

    Parameters
    ----------
    folder
        As of :func:`writing`.
    files
        Names of the files that have to be there, the JSON last.
    version
        The ``format_version`` that can be read.
    kind
        What the folder holds, in words.
    mend
        How to get one.

    Raises
    ------
    ModelError
        A file is absent, the JSON is damaged, or of another version.
    """
    for name in files[::-1]:
        if not (folder / name).is_file():
            raise ModelError(
                f"no {kind} at {folder}: {name} is missing. Expected a folder written by {kind}.save(); {mend}"
            )
    path = folder / files[-1]
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        found = about["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is no {kind} description ({error!r}); save the {kind} again.") from error
    if found != version:
        raise ModelError(
            f"{folder} has {kind} format {found!r}, this hibiost reads format {version}; "
            "install the hibiost version that wrote it, or a newer one."
        )
    return about


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises
    ------
    ModelError
        It is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged or no safetensors file ({error}); copy or save it again.") from error
