"""Any number of slides in files, read one at a time."""

from __future__ import annotations

import copy
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData
from tqdm.auto import tqdm

from .. import inputs, keys
from ..errors import DataError, nearest
from ..genes import Vocabulary
from ..settings import logger, settings
from ._hest import check_target, write_hest
from ._survey import DESCRIBED, Problem, Source, Surveyed, survey
from ._vocabulary import ONE_FILE, dask_client

T = TypeVar("T")
COLUMNS = ("path", "n_spots", "n_genes", "gene_names", *DESCRIBED, "mpp", "has_image", "has_patches")
_ABSENT = {"n_spots": 0, "n_genes": 0, "gene_names": "", "mpp": np.nan, "has_image": False, "has_patches": False}


class Corpus:
    """Slides in files: what they are, what is wrong with them, and each of them when it is asked for.

    Of each file only names, coordinates, metadata and 30,000 counts are read, and the headers of its image and patch
    file. Memory holds a row of the index for each slide, and a slide while it is used.

    Parameters
    ----------
    source
        A folder in HEST-1k's layout, as downloaded or of :func:`hibiost.io.write_hest`; or a list of such folders,
        ``.h5ad`` files, ``.zarr`` folders and AnnData, of one or more slides each.
    layer
        Layer that holds raw counts; ``X`` where not given.
    library_key
        Column of ``obs`` that tells the slides of an AnnData apart.

    Attributes
    ----------
    index
        DataFrame, a row for each slide by its id: ``path``, ``n_spots``, ``n_genes``, ``gene_names`` (symbols in human
        or in mouse case, or Ensembl identifiers), ``species``, ``organ``, ``disease_state``, ``patient``,
        ``st_technology``, ``license``, ``mpp`` (micrometres per full-resolution pixel), ``has_image`` (of full
        resolution), ``has_patches``, ``n_problems`` and ``usable`` (none of them is blocking). What is unknown is NaN.
    problems
        DataFrame, a row for each problem of each slide: ``slide``, ``problem``, and ``blocking`` (the slide cannot be
        trained on).
    layer, library_key
        As given.

    Raises
    ------
    DataError
        There are no slides, or not one of them can be read; all problems are listed.

    Examples
    --------
    >>> import tempfile
    >>> import hibiost as hb
    >>> slides = hb.datasets.tissue(60, n_slides=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     hb.io.write_hest(slides, folder)
    ...     corpus = hb.io.Corpus(folder)
    ...     training = corpus.select("patient != 'P2'")
    ...     vocabulary = training.vocabulary()
    ...     tables = [hb.pp.tfidf_sentences(a, vocabulary=vocabulary, copy=True) for a in training]
    >>> corpus.index[["n_spots", "patient", "mpp"]].values.tolist()
    [[60, 'P0', 0.5], [60, 'P1', 0.5], [60, 'P2', 0.5]]
    >>> training
    Corpus(2 slides, 120 spots)
    """

    def __init__(
        self,
        source: AnnData | str | os.PathLike[str] | Sequence[AnnData | str | os.PathLike[str]],
        *,
        layer: str | None = None,
        library_key: str = keys.LIBRARY,
    ) -> None:
        self.layer, self.library_key = layer, library_key
        sources = _sources(source, library_key)
        self._slides: list[Surveyed] = []
        for each in tqdm(sources, desc="survey", unit="file", delay=2, disable=not settings.progress):
            self._slides += survey(each, layer)
        if not any(slide.row.get("n_spots") for slide in self._slides):
            self.check()
        logger.info("%r; corpus.index lists the slides, corpus.problems what to mend (%d).", self, len(self.problems))

    @property
    def index(self) -> pd.DataFrame:
        rows = [_ABSENT | slide.row for slide in self._slides]
        table = pd.DataFrame(rows, [slide.id for slide in self._slides], columns=list(COLUMNS)).rename_axis("id")
        problems = self._all_problems()
        table["n_problems"] = [len(found) for found in problems]
        table["usable"] = [not any(problem.blocking for problem in found) for found in problems]
        return table

    @property
    def problems(self) -> pd.DataFrame:
        rows = [
            (slide.id, problem.text, problem.blocking)
            for slide, problems in zip(self._slides, self._all_problems(), strict=True)
            for problem in problems
        ]
        return pd.DataFrame(rows, columns=["slide", "problem", "blocking"])

    def check(self) -> None:
        """Refuse slides that cannot be trained on, and tell of what else is wrong with any.

        Raises
        ------
        DataError
            Lists every problem of every slide. ``corpus.select("usable")`` goes on without these slides.
        """
        blocking, remarks = dict[str, list[str]](), dict[str, list[str]]()
        bad = 0
        for slide, problems in zip(self._slides, self._all_problems(), strict=True):
            bad += any(problem.blocking for problem in problems)
            for problem in problems:
                (blocking if problem.blocking else remarks).setdefault(problem.text, []).append(slide.id)
        lines = [f"  {', '.join(slides)}: {text}" for text, slides in blocking.items()]
        lines += [f"  ({_some(slides)}: {text})" for text, slides in remarks.items()]
        if bad:
            raise DataError(
                f"{bad} of {len(self)} slides cannot be used. Mend them, or go on without them: "
                "corpus.select('usable').\n" + "\n".join(lines)
            )
        if lines:
            logger.warning("all %d slides can be used; to be known:\n%s", len(self), "\n".join(lines))

    def select(self, which: str | Iterable[Any]) -> Self:
        """A corpus of some of the slides; nothing is read again.

        Parameters
        ----------
        which
            A condition on the columns of ``index``, such as ``"organ == 'Breast' and patient not in ['A', 'B']"``; or
            a bool for each slide; or ids.

        Raises
        ------
        DataError
            The condition cannot be read, ids are unknown, or no slide is left.
        """
        index = self.index
        if isinstance(which, str):
            try:
                chosen = index.eval(which, engine="python").to_numpy(dtype=bool)
            except (AttributeError, LookupError, NameError, SyntaxError, TypeError, ValueError) as error:
                raise DataError(f"{which!r} is no condition on {list(index.columns)}: {error}") from error
        else:
            chosen = np.asarray(list(which))
            if chosen.dtype != bool:
                for wanted in map(str, chosen):
                    self._known(wanted)
                chosen = index.index.isin(list(map(str, chosen)))
        if len(chosen) != len(self) or not chosen.any():
            raise DataError(f"{which!r} selects none of {len(self)} slides, or is of another length.")
        part = copy.copy(self)
        part._slides = [slide for slide, keep in zip(self._slides, chosen, strict=True) if keep]
        return part

    def __len__(self) -> int:
        return len(self._slides)

    def __repr__(self) -> str:
        return f"Corpus({len(self)} slides, {sum(slide.row.get('n_spots', 0) for slide in self._slides)} spots)"

    def __getitem__(self, slide: str) -> AnnData:
        """Read a slide."""
        return next(_Group.of(self._known(slide)).read())

    def __iter__(self) -> Iterator[AnnData]:
        """Read the slides, one after the other; a file of several slides is read once."""
        for group in self._groups():
            yield from group.read()

    def map(self, function: Callable[..., T], **options: Any) -> Iterator[T]:
        """Call a function with each slide.

        Where a ``dask.distributed`` client is active, its workers read the files, each one at a time, and a few
        results more than there are workers wait here. The workers need the same paths.

        Parameters
        ----------
        function
            Takes an AnnData of one slide.
        options
            Further arguments of the function.

        Returns
        -------
        Iterator over its results, in the order of the slides.
        """
        return self._map(_Call(function, options))

    def write(
        self,
        folder: str | os.PathLike[str],
        function: Callable[..., AnnData | None],
        *,
        overwrite: bool = False,
        **options: Any,
    ) -> Corpus:
        """Call a function with each slide and write what becomes of the slide: a corpus, one slide in memory at a time.

        Where a ``dask.distributed`` client is active, its workers read, compute and write; see :meth:`map`. Every file
        is complete or not there, and a call that was interrupted goes on where it stopped. The slides themselves, in
        files or in memory, stay as they are.

        Parameters
        ----------
        folder
            Folder to write to, in the layout of :func:`hibiost.io.write_hest`; none that slides are read from.
        function
            Takes an AnnData of one slide and changes it, or returns another one: a verb such as
            :func:`hibiost.pp.tfidf_sentences` or :func:`hibiost.pp.map_genes`, or your own.
        overwrite
            Write slides anew that are in the folder; by default they stay, whatever the options were.
        options
            Further arguments of the function.

        Returns
        -------
        The corpus of the slides as written, with counts in ``X``.

        Raises
        ------
        DataError
            The folder is a file or one that slides are read from, two slides bear the same name, or a file cannot be
            read or written.

        Examples
        --------
        >>> import hibiost as hb
        >>> corpus = hb.io.Corpus(hb.datasets.tissue(60, n_slides=3))
        >>> vocabulary = corpus.vocabulary()
        >>> written = corpus.write("sentences", hb.pp.tfidf_sentences, vocabulary=vocabulary, weights=False)
        >>> hb.get.sentences(written["tissue_1"]).shape
        (60,)
        """
        root = Path(os.path.abspath(Path(folder).expanduser()))
        ids = [slide.id for slide in self._slides]
        if twice := [name for name, times in Counter(ids).items() if times > 1]:
            raise DataError(f"several slides are named {twice[0]!r}; give each slide a name of its own.")
        if any(slide.source.hest and slide.source.root.resolve() == root.resolve() for slide in self._slides):
            raise DataError(f"{root} is the folder that slides are read from; choose another one.")
        check_target(root, ids, overwrite=True)
        left = np.array([overwrite or not (root / "st" / f"{name}.h5ad").exists() for name in ids])
        if not left.all():
            kept = np.count_nonzero(~left)
            logger.info("%d of %d slides are in %s already; overwrite=True writes them anew.", kept, len(ids), root)
        if left.any():
            writing = _Writing(function, options, root, self.layer, self.library_key)
            done = self.select(left)._map(_Call(writing, {}, own=True))
            for _ in tqdm(done, total=left.sum(), desc="write", unit="slide", disable=not settings.progress):
                pass
        return Corpus(root, library_key=self.library_key).select(ids)

    def vocabulary(self, *, min_spots: int = 1) -> Vocabulary:
        """Fit a vocabulary on the slides as they are read, one in memory at a time; see :meth:`map` for dask.

        Parameters
        ----------
        min_spots
            Leave out genes seen in fewer spots of the corpus.

        Returns
        -------
        The same as :func:`hibiost.io.fit_vocabulary` gives of all slides in memory.

        Raises
        ------
        DataError
            A slide cannot be read, or holds no counts.
        """
        options = {"layer": self.layer, "library_key": self.library_key}
        parts = self._map(_Call(_count, options, counts_only=True))
        bar = tqdm(parts, total=len(self), desc="vocabulary", unit="slide", disable=not settings.progress)
        return Vocabulary.merge(bar, min_spots=min_spots)

    def _map(self, call: _Call) -> Iterator[Any]:
        client = dask_client()
        groups = iter(self._groups())
        if client is None:
            for group in groups:
                yield from call.each(group)
            return
        ahead = 2 + sum(client.nthreads().values())
        waiting = deque(_submit(client, call, group) for group in islice(groups, ahead))
        while waiting:
            result = waiting.popleft()
            waiting.extend(_submit(client, call, group) for group in islice(groups, 1))
            yield from result()

    def _groups(self) -> list[_Group]:
        by_source = groupby(self._slides, key=lambda slide: id(slide.source))
        return [_Group.of(*slides) for _, slides in by_source]

    def _known(self, wanted: str) -> Surveyed:
        found = [slide for slide in self._slides if slide.id == wanted]
        if len(found) == 1:
            return found[0]
        ids = [slide.id for slide in self._slides]
        if found:
            raise DataError(f"{len(found)} slides are named {wanted!r}; give each slide a name of its own.")
        raise DataError(f"no slide {wanted!r} among {len(ids)}, such as {ids[:5]}.{nearest(wanted, ids)}")

    def _all_problems(self) -> list[list[Problem]]:
        """Those of each slide alone, and those of the slides together."""
        names = Counter(slide.id for slide in self._slides)
        kinds = Counter(slide.row.get("gene_names") or "names" for slide in self._slides)
        kinds.pop("names", None)
        usual = max(kinds, key=lambda kind: kinds[kind], default="")
        species = Counter(slide.row["species"] for slide in self._slides if isinstance(slide.row.get("species"), str))
        first: dict[str, str] = {}
        result = []
        for slide in self._slides:
            found = list(slide.problems)
            if names[slide.id] > 1:
                found.append(
                    Problem(f"{names[slide.id]} slides bear this name; it is in {slide.row['path'] or 'memory'}.")
                )
            kind = slide.row.get("gene_names") or "names"
            if kind not in ("names", usual):
                text = f"its genes are {kind}, those of most slides {usual}; bring them to one: hb.pp.map_genes."
                found.append(Problem(text))
            if len(species) > 1 and slide.row.get("species") in species:
                others = [name for name in species if name != slide.row["species"]]
                text = f"it is of {slide.row['species']}, other slides of {', '.join(others)}."
                found.append(Problem(text, blocking=False))
            original = first.setdefault(slide.fingerprint, slide.id)
            if slide.fingerprint and original != slide.id:
                text = f"has the barcodes, coordinates and counts of {original!r}: the section is there twice."
                found.append(Problem(text))
            result.append(found)
        return result


@dataclass(frozen=True)
class _Group:
    """Slides of a source."""

    source: Source
    slides: tuple[str, ...]

    @classmethod
    def of(cls, *slides: Surveyed) -> _Group:
        return cls(slides[0].source, tuple(slide.id for slide in slides))

    def read(self, *, counts_only: bool = False, own: bool = False) -> Iterator[AnnData]:
        """The slides; one that was given in memory as it is, or as a copy of its own."""
        adata: AnnData = self.source.read_counts() if counts_only else self.source.read()
        rows = inputs.libraries(adata, self.source.library_key)
        if len(rows) == 1:
            given: Any = self.source.place
            yield adata.to_memory(copy=True) if own and adata is given else adata
            return
        spatial = adata.uns.get(keys.SPATIAL, {})
        for slide in self.slides:
            part = adata[rows[slide]].copy()
            part.uns[keys.SPATIAL] = {slide: part.uns[keys.SPATIAL][slide]} if slide in spatial else {}
            yield part


@dataclass(frozen=True)
class _Call:
    """A function and the slides it is called with, as workers get them."""

    function: Callable[..., Any]
    options: dict[str, Any]
    counts_only: bool = False
    own: bool = False

    def each(self, group: _Group) -> Iterator[Any]:
        slides = group.read(counts_only=self.counts_only, own=self.own)
        for name, adata in zip(group.slides, slides, strict=True):
            try:
                result = self.function(adata, **self.options)
            except Exception as error:
                error.add_note(f"This was slide {name!r} of the corpus.")
                raise
            yield result

    def __call__(self, group: _Group) -> list[Any]:
        with ONE_FILE:
            return list(self.each(group))


@dataclass(frozen=True)
class _Writing:
    """A function whose results are written, as workers get it."""

    function: Callable[..., AnnData | None]
    options: dict[str, Any]
    root: Path
    layer: str | None
    library_key: str

    def __call__(self, adata: AnnData) -> None:
        result = self.function(adata, **self.options)
        if not isinstance(result, AnnData | None):
            raise DataError(
                f"the function returned a {type(result).__name__}; expected an AnnData, or None where it changes the "
                "one that it was given. corpus.map(function) gives results of any kind."
            )
        written = adata if result is None else result
        write_hest(written, self.root, layer=self.layer, library_key=self.library_key, overwrite=True)


def _submit(client: Any, call: _Call, group: _Group) -> Callable[[], Iterable[Any]]:
    """Results of a group, to be called for: of an AnnData they are computed here."""
    if isinstance(group.source.place, AnnData):
        return lambda: call.each(group)
    return client.submit(call, group, pure=False).result


def _count(adata: AnnData, *, layer: str | None, library_key: str) -> Vocabulary:
    slides = inputs.libraries(adata, library_key)
    counted = inputs.slide_counts(adata, inputs.counts(adata, layer), slides)
    return Vocabulary.fit(counted, min_spots=0, metadata=inputs.spots_by_word(adata, slides))


def _some(slides: list[str]) -> str:
    return ", ".join(slides) if len(slides) <= 5 else f"{', '.join(slides[:3])} and {len(slides) - 3} more"


def _sources(source: Any, library_key: str) -> list[Source]:
    """Samples of HEST folders, files and AnnData; paths absolute: workers may stand elsewhere."""
    several = [source] if isinstance(source, AnnData | str | os.PathLike) else list(source)
    found: list[Source] = []
    for each in several:
        if isinstance(each, AnnData):
            found.append(Source(each, hest=False, library_key=library_key))
            continue
        if not isinstance(each, str | os.PathLike):
            raise DataError(f"a source is a {type(each).__name__}; expected AnnData, or a path (folder, .h5ad, .zarr).")
        path = Path(os.path.abspath(Path(each).expanduser()))
        hest = (path / "st").is_dir()
        samples = sorted((path / "st").glob("*.h5ad")) if hest else [path]
        if not samples:
            raise DataError(f"{path / 'st'} holds no .h5ad file; expected a folder in HEST's layout, st/<sample>.h5ad.")
        found += [Source(sample, hest=hest, library_key=library_key) for sample in samples]
    if not found:
        raise DataError("no slides: the list is empty; expected a folder in HEST's layout, or files.")
    return found
