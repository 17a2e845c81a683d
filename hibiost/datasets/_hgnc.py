"""Names of human genes: HGNC's complete set (CC0), from any of a gene's names to its current symbol."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from ..errors import DataError
from ..settings import logger
from ._registry import fetch

DATASET, FILE = "orthologs", "src/Gene/hgnc_complete_set.tsv.gz"
DATE = "2022-02-21"
"""Of the last change in the table: symbols approved later are unknown."""
VERSION = re.compile(r"(?<=^ENSG\d{11})\.\d+$")
"""The version of an Ensembl identifier."""


class Hgnc(NamedTuple):
    """Approved symbols, and other names that lead to one of them."""

    symbols: frozenset[str]
    ids: dict[str, str]
    """Symbol of each Ensembl and Entrez identifier."""
    former: dict[str, str]
    """Symbol of each former symbol and alias that belongs to one gene alone and is no approved symbol itself."""

    def id_of(self, name: str) -> str | None:
        """Symbol of an Ensembl (with or without version) or Entrez identifier."""
        return self.ids.get(VERSION.sub("", name))

    def current(self, name: str) -> str | None:
        """Approved symbol of a gene, None where HGNC does not tell."""
        return name if name in self.symbols else self.id_of(name) or self.former.get(name)


def hgnc() -> Hgnc:
    """The names of human genes.

    Raises
    ------
    DownloadError
        The table is neither in the cache nor to be had.
    """
    return _read(fetch(DATASET, FILE))


@cache
def _read(path: Path) -> Hgnc:
    columns = ["symbol", "alias_symbol", "prev_symbol", "entrez_id", "ensembl_gene_id"]
    table = pd.read_csv(path, sep="\t", usecols=columns, dtype=str, keep_default_na=False)
    symbol = table["symbol"]
    ids = pd.concat([_pairs(table["entrez_id"], symbol), _pairs(table["ensembl_gene_id"], symbol)])
    former = pd.concat([_pairs(table[column].str.split("|"), symbol) for column in ("prev_symbol", "alias_symbol")])
    return Hgnc(frozenset(symbol), _unambiguous(ids), _unambiguous(former[~former["name"].isin(symbol)]))


def _pairs(names: pd.Series, symbol: pd.Series) -> pd.DataFrame:
    """A row for each other name of a gene."""
    pairs = pd.DataFrame({"name": names, "symbol": symbol}).explode("name")
    return pairs[pairs["name"] != ""]


def _unambiguous(pairs: pd.DataFrame) -> dict[str, str]:
    pairs = pairs.drop_duplicates()
    pairs = pairs[~pairs["name"].duplicated(keep=False)]
    return dict(zip(pairs["name"], pairs["symbol"], strict=True))


def hgnc_symbols(names: Iterable[str]) -> list[str]:
    """Current HGNC symbols of human genes, from whatever names they go by.

    Current means in the pinned table, of February 2022: a symbol approved since is unknown, its forerunner current.
    How many were known, renamed and unknown is logged. Different names of one gene become the same symbol; that is
    logged too, since ``adata.var_names`` should be unique (``adata.var_names_make_unique()``).

    Parameters
    ----------
    names
        Symbols, former symbols and aliases, Ensembl identifiers (with or without version), Entrez identifiers, also
        mixed.

    Returns
    -------
    A symbol for each name, in the order of the names. A name that HGNC does not know, or that several genes share as a
    former symbol or alias, is returned as it is.

    Raises
    ------
    DataError
        ``names`` is one string.
    DownloadError
        HGNC's table (4 MB) is neither in the cache nor to be had.

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.datasets.hgnc_symbols(["ENSG00000164342.14", "SEPT4", "6347", "gag"])  # doctest: +SKIP
    ['TLR3', 'SEPTIN4', 'CCL2', 'gag']
    >>> hb.datasets.hgnc_symbols("SEPT4")
    Traceback (most recent call last):
    ...
    hibiost.errors.DataError: names is the string 'SEPT4'; expected a list of gene names.
    """
    if isinstance(names, str):
        raise DataError(f"names is the string {names!r}; expected a list of gene names.")
    table = hgnc()
    given = [str(name) for name in names]
    found = [table.current(name) for name in given]
    symbols = [symbol or name for symbol, name in zip(found, given, strict=True)]
    n_current = sum(name in table.symbols for name in given)
    n_unknown = found.count(None)
    shared = len(set(given)) - len(set(symbols))
    logger.info(
        "hgnc_symbols: %d names, %d current symbols, %d renamed, %d unknown and kept%s.",
        len(given),
        n_current,
        len(given) - n_current - n_unknown,
        n_unknown,
        f"; {shared} became the same as another" if shared else "",
    )
    return symbols
