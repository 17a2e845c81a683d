"""An image tower with a linear head that predicts the expression of genes, and how it goes to a folder and back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError
from .confidence import Calibration
from .features import FeatureEncoder
from .files import read, tensors_of, writing
from .hibio import HibioModel
from .registry import load, located
from .weights import fingerprint

FORMAT_VERSION = 1
TARGETS = ("raw", "normalized")
_FILES = _WEIGHTS, _CONFIG = "predictor.safetensors", "predictor.json"
_MODEL = "model"
_CALIBRATION = "calibration."


def image_features(model: HibioModel | FeatureEncoder, patches: np.ndarray) -> np.ndarray:
    """What a head reads, float32, n x width: the image tower before its projection; of other encoders all they give."""
    return model.image_features(patches) if isinstance(model, HibioModel) else model.embed_images(patches)


@dataclass(frozen=True, eq=False)
class Predictor:
    """Image tower and linear head: ``features @ weight + bias`` is the log1p expression of genes.

    Made by :func:`hibiost.tl.fit_predictor`, for :func:`hibiost.tl.predict`.

    Parameters
    ----------
    model
        Its image tower is read.
    genes
        Names, in the order of the columns.
    weight, bias
        float32, width x n_genes and (n_genes,).
    target
        ``"raw"``: log1p of counts. ``"normalized"``: log1p of counts scaled to ``target_sum``.
    target_sum
        Counts a spot is scaled to; ``None`` for raw counts.
    params
        How it was fitted, as plain JSON values.
    calibration
        How well genes are predicted on slides that were held out, where there were any: ``expected_pcc``, the mean of
        their correlations, and its ``noise``, were spots permuted, float64 (n_genes,); and ``n_slides``.

    Examples
    --------
    >>> import hibiost as hb, numpy as np
    >>> vocabulary = hb.genes.Vocabulary(("ERBB2", "MGP"), [1, 2], [3, 3])
    >>> model = hb.model.HibioModel(hb.model.ModelConfig.preset("ResNet-10"), vocabulary)
    >>> weight, bias = np.zeros((512, 2), dtype=np.float32), np.ones(2, dtype=np.float32)
    >>> predictor = hb.model.Predictor(model, ["ERBB2", "MGP"], weight, bias)
    >>> predictor.predict(np.zeros((1, 112, 112, 3), dtype=np.uint8))
    array([[1., 1.]], dtype=float32)
    """

    model: HibioModel | FeatureEncoder
    genes: Sequence[str]
    weight: np.ndarray
    bias: np.ndarray
    target: str = "raw"
    target_sum: float | None = None
    params: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        expected = (len(self.weight), len(self.genes)), (len(self.genes),)
        if (self.weight.shape, self.bias.shape) != expected:
            raise ModelError(
                f"weight and bias have the shapes {self.weight.shape} and {self.bias.shape}; expected width x "
                f"{len(self.genes)} and ({len(self.genes)},), one column a gene."
            )
        if self.target not in TARGETS or (self.target == "raw") != (self.target_sum is None):
            raise ModelError(
                f"target is {self.target!r} and target_sum {self.target_sum}; expected 'raw' without target_sum, or "
                "'normalized' with one."
            )
        if self.calibration is not None and {len(part) for part in self.calibration[:2]} != {len(self.genes)}:
            raise ModelError(f"calibration is not that of {len(self.genes)} genes; expected an entry for each of them.")

    def predict(self, patches: np.ndarray) -> np.ndarray:
        """Expression of uint8 patches, n x size x size x 3, in one batch; returns float32, n x n_genes."""
        return self.of_features(image_features(self.model, patches))

    def of_features(self, features: np.ndarray) -> np.ndarray:
        """Expression of image features before the tower's projection, float32, n x width; as :meth:`predict`."""
        return features @ self.weight + self.bias

    def fingerprint(self) -> str:
        """A short hash of image tower, head and genes: of all that predictions depend on."""
        return self._fingerprint(self.model.fingerprint())

    def _fingerprint(self, of_model: str) -> str:
        about = [of_model, *self.genes, self.target, repr(self.target_sum)]
        return fingerprint(self._head, "\n".join(about))

    @property
    def _head(self) -> dict[str, Tensor]:
        return {"weight": torch.from_numpy(self.weight), "bias": torch.from_numpy(self.bias)}

    def save(
        self, path: str | os.PathLike[str], *, precision: str = "float32", card: Mapping[str, Any] | None = None
    ) -> Path:
        """Write the predictor to a folder: ``predictor.safetensors``, ``predictor.json`` and the model in ``model``.

        Where a file cannot be written, a predictor that was there stays as it was, or is refused by its fingerprint.

        Parameters
        ----------
        path
            Folder, made if absent.
        precision, card
            Of the model, see :meth:`HibioModel.save`; the head stays in float32.

        Returns
        -------
        The folder.

        Raises
        ------
        DataError
            The folder or a file cannot be written.
        ModelError
            The image tower is an encoder of another package, whose weights are not kept; an unknown precision or entry
            of the card.
        """
        if not isinstance(self.model, HibioModel):
            raise ModelError(
                f"a predictor on a {type(self.model).__name__} cannot be saved: its weights are not hibiost's to keep; "
                "fit it again where it is needed."
            )
        folder = Path(path)
        about = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self._fingerprint(self.model.fingerprint(precision=precision)),
            "genes": list(self.genes),
            "target": self.target,
            "target_sum": self.target_sum,
            "params": self.params,
        }
        with writing(folder, _FILES, {**self._head, **_tensors(self.calibration)}, about):
            self.model.save(folder / _MODEL, precision=precision, card=card)
        return folder


def load_predictor(predictor: str | os.PathLike[str] | Predictor, *, device: str = "cpu") -> Predictor:
    """Load a predictor that ships, or one from a folder written by ``predictor.save``.

    Only safetensors and JSON are read: loading never executes code.

    Parameters
    ----------
    predictor
        Name of a model that ships, see :func:`list`, or a folder; a predictor is passed through.
    device
        Where to put the image tower, such as ``"cpu"`` or ``"cuda"``.

    Returns
    -------
    The predictor.

    Raises
    ------
    ModelError
        The folder or a file is absent, damaged, of an unknown format version, or its parts do not belong together.

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.model.load_predictor("no-such-folder")
    Traceback (most recent call last):
    hibiost.errors.ModelError: no predictor at no-such-folder: ...
    """
    if isinstance(predictor, Predictor):
        predictor.model.to(device)
        return predictor
    folder = located(predictor)
    about = read(folder, _FILES, version=FORMAT_VERSION, kind="predictor", mend="hb.tl.fit_predictor fits a predictor.")
    tensors = tensors_of(folder / _WEIGHTS)
    model = load(folder / _MODEL, device=device)
    try:
        known = {name: about[name] for name in ("genes", "target", "target_sum", "params")}
        weight, bias = tensors["weight"].numpy(), tensors["bias"].numpy()
        found = Predictor(model, weight=weight, bias=bias, calibration=_calibration(tensors), **known)
    except KeyError as error:
        raise ModelError(f"{folder} lacks the entry {error}; save the predictor again.") from error
    if found.fingerprint() != about.get("fingerprint"):
        raise ModelError(
            f"the parts of {folder} do not belong together: head, model and {_CONFIG} are not those that were saved; "
            "copy or save the predictor again."
        )
    return found


def brings_predictor(model: str | os.PathLike[str]) -> bool:
    """Whether a predictor lies in the folder of a model, or comes with one that ships."""
    return (located(model) / _CONFIG).is_file()


def _tensors(calibration: Calibration | None) -> dict[str, Tensor]:
    parts = {} if calibration is None else calibration._asdict()
    return {_CALIBRATION + name: torch.as_tensor(part) for name, part in parts.items()}


def _calibration(tensors: dict[str, Tensor]) -> Calibration | None:
    if not any(name.startswith(_CALIBRATION) for name in tensors):
        return None
    expected, noise, n_slides = (tensors[_CALIBRATION + name] for name in Calibration._fields)
    return Calibration(expected.numpy(), noise.numpy(), int(n_slides))
