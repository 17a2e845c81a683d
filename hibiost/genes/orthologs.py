"""Species of gene names, genes of one species as those of another, and counts of genes that become one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from scipy import sparse

from ..errors import DataError, check_choice, nearest
from .vocabulary import looks

OneToMany = Literal["drop", "sum", "best"]

SPECIES = {"human": ("human", "homo sapiens"), "mouse": ("mouse", "mus musculus")}
"""The names of each species that is known."""

MIXED = 0.1
"""Share of the names of a second species from which on names are mixed."""

_PATTERNS = {
    "human": r"ENSG\d{11}(\.\d+)?|(GRCh3[78]|hg19|hg38)_+.+|(?!ENS[A-Z]*G\d{11})[A-Z][A-Z0-9.\-]+|C(\d+|X|Y)orf\d+",
    "mouse": r"ENSMUSG\d{11}(\.\d+)?|(GRCm3[89]|mm10|mm39)_+.+|[A-Z][A-Z0-9.\-]*[a-z][A-Za-z0-9.\-]*|mt-.+|\d.*Rik",
}


def species_named(name: str) -> str:
    """``"human"`` or ``"mouse"``, from any of the names of these species.

    Raises
    ------
    DataError
        Another name; the nearest known one is told.
    """
    for species, names in SPECIES.items():
        if str(name).strip().casefold() in names:
            return species
    known = [each for names in SPECIES.values() for each in names]
    raise DataError(f"species {name!r} is unknown; the species are {known}.{nearest(name, known)}")


def count_species(names: Iterable[str]) -> dict[str, int]:
    """How many names have the form of each species: Ensembl's prefix, a genome's prefix, or the case of symbols.

    Examples
    --------
    >>> from hibiost.genes.orthologs import count_species
    >>> count_species(["ENSMUSG00000051951.5", "Xkr4", "ERBB2", "C1orf112", "1"])
    {'human': 2, 'mouse': 2}
    """
    counts = dict.fromkeys(SPECIES, 0)
    for name in names:
        for species in SPECIES:
            if re.fullmatch(_PATTERNS[species], name):
                counts[species] += 1
                break
    return counts


def detect_species(names: Sequence[str], expected: str | None = None) -> str:
    """The species whose form most names have, see :func:`count_species`; names of no known form are ``expected``.

    Raises
    ------
    DataError
        Names of two species, of another than ``expected``, or of no known form where nothing is expected.
    """
    counts = count_species(names)
    species = max(counts, key=lambda each: counts[each])
    total = sum(counts.values())
    told = f"of {len(names)} genes, {counts['human']} are named as human and {counts['mouse']} as mouse genes"
    if total - counts[species] > MIXED * total:
        raise DataError(
            f"the genes are of mixed species: {told}. Keep the genes of one species (adata[:, genes]); slides of two "
            "species are mapped one species at a time and then concatenated."
        )
    if 2 * total > len(names):
        if expected not in (None, species):
            raise DataError(
                f"the slides are said to be of {expected} (species= or their metadata), but {told}: {looks(names)}. "
                f"Give species={species!r}, or data of {expected}."
            )
        return species
    if expected is None:
        raise DataError(f"cannot tell the species: {told}; found {looks(names)}. Give species=.")
    return expected


def choose_orthologs(pairs: pd.DataFrame, policy: OneToMany) -> dict[str, str]:
    """The one ortholog of each gene that gets one.

    Parameters
    ----------
    pairs
        A row for each pair: ``gene``, ``ortholog``, ``one_to_one`` (bool) and ``similarity`` (higher is nearer). Where
        a gene has an ortholog without a name, ``ortholog`` is empty.
    policy
        ``"drop"``: one-to-one pairs alone. ``"sum"``: also genes that have one ortholog, but share it. ``"best"``: each
        gene its most similar ortholog; of equal ones that of the same letters, then the first of the alphabet.

    Raises
    ------
    DataError
        An unknown policy.

    Examples
    --------
    >>> import pandas as pd
    >>> from hibiost.genes.orthologs import choose_orthologs
    >>> rows = [("Trp53", "TP53", True, 80), ("Sbp", "SMR3A", False, 30), ("Sbp", "SMR3B", False, 40)]
    >>> pairs = pd.DataFrame(rows, columns=["gene", "ortholog", "one_to_one", "similarity"])
    >>> choose_orthologs(pairs, "drop")
    {'Trp53': 'TP53'}
    >>> choose_orthologs(pairs, "best")
    {'Trp53': 'TP53', 'Sbp': 'SMR3B'}
    """
    check_choice("one_to_many", policy, get_args(OneToMany))
    if policy == "drop":
        chosen = pairs[pairs["one_to_one"]]
    elif policy == "sum":
        chosen = pairs[pairs["one_to_one"] | ~pairs["gene"].duplicated(keep=False)]
    else:
        other = pairs["gene"].str.casefold() != pairs["ortholog"].str.casefold()
        order = pairs.assign(other=other, distance=-pairs["similarity"])
        named = order[order["ortholog"] != ""]
        chosen = (
            named.sort_values(["distance", "other", "ortholog"], kind="stable").drop_duplicates("gene").sort_index()
        )
    chosen = chosen[chosen["ortholog"] != ""]
    return dict(zip(chosen["gene"], chosen["ortholog"], strict=True))


def sum_genes(matrix: Any, place: np.ndarray, n_genes: int) -> sparse.csr_matrix:
    """Columns added up where genes become one.

    Parameters
    ----------
    matrix
        Counts, n_obs x n_vars; sparse or dense.
    place
        The new column of each column, int, (n_vars,); -1 for one that is left out.
    n_genes
        Number of new columns.

    Returns
    -------
    CSR, n_obs x ``n_genes``, of the same dtype; whole numbers of less than 32 bits become int32, so that sums fit.

    Examples
    --------
    >>> import numpy as np
    >>> from hibiost.genes.orthologs import sum_genes
    >>> sum_genes(np.array([[1, 2, 4, 8]]), np.array([1, -1, 0, 1]), 2).toarray()
    array([[4, 9]])
    """
    matrix = sparse.csr_matrix(matrix)
    dtype = matrix.dtype if matrix.dtype.kind == "f" else np.promote_types(matrix.dtype, np.int32)
    kept = np.flatnonzero(place >= 0)
    shape = (matrix.shape[1], n_genes)
    members = sparse.csr_matrix((np.ones(kept.size, dtype=dtype), (kept, place[kept])), shape=shape)
    summed = sparse.csr_matrix(matrix.astype(dtype, copy=False) @ members)
    summed.sort_indices()
    return summed
