from __future__ import annotations

from itertools import permutations

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from hibiost import pl
from hibiost.errors import DataError, MissingSlotError
from hibiost.pl._history import _followed

EPOCHS = ["0", "20", "28"]


@pytest.fixture
def history(adata: AnnData) -> AnnData:
    """C2: one region, then left and right, then the same ids exchanged and a third; C3: one spot left out."""
    table = pd.DataFrame(0, index=adata.obs_names, columns=EPOCHS, dtype="int32")
    c2 = (adata.obs["library_id"] == "C2").to_numpy()
    x = adata.obsm["spatial"][:, 0]
    table["20"] = np.where(c2, np.where(x > x[c2].mean() + 200, 9, 4), 5).astype("int32")
    table["28"] = np.where(c2, np.where(table["20"] == 9, 4, np.where(x < 600, 2, 9)), 5).astype("int32")
    table.loc[~c2 & (x < 600), :] = -1
    adata.obsm["region_history"] = table
    return adata


def spots(ax) -> EllipseCollection:
    (found,) = (c for c in ax.collections if isinstance(c, EllipseCollection))
    return found


def shades(ax) -> list[str]:
    return [to_hex(c) for c in spots(ax).get_facecolors()]


def test_one_row_per_slide_and_one_column_per_renewal(history):
    figure = pl.region_history(history)
    assert isinstance(figure, Figure)
    assert [ax.get_title() for ax in figure.axes] == [
        "C2, epoch 0: 1 region", "C2, epoch 20: 2 regions", "C2, epoch 28: 3 regions",
        "C3, epoch 0: 1 region", "C3, epoch 20: 1 region", "C3, epoch 28: 1 region",
    ]  # fmt: skip
    specs = [ax.get_subplotspec() for ax in figure.axes]
    assert [(spec.rowspan.start, spec.colspan.start) for spec in specs] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
        (1, 2),
    ]
    for i, ax in enumerate(figure.axes):
        rows = history.obs["library_id"] == ("C2" if i < 3 else "C3")
        np.testing.assert_array_equal(spots(ax).get_offsets(), history.obsm["spatial"][rows.to_numpy()])
        assert len(ax.images) == 1
        assert ax.get_legend() is None


def test_titles_and_panels_do_not_overlap(history):
    figure = pl.region_history(history)
    figure.draw_without_rendering()
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def test_regions_keep_their_colors(history):
    first, second, third, *c3 = pl.region_history(history, palette=["red", "blue", "lime", "black"]).axes
    ids = history.obsm["region_history"][(history.obs["library_id"] == "C2").to_numpy()]
    assert set(shades(first)) == {"#ff0000"}
    large = ids["20"] == ids["20"].mode()[0]
    assert shades(second) == ["#ff0000" if same else "#0000ff" for same in large]
    kept = {4: "#0000ff", 9: "#ff0000", 2: "#00ff00"}
    assert shades(third) == [kept[region] for region in ids["28"]]
    assert [set(shades(ax)) for ax in c3] == [{"#ff0000", "#d3d3d3"}] * 3


def test_spots_left_out_are_grey(history):
    figure = pl.region_history(history, library_id="C3")
    left_out = (history.obsm["region_history"]["0"] < 0)[(history.obs["library_id"] == "C3").to_numpy()]
    assert 0 < left_out.sum() < len(left_out)
    for ax in figure.axes:
        assert [shade == "#d3d3d3" for shade in shades(ax)] == list(left_out)
    history.obsm["region_history"] = history.obsm["region_history"] * 0 - 1
    figure = pl.region_history(history)
    assert figure.axes[0].get_title() == "C2, epoch 0: 0 regions"
    assert set(shades(figure.axes[0])) == {"#d3d3d3"}


@given(arrays(np.int32, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.integers(-1, 4)))
def test_most_spots_keep_their_color(regions):
    colors = _followed(regions)
    assert colors.shape == regions.shape
    np.testing.assert_array_equal(colors < 0, regions < 0)
    for before, after, old, new in zip(colors.T, colors.T[1:], regions.T, regions.T[1:], strict=False):
        pairs = {(r, c) for r, c in zip(new, after, strict=True) if r >= 0}
        assert len(pairs) == len({r for r, _ in pairs}) == len({c for _, c in pairs})
        trained = (old >= 0) & (new >= 0)
        names, earlier = sorted({r for r, _ in pairs}), sorted(set(before[before >= 0]))
        slots = [*earlier, *range(100, 100 + len(names))]
        table = {(r, c): int((trained & (new == r) & (before == c)).sum()) for r in names for c in slots}
        best = max(
            sum(table[r, c] for r, c in zip(names, chosen, strict=True)) for chosen in permutations(slots, len(names))
        )
        assert (trained & (before == after)).sum() == best
        for region, color in pairs:
            assert color not in earlier or table[region, color]


def test_numbers_of_regions_do_not_matter():
    rng = np.random.default_rng(0)
    regions = rng.integers(0, 6, (200, 5))
    renamed = np.stack([rng.permutation(50)[column] for column in regions.T], axis=1)
    same = _followed(regions)[:, None] == _followed(regions)[None]
    np.testing.assert_array_equal(same, _followed(renamed)[:, None] == _followed(renamed)[None])


def test_options_reach_the_artists(history):
    figure = pl.region_history(history, alpha=0.5, alpha_img=0.25, figsize=(9, 4), size=0.5, palette="Set1")
    assert tuple(figure.get_size_inches()) == (9, 4)
    assert set(spots(figure.axes[0]).get_facecolors()[:, 3]) == {0.5}
    assert figure.axes[0].images[0].get_alpha() == 0.25
    assert shades(figure.axes[0])[0] == "#e41a1c"
    assert not pl.region_history(history, img_key=None).axes[0].images
    history.obsm["own"] = history.obsm["region_history"][["28"]]
    history.obs["slide"] = history.obs["library_id"].cat.rename_categories({"C2": "x", "C3": "y"})
    (ax,) = pl.region_history(history, key="own", library_key="slide", library_id="y").axes
    assert ax.get_title() == "y, epoch 28: 1 region"


def test_given_axes_are_drawn_into_and_handed_back(history, tmp_path):
    _, axes = plt.subplots(2, 3)
    assert pl.region_history(history, ax=axes.ravel(), save=tmp_path / "a.png") is not None
    assert [ax.get_title()[:2] for ax in axes.ravel()] == ["C2"] * 3 + ["C3"] * 3
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="3 Axes for 6 panels"):
        pl.region_history(history, ax=list(axes[0]))


def test_show(history, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.get_fignums())))
    pl.region_history(history, show=True)
    assert shown == [1]
    assert plt.get_fignums() == []


def test_draws_from_a_file_and_from_a_view(history, tmp_path):
    expected = [shades(ax) for ax in pl.region_history(history).axes]
    history.write_h5ad(tmp_path / "a.h5ad")
    assert [shades(ax) for ax in pl.region_history(anndata.read_h5ad(tmp_path / "a.h5ad")).axes] == expected
    view = history[history.obs["library_id"] == "C3"]
    assert [shades(ax) for ax in pl.region_history(view).axes] == expected[3:]
    assert view.is_view


def test_refused(history):
    with pytest.raises(MissingSlotError, match=r"'regions'.*hb\.tl\.pretrain\(adata\) with regions on"):
        pl.region_history(history, key="regions")
    with pytest.raises(DataError, match=r"no slide 'C22'.*Did you mean 'C2'"):
        pl.region_history(history, library_id="C22")
    with pytest.raises(DataError, match="1 colours for the 3 regions"):
        pl.region_history(history, palette=["red"])
    table = history.obsm["region_history"]
    for broken in (table.to_numpy(), table.astype(float), table[[]]):
        history.obsm["broken"] = broken
        with pytest.raises(DataError, match=r"obsm\['broken'\].*DataFrame of integers"):
            pl.region_history(history, key="broken")
    del history.obsm["spatial"]
    with pytest.raises(MissingSlotError, match="spatial"):
        pl.region_history(history)
