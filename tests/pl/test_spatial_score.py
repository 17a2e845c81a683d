from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection

from hibiost import pl
from hibiost.errors import DataError, MissingSlotError


@pytest.fixture
def scored(adata):
    rng = np.random.default_rng(1)
    scores = pd.DataFrame(rng.normal(size=(adata.n_obs, 2)), adata.obs_names, ["plasma", "fat"]).astype(np.float32)
    adata.obsm["pathway_score"] = scores
    return adata


def spots_of(ax) -> EllipseCollection:
    (spots,) = (c for c in ax.collections if isinstance(c, EllipseCollection))
    return spots


def test_a_panel_for_each_signature_and_slide(scored, tmp_path):
    figure = pl.spatial_score(scored, ["plasma", "fat"], save=tmp_path / "s.png")
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["C2: plasma", "C3: plasma", "C2: fat", "C3: fat"]
    for ax, (name, slide) in zip(panels, [(n, s) for n in ("plasma", "fat") for s in ("C2", "C3")], strict=True):
        rows = (scored.obs["library_id"] == slide).to_numpy()
        values = scored.obsm["pathway_score"][name].to_numpy(dtype=float)
        np.testing.assert_array_equal(spots_of(ax).get_array(), values[rows])
        np.testing.assert_allclose(spots_of(ax).get_clim(), np.percentile(values, [1, 99]))
        assert len(ax.images) == 1
    assert (tmp_path / "s.png").stat().st_size > 0


def test_options(scored):
    scored.obsm["other"] = scored.obsm["pathway_score"] * 2
    figure = pl.spatial_score(scored, "fat", use_rep="other", library_id="C3", vmin=0, vmax=1, img_key=None)
    (panel,) = (ax for ax in figure.axes if ax.get_title())
    assert panel.get_title() == "fat"
    assert spots_of(panel).get_clim() == (0, 1)
    assert not panel.images


def test_refused(scored):
    with pytest.raises(DataError, match="no signature 'plasm'.*Did you mean 'plasma'"):
        pl.spatial_score(scored, "plasm")
    with pytest.raises(MissingSlotError, match=r"hb\.tl\.annotate"):
        pl.spatial_score(scored, "fat", use_rep="scores")
    scored.obsm["bare"] = np.ones((scored.n_obs, 2))
    with pytest.raises(DataError, match="is a ndarray; expected a DataFrame"):
        pl.spatial_score(scored, "fat", use_rep="bare")
