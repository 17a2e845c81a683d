"""Mouse genes: their symbols by Ensembl identifier, and their human orthologs by Ensembl or MGI."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from ..errors import check_choice
from ._registry import fetch

OrthologTable = Literal["ensembl", "mgi"]

SYMBOLS = ("mob_st", "inst/extdata/mouse_genes.tsv.gz")
ENSEMBL = ("orthologs", "src/Gene/ensembl.mouse_human.tsv.gz")
MGI = ("orthologs", "mgi/data/HMD_HumanPhenotype.rpt")


def mouse_symbols() -> dict[str, str]:
    """Symbol of each mouse gene, by Ensembl identifier without version (GENCODE's annotation of GRCm38).

    Raises
    ------
    DownloadError
        The table is neither in the cache nor to be had.
    """
    return _read_symbols(fetch(*SYMBOLS))


def orthologs(table: OrthologTable = "ensembl") -> pd.DataFrame:
    """Pairs of mouse and human genes, as :func:`hibiost.genes.orthologs.choose_orthologs` takes them.

    Parameters
    ----------
    table
        ``"ensembl"``: BioMart's export of October 2022; one-to-one is what Ensembl calls so and what is so by name too;
        similarity is the identity of the proteins. ``"mgi"``: MGI's table of human and mouse orthologs; one-to-one by
        name; no similarity.

    Raises
    ------
    DataError
        An unknown table.
    DownloadError
        The table is neither in the cache nor to be had.
    """
    check_choice("orthologs", table, get_args(OrthologTable))
    return _read_ensembl(fetch(*ENSEMBL)) if table == "ensembl" else _read_mgi(fetch(*MGI))


@cache
def _read_symbols(path: Path) -> dict[str, str]:
    rows = pd.read_csv(path, sep="\t", usecols=["gene_id", "gene_name"], dtype=str, keep_default_na=False)
    return dict(zip(rows["gene_id"].str.split(".").str[0], rows["gene_name"], strict=True))


@cache
def _read_ensembl(path: Path) -> pd.DataFrame:
    columns = {
        "Gene name": "gene",
        "Human gene name": "ortholog",
        "Human homology type": "type",
        "%id. target Human gene identical to query gene": "target_identity",
        "%id. query gene identical to target Human gene": "query_identity",
    }
    rows = pd.read_csv(path, sep="\t", usecols=list(columns), dtype=str, keep_default_na=False).rename(columns=columns)
    rows = rows[(rows["gene"] != "") & (rows["type"] != "")]
    similarity = rows[["target_identity", "query_identity"]].astype(float).sum(axis=1)
    rows = rows.assign(similarity=similarity).sort_values("similarity", ascending=False, kind="stable")
    pairs = rows.drop_duplicates(["gene", "ortholog"]).sort_index()
    return _with_one_to_one(pairs, pairs["type"] == "ortholog_one2one")


@cache
def _read_mgi(path: Path) -> pd.DataFrame:
    rows = pd.read_csv(path, sep="\t", header=None, usecols=[0, 4], dtype=str, keep_default_na=False)
    pairs = pd.DataFrame({"gene": rows[4].str.strip(), "ortholog": rows[0].str.strip(), "similarity": 0.0})
    pairs = pairs.drop_duplicates()
    return _with_one_to_one(pairs, pd.Series(data=True, index=pairs.index))


def _with_one_to_one(pairs: pd.DataFrame, candidates: pd.Series) -> pd.DataFrame:
    named = pairs[pairs["ortholog"] != ""]
    alone = ~named["gene"].duplicated(keep=False) & ~named["ortholog"].duplicated(keep=False)
    one_to_one = candidates & alone.reindex(pairs.index, fill_value=False)
    return pairs.assign(one_to_one=one_to_one)[["gene", "ortholog", "one_to_one", "similarity"]].reset_index(drop=True)
