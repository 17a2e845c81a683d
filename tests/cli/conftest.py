import pytest
from PIL import Image

import hibiost as hb

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"timm_model_name": "resnet10t", "timm_pool": "avg", "image_size": 32},
    "text_cfg": {"context_length": 48, "width": 16, "heads": 2, "layers": 1},
    "patch_size": 32,
}


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """A folder with a model (not trained), two slides in HEST's layout, a third in a file, and its image."""
    folder = tmp_path_factory.mktemp("shelf")
    adata = hb.datasets.tissue(30, n_genes=80, n_slides=3, pitch_px=32)
    parts = []
    for name, entry in adata.uns["spatial"].items():
        parts.append(adata[(adata.obs["library_id"] == name).to_numpy()].copy())
        parts[-1].uns["spatial"] = {name: entry}
    reference = hb.io.concat(parts[:2])
    hb.io.write_hest(reference, folder / "hest")
    parts[2].write_h5ad(folder / "third.h5ad")
    Image.fromarray(entry["images"]["hires"]).save(folder / "tumour.png")
    vocabulary = hb.io.Corpus(folder / "hest").vocabulary()
    training = {"recipe": {"n_genes": 40}}
    hb.model.HibioModel(hb.model.ModelConfig.from_dict(CONFIG), vocabulary, training=training).save(folder / "model")
    return folder
