"""Gene sets: names, members, the other names of the members, and where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import sparse

from ..errors import DataError
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
        No sets, or a set without genes.

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
        sets = {str(name): tuple(dict.fromkeys(map(str, genes))) for name, genes in self.sets.items()}
        empty = [name for name, genes in sets.items() if not genes]
        if empty:
            raise DataError(f"{len(empty)} gene sets hold no genes, such as {empty[0]!r}; leave them out.")
        object.__setattr__(self, "sets", sets)

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
            No gene is shared, or no set is left.
        """
        names = [str(gene) for gene in genes]
        columns = self._columns(names)
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

    def _columns(self, names: list[str]) -> dict[str, int]:
        """The place among ``names`` of each gene of the sets."""
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


def _mend(found: str) -> str:
    if found.startswith("Ensembl"):
        return " Name the genes by symbol: adata.var_names = hb.datasets.hgnc_symbols(adata.var_names)."
    if "mouse case" in found:
        return " The sets are of another species or case: give sets of the species of the data."
    return " Name the genes (adata.var_names) as the sets do."
