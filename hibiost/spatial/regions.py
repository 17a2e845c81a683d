"""Regions: communities of a spot graph by Leiden (HiBio-ST, eq 8), and how good they are."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from .._random import RNG, seed
from ..errors import DataError, check_choice
from .vote import labels_and_neighbors

if TYPE_CHECKING:
    import igraph

Flavor = Literal["igraph", "leidenalg"]
_IGRAPH_GENERATOR = threading.Lock()
"""igraph holds one generator per process."""


def leiden(
    graph: sparse.csr_matrix, *, resolution: float = 1.0, flavor: Flavor = "igraph", rng: RNG = 0
) -> NDArray[np.int64]:
    """Partition a graph by Leiden so that modularity is highest (HiBio-ST, eq 8), until no move raises it.

    The result for a seed is the same on every run and number of threads; the global random state is not touched.

    Parameters
    ----------
    graph
        Symmetric weights of 0 or more, n_spots x n_spots, with an empty diagonal.
    resolution
        1 is eq 8; higher gives more and smaller regions.
    flavor
        Implementation: ``"igraph"`` is several times faster than ``"leidenalg"``, at equal or higher modularity.
    rng
        Seed or generator.

    Returns
    -------
    int64, (n_spots,): labels numbered by falling size, 0 being the largest; of equal sizes the one whose first spot
    comes first. A spot without edges is a region of its own.

    Raises
    ------
    DataError
        The graph is not such a matrix, ``resolution`` is not positive, or ``flavor`` is unknown.

    Examples
    --------
    >>> import hibiost as hb, numpy as np
    >>> from scipy import sparse
    >>> pairs = sparse.csr_matrix(np.kron(np.eye(2), [[0, 1], [1, 0]]))
    >>> hb.spatial.leiden(pairs).tolist()
    [0, 0, 1, 1]
    """
    check_choice("flavor", flavor, get_args(Flavor))
    _check_resolution(resolution)
    graph = _checked(graph)
    generator = random.Random(seed(rng))
    return by_falling_size((_igraph if flavor == "igraph" else _leidenalg)(graph, resolution, generator))


def modularity(graph: sparse.csr_matrix, labels: ArrayLike, *, resolution: float = 1.0) -> float:
    """Modularity of a partition, ``sum over pairs of one region of (A_ij - resolution * k_i k_j / 2m) / 2m`` (eq 8).

    Parameters
    ----------
    graph
        Symmetric weights of 0 or more, n_spots x n_spots, with an empty diagonal.
    labels
        One label per spot.
    resolution
        1 is eq 8.

    Returns
    -------
    At most 1; 0 for a graph without edges.

    Raises
    ------
    DataError
        The graph is not such a matrix, there is not one label per spot, or ``resolution`` is not positive.

    Examples
    --------
    >>> import hibiost as hb, numpy as np
    >>> from scipy import sparse
    >>> hb.spatial.modularity(sparse.csr_matrix(np.kron(np.eye(2), [[0, 1], [1, 0]])), [0, 0, 1, 1])
    0.5
    """
    _check_resolution(resolution)
    graph, labels = _checked(graph), np.asarray(labels)
    if labels.shape != (graph.shape[0],):
        raise DataError(f"labels of shape {labels.shape} for a graph of {graph.shape[0]} spots; expected one per spot.")
    codes = np.unique(labels, return_inverse=True)[1]
    edges = graph.tocoo()
    total = edges.data.sum()
    if total == 0:
        return 0.0
    inside = edges.data[codes[edges.row] == codes[edges.col]].sum() / total
    shares = np.bincount(codes[edges.row], weights=edges.data) / total
    return float(inside - resolution * np.square(shares).sum())


def coherence(labels: ArrayLike, xy: ArrayLike, *, k: int = 6) -> float:
    """Share of the k nearest spots in space that carry a spot's own label, mean over the spots of one slide.

    Parameters
    ----------
    labels
        One label per spot, (n_spots,).
    xy
        Spot centres, n_spots x 2, in any unit; equal distances are ordered as in :func:`majority_vote`.
    k
        Nearest other spots; a slide with fewer uses them all.

    Returns
    -------
    From 0 to 1; NaN for a single spot, which has no neighbour.

    Raises
    ------
    DataError
        ``k`` is below 1, the lengths differ, or a coordinate is not finite.

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.spatial.coherence(["a", "a", "b"], [[0, 0], [1, 0], [3, 0]], k=1)
    0.6666666666666666
    """
    labels, neighbors = labels_and_neighbors(labels, xy, k)
    if len(labels) < 2:
        return float("nan")
    return float((labels[neighbors] == labels[:, None]).mean())


def by_falling_size(labels: NDArray) -> NDArray[np.int64]:
    """Labels numbered by falling size, 0 being the largest; of equal sizes, the one whose first spot comes first."""
    _, first, codes, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), dtype=np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    return rank[codes]


def _check_resolution(resolution: float) -> None:
    if not 0 < resolution < np.inf:
        raise DataError(f"resolution is {resolution}; expected a positive number, 1 being that of eq 8.")


def _checked(graph: sparse.csr_matrix) -> sparse.csr_matrix:
    graph = sparse.csr_matrix(graph, dtype=np.float64)
    if graph.shape[0] != graph.shape[1]:
        raise DataError(f"the graph has shape {graph.shape}; expected n x n.")
    if not (np.isfinite(graph.data).all() and (graph.data >= 0).all()):
        raise DataError("the graph holds negative, NaN or infinite weights; expected weights of 0 or more.")
    if (graph != graph.T).nnz or graph.diagonal().any():
        raise DataError("the graph is not symmetric, or joins spots to themselves; build it with region_graph.")
    return graph


def _igraph(graph: sparse.csr_matrix, resolution: float, generator: random.Random) -> NDArray[np.int64]:
    import igraph

    with _IGRAPH_GENERATOR:
        igraph.set_random_number_generator(generator)
        try:
            found = _as_igraph(graph).community_leiden(
                "modularity", weights="weight", resolution=resolution, n_iterations=-1
            )
        finally:
            igraph.set_random_number_generator(random)
    return np.array(found.membership, dtype=np.int64)


def _leidenalg(graph: sparse.csr_matrix, resolution: float, generator: random.Random) -> NDArray[np.int64]:
    import leidenalg

    found = leidenalg.find_partition(
        _as_igraph(graph),
        leidenalg.RBConfigurationVertexPartition,
        weights="weight",
        resolution_parameter=resolution,
        n_iterations=-1,
        seed=generator.getrandbits(31),
    )
    return np.array(found.membership, dtype=np.int64)


def _as_igraph(graph: sparse.csr_matrix) -> igraph.Graph:
    import igraph

    edges = sparse.triu(graph).tocoo()
    edges.eliminate_zeros()
    return igraph.Graph(
        n=graph.shape[0], edges=np.stack([edges.row, edges.col], axis=1), edge_attrs={"weight": edges.data}
    )
