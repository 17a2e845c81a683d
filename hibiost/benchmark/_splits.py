"""Which slides are trained on, and which are held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from .. import inputs, keys
from ..errors import DataError, check_choice
from ..settings import logger

if TYPE_CHECKING:
    from anndata import AnnData

SPLITS = ("patient", "slide")


@dataclass(frozen=True)
class Fold:
    """Spots trained on and spots held out, as positions in an AnnData; no slide is in both.

    Attributes
    ----------
    number
        0 for the first fold.
    training, held_out
        int64 positions, rising.
    """

    number: int
    training: np.ndarray
    held_out: np.ndarray


def folds(
    adata: AnnData,
    *,
    split: Literal["patient", "slide"] = "patient",
    n_folds: int | None = 4,
    library_key: str = keys.LIBRARY,
    patient_key: str = keys.PATIENT,
) -> list[Fold]:
    """Cross-validation by patients or by slides, folds of about as many spots each.

    The paper splits by slides ("sample-level", C.2.2): slides of one patient are then on both sides, and scores tell
    how a model carries over to another section of a patient it knows. By default patients are kept together.

    Parameters
    ----------
    adata
        Slides; their patients in ``obs[patient_key]`` or in ``uns["spatial"][slide]["metadata"]``.
    split
        ``"patient"``: the slides of a patient stay together. ``"slide"``: they need not.
    n_folds
        Number of folds; ``None`` holds out one patient (or slide) at a time.
    library_key, patient_key
        Columns of ``obs`` that tell slides and patients.

    Returns
    -------
    The folds; each spot is held out in one of them.

    Raises
    ------
    DataError
        Fewer patients (or slides) than folds, or a slide without a patient or with several.

    Examples
    --------
    >>> import hibiost as hb
    >>> slides = hb.datasets.tissue(50, n_slides=3)
    >>> [len(fold.held_out) for fold in hb.benchmark.folds(slides, n_folds=None)]
    [50, 50, 50]
    """
    from sklearn.model_selection import GroupKFold

    check_choice("split", split, SPLITS)
    slides = inputs.libraries(adata, library_key)
    patients = inputs.patients(adata, library_key, patient_key)
    if split == "patient" and (unknown := [slide for slide, found in patients.items() if not found]):
        raise DataError(
            f"the patient of {len(unknown)} slides is not known, such as {unknown[0]!r}; name it in "
            f"obs[{patient_key!r}], or split='slide', which may have slides of one patient on both sides."
        )
    for slide, found in patients.items():
        if split == "patient" and len(found) > 1:
            raise DataError(f"slide {slide!r} has {len(found)} patients in obs[{patient_key!r}]: {found[:5]}.")
    names = inputs.spread(slides, adata.n_obs)
    if split == "patient":
        names = np.array([patients[slide][0] for slide in names], dtype=object)
    groups = pd.factorize(names)[0]
    n_groups = int(groups.max()) + 1
    n_folds = n_groups if n_folds is None else n_folds
    if not 2 <= n_folds <= n_groups:
        hint = "; split='slide' would have slides of one patient on both sides" if split == "patient" else ""
        raise DataError(
            f"{n_groups} {split}s cannot be split into {n_folds} folds; expected 2 to {n_groups} folds{hint}."
        )
    if split == "slide" and len({name for found in patients.values() for name in found}) < len(slides):
        logger.warning("slides of one patient are trained on and held out (split='slide'), as in the paper.")
    parts = GroupKFold(n_folds).split(groups, groups=groups)
    return [Fold(number, training, held_out) for number, (training, held_out) in enumerate(parts)]
