from __future__ import annotations

import copy as copying
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from .. import inputs, keys
from .._random import RNG, generator
from .._random import seed as as_seed
from .._ranks import ALONE
from ..errors import DataError, ModelError, check_choice, nearest
from ..genes.variance import most_variable
from ..settings import logger, settings
from ._confidence import expected_pcc, trust
from ._embed import of_patches
from ._embeddings import Embeddings
from ._predict import TARGETS, chosen_genes
from ._resolve import at_work, resolve_device, resolve_images
from ._spots import Spots

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model import FeatureEncoder, HibioModel, Predictor
    from ..model.confidence import Calibration
    from ..train import FineTuning, Measured

FITS = ("ridge", "finetune")


@inputs.takes_spatialdata
def fit_predictor(
    reference: AnnData,
    *,
    model: str | os.PathLike[str] | HibioModel | FeatureEncoder | None = None,
    method: Literal["ridge", "finetune"] = "ridge",
    genes: int | Sequence[str] | None = None,
    target: Literal["raw", "normalized"] = "raw",
    fraction: float = 1.0,
    validation: Sequence[str] | AnnData | None = None,
    recipe: Mapping[str, Any] | FineTuning | None = None,
    calibrate: bool = True,
    layer: str | None = None,
    batch_size: int = 32,
    library_key: str = keys.LIBRARY,
    patient_key: str = keys.PATIENT,
    device: str = "auto",
    rng: RNG = 0,
) -> Predictor:
    """Fit a regression of gene expression on H&E patches (HiBio-ST, sections 4 and C.2.2).

    ``"ridge"`` leaves the image tower as it is and fits a ridge regression on its standardised features in closed form,
    with the penalty of the lowest leave-one-out error; memory holds the features (n_obs x width x 4 bytes), with
    ``calibrate`` twice, and one block of rows. ``"finetune"`` is the paper's: a copy of the image tower and a linear
    head are trained together, the head from weight zero and the training mean as bias; patches are kept in a file in
    ``TMPDIR`` meanwhile.

    Both read the tower before its projection. A ridge on these features beats one on the l2-normalised embeddings:
    mean PCC of 0.571 against 0.558 (raw) and 0.283 against 0.271 (normalized) for 300 genes of her2st C6 from C2-C5,
    and with a tenth of the spots 0.527 against 0.495 and 0.215 against 0.203. Random weights are the other way round.

    How well each gene is predicted on other slides is measured and kept with the predictor, for the ``trusted`` genes
    of :func:`hibiost.tl.predict`. Of a ridge, slides of the reference are predicted by one that is fitted to the others
    with the penalty of all (patients are left out as a whole where several are known). A fine-tuned predictor is
    measured on the slides of ``validation``, by which its epoch was chosen too.

    Parameters
    ----------
    reference
        Spots of one or several slides with raw counts, coordinates and H&E images.
    model
        A model, what :func:`hibiost.model.load` takes, or, for ``"ridge"``, what
        :func:`hibiost.model.feature_encoder` returns; by default the model ``reference`` was embedded with, else
        ``hibiost.settings.model``.
    method
        ``"ridge"`` or ``"finetune"``.
    genes
        Genes to predict: names, or how many of the highest mean per-slide variance; all where not given.
    target
        ``"raw"``: log1p of counts, the paper's. ``"normalized"``: log1p of counts scaled to the median total of the
        spots that are fitted to.
    fraction
        Few-shot: the share of the spots of each slide that is fitted to, at least one. With the same ``rng``, a smaller
        share is part of a larger one. The others are as if they were not there.
    validation
        Of ``"finetune"``: patients (or slides, where ``reference`` has no column of patients) that are held out, or
        other slides: the weights of the epoch with the lowest error on them are kept. Without, all epochs are run.
    recipe
        Of ``"finetune"``: training values that differ from the paper's, see :class:`hibiost.train.FineTuning`; such as
        ``{"freeze": True}`` for linear probing. The paper's rate of 5e-5 hardly moves a model on a few hundred spots.
    calibrate
        Whether ``expected_pcc`` is computed: on at most 20 slides and 500 spots of each. A ridge takes a reference of
        two slides, fine-tuning a ``validation``.
    layer
        Layer that holds raw counts; ``X`` where not given.
    batch_size
        Spots whose features are computed at a time; that of training is in the ``recipe``.
    library_key
        Column of ``obs`` that tells slides apart.
    patient_key
        Column of ``obs`` that tells patients apart.
    device
        ``"cpu"``, ``"cuda"``, ``"mps"``, or ``"auto"`` for a GPU where there is one.
    rng
        Seed of the spots that are drawn and of training.

    Returns
    -------
    The predictor, for ``hb.tl.predict(adata, predictor)``; ``predictor.save(folder)`` keeps it. Its ``params`` tell how
    it was fitted: the penalty ``alpha`` and the leave-one-out error ``loo_mse`` of a ridge, or the ``history`` of
    fine-tuning (epochs with ``loss`` and ``validation_mse``). Its ``calibration`` holds ``expected_pcc`` and ``noise``
    of each gene, float64, or is ``None`` where they could not be computed. Nothing is written to ``reference``.

    Raises
    ------
    ModelError
        No model, embeddings made with other weights, or an image encoder that cannot be fine-tuned.
    DataError
        Counts that are none, unknown genes or training values, ``fraction`` that is no share, fewer than two spots, or
        a validation that is not there or all there is.
    MissingSlotError
        No coordinates, or no such layer.
    ImageError
        An image is absent, unreadable or truncated.
    RunError
        The loss is no number, or there is no room for the patches.

    Examples
    --------
    >>> import hibiost as hb
    >>> adata = hb.datasets.tissue(100, n_slides=2)
    >>> slide, reference = adata[:100].copy(), adata[100:].copy()
    >>> model = hb.tl.pretrain(reference, image_encoder="ResNet-10", recipe={"epochs": 1, "batch_size": 32})
    >>> predictor = hb.tl.fit_predictor(reference, model=model, genes=20)
    >>> hb.tl.predict(slide, predictor)
    >>> slide.obsm["predicted_expression"].shape
    (100, 20)
    """
    from ..model import Predictor

    inputs.check_spots(reference)
    _check_options(method, target, fraction, validation, recipe)
    values, device, seed = _recipe(method, recipe), resolve_device(device), as_seed(rng)
    known = _Known.of(reference, layer, library_key)
    held_out = _held_out(known, validation, layer, library_key, patient_key)
    if held_out is not None and held_out.adata is reference:
        known = known.only(np.setdiff1d(known.rows, held_out.rows))
    known = known.only(drawn([slide.rows for slide in known.slides], fraction, seed))
    if len(known.rows) < 2:
        raise DataError(f"{len(known.rows)} spot is left to fit to; expected two or more: raise fraction.")
    target_sum = None if target == "raw" else inputs.median_total(known.counts)
    names = _chosen(known, genes, target_sum)
    if held_out is not None:
        _check_measured(held_out.adata, names)
    encoder = _encoder(reference, model, device, batch_size, library_key)
    params: dict[str, Any] = {"method": method, "fraction": fraction, "seed": seed, "n_spots": len(known.rows)}
    params["slides"] = [slide.library_id for slide in known.slides]
    expression = known.expression(names, target_sum)
    if values is None:
        columns = {"library_key": library_key, "patient_key": patient_key}
        fit = _ridge(known, expression, encoder, batch_size, held_out_by=columns if calibrate else None)
    else:
        measured = None if held_out is None else (held_out, held_out.expression(names, target_sum))
        fit = _finetuned((known, expression), measured, encoder, values, seed, calibrate=calibrate)
    logger.info("fitted %d genes to %d spots by %s", len(names), len(known.rows), method)
    params |= fit.params
    return Predictor(fit.encoder, names, fit.weight, fit.bias, target, target_sum, params, fit.calibration)


def _check_options(method: str, target: str, fraction: float, validation: Any, recipe: Any) -> None:
    check_choice("method", method, FITS)
    check_choice("target", target, TARGETS)
    if not 0 < fraction <= 1:
        raise DataError(f"fraction is {fraction}; expected a share above 0, at most 1.")
    for name, value in (("validation", validation), ("recipe", recipe)):
        if method == "ridge" and value is not None:
            raise DataError(
                f"{name}= is for method='finetune'; a ridge chooses its penalty by leave-one-out and needs none."
            )


def _recipe(method: str, recipe: Mapping[str, Any] | FineTuning | None) -> FineTuning | None:
    """How to fine-tune; ``None`` for a ridge."""
    if method == "ridge":
        return None
    from ..train import FineTuning

    return FineTuning.of(recipe)


@dataclass(frozen=True, eq=False)
class _Known:
    """Spots with images and counts, slide after slide.

    Attributes
    ----------
    adata
        Where they come from.
    slides
        Each with these spots only.
    counts
        n_spots x n_vars, in the order of ``rows``.
    """

    adata: AnnData
    slides: list[inputs.Slide]
    counts: sparse.csr_matrix

    @classmethod
    def of(cls, adata: AnnData, layer: str | None, library_key: str) -> _Known:
        counts, slides = inputs.counts(adata, layer), inputs.slides(adata, library_key)
        return cls(adata, slides, counts[np.concatenate([slide.rows for slide in slides])])

    @property
    def rows(self) -> np.ndarray:
        """Places of the spots in the AnnData."""
        return np.concatenate([slide.rows for slide in self.slides])

    @property
    def parts(self) -> list[np.ndarray]:
        """Places of each slide's spots among these."""
        ends = np.cumsum([0, *(len(slide.rows) for slide in self.slides)])
        return [np.arange(*each) for each in pairwise(ends)]

    def only(self, rows: np.ndarray) -> _Known:
        """Some of the spots; slides without any are left out."""
        kept = [(slide, np.isin(slide.rows, rows)) for slide in self.slides]
        slides = [replace(slide, rows=slide.rows[mask], xy=slide.xy[mask]) for slide, mask in kept if mask.any()]
        return _Known(self.adata, slides, self.counts[np.isin(self.rows, rows)])

    def expression(self, genes: Sequence[str], target_sum: float | None) -> sparse.csr_matrix:
        """log1p expression of some genes, float32."""
        columns = self.adata.var_names.get_indexer(genes)
        return inputs.log_expression(self.counts, target_sum=target_sum)[:, columns]


def drawn(slides: Iterable[np.ndarray], fraction: float, rng: RNG) -> np.ndarray:
    """That share of the rows of each slide, at least one; with the same seed, a smaller share is part of a larger."""
    source = generator(rng)
    return np.concatenate([source.permutation(rows)[: max(1, round(fraction * len(rows)))] for rows in slides])


def _held_out(
    known: _Known, validation: Sequence[str] | AnnData | None, layer: str | None, library_key: str, patient_key: str
) -> _Known | None:
    """The spots of the patients, or slides, that are held out, or those of another AnnData."""
    if validation is None:
        return None
    if hasattr(validation, "obsm"):
        other = _Known.of(validation, layer, library_key)
        if both := {slide.library_id for slide in known.slides} & {slide.library_id for slide in other.slides}:
            raise DataError(
                f"slides {sorted(both)} are both in the reference and in validation=; leave them out of one."
            )
        return other
    by_patient = patient_key in known.adata.obs
    kind, groups = ("patient", patient_key) if by_patient else ("slide", library_key)
    spots = inputs.libraries(known.adata, groups)
    asked = [validation] if isinstance(validation, str) else list(map(str, validation))
    for name in asked:
        if name not in spots:
            raise DataError(f"validation: no {kind} {name!r}; there are {list(spots)}.{nearest(name, spots)}")
    if not asked or len(set(asked)) == len(spots):
        raise DataError(f"validation holds {len(set(asked))} of {len(spots)} {kind}s; expected some of them, not all.")
    return known.only(np.concatenate([spots[name] for name in asked]))


def _check_measured(validation: AnnData, genes: Sequence[str]) -> None:
    absent = [gene for gene in genes if gene not in validation.var_names]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(genes)} genes are not in validation=, such as {absent[0]!r}; name those that both "
            f"have with genes=.{nearest(absent[0], validation.var_names)}"
        )


def _chosen(known: _Known, genes: int | Sequence[str] | None, target_sum: float | None) -> list[str]:
    if not isinstance(genes, int | np.integer):
        return chosen_genes(known.adata, genes)
    if not 1 <= genes <= known.adata.n_vars:
        raise DataError(f"genes is {genes}; expected 1 to {known.adata.n_vars}, the genes of the reference.")
    order = most_variable(inputs.log_expression(known.counts, target_sum=target_sum), known.parts)
    return [str(name) for name in known.adata.var_names[order[:genes]]]


def _encoder(
    adata: AnnData,
    model: str | os.PathLike[str] | HibioModel | FeatureEncoder | None,
    device: str,
    batch_size: int,
    library_key: str,
) -> HibioModel | FeatureEncoder:
    """The model or encoder given, else the model of the embeddings in the AnnData, else that of the settings."""
    if model is not None:
        return resolve_images(model, device)
    return Embeddings(adata, None, device, batch_size, library_key).model


class _Fit(NamedTuple):
    """Parts of a predictor, and how it was fitted."""

    encoder: HibioModel | FeatureEncoder
    weight: np.ndarray
    bias: np.ndarray
    params: dict[str, Any]
    calibration: Calibration | None


def _ridge(
    known: _Known,
    expression: sparse.csr_matrix,
    model: HibioModel | FeatureEncoder,
    batch_size: int,
    *,
    held_out_by: Mapping[str, str] | None,
) -> _Fit:
    """Fit a ridge; it is calibrated where columns are given that tell slides and patients apart."""
    from ..model.ridge import fit_ridge

    batches = of_patches(known.slides, model, at_work(model).features, batch_size=batch_size, desc="features")
    rows, values = zip(*batches, strict=True)
    features = np.concatenate(values)[pd.Index(np.concatenate(rows)).get_indexer(known.rows)]
    ridge = fit_ridge(features, expression)

    def without_held_out(training: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        part = fit_ridge(features[training], expression[training], alphas=[ridge.alpha])
        return lambda rows: part.predict(features[rows])

    calibration = None
    if held_out_by is not None:
        calibration = expected_pcc(known.adata[known.rows], expression, without_held_out, **held_out_by)
    params = {"alpha": ridge.alpha, "loo_mse": float(ridge.errors.min())}
    return _Fit(model, ridge.weight.astype(np.float32), ridge.bias.astype(np.float32), params, calibration)


def _finetuned(
    training: tuple[_Known, sparse.csr_matrix],
    validation: tuple[_Known, sparse.csr_matrix] | None,
    model: HibioModel | FeatureEncoder,
    recipe: FineTuning,
    seed: int,
    *,
    calibrate: bool,
) -> _Fit:
    from ..model import HibioModel
    from ..model.confidence import validate
    from ..train import finetune

    if not isinstance(model, HibioModel):
        raise ModelError(f"a {type(model).__name__} cannot be fine-tuned, only a HibioModel; use method='ridge'.")
    model = copying.deepcopy(model)
    calibration = None
    with tempfile.TemporaryDirectory(prefix="hibiost-") as folder:
        spots = _decoded(*training, model, Path(folder) / "patches.uint8")
        measured = None if validation is None else _decoded(*validation, model, Path(folder) / "validation.uint8")
        if recipe.batch_size > len(spots.patches):
            recipe = replace(recipe, batch_size=len(spots.patches))
            logger.warning("a batch is more spots than there are: all %d are one batch", recipe.batch_size)
        weight, bias, history = finetune(
            model, spots, recipe=recipe, seed=seed, validation=measured, progress=settings.progress
        )
        if calibrate and validation is not None and measured is not None:
            predict = partial(_head_on, model, weight, bias, measured.patches, recipe.batch_size)
            calibration = validate(measured.expression, validation[0].parts, predict)
        del spots, measured
    if calibrate and calibration is None:
        logger.info("no expected_pcc, which fine-tuning takes from a validation= that has a slide of 10 spots.")
    return _Fit(model, weight, bias, {"recipe": recipe.to_dict(), "history": history}, calibration)


def _head_on(
    model: HibioModel, weight: np.ndarray, bias: np.ndarray, patches: np.ndarray, batch_size: int, rows: np.ndarray
) -> np.ndarray:
    """What a head predicts for some of the patches, a batch at a time."""
    parts = np.split(rows, range(batch_size, len(rows), batch_size))
    return np.concatenate([model.image_features(patches[part]) for part in parts]) @ weight + bias


def _decoded(known: _Known, expression: sparse.csr_matrix, model: HibioModel, path: Path) -> Measured:
    from ..train import Measured, PatchStore

    n_slides, size = len(known.slides), model.config.image_size
    spots = Spots(known.slides, np.zeros(n_slides, int), np.empty((len(known.rows), 0), np.int32), [[]] * n_slides)
    spots.check_scale(model, size)
    store = PatchStore(path, len(spots), size)
    spots.store(store, model, ALONE, side=size, unreadable="stop")
    return Measured(store.read(), expression)


def by_regression(
    adata: AnnData,
    reference: AnnData | Predictor | str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | HibioModel | FeatureEncoder | None,
    genes: Sequence[str] | None,
    target: Literal["raw", "normalized"] | None,
    calibrate: bool,
    min_pcc: float,
    layer: str | None,
    batch_size: int,
    library_key: str,
    key_added: str,
    device: str,
    copy: bool,
) -> AnnData | None:
    """Predict by a predictor, or by one that is fitted to a reference; see :func:`hibiost.tl.predict`."""
    device = resolve_device(device)
    slides = inputs.slides(adata, library_key)
    options: Any = {"batch_size": batch_size, "library_key": library_key, "device": device}
    if hasattr(reference, "obsm"):
        encoder = _encoder(adata, model, device, batch_size, library_key)
        options |= {"model": encoder, "genes": genes, "target": target or "raw", "layer": layer}
        options |= {"calibrate": calibrate}
        predictor = fit_predictor(reference, **options)
    else:
        predictor = _checked(reference, model, target, device)
    columns = _columns(predictor, genes)
    predicted = np.empty((adata.n_obs, len(columns)), dtype=np.float32)
    running = at_work(predictor.model)
    for rows, features in of_patches(slides, predictor.model, running.features, batch_size=batch_size, desc="predict"):
        predicted[rows] = predictor.of_features(features)[:, columns]

    names = [predictor.genes[column] for column in columns]
    fitted_to = predictor.params.get("slides", [])
    if seen := [slide.library_id for slide in slides if slide.library_id in fitted_to]:
        logger.warning("the predictor was fitted to slides called %s: there it looks better than it is.", seen)
    adata = adata.copy() if copy else adata
    adata.obsm[key_added] = pd.DataFrame(predicted, index=adata.obs_names, columns=names)
    params = {"method": "regression", "target": predictor.target, "target_sum": predictor.target_sum, "layer": layer}
    params |= {"precision": running.precision}
    params |= {"fit": predictor.params.get("method"), "predictor": predictor.fingerprint(), "slides": fitted_to}
    trusted = {name: values[columns] for name, values in trust(predictor.calibration, min_pcc).items()}
    params |= {"min_pcc": min_pcc if trusted else None}
    quality = {"genes": np.array(names, dtype=object), **trusted}
    inputs.record(adata, key_added, fingerprint=predictor.model.fingerprint(), params=params, **quality)
    logger.info(
        "predicted %d genes of %d spots by a regression that was fitted to %s",
        len(names), adata.n_obs, ", ".join(fitted_to) or "slides that are not told",
    )  # fmt: skip
    return adata if copy else None


def coming_with(model: str | os.PathLike[str] | HibioModel | FeatureEncoder | None, device: str) -> Predictor:
    """The predictor in the folder of the model given, or of the one in the settings."""
    from ..model import load_predictor
    from ..model.predictor import brings_predictor

    chosen = settings.model if model is None else model
    if not isinstance(chosen, str | os.PathLike) or not brings_predictor(chosen):
        raise DataError(
            f"no reference given, and {chosen if isinstance(chosen, str | os.PathLike) else 'the model'} brings no "
            "predictor; give spots with measured counts, hb.tl.predict(adata, reference), or take the model that comes "
            "with the package: hb.tl.predict(adata, model='hibiost-mini')."
        )
    logger.warning(
        "no reference: the predictor of %s is taken. Its expected_pcc holds for slides like those it was fitted to; on "
        "other patients expect less.",
        chosen,
    )
    return load_predictor(chosen, device=device)


def _checked(
    given: Predictor | str | os.PathLike[str],
    model: str | os.PathLike[str] | HibioModel | FeatureEncoder | None,
    target: str | None,
    device: str,
) -> Predictor:
    from ..model import Predictor, load_predictor

    if not isinstance(given, str | os.PathLike | Predictor):
        raise DataError(f"expected an AnnData, a Predictor or the folder of one, found {type(given).__name__}.")
    predictor = load_predictor(given, device=device)
    if model is not None:
        raise DataError("model= is given beside a predictor, which holds its own; leave out model=.")
    if target not in (None, predictor.target):
        raise DataError(
            f"target is {target!r}, but the predictor was fitted to {predictor.target!r}; leave out target=, or fit "
            f"another: hb.tl.fit_predictor(reference, target={target!r})."
        )
    return predictor


def _columns(predictor: Predictor, genes: Sequence[str] | None) -> list[int]:
    places = {gene: place for place, gene in enumerate(predictor.genes)}
    asked = [genes] if isinstance(genes, str) else list(predictor.genes if genes is None else genes)
    for gene in asked:
        if gene not in places:
            raise DataError(f"the predictor has no gene {gene!r}; it has {len(places)}.{nearest(gene, places)}")
    return [places[gene] for gene in asked]
