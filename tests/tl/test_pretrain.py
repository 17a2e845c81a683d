import hashlib
import shutil
import subprocess
import sys
from dataclasses import replace

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


def test_a_vocabulary_of_other_slides(reference, tiny):
    counts = np.arange(1, 6)
    vocabulary = hb.genes.Vocabulary(tuple(reference.var_names[:5]), counts, np.full(5, 100))
    found = train(reference, tiny, vocabulary=vocabulary)
    assert found.vocabulary == vocabulary
    np.testing.assert_allclose(found.vocabulary.idf, np.log(101 / (1 + counts)))
    with pytest.raises(DataError, match=r"none of the 80 genes"):
        train(reference, tiny, vocabulary=hb.genes.Vocabulary(("OTHER",), [1], [2]))


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


# -- an image tower from elsewhere -----------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    """A small timm model, and the folder that timm made of it."""
    import timm
    import torch
    from timm.models import save_for_hf

    args = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **args).eval()
    model.pretrained_cfg |= {"mean": (0.6, 0.5, 0.6), "std": (0.2, 0.2, 0.2), "license": "cc0-1.0"}
    save_for_hf(model, tmp_path / "small", model_args=args, safe_serialization=True)
    return model, tmp_path / "small"


def from_elsewhere(reference, folder, tiny, **recipe):
    """One epoch, with a gene tower that is small enough for a test."""
    encoder = hb.model.image_encoder(f"local-dir:{folder}")
    encoder = replace(encoder, config=replace(encoder.config, embed_dim=16, text_cfg=tiny.text_cfg, recipe=tiny.recipe))
    return train(reference, encoder, recipe={"lambda3": 0, "shift": 0.0, **recipe})


def features(trunk, patches):
    """Of pixels scaled and normalised here, by the statistics of the source."""
    import torch

    pixels = (torch.from_numpy(patches).permute(0, 3, 1, 2) / 255 - torch.tensor([0.6, 0.5, 0.6]).view(3, 1, 1)) / 0.2
    with torch.inference_mode():
        return trunk(pixels.contiguous()).numpy()


def test_training_starts_from_the_weights(reference, source, tiny):
    """With a rate of zero, the tower ends as it starts: its features are those of the source."""
    timm_model, folder = source
    model = from_elsewhere(reference, folder, tiny, lr=0.0)
    patches = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    expected = features(timm_model, patches)
    np.testing.assert_allclose(features(model.visual.trunk, patches), expected, rtol=1e-5, atol=1e-5)
    projected = expected @ model.visual.head.proj.weight.detach().numpy().T
    embeddings = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    np.testing.assert_allclose(model.embed_images(patches), embeddings, atol=1e-5)
    trained = from_elsewhere(reference, folder, tiny)
    assert np.abs(features(trained.visual.trunk, patches) - expected).max() > 1e-2


def test_a_frozen_tower_ends_as_it_starts_and_layers_learn_at_their_rates(reference, source, tiny):
    timm_model, folder = source
    start = timm_model.state_dict()
    frozen = from_elsewhere(reference, folder, tiny, freeze_image=True)
    untouched = from_elsewhere(reference, folder, tiny, lr=0.0)
    for name, tensor in frozen.visual.trunk.state_dict().items():
        np.testing.assert_array_equal(tensor, start[name])
    assert not np.array_equal(*(m.visual.head.proj.weight.detach() for m in (frozen, untouched)))
    assert frozen.training_info["history"][0]["loss"] != untouched.training_info["history"][0]["loss"]
    slow = from_elsewhere(reference, folder, tiny, layer_decay=0.01)
    moved = {
        name: float((tensor - start[name]).abs().mean())
        for name, tensor in slow.visual.trunk.state_dict().items()
        if name.endswith("attn.qkv.weight")
    }
    assert 0 < moved["blocks.0.attn.qkv.weight"] < 0.1 * moved["blocks.1.attn.qkv.weight"]
    recipe = slow.training_info["recipe"]
    assert (recipe["freeze_image"], recipe["layer_decay"]) == (False, 0.01)


def test_the_model_knows_where_its_tower_comes_from(reference, source, model, tiny):
    _, folder = source
    trained = from_elsewhere(reference, folder, tiny)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert trained.training_info["image_encoder"] == {
        "name": "local-dir:small",
        "source": "local folder",
        "weights": "model.safetensors",
        "sha256": digest,
        "licence": "cc0-1.0",
    }
    assert (trained.config.mean, trained.config.image_size) == ((0.6, 0.5, 0.6), 32)
    assert model.training_info["image_encoder"] is None


def test_a_fresh_process_without_network_and_without_the_weights(reference, source, tiny, tmp_path):
    _, folder = source
    trained = from_elsewhere(reference, folder, tiny)
    trained.save(tmp_path / "model")
    shutil.rmtree(folder)
    patches = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "patches.npy", patches)
    code = (
        "import socket, sys\n"
        "def refuse(*args): raise OSError('no network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import numpy as np, hibiost as hb\n"
        "model = hb.model.load('model')\n"
        "np.save('embeddings.npy', model.embed_images(np.load('patches.npy')))\n"
        "np.save('genes.npy', model.embed_genes(model.tokenizer(np.array([[0, 3, 1]]))))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "embeddings.npy"), trained.embed_images(patches), atol=1e-6)
    genes = trained.embed_genes(trained.tokenizer(np.array([[0, 3, 1]])))
    np.testing.assert_allclose(np.load(tmp_path / "genes.npy"), genes, atol=1e-6)


def test_an_encoder_that_cannot_be_had_is_refused_before_slides_are_read(tmp_path, unchanged, reference):
    with unchanged(reference):
        with pytest.raises(ModelError, match=r"timm has no model 'resnet10'.*Did you mean"):
            hb.tl.pretrain(tmp_path / "no-such-slide.h5ad", image_encoder="timm:resnet10")
        with pytest.raises(ModelError, match="no weights at"):
            hb.tl.pretrain(reference, image_encoder=f"local-dir:{tmp_path / 'nowhere'}")


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
