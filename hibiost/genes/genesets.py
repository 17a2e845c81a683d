"""Gene sets: names, members, the other names of the members, and where they come from."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from ..errors import DataError
from .gmt import read_gmt
from .vocabulary import looks

MIN_GENES = 5
"""Fewest genes of a set that a vocabulary must hold (the decision beside eq 5)."""


@dataclass(frozen=True, eq=False)
class GeneSets(Mapping[str, tuple[str, ...]]):
    """Gene sets by name, such as pathways.

    Parameters
    ----------
    sets
        Genes of each set; a gene named twice counts once.
    aliases
        Other names of the genes: former symbols and aliases, each with the name used in ``sets``.
    source
        Where the sets come from: ``name``, ``version``, ``licence`` and the like, in terms of JSON.

    Raises
    ------
    DataError
        No sets, a set without genes, or one that is not given as several names.

    Examples
    --------
    >>> import hibiost as hb
    >>> sets = hb.genes.GeneSets({"sensors": ["RIGI", "TLR3"]}, aliases={"DDX58": "RIGI"})
    >>> names, members = sets.membership(["ACTB", "DDX58", "TLR3"], min_genes=2)
    >>> members.toarray()
    array([[0., 1., 1.]], dtype=float32)
    """

    sets: Mapping[str, Iterable[str]]
    aliases: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.sets:
            raise DataError("there are no gene sets.")
        sets = {str(name): _members(name, genes) for name, genes in self.sets.items()}
        empty = [name for name, genes in sets.items() if not genes]
        if empty:
            raise DataError(f"{len(empty)} gene sets hold no genes, such as {empty[0]!r}; leave them out.")
        object.__setattr__(self, "sets", sets)

    @classmethod
    def from_gmt(cls, path: str | os.PathLike[str]) -> GeneSets:
        """The sets of a GMT file, plain or gzipped, with the names as they are there.

        :func:`hibiost.datasets.gene_sets` reads the same files and brings human gene names up to date.

        Parameters
        ----------
        path
            The file: per line ``name TAB description TAB gene TAB gene ...``; descriptions are not kept. A line without
            genes is left out and told.

        Raises
        ------
        DataError
            The file cannot be read, is no GMT file, or a line of it is malformed; the line is named.
        """
        return cls(read_gmt(path), source={"name": Path(path).name})

    def __getitem__(self, name: str) -> tuple[str, ...]:
        return self.sets[name]  # type: ignore[return-value]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sets)

    def __len__(self) -> int:
        return len(self.sets)

    def __repr__(self) -> str:
        return f"GeneSets({len(self)} sets of {self.source.get('name', 'unnamed source')}, {len(self.genes)} genes)"

    @property
    def genes(self) -> set[str]:
        """All genes of all sets."""
        return {gene for genes in self.values() for gene in genes}

    def membership(
        self, genes: Iterable[str], *, min_genes: int = MIN_GENES, max_genes: int | None = None
    ) -> tuple[list[str], sparse.csr_matrix]:
        """Which of some genes belong to which set; sets are first cut to these genes.

        A gene that no set holds under its own name is looked up among the aliases, unless the genes also hold the name
        that the alias stands for.

        Parameters
        ----------
        genes
            Gene names, each once, such as those of a vocabulary.
        min_genes, max_genes
            Sets with fewer or more of these genes are left out.

        Returns
        -------
        Names of the sets kept, and CSR float32, n_sets x n_genes, with a 1 for each member.

        Raises
        ------
        DataError
            ``min_genes`` below 1, no gene is shared, or no set is left.
        """
        if min_genes < 1:
            raise DataError(f"min_genes is {min_genes}; expected at least 1: a set without genes overlaps nothing.")
        names = [str(gene) for gene in genes]
        columns = self.columns(names)
        kept, members = [], []
        for name, of_set in self.items():
            hits = sorted(columns[gene] for gene in of_set if gene in columns)
            if min_genes <= len(hits) and (max_genes is None or len(hits) <= max_genes):
                kept.append(name)
                members.append(np.array(hits, dtype=np.int32))
        if not kept:
            most = max(sum(gene in columns for gene in of_set) for of_set in self.values())
            raise DataError(
                f"none of the {len(self)} gene sets has {min_genes} to {max_genes or 'any number of'} genes among the "
                f"{len(names)} of the data (the most is {most}); change min_genes or max_genes, or give other sets."
            )
        indptr = np.cumsum([0, *map(len, members)])
        ones = np.ones(indptr[-1], dtype=np.float32)
        return kept, sparse.csr_matrix((ones, np.concatenate(members), indptr), shape=(len(kept), len(names)))

    def columns(self, names: Sequence[str]) -> dict[str, int]:
        """The place among ``names`` of each gene of the sets, by its own name or by an alias, as in :meth:`membership`.

        Parameters
        ----------
        names
            Gene names, each once.

        Raises
        ------
        DataError
            No gene is shared; says what either side looks like.
        """
        known = self.genes
        columns = {name: at for at, name in enumerate(names) if name in known}
        for at, name in enumerate(names):
            if name not in known and (current := self.aliases.get(name)) in known:
                columns.setdefault(current, at)
        if not columns:
            found = looks(names)
            raise DataError(
                f"none of the {len(names)} genes of the data is in a gene set: the data have {found}, the sets have "
                f"{looks(sorted(known))}.{_mend(found)}"
            )
        return columns


def _members(name: str, genes: Iterable[str]) -> tuple[str, ...]:
    """The genes of a set, each once."""
    if isinstance(genes, str) or not isinstance(genes, Iterable):
        raise DataError(f"the genes of set {name!r} are {genes!r}; expected a list of gene names.")
    return tuple(dict.fromkeys(map(str, genes)))


def distinct_names(names: Mapping[str, str]) -> dict[str, str]:
    """The identifier of each name; names that several identifiers bear are told apart by these."""
    times = Counter(names.values())
    return {f"{name} ({key})" if times[name] > 1 else name: key for key, name in names.items()}


def _mend(found: str) -> str:
    if "mouse case" in found:
        return " The sets are of another species or case: give sets of the species of the data."
    return (
        " Name the genes (adata.var_names) as the sets do; human genes get their symbols by "
        "adata.var_names = hb.datasets.hgnc_symbols(adata.var_names)."
    )
