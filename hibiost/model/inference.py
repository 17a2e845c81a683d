"""Models as they compute embeddings: batch norms folded, weights in some precision; the models themselves stay."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from ..errors import ModelError, check_choice
from ..settings import PRECISIONS
from .tokens import trimmed
from .towers import tower_features

if TYPE_CHECKING:
    from .features import FeatureEncoder
    from .hibio import HibioModel

T = TypeVar("T")


def resolved_precision(precision: str, device: torch.device) -> str:
    """``"float32"`` or ``"bfloat16"``; ``"auto"`` is bfloat16 where the device multiplies in it.

    Of CPUs these are x86 with AVX-512 BF16 or AMX, where torch can tell (``torch.cpu.get_capabilities``).

    Raises
    ------
    ModelError
        An unknown precision.
    """
    check_choice("precision", precision, PRECISIONS, ModelError)
    if precision != "auto":
        return precision
    return "bfloat16" if _multiplies_bfloat16(device) else "float32"


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return any(told.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


class Inference:
    """A model that embeds, batch by batch, in some precision; made by :meth:`HibioModel.inference`.

    The towers are copied when they are first needed, where they are changed at all: memory grows by half a tower in
    bfloat16, by a ResNet in float32. Weights that change afterwards are not seen. Values are float32, on the device
    of the model; there, they need not be computed yet: see :func:`arrays`.

    Parameters
    ----------
    model
        In evaluation mode.
    precision
        ``"float32"``, ``"bfloat16"`` or ``"auto"``.
    """

    def __init__(self, model: HibioModel, precision: str) -> None:
        self._model = model
        self.precision = resolved_precision(precision, model.device)
        self._dtype: torch.dtype = getattr(torch, self.precision)

    @cached_property
    def _visual(self) -> nn.Module:
        return prepared(self._model.visual, self._dtype)

    @cached_property
    def _text(self) -> nn.Module:
        return prepared(self._model.text, self._dtype)

    @torch.inference_mode()
    def images(self, patches: np.ndarray) -> Tensor:
        """l2-normalised embeddings, n x ``embed_dim``, of uint8 patches, n x size x size x 3."""
        return F.normalize(self._visual(self._pixels(patches)).float(), dim=-1)

    @torch.inference_mode()
    def features(self, patches: np.ndarray) -> Tensor:
        """Features before the projection, n x width, of patches as :meth:`images` takes."""
        return tower_features(self._visual, self._pixels(patches)).float()

    @torch.inference_mode()
    def genes(self, tokens: np.ndarray) -> Tensor:
        """l2-normalised embeddings, n x ``embed_dim``, of rows of token ids."""
        return F.normalize(self._text(on_device(trimmed(tokens), self._model.device)).float(), dim=-1)

    def _pixels(self, patches: np.ndarray) -> Tensor:
        pixels = on_device(patches, self._model.device).permute(0, 3, 1, 2)
        return self._model.normalise(pixels).to(self._dtype)


class EncoderInference:
    """As :class:`Inference`, of an encoder of another package; made by :meth:`FeatureEncoder.inference`."""

    def __init__(self, encoder: FeatureEncoder, precision: str) -> None:
        self._encoder = encoder
        self.precision = resolved_precision(precision, encoder.device) if encoder.castable else "float32"
        self._dtype: torch.dtype = getattr(torch, self.precision)

    @cached_property
    def _tower(self) -> nn.Module:
        return prepared(self._encoder.tower, self._dtype)

    @torch.inference_mode()
    def images(self, patches: np.ndarray) -> Tensor:
        """Features, n x ``embed_dim``, of uint8 patches, n x side x side x 3; not normalised."""
        pixels = self._encoder.prepare(on_device(patches, self._encoder.device).permute(0, 3, 1, 2))
        return self._tower(pixels.to(self._dtype)).float()

    features = images


def prepared(tower: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A tower in evaluation mode, for inference: a copy, or itself where nothing is to be changed."""
    folded = _folded(tower)
    if dtype is torch.float32:
        return folded
    return folded.to(dtype) if folded is not tower else _cast(tower, dtype)


def _cast(tower: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in another precision; its weights are copied in no other."""
    made: dict[int, Any] = {id(tensor): tensor.to(dtype) for tensor in tower.buffers() if tensor.is_floating_point()}
    for tensor in tower.parameters():
        made[id(tensor)] = nn.Parameter(tensor.detach().to(dtype), requires_grad=False)
    return copy.deepcopy(tower, made)


def _folded(tower: Any) -> Any:
    """A copy of a ResNet of timm, its batch norms folded into the convolutions; other towers as they are."""
    from timm.models import ResNet

    if isinstance(tower, ResNet):
        folded = copy.deepcopy(tower)
        folded.set_grad_checkpointing(enable=False)
        return fuse(folded, inplace=True).to(memory_format=torch.channels_last)
    if isinstance(getattr(tower, "trunk", None), ResNet):
        folded = copy.deepcopy(tower)
        folded.trunk = _folded(folded.trunk)
        return folded
    return tower


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """An array on the device; a GPU is not waited for."""
    tensor = torch.tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def arrays(batches: Iterable[tuple[T, Tensor]]) -> Iterator[tuple[T, np.ndarray]]:
    """The values of each batch as an array, beside its name; a GPU gets the next one before they are waited for."""
    waiting: tuple[T, Callable[[], np.ndarray]] | None = None
    for name, values in batches:
        last, waiting = waiting, (name, _coming(values))
        if last is not None:
            yield last[0], last[1]()
    if waiting is not None:
        yield waiting[0], waiting[1]()


def _coming(values: Tensor) -> Callable[[], np.ndarray]:
    """Begin to copy values from the device; what is returned waits for them."""
    if values.device.type != "cuda":
        return values.cpu().numpy
    copied, done = values.to("cpu", non_blocking=True), torch.cuda.Event()
    done.record()

    def arrived() -> np.ndarray:
        done.synchronize()
        return copied.numpy()

    return arrived
