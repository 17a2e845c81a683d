"""Weights of other packages: read from a file without running code, and laid into an image tower."""

from __future__ import annotations

import hashlib
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ModelError, check_choice

_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *_PICKLES)
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")
_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")
_PREFIXES = ("", "visual.trunk.", "visual.", "trunk.", "backbone.", "encoder.", "image_encoder.")
_SHOWN = 3


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, from safetensors or from a checkpoint of torch; nothing in the file is executed.

    Parameters
    ----------
    path
        ``.safetensors``; or ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` with a state dict, by itself or as an entry
        ``state_dict`` or ``model`` of a training checkpoint.

    Returns
    -------
    The tensors on the CPU; what wrappers such as DDP put before their names is taken off.

    Raises
    ------
    ModelError
        The file is damaged, of another format, holds pickled code or no tensors.
    """
    if path.suffix not in SUFFIXES:
        raise ModelError(f"{path} is no file of weights that can be read; expected one that ends in {list(SUFFIXES)}.")
    content = _safetensors(path) if path.suffix == ".safetensors" else _checkpoint(path)
    for key in _NESTED:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {_WRAPPERS.sub("", name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(f"{path} holds no tensors but {list(content)[:5]}; expected a state dict.")
    return tensors


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged or no safetensors file ({error}); get it again.") from error


def _checkpoint(path: Path) -> Mapping[str, Any]:
    from numpy._core.multiarray import scalar

    # numbers of numpy, such as a learning rate, are data: they stand in many training checkpoints
    numbers: list[Any] = [
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        *map(type, map(np.dtype, "?ilfd")),
    ]
    try:
        with torch.serialization.safe_globals(numbers), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*looks like a TorchScript archive")  # refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, ValueError) as error:
        raise ModelError(f"{path} was not loaded: {_why(path, error)}.") from error
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds a {type(content).__name__}; expected a state dict.")
    return content


def _why(path: Path, error: Exception) -> str:
    convert = (
        "If you trust its source, load it once with weights_only=False where nothing can be harmed, and keep its state "
        "dict with safetensors.torch.save_file"
    )
    if "TorchScript" in str(error):
        return f"it is a TorchScript archive, which is code. {convert}"
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AssertionError):
        foreign = []
    if foreign:
        return f"it holds pickled objects of Python ({', '.join(sorted(foreign))}), which can run code. {convert}"
    if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error):
        return f"it holds pickled code. {convert}"
    return f"it is damaged or no checkpoint of torch ({str(error).splitlines()[0] if str(error) else repr(error)})"


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(tensors: Mapping[str, Tensor], *more: str) -> str:
    """A short hash of weights, and of what else is to be told apart."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    for text in more:
        digest.update(text.encode())
    return digest.hexdigest()[:16]


PRECISIONS = ("float32", "float16")


def kept(tensors: Mapping[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Tensors as a file of some precision keeps them.

    In float16 are matrices and kernels, which are nearly all of the size. Vectors, such as biases and the statistics of
    batch norms, stay as they are, and so do integers and what is too large for float16.

    Raises
    ------
    ModelError
        An unknown precision.
    """
    check_choice("precision", precision, PRECISIONS, ModelError)
    if precision == "float32":
        return dict(tensors)
    return {name: _halved(tensor) for name, tensor in tensors.items()}


def _halved(tensor: Tensor) -> Tensor:
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    return half if half.isfinite().all() else tensor


def as_loaded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a file gives back: numbers in float32, whatever they were kept in; integers as they are."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def fitting(tower: nn.Module, tensors: Mapping[str, Tensor], *, name: str, source: str) -> dict[str, Tensor]:
    """The weights of a tower, under its own names: all of them, or a refusal.

    Weights of a whole CLIP, and those that timm or transformers name in their own way, are taken apart and renamed; a
    classifier is left out.

    Parameters
    ----------
    tower
        open_clip's visual tower, or a timm model; of it, names and shapes are read.
    tensors
        As :func:`read_weights` gives them.
    name, source
        What the tower and the file are called in a refusal.

    Returns
    -------
    A state dict of the tower; ``num_batches_tracked`` of batch norms, which old files lack, may be absent.

    Raises
    ------
    ModelError
        Weights are missing, left over or of another shape; they are named.
    """
    expected = tower.state_dict()
    nearest: tuple[int, str] = (-1, "")
    for candidate in _readings(tower, tensors):
        difference = _difference(expected, candidate)
        if not difference:
            return candidate
        nearest = max(nearest, (len(candidate.keys() & expected.keys()), difference))
    raise ModelError(
        f"the weights in {source} are not those of {name}: {nearest[1]}. Name the architecture that they belong to."
    )


def _readings(tower: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Ways to read a state dict: the likeliest part of it as it is, renamed by transformers' and by timm's rules."""
    expected = tower.state_dict()
    prefix = max(_PREFIXES, key=lambda p: (sum(p + key in tensors for key in expected), -len(p)))
    part = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    classifier = getattr(tower, "pretrained_cfg", {}).get("classifier") or ()
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))

    def headless(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: value for key, value in found.items() if key in expected or not key.startswith(heads)}

    yield headless(part)
    if any(key.startswith("vision_model.") for key in tensors):
        yield from_transformers(tensors)
    convert: Callable[..., Any] | None = getattr(sys.modules[type(tower).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return
    for found in (part, tensors):
        try:
            converted = convert(dict(found), tower)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError):
            continue
        yield headless(converted)


def _difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    missing = [key for key in expected if key not in found and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in found if key not in expected]
    shapes = [
        f"{key!r} is {tuple(found[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in found and found[key].shape != tensor.shape
    ]
    parts = [
        f"{len(keys)} {what}, such as {', '.join(map(shown, keys[:_SHOWN]))}"
        for keys, what, shown in (
            (missing, f"of {len(expected)} are missing", repr),
            (unexpected, "are unknown", repr),
            (shapes, "have another shape", str),
        )
        if keys
    ]
    return "; ".join(parts)


_TRANSFORMERS = (
    (r"vision_model\.embeddings\.class_embedding", "class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.", "conv1."),
    (r"vision_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"vision_model\.pre_layrnorm\.", "ln_pre."),
    (r"vision_model\.post_layernorm\.", "ln_post."),
    (r"vision_model\.encoder\.layers\.(\d+)\.layer_norm(\d)\.", r"transformer.resblocks.\1.ln_\2."),
    (r"vision_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"vision_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"transformer.resblocks.\1.attn.out_proj."),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.", r"transformer.resblocks.\1.attn.in_proj_"),
)


def from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The visual tower of transformers' ``CLIPModel`` under open_clip's names.

    transformers keeps query, key and value apart, where open_clip has one matrix, and projects with a linear layer,
    where open_clip multiplies by its transpose.
    """
    found = {}
    for key, value in tensors.items():
        for pattern, name in _TRANSFORMERS:
            renamed, n = re.subn(rf"^{pattern}", name, key)
            if n and ".q_proj." in key:
                rows = [key.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
                if all(row in tensors for row in rows):
                    found[renamed] = torch.cat([tensors[row] for row in rows])
            elif n:
                found[renamed] = value
    if "visual_projection.weight" in tensors:
        found["proj"] = tensors["visual_projection.weight"].T
    return found
