"""Trained models by name: those that ship, those in folders and those on the hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import ModelError, WeightsUnavailableError, nearest
from ..genes import Vocabulary
from . import cards, hub
from .config import ModelConfig
from .files import read, tensors_of
from .hibio import FILES, FORMAT_VERSION, HibioModel
from .weights import as_loaded

SHIPPED = Path(__file__).with_name("shipped")
"""A folder of each model that ships, laid out as ``hibiost.model.Predictor.save`` writes it."""
_WEIGHTS, _CONFIG = FILES
_MODEL = "model"


def shipped() -> dict[str, Path]:
    """Folders of the models that ship, by name."""
    found = sorted(SHIPPED.iterdir()) if SHIPPED.is_dir() else []
    return {folder.name: folder for folder in found if (folder / _MODEL / _CONFIG).is_file()}


def located(name: str | os.PathLike[str]) -> Path:
    """The folder of a model that ships, by its name, or else the path itself."""
    return shipped().get(name, Path(name)) if isinstance(name, str) else Path(name)


def list_models() -> dict[str, dict[str, Any]]:
    """What is known of the trained models that ship, by the name under which :func:`load` takes them.

    Returns
    -------
    Of each: ``n_bytes`` (of the weights), ``embed_dim``, ``n_genes`` (of the vocabulary), ``patch_size`` (pixels),
    ``mpp`` (micrometres per pixel at which patches are cut; ``None`` for those of the slide), ``licence``,
    ``trained_on`` and ``fingerprint`` (the first digits of a SHA-256 of the weights). :func:`card` tells more.

    Examples
    --------
    >>> import hibiost as hb
    >>> isinstance(hb.model.list(), dict)
    True
    """
    return {name: _summary(*_described(name)) for name in shipped()}


def _summary(folder: Path, about: Any) -> dict[str, Any]:
    config = ModelConfig.from_dict(about["config"])
    return {
        "n_bytes": (folder / _WEIGHTS).stat().st_size,
        "embed_dim": config.embed_dim,
        "n_genes": len(about["vocabulary"]["genes"]),
        "patch_size": config.patch_size,
        "mpp": config.mpp,
        "licence": about.get("card", {}).get("licence", "not told"),
        "trained_on": cards.trained_on(about["training"]),
        "fingerprint": about["fingerprint"],
    }


def load(model: str | os.PathLike[str] | HibioModel, *, device: str = "cpu") -> HibioModel:
    """Load a trained model: one that ships, one from a folder or one from the Hugging Face hub.

    Only safetensors and JSON are read: loading never executes code. Weights that were kept in float16 are float32 in
    the model.

    Parameters
    ----------
    model
        One of

        - the name of a model that ships, see :func:`list`; a folder of that name is meant by ``"./NAME"``, or by a
          :class:`pathlib.Path`;
        - a folder written by ``model.save``;
        - ``"hf-hub:ORGANISATION/NAME"``, a repository written by ``model.push_to_hub``; ``@`` and a branch, tag or
          commit may follow. It is taken from the cache of the hub where it is there; else ``config.json`` and
          ``model.safetensors`` are downloaded, and no other file;
        - a model, which is passed through.
    device
        Where to put the weights, such as ``"cpu"`` or ``"cuda"``.

    Returns
    -------
    The model, in evaluation mode.

    Raises
    ------
    ModelError
        The folder or a file is absent, damaged, of an unknown format version, or weights and configuration disagree.
    WeightsUnavailableError
        A repository of the hub that cannot be reached, with the way to get it.

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.model.load("no-such-folder")
    Traceback (most recent call last):
    hibiost.errors.ModelError: no model at no-such-folder: ...
    """
    if isinstance(model, HibioModel):
        return model.to(device).eval()
    folder, about = _described(model)
    loaded = HibioModel(
        ModelConfig.from_dict(about["config"]),
        Vocabulary.from_dict(about["vocabulary"]),
        metadata=about["metadata"],
        training=about["training"],
    )
    loaded.card_info = about.get("card", {})
    weights = as_loaded(tensors_of(folder / _WEIGHTS))
    expected = loaded.state_dict()
    wrong = sorted(set(weights) ^ set(expected)) or [
        name for name, tensor in weights.items() if tensor.shape != expected[name].shape
    ]
    if wrong:
        raise ModelError(
            f"weights and configuration in {folder} do not belong together: {len(wrong)} tensors differ, "
            f"such as {wrong[0]!r}."
        )
    loaded.load_state_dict(weights)
    if loaded.fingerprint() != about["fingerprint"]:
        raise ModelError(
            f"the weights in {folder} are not those its {_CONFIG} describes; copy or save the model again."
        )
    return loaded.to(device).eval()


def card(model: str | os.PathLike[str] | HibioModel) -> str:
    """The card of a model: what it is, what it was trained on and how, what it is for and where it fails.

    Made from what is stored with the model; what is not told there is left out, or called not told.

    Parameters
    ----------
    model
        What :func:`load` takes. Of a repository of the hub, only ``config.json`` is read.

    Returns
    -------
    Markdown in the format of the hub, with a YAML block before it.

    Raises
    ------
    ModelError
        No such model, or one of an unknown format version.
    WeightsUnavailableError
        A repository of the hub that cannot be reached.

    Examples
    --------
    >>> import hibiost as hb
    >>> vocabulary = hb.genes.Vocabulary(("ERBB2", "MGP"), [1, 2], [3, 3])
    >>> model = hb.model.HibioModel(hb.model.ModelConfig.preset("ResNet-10"), vocabulary)
    >>> print(hb.model.card(model))
    ---
    library_name: hibiost
    ...
    # A HiBio-ST model
    ...
    """
    if isinstance(model, HibioModel):
        return cards.markdown(model.description())
    return cards.markdown(_described(model, (_CONFIG,))[1], str(model))


def ours(name: str) -> bool:
    """Whether a name is that of a model of ours, as far as is known here; not that of an encoder of others."""
    if not name.startswith(hub.PREFIX):
        return name in shipped() or Path(name).is_dir()
    try:
        repository, revision = _repository(name)
        config = hub.fetch(repository, (_CONFIG,), revision, offline="")
    except WeightsUnavailableError:
        return False
    return config is not None and _is_ours(config)


def absolute(model: str | os.PathLike[str]) -> str:
    """What names a model from any folder: a path becomes absolute, a name stays."""
    named = isinstance(model, str) and (model in shipped() or model.startswith(hub.PREFIX))
    return str(model) if named else os.path.abspath(model)


def _described(model: str | os.PathLike[str], files: tuple[str, ...] = FILES) -> tuple[Path, Any]:
    """The folder of a model, with these files in it, and what its ``config.json`` tells."""
    if isinstance(model, str) and model.startswith(hub.PREFIX):
        return _downloaded(model, files)
    folder, here = located(model), shipped()
    folder = folder / _MODEL if folder in here.values() else folder
    return folder, _read(folder, files, f"hb.model.list() tells what ships.{nearest(str(model), here)}")


def _downloaded(name: str, files: tuple[str, ...]) -> tuple[Path, Any]:
    """Files of one commit; the configuration is read before the weights are asked for."""
    repository, revision = _repository(name)
    config = _file(repository, _CONFIG, revision)
    if not _is_ours(config):
        raise ModelError(
            f"{name} holds no model of hibiost: its {_CONFIG} has no 'format_version'. An encoder of images in timm's "
            f"or open_clip's layout is for hb.model.feature_encoder({name!r})."
        )
    about = _read(config.parent, (_CONFIG,), "hb.model.list() tells what ships.")
    commit = config.parent.name
    for file in files[:-1]:
        _file(repository, file, commit)
    return config.parent, about


def _read(folder: Path, files: tuple[str, ...], mend: str) -> Any:
    mend = f"hb.tl.pretrain trains a model, {mend}"
    about = read(folder, files, version=FORMAT_VERSION, kind="model", mend=mend)
    for entry in ("config", "vocabulary", "metadata", "training", "fingerprint"):
        if entry not in about:
            raise ModelError(f"{folder / _CONFIG} lacks the entry {entry!r}; save the model again.")
    return about


def _repository(name: str) -> tuple[str, str | None]:
    repository, _, revision = name.removeprefix(hub.PREFIX).partition("@")
    return repository, revision or None


def _file(repository: str, file: str, revision: str | None) -> Path:
    at = "" if revision is None else f" --revision {revision}"
    offline = f"'hf download {repository} {' '.join(FILES)}{at} --local-dir FOLDER'; bring the folder here and load it."
    path = hub.fetch(repository, (file,), revision, offline=offline)
    if path is None:
        raise ModelError(
            f"huggingface.co/{repository} has no {file}: it holds no model of hibiost, which is safetensors and JSON; "
            "model.push_to_hub writes one."
        )
    return path


def _is_ours(config: Path) -> bool:
    try:
        return "format_version" in json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, TypeError):
        return False
