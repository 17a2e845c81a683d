"""A vocabulary of any number of files, read block by block, here or by the workers of a dask cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset

from .. import inputs, keys
from ..errors import DataError, HibiostError, MissingSlotError, nearest
from ..genes import Vocabulary
from ..settings import logger, settings
from ._reading import reading

Source: TypeAlias = AnnData | str | os.PathLike[str]

BLOCK = 2_000_000
"""Stored values of a block, about."""
ONE_FILE = Lock()
"""A worker with several threads holds one block too."""


def fit_vocabulary(
    sources: Source | Sequence[Source],
    *,
    min_spots: int = 1,
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
) -> Vocabulary:
    """Fit a vocabulary on any number of slides, reading one block of counts at a time.

    The same as :meth:`hibiost.genes.Vocabulary.fit` in memory. Where ``varm["measured"]`` is there, a gene counts only
    in the slides that measured it. Beside the sums (about 150 bytes a gene), memory holds ``obs`` of one file and a
    block of about two million stored values (100 MB with its checks), or a row of chunks of a dask array.

    Where a ``dask.distributed`` client is active, its workers read the files, each one at a time, and the parts are
    merged here: the result is the same. They need the same paths.

    Parameters
    ----------
    sources
        ``.h5ad`` files, ``.zarr`` folders, AnnData (in memory, backed, or of dask arrays), or a list that mixes them;
        of different slides.
    min_spots
        Leave out genes seen in fewer spots of all sources together; 0 for a part that is to be merged.
    layer
        Layer that holds raw counts; ``X`` where not given.
    library_key
        Column of ``obs`` that tells slides apart.

    Returns
    -------
    The vocabulary, with the metadata words of the slides; ``vocabulary.save(path)`` keeps it.

    Raises
    ------
    DataError
        No sources, a file twice, one that is absent, truncated or no AnnData, counts that are none, a gene twice; the
        file is named.
    MissingSlotError
        ``layer`` or ``library_key`` is not there.

    Examples
    --------
    >>> import hibiost as hb
    >>> tissue = hb.datasets.tissue(50)
    >>> tissue.write_h5ad("tissue.h5ad")
    >>> hb.io.fit_vocabulary("tissue.h5ad") == hb.io.fit_vocabulary(tissue)
    True
    """
    listed = _listed(sources)
    return Vocabulary.merge(_parts(listed, layer=layer, library_key=library_key), min_spots=min_spots)


def _listed(sources: Source | Sequence[Source]) -> list[AnnData | Path]:
    """The sources, paths absolute: workers may stand elsewhere."""
    several = [sources] if isinstance(sources, AnnData | str | os.PathLike) else list(sources)
    listed: list[AnnData | Path] = []
    for source in several:
        if not isinstance(source, AnnData | str | os.PathLike):
            raise DataError(f"a source is a {type(source).__name__}; expected AnnData, or a path (.h5ad, .zarr).")
        listed.append(source if isinstance(source, AnnData) else Path(os.path.abspath(Path(source).expanduser())))
    if not listed:
        raise DataError("no sources to fit a vocabulary on; the list is empty.")
    paths = [path.resolve() for path in listed if isinstance(path, Path)]
    if twice := sorted({str(path) for path in paths if paths.count(path) > 1}):
        raise DataError(f"{len(twice)} files are given twice, such as {twice[0]}; their spots would count double.")
    return listed


def _parts(sources: list[AnnData | Path], **options: Any) -> Iterator[Vocabulary]:
    from tqdm.auto import tqdm

    alone = len(sources) == 1
    with tqdm(total=len(sources), desc="vocabulary", unit="file", disable=alone or not settings.progress) as bar:
        client = dask_client()
        if client is not None:
            paths = [source for source in sources if isinstance(source, Path)]
            sources = [source for source in sources if not isinstance(source, Path)]
            for part in _from_workers(client, paths, options):
                bar.update()
                yield part
        for source in sources:
            yield _part(source, progress=alone and settings.progress, **options)
            bar.update()


def dask_client() -> Any:
    """The active client of dask.distributed, None without."""
    distributed = sys.modules.get("distributed")
    try:
        return None if distributed is None else distributed.get_client()
    except ValueError:
        return None


def _from_workers(client: Any, paths: list[Path], options: Mapping[str, Any]) -> Iterator[Vocabulary]:
    from distributed import as_completed

    logger.info("%d files are read by the workers of dask.", len(paths))
    futures = client.map(_on_worker, paths, pure=False, **options)
    try:
        for _, part in as_completed(futures, with_results=True):
            yield part
    finally:
        client.cancel(futures)


def _on_worker(path: Path, **options: Any) -> Vocabulary:
    with ONE_FILE:
        return _part(path, progress=False, **options)


def _part(source: AnnData | Path, *, layer: str | None, library_key: str, progress: bool) -> Vocabulary:
    with _named(source), _opened(source, layer, library_key) as (frame, matrix):
        inputs.check_spots(frame)
        inputs.check_genes(frame)
        words = inputs.spots_by_word(frame, inputs.libraries(frame, library_key))
        blocks = _blocks(frame, matrix, layer, library_key, progress=progress)
        return Vocabulary.fit(blocks, min_spots=0, metadata=words)


@contextmanager
def _named(source: AnnData | Path) -> Iterator[None]:
    """Errors name the file."""
    if isinstance(source, AnnData):
        yield
        return
    try:
        with reading(source, "an AnnData of write_h5ad or write_zarr"):
            yield
    except HibiostError as error:
        if str(error).startswith(str(source)):
            raise
        raise type(error)(f"{source}: {error}") from error


class _Table(NamedTuple):
    """Counts that are not read yet, and what is around them: slides, genes, metadata."""

    frame: AnnData
    matrix: Any


@contextmanager
def _opened(source: AnnData | Path, layer: str | None, library_key: str) -> Iterator[_Table]:
    if isinstance(source, AnnData):
        yield _table(source, source.layers, layer, library_key, source.X if layer is None else None)
    elif source.is_dir():
        import zarr

        yield _stored(zarr.open_group(source, mode="r"), layer, library_key)
    else:
        import h5py

        with h5py.File(source) as file:
            yield _stored(file, layer, library_key)


def _stored(group: Any, layer: str | None, library_key: str) -> _Table:
    """An AnnData file, of which only ``obs``, ``var`` and the metadata are read."""
    if absent := [name for name in ("obs", "var") if name not in group]:
        hint = " A SpatialData store holds its tables under tables/: give one of these." if "tables" in group else ""
        raise DataError(f"is no AnnData, it has no {absent[0]!r}; found {sorted(group)}.{hint}")
    if any(group[name].attrs.get("encoding-type") != "dataframe" for name in ("obs", "var")):
        raise DataError("is of an AnnData version before 0.7; read it with anndata.read_h5ad and write it anew.")
    spatial = group["uns"].get(keys.SPATIAL, {}) if "uns" in group else {}
    entries = {name: {"metadata": _read(spatial[name], "metadata", {})} for name in spatial}
    varm = {keys.MEASURED: measured} if (measured := _read(group.get("varm", {}), keys.MEASURED)) is not None else {}
    around = AnnData(obs=read_elem(group["obs"]), var=read_elem(group["var"]), varm=varm, uns={keys.SPATIAL: entries})
    matrix = group.get("X") if layer is None else None
    return _table(around, group.get("layers", {}), layer, library_key, matrix)


def _read(group: Any, name: str, default: Any = None) -> Any:
    return read_elem(group[name]) if name in group else default


def _table(around: AnnData, layers: Any, layer: str | None, library_key: str, matrix: Any) -> _Table:
    if layer is not None:
        if layer not in layers:
            known = [name for name in layers if name is not None]  # anndata 0.13 counts X as one
            raise MissingSlotError(f"no layer {layer!r}; the layers are {known}.{nearest(layer, known)}")
        matrix = layers[layer]
    if matrix is None or getattr(matrix, "attrs", {}).get("encoding-type") == "null":
        raise DataError("X is empty (None); expected raw counts, or name their layer with layer=.")
    if "indptr" in (matrix if hasattr(matrix, "attrs") and not hasattr(matrix, "shape") else ()):
        matrix = sparse_dataset(matrix)
    columns = [name for name in around.obs.columns if name == library_key]
    metadata = {name: {"metadata": inputs.slide_metadata(around, name)} for name in around.uns.get(keys.SPATIAL, {})}
    frame = AnnData(
        obs=around.obs[columns].set_axis(pd.RangeIndex(around.n_obs).astype(str)),
        var=pd.DataFrame(index=around.var_names),
        varm={name: around.varm[name] for name in around.varm if name == keys.MEASURED},
        uns={keys.SPATIAL: metadata},
    )
    if tuple(matrix.shape) != frame.shape:
        raise DataError(f"counts of shape {matrix.shape} for {frame.n_obs} spots and {frame.n_vars} genes.")
    return _Table(frame, matrix)


def _blocks(
    frame: AnnData, matrix: Any, layer: str | None, library_key: str, *, progress: bool
) -> Iterator[tuple[np.ndarray, Any]]:
    from tqdm.auto import tqdm

    by_column = getattr(matrix, "format", None) == "csc"
    windows = inputs.windows(matrix, size=BLOCK, axis=int(by_column))
    for window in tqdm(windows, desc="vocabulary", unit="block", disable=not progress):
        values = inputs.loaded(matrix[:, window] if by_column else matrix[window])
        block = (frame[:, window] if by_column else frame[window]).copy()
        if layer is None:
            block.X = values
        else:
            block.layers[layer] = values
        yield from inputs.slide_counts(block, inputs.counts(block, layer), inputs.libraries(block, library_key))
