"""Per-gene confidence of predictions, for every method of :func:`hibiost.tl.predict`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from .. import inputs, keys
from ..settings import logger

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model.confidence import Calibration, Fit

CHANCE = 3.0
"""Standard deviations above permuted spots from which a correlation is no chance."""


def expected_pcc(
    reference: AnnData,
    expression: sparse.csr_matrix,
    fit: Fit,
    *,
    library_key: str = keys.LIBRARY,
    patient_key: str = keys.PATIENT,
) -> Calibration | None:
    """Correlation of each gene on slides of the reference that are predicted from its other patients, or slides.

    See :func:`hibiost.model.confidence.cross_validate`; ``None``, and a line in the log, where there is one slide only.
    """
    from ..model.confidence import cross_validate

    slides = inputs.libraries(reference, library_key)
    groups, kind = _groups(inputs.patients(reference, library_key, patient_key))
    found = cross_validate(expression, list(slides.values()), groups, fit)
    if found is None:
        logger.info(
            "the reference holds %d slide(s), of %d spots: no expected_pcc, which takes two slides and 10 spots.",
            len(slides), reference.n_obs,
        )  # fmt: skip
    else:
        logger.info("expected_pcc: %d slides of the reference, predicted from its other %s", found.n_slides, kind)
    return found


def _groups(patients: dict[str, list[str]]) -> tuple[list[str], str]:
    """The patient of each slide where there are several, else the slide itself."""
    found = [f"patient {names[0]}" if names else f"slide {slide}" for slide, names in patients.items()]
    known = {names[0] for names in patients.values() if names}
    return (found, "patients") if known and len(set(found)) > 1 else (list(patients), "slides")


def mean_correlation_ratio(
    slides: dict[str, np.ndarray], weights: sparse.csr_matrix, expression: sparse.csr_matrix, predicted: np.ndarray
) -> np.ndarray:
    """Agreement of the neighbours, see :func:`hibiost.model.confidence.correlation_ratio`: the mean over slides."""
    from ..model.confidence import correlation_ratio

    ratios = [correlation_ratio(weights[rows], expression, predicted[rows]) for rows in slides.values()]
    known = ~np.isnan(ratios)
    total = np.where(known, ratios, 0).sum(axis=0)
    return np.divide(total, known.sum(axis=0), out=np.full(len(total), np.nan), where=known.any(axis=0))


def trust(calibration: Calibration | None, min_pcc: float) -> dict[str, Any]:
    """The entries of ``uns`` that cross-validation gives; none where there was none."""
    if calibration is None:
        return {}
    expected = calibration.expected_pcc
    chance = CHANCE * calibration.noise
    return {"expected_pcc": expected, "trusted": (expected >= min_pcc) & (expected > chance)}
