"""Gene sets of public releases, of KEGG, of files and of dicts, with current names of human genes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError, DownloadError, nearest
from ..genes.genesets import GeneSets, distinct_names
from ..genes.gmt import read_gmt
from ..genes.vocabulary import looks
from ..settings import logger
from ._hgnc import DATE, Hgnc, hgnc
from ._kegg import kegg
from ._registry import fetch

DATASET = "genesets"


class _Release(NamedTuple):
    path: str
    version: str
    licence: str
    url: str
    viral: frozenset[str] = frozenset()
    """Viral genes that share their name with a former symbol or alias of a human gene."""


RELEASES = {
    "reactome": _Release(
        "reactome/ReactomePathways_2024-09-18.gmt",
        "2024-09-18",
        "CC0 1.0",
        "https://reactome.org/license",
        viral=frozenset(["HN", "NA", "NEC1", "NEC2", "P", "PB1", "SCP", "TRM2", "TRM3", "TRS1", "TRX1", "TRX2"]),
    ),
    "wikipathways": _Release(
        "wikipathways/data-raw/extdata/wikipathways-20230410-gmt-Homo_sapiens.gmt",
        "2023-04-10",
        "CC0 1.0",
        "https://www.wikipathways.org",
    ),
}
NAMES = (*RELEASES, "kegg")


def gene_sets(source: str | os.PathLike[str] | Mapping[str, Iterable[str]], *, refresh: bool = False) -> GeneSets:
    """Gene sets, such as pathways, with the current names of human genes.

    Former symbols, unambiguous aliases and Ensembl and Entrez identifiers become HGNC's current symbols; a name that
    HGNC does not know (viral genes, for example) is kept, counted and told. The sets remember the other names of their
    genes, so that data with older names match too.

    Parameters
    ----------
    source
        ``"reactome"`` or ``"wikipathways"``: their public releases, human, downloaded once. ``"kegg"``: human pathways
        asked from KEGG's service and cached by date, for academic use only. Or your own: the path of a GMT file (plain
        or gzipped), or names of sets with their genes. A :class:`hibiost.genes.GeneSets` is returned as it is.
    refresh
        Ask KEGG anew even where a copy is cached.

    Returns
    -------
    Sets by name. ``aliases`` holds the former symbols and aliases of their genes; ``source`` holds ``name``,
    ``version``, ``licence`` and ``url`` (of your own sets, ``name`` alone), ``hgnc``, the date of HGNC's table, and the
    counts ``n_genes``, ``n_renamed`` (former symbols and aliases), ``n_identifiers`` (Ensembl and Entrez) and
    ``n_unknown``. Sets of your own are taken as they are, without counts, where their symbols are in mouse case or
    where HGNC's table is not to be had; either is logged.

    Raises
    ------
    DataError
        An unknown source, a malformed GMT file (the line is named), no sets, a set without genes, or sets of your own
        with not one human gene.
    DownloadError
        A release, HGNC's table or KEGG's service is not to be had, or the cache is damaged or cannot be written.

    Notes
    -----
    Reactome (Milacic et al. 2024) and WikiPathways (Agrawal et al. 2024) are CC0; KEGG (Kanehisa et al. 2023) is not
    free: academic use only, no redistribution (https://www.kegg.jp/kegg/legal.html).

    Examples
    --------
    >>> import hibiost as hb
    >>> sets = hb.datasets.gene_sets({"RNA sensors": ["IFIH1", "TLR3", "TLR7"], "keratins": ["KRT5", "KRT19"]})
    >>> sets["RNA sensors"]
    ('IFIH1', 'TLR3', 'TLR7')
    >>> hb.datasets.gene_sets("reactom")
    Traceback (most recent call last):
    ...
    hibiost.errors.DataError: no gene sets 'reactom'; expected 'reactome', 'wikipathways', ... Did you mean 'reactome'?
    """
    if refresh and source != "kegg":
        raise DataError("refresh=True asks KEGG anew, but the source is not 'kegg'; leave refresh out.")
    if isinstance(source, GeneSets):
        return source
    if source in NAMES:
        table = hgnc()
        if source == "kegg":
            return _renamed(kegg(refresh=refresh), table)
        return _renamed(_released(str(source)), table, viral=RELEASES[str(source)].viral)
    given = (
        GeneSets(source, source={"name": "dict"}) if isinstance(source, Mapping) else GeneSets.from_gmt(_path(source))
    )
    try:
        table = hgnc()
    except DownloadError as error:
        logger.warning(
            "%s: gene names are taken as they are: HGNC's table of current names is not to be had (%s)",
            given.source["name"],
            error,
        )
        return given
    return _checked(given, table)


def _path(source: Any) -> Path:
    if isinstance(source, str) and not source.endswith((".gmt", ".gmt.gz")) and not Path(source).expanduser().exists():
        expected = ", ".join(map(repr, NAMES))
        raise DataError(
            f"no gene sets {source!r}; expected {expected}, the path of a GMT file, or a dict.{nearest(source, NAMES)}"
        )
    if not isinstance(source, str | os.PathLike):
        raise DataError(f"the source of gene sets is of type {type(source).__name__}; expected a name, path or dict.")
    return Path(source).expanduser()


def _released(name: str) -> GeneSets:
    """A public release, its genes named as in the file."""
    release = RELEASES[name]
    sets = read_gmt(fetch(DATASET, release.path))
    if name == "wikipathways":
        titles = {line.split("%")[2]: line.split("%")[0].strip() for line in sets}
        genes = {line.split("%")[2]: of_set for line, of_set in sets.items()}
        sets = {title: genes[key] for title, key in distinct_names(titles).items()}
    source = {"name": name, "version": release.version, "licence": release.licence, "url": release.url}
    return GeneSets(sets, source=source)


def _checked(given: GeneSets, table: Hgnc) -> GeneSets:
    """A user's sets, renamed where they are of human genes."""
    name, genes = given.source["name"], sorted(given.genes)
    found = looks(genes)
    if "mouse case" in found:
        logger.info("%s: %s, of another species than human: taken as they are.", name, found)
        return given
    if not any(table.current(gene) for gene in genes):
        raise DataError(
            f"{name}: none of the {len(genes)} genes of the sets is a human gene: they are {found}; expected HGNC "
            "symbols, Ensembl (ENSG) or Entrez identifiers. Sets of another species or of made-up genes are taken as "
            "they are by hb.genes.GeneSets(sets) or hb.genes.GeneSets.from_gmt(path)."
        )
    return _renamed(given, table)


def _renamed(given: GeneSets, table: Hgnc, *, viral: frozenset[str] = frozenset()) -> GeneSets:
    """Sets with current names of genes, the other names of these, and the counts."""
    current = {gene: None if gene in viral else table.current(gene) for gene in given.genes}
    unknown = sorted(gene for gene, symbol in current.items() if symbol is None)
    changed = [gene for gene, symbol in current.items() if symbol not in (gene, None)]
    n_identifiers = sum(table.id_of(gene) is not None for gene in changed)
    sets = {name: [current[gene] or gene for gene in genes] for name, genes in given.items()}
    members = {gene for genes in sets.values() for gene in genes}
    counts = {
        "n_genes": len(members),
        "n_renamed": len(changed) - n_identifiers,
        "n_identifiers": n_identifiers,
        "n_unknown": len(unknown),
    }
    tell = logger.warning if 2 * len(unknown) > len(current) else logger.info
    tell(
        "%s: %d sets, %d genes; %d former names and %d identifiers replaced by current symbols; %d names unknown to "
        "HGNC (of %s) and kept%s.",
        " ".join(given.source[key] for key in ("name", "version") if key in given.source),
        len(sets),
        *counts.values(),
        DATE,
        f", such as {', '.join(unknown[:3])}" if unknown else "",
    )
    aliases = {other: symbol for other, symbol in table.former.items() if symbol in members and other not in members}
    return GeneSets(sets, aliases=aliases, source={**given.source, "hgnc": DATE, **counts})
