"""Every verb on SpatialData gives what it gives on the AnnData, and leaves no pixels in the table."""

import inspect
import sys

import anndata as ad
import numpy as np
import pytest
import spatialdata as sd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import sparse
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity

import hibiost as hb
from hibiost.errors import DataError, ImageError

RECIPE = {"epochs": 2, "batch_size": 32, "precision": "32", "n_genes": 20, "region_start": 1, "region_every": 1}
PATHWAYS = {
    "epithelium": ["ERBB2", "KRT19", "EPCAM", "CD24", "GRB7", "IFI27"],
    "matrix": ["COL1A1", "MGP", "FN1", "SPARC", "COL3A1", "LUM"],
}
VERBS = {
    name: getattr(getattr(hb, name.split(".")[0]), name.split(".")[1])
    for room in ("pp", "tl", "pl")
    for name in (f"{room}.{verb}" for verb in getattr(hb, room).__all__)
}
ALONE = {"pp.grid", "pl.benchmark", "pl.training"}
"""The first makes the spots of an image alone, where there is no table to write to yet; the others draw runs."""


@pytest.fixture(scope="module")
def tiny():
    return hb.model.ModelConfig(
        embed_dim=16,
        vision_cfg={"timm_model_name": "resnet10t", "timm_pool": "avg", "image_size": 32},
        text_cfg={"context_length": 48, "width": 16, "heads": 2, "layers": 1},
        patch_size=32,
        recipe=RECIPE,
    )


def section():
    return hb.datasets.tissue(100, n_genes=60, n_slides=2, pitch_px=40)


def same_values(a, b):
    if sparse.issparse(a):
        return (a != b).nnz == 0
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_values(a[key], b[key]) for key in a)
    if hasattr(a, "equals"):
        return a.equals(b)
    return np.array_equal(np.asarray(a), np.asarray(b))


def check_same_slots(table, adata):
    """Every slot of the AnnData is in the table, equal; and no others but those of SpatialData."""
    for name in ("obsm", "varm", "obsp", "layers", "uns"):
        ours, theirs = (
            {key: value for key, value in getattr(x, name).items() if key is not None} for x in (table, adata)
        )
        assert ours.keys() ^ theirs.keys() <= {"spatialdata_attrs", "spatial"}, name
        for key in theirs.keys() - {"spatial", "spatialdata_attrs"}:
            assert same_values(ours[key], theirs[key]), (name, key)
    assert set(table.obs) ^ set(adata.obs) <= {"instance_id"}
    for column in adata.obs:
        assert list(table.obs[column]) == list(adata.obs[column]), column
    assert list(table.var) == list(adata.var)
    for slide in table.uns["spatial"].values():
        assert "images" not in slide


@pytest.fixture(scope="module")
def run(tiny):
    """The main job on SpatialData and on AnnData."""
    adata = section()
    sdata = hb.io.to_spatialdata(section())
    models = [hb.tl.pretrain(data, image_encoder=tiny, pathways=PATHWAYS) for data in (adata, sdata)]
    for data in (adata, sdata):
        hb.pp.tfidf_sentences(data, n_genes=20, vocabulary=models[0].vocabulary)
        hb.pp.pathway_overlap(data, PATHWAYS, min_genes=2)
        hb.tl.embed(data, model=models[0])
        hb.tl.regions(data)
        hb.tl.cluster(data, n_clusters=3, n_init=2)
        hb.tl.predict(data, data, model=models[0], genes=["ERBB2", "IGLL5"], top_k=5)
    return adata, sdata, models


def test_the_main_job_is_the_same(run):
    adata, sdata, (one, other) = run
    assert one.fingerprint() == other.fingerprint()
    assert {"gene_sentence", "pathway_overlap", "X_hibiost_image", "predicted_expression", "region_history"} <= set(
        sdata["table"].obsm
    )
    check_same_slots(sdata["table"], adata)


def test_what_was_written_survives_a_store(run, tmp_path):
    adata, sdata, _ = run
    sdata.write(tmp_path / "s.zarr")
    again = sd.read_zarr(tmp_path / "s.zarr")
    hb.tl.cluster(again, n_clusters=3, n_init=2)
    assert list(again["table"].obs["cluster"]) == list(adata.obs["cluster"])
    assert again["table"].obsm["predicted_expression"].equals(adata.obsm["predicted_expression"])


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("spatial_clusters", {"color": ["cluster", "region_truth"]}),
        ("spatial_pred", {"gene": "ERBB2"}),
        ("region_history", {}),
    ],
)
def test_figures_are_the_same(run, verb, options):
    adata, sdata, _ = run
    drawn = []
    for data in (adata, sdata):
        figure = getattr(hb.pl, verb)(data, **options)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn.append(np.asarray(canvas.buffer_rgba()))
    np.testing.assert_array_equal(*drawn)


def patches_of(data, **options) -> np.ndarray:
    """In the order of the spots; tiled images have another."""
    rows, patches = zip(*hb.pp.iter_patches(data, size=32, **options), strict=True)
    return np.concatenate(patches)[np.argsort(np.concatenate(rows))]


def test_patches_are_the_same(run, tmp_path):
    adata, sdata, _ = run
    patches = [patches_of(data) for data in (adata, sdata)]
    np.testing.assert_array_equal(*patches)
    changed = hb.pp.extract_patches(sdata, tmp_path, size=32, copy=True)
    for library, slide in changed["table"].uns["spatial"].items():
        with hb.images.PatchFile(slide["metadata"]["patches_path"]) as file:
            assert len(file) == 100
        assert "images" not in slide
        assert "patches_path" not in sdata["table"].uns["spatial"][library]["metadata"]
    np.testing.assert_array_equal(patches_of(changed), patches[0])


def test_lists_and_references_mix(run, tiny):
    adata, sdata, models = run
    first = adata[adata.obs["library_id"] == "tissue_0"].copy()
    options = {"image_encoder": tiny, "recipe": {"epochs": 1, "lambda3": 0}}
    mixed = hb.tl.pretrain([first, sdata], **options)
    assert mixed.fingerprint() == hb.tl.pretrain([first, adata], **options).fingerprint()
    fresh = section()
    hb.tl.predict(fresh, sdata, model=models[0], genes=["ERBB2"], top_k=5)
    expected = section()
    hb.tl.predict(expected, adata, model=models[0], genes=["ERBB2"], top_k=5)
    assert fresh.obsm["predicted_expression"].equals(expected.obsm["predicted_expression"])


def test_predictors_are_fitted_to_sdata(run):
    adata, sdata, models = run
    options = {"model": models[0], "genes": ["ERBB2", "MGP"]}
    of_both = [hb.tl.fit_predictor(data, **options) for data in (adata, sdata)]
    assert of_both[0].fingerprint() == of_both[1].fingerprint()
    one, other = section(), hb.io.to_spatialdata(section())
    hb.tl.predict(one, of_both[0])
    hb.tl.predict(other, sdata, method="regression", **options)
    assert other["table"].obsm["predicted_expression"].equals(one.obsm["predicted_expression"])


def test_an_image_alone_gets_spots(run):
    sdata = hb.io.to_spatialdata(section())
    alone = sd.SpatialData.init_from_elements({"he": sdata["tissue_0_full_image"]})
    slide = hb.io.from_spatialdata(alone, mpp=0.5)
    assert slide.shape == (0, 0)
    hb.pp.grid(slide, spacing_um=40)
    spots = hb.io.to_spatialdata(slide)
    hb.tl.embed(spots, model=run[2][0])
    assert spots["table"].obsm["X_hibiost_image"].shape == (slide.n_obs, 16)
    del sdata.tables["table"]
    with pytest.raises(DataError, match=r"no table; of its images, \['tissue_0_full_image', .*image_key="):
        hb.io.from_spatialdata(sdata)


def test_tissue_is_the_same():
    adata, sdata = section(), hb.io.to_spatialdata(section())
    for data in (adata, sdata):
        hb.pp.tissue_mask(data)
    check_same_slots(sdata["table"], adata)


# -- where it is written ---------------------------------------------------------------------------------------------


def test_copy_leaves_the_table_as_it_is():
    sdata = hb.io.to_spatialdata(section())
    before = sdata["table"].copy()
    changed = hb.pp.tfidf_sentences(sdata, n_genes=20, copy=True)
    check_same_slots(sdata["table"], before)
    assert isinstance(changed, sd.SpatialData)
    assert changed["tissue_0_full_image"] is sdata["tissue_0_full_image"]
    assert changed["table"].obsm["gene_sentence"].shape == (200, 20)


def test_a_call_that_fails_writes_nothing():
    sdata = hb.io.to_spatialdata(section())
    sdata["table"].obsm["x"] = np.ones((200, 3), np.float32)
    before = sdata["table"].copy()
    with pytest.raises(DataError, match="n_clusters = 150"):
        hb.tl.cluster(sdata, n_clusters=150, use_rep="x")
    check_same_slots(sdata["table"], before)


def test_slots_are_overwritten_and_deleted(run):
    sdata = hb.io.to_spatialdata(section())
    table = sdata["table"]
    table.obsm["X_hibiost_gene"] = np.zeros((200, 16), np.float32)
    table.uns["X_hibiost"] = {"fingerprint": "of others"}
    table.obs["n_spots"] = 3
    table.var["n_spots"] = -1
    hb.tl.embed(sdata, model=run[2][0])
    assert "X_hibiost_gene" not in table.obsm
    assert table.uns["X_hibiost"]["fingerprint"] == run[2][0].fingerprint()
    hb.pp.tfidf_sentences(sdata, n_genes=20)
    assert table.var["n_spots"].min() >= 0
    assert set(table.obs["n_spots"]) == {3}


def test_a_new_anndata_becomes_a_new_sdata(monkeypatch):
    """As map_genes: the verb returns another AnnData, on what it was given."""
    from hibiost.inputs import takes_spatialdata

    @takes_spatialdata
    def halved(adata: "AnnData") -> "AnnData":  # noqa: F821
        """Halve.

        Returns
        -------
        Half the genes.
        """
        return adata[:, ::2].copy()

    sdata = hb.io.to_spatialdata(section())
    half = halved(sdata)
    assert half["table"].shape == (200, 30)
    assert sdata["table"].shape == (200, 60)
    assert "spatial" not in half["table"].obsm
    assert "images" not in half["table"].uns["spatial"]["tissue_0"]
    np.testing.assert_allclose(hb.io.from_spatialdata(half).obsm["spatial"], section().obsm["spatial"])


def test_regions_under_another_name():
    """``library_id`` and coordinates are for the verb only, where the table calls its regions otherwise."""
    sdata = hb.io.to_spatialdata(section())
    table = sdata["table"]
    table.obs = table.obs.rename(columns={"library_id": "where"})
    table.uns["spatialdata_attrs"]["region_key"] = "where"
    hb.pp.tfidf_sentences(sdata, n_genes=20)
    assert "gene_sentence" in table.obsm
    assert "library_id" not in table.obs
    assert "spatial" not in table.obsm


# -- which table, which image ----------------------------------------------------------------------------------------


def two_of_each():
    sdata = hb.io.to_spatialdata(section())
    sdata["second"] = sdata["table"].copy()
    for name in ("tissue_0", "tissue_1"):
        other = Image2DModel.parse(
            255 - np.asarray(sdata[f"{name}_full_image"].data), dims=("c", "y", "x"), transformations={name: Identity()}
        )
        sdata[f"{name}_negative"] = other
    for table in sdata.tables.values():
        for slide in table.uns["spatial"].values():
            del slide["metadata"]["image_key"]
    return sdata


def test_tables_and_images_are_named():
    sdata = two_of_each()
    with pytest.raises(DataError, match=r"several, \['table', 'second'\]: name one with table_key="):
        hb.pp.tfidf_sentences(sdata)
    hb.pp.tfidf_sentences(sdata, n_genes=20, table_key="second")
    assert "gene_sentence" in sdata["second"].obsm
    assert "gene_sentence" not in sdata["table"].obsm
    negative = {name: f"{name}_negative" for name in ("tissue_0", "tissue_1")}
    for image_key, sign in ((negative, True), ({name: f"{name}_full_image" for name in negative}, False)):
        patches, expected = patches_of(sdata, table_key="table", image_key=image_key), patches_of(section())
        np.testing.assert_array_equal(patches, 255 - expected if sign else expected)


def test_an_image_is_asked_for_only_where_it_is_needed():
    sdata = two_of_each()
    table = sdata["table"]
    hb.pp.tfidf_sentences(sdata, n_genes=20, table_key="table")
    table.obsm["x"] = np.random.default_rng(0).random((200, 4))
    hb.tl.cluster(sdata, n_clusters=3, use_rep="x", table_key="table", n_init=1)
    for verb in (hb.pp.iter_patches, hb.pl.spatial_clusters):
        with pytest.raises(DataError, match=r"2 images, \['tissue_0_full_image', 'tissue_0_negative'\], share"):
            verb(sdata, table_key="table")
    hb.pl.spatial_clusters(sdata, table_key="table", img_key=None)


def test_without_images():
    sdata = hb.io.to_spatialdata(section())
    for name in list(sdata.images):
        del sdata.images[name]
    with pytest.raises(ImageError, match="no image"):
        hb.pp.iter_patches(sdata)
    sdata["table"].obs["cluster"] = sdata["table"].obs["region_truth"]
    assert not hb.pl.spatial_clusters(sdata).axes[0].images


def test_keys_are_for_spatialdata():
    with pytest.raises(DataError, match="table_key= and image_key= are for SpatialData objects"):
        hb.pp.tfidf_sentences(section(), table_key="table")
    with pytest.raises(TypeError, match="unexpected keyword argument 'tabel_key'"):
        hb.pp.tfidf_sentences(section(), tabel_key="table")


# -- all verbs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(VERBS.keys() - ALONE))
def test_every_verb_takes_spatialdata(name):
    signature = inspect.signature(VERBS[name])
    assert list(signature.parameters)[-2:] == ["table_key", "image_key"]
    first = next(iter(signature.parameters.values()))
    assert first.name in ("adata", "reference")
    assert "SpatialData" in first.annotation
    assert "\ntable_key\n    Of a SpatialData" in VERBS[name].__doc__


def test_spatialdata_is_imported_only_for_spatialdata(tmp_path):
    import subprocess

    code = (
        "import sys, hibiost as hb; a = hb.datasets.tissue(100, n_genes=20, image=False); "
        "hb.pp.tfidf_sentences(a, n_genes=5); print('spatialdata' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.data
def test_a_real_section(her2st_dir, tiny, tmp_path):
    adata = hb.datasets.her2st("C2")
    hb.io.to_spatialdata(adata).write(tmp_path / "c2.zarr")
    sdata = sd.read_zarr(tmp_path / "c2.zarr")
    models = [hb.tl.pretrain(data, image_encoder=tiny, recipe={"epochs": 1, "lambda3": 0}) for data in (adata, sdata)]
    assert models[0].fingerprint() == models[1].fingerprint()
    for data in (adata, sdata):
        hb.pp.tfidf_sentences(data, n_genes=20)
        hb.tl.embed(data, model=models[0])
        hb.tl.cluster(data, n_clusters=4, n_init=2)
    check_same_slots(sdata["table"], adata)
    assert isinstance(sdata["table"], ad.AnnData)
