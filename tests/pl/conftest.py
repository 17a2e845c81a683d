from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

DIAMETER, SCALE = 145.0, 0.1
GENES = ["ERBB2", "IGLL5", "GAPDH"]


@pytest.fixture
def adata() -> AnnData:
    """Two slides of a 6 x 5 and a 4 x 5 grid with images, clusters, counts and a prediction of two genes."""
    rng = np.random.default_rng(0)
    grids = [np.stack(np.meshgrid(np.arange(w), np.arange(5)), -1).reshape(-1, 2) * 290.0 + 400 for w in (6, 4)]
    library = np.repeat(["C2", "C3"], [len(g) for g in grids])
    counts = rng.poisson([4, 1, 9], (len(library), 3))
    adata = AnnData(
        sparse.csr_matrix(counts, dtype=np.float32),
        obs=pd.DataFrame({"library_id": pd.Categorical(library)}, index=[f"s{i}" for i in range(len(library))]),
        var=pd.DataFrame(index=GENES),
    )
    adata.obsm["spatial"] = np.concatenate(grids)
    adata.obs["cluster"] = pd.Categorical.from_codes(rng.integers(0, 3, adata.n_obs), ["0", "1", "2"])
    adata.uns["spatial"] = {
        name: {
            "images": {"hires": rng.integers(0, 255, (220, 240, 3), dtype=np.uint8)},
            "scalefactors": {"spot_diameter_fullres": DIAMETER, "tissue_hires_scalef": SCALE},
        }
        for name in ("C2", "C3")
    }
    predicted = np.log1p(counts[:, :2]) + rng.normal(0, 0.5, (adata.n_obs, 2))
    adata.obsm["predicted_expression"] = pd.DataFrame(predicted, index=adata.obs_names, columns=GENES[:2])
    return adata
