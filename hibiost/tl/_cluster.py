from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .. import inputs, keys
from .._random import RNG, seed
from ..errors import DataError
from ..settings import logger
from ..spatial import majority_vote
from ..spatial.regions import by_falling_size

if TYPE_CHECKING:
    from anndata import AnnData


@inputs.takes_spatialdata
def cluster(
    adata: AnnData,
    *,
    n_clusters: int,
    use_rep: str = keys.IMAGE_EMBEDDING,
    n_neighbors: int = 5,
    n_init: int = 50,
    max_iter: int = 500,
    library_key: str = keys.LIBRARY,
    key_added: str = keys.CLUSTER,
    rng: RNG = 0,
    copy: bool = False,
) -> AnnData | None:
    """Cluster the spots of each slide by K-means and smooth the labels in space (HiBio-ST, C.2.1 and eq 15).

    Each slide is clustered on its own, so its result does not depend on which other slides are there. Clusters are
    numbered by falling size before smoothing, 0 being the largest: a number means nothing from one slide to the next.

    Parameters
    ----------
    adata
        Spots of one or more slides.
    n_clusters
        Clusters per slide.
    use_rep
        Representation in ``obsm``, dense or sparse; each row is l2-normalised first.
    n_neighbors
        Voters per spot in :func:`hibiost.spatial.majority_vote`; 0 leaves the labels as K-means gives them.
    n_init
        K-means starts, of which the tightest is kept.
    max_iter
        Iterations per start at most.
    library_key
        ``obs`` column that tells the slides apart.
    key_added
        Name of the slots written.
    rng
        Seed or generator.
    copy
        Return a changed copy instead of writing into ``adata``.

    Returns
    -------
    ``None``, or the copy. Written:

    ``obs[key_added]``
        Categorical of str, the clusters after smoothing.
    ``obs[f"{key_added}_raw"]``
        Categorical of str, the clusters of K-means.
    ``uns[key_added]["params"]``
        The parameters.

    Raises
    ------
    MissingSlotError
        ``use_rep`` or the coordinates are not there.
    DataError
        ``n_clusters`` exceeds the (distinct) spots of a slide, a parameter is out of range, or ``use_rep`` holds NaN.

    Examples
    --------
    >>> import hibiost as hb, scanpy as sc
    >>> adata = hb.datasets.tissue(n_spots=100)
    >>> adata.obsm["X_pca"] = sc.pp.pca(sc.pp.log1p(adata.X, copy=True), n_comps=10)
    >>> hb.tl.cluster(adata, n_clusters=3, use_rep="X_pca")
    >>> adata.obs["cluster"].cat.categories.to_list()
    ['0', '1', '2']
    """
    inputs.check_spots(adata)
    least = {
        "n_clusters": (n_clusters, 1),
        "n_neighbors": (n_neighbors, 0),
        "n_init": (n_init, 1),
        "max_iter": (max_iter, 1),
    }
    for name, (value, low) in least.items():
        if value < low:
            raise DataError(f"{name} is {value}; expected at least {low}.")
    adata = adata.copy() if copy else adata
    features = inputs.representation(adata, use_rep, "hb.tl.embed(adata)").astype(np.float32)
    xy = inputs.coordinates(adata) if n_neighbors else None
    libraries = inputs.libraries(adata, library_key)
    small = {library: len(rows) for library, rows in libraries.items() if len(rows) < n_clusters}
    if small:
        raise DataError(f"fewer spots than n_clusters = {n_clusters} in the slides {small}; ask for fewer clusters.")

    random_state = seed(rng)
    raw, smooth = np.empty((2, adata.n_obs), dtype=np.int64)
    for library, rows in libraries.items():
        raw[rows] = _kmeans(features[rows], library, n_clusters, n_init, max_iter, random_state)
        smooth[rows] = raw[rows] if xy is None else majority_vote(raw[rows], xy[rows], k=n_neighbors)

    names = [str(i) for i in range(n_clusters)]
    adata.obs[f"{key_added}_raw"] = pd.Categorical.from_codes(raw, names)
    adata.obs[key_added] = pd.Categorical.from_codes(smooth, names)
    params = {"n_clusters": n_clusters, "use_rep": use_rep, "n_neighbors": n_neighbors, "n_init": n_init}
    params |= {"max_iter": max_iter, "library_key": library_key, "rng": random_state}
    inputs.record(adata, key_added, params=params)
    logger.info(
        "%d clusters in each of %d slides: obs[%r]; smoothing changed %.0f %% of the spots (before: obs[%r]).",
        n_clusters, len(libraries), key_added, 100 * np.mean(raw != smooth), f"{key_added}_raw",
    )  # fmt: skip
    return adata if copy else None


def _kmeans(
    features: Any, library: str, n_clusters: int, n_init: int, max_iter: int, random_state: int
) -> NDArray[np.int64]:
    """K-means labels of unit rows, 0 for the largest cluster; one thread, since sums depend on how many there are."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.preprocessing import normalize
    from threadpoolctl import threadpool_limits

    kmeans = KMeans(n_clusters, n_init=n_init, max_iter=max_iter, random_state=random_state)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            labels = kmeans.fit_predict(normalize(features))
        except ConvergenceWarning as warning:
            raise DataError(
                f"slide {library!r} holds fewer than n_clusters = {n_clusters} distinct spots."
            ) from warning
    return by_falling_size(labels)
