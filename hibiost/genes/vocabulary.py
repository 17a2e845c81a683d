"""The genes a model knows, with how many spots express each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError
from .tfidf import document_frequency, idf


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Genes and the statistics behind their inverse document frequency (HiBio-ST, eq 2).

    Parameters
    ----------
    genes
        Gene names, each once.
    n_spots
        Spots with a count above zero, per gene; kept as int64, (n_genes,).
    n_measured
        Spots of the slides that measured the gene, per gene; kept as int64, (n_genes,).

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

    @classmethod
    def fit(cls, slides: Iterable[tuple[Iterable[str], Any]], *, min_spots: int = 1) -> Vocabulary:
        """Count spots slide by slide; one slide is in memory at a time.

        A gene is counted, and its spots looked at, only in the slides that measured it.

        Parameters
        ----------
        slides
            For each slide its gene names and its counts, n_obs x n_genes, sparse or dense.
        min_spots
            Leave out genes seen in fewer spots.

        Returns
        -------
        A vocabulary in alphabetical order: the same whatever the order of the slides.

        Raises
        ------
        DataError
            No slides, a gene twice in a slide, names that do not fit the counts, or no gene in ``min_spots`` spots.
        """
        places: dict[str, int] = {}
        n_spots = n_measured = np.zeros(0, dtype=np.int64)
        for number, (names, counts) in enumerate(slides, start=1):
            names = _unique_names(names, f"slide {number}")
            if counts.shape[1] != len(names):
                raise DataError(f"slide {number} has {len(names)} gene names and counts of {counts.shape[1]} genes.")
            at = np.array([places.setdefault(name, len(places)) for name in names], dtype=np.int64)
            n_spots = np.append(n_spots, np.zeros(len(places) - n_spots.size, dtype=np.int64))
            n_measured = np.append(n_measured, np.zeros(len(places) - n_measured.size, dtype=np.int64))
            n_spots[at] += document_frequency(counts)
            n_measured[at] += counts.shape[0]
        if not places:
            raise DataError("no genes to count: there are no slides, or slides without genes.")
        kept = sorted(name for name, at in places.items() if n_spots[at] >= min_spots)
        if not kept:
            raise DataError(f"none of {len(places)} genes is seen in {min_spots} spots; lower min_spots.")
        order = [places[name] for name in kept]
        return cls(tuple(kept), n_spots[order], n_measured[order])

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
                f"{looks(names)}, the vocabulary has {looks(self.genes)}. Name the genes (adata.var_names) alike."
            )
        return index

    def to_dict(self) -> dict[str, list]:
        """The vocabulary in terms of JSON."""
        return {
            "genes": list(self.genes),
            "n_spots": self.n_spots.tolist(),
            "n_measured": self.n_measured.tolist(),
        }

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Vocabulary:
        """The vocabulary that :meth:`to_dict` wrote.

        Raises
        ------
        DataError
            An entry is absent, or does not hold what it should.
        """
        absent = [name for name in ("genes", "n_spots", "n_measured") if name not in entries]
        if absent:
            raise DataError(f"the vocabulary has no entry {absent[0]!r}; found {list(entries)}.")
        return cls(tuple(entries["genes"]), entries["n_spots"], entries["n_measured"])

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
