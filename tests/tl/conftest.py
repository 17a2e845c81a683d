import numpy as np
import pytest
import torch

import hibiost as hb

RECIPE = {"epochs": 8, "batch_size": 32, "lr": 3e-3, "precision": "32", "shift": 0.1, "n_genes": 40}


@pytest.fixture(scope="session")
def tiny():
    """A configuration that trains in seconds."""
    return hb.model.ModelConfig(
        embed_dim=16,
        vision_cfg={"timm_model_name": "resnet10t", "timm_pool": "avg", "image_size": 32},
        text_cfg={"context_length": 48, "width": 16, "heads": 2, "layers": 1},
        patch_size=64,
        recipe=RECIPE,
    )


@pytest.fixture(scope="session")
def _sections():
    adata = hb.datasets.tissue(100, n_genes=80, n_slides=3, pitch_px=48)
    adata.uns["spatial"]["tissue_0"]["metadata"]["organ"] = "Breast"
    return adata


def _only(adata, names):
    part = adata[adata.obs["library_id"].isin(names).to_numpy()].copy()
    part.uns["spatial"] = {name: part.uns["spatial"][name] for name in names}
    return part


@pytest.fixture
def reference(_sections):
    return _only(_sections, ["tissue_0", "tissue_1"])


@pytest.fixture
def slide(_sections):
    return _only(_sections, ["tissue_2"])


@pytest.fixture(scope="session")
def model(_sections, tiny):
    return hb.tl.pretrain(_only(_sections, ["tissue_0", "tissue_1"]), image_encoder=tiny)


@pytest.fixture(scope="session")
def _embedded(_sections, model):
    parts = _only(_sections, ["tissue_2"]), _only(_sections, ["tissue_0", "tissue_1"])
    for adata in parts:
        hb.pp.tfidf_sentences(adata, n_genes=40, vocabulary=model.vocabulary)
        hb.tl.embed(adata, model=model)
    return parts


@pytest.fixture
def embedded(_embedded):
    """Held-out slide and reference with sentences and embeddings."""
    return tuple(adata.copy() for adata in _embedded)


@pytest.fixture
def encoder():
    """Mean and standard deviation of the colours of a patch."""

    class Colours(torch.nn.Module):
        def forward(self, pixels):
            return torch.cat([pixels.mean((2, 3)), pixels.std((2, 3))], dim=1)

    options = {"licence": "", "source": "", "output": "", "patch_size": 64}
    return hb.model.FeatureEncoder("colours", Colours(), torch.Tensor.float, **options)


@pytest.fixture
def unchanged():
    """Checks that a refused call wrote nothing."""

    def slots(adata):
        names = ("obs", "var", "obsm", "varm", "layers", "uns")
        return {name: sorted(map(str, getattr(adata, name))) for name in names}

    class Check:
        def __init__(self, adata):
            self.adata, self.before, self.counts = adata, slots(adata), adata.X.copy()

        def __enter__(self):
            return self

        def __exit__(self, *error):
            assert slots(self.adata) == self.before
            assert np.array_equal(self.adata.X.toarray(), self.counts.toarray(), equal_nan=True)

    return Check
