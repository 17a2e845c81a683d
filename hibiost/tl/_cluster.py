from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from .. import inputs, keys
from .._random import RNG, generator, seed
from ..errors import DataError, nearest
from ..settings import logger
from ..spatial import kmeans, majority_vote
from ..spatial.regions import by_falling_size

if TYPE_CHECKING:
    from anndata import AnnData

NClusters: TypeAlias = int | Mapping[str, int] | Iterable[int] | Literal["auto"]
AUTO = range(2, 11)
"""Numbers of clusters that ``n_clusters="auto"`` tries."""
SILHOUETTE_SPOTS = 2000
"""Spots of a slide, at most, on which the silhouette is measured."""
_ALL = "all slides"


@inputs.takes_spatialdata
def cluster(
    adata: AnnData,
    *,
    n_clusters: NClusters,
    use_rep: str = keys.IMAGE_EMBEDDING,
    together: bool = False,
    n_neighbors: int = 5,
    n_init: int = 50,
    max_iter: int = 500,
    library_key: str = keys.LIBRARY,
    key_added: str = keys.CLUSTER,
    rng: RNG = 0,
    copy: bool = False,
) -> AnnData | None:
    """Cluster the spots of each slide by K-means and smooth the labels in space (HiBio-ST, C.2.1 and eq 15).

    Each slide is clustered on its own, as in the paper, so its result does not depend on which other slides are there,
    and a number means nothing from one slide to the next; ``together=True`` clusters all slides at once. Clusters are
    numbered by falling size before smoothing, 0 being the largest.

    Parameters
    ----------
    adata
        Spots of one or more slides.
    n_clusters
        Clusters per slide: one number for all, or a number for each ``library_id``. Or numbers to choose from, such as
        ``range(3, 11)``, ``"auto"`` being 2 to 10: the one of the highest mean silhouette, the smallest where several
        are. The silhouette of a large slide is measured on 2,000 of its spots, drawn by ``rng`` and the same for all
        numbers.
    use_rep
        Representation in ``obsm``, such as ``"X_hibiost_image"`` or ``"X_hibiost_gene"``; each row is l2-normalised
        first. ``"joint"`` is both of these side by side, as in eq 7. A dense one is clustered by
        :func:`hibiost.spatial.kmeans`, a sparse one by scikit-learn, slower.
    together
        One K-means over all slides, so that a cluster means the same on each; the vote stays within slides.
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
    ``uns[key_added]``
        ``params``; and, where ``n_clusters`` is no number, arrays: ``libraries`` and the ``n_clusters`` of each. Where
        it was chosen, also ``candidates`` and their ``silhouette`` (float64, n_libraries x n_candidates). With
        ``together=True`` there is one entry, ``"all slides"``.

    Raises
    ------
    MissingSlotError
        ``use_rep`` or the coordinates are not there.
    DataError
        ``n_clusters`` exceeds the (distinct) spots of a slide, or reaches them where it is to be chosen; it lacks a
        slide or names one that is not there; a parameter is out of range, or ``use_rep`` holds NaN.

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
    for name, value, low in (("n_neighbors", n_neighbors, 0), ("n_init", n_init, 1), ("max_iter", max_iter, 1)):
        if value < low:
            raise DataError(f"{name} is {value}; expected at least {low}.")
    adata = adata.copy() if copy else adata
    features = _features(adata, use_rep)
    xy = inputs.coordinates(adata) if n_neighbors else None
    libraries = inputs.libraries(adata, library_key)
    groups = {_ALL: np.arange(adata.n_obs)} if together else libraries
    candidates = _candidates(n_clusters, groups)

    random_state = seed(rng)
    options = {"n_init": n_init, "max_iter": max_iter, "rng": random_state}
    found = {group: _choose(features[rows], group, candidates[group], options) for group, rows in groups.items()}
    raw, smooth = np.empty((2, adata.n_obs), dtype=np.int64)
    for group, rows in groups.items():
        raw[rows] = found[group].labels
    for rows in libraries.values():
        smooth[rows] = raw[rows] if xy is None else majority_vote(raw[rows], xy[rows], k=n_neighbors)

    names = [str(i) for i in range(max(choice.n_clusters for choice in found.values()))]
    adata.obs[f"{key_added}_raw"] = pd.Categorical.from_codes(raw, names)
    adata.obs[key_added] = pd.Categorical.from_codes(smooth, names)
    given = int(n_clusters) if isinstance(n_clusters, int | np.integer) else None
    params = {"n_clusters": given, "use_rep": use_rep, "together": together, "n_neighbors": n_neighbors}
    params |= {"n_init": n_init, "max_iter": max_iter, "library_key": library_key, "rng": random_state}
    inputs.record(adata, key_added, **(_table(found, candidates) if given is None else {}), params=params)
    logger.info(
        "%s clusters in %s: obs[%r]; smoothing changed %.0f %% of the spots (before: obs[%r]).",
        " or ".join(map(str, sorted({choice.n_clusters for choice in found.values()}))),
        _ALL if together else f"each of {len(libraries)} slides", key_added, 100 * np.mean(raw != smooth),
        f"{key_added}_raw",
    )  # fmt: skip
    return adata if copy else None


def _features(adata: AnnData, use_rep: str) -> Any:
    """One or both representations, with rows of length 1."""
    from sklearn.preprocessing import normalize

    names = [keys.IMAGE_EMBEDDING, keys.GENE_EMBEDDING] if use_rep == "joint" else [use_rep]
    tables = (inputs.representation(adata, name, "hb.tl.embed(adata)") for name in names)
    parts = [normalize(table.astype(np.float32)) for table in tables]
    return parts[0] if len(parts) == 1 else np.hstack(parts)


def _candidates(n_clusters: NClusters, groups: Mapping[str, NDArray[np.intp]]) -> dict[str, list[int]]:
    """The numbers of clusters to try for each group of spots: one, or several to choose from."""
    if isinstance(n_clusters, Mapping):
        tried = {group: [number] for group, number in _of_slides(n_clusters, groups).items()}
    else:
        tried = dict.fromkeys(groups, _numbers(n_clusters))
    for numbers in tried.values():
        if min(numbers, default=-1) < (low := min(len(numbers), 2)):
            raise DataError(f"n_clusters is {n_clusters}; expected at least {low or 'one number'}.")
    needed = {group: numbers[-1] + (len(numbers) > 1) for group, numbers in tried.items()}
    small = {group: len(rows) for group, rows in groups.items() if len(rows) < needed[group]}
    if small:
        most = sorted({tried[group][-1] for group in small})
        raise DataError(
            f"fewer spots than n_clusters = {' or '.join(map(str, most))} (and one more, where there is a choice) "
            f"in the slides {small}; ask for fewer clusters."
        )
    return tried


def _numbers(n_clusters: int | Iterable[int] | str) -> list[int]:
    if isinstance(n_clusters, str):
        if n_clusters != "auto":
            raise DataError(f"n_clusters is {n_clusters!r}; expected 'auto', a number, several, or one for each slide.")
        return list(AUTO)
    return [int(n_clusters)] if isinstance(n_clusters, int | np.integer) else sorted(set(map(int, n_clusters)))


def _of_slides(n_clusters: Mapping[str, int], groups: Mapping[str, NDArray[np.intp]]) -> dict[str, int]:
    if list(groups) == [_ALL]:
        raise DataError("n_clusters holds a number for each slide, but together=True clusters all at once; give one.")
    if lacking := [library for library in groups if library not in n_clusters]:
        raise DataError(f"n_clusters has no number for the slides {lacking}; it has {list(n_clusters)}.")
    if strangers := [str(library) for library in n_clusters if library not in groups]:
        raise DataError(
            f"n_clusters names the slides {strangers}; there are {list(groups)}.{nearest(strangers[0], groups)}"
        )
    return {library: int(n_clusters[library]) for library in groups}


class _Choice(NamedTuple):
    n_clusters: int
    labels: NDArray[np.int64]
    silhouette: list[float]
    """Of each candidate, where there are several."""


def _choose(features: Any, group: str, numbers: list[int], options: dict[str, int]) -> _Choice:
    """The clusters of highest silhouette."""
    found = [kmeans_labels(features, group, number, options) for number in numbers]
    if len(numbers) == 1:
        return _Choice(numbers[0], found[0], [])
    sample = np.arange(features.shape[0])
    if len(sample) > SILHOUETTE_SPOTS:
        sample = generator(options["rng"]).choice(sample, SILHOUETTE_SPOTS, replace=False)
    scores = [_silhouette(features[sample], labels[sample]) for labels in found]
    best = int(np.argmax(scores))
    return _Choice(numbers[best], found[best], scores)


def _silhouette(features: Any, labels: NDArray[np.int64]) -> float:
    """Mean silhouette; the worst where a sample holds one cluster only."""
    from sklearn.metrics import silhouette_score
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return float(silhouette_score(features, labels)) if len(np.unique(labels)) > 1 else -1.0


def _table(found: dict[str, _Choice], candidates: dict[str, list[int]]) -> dict[str, Any]:
    """The number of clusters of each slide and why, as arrays."""
    table = {
        "libraries": np.array(list(found), dtype=object),
        "n_clusters": np.array([choice.n_clusters for choice in found.values()]),
    }
    scores = np.array([choice.silhouette for choice in found.values()])
    chosen = {"candidates": np.array(next(iter(candidates.values()))), "silhouette": scores}
    return table | chosen if scores.size else table


def kmeans_labels(features: Any, group: str, n_clusters: int, options: dict[str, int]) -> NDArray[np.int64]:
    """K-means labels, 0 for the largest cluster; sparse features stay so, and scikit-learn clusters them."""
    try:
        if sparse.issparse(features):
            return _of_sparse(features, n_clusters, **options)
        return kmeans(features, n_clusters, **options).labels
    except DataError as error:
        raise DataError(f"slide {group!r}: {error}") from error


def _of_sparse(
    features: sparse.csr_matrix, n_clusters: int, *, n_init: int, max_iter: int, rng: int
) -> NDArray[np.int64]:
    """One thread, since scikit-learn's sums depend on how many there are."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    estimator = KMeans(n_clusters, n_init=n_init, max_iter=max_iter, random_state=rng)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            labels = estimator.fit_predict(features)
        except ConvergenceWarning as warning:
            raise DataError(f"fewer than n_clusters = {n_clusters} distinct rows.") from warning
    return by_falling_size(labels)
