"""The genes a model knows, with how many spots express each."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .._files import replacing
from ..errors import DataError
from .tfidf import document_frequency, idf

METADATA = ("species", "organ", "disease_state", "st_technology")
"""Slide metadata that become tokens, in the order in which they stand in a sentence (HEST-1k's names)."""


def metadata_words(metadata: Mapping[str, object]) -> list[str]:
    """The metadata words of a slide, such as ``"organ:breast"``; absent entries give none."""
    return [f"{key}:{str(metadata[key]).strip().casefold()}" for key in METADATA if metadata.get(key)]


FORMAT = "hibiost vocabulary"
"""What tells a file with a vocabulary from other JSON."""

_NUMBERS = ("n_spots", "n_measured", "metadata", "min_spots")
_Entry = tuple[Iterable[str], Any, Any]
"""Gene names, with spots that express them and spots that could have."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Genes and the statistics behind their inverse document frequency (HiBio-ST, eq 2).

    Vocabularies are equal where genes and statistics are, whatever their metadata words.

    Parameters
    ----------
    genes
        Gene names, each once.
    n_spots
        Spots with a count above zero, per gene; kept as int64, (n_genes,).
    n_measured
        Spots of the slides that measured the gene, per gene; kept as int64, (n_genes,).
    metadata
        Spots of the slides that bear each metadata word, such as ``{"species:homo sapiens": 346}``; the words become
        tokens of a model.
    min_spots
        Genes seen in fewer spots have been left out.

    Raises
    ------
    DataError
        No genes, a gene twice, lengths that differ, or numbers of spots that cannot be.

    Examples
    --------
    >>> import numpy as np
    >>> from hibiost.genes import Vocabulary
    >>> slides = [(["B", "A"], np.array([[1, 0], [2, 1]])), (["A"], np.array([[0]]))]
    >>> vocabulary = Vocabulary.fit(slides)
    >>> vocabulary.genes, vocabulary.n_spots.tolist(), vocabulary.n_measured.tolist()
    (('A', 'B'), [1, 2], [3, 2])
    >>> vocabulary.index(["B", "X"]).tolist()
    [1, -1]
    """

    genes: tuple[str, ...]
    n_spots: np.ndarray
    n_measured: np.ndarray
    metadata: Mapping[str, int] = field(default_factory=dict)
    min_spots: int = 0

    def __post_init__(self) -> None:
        genes = _unique_names(self.genes, "the vocabulary")
        if not genes:
            raise DataError("the vocabulary holds no genes.")
        object.__setattr__(self, "genes", genes)
        for name in ("n_spots", "n_measured"):
            values = np.array(getattr(self, name), dtype=np.int64)
            if values.shape != (len(genes),):
                raise DataError(f"{name} has shape {values.shape}; expected one number for each of {len(genes)} genes.")
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        wrong = np.flatnonzero((self.n_spots < 0) | (self.n_spots > self.n_measured))
        if wrong.size:
            at = wrong[0]
            raise DataError(
                f"gene {genes[at]!r} is seen in {self.n_spots[at]} of {self.n_measured[at]} spots; "
                "expected 0 <= n_spots <= n_measured."
            )
        object.__setattr__(self, "metadata", {str(word): int(self.metadata[word]) for word in sorted(self.metadata)})

    @classmethod
    def fit(
        cls,
        slides: Iterable[tuple[Iterable[str], Any]],
        *,
        min_spots: int = 1,
        metadata: Mapping[str, int] | None = None,
    ) -> Vocabulary:
        """Count spots slide by slide, or block by block; one of them is in memory at a time.

        A gene is counted, and its spots looked at, only in the slides that measured it.

        Parameters
        ----------
        slides
            For each slide its gene names and its counts, n_obs x n_genes, sparse or dense. A slide may come in blocks
            of spots, each with the names.
        min_spots
            Leave out genes seen in fewer spots; 0 for a part that is to be merged.
        metadata
            Spots of the slides that bear each metadata word.

        Returns
        -------
        A vocabulary in alphabetical order: the same whatever the order of the slides.

        Raises
        ------
        DataError
            No slides, a gene twice in a slide, names that do not fit the counts, or no gene in ``min_spots`` spots.
        """
        return cls._sum(_counted(slides), min_spots, metadata or {})

    @classmethod
    def merge(cls, parts: Iterable[Vocabulary], *, min_spots: int = 1) -> Vocabulary:
        """Vocabularies of disjoint slides as one: that of a fit over all slides.

        Parameters
        ----------
        parts
            Vocabularies fitted with ``min_spots=0``, one in memory at a time where they come from a generator.
        min_spots
            Leave out genes seen in fewer spots of all parts together.

        Returns
        -------
        A vocabulary in alphabetical order: the same whatever the order of the parts.

        Raises
        ------
        DataError
            No parts, a part that lacks genes already, or no gene in ``min_spots`` spots.

        Examples
        --------
        >>> import numpy as np
        >>> from hibiost.genes import Vocabulary
        >>> parts = [Vocabulary.fit([(["A", "B"], np.array([row]))], min_spots=0) for row in ([1, 0], [2, 0])]
        >>> Vocabulary.merge(parts)
        Vocabulary(1 genes, up to 2 spots)
        """
        metadata: Counter[str] = Counter()

        def entries() -> Iterable[_Entry]:
            for number, part in enumerate(parts, start=1):
                if part.min_spots > 0:
                    raise DataError(
                        f"part {number} was fitted with min_spots={part.min_spots}: genes that are rare in it are "
                        "lost, and sums would be wrong; fit the parts with min_spots=0 and give min_spots here."
                    )
                metadata.update(part.metadata)
                yield part.genes, part.n_spots, part.n_measured

        return cls._sum(entries(), min_spots, metadata)

    @classmethod
    def _sum(cls, entries: Iterable[_Entry], min_spots: int, metadata: Mapping[str, int]) -> Vocabulary:
        places: dict[str, int] = {}
        n_spots = n_measured = np.zeros(0, dtype=np.int64)
        before: Iterable[str] | None = None
        for names, seen, measured in entries:
            if names is not before:
                at = np.array([places.setdefault(name, len(places)) for name in names], dtype=np.int64)
            before = names
            n_spots = np.append(n_spots, np.zeros(len(places) - n_spots.size, dtype=np.int64))
            n_measured = np.append(n_measured, np.zeros(len(places) - n_measured.size, dtype=np.int64))
            n_spots[at] += seen
            n_measured[at] += measured
        if not places:
            raise DataError("no genes to count: there are no slides, or slides without genes.")
        kept = sorted(name for name, at in places.items() if n_spots[at] >= min_spots)
        if not kept:
            raise DataError(f"none of {len(places)} genes is seen in {min_spots} spots; lower min_spots.")
        order = [places[name] for name in kept]
        return cls(tuple(kept), n_spots[order], n_measured[order], metadata, min_spots)

    @property
    def species(self) -> dict[str, int]:
        """Spots of each species, in the words of the slides' metadata."""
        return self._spots_of("species")

    @property
    def platforms(self) -> dict[str, int]:
        """Spots of each technology, in the words of the slides' metadata."""
        return self._spots_of("st_technology")

    def _spots_of(self, key: str) -> dict[str, int]:
        prefix = f"{key}:"
        return {word.removeprefix(prefix): n for word, n in self.metadata.items() if word.startswith(prefix)}

    @cached_property
    def idf(self) -> np.ndarray:
        """Inverse document frequency, float64, (n_genes,)."""
        return idf(self.n_spots, self.n_measured)

    def index(self, names: Iterable[str]) -> np.ndarray:
        """Places of genes in the vocabulary, int64; -1 for a gene it does not hold."""
        return self._index.get_indexer(pd.Index(list(names), dtype=object)).astype(np.int64)

    def match(self, names: Iterable[str]) -> np.ndarray:
        """As :meth:`index`, but refuse names of which the vocabulary holds none.

        Raises
        ------
        DataError
            Not one gene is shared; says what either side looks like.
        """
        names = [str(name) for name in names]
        index = self.index(names)
        if not (index >= 0).any():
            raise DataError(
                f"none of the {len(names)} genes of the data is among the {len(self)} of the vocabulary: the data have "
                f"{looks(names)}, the vocabulary has {looks(self.genes)}. Name the genes (adata.var_names) alike: "
                "hb.pp.map_genes(adata) gives them current human symbols."
            )
        return index

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the vocabulary to a JSON file: beside its place, then renamed.

        Parameters
        ----------
        path
            The file; its folder has to be there.

        Returns
        -------
        The file.

        Raises
        ------
        DataError
            The file cannot be written.
        """
        path = Path(path).expanduser()
        content = json.dumps({"format": FORMAT, **self.to_dict()}, ensure_ascii=False)
        with replacing(path) as part:
            part.write_text(content, encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """The vocabulary that :meth:`save` wrote.

        Parameters
        ----------
        path
            The file.

        Raises
        ------
        DataError
            The file cannot be read, or holds no vocabulary.
        """
        path = Path(path).expanduser()
        expected = "expected a file written by Vocabulary.save()"
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"could not read the vocabulary {path}: {error}; {expected}.") from error
        if text.lstrip().startswith("<"):
            raise DataError(f"{path} is a web page, starting with {text.strip()[:40]!r}; {expected}: fetch it anew.")
        try:
            entries = json.loads(text)
        except ValueError as error:
            raise DataError(f"{path} is empty, truncated or no JSON ({error}); {expected}: fetch it anew.") from error
        if not isinstance(entries, dict) or entries.get("format") != FORMAT:
            raise DataError(f"{path} is JSON, but no vocabulary: it has no entry 'format': {FORMAT!r}; {expected}.")
        try:
            return cls.from_dict(entries)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The vocabulary in terms of JSON."""
        return {
            "genes": list(self.genes),
            "n_spots": self.n_spots.tolist(),
            "n_measured": self.n_measured.tolist(),
            "metadata": dict(self.metadata),
            "min_spots": self.min_spots,
        }

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Vocabulary:
        """The vocabulary that :meth:`to_dict` wrote, also before it kept ``metadata`` and ``min_spots``.

        Raises
        ------
        DataError
            An entry is absent, or does not hold what it should.
        """
        absent = [name for name in ("genes", "n_spots", "n_measured") if name not in entries]
        if absent:
            raise DataError(f"the vocabulary has no entry {absent[0]!r}; found {list(entries)}.")
        metadata, min_spots = entries.get("metadata", {}), entries.get("min_spots", 1)
        if not isinstance(entries["genes"], list | tuple) or not isinstance(metadata, Mapping):
            raise DataError("the vocabulary holds no list of genes, or no table of metadata words; fetch it anew.")
        for name, values in {**entries, "metadata": list(metadata.values()), "min_spots": [min_spots]}.items():
            if name in _NUMBERS and not (isinstance(values, list) and all(type(value) is int for value in values)):
                raise DataError(f"the entry {name!r} of the vocabulary holds something else than whole numbers.")
        return cls(tuple(entries["genes"]), entries["n_spots"], entries["n_measured"], metadata, min_spots)

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.genes, dtype=object)

    def __len__(self) -> int:
        return len(self.genes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return (
            self.genes == other.genes
            and np.array_equal(self.n_spots, other.n_spots)
            and np.array_equal(self.n_measured, other.n_measured)
        )

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} genes, up to {self.n_measured.max()} spots)"


def _counted(slides: Iterable[tuple[Iterable[str], Any]]) -> Iterator[_Entry]:
    before: Iterable[str] | None = None
    for number, (given, counts) in enumerate(slides, start=1):
        if given is not before:
            names = _unique_names(given, f"slide {number}")
        before = given
        if counts.shape[1] != len(names):
            raise DataError(f"slide {number} has {len(names)} gene names and counts of {counts.shape[1]} genes.")
        yield names, document_frequency(counts), counts.shape[0]
        del counts


def _unique_names(names: Iterable[str], where: str) -> tuple[str, ...]:
    names = tuple(map(str, names))
    if len(set(names)) < len(names):
        twice = [name for name, times in Counter(names).items() if times > 1]
        raise DataError(f"{where} names {len(twice)} genes more than once, such as {twice[:3]}.")
    return names


def looks(names: Sequence[str]) -> str:
    """What most gene names look like, with examples."""
    patterns = {
        "Ensembl identifiers": r"ENS[A-Z]*G\d+(\.\d+)?",
        "symbols in mouse case": r"[A-Z][a-z][a-z0-9.\-]+",
        "symbols in human case": r"[A-Z][A-Z0-9.\-]+(orf\d+)?",
    }
    kinds = {kind: sum(re.fullmatch(p, name) is not None for name in names) for kind, p in patterns.items()}
    kind = max(kinds, key=lambda k: kinds[k])
    examples = ", ".join(map(repr, names[:3]))
    return f"{kind if 2 * kinds[kind] > len(names) else 'names'} such as {examples}"
