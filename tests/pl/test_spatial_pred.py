from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.collections import EllipseCollection
from scipy.stats import pearsonr

from hibiost import pl
from hibiost.errors import DataError, MissingSlotError


def panels(figure):
    return [ax for ax in figure.axes if ax.get_title()]


def spots_of(ax) -> EllipseCollection:
    (spots,) = (c for c in ax.collections if isinstance(c, EllipseCollection))
    return spots


def values(ax) -> np.ndarray:
    return spots_of(ax).get_array()


def rows_of(adata, slide) -> np.ndarray:
    return (adata.obs["library_id"] == slide).to_numpy()


def test_measured_beside_predicted_with_the_pcc_of_each_slide(adata):
    figure = pl.spatial_pred(adata, gene="IGLL5")
    measured = np.log1p(adata.X.toarray()[:, 1])
    predicted = adata.obsm["predicted_expression"]["IGLL5"].to_numpy()
    titles = []
    for i, slide in enumerate(("C2", "C3")):
        rows = rows_of(adata, slide)
        left, right = panels(figure)[2 * i : 2 * i + 2]
        np.testing.assert_allclose(values(left), measured[rows], rtol=1e-6)
        np.testing.assert_array_equal(values(right), predicted[rows])
        np.testing.assert_array_equal(spots_of(right).get_offsets(), adata.obsm["spatial"][rows])
        r = pearsonr(measured[rows], predicted[rows]).statistic
        titles += [f"{slide}: IGLL5 measured", f"{slide}: IGLL5 predicted, PCC {r:.2f}"]
        assert len(left.images) == len(right.images) == 1
        for ax, kind in ((left, measured), (right, predicted)):
            np.testing.assert_allclose(spots_of(ax).get_clim(), np.percentile(kind, [1, 99]), rtol=1e-6)
            (bar,) = ax.child_axes
            assert bar.get_ylabel() == "log1p counts"
    assert [ax.get_title() for ax in panels(figure)] == titles


def test_normalized_prediction_is_compared_on_its_own_scale(adata):
    adata.uns["predicted_expression"] = {"params": {"target": "normalized", "target_sum": 1e4}}
    adata.X = adata.X.multiply(np.arange(adata.n_obs)[:, None] > 0).tocsr()
    left, right = panels(pl.spatial_pred(adata, gene="ERBB2", library_id="C2", vmin=0, vmax=9))
    counts = adata.X.toarray()[rows_of(adata, "C2")].astype(float)
    expected = np.log1p(1e4 * counts[:, 0] / np.maximum(counts.sum(1), 1))
    np.testing.assert_allclose(values(left), expected, rtol=1e-6)
    r = pearsonr(expected, values(right)).statistic
    assert [left.get_title(), right.get_title()] == ["ERBB2 measured", f"ERBB2 predicted, PCC {r:.2f}"]
    assert left.child_axes[0].get_ylabel() == "log1p counts per 10,000"
    assert spots_of(left).get_clim() == spots_of(right).get_clim() == (0, 9)


def test_counts_from_a_layer(adata):
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    left = panels(pl.spatial_pred(adata, gene="ERBB2", layer="counts", library_id="C2"))[0]
    np.testing.assert_allclose(values(left), adata.X.toarray()[rows_of(adata, "C2"), 0], rtol=1e-6)
    with pytest.raises(DataError, match="layer"):
        pl.spatial_pred(adata, gene="ERBB2")


def test_gene_that_was_not_measured_is_drawn_predicted_only(adata):
    slide = adata[:, ["GAPDH"]].copy()
    slide.X = None
    figure = pl.spatial_pred(slide, gene="ERBB2")
    assert [ax.get_title() for ax in panels(figure)] == ["C2: ERBB2 predicted", "C3: ERBB2 predicted"]


def test_what_was_not_measured_carries_the_pcc_to_expect(adata):
    slide = adata[:, ["GAPDH"]].copy()
    slide.X = None
    known = {"genes": np.array(["ERBB2", "IGLL5"]), "expected_pcc": np.array([0.414, np.nan])}
    slide.uns["predicted_expression"] = {"params": {}, **known, "trusted": np.array([True, False])}
    figure = pl.spatial_pred(slide, gene="ERBB2", library_id="C2")
    assert [ax.get_title() for ax in panels(figure)] == ["ERBB2 predicted, expected PCC 0.41"]
    figure = pl.spatial_pred(slide, gene="IGLL5", library_id="C2")
    assert [ax.get_title() for ax in panels(figure)] == ["IGLL5 predicted"]
    measured = pl.spatial_pred(adata, gene="ERBB2", library_id="C2")
    assert "expected" not in panels(measured)[1].get_title()


def test_undefined_pcc_and_missing_predictions(adata):
    table = adata.obsm["predicted_expression"].copy()
    table.loc[rows_of(adata, "C2"), "ERBB2"] = 1.0
    table.iloc[-1, 0] = np.nan
    adata.obsm["predicted_expression"] = table
    ax = panels(pl.spatial_pred(adata, gene="ERBB2"))
    assert ax[1].get_title() == "C2: ERBB2 predicted, PCC undefined"
    assert values(ax[3]).mask.tolist() == [False] * 19 + [True]
    rows = np.flatnonzero(rows_of(adata, "C3"))[:-1]
    r = pearsonr(np.log1p(adata.X.toarray()[rows, 0]), table["ERBB2"].iloc[rows]).statistic
    assert ax[3].get_title() == f"C3: ERBB2 predicted, PCC {r:.2f}"
    adata.obsm["predicted_expression"] = table * np.nan
    assert panels(pl.spatial_pred(adata, gene="ERBB2"))[3].get_title() == "C3: ERBB2 predicted, PCC undefined"


def test_colour_range_of_a_rare_gene_reaches_its_maximum(adata):
    counts = adata.X.toarray()
    counts[:, 0] = 0
    adata.X = counts.copy()
    assert spots_of(panels(pl.spatial_pred(adata, gene="ERBB2"))[0]).get_clim() == (0, 1)
    counts = np.zeros((300, 3))
    counts[7, 0] = 6
    rare = AnnData(counts, var=pd.DataFrame(index=adata.var_names))
    rare.obsm["spatial"] = np.stack(np.divmod(np.arange(300), 20), 1)
    rare.obsm["predicted_expression"] = pd.DataFrame({"ERBB2": counts[:, 0]}, index=rare.obs_names)
    assert spots_of(panels(pl.spatial_pred(rare, gene="ERBB2"))[0]).get_clim() == pytest.approx((0, np.log(7)))


def test_layout_and_options(adata, tmp_path):
    figure = pl.spatial_pred(
        adata, gene="ERBB2", title="HER2", cmap="magma", size=2, alpha=0.5, img_key=None, save=tmp_path / "p.svg"
    )
    figure.draw_without_rendering()
    boxes = [ax.get_tightbbox() for ax in panels(figure)]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert panels(figure)[0].get_title() == "C2: HER2 measured"
    assert spots_of(panels(figure)[0]).get_cmap().name == "magma"
    assert spots_of(panels(figure)[0]).get_alpha() == 0.5
    assert not panels(figure)[0].images
    assert "<svg" in (tmp_path / "p.svg").read_text()
    assert plt.get_fignums() == []
    for ax in panels(figure):
        assert ax.child_axes[0].get_window_extent().height == pytest.approx(0.6 * ax.get_window_extent().height)


def test_given_axes(adata):
    _, axes = plt.subplots(1, 2)
    assert pl.spatial_pred(adata, gene="ERBB2", library_id="C3", ax=axes) is axes
    assert [len(values(ax)) for ax in axes] == [20, 20]
    with pytest.raises(DataError, match="1 Axes for 2 panels"):
        pl.spatial_pred(adata, gene="ERBB2", library_id="C3", ax=axes[0])


def test_refused(adata):
    with pytest.raises(DataError, match=r"'ERBB3' was neither.*Did you mean 'ERBB2'"):
        pl.spatial_pred(adata, gene="ERBB3")
    with pytest.raises(MissingSlotError, match=r"'GAPDH' was measured.*hb\.tl\.predict\(.*genes=\['GAPDH'\]"):
        pl.spatial_pred(adata, gene="GAPDH")
    adata.obsm["bare"] = adata.obsm["predicted_expression"].to_numpy()
    with pytest.raises(DataError, match="ndarray; expected a DataFrame"):
        pl.spatial_pred(adata, gene="ERBB2", use_rep="bare")
    del adata.obsm["predicted_expression"]
    with pytest.raises(MissingSlotError, match=r"hb\.tl\.predict"):
        pl.spatial_pred(adata, gene="ERBB2")
    with pytest.raises(DataError, match="no spots"):
        pl.spatial_pred(adata[:0], gene="ERBB2")
