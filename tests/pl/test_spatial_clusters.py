from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_hex, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D

from hibiost import pl
from hibiost.errors import DataError, MissingSlotError

DIAMETER, SCALE = 145.0, 0.1


def circles(ax) -> EllipseCollection:
    (spots,) = (c for c in ax.collections if isinstance(c, EllipseCollection))
    return spots


def legend_of(ax) -> dict[str, str]:
    legend = ax.get_legend()
    return {t.get_text(): h.get_color() for t, h in zip(legend.get_texts(), legend.legend_handles, strict=True)}


def width_on_screen(figure, ax) -> np.ndarray:
    """Width of each drawn circle in full-resolution pixels."""
    figure.draw_without_rendering()
    spots = circles(ax)
    (circle,) = spots.get_paths()
    drawn = [circle.transformed(Affine2D(m) + spots.get_transform()).get_extents() for m in spots.get_transforms()]
    inverse = ax.transData.inverted()
    return np.array([inverse.transform_bbox(box).width for box in drawn])


def test_one_panel_per_slide_with_true_spots_over_the_image(adata):
    figure = pl.spatial_clusters(adata)
    assert isinstance(figure, Figure)
    assert [ax.get_title() for ax in figure.axes] == ["C2", "C3"]
    for ax, slide in zip(figure.axes, ("C2", "C3"), strict=True):
        rows = (adata.obs["library_id"] == slide).to_numpy()
        spots = circles(ax)
        np.testing.assert_array_equal(spots.get_offsets(), adata.obsm["spatial"][rows])
        np.testing.assert_allclose(width_on_screen(figure, ax), DIAMETER)
        colors = np.array(adata.uns["cluster_colors"])[adata.obs["cluster"].cat.codes[rows]]
        np.testing.assert_array_equal(spots.get_facecolors(), to_rgba_array(list(colors)))
        (image,) = ax.images
        np.testing.assert_array_equal(image.get_array(), adata.uns["spatial"][slide]["images"]["hires"])
        np.testing.assert_allclose(image.get_extent(), [-0.5, 240 / SCALE - 0.5, 220 / SCALE - 0.5, -0.5])
        assert ax.get_aspect() == 1
        assert len(ax.get_xticks()) == len(ax.get_yticks()) == 0
        low, high = adata.obsm["spatial"][rows].min(0) - DIAMETER, adata.obsm["spatial"][rows].max(0) + DIAMETER
        assert ax.get_xlim() == (low[0], high[0])
        assert ax.get_ylim() == (high[1], low[1])
    assert figure.axes[0].get_legend() is None
    assert legend_of(figure.axes[1]) == dict(zip("012", adata.uns["cluster_colors"], strict=True))


def test_titles_legends_and_images_do_not_overlap(adata):
    figure = pl.spatial_clusters(adata, color=["cluster", "library_id"])
    figure.draw_without_rendering()
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert all(figure.bbox.containsx(x) and figure.bbox.containsy(y) for b in boxes for x, y in b.corners())
    assert [ax.get_title() for ax in figure.axes] == ["C2: cluster", "C3: cluster", "C2: library_id", "C3: library_id"]
    assert set(legend_of(figure.axes[3])) == {"C2", "C3"}


def test_colors_are_scanpys_then_kept_and_reused(adata):
    pl.spatial_clusters(adata)
    assert list(adata.uns["cluster_colors"]) == [to_hex(c) for c in sc.pl.palettes.vega_10_scanpy[:3]]
    adata.uns["cluster_colors"] = np.array(["red", "#00ff00", "b"])
    figure = pl.spatial_clusters(adata, library_id="C3")
    assert legend_of(figure.axes[0]) == {"0": "#ff0000", "1": "#00ff00", "2": "#0000ff"}
    adata.uns["cluster_colors"] = ["#ff0000"]
    pl.spatial_clusters(adata)
    assert len(adata.uns["cluster_colors"]) == 3


@pytest.mark.parametrize("n", [15, 25, 60, 120])
def test_many_labels(adata, n):
    many = AnnData(
        obs=pd.DataFrame({"label": pd.Categorical([f"l{i:03}" for i in range(n)])}, index=map(str, range(n)))
    )
    many.obsm["spatial"] = np.c_[np.arange(n) * 10.0, np.zeros(n)]
    pl.spatial_clusters(many, color="label")
    assert len(set(many.uns["label_colors"])) == min(n, 102)


@pytest.mark.parametrize(
    ("palette", "expected"),
    [
        (["r", "g", "b", "k"], ["#ff0000", "#008000", "#0000ff"]),
        ({"2": "red", "0": "blue", "1": (0, 0, 0)}, ["#0000ff", "#000000", "#ff0000"]),
        ("Set1", ["#e41a1c", "#377eb8", "#4daf4a"]),
        ("gray", ["#000000", "#808080", "#ffffff"]),
    ],
)
def test_palette(adata, palette, expected):
    adata.uns["cluster_colors"] = ["#123456"] * 3
    pl.spatial_clusters(adata, palette=palette)
    assert adata.uns["cluster_colors"] == expected


def test_unlabelled_spots_are_grey(adata):
    labels = adata.obs["cluster"].astype(object)
    labels.iloc[:3] = np.nan
    adata.obs["label"] = pd.Categorical(labels)
    figure = pl.spatial_clusters(adata, color="label")
    np.testing.assert_array_equal(circles(figure.axes[0]).get_facecolors()[:3], to_rgba_array(["lightgray"] * 3))
    assert legend_of(figure.axes[1])["unlabelled"] == "#d3d3d3"


def test_labels_that_are_not_categorical_leave_the_anndata_alone(adata):
    adata.obs["region"] = np.arange(adata.n_obs) % 2
    before = set(adata.uns)
    figure = pl.spatial_clusters(adata, color="region", library_id="C2")
    assert list(legend_of(figure.axes[0])) == ["0", "1"]
    assert figure.axes[0].get_title() == "region"
    view = adata[adata.obs["library_id"] == "C3"]
    assert len(circles(pl.spatial_clusters(view).axes[0]).get_offsets()) == 20
    assert view.is_view
    assert set(adata.uns) == before


def test_the_smaller_image_where_there_is_no_larger_one(adata):
    for entry in adata.uns["spatial"].values():
        entry["images"]["lowres"] = entry["images"].pop("hires")[::2, ::2]
        entry["scalefactors"]["tissue_lowres_scalef"] = SCALE / 2
    (image,) = pl.spatial_clusters(adata, library_id="C3").axes[0].images
    np.testing.assert_array_equal(image.get_array(), adata.uns["spatial"]["C3"]["images"]["lowres"])
    np.testing.assert_allclose(image.get_extent(), [-0.5, 120 / (SCALE / 2) - 0.5, 110 / (SCALE / 2) - 0.5, -0.5])


def test_without_image_or_diameter(adata):
    assert not pl.spatial_clusters(adata, img_key=None).axes[0].images
    assert not pl.spatial_clusters(adata, img_key="lowres").axes[0].images
    del adata.uns["spatial"]
    figure = pl.spatial_clusters(adata, size=0.5)
    assert [ax.get_title() for ax in figure.axes] == ["C2", "C3"]
    np.testing.assert_allclose(width_on_screen(figure, figure.axes[0]), 290 / 2 / 2)
    single = pl.spatial_clusters(adata[:1])
    np.testing.assert_allclose(width_on_screen(single, single.axes[0]), 1)


def test_without_a_hires_image_the_lowres_one_is_drawn(adata):
    entry = adata.uns["spatial"]["C2"]
    entry["images"] = {"lowres": entry["images"]["hires"][::4, ::4]}
    entry["scalefactors"]["tissue_lowres_scalef"] = SCALE / 4
    first, second = pl.spatial_clusters(adata).axes
    np.testing.assert_array_equal(first.images[0].get_array(), entry["images"]["lowres"])
    np.testing.assert_allclose(first.images[0].get_extent(), [-0.5, 240 / SCALE - 0.5, 220 / SCALE - 0.5, -0.5])
    assert second.images[0].get_array().shape == (220, 240, 3)


def test_options_reach_the_artists(adata):
    figure = pl.spatial_clusters(adata, title=["left", "right"], figsize=(7, 3), alpha=0.5, alpha_img=0.25)
    assert tuple(figure.get_size_inches()) == (7, 3)
    assert [ax.get_title() for ax in figure.axes] == ["left", "right"]
    assert set(circles(figure.axes[0]).get_facecolors()[:, 3]) == {0.5}
    assert figure.axes[0].images[0].get_alpha() == 0.25


def test_given_axes_are_drawn_into_and_handed_back(adata):
    figure, axes = plt.subplots(1, 3)
    assert pl.spatial_clusters(adata, ax=axes[0], library_id="C2") is axes[0]
    pair = [axes[1], axes[2]]
    assert pl.spatial_clusters(adata, ax=pair) is pair
    assert [len(circles(ax).get_offsets()) for ax in axes] == [30, 30, 20]
    assert plt.fignum_exists(figure.number)
    with pytest.raises(DataError, match=r"1 Axes for 2 panels.*library_id="):
        pl.spatial_clusters(adata, ax=axes[0])


def test_show_and_save(adata, monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.get_fignums()))
    pl.spatial_clusters(adata, save=tmp_path / "clusters.png")
    assert shown == []
    assert (tmp_path / "clusters.png").read_bytes().startswith(b"\x89PNG")
    pl.spatial_clusters(adata, show=True)
    assert [len(figures) for figures in shown] == [1]
    assert plt.get_fignums() == []
    _, ax = plt.subplots()
    pl.spatial_clusters(adata, library_id="C2", ax=ax, save=tmp_path / "one.pdf")
    assert (tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")


def test_refused(adata):
    with pytest.raises(MissingSlotError, match=r"'clusters'.*hb\.tl\.cluster.*Did you mean 'cluster'"):
        pl.spatial_clusters(adata, color="clusters")
    with pytest.raises(DataError, match=r"no slide 'C22'.*Did you mean 'C2'"):
        pl.spatial_clusters(adata, library_id="C22")
    with pytest.raises(DataError, match="empty list"):
        pl.spatial_clusters(adata, library_id=[])
    adata.obs["score"] = np.linspace(0, 1, adata.n_obs)
    with pytest.raises(DataError, match=r"'score'.*continuous"):
        pl.spatial_clusters(adata, color="score")
    with pytest.raises(DataError, match="2 colours for the 3 labels"):
        pl.spatial_clusters(adata, palette=["r", "g"])
    with pytest.raises(DataError, match=r"no colour for the labels \['2'\]"):
        pl.spatial_clusters(adata, palette={"0": "r", "1": "g"})
    with pytest.raises(DataError, match="1 titles for 2 panels"):
        pl.spatial_clusters(adata, title="one")
    assert "cluster_colors" not in adata.uns
    del adata.obsm["spatial"]
    with pytest.raises(MissingSlotError, match="spatial"):
        pl.spatial_clusters(adata)


def test_scanpy_and_squidpy_draw_our_colors(adata, recwarn):
    import squidpy as sq

    adata.uns["cluster_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    pl.spatial_clusters(adata)
    one = adata[adata.obs["library_id"] == "C2"].copy()
    one.uns["spatial"] = {"C2": adata.uns["spatial"]["C2"]}
    with pytest.warns(FutureWarning):
        (ax,) = sc.pl.spatial(one, color="cluster", show=False)
    expected = to_rgba_array(list(np.array(one.uns["cluster_colors"])[one.obs["cluster"].cat.codes]))
    drawn = [c.get_facecolors() for c in ax.collections if len(c.get_facecolors()) == one.n_obs]
    np.testing.assert_array_equal(drawn[0][:, :3], expected[:, :3])
    sq.pl.spatial_scatter(adata, color="cluster", library_key="library_id", library_id=["C2", "C3"])
    assert list(adata.uns["cluster_colors"]) == ["#ff0000", "#00ff00", "#0000ff"]
