import numpy as np
import pytest
from scipy import sparse

import hibiost as hb
from hibiost.errors import DataError, ImageError, MissingSlotError, ModelError
from hibiost.genes import Vocabulary


def train(adata, tiny, **options):
    return hb.tl.pretrain(adata, image_encoder=tiny, epochs=1, **options)


def test_the_model_knows_its_training(model, reference):
    info = model.training_info
    assert info["slides"] == ["tissue_0", "tissue_1"]
    assert (info["n_spots"], info["seed"], info["pathways"], info["regions"]) == (200, 0, None, [])
    assert (info["recipe"]["batch_size"], info["recipe"]["n_genes"]) == (32, 40)
    assert model.tokenizer.metadata == ["organ:breast"]
    assert model.vocabulary == Vocabulary.fit([(reference.var_names, reference.X)])
    assert model.vocabulary.metadata == {"organ:breast": 100}
    assert not model.training
    history = info["history"]
    assert history[-1]["loss"] < history[0]["loss"]


def test_it_learns_what_the_sections_hold(embedded):
    """On a section of another patient, images find their own sentences far above chance."""
    slide, _ = embedded
    recall = hb.metrics.recall_at_percent(slide.obsm["X_hibiost_image"], slide.obsm["X_hibiost_gene"])
    assert recall[10] > 25


def test_same_seed_same_weights_and_the_data_stay_as_they_were(reference, tiny, unchanged):
    with unchanged(reference):
        prints = [
            train(reference, tiny, rng=seed, engine={"n_workers": workers}).fingerprint()
            for seed, workers in ((0, 0), (0, 1), (1, 0))
        ]
    assert prints[0] == prints[1] != prints[2]


def test_a_list_of_slides_is_one_corpus(reference, tiny):
    first = (reference.obs["library_id"] == "tissue_0").to_numpy()
    parts = [reference[first].copy(), reference[~first].copy()]
    assert train(parts, tiny).fingerprint() == train(reference, tiny).fingerprint()


def test_genes_count_only_where_they_were_measured(reference, tiny):
    import pandas as pd

    measured = pd.DataFrame(True, index=reference.var_names, columns=["tissue_0", "tissue_1"])
    measured.loc["ERBB2", "tissue_1"] = False
    reference.varm["measured"] = measured
    vocabulary = train(reference, tiny).vocabulary
    at = vocabulary.index(["ERBB2", "MGP"])
    assert vocabulary.n_measured[at].tolist() == [100, 200]


def test_spots_without_counts_are_left_out(reference, tiny):
    reference.X = sparse.csr_matrix(sparse.diags_array((np.arange(200) >= 30) * 1.0) @ reference.X)
    model = train(reference, tiny, recipe={"batch_size": 500})
    assert model.training_info["n_spots"] == 170
    assert model.training_info["recipe"]["batch_size"] == 170


def test_min_spots_cuts_the_vocabulary(reference, tiny):
    seen = np.asarray((reference.X > 0).sum(axis=0)).ravel()
    model = train(reference, tiny, recipe={"min_spots": 150})
    assert len(model.vocabulary) == (seen >= 150).sum() < reference.n_vars
    assert model.training_info["recipe"]["min_spots"] == 150


def test_mpp_is_kept_in_the_model(reference, tiny):
    assert train(reference, tiny, mpp=0.6).config.mpp == 0.6


def test_refusals(reference, tiny, unchanged):
    with unchanged(reference):
        with pytest.raises(ModelError, match=r"no model preset 'ViT-B-61'.*Did you mean"):
            hb.tl.pretrain(reference, image_encoder="ViT-B-61")
        with pytest.raises(DataError, match=r"no 'epoch'.*Did you mean 'epochs'"):
            train(reference, tiny, recipe={"epoch": 3})
        with pytest.raises(DataError, match=r"sentences of 60 genes do not fit a context of 48"):
            train(reference, tiny, recipe={"n_genes": 60})
        with pytest.raises(DataError, match="list is empty"):
            hb.tl.pretrain([], image_encoder=tiny)
        with pytest.raises(DataError, match=r"device is 'tpu'"):
            train(reference, tiny, device="tpu")
        with pytest.raises(DataError, match="0 spots have a sentence"):
            train(reference[:1].copy(), tiny)


def test_bad_data_are_refused(reference, tiny, tmp_path):
    logged = reference.copy()
    logged.X = logged.X.log1p()
    with pytest.raises(DataError, match="no counts"):
        train(logged, tiny)
    nowhere = reference.copy()
    del nowhere.obsm["spatial"]
    with pytest.raises(MissingSlotError, match="spatial"):
        train(nowhere, tiny)
    unknown_scale = reference.copy()
    del unknown_scale.uns["spatial"]["tissue_1"]["metadata"]["mpp"]
    with pytest.raises(DataError, match=r"tissue_1.*mpp"):
        train(unknown_scale, tiny, mpp=0.5)
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(10))
    reference.uns["spatial"]["tissue_1"]["metadata"]["source_image_path"] = str(tmp_path / "cut.png")
    with pytest.raises(ImageError, match=r"cut\.png"):
        train(reference, tiny)


# -- levels two and three --------------------------------------------------------------------------------------------


@pytest.fixture
def pathways(reference):
    """Sets of the markers of each kind of tissue, and one of genes that were not measured."""
    markers = reference.var["marker_of"]
    sets = {str(kind): list(markers.index[markers == kind]) for kind in markers.unique() if kind}
    return {**sets, "elsewhere": ["OR4F5", "OR4F29"]}


ALL = {"region_start": 1, "region_every": 2, "threshold": 0.1, "n_neighbors": 6, "n_negatives": 3}


def all_levels(adata, tiny, pathways, **options):
    with hb.settings.override(data_dir=None):
        sets = hb.genes.GeneSets(pathways)
        return hb.tl.pretrain(adata, image_encoder=tiny, epochs=4, pathways=sets, recipe=ALL, **options)


def test_all_levels(reference, tiny, pathways):
    model = all_levels(reference, tiny, pathways)
    info = model.training_info
    last = info["history"][-1]
    assert {"spot", "pathway", "with_pathway", "region", "region_chance"} < last.keys()
    assert last["with_pathway"] > 0
    assert [entry["epoch"] for entry in info["regions"]] == [1, 3]
    history = reference.obsm["region_history"]
    assert list(history.columns) == ["0", "1", "3"]
    assert (history.dtypes == np.int32).all()
    assert list(history.index) == list(reference.obs_names)
    assert not history["0"].any()
    found = sum(ids.nunique() for _, ids in history["3"].groupby(reference.obs["library_id"], observed=True))
    assert found == info["regions"][-1]["n_regions"]
    assert reference.uns["region_history"]["params"]["region_every"] == 2


def test_levels_survive_the_model_file(reference, tiny, pathways, tmp_path):
    model = all_levels(reference, tiny, pathways)
    again = hb.model.load(model.save(tmp_path / "model"))
    assert again.fingerprint() == model.fingerprint()
    assert again.training_info == model.training_info


def test_history_of_a_list_is_written_where_it_belongs(reference, tiny, pathways):
    parts = [reference[(reference.obs["library_id"] == name).to_numpy()].copy() for name in ("tissue_1", "tissue_0")]
    blank = parts[0].X.toarray()
    blank[:5] = 0
    parts[0].X = sparse.csr_matrix(blank)
    all_levels(parts, tiny, pathways)
    histories = [part.obsm["region_history"].to_numpy() for part in parts]
    assert (histories[0][:5] == -1).all()
    assert (histories[0][5:] >= 0).all()
    assert (histories[1] >= 0).all()


def test_regions_do_not_depend_on_the_order_of_rows(reference, tiny, pathways):
    """Rows of two slides mixed: the same spots of a slide stay in one history."""
    mixed = reference[np.arange(200).reshape(2, 100).T.ravel()].copy()
    all_levels(mixed, tiny, pathways)
    for name in ("tissue_0", "tissue_1"):
        of_slide = (mixed.obs["library_id"] == name).to_numpy()
        assert sorted(np.unique(mixed.obsm["region_history"]["3"][of_slide])) == list(
            range(mixed.obsm["region_history"]["3"][of_slide].max() + 1)
        )


def test_switches(reference, tiny, pathways):
    """Each ablation of the paper is one entry."""
    base = {"region_start": 1}
    terms = {}
    for name, change in {"all": {}, "no pathways": {"lambda2": 0}, "no regions": {"lambda3": 0}}.items():
        recipe = {**ALL, **base, **change}
        info = hb.tl.pretrain(
            reference, image_encoder=tiny, epochs=2, pathways=hb.genes.GeneSets(pathways), recipe=recipe
        ).training_info
        terms[name] = {"pathway", "region"} & info["history"][-1].keys()
    assert terms == {"all": {"pathway", "region"}, "no pathways": {"region"}, "no regions": {"pathway"}}


def test_levels_that_are_left_out_are_told(reference, tiny, caplog):
    with caplog.at_level("INFO", logger="hibiost"):
        train(reference, tiny, recipe={"lambda3": 0})
        train(reference, tiny, recipe={"lambda2": 0}, pathways="reactome")
    told = [line for line in caplog.messages if "left out" in line]
    assert told == [
        "level two, pathways, is left out: no pathways= are given",
        "level three, regions, is left out: lambda3 is 0",
        "level two, pathways, is left out: lambda2 is 0",
        "level three, regions, is left out: region_start is 25, of 1 epochs",
    ]


def test_selections_give_other_models(reference, tiny):
    prints = {train(reference, tiny, recipe={"selection": name}).fingerprint() for name in ("tfidf", "top", "hvg")}
    assert len(prints) == 3


def test_few_positives_are_told(reference, tiny, pathways, caplog):
    recipe = {"threshold": 0.99}
    with caplog.at_level("WARNING", logger="hibiost"):
        train(reference, tiny, pathways=hb.genes.GeneSets(pathways), recipe=recipe)
    assert any("threshold" in line for line in caplog.messages)


def test_gene_sets_that_do_not_fit(reference, tiny, unchanged):
    with unchanged(reference), pytest.raises(DataError, match="none of the 80 genes .* is in a gene set"):
        train(reference, tiny, pathways=hb.genes.GeneSets({"mouse": ["Erbb2", "Mgp", "Krt19", "Esr1", "Cd8a"]}))
