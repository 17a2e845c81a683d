from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from .. import inputs, keys
from ..datasets._hgnc import hgnc
from ..datasets._orthologs import OrthologTable, mouse_symbols
from ..datasets._orthologs import orthologs as ortholog_pairs
from ..errors import DataError
from ..genes.orthologs import OneToMany, choose_orthologs, detect_species, species_named, sum_genes
from ..genes.vocabulary import looks
from ..settings import logger

if TYPE_CHECKING:
    from anndata import AnnData

GENE_IDS = "gene_ids"
"""``var``: Ensembl identifiers, as scanpy's readers name them."""


@inputs.takes_spatialdata
def map_genes(
    adata: AnnData,
    *,
    species: str | None = None,
    to: str = "human",
    one_to_many: OneToMany = "drop",
    orthologs: OrthologTable = "ensembl",
    library_key: str = keys.LIBRARY,
) -> AnnData:
    """The same spots with genes under current human symbols: identifiers, former names, and orthologs of mouse genes.

    Human genes get their HGNC symbol, from a symbol, former symbol, alias, or Ensembl (with or without version) or
    Entrez identifier; a name that HGNC does not know stays. Mouse genes, by symbol or Ensembl identifier, become their
    human orthologs; one without is dropped. A name that no table knows is looked up by ``var["gene_ids"]``, where that
    is there. Genes that become one are added up.

    Always a new AnnData: genes are dropped and merged, and an AnnData cannot change its genes in place. ``adata`` stays
    as it is, so nothing is lost. Memory holds the new AnnData and, where genes merge, one matrix more.

    Parameters
    ----------
    adata
        AnnData with raw counts in ``X``; of one species.
    species
        Species of the genes now: ``"human"``, ``"mouse"``, or the Latin name. Where it is not given, the slides'
        metadata and the names tell, and have to agree; an AnnData that was mapped before is human.
    to
        Species whose names the genes get; human alone.
    one_to_many
        What becomes of a mouse gene with several human orthologs, and of several with the same. ``"drop"``: both are
        dropped, one-to-one pairs stay. ``"sum"``: several with the same are added up; one with several is dropped, as
        its counts cannot be shared out. ``"best"``: one with several becomes that of the highest sequence identity, or
        else that of the same letters; those which then meet are added up.
    orthologs
        Table of orthologs: ``"ensembl"`` (release of October 2022) or ``"mgi"``.
    library_key
        Column of ``obs`` that tells slides apart.

    Returns
    -------
    A new AnnData. Slides keep their metadata, also the species. ``X`` and layers are summed, CSR, where genes merge;
    ``varm["measured"]`` then tells whether any of them was measured, and what else is in ``var``, ``varm`` and ``varp``
    is that of the first of them. Sentences, their weights and their pathways are left out: they are of the former
    genes. With these slots:

    ``var_names``
        Human symbols, each once, in the order in which the genes stood.
    ``var["original_name"]``
        The former names of the gene, joined by ``;``.
    ``uns["map_genes"]`` : dict
        Numbers of genes: ``n_before`` = ``kept`` (the name stayed) + ``renamed`` + ``dropped``; ``n_after`` is less by
        ``merged`` than ``kept`` + ``renamed``; ``dropped`` = ``no_ortholog`` + ``one_to_many``; ``unknown`` (known to
        no table, part of ``kept``). ``dropped_genes`` (their names) and ``params``.

    Raises
    ------
    DataError
        An unknown species, species that are mixed or contradict the names, no gene known, an unknown policy or table,
        or genes to merge in what holds no raw counts.
    DownloadError
        A table (5 MB in all) is neither in the cache nor to be had.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> import hibiost as hb
    >>> adata = ad.AnnData(np.array([[3, 1, 2]], dtype="float32"))
    >>> adata.var_names = ["ENSMUSG00000059552.13", "Erbb2", "Gm26206"]
    >>> mapped = hb.pp.map_genes(adata)  # doctest: +SKIP
    >>> list(mapped.var_names), mapped.uns["map_genes"]["dropped"]  # doctest: +SKIP
    (['TP53', 'ERBB2'], 1)
    """
    inputs.check_spots(adata)
    if adata.n_vars == 0:
        raise DataError("the AnnData holds no genes (n_vars = 0); an image alone has none to map.")
    if species_named(to) != "human":
        raise DataError(f"to is {to!r}; genes are given human names only: to='human'.")
    names = [str(name) for name in adata.var_names]
    origin = _species(adata, names, species, library_key)
    ids = [str(each) for each in adata.var[GENE_IDS]] if GENE_IDS in adata.var else names
    found = _human(names, ids) if origin == "human" else _orthologs(names, ids, one_to_many, orthologs)

    place, symbols = pd.factorize(np.array(found.symbols, dtype=object))
    result = _regrouped(adata.to_memory() if adata.isbacked else adata, place, symbols)
    kept = sum(name == symbol for name, symbol in zip(names, found.symbols, strict=True))
    dropped = np.array(names, dtype=object)[place < 0]
    report = {
        "n_before": len(names),
        "n_after": len(symbols),
        "kept": kept,
        "renamed": len(names) - len(dropped) - kept,
        "merged": len(names) - len(dropped) - len(symbols),
        "dropped": len(dropped),
        "no_ortholog": len(dropped) - found.ambiguous,
        "one_to_many": found.ambiguous,
        "unknown": found.unknown,
    }
    params = {"species": origin, "to": "human", "one_to_many": one_to_many, "orthologs": orthologs}
    inputs.record(result, keys.MAP_GENES, **report, dropped_genes=dropped, params=params)
    logger.info(
        f"map_genes, {origin} to human: {len(names)} genes, of which {kept} keep their name ({found.unknown} unknown), "
        f"{report['renamed']} are renamed and {len(dropped)} dropped ({report['no_ortholog']} without ortholog, "
        f"{found.ambiguous} not one-to-one); {report['merged']} merge into others: {len(symbols)} genes."
    )
    return result


def _species(adata: AnnData, names: list[str], species: str | None, library_key: str) -> str:
    if species is not None:
        return detect_species(names, species_named(species))
    if keys.MAP_GENES in adata.uns:
        return detect_species(names, adata.uns[keys.MAP_GENES]["params"]["to"])
    spots: Counter[str] = Counter()
    for library, rows in inputs.libraries(adata, library_key).items():
        told = inputs.slide_metadata(adata, library).get("species")
        if told is not None:
            spots[species_named(told)] += len(rows)
    if len(spots) > 1:
        raise DataError(
            f"the slides are of mixed species, in spots: {dict(spots)}. Map the slides of one species at a time, "
            "adata[adata.obs[...] == ...], and concatenate them then; or give species= where the genes are of one."
        )
    return detect_species(names, next(iter(spots), None))


class _Found(NamedTuple):
    symbols: list[str | None]
    """The human symbol of each gene, None where it is dropped."""
    unknown: int = 0
    ambiguous: int = 0


def _human(names: list[str], ids: list[str]) -> _Found:
    table = hgnc()
    known = [table.current(name) or table.current(key) for name, key in zip(names, ids, strict=True)]
    _check_known(names, len(names) - known.count(None), "HGNC")
    return _Found([symbol or name for symbol, name in zip(known, names, strict=True)], unknown=known.count(None))


def _orthologs(names: list[str], ids: list[str], policy: OneToMany, table: OrthologTable) -> _Found:
    pairs = ortholog_pairs(table)
    symbol_of, human_of, current = mouse_symbols(), choose_orthologs(pairs, policy), hgnc().current
    paired = set(pairs["gene"][pairs["ortholog"] != ""])
    mouse = [symbol_of.get(name.split(".")[0], name) for name in names]
    by_id = [symbol_of.get(key.split(".")[0], name) for key, name in zip(ids, mouse, strict=True)]
    mouse = [name if name in paired else other for name, other in zip(mouse, by_id, strict=True)]
    _check_known(names, sum(name in paired for name in mouse), f"the {table} table of mouse orthologs")
    human = [human_of.get(name) for name in mouse]
    ambiguous = sum(name in paired and symbol is None for name, symbol in zip(mouse, human, strict=True))
    return _Found([symbol and (current(symbol) or symbol) for symbol in human], ambiguous=ambiguous)


def _check_known(names: list[str], n_known: int, table: str) -> None:
    if not n_known:
        raise DataError(
            f"none of the {len(names)} genes is known to {table}: found {looks(names)}; expected symbols or Ensembl "
            "identifiers in adata.var_names."
        )


def _regrouped(adata: AnnData, place: np.ndarray, symbols: np.ndarray) -> AnnData:
    """The genes in their new places, those of the same place as one."""
    if not symbols.size:
        raise DataError("no gene is left: none has a one-to-one ortholog; give another one_to_many=.")
    columns = np.flatnonzero(place >= 0)
    first = columns[np.unique(place[columns], return_index=True)[1]]
    former = adata.var.get(keys.ORIGINAL, pd.Series(adata.var_names)).astype(str).to_numpy(dtype=object)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Variable names are not unique", UserWarning)
        result = adata[:, first].copy()
    result.var_names = symbols
    _drop_sentences(result)
    result.var[keys.ORIGINAL] = pd.Series(former[columns]).groupby(place[columns]).agg(";".join).to_numpy(dtype=object)
    if columns.size > symbols.size:
        if result.X is not None:
            result.X = _summed(adata.X, "X", place, symbols.size)
        for layer in [name for name in result.layers if name is not None]:  # anndata 0.13 counts X as one
            result.layers[layer] = _summed(adata.layers[layer], f"layers[{layer!r}]", place, symbols.size)
        if keys.MEASURED in result.varm:
            measured = pd.DataFrame(adata.varm[keys.MEASURED]).iloc[columns].groupby(place[columns]).any()
            result.varm[keys.MEASURED] = measured.set_axis(result.var_names)
    return result


def _summed(matrix: Any, where: str, place: np.ndarray, n_genes: int) -> sparse.csr_matrix:
    matrix = sparse.csr_matrix(matrix)
    try:
        inputs.check_counts(matrix.data, where)
    except DataError as error:
        raise DataError(f"genes that become one are added up, but {error} Map before you normalise.") from error
    return sum_genes(matrix, place, n_genes)


def _drop_sentences(adata: AnnData) -> None:
    """Leave out sentences, their weights and their pathways, which name the genes as they were."""
    for key in [key for key in adata.uns if key in adata.obsm]:
        entry = adata.uns[key]
        if not isinstance(entry, Mapping) or not entry.keys() & {"genes", "pathways"}:
            continue
        prefix = "" if key == keys.SENTENCE else f"{key}_"
        if "genes" in entry:
            adata.layers.pop(prefix + keys.TFIDF, None)
            adata.var = adata.var.drop(columns=[prefix + keys.IDF, prefix + keys.N_SPOTS], errors="ignore")
        del adata.obsm[key], adata.uns[key]
        logger.warning(f"obsm[{key!r}] is left out: it is of the genes as they were named before.")
