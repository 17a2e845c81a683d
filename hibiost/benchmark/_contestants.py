"""What stands in a row of the tables: trained models, encoders and floors, each as embeddings of spots."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from .. import inputs, tl
from .._files import replacing
from ..errors import DataError
from ..model import FeatureEncoder, HibioModel, ModelConfig, feature_encoder, load, presets
from ..model.registry import ours, shipped
from ..tl._embed import gene_embeddings, image_embeddings, of_patches
from ..tl._resolve import at_work, sentences_for
from ._floors import colour_statistics
from ._splits import Fold

if TYPE_CHECKING:
    from anndata import AnnData

Trainer: TypeAlias = Callable[["AnnData", int], HibioModel | FeatureEncoder]
"""Trains on the training slides of a fold, with a seed."""
Spec: TypeAlias = str | HibioModel | FeatureEncoder | Mapping[str, Any] | Trainer
"""A preset, options of :func:`hibiost.tl.pretrain` or a function, trained on each fold; a model, its folder, or an
encoder."""


@dataclass(frozen=True)
class Embedded:
    """What a contestant sees of each spot.

    Attributes
    ----------
    images
        Embeddings of the patches, float32, n_obs x dim: what is clustered and compared with sentences.
    features
        What a ridge is fitted to: of a trained model, the tower's output before its projection; else the embeddings.
    sentences
        Embeddings of the sentences in the space of the images, where the contestant has a gene side.
    seen
        Slides that the contestant was trained on.
    """

    images: np.ndarray
    features: np.ndarray
    sentences: np.ndarray | None = None
    seen: Sequence[str] = ()

    def of(self, rows: np.ndarray) -> Embedded:
        """Those of some spots."""
        sentences = None if self.sentences is None else self.sentences[rows]
        return replace(self, images=self.images[rows], features=self.features[rows], sentences=sentences)

    def save(self, path: Path) -> None:
        """Write as ``.npz``."""
        arrays = {"images": self.images, "features": self.features, "seen": np.array(self.seen, dtype=str)}
        if self.sentences is not None:
            arrays["sentences"] = self.sentences
        with replacing(path) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> Embedded:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return cls(file["images"], file["features"], file.get("sentences"), file["seen"].tolist())

    @classmethod
    def alike(cls, images: np.ndarray) -> Embedded:
        """Of contestants that have one representation."""
        return cls(images, images)


@dataclass(frozen=True)
class Setting:
    """What all contestants work with."""

    adata: AnnData
    layer: str | None
    library_key: str
    device: str
    out: Path


class Contestant(Protocol):
    """A row of the tables."""

    @property
    def name(self) -> str:
        """As the tables show it."""

    def key(self, fold: Fold, seed: int) -> str:
        """Names the embeddings: the same name, the same embeddings."""

    def embedded(self, setting: Setting, fold: Fold, seed: int) -> Embedded:
        """Embeddings of all spots."""

    def description(self) -> Any:
        """Plain values that tell whether results that are there belong to it."""


@dataclass(frozen=True)
class Colours:
    """The colour floor."""

    name: str = "colour statistics"

    def key(self, fold: Fold, seed: int) -> str:
        return "colours"

    def description(self) -> Any:
        return self.name

    def embedded(self, setting: Setting, fold: Fold, seed: int) -> Embedded:
        return Embedded.alike(colours(setting.adata, setting.library_key))


@dataclass(frozen=True)
class Untrained:
    """Random weights: what training adds is what a model has above them."""

    name: str
    config: ModelConfig

    def key(self, fold: Fold, seed: int) -> str:
        return f"{slug(self.name)}-seed{seed}"

    def description(self) -> Any:
        return self.config.to_dict()

    def embedded(self, setting: Setting, fold: Fold, seed: int) -> Embedded:
        from ..genes import Vocabulary

        vocabulary = Vocabulary(("A",), np.ones(1, int), np.ones(1, int))
        model = HibioModel(self.config, vocabulary, rng=seed).to(setting.device).eval()
        return Embedded.alike(image_embeddings(setting.adata, model, batch_size=64, library_key=setting.library_key))


@dataclass(frozen=True)
class Fixed:
    """A model or an encoder as it is."""

    name: str
    source: str | HibioModel | FeatureEncoder

    def key(self, fold: Fold, seed: int) -> str:
        return slug(self.name)

    @property
    def _here(self) -> str | HibioModel | FeatureEncoder:
        """With its weights; what has to be had from elsewhere goes by its name."""
        if isinstance(self.source, str) and (self.source in shipped() or Path(self.source).is_dir()):
            return load(self.source)
        return self.source

    def description(self) -> Any:
        here = self._here
        return here if isinstance(here, str) else here.fingerprint()

    def embedded(self, setting: Setting, fold: Fold, seed: int) -> Embedded:
        here = self._here
        if isinstance(here, str):
            here = load(here) if ours(here) else feature_encoder(here)
        return seen_by(setting, here)


@dataclass(frozen=True)
class Pretrained:
    """A model trained on the training slides of each fold; a training that was interrupted goes on."""

    name: str
    options: Mapping[str, Any]

    def key(self, fold: Fold, seed: int) -> str:
        return f"{slug(self.name)}-fold{fold.number}-seed{seed}"

    def description(self) -> Any:
        return {name: value if isinstance(value, dict) else str(value) for name, value in self.options.items()}

    def embedded(self, setting: Setting, fold: Fold, seed: int) -> Embedded:
        model = tl.pretrain(
            setting.adata[fold.training].copy(),
            layer=setting.layer,
            library_key=setting.library_key,
            device=setting.device,
            run=setting.out / "models" / self.key(fold, seed),
            rng=seed,
            **self.options,
        )
        return both_sides(setting, model)


@dataclass(frozen=True)
class Trained:
    """What a function makes of the training slides of each fold."""

    name: str
    train: Trainer

    def key(self, fold: Fold, seed: int) -> str:
        return f"{slug(self.name)}-fold{fold.number}-seed{seed}"

    def description(self) -> Any:
        function: Any = getattr(self.train, "func", self.train)  # of a functools.partial
        return function.__qualname__

    def embedded(self, setting: Setting, fold: Fold, seed: int) -> Embedded:
        return seen_by(setting, self.train(setting.adata[fold.training].copy(), seed))


def seen_by(setting: Setting, model: HibioModel | FeatureEncoder) -> Embedded:
    """Embeddings by a model, or by an encoder of images."""
    model = model.to(setting.device)
    if isinstance(model, HibioModel):
        return both_sides(setting, model)
    return Embedded.alike(image_embeddings(setting.adata, model, batch_size=64, library_key=setting.library_key))


def both_sides(setting: Setting, model: HibioModel) -> Embedded:
    """Embeddings and features of patches, and embeddings of sentences made with the model's vocabulary."""
    adata = setting.adata
    options: Any = {"batch_size": 64, "library_key": setting.library_key}
    sentences = sentences_for(adata, model, layer=setting.layer, library_key=setting.library_key)
    slides = inputs.slides(adata, setting.library_key)
    features = of_patches(slides, model, at_work(model).features, batch_size=64, desc="features")
    return Embedded(
        image_embeddings(adata, model, **options),
        _in_order(features),
        gene_embeddings(adata, model, sentences, **options),
        model.training_info.get("slides", ()),
    )


def colours(adata: AnnData, library_key: str) -> np.ndarray:
    """Colour statistics of each patch, n_obs x 21."""
    batches = inputs.numbered_patches(inputs.slides(adata, library_key), size=224)
    return _in_order((rows, colour_statistics(patches)) for rows, patches in batches)


def _in_order(batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The values of all spots, from batches of rows and values."""
    rows, values = zip(*batches, strict=True)
    return np.concatenate(values)[np.argsort(np.concatenate(rows))]


def contestants(models: Spec | Sequence[str] | Mapping[str, Spec]) -> list[Contestant]:
    """The rows asked for, and the floors beside them."""
    if isinstance(models, str | HibioModel | FeatureEncoder) or callable(models):
        models = {_name(models): models}
    named: dict[str, Spec] = dict(models) if isinstance(models, Mapping) else {_name(spec): spec for spec in models}
    if not named:
        raise DataError("no models to compare; name a preset, a model's folder or an encoder, such as 'ResNet-10'.")
    rows = [_contestant(str(name), spec) for name, spec in named.items()]
    untrained = {row.name: row for row in map(_untrained, rows) if row is not None}
    rows += [*untrained.values(), Colours()]
    slugs = [slug(row.name) for row in rows]
    if len(set(slugs)) < len(slugs):
        raise DataError(f"two of {[row.name for row in rows]} would share their files; name them more differently.")
    return rows


def _name(spec: Any) -> str:
    if isinstance(spec, str):
        return Path(spec).name if Path(spec).is_dir() and spec not in shipped() else spec
    return str(getattr(spec, "name", getattr(spec, "__name__", "HiBio-ST")))


def _contestant(name: str, spec: Spec) -> Contestant:
    if isinstance(spec, str) and spec in presets():
        return Pretrained(name, {"image_encoder": spec})
    if isinstance(spec, Mapping):
        return Pretrained(name, dict(spec))
    if isinstance(spec, str | HibioModel | FeatureEncoder):
        return Fixed(name, spec)
    return Trained(name, spec)


def _untrained(row: Contestant) -> Untrained | None:
    """The floor of a model whose image tower starts from random weights."""
    if not isinstance(row, Pretrained):
        return None
    encoder = row.options.get("image_encoder", "ViT-B-16")
    if isinstance(encoder, ModelConfig):
        return Untrained(f"untrained {row.name}", encoder)
    return Untrained(f"untrained {encoder}", ModelConfig.preset(encoder)) if encoder in presets() else None


def slug(name: str) -> str:
    """A name as a file can have it."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()
