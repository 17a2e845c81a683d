"""Models of hibiost in the place of LazySlide's own."""

import numpy as np
import pytest
import torch
from PIL import Image

from hibiost.errors import DataError
from hibiost.model import lazyslide

GENES = ("ERBB2", "IGLL5", "MGP")


@pytest.fixture
def zoo_model(tiny):
    return lazyslide(tiny)


def test_it_is_what_lazyslide_asks_for(zoo_model):
    protocols = pytest.importorskip("lazyslide_models", reason="lazyslide-models is not installed")
    assert isinstance(zoo_model, protocols.ImageTextModelProtocol)
    assert isinstance(zoo_model, protocols.ImageModelProtocol)
    assert not isinstance(zoo_model, protocols.ViTModelProtocol)


def test_images_are_embedded_as_patches_are(zoo_model, tiny):
    patches = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    transform = zoo_model.get_transform()
    batch = torch.stack([transform(patches[0]), transform(Image.fromarray(patches[1])), transform(patches[2])])
    np.testing.assert_array_equal(zoo_model.encode_image(batch).numpy(), tiny.embed_images(patches))
    assert zoo_model.to("cpu") is zoo_model
    assert zoo_model.name == "hibiost"


def test_tiles_of_another_size_are_resized_as_patches_are(zoo_model):
    tile = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(tile).resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(zoo_model.get_transform()(tile).numpy(), expected.transpose(2, 0, 1))


def test_text_are_gene_sentences(zoo_model, tiny):
    rows = [tiny.tokenizer(np.array([[1, 0]]), ["organ:breast"]), tiny.tokenizer(np.array([[2, -1]]))]
    expected = tiny.embed_genes(np.concatenate(rows))
    for text in (
        ["IGLL5 organ:breast ERBB2", " MGP\n"],
        [["organ:breast", "IGLL5", "ERBB2"], ["MGP"]],
        ["organ:breast, IGLL5, ERBB2", "MGP"],
    ):
        np.testing.assert_allclose(zoo_model.encode_text(text).numpy(), expected, atol=1e-6)
    assert zoo_model.encode_text("MGP").shape == (1, 16)
    assert zoo_model.tokenize("MGP").shape == (1, 8)


def test_genes_the_model_does_not_know(zoo_model, caplog):
    with caplog.at_level("WARNING", logger="hibiost"):
        tokens = zoo_model.tokenize("MGP ACTB")
    assert "1 of 2 genes are unknown to the model, such as ACTB" in caplog.text
    assert torch.equal(tokens, zoo_model.tokenize("MGP"))
    with pytest.raises(DataError, match=r"none of \['IGLL', 'ACTB'\] is among the 3 genes.*Did you mean 'IGLL5'"):
        zoo_model.encode_text("IGLL ACTB")
    with pytest.raises(DataError, match=r"none of \[\] is among"):
        zoo_model.encode_text("organ:breast")


def test_compiling_leaves_the_weights_their_names(zoo_model, tiny):
    before = tiny.fingerprint()
    zoo_model.try_compile(backend="eager")
    assert tiny.fingerprint() == before
    assert tiny.visual._compiled_call_impl is not None
