from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import hibiost as hb
from hibiost.errors import DataError, MissingSlotError


@pytest.fixture
def adata() -> AnnData:
    """Sentences written by hand, so that nothing but the slots is read."""
    adata = AnnData(np.zeros((3, 0), dtype=np.float32))
    adata.obs_names = ["a", "b", "c"]
    adata.obsm["gene_sentence"] = np.array([[2, 0, 1], [1, -1, -1], [-1, -1, -1]], dtype=np.int32)
    adata.uns["gene_sentence"] = {"genes": np.array(["ACTB", "ERBB2", "MGP"]), "params": {}}
    return adata


def test_sentences(adata: AnnData) -> None:
    found = hb.get.sentences(adata)
    assert isinstance(found, pd.Series)
    assert found.to_dict() == {"a": "MGP ACTB ERBB2", "b": "ERBB2", "c": ""}
    assert found.name == "gene_sentence"
    assert found.index.equals(adata.obs_names)


def test_options(adata: AnnData) -> None:
    adata.obsm["mine"], adata.uns["mine"] = adata.obsm.pop("gene_sentence"), adata.uns.pop("gene_sentence")
    assert hb.get.sentences(adata, n_genes=2, key="mine", sep=", ").tolist() == ["MGP, ACTB", "ERBB2", ""]
    assert hb.get.sentences(adata, n_genes=99, key="mine").tolist() == ["MGP ACTB ERBB2", "ERBB2", ""]


@pytest.mark.parametrize("attribute", ["obsm", "uns"])
def test_missing(adata: AnnData, attribute: str) -> None:
    del getattr(adata, attribute)["gene_sentence"]
    with pytest.raises(MissingSlotError, match=rf"no {attribute}\['gene_sentence'\].*hibiost.pp.tfidf_sentences"):
        hb.get.sentences(adata)


def test_nearest(adata: AnnData) -> None:
    with pytest.raises(MissingSlotError, match="Did you mean 'gene_sentence'"):
        hb.get.sentences(adata, key="gene_sentences")


def test_n_genes(adata: AnnData) -> None:
    with pytest.raises(DataError, match="n_genes is 0"):
        hb.get.sentences(adata, n_genes=0)
