"""The paper's tasks on one fold: embeddings in, scores out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from scipy import sparse

from .. import inputs, keys, metrics
from .._random import generator
from ..errors import DataError
from ..model.retrieval import mixed, neighbours
from ..spatial import majority_vote
from ..tl._cluster import kmeans_labels
from ..tl._predictor import drawn
from ._contestants import Embedded
from ._floors import ridge
from ._genes import variable_genes

if TYPE_CHECKING:
    from anndata import AnnData

Target: TypeAlias = Literal["raw", "normalized"]
Row: TypeAlias = dict[str, Any]
TARGETS: tuple[Target, ...] = ("raw", "normalized")
PERCENTS = (1, 5, 10)
SCORES = ("mse", "mae", "pcc", "n_constant")
K_MEANS = {"n_init": 50, "max_iter": 500}
VOTERS = 5


@dataclass(frozen=True)
class Protocol:
    """How contestants are measured.

    Attributes
    ----------
    n_genes
        Genes of highest mean per-slide variance in the training slides of a fold.
    genes
        Genes to predict instead.
    pivotal
        Genes whose own correlation is reported, where the data have them.
    targets
        ``"raw"`` counts, ``"normalized"`` ones (scaled to the median total of the training spots), both as log1p.
    fractions
        Shares of the training spots of the few-shot task.
    top_k
        Spots averaged by retrieval.
    label_key
        Column of ``obs`` that clusters are compared with.
    layer, library_key
        As everywhere.
    """

    n_genes: int = 300
    genes: tuple[str, ...] | None = None
    pivotal: tuple[str, ...] = ("IGLL5", "IFI27", "MGP")
    targets: tuple[Target, ...] = TARGETS
    fractions: tuple[float, ...] = (0.1, 0.25, 0.5)
    top_k: int = 100
    label_key: str | None = None
    layer: str | None = None
    library_key: str = keys.LIBRARY


@dataclass(frozen=True)
class Expression:
    """log1p expression of the genes to predict, then of pivotal ones that are not among them.

    Attributes
    ----------
    known, truth
        Of training and held-out spots, float32, spots x genes.
    genes
        Their names.
    n_genes
        How many of them count for the scores.
    """

    known: np.ndarray
    truth: np.ndarray
    genes: list[str]
    n_genes: int


@dataclass(frozen=True)
class Case:
    """Held-out slides for one contestant; without embeddings: what chance and the training mean reach.

    Attributes
    ----------
    reference, adata
        Training and held-out slides.
    known, embedded
        Their embeddings.
    protocol, seed
        How they are measured.
    """

    reference: AnnData
    adata: AnnData
    known: Embedded | None
    embedded: Embedded | None
    protocol: Protocol
    seed: int = 0

    @cached_property
    def slides(self) -> dict[str, np.ndarray]:
        """Rows of each held-out slide."""
        return inputs.libraries(self.adata, self.protocol.library_key)

    @cached_property
    def expressions(self) -> dict[Target, Expression]:
        """Of each target."""
        return {target: self._expression(target) for target in self.protocol.targets}

    def _expression(self, target: Target) -> Expression:
        """Genes are chosen, and library sizes learned, on the training slides alone."""
        protocol = self.protocol
        counts = [inputs.counts(part, protocol.layer) for part in (self.reference, self.adata)]
        target_sum = inputs.median_total(counts[0]) if target == "normalized" else None
        ranked: Sequence[str] = protocol.genes or variable_genes(
            self.reference,
            self.reference.n_vars,
            target_sum=target_sum,
            layer=protocol.layer,
            library_key=protocol.library_key,
        )
        shared = set(self.reference.var_names) & _measured(self.adata)
        genes = [gene for gene in ranked if gene in shared]
        genes = genes if protocol.genes else genes[: protocol.n_genes]
        if not genes:
            raise DataError(
                "reference and held-out slides have no gene in common; name the genes alike (adata.var_names)."
            )
        columns = [*genes, *(gene for gene in protocol.pivotal if gene in shared and gene not in genes)]
        known, truth = (
            inputs.log_expression(matrix, target_sum=target_sum)[:, part.var_names.get_indexer(columns)].toarray()
            for matrix, part in zip(counts, (self.reference, self.adata), strict=True)
        )
        return Expression(known, truth, columns, len(genes))


def _measured(adata: AnnData) -> set[str]:
    """Genes that were measured on every slide."""
    if keys.MEASURED not in adata.varm:
        return set(adata.var_names)
    slides = list(inputs.libraries(adata))
    return set(adata.var_names[adata.varm[keys.MEASURED][slides].all(axis=1)])


def clustering(case: Case) -> Iterator[Row]:
    """Zero-shot clusters of each held-out slide, raw and smoothed (HiBio-ST, C.2.1); k is the number of its labels."""
    from sklearn.preprocessing import normalize

    label_key = str(case.protocol.label_key)
    xy = inputs.coordinates(case.adata)
    for slide, rows in case.slides.items():
        labels = case.adata.obs[label_key].iloc[rows]
        k = labels.nunique()
        if k < 2:
            continue
        if case.embedded is None:
            raw = generator(case.seed).integers(k, size=len(rows))
        else:
            options = {**K_MEANS, "rng": case.seed}
            raw = kmeans_labels(normalize(case.embedded.images[rows]), slide, k, options)
        for method, found in (("raw", raw), ("smoothed", majority_vote(raw, xy[rows], k=VOTERS))):
            for metric in ("ari", "nmi"):
                value = getattr(metrics, metric)(labels, found)
                yield {"method": method, "slide": slide, "metric": metric, "value": value}


def retrieval(case: Case) -> Iterator[Row]:
    """Recall@p% of images among the sentences of each held-out slide; without a gene side there is none."""
    if case.embedded is not None and case.embedded.sentences is None:
        return
    for slide, rows in case.slides.items():
        recall: dict[float, float] = {percent: float(percent) for percent in PERCENTS}
        if case.embedded is not None and case.embedded.sentences is not None:
            images, sentences = case.embedded.images[rows], case.embedded.sentences[rows]
            recall = metrics.recall_at_percent(images, sentences, percents=PERCENTS)
        for percent, value in recall.items():
            yield {"method": "retrieval", "slide": slide, "metric": f"Recall@{percent}%", "value": value}


def prediction(case: Case) -> Iterator[Row]:
    """Expression by ridge on the features and, with a gene side, by retrieval (HiBio-ST, C.2.3)."""
    every = np.arange(case.reference.n_obs)
    for target, expression in case.expressions.items():
        for method, predicted in _predictions(case, expression.known, every):
            yield from _scored(case, expression, predicted, target=target, method=method)


def few_shot(case: Case) -> Iterator[Row]:
    """Expression by ridge on the features of a share of the training spots (HiBio-ST, C.2.2)."""
    for target, expression in case.expressions.items():
        for fraction in case.protocol.fractions:
            for method, predicted in _predictions(case, expression.known, few(case, fraction)):
                if method != "retrieval":
                    rows = _scored(case, expression, predicted, target=target, method=method)
                    yield from ({**row, "fraction": fraction} for row in rows)


def few(case: Case, fraction: float) -> np.ndarray:
    """That share of each training slide; a smaller share is part of a larger one."""
    slides = inputs.libraries(case.reference, case.protocol.library_key).values()
    return np.sort(drawn(slides, fraction, case.seed))


def _predictions(case: Case, expression: np.ndarray, among: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Method and prediction for the held-out spots, from some of the training spots."""
    expression = expression[among]
    if case.known is None or case.embedded is None:
        yield "training mean", np.repeat(expression.mean(axis=0, keepdims=True), case.adata.n_obs, axis=0)
        return
    yield "ridge", ridge(case.known.features[among], expression, queries=case.embedded.features)
    if case.known.sentences is not None:
        k, bank = min(case.protocol.top_k, len(among)), case.known.sentences[among]
        weights = neighbours(case.embedded.images, bank, k=k)
        yield "retrieval", mixed(weights, sparse.csr_matrix(expression))


def _scored(case: Case, expression: Expression, predicted: np.ndarray, *, target: str, method: str) -> Iterator[Row]:
    """Scores of each slide and of all held-out spots together; then the pivotal genes'."""
    names, n = inputs.spread(case.slides, case.adata.n_obs), expression.n_genes
    scores = metrics.expression_scores(expression.truth[:, :n], predicted[:, :n], slides=names).drop(index="mean")
    row = {"target": target, "method": method}
    for slide, of_slide in scores.iterrows():
        for metric in SCORES:
            yield {**row, "slide": slide, "metric": metric, "value": float(of_slide[metric])}
    for gene in case.protocol.pivotal:
        if gene not in expression.genes:
            continue
        column = expression.genes.index(gene)
        for slide, rows in case.slides.items():
            value = metrics.pcc(expression.truth[rows, column], predicted[rows, column])[0]
            yield {**row, "slide": slide, "metric": f"pcc {gene}", "value": float(value)}


TASKS: dict[str, Callable[[Case], Iterator[Row]]] = {
    "clustering": clustering,
    "prediction": prediction,
    "few-shot": few_shot,
    "retrieval": retrieval,
}
