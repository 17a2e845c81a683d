from pathlib import Path

import numpy as np
import pytest

from hibiost.genes import Vocabulary
from hibiost.model import HibioModel, ModelConfig, load

FORMAT_1 = Path(__file__).with_name("format-1")
"""A small model and some of its embeddings, as hibiost wrote it before models had cards."""


@pytest.fixture
def vocabulary():
    return Vocabulary(("ERBB2", "IGLL5", "MGP"), np.array([3, 1, 2]), np.array([4, 4, 3]))


@pytest.fixture
def model(vocabulary):
    config = ModelConfig(
        embed_dim=16,
        vision_cfg={"timm_model_name": "resnet10t", "timm_pool": "avg", "image_size": 32},
        text_cfg={"context_length": 8, "width": 16, "heads": 2, "layers": 1},
        patch_size=64,
        mpp=0.5,
    )
    return HibioModel(config, vocabulary, metadata=["organ:breast"], training={"seed": 3, "n_genes": 2})


@pytest.fixture
def format_1():
    return FORMAT_1


@pytest.fixture
def tiny():
    return load(FORMAT_1)
