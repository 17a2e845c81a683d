"""H&E alone: read an image, place spots, embed, predict from a reference, draw."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.spatial import KDTree

import hibiost as hb
from hibiost.errors import DataError, MissingSlotError

RECIPE = {"epochs": 8, "batch_size": 32, "lr": 3e-3, "precision": "32", "shift": 0.1, "n_genes": 40}
GENES = ["ERBB2", "IGLL5", "MGP"]


@pytest.fixture(scope="module")
def sections():
    return hb.datasets.tissue(100, n_genes=80, n_slides=3, pitch_px=48)


def part(sections, names):
    chosen = sections[sections.obs["library_id"].isin(names).to_numpy()].copy()
    chosen.uns["spatial"] = {name: sections.uns["spatial"][name] for name in names}
    return chosen


@pytest.fixture(scope="module")
def reference(sections):
    return part(sections, ["tissue_0", "tissue_1"])


@pytest.fixture(scope="module")
def model(reference):
    config = hb.model.ModelConfig(
        embed_dim=16,
        vision_cfg={"timm_model_name": "resnet10t", "timm_pool": "avg", "image_size": 32},
        text_cfg={"context_length": 48, "width": 16, "heads": 2, "layers": 1},
        patch_size=64,
        recipe=RECIPE,
    )
    return hb.tl.pretrain(reference, image_encoder=config)


@pytest.fixture
def slide(sections, tmp_path):
    """The third section, its counts hidden: a bare image."""
    entry = sections.uns["spatial"]["tissue_2"]
    path = tmp_path / "tumour.png"
    Image.fromarray(entry["images"]["hires"]).save(path)
    return hb.io.read_image(path, mpp=entry["metadata"]["mpp"])


def test_as_typed(slide, sections, reference, model):
    hb.pp.grid(slide, spacing_um=24)
    hb.tl.predict(slide, reference, model=model, top_k=20)
    table = slide.obsm["predicted_expression"]
    assert slide.n_vars == 0
    assert table.shape == (slide.n_obs, reference.n_vars)
    assert list(table.columns) == list(reference.var_names)

    hidden = part(sections, ["tissue_2"])
    hb.tl.predict(hidden, reference, model=model, top_k=20)
    distance, nearest = KDTree(slide.obsm["spatial"]).query(hidden.obsm["spatial"])
    assert np.median(distance) < 24
    genes = hidden.var_names[(hidden.var["marker_of"] != "none").to_numpy()]
    at_grid = table[genes].to_numpy()[nearest]
    again = hb.metrics.pcc(hidden.obsm["predicted_expression"][genes].to_numpy(), at_grid)
    assert np.nanmean(again) > 0.6
    truth = np.log1p(hidden[:, genes].X.toarray())
    assert np.nanmean(hb.metrics.pcc(truth, at_grid)) > 0.2


def test_only_images_are_embedded(slide, model):
    hb.pp.grid(slide, spacing_um=24)
    hb.tl.embed(slide, model=model)
    assert {name for name in slide.obsm if name.startswith("X_")} == {"X_hibiost_image"}
    assert slide.obsm["X_hibiost_image"].shape == (slide.n_obs, 16)
    with pytest.raises(MissingSlotError, match="gene_sentence"):
        hb.tl.embed(slide, model=model, modality="gene")
    with pytest.raises(DataError, match="no genes"):
        hb.pp.tfidf_sentences(slide)


def test_what_was_never_measured_is_drawn_alone(slide, reference, model):
    hb.pp.grid(slide, spacing_um=48)
    hb.tl.predict(slide, reference, model=model, genes=GENES, target="normalized")
    figure = hb.pl.spatial_pred(slide, gene="IGLL5")
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == ["IGLL5 predicted"]
    with pytest.raises(DataError, match=r"'IGLL6' was neither measured nor predicted.*'IGLL5'"):
        hb.pl.spatial_pred(slide, gene="IGLL6")


def test_clusters_of_images(slide, model):
    hb.pp.grid(slide, spacing_um=24)
    hb.tl.embed(slide, model=model)
    hb.tl.cluster(slide, n_clusters=3)
    assert slide.obs["cluster"].nunique() == 3
    hb.pl.spatial_clusters(slide)


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_it_survives_the_disk(slide, reference, model, tmp_path, ending):
    import anndata as ad

    hb.pp.grid(slide, spacing_um=48)
    hb.tl.embed(slide, model=model)
    hb.tl.predict(slide, reference, model=model, genes=GENES)
    getattr(slide, f"write_{ending}")(tmp_path / f"slide.{ending}")
    back = getattr(ad, f"read_{ending}")(tmp_path / f"slide.{ending}")
    pd.testing.assert_frame_equal(
        back.obsm["predicted_expression"], slide.obsm["predicted_expression"], check_names=False
    )
    hb.pl.spatial_pred(back, gene="MGP")
    hb.tl.predict(back, reference, model=model, genes=GENES)


def test_before_there_are_spots_the_grid_is_named(slide, reference, model):
    for call in (
        lambda: hb.tl.embed(slide, model=model),
        lambda: hb.tl.predict(slide, reference, model=model),
        lambda: hb.pl.spatial_pred(slide, gene="MGP"),
    ):
        with pytest.raises(DataError, match=r"no spots.*hb\.pp\.grid"):
            call()


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_real_section_whose_counts_are_hidden(her2st_dir):
    """C6 from its image alone, against its measured spots: at the nearest grid spot."""
    sections = hb.datasets.her2st(["C2", "C3", "C6"])
    hidden = sections[(sections.obs["library_id"] == "C6").to_numpy()].copy()
    reference = sections[(sections.obs["library_id"] != "C6").to_numpy()].copy()
    reference.uns["spatial"] = {name: sections.uns["spatial"][name] for name in ("C2", "C3")}
    model = hb.tl.pretrain(reference, image_encoder="ResNet-10", recipe={"epochs": 6, "batch_size": 64})
    metadata = sections.uns["spatial"]["C6"]["metadata"]
    slide = hb.io.read_image(metadata["source_image_path"], mpp=metadata["mpp"])
    hb.pp.grid(slide, spacing_um=100)
    genes = [gene for gene in hb.benchmark.variable_genes(reference, 400) if gene in hidden.var_names][:300]
    hb.tl.predict(slide, reference, model=model, genes=genes)
    distance, nearest = KDTree(slide.obsm["spatial"]).query(hidden.obsm["spatial"])
    assert distance.max() * metadata["mpp"] < 100
    truth = np.log1p(hidden[:, genes].X.toarray())
    pcc = hb.metrics.pcc(truth, slide.obsm["predicted_expression"].to_numpy()[nearest])
    assert np.nanmean(pcc) > 0.25
