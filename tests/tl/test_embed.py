import anndata as ad
import numpy as np
import pytest

import hibiost as hb
from hibiost.errors import DataError, MissingSlotError, ModelError
from hibiost.model.inference import Inference
from hibiost.model.tokens import PAD, metadata_words
from hibiost.tl._resolve import sentence_rows


def test_slots(embedded, model):
    slide, _ = embedded
    for key in ("X_hibiost_image", "X_hibiost_gene"):
        assert slide.obsm[key].shape == (100, 16)
        assert slide.obsm[key].dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(slide.obsm[key], axis=1), 1, rtol=1e-5)
    assert slide.uns["X_hibiost"]["fingerprint"] == model.fingerprint()


def test_images_equal_embedding_each_patch_by_hand(embedded, model):
    """Slides interleaved, batches of another size: each row is its own spot's patch."""
    _, reference = embedded
    order = np.random.default_rng(0).permutation(reference.n_obs)
    mixed = reference[order].copy()
    hb.tl.embed(mixed, model=model, batch_size=7, modality="image")
    np.testing.assert_allclose(
        mixed.obsm["X_hibiost_image"], reference.obsm["X_hibiost_image"][order], rtol=0, atol=1e-5
    )
    spot = 150
    image = reference.uns["spatial"]["tissue_1"]["images"]["hires"]
    x, y = np.floor(reference.obsm["spatial"][spot] - 32 + 0.5).astype(int)
    from PIL import Image

    patch = np.asarray(Image.fromarray(image[y : y + 64, x : x + 64]).resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(
        model.embed_images(patch[None])[0], reference.obsm["X_hibiost_image"][spot], rtol=0, atol=1e-5
    )


def test_genes_equal_embedding_each_sentence_by_hand(embedded, model):
    _, reference = embedded
    for spot, metadata in ((3, {"organ": "Breast"}), (150, {})):
        genes = hb.get.sentences(reference).iloc[spot].split()
        tokens = model.tokenizer(model.vocabulary.index(genes)[None], metadata_words(metadata))
        np.testing.assert_allclose(
            model.embed_genes(tokens)[0], reference.obsm["X_hibiost_gene"][spot], rtol=0, atol=1e-5
        )


def test_sentences_are_sorted_by_length_within_their_slide(embedded, model, monkeypatch):
    """What is written does not depend on it, and batches hold less padding."""
    _, reference = embedded
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 41, reference.n_obs)
    table = np.where(np.arange(40) < lengths[:, None], reference.obsm["gene_sentence"], -1)
    reference.obsm["gene_sentence"] = table
    rows = [np.flatnonzero(reference.obs["library_id"] == name) for name in ("tissue_0", "tissue_1")]
    expected = np.empty((reference.n_obs, 16), dtype=np.float32)
    indices = sentence_rows(reference, model.vocabulary)
    for part, words in zip(rows, (["organ:breast"], []), strict=True):
        expected[part] = model.embed_genes(model.tokenizer(indices[part], words))
    longest, encode = [], Inference.genes

    def watched(self, tokens):
        longest.append((tokens != PAD).sum(axis=1).max())
        return encode(self, tokens)

    monkeypatch.setattr(Inference, "genes", watched)
    hb.tl.embed(reference, model=model, modality="gene", batch_size=7)
    np.testing.assert_allclose(reference.obsm["X_hibiost_gene"], expected, atol=1e-6)
    assert longest[:15] == sorted(longest[:15])
    assert longest[15:] == sorted(longest[15:])
    assert len(longest) == 30


def test_precision(embedded, model, tmp_path):
    """Of the argument, else of the settings; the weights are the same, and so is their fingerprint."""
    slide, _ = embedded
    exact = {side: slide.obsm[f"X_hibiost_{side}"] for side in ("image", "gene")}
    assert slide.uns["X_hibiost"]["params"]["precision"] == "float32"
    hb.settings.precision = "bfloat16"
    by_settings = hb.tl.embed(slide, model=model, copy=True)
    again = hb.tl.embed(slide, model=model, precision="float32", copy=True)
    assert hb.settings.precision == "bfloat16"
    hb.settings.precision = "float32"
    hb.tl.embed(slide, model=model, precision="bfloat16")
    slide.write_h5ad(tmp_path / "slide.h5ad")
    stored = ad.read_h5ad(tmp_path / "slide.h5ad")
    assert stored.uns["X_hibiost"]["params"]["precision"] == "bfloat16"
    assert stored.uns["X_hibiost"]["fingerprint"] == model.fingerprint()
    assert again.uns["X_hibiost"]["params"]["precision"] == "float32"
    for side, values in exact.items():
        reduced = slide.obsm[f"X_hibiost_{side}"]
        assert reduced.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(reduced, axis=1), 1, rtol=1e-5)
        assert (reduced * values).sum(axis=1).min() > 0.999
        assert np.abs(reduced - values).max() > 1e-5
        np.testing.assert_array_equal(by_settings.obsm[f"X_hibiost_{side}"], reduced)
        np.testing.assert_allclose(again.obsm[f"X_hibiost_{side}"], values, atol=1e-6)


def test_the_other_verbs_follow_the_settings(embedded, slide, model):
    _, reference = embedded
    genes = ["ERBB2", "IGLL5"]
    exact = hb.tl.predict(slide, reference, model=model, genes=genes, copy=True).obsm["predicted_expression"]
    scores = hb.tl.annotate(slide, genes, model=model, copy=True).obsm["pathway_score"]
    predictor = hb.tl.fit_predictor(reference, model=model, genes=genes)
    with hb.settings.override(precision="bfloat16"):
        reduced = hb.tl.predict(slide, reference, model=model, genes=genes, copy=True).obsm["predicted_expression"]
        scores_too = hb.tl.annotate(slide, genes, model=model, copy=True).obsm["pathway_score"]
        hb.tl.predict(slide, hb.tl.fit_predictor(reference, model=model, genes=genes))
    assert slide.uns["predicted_expression"]["params"]["precision"] == "bfloat16"
    by_regression = slide.obsm["predicted_expression"]
    hb.tl.predict(slide, predictor)
    assert slide.uns["predicted_expression"]["params"]["precision"] == "float32"
    for one, other in ((exact, reduced), (scores, scores_too), (by_regression, slide.obsm["predicted_expression"])):
        assert not one.equals(other)
        np.testing.assert_allclose(one, other, atol=0.05)


def test_without_sentences_only_images(slide, model):
    hb.tl.embed(slide, model=model)
    assert "X_hibiost_image" in slide.obsm
    assert "X_hibiost_gene" not in slide.obsm


def test_genes_need_no_image(slide, model):
    slide.uns.pop("spatial")
    hb.pp.tfidf_sentences(slide, n_genes=40)
    hb.tl.embed(slide, model=model, modality="gene", library_key="library_id")
    assert "X_hibiost_image" not in slide.obsm
    assert slide.obsm["X_hibiost_gene"].shape == (100, 16)


def test_own_names_and_copy(slide, model):
    before = set(slide.obsm)
    changed = hb.tl.embed(slide, model=model, key_added="mine", copy=True)
    assert {"mine_image"} == set(changed.obsm) - before
    assert changed.uns["mine"]["params"]["modality"] == "auto"
    assert set(slide.obsm) == before


@pytest.mark.parametrize(("modality", "left"), [("image", "X_hibiost_image"), ("gene", "X_hibiost_gene")])
def test_no_embedding_of_other_weights_stays(embedded, model, modality, left):
    slide, _ = embedded
    hb.tl.embed(slide, model=model, modality=modality)
    assert {"X_hibiost_image", "X_hibiost_gene"} <= set(slide.obsm)
    other = hb.model.untrained(model, rng=7)
    hb.tl.embed(slide, model=other, modality=modality)
    assert {"X_hibiost_image", "X_hibiost_gene"} & set(slide.obsm) == {left}
    assert slide.uns["X_hibiost"]["fingerprint"] == other.fingerprint()


def test_as_typed_with_a_model_in_the_settings(slide, model, tmp_path):
    hb.settings.model = model.save(tmp_path / "m")
    hb.tl.embed(slide)
    assert slide.uns["X_hibiost"]["params"]["model"] == str(tmp_path / "m")


def test_without_a_model_it_is_the_one_that_ships(slide):
    hb.tl.embed(slide)
    assert slide.uns["X_hibiost"]["params"]["model"] == "hibiost-mini"
    assert slide.uns["X_hibiost"]["fingerprint"] == hb.model.list()["hibiost-mini"]["fingerprint"]
    hb.settings.model = "no-such-model"
    with pytest.raises(ModelError, match=r"no model at no-such-model.*hb\.tl\.pretrain.*hb\.model\.list"):
        hb.tl.embed(slide)


def test_refusals(slide, model, unchanged):
    with unchanged(slide):
        with pytest.raises(DataError, match=r"modality is 'both'"):
            hb.tl.embed(slide, model=model, modality="both")
        with pytest.raises(DataError, match=r"precision is 'half'; expected one of \['float32', 'bfloat16', 'auto'\]"):
            hb.tl.embed(slide, model=model, precision="half")
        with pytest.raises(MissingSlotError, match=r"gene_sentence.*tfidf_sentences"):
            hb.tl.embed(slide, model=model, modality="gene")
        with pytest.raises(DataError, match="no spots"):
            hb.tl.embed(slide[:0].copy(), model=model)
        with pytest.raises(ModelError, match="no model at nowhere"):
            hb.tl.embed(slide, model="nowhere")


def test_genes_the_model_does_not_know(slide, model, unchanged):
    mouse = slide.copy()
    mouse.var_names = [f"ENSMUSG{i:011d}" for i in range(mouse.n_vars)]
    hb.pp.tfidf_sentences(mouse, n_genes=40)
    with unchanged(mouse), pytest.raises(DataError, match=r"none of the 80 genes.*Ensembl.*hb.pp.map_genes"):
        hb.tl.embed(mouse, model=model)


def test_sentences_beyond_the_context_are_told(slide, model, caplog):
    hb.settings.verbosity = "info"
    hb.pp.tfidf_sentences(slide, n_genes=80)
    hb.tl.embed(slide, model=model, modality="gene")
    assert "lost their last genes" in caplog.text


@pytest.mark.parametrize(("mpp", "told"), [(0.5, False), (0.6, False), (0.65, True), (0.25, True)])
def test_another_pixel_size_is_told(slide, model, caplog, mpp, told):
    assert model.training_info["mpp"] == 0.5
    slide.uns["spatial"]["tissue_2"]["metadata"]["mpp"] = mpp
    hb.tl.embed(slide, model=model)
    assert ("another width of tissue" in caplog.text) == told


def test_mpp_mismatch_is_refused_by_name(slide, tiny, model):
    scaled = hb.model.HibioModel(tiny.with_mpp(0.25), model.vocabulary)
    del slide.uns["spatial"]["tissue_2"]["metadata"]["mpp"]
    with pytest.raises(DataError, match=r"tissue_2.*mpp"):
        hb.tl.embed(slide, model=scaled)
