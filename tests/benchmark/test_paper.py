"""What the paper prints: numbers, data sets, genes."""

import numpy as np
import pytest
from scipy.stats import spearmanr

import hibiost as hb
from hibiost.datasets._hgnc import hgnc
from hibiost.errors import DataError

PRINTED = {"breast": 299, "her2": 300, "kidney": 295}
"""Symbols that Figure 6 prints."""


@pytest.fixture(scope="module")
def table():
    return hb.benchmark.paper_results()


def test_every_cell_of_the_tables_is_there_once(table):
    """Rows times columns of each table, counted on the page."""
    cells = {1: 6 * 5, 2: 10 * 9, 3: 6 * 6, 4: 14 * 9, 5: 10 * 6, 6: 5 * 2, 7: 11 * 2, 8: 14 * 6, 9: 12 * 3}
    assert table.groupby("table").size().to_dict() == cells
    key = ["table", "dataset", "task", "model", "variant", "metric"]
    assert not table.duplicated(key).any()
    assert table["value"].dtype == float


@pytest.mark.parametrize(
    ("number", "dataset", "model", "variant", "metric", "value"),
    [
        (1, "HER2", "UNI", "", "NMI", 0.2612),
        (2, "Kidney", "mclSTExp", "retrieval", "MSE", 1.0569),
        (2, "Breast", "EGN", "regression", "MAE", 0.6362),
        (3, "Kidney", "OmiCLIP", "token length 77", "Recall@5%", 9.930),
        (4, "Breast", "HiBio-ST", "tau=0.5", "PCC", 0.2589),
        (4, "HER2", "HiBio-ST", "HVG selection", "MSE", 0.9563),
        (5, "Kidney", "HiBio-ST", "without pathways", "Recall@10%", 17.523),
        (6, "DLPFC", "STPath", "without smoothing", "NMI", 0.2568),
        (7, "DLPFC", "HiBio-ST", "lambda2=0.5 lambda3=0.5", "ARI", 0.2678),
        (8, "CRC HD", "OmiCLIP", "16um", "PCC", 0.1815),
        (8, "Breast HD", "ST-Net", "8um", "MAE", 0.3591),
        (9, "CRC HD", "CONCH", "16um, token length 128", "Recall@10%", 24.329),
    ],
)
def test_numbers_read_by_eye(table, number, dataset, model, variant, metric, value):
    row = table[(table["table"] == number) & (table["dataset"] == dataset) & (table["model"] == model)]
    row = row[(row["variant"] == variant) & (row["metric"] == metric)]
    assert row["value"].tolist() == [value]


def test_numbers_that_stand_in_several_tables_agree(table):
    ours = table[table["model"] == "HiBio-ST"]

    def values(number, variant):
        rows = ours[(ours["table"] == number) & (ours["variant"] == variant)]
        return rows.set_index(["dataset", "metric"])["value"].sort_index()

    assert values(2, "retrieval").equals(values(4, "default"))
    assert values(3, "token length 280").equals(values(5, "default"))
    assert values(1, "").loc["DLPFC"].equals(values(7, "default").loc["DLPFC"])


def test_ranges(table):
    recalls = table[table["task"] == "retrieval"]
    assert recalls["value"].between(0, 100).all()
    assert set(recalls["metric"]) == {"Recall@1%", "Recall@5%", "Recall@10%"}
    assert table.loc[table["metric"].isin(["ARI", "NMI", "PCC"]), "value"].between(0, 1).all()


def test_disagreements_are_noted(table):
    noted = table[(table["table"] == 4) & (table["note"] != "")]
    assert set(noted["dataset"]) == {"HER2"}
    assert sorted(noted["note"].str.removeprefix("section 4.4 has ")) == ["0.2700", "0.3472", "0.7398", "0.8425"]


# -- data sets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", hb.benchmark.recipes())
def test_recipes_are_consistent(name, table):
    recipe = hb.benchmark.recipe(name)
    assert recipe.title.removesuffix(" Cancer") in set(table["dataset"])
    assert (recipe.ids is None) == (recipe.select is not None)
    if recipe.ids is not None:
        assert len(recipe.ids) == len(set(recipe.ids)) == recipe.n_slides
    if recipe.folds and recipe.n_patients:
        assert recipe.folds <= recipe.n_patients
    if recipe.sections is not None:
        assert set(recipe.sections) == set(recipe.ids)
    if recipe.genes is not None:
        assert hb.benchmark.genes(recipe.genes)


def test_the_slides_of_the_paper():
    breast, dlpfc, hd = map(hb.benchmark.recipe, ("breast", "dlpfc", "crc-hd"))
    assert not {"SPA111", "SPA112"} & set(breast.ids)
    assert (breast.ids[0], breast.ids[-1], breast.n_patients, breast.n_spots) == ("SPA51", "SPA118", 22, 30066)
    assert sorted(dlpfc.sections.values()) == [str(i) for i in (*range(151507, 151511), *range(151673, 151677))]
    assert (hd.bins_um, hd.folds, hd.select["st_technology"]) == ((8, 16), 5, "Visium HD")
    with pytest.raises(DataError, match=r"no data set 'kidny'.*Did you mean 'kidney'"):
        hb.benchmark.recipe("kidny")


def test_sections_of_her2st_are_those_of_the_loader():
    from hibiost.datasets._her2st import SECTIONS

    assert hb.benchmark.recipe("her2st").ids == tuple(SECTIONS)


# -- genes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRINTED)
def test_gene_lists_and_corrections_account_for_every_printed_symbol(name):
    genes, table = hb.benchmark.genes(name), hb.benchmark.gene_corrections()
    table = table[table["dataset"] == name]
    assert len(genes) == len(set(genes))
    assert len(genes) + (table["corrected"] == "").sum() == PRINTED[name]
    assert table["position"].is_monotonic_increasing
    left_out = table.loc[table["corrected"] == "", "position"].to_numpy()
    for row in table[table["corrected"] != ""].itertuples():
        assert genes[row.position - 1 - (left_out < row.position).sum()] == row.corrected
    assert table["reason"].str.len().gt(0).all()


@pytest.mark.data
@pytest.mark.parametrize("name", PRINTED)
def test_genes_are_current_symbols(name):
    assert not set(hb.benchmark.genes(name)) - hgnc().symbols


def test_unknown_gene_lists_are_refused():
    with pytest.raises(DataError, match=r"no gene list 'dlpfc'; there are \['breast', 'her2', 'kidney'\]"):
        hb.benchmark.genes("dlpfc")


@pytest.mark.slow
@pytest.mark.data
def test_the_her2_list_is_the_order_of_variance_over_all_spots():
    """The evidence behind the corrections of this list; section B4, whose counts may be absent, changes little."""
    sections = [name for name in hb.benchmark.recipe("her2st").ids if name != "B4"]
    adata = hb.datasets.her2st(sections, image=False)
    adata.obs["all"] = "one"
    ranked = hb.benchmark.variable_genes(adata, adata.n_vars, library_key="all")
    rank: dict[str, int] = {}
    for place, symbol in enumerate(hb.datasets.hgnc_symbols(ranked)):
        rank.setdefault(symbol, place)
    places = [rank[gene] for gene in hb.benchmark.genes("her2")]
    assert spearmanr(np.arange(len(places)), places)[0] > 0.995
    assert max(places) < 450
