from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .. import datasets, inputs, keys
from .._random import RNG, seed
from ..errors import DataError, nearest
from ..genes import GeneSets, Vocabulary
from ..genes.vocabulary import looks
from ..settings import logger, settings
from ._embeddings import Embeddings
from ._resolve import at_work, resolve_device

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model import HibioModel

N_ORDERS, N_RANDOM = 32, 128
"""Sentences made of a signature, and of as many genes drawn at random."""
_NAMED = 10


@inputs.takes_spatialdata
def annotate(
    adata: AnnData,
    signatures: str | os.PathLike[str] | Mapping[str, Iterable[str]] | Sequence[str],
    *,
    model: str | os.PathLike[str] | HibioModel | None = None,
    batch_size: int = 32,
    library_key: str = keys.LIBRARY,
    key_added: str = keys.SCORE,
    rng: RNG = 0,
    device: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """Score how much the H&E of each spot looks like a gene signature, without any measured expression.

    The score is the mean cosine between a spot's image embedding and sentences of the signature's genes, less that of
    sentences of as many random genes. The former are 32 orders of the genes, since a set has no order; the genes of the
    latter, 128, are drawn by the number of spots that express them. Any short sentence resembles spots with few
    counts; the difference takes that out, and 0 is what a signature scores that tells nothing. Scores of one signature
    can be compared between spots and slides, not one signature with another: for that, standardise each within a slide,
    ``scores.groupby(adata.obs["library_id"], observed=True).transform(lambda s: (s - s.mean()) / s.std())``.

    How well this finds a signature depends on the model; ``benchmarks/results/annotate.md`` measures it. With a
    reference of measured spots, :func:`hibiost.tl.predict` and the mean over the genes is the stronger way.

    Parameters
    ----------
    adata
        Spots with embeddings, or with coordinates and an H&E image.
    signatures
        Genes by the name of their signature, a list of genes (one signature, called ``"signature"``), or gene sets as
        :func:`hibiost.datasets.gene_sets` takes them: a name such as ``"reactome"``, or a GMT file. Of a signature with
        more genes than the model's sentences hold, the rarest (of highest idf) are taken.
    model
        A model, or what :func:`hibiost.model.load` takes; by default the one ``adata`` was embedded with, else
        ``hibiost.settings.model``.
    batch_size
        Images embedded at a time.
    library_key
        Column of ``obs`` that tells slides apart; their metadata words stand in the sentences.
    key_added
        Where to write.
    rng
        Seed or generator; the scores of a signature do not depend on which others are there.
    device
        ``"cpu"``, ``"cuda"``, ``"mps"``, or ``"auto"`` for a GPU where there is one.
    copy
        Return a changed copy instead of changing ``adata``.

    Returns
    -------
    ``None``, or the changed copy. Written are

    ``obsm["pathway_score"]``
        DataFrame, float32, n_obs x n_signatures; columns named by signature, ``/`` in a name replaced by ``|``.
    ``uns["pathway_score"]``
        Arrays with an entry for each signature: ``signatures``, ``genes`` and ``absent``, the genes used and those
        that the model does not know, joined by blanks; ``fingerprint`` of the weights; and ``params``.

    Raises
    ------
    ModelError
        No model, or embeddings made with other weights that cannot be made anew.
    DataError
        No signature has a gene that the model knows, or the gene sets are malformed.
    ImageError
        There are no image embeddings, and an image is absent or unreadable.

    Examples
    --------
    >>> import hibiost as hb
    >>> adata = hb.datasets.tissue(100)
    >>> model = hb.tl.pretrain(adata, image_encoder="ResNet-10", recipe={"epochs": 1, "batch_size": 32})
    >>> hb.tl.annotate(adata, {"tumour": ["ERBB2", "KRT19", "EPCAM"], "stroma": ["COL1A1", "MGP"]}, model=model)
    >>> list(adata.obsm["pathway_score"].columns)
    ['tumour', 'stroma']
    """
    from ..model.tokens import metadata_words

    inputs.check_spots(adata)
    libraries = inputs.libraries(adata, library_key)
    words = {library: tuple(metadata_words(inputs.slide_metadata(adata, library))) for library in libraries}
    source = Embeddings(adata, model, resolve_device(device), batch_size, library_key)
    network = source.model
    sets = _gene_sets(signatures)
    most = min(network.tokenizer.max_genes(of_slide) for of_slide in words.values())
    used, absent = _known(sets, network.vocabulary, most)
    images = source.of(adata, "image")

    random_state = seed(rng)
    directions = {
        of_slide: _directions(network, list(used.values()), of_slide, random_state)
        for of_slide in dict.fromkeys(words.values())
    }
    scores = np.empty((adata.n_obs, len(used)), dtype=np.float32)
    for library, rows in libraries.items():
        scores[rows] = images[rows] @ directions[words[library]].T

    adata = adata.copy() if copy else adata
    names = [name.replace("/", "|") for name in used]
    genes = np.array(network.vocabulary.genes, dtype=object)
    adata.obsm[key_added] = pd.DataFrame(scores, index=adata.obs_names, columns=names)
    inputs.record(
        adata,
        key_added,
        signatures=np.array(names, dtype=object),
        genes=np.array([" ".join(genes[places]) for places in used.values()], dtype=object),
        absent=np.array([" ".join(absent[name]) for name in used], dtype=object),
        fingerprint=source.fingerprint,
        params={
            "source": sets.source.get("name"),
            "library_key": library_key,
            "rng": random_state,
        },
    )
    logger.info("obsm[%r]: %d signatures in %d spots.", key_added, len(used), adata.n_obs)
    return adata if copy else None


def _gene_sets(signatures: str | os.PathLike[str] | Mapping[str, Iterable[str]] | Sequence[str]) -> GeneSets:
    if isinstance(signatures, str | os.PathLike | Mapping):
        return datasets.gene_sets(signatures)
    return datasets.gene_sets({"signature": list(signatures)})


def _known(
    sets: GeneSets, vocabulary: Vocabulary, most: int
) -> tuple[dict[str, NDArray[np.int64]], dict[str, list[str]]]:
    """Places in the vocabulary of the genes of each signature, the rarest where there are many; and genes not there."""
    try:
        columns = sets.columns(vocabulary.genes)
    except DataError as error:
        gene = min(sets.genes)
        raise DataError(
            f"the model knows none of the {len(sets.genes)} genes of the signatures, such as {gene!r}; its vocabulary "
            f"has {looks(vocabulary.genes)}.{nearest(gene, vocabulary.genes)}"
        ) from error
    absent = {name: [gene for gene in genes if gene not in columns] for name, genes in sets.items()}
    known = {name: np.array([columns[gene] for gene in genes if gene in columns]) for name, genes in sets.items()}
    if lost := sorted({gene for genes in absent.values() for gene in genes}):
        logger.warning(
            "%d of %d genes are not in the model's vocabulary: %s%s.%s",
            len(lost), len(sets.genes), ", ".join(lost[:_NAMED]), " and others" if len(lost) > _NAMED else "",
            nearest(lost[0], vocabulary.genes),
        )  # fmt: skip
    if empty := [name for name, places in known.items() if not places.size]:
        logger.warning(
            "%d signatures have no gene that the model knows and are left out: %s%s.",
            len(empty), ", ".join(empty[:_NAMED]), " and others" if len(empty) > _NAMED else "",
        )  # fmt: skip
    return {name: _rarest(places, vocabulary.idf, most) for name, places in known.items() if places.size}, absent


def _rarest(places: NDArray[np.int64], idf: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """The genes of highest idf, in the order given."""
    return places[np.sort(np.argsort(-idf[places], kind="stable")[:most])]


def _directions(
    model: HibioModel, signatures: list[NDArray[np.int64]], words: Sequence[str], random_state: int
) -> NDArray[np.float32]:
    """Mean embedding of sentences of each signature less that of as many random genes, n_signatures x dim."""
    from tqdm.auto import tqdm

    def mean_embedding(sentences: NDArray[np.int64]) -> NDArray[np.float32]:
        return encode(model.tokenizer(sentences, words)).cpu().numpy().mean(axis=0)

    encode = at_work(model).genes
    weights = model.vocabulary.n_spots + 1.0
    chance: dict[int, NDArray[np.float32]] = {}
    rows = []
    for genes in tqdm(signatures, desc="embed signatures", unit="signature", disable=not settings.progress):
        n = len(genes)
        if n not in chance:
            drawn = np.random.default_rng([random_state, n])
            draws = [drawn.choice(weights.size, n, replace=False, p=weights / weights.sum()) for _ in range(N_RANDOM)]
            chance[n] = mean_embedding(np.stack(draws))
        orders = np.random.default_rng(random_state).permuted(np.tile(genes, (N_ORDERS, 1)), axis=1)
        rows.append(mean_embedding(orders) - chance[n])
    return np.stack(rows)
