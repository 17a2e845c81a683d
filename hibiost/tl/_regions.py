from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from .. import inputs, keys
from .._random import RNG, seed
from ..errors import DataError, MissingSlotError
from ..settings import logger, settings
from ..spatial import coherence, fused_neighbors, leiden, modularity, region_graph
from ..spatial.regions import Flavor
from ..spatial.tiles import unit_rows

if TYPE_CHECKING:
    from anndata import AnnData

Blocks = list[tuple[NDArray[np.int64], sparse.csr_matrix]]
"""Row positions of a slide's spots, and a matrix over them."""
_SAME = 1e-6
"""Unit vectors no farther apart are the same to :func:`hibiost.spatial.fused_neighbors`."""


@inputs.takes_spatialdata
def regions(
    adata: AnnData,
    *,
    use_rep: str | Sequence[str] | None = None,
    n_neighbors: int = 15,
    alpha: float = 0.5,
    beta: float = 0.5,
    resolution: float = 1.0,
    flavor: Flavor = "igraph",
    library_key: str = keys.LIBRARY,
    key_added: str = keys.REGION,
    rng: RNG = 0,
    copy: bool = False,
) -> AnnData | None:
    """Find regions of spots that lie close in space and embedding (HiBio-ST, section 2.3, eqs 7 and 8).

    Within each slide, every spot is joined to its ``n_neighbors`` nearest by the fused distance of eq 7, with weight
    ``exp(-D)``, and Leiden partitions this graph so that modularity is highest. Slides are treated on their own, with
    the same seed: the result of a slide does not depend on which others are there, nor on threads or the machine. Any
    embedding serves, such as a PCA of expression where there is no image. At the paper's weights regions are compact:
    thin layers are cut across, and on DLPFC a mean of an expression graph and the grid finds the layers better (see
    ``benchmarks/results/dlpfc_regions.md``); a lower ``alpha`` follows expression more.

    Beside the graph, memory holds the embeddings of one slide up to three times, about 40 MiB, and 1 MiB for each 400
    spots; time grows with the square of the spots of a slide where their embeddings spread along many axes, and more
    slowly where along few.

    Parameters
    ----------
    adata
        Spots of one or more slides, with ``obsm["spatial"]``.
    use_rep
        Representation in ``obsm``, or several, dense or sparse: each is l2-normalised before they are concatenated. By
        default the embeddings of :func:`hibiost.tl.embed`, image and gene, or the one that is there.
    n_neighbors
        Neighbours per spot; a slide with fewer other spots uses them all.
    alpha, beta
        Weights of the spatial and of the embedding term of eq 7.
    resolution
        1 is eq 8; higher gives more and smaller regions.
    flavor
        Implementation of Leiden, see :func:`hibiost.spatial.leiden`.
    library_key
        ``obs`` column that tells the slides apart.
    key_added
        Name and prefix of the slots written.
    rng
        Seed or generator.
    copy
        Return a changed copy instead of writing into ``adata``.

    Returns
    -------
    ``None``, or the copy. Written:

    ``obs["region"]``
        Categorical of str. Regions are numbered by falling size within a slide, and on from slide to slide: no two
        slides share one.
    ``obsp["region_distances"]``
        CSR float64, n_obs x n_obs: fused distance to each of the ``n_neighbors`` neighbours; a distance of 0 is stored.
    ``obsp["region_connectivities"]``
        CSR float64, n_obs x n_obs, symmetric: ``exp(-D)`` where either of two spots is a neighbour of the other.
    ``uns["region"]``
        ``connectivities_key``, ``distances_key`` and ``params`` as scanpy reads them, for ``neighbors_key="region"``;
        ``params["use_rep"]`` is the first representation, ``params["representations"]`` holds them all.

    Raises
    ------
    MissingSlotError
        No representation, no coordinates, or slides that cannot be told apart.
    DataError
        A representation holds NaN or is no table, or a parameter is out of range.

    Examples
    --------
    >>> import hibiost as hb, scanpy as sc
    >>> adata = hb.datasets.tissue(n_spots=100)
    >>> adata.obsm["X_pca"] = sc.pp.pca(sc.pp.log1p(adata.X, copy=True), n_comps=10)
    >>> hb.tl.regions(adata, use_rep="X_pca")
    >>> adata.obsp["region_distances"].nnz
    1500
    """
    inputs.check_spots(adata)
    if n_neighbors < 1:
        raise DataError(f"n_neighbors is {n_neighbors}; expected at least 1.")
    representations = _representations(adata, use_rep)
    xy = inputs.coordinates(adata)
    libraries = inputs.libraries(adata, library_key)
    _tell_small(libraries, n_neighbors)

    random_state = seed(rng)
    labels = np.empty(adata.n_obs, dtype=np.int64)
    near: Blocks = []
    graphs: Blocks = []
    summary = []
    n_regions = 0
    for library, rows in _with_progress(libraries):
        features = _unit_features(representations, rows)
        _tell_constant(library, xy[rows], features)
        indices, distances = fused_neighbors(xy[rows], features, k=n_neighbors, alpha=alpha, beta=beta)
        graph = region_graph(indices, distances)
        found = leiden(graph, resolution=resolution, flavor=flavor, rng=random_state)
        near.append((rows, _as_csr(indices, distances)))
        graphs.append((rows, graph))
        labels[rows] = n_regions + found
        n_regions += found.max() + 1
        quality = modularity(graph, found, resolution=resolution), coherence(found, xy[rows])
        summary.append((library, found.max() + 1, len(rows), *quality))

    adata = adata.copy() if copy else adata
    distances_key, connectivities_key = f"{key_added}_distances", f"{key_added}_connectivities"
    adata.obs[key_added] = pd.Categorical.from_codes(labels, [str(i) for i in range(n_regions)])
    adata.obsp[distances_key] = _placed(near, adata.n_obs)
    adata.obsp[connectivities_key] = _placed(graphs, adata.n_obs)
    names = list(representations)
    params = {"method": "hibiost", "metric": "fused", "n_neighbors": n_neighbors, "use_rep": names[0]}
    params |= {"representations": names, "alpha": alpha, "beta": beta, "resolution": resolution, "flavor": flavor}
    params |= {"library_key": library_key, "rng": random_state}
    inputs.record(adata, key_added, connectivities_key=connectivities_key, distances_key=distances_key, params=params)
    for line in summary:
        logger.info("slide %r: %d regions of %d spots, modularity %.3f, coherence in space %.3f.", *line)
    logger.info("%d regions in %d slides, by %s: obs[%r].", n_regions, len(libraries), " and ".join(names), key_added)
    return adata if copy else None


def _representations(adata: AnnData, use_rep: str | Sequence[str] | None) -> dict[str, Any]:
    """The representations by name, checked; dense or CSR."""
    call = "hb.tl.embed(adata), or sc.pp.pca(adata) for 'X_pca',"
    if use_rep is None:
        names = [name for name in (keys.IMAGE_EMBEDDING, keys.GENE_EMBEDDING) if name in adata.obsm]
    else:
        names = [use_rep] if isinstance(use_rep, str) else list(use_rep)
    if not names:
        raise MissingSlotError(
            f"no embeddings in obsm (there: {list(adata.obsm)}); call hb.tl.embed(adata) first, or name another "
            'representation, such as use_rep="X_pca".'
        )
    return {name: inputs.representation(adata, name, call) for name in names}


def _unit_features(representations: dict[str, Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Representations of some spots, each l2-normalised, side by side."""
    parts = (values[rows] for values in representations.values())
    return np.hstack([unit_rows(part.toarray() if sparse.issparse(part) else part) for part in parts])


def _tell_small(libraries: dict[str, NDArray[np.int64]], n_neighbors: int) -> None:
    small = {library: len(rows) for library, rows in libraries.items() if len(rows) <= n_neighbors}
    if small:
        logger.warning(
            "fewer than n_neighbors + 1 = %d spots in the slides %s: each of their spots is joined to all others.",
            n_neighbors + 1, small,
        )  # fmt: skip


def _tell_constant(library: str, xy: NDArray[np.float64], features: NDArray[Any]) -> None:
    if len(xy) < 2:
        return
    for term, what, constant in (
        ("spatial", "spots lie at one place", (xy == xy[0]).all()),
        ("embedding", "embeddings are identical", np.ptp(features, axis=0).max() < _SAME),
    ):
        if constant:
            logger.warning(
                "slide %r: all %s, so the %s term of the distance is 0 for all pairs and tells nothing apart.",
                library, what, term,
            )  # fmt: skip


def _with_progress(libraries: dict[str, NDArray[np.int64]]) -> Iterable[tuple[str, NDArray[np.int64]]]:
    from tqdm.auto import tqdm

    hidden = len(libraries) < 2 or not settings.progress
    return tqdm(libraries.items(), desc="regions", unit="slide", disable=hidden)


def _as_csr(indices: NDArray[np.int64], distances: NDArray[np.float64]) -> sparse.csr_matrix:
    n, k = indices.shape
    return sparse.csr_matrix((distances.ravel(), indices.ravel(), np.arange(n + 1) * k), shape=(n, n))


def _placed(blocks: Blocks, n_obs: int) -> sparse.csr_matrix:
    """Matrices over the spots of each slide as one over all spots; stored zeros stay."""
    entries = [(rows, block.tocoo()) for rows, block in blocks]
    data = np.concatenate([block.data for _, block in entries])
    row = np.concatenate([rows[block.row] for rows, block in entries])
    column = np.concatenate([rows[block.col] for rows, block in entries])
    return sparse.csr_matrix((data, (row, column)), shape=(n_obs, n_obs))
