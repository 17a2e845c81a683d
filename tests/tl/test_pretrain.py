import numpy as np
import pytest
from scipy import sparse

import hibiost as hb
from hibiost.errors import DataError, ImageError, MissingSlotError, ModelError
from hibiost.genes import Vocabulary


def train(adata, tiny, **options):
    return hb.tl.pretrain(adata, image_encoder=tiny, n_genes=40, epochs=1, **options)


def test_the_model_knows_its_training(model, reference):
    info = model.training_info
    assert info["slides"] == ["tissue_0", "tissue_1"]
    assert (info["n_spots"], info["n_genes"], info["seed"]) == (200, 40, 0)
    assert info["recipe"]["batch_size"] == 32
    assert model.tokenizer.metadata == ["organ:breast"]
    assert model.vocabulary == Vocabulary.fit([(reference.var_names, reference.X)])
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
            train(reference, tiny, rng=seed, n_workers=workers).fingerprint()
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
    model = train(reference, tiny, min_spots=150)
    assert len(model.vocabulary) == (seen >= 150).sum() < reference.n_vars
    assert model.training_info["min_spots"] == 150


def test_mpp_is_kept_in_the_model(reference, tiny):
    assert train(reference, tiny, mpp=0.6).config.mpp == 0.6


def test_refusals(reference, tiny, unchanged):
    with unchanged(reference):
        with pytest.raises(ModelError, match=r"no model preset 'ViT-B-61'.*Did you mean"):
            hb.tl.pretrain(reference, image_encoder="ViT-B-61")
        with pytest.raises(DataError, match=r"no 'epoch'.*Did you mean 'epochs'"):
            train(reference, tiny, recipe={"epoch": 3})
        with pytest.raises(DataError, match=r"sentences of 60 genes do not fit a context of 48"):
            hb.tl.pretrain(reference, image_encoder=tiny, n_genes=60)
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
