"""Image towers from elsewhere: open_clip, timm, the Hugging Face hub, and what is known of pathology encoders."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ModelError, nearest
from ..genes import Vocabulary
from ..settings import logger
from .config import ModelConfig, presets
from .hibio import HibioModel
from .hub import cached, fetch
from .towers import TimmTower
from .weights import SUFFIXES, fitting, read_weights, sha256

_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
"""Names of files of weights on the hub, in order of preference."""
_CONFIGS = ("config.json", "open_clip_config.json")
_FORMS = "'timm:NAME', 'open_clip:NAME/TAG', 'hf-hub:ORGANISATION/NAME' and 'local-dir:FOLDER'"


@dataclass(frozen=True)
class ImageEncoder:
    """An image tower of another package: its architecture and preprocessing, and the file of its weights.

    Made by :func:`image_encoder`, for ``hibiost.tl.pretrain(image_encoder=...)``.

    Parameters
    ----------
    name
        What it is called.
    config
        Architecture and preprocessing; enough to build the model again without the weights.
    weights
        The file they start from.
    licence
        Licence of the weights, as far as it is known.
    source
        Where the weights come from.
    crop
        Share of the resized image's side that is left when its centre is cropped to the input size, as in evaluation
        with these weights; training takes whole patches.
    interpolation
        How images are resized then, ``"bicubic"`` or ``"bilinear"``.
    """

    name: str
    config: ModelConfig
    weights: Path
    licence: str
    source: str
    crop: float = 1.0
    interpolation: str = "bicubic"

    def start(self, model: HibioModel) -> dict[str, str]:
        """Lay the weights into the image tower of a model.

        Parameters
        ----------
        model
            A model of this encoder's ``config``, changed in place. The projection of a timm model is new, and stays as
            it is; that of a CLIP is taken with the tower.

        Returns
        -------
        ``record``, for ``training_info``.
        """
        tower = model.visual.trunk if isinstance(model.visual, TimmTower) else model.visual
        tower.load_state_dict(self._fitting(tower), strict=False)
        logger.info(
            "the image tower starts from %s, %s (%s); licence: %s",
            self.name,
            self.weights.name,
            self.source,
            self.licence,
        )
        return self.record

    @cached_property
    def record(self) -> dict[str, str]:
        """``name``, ``source``, ``weights`` (name of the file), ``sha256`` (of the file) and ``licence``."""
        return {
            "name": self.name,
            "source": self.source,
            "weights": self.weights.name,
            "sha256": sha256(self.weights),
            "licence": self.licence,
        }

    def check(self) -> None:
        """Refuse weights that cannot be read or are not those of ``config``; names and shapes alone are compared."""
        with torch.device("meta"):
            self._fitting(self.tower())

    def tower(self) -> nn.Module:
        """The image tower with random weights; of a timm model, without the projection."""
        visual = HibioModel(self.config, Vocabulary(("A",), np.ones(1, int), np.ones(1, int))).visual
        return visual.trunk if isinstance(visual, TimmTower) else visual

    def _fitting(self, tower: nn.Module) -> dict[str, Tensor]:
        return fitting(tower, read_weights(self.weights), name=self.name, source=str(self.weights))


@cache
def entries() -> dict[str, dict[str, Any]]:
    """Everything in ``encoders.json``."""
    table: dict[str, dict[str, Any]] = json.loads((resources.files(__package__) / "encoders.json").read_text())
    return table


def encoders() -> dict[str, dict[str, Any]]:
    """What is known of pathology encoders, by the name under which ``hibiost.tl.pretrain`` takes them.

    Returns
    -------
    Of each: ``hub`` (where on huggingface.co), ``licence``, ``gated`` (whether access has to be asked for),
    ``image_size`` (pixels), ``mpp`` (micrometres per pixel it was trained at; ``None`` where that varied or is not
    told).

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.model.encoders()["uni"]["licence"]
    'CC-BY-NC-ND-4.0'
    """
    told = ("hub", "licence", "gated", "image_size", "mpp")
    return {name: {key: entry[key] for key in told} for name, entry in entries().items()}


def image_encoder(
    name: str, weights: str | os.PathLike[str] | None = None, *, gene_tower: str = "ViT-B-16"
) -> ImageEncoder:
    """An image tower from open_clip, timm, the Hugging Face hub or local files, to start training from.

    Weights are taken from the cache of the hub where they are there, and else downloaded; with ``weights``, nothing is
    looked up online. Mean, standard deviation and size of the images are those that the encoder was trained with.

    Parameters
    ----------
    name
        One of

        - a pathology encoder that :func:`encoders` lists, such as ``"uni"``;
        - ``"timm:NAME"``, such as ``"timm:resnet50.a1_in1k"``;
        - ``"open_clip:NAME/TAG"``, such as ``"open_clip:ViT-B-16/laion2b_s34b_b88k"``; without a tag where ``weights``
          are given;
        - ``"hf-hub:ORGANISATION/NAME"``, a repository in timm's or open_clip's layout; ``@`` and a revision may follow;
        - ``"local-dir:FOLDER"``, a copy of such a repository.
    weights
        Local file (``.safetensors``; or ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` without pickled code), or a folder that
        holds it.
    gene_tower
        Preset that gives the gene-sentence tower and the recipe, see :func:`presets`. A timm model is projected to the
        preset's ``embed_dim``; a CLIP keeps its projection and its width.

    Returns
    -------
    The encoder, for ``hibiost.tl.pretrain(image_encoder=...)``.

    Raises
    ------
    ModelError
        An unknown name; a file that is absent.
    WeightsUnavailableError
        No network or no access, with the way to get the file.

    Examples
    --------
    >>> import hibiost as hb, torch
    >>> vocabulary = hb.genes.Vocabulary(("ERBB2", "MGP"), [1, 2], [3, 3])
    >>> source = hb.model.HibioModel(hb.model.ModelConfig.preset("ResNet-10"), vocabulary).visual.trunk
    >>> torch.save(source.state_dict(), "resnet10t.pt")
    >>> encoder = hb.model.image_encoder("timm:resnet10t", "resnet10t.pt", gene_tower="ResNet-10")
    >>> encoder.config.image_size, encoder.config.embed_dim
    (176, 128)
    >>> encoder.source
    'local file'
    """
    encoder = resolved(name, ModelConfig.preset(gene_tower), weights)
    if note := entries().get(encoder.name, {}).get("note"):
        logger.info("of %s, hibiost takes %s", encoder.name, note)
    encoder.check()
    return encoder


def as_encoder(given: str | ModelConfig | ImageEncoder) -> ImageEncoder | None:
    """The encoder from elsewhere that ``pretrain(image_encoder=...)`` was given; ``None`` for presets and the like."""
    if isinstance(given, ImageEncoder):
        return given
    if not isinstance(given, str) or given in presets():
        return None
    return image_encoder(given) if ":" in given or given.casefold() in entries() else None


def resolved(name: str, base: ModelConfig, weights: str | os.PathLike[str] | None) -> ImageEncoder:
    """The encoder of a name, its weights found but not read."""
    given = None if weights is None else _local(Path(weights))
    known = entries()
    if name.casefold() in known:
        return _from_table(name.casefold(), base, given)
    scheme, colon, rest = name.partition(":")
    scheme = scheme.replace("_", "-")
    if scheme == "hf-hub":
        of_hub = {entry["hub"].casefold(): key for key, entry in known.items()}
        if rest.casefold() in of_hub:
            return _from_table(of_hub[rest.casefold()], base, given)
    makers = {"timm": _from_timm, "open-clip": _from_open_clip, "hf-hub": _from_hub, "local-dir": _from_folder}
    if not colon or not rest or scheme not in makers:
        raise ModelError(
            f"no image encoder {name!r}; expected one of {sorted(known)}, or {_FORMS}.{nearest(name, known)}"
        )
    return makers[scheme](rest, base, given)


# -- the kinds of sources --------------------------------------------------------------------------------------------


def _from_table(name: str, base: ModelConfig, given: Path | None) -> ImageEncoder:
    entry = entries()[name]
    common = {"size": entry["image_size"], **{name: entry[name] for name in ("mpp", "mean", "std")}}
    if "timm" in entry:
        config = _timm_config(base, entry["timm"], entry["args"], **common)
    else:
        config = _open_clip_config(base, _architecture(entry["open_clip"]), **common)
    hub, file = entry["hub"], entry["file"]
    path = given or _fetch(hub, (str(Path(file).with_suffix(".safetensors")), "model.safetensors", file))
    source = "local file" if given else f"huggingface.co/{hub}"
    resize = {key: entry[key] for key in ("crop", "interpolation") if key in entry}
    return ImageEncoder(name, config, path, entry["licence"], source, **resize)


def _from_timm(name: str, base: ModelConfig, given: Path | None) -> ImageEncoder:
    import timm

    if not timm.is_model(name):
        known = timm.list_models() if "." not in name else timm.list_pretrained()
        raise ModelError(f"timm has no model {name!r}.{nearest(name, known)} timm.list_models() lists them.")
    try:
        found = timm.get_pretrained_cfg(name, allow_unregistered=given is not None)
    except RuntimeError as error:
        architecture = name.partition(".")[0]
        tags = timm.list_pretrained(f"{architecture}.*")
        raise ModelError(f"timm has no weights {name!r}; it has {tags}.{nearest(name, tags)}") from error
    cfg = found.to_dict() if found is not None else {}
    architecture = name.partition(".")[0]
    config = _timm_config(base, architecture, {}, **_preprocessing(cfg))
    if given is not None:
        return ImageEncoder(f"timm:{name}", config, given, _LOCAL_LICENCE, "local file", **_resizing(cfg))
    hub = cfg.get("hf_hub_id")
    if not hub:
        raise ModelError(f"timm has no weights for {name!r} on the hub; give a local file by weights=.")
    file = cfg.get("hf_hub_filename")
    path = _fetch(hub, (file,) if file else _FILES)
    licence = _licence(cfg.get("license"), hub)
    return ImageEncoder(f"timm:{name}", config, path, licence, f"huggingface.co/{hub}", **_resizing(cfg))


def _from_open_clip(name: str, base: ModelConfig, given: Path | None) -> ImageEncoder:
    import open_clip

    architecture, _, tag = name.partition("/")
    values = _architecture(architecture)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    cfg = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    if not cfg and (tag or given is None):
        raise ModelError(
            f"open_clip has no weights {name!r}; expected 'open_clip:{architecture}/TAG' with a tag of {tags}, or a "
            f"local file by weights=.{nearest(tag, tags)}"
        )
    config = _open_clip_config(
        base,
        {**values, "quick_gelu": values.get("quick_gelu", False) or cfg.get("quick_gelu", False)},
        mean=cfg.get("mean", open_clip.OPENAI_DATASET_MEAN),
        std=cfg.get("std", open_clip.OPENAI_DATASET_STD),
    )
    if given is not None:
        return ImageEncoder(f"open_clip:{name}", config, given, _LOCAL_LICENCE, "local file")
    hub, _, file = cfg["hf_hub"].rpartition("/")
    path = _fetch(hub, (str(Path(file).with_suffix(".safetensors")), file) if file else _FILES)
    return ImageEncoder(f"open_clip:{name}", config, path, _licence(None, hub), f"huggingface.co/{hub}")


def _from_hub(name: str, base: ModelConfig, given: Path | None) -> ImageEncoder:
    hub, _, revision = name.partition("@")
    found = {file: cached(hub, file, revision or None) for file in _CONFIGS}
    if not any(found.values()):
        found = {file: _fetch(hub, (file,), revision or None, optional=True) for file in _CONFIGS}
    there = {file: path for file, path in found.items() if path is not None}
    return _from_description(f"hf-hub:{name}", base, there, given or _fetch(hub, _FILES, revision or None), hub=hub)


def _from_folder(name: str, base: ModelConfig, given: Path | None) -> ImageEncoder:
    folder = Path(name)
    found = {file: folder / file for file in _CONFIGS if (folder / file).is_file()}
    return _from_description(f"local-dir:{folder.name}", base, found, given or _local(folder))


def _from_description(
    name: str, base: ModelConfig, files: Mapping[str, Path], weights: Path, *, hub: str | None = None
) -> ImageEncoder:
    """By the JSON that timm or open_clip write beside the weights."""
    contents: dict[str, dict[str, Any]] = {}
    for file, path in files.items():
        try:
            contents[file] = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ModelError(f"{path} is no description of a model ({error}); get it again.") from error
    ours, theirs = contents.get("config.json", {}), contents.get("open_clip_config.json", {})
    licence = _LOCAL_LICENCE if hub is None else _licence(None, hub)
    if "architecture" in ours:
        cfg = ours.get("pretrained_cfg", ours)
        resize = _resizing(cfg)
        args = ours.get("model_args", {})
        config = _timm_config(base, ours["architecture"], args, **_preprocessing(cfg))
        licence = cfg.get("license") or licence
    elif "model_cfg" in theirs:
        import open_clip

        cfg = theirs.get("preprocess_cfg", {})
        resize = {"interpolation": cfg.get("interpolation", "bicubic")}
        config = _open_clip_config(
            base,
            theirs["model_cfg"],
            mean=cfg.get("mean", open_clip.OPENAI_DATASET_MEAN),
            std=cfg.get("std", open_clip.OPENAI_DATASET_STD),
        )
    else:
        raise ModelError(
            f"{name} is not in the layout of timm (config.json with 'architecture') or of open_clip "
            f"(open_clip_config.json); it has {sorted(contents)}. For a CLIP of transformers, name its architecture: "
            "hb.model.image_encoder('open_clip:ViT-B-32-quickgelu', weights=...)."
        )
    source = "local folder" if hub is None else f"huggingface.co/{hub}"
    return ImageEncoder(name, config, weights, licence, source, **resize)


# -- configurations --------------------------------------------------------------------------------------------------

_LOCAL_LICENCE = "unknown; that of the local file"


def _licence(told: str | None, hub: str) -> str:
    return told or f"not told with the weights; see huggingface.co/{hub}"


def _preprocessing(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Size, mean and standard deviation of timm's ``pretrained_cfg``; what it leaves out is timm's default."""
    from timm.models import PretrainedCfg

    default = PretrainedCfg()
    return {
        "size": int(cfg.get("input_size", default.input_size)[-1]),
        "mean": cfg.get("mean", default.mean),
        "std": cfg.get("std", default.std),
    }


def _resizing(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Crop and interpolation of timm's ``pretrained_cfg``; what it leaves out is timm's default."""
    from timm.models import PretrainedCfg

    default = PretrainedCfg()
    return {
        "crop": float(cfg.get("crop_pct") or default.crop_pct),
        "interpolation": cfg.get("interpolation", default.interpolation),
    }


def _timm_config(
    base: ModelConfig,
    architecture: str,
    args: Mapping[str, Any],
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    mpp: float | None = None,
) -> ModelConfig:
    import timm

    if not timm.is_model(architecture):
        raise ModelError(
            f"timm has no architecture {architecture!r}; a newer timm may: pip install --upgrade timm."
            f"{nearest(architecture, timm.list_models())}"
        )
    kept = {key: value for key, value in args.items() if key not in ("num_classes", "in_chans")}
    if kept.get("global_pool") == "":
        del kept["global_pool"]  # all tokens, where one vector is wanted: the architecture's own pooling
    default = timm.get_pretrained_cfg(architecture)
    if default is not None and default.fixed_input_size:
        kept.setdefault("img_size", size)
    vision = {"timm_model_name": architecture, "timm_args": kept, "image_size": size}
    return replace(base, vision_cfg=vision, patch_size=size, mpp=mpp, mean=tuple(mean), std=tuple(std))


def _architecture(name: str) -> dict[str, Any]:
    import open_clip

    values: dict[str, Any] | None = open_clip.get_model_config(name) if ":" not in name else None
    if values is None:
        known = open_clip.list_models()
        raise ModelError(
            f"open_clip has no model {name!r}.{nearest(name, known)} open_clip.list_models() lists them; "
            "expected 'open_clip:NAME/TAG'."
        )
    return values


def _open_clip_config(
    base: ModelConfig,
    values: Mapping[str, Any],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size: int | None = None,
    mpp: float | None = None,
) -> ModelConfig:
    vision = {key: value for key, value in values["vision_cfg"].items() if value is not None}
    vision |= {"output_tokens": False} if "output_tokens" in vision else {}
    vision |= {"timm_model_pretrained": False} if "timm_model_name" in vision else {}
    size = size or int(vision.get("image_size", 224))
    vision["image_size"] = size
    return replace(
        base,
        embed_dim=int(values["embed_dim"]),
        vision_cfg=vision,
        quick_gelu=bool(values.get("quick_gelu", False)),
        patch_size=size,
        mpp=mpp,
        mean=tuple(mean),
        std=tuple(std),
    )


# -- files -----------------------------------------------------------------------------------------------------------


def _local(path: Path) -> Path:
    path = path.expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelError(f"no weights at {path}; expected a file or a folder.")
    names = [path / name for name in _FILES if (path / name).is_file()]
    names = names or sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len(names) == 1 or (names and names[0].name in _FILES):
        return names[0]
    raise ModelError(
        f"{path} holds {[file.name for file in names] or 'no weights'}; expected one of {list(_FILES)}, or a single "
        f"file that ends in {list(SUFFIXES)}. Name the file."
    )


def _fetch(hub: str, files: Sequence[str], revision: str | None = None, *, optional: bool = False) -> Any:
    """The first of some files that a repository has; ``None`` where it has none and they are ``optional``."""
    path = fetch(hub, files, revision, offline=_offline(hub, files))
    if path is None and not optional:
        raise ModelError(
            f"huggingface.co/{hub} has none of {list(files)}; download its weights and give them by weights=."
        )
    return path


def _offline(hub: str, files: Sequence[str]) -> str:
    entry = next((entry for entry in entries().values() if entry["hub"] == hub), None)
    download = f"download it, for example by 'hf download {hub}{' ' + files[-1] if entry else ''}'"
    ask = f"ask for access there, since it is gated, then {download}" if entry and entry["gated"] else download
    licence = f" Licence: {entry['licence']}." if entry else ""
    return f"open huggingface.co/{hub}, {ask}; bring the file here and give it by weights='path/to/the/file'.{licence}"
