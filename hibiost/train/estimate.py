"""What training takes, told before it begins: parameters, steps, disk, memory, computing, time."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from ..errors import DataError
from ..genes import Vocabulary
from ..genes.vocabulary import METADATA
from ..model import HibioModel, ModelConfig
from ..model.losses import info_nce
from ..model.tokens import trimmed
from .data import share
from .engine import Engine
from .fit import as_asked
from .pathways import PathwayAnchors
from .recipe import Recipe
from .store import PatchStore, stored_side

WEIGHT, GRADIENT, MOMENTS, STEP = 4, 4, 8, 4
"""Bytes of a float32 weight, of its gradient and of AdamW's moments; and of the steps AdamW counts for each tensor."""


@dataclass(frozen=True)
class OnDevices:
    """What each of some devices takes that train one model together.

    Parameters
    ----------
    n_devices
        How many.
    n_spots
        Spots of a batch that a device takes, at most.
    at_a_time
        Spots that go through the towers at a time.
    twice
        Whether features are computed a second time in the backward pass, see :class:`Engine`.
    activations
        Bytes that a step takes beside weights, gradients and AdamW, at its peak.
    flops
        Floating point operations of a sample, forward and backward, a multiplication and an addition counted as two.
    """

    n_devices: int
    n_spots: int
    at_a_time: int
    twice: bool
    activations: int
    flops: float


@dataclass(frozen=True)
class Estimate:
    """What training takes.

    Parameters
    ----------
    parameters
        Number of weights by part: ``image tower``, ``gene tower``, ``gene tokens``, ``pathways``, ``logit scale``.
    n_trained
        How many of them are trained.
    batch_size, steps_per_epoch, n_steps, n_samples
        Spots of a step; steps of an epoch and in all; spots of all steps.
    patches
        Bytes of the decoded patches on disk.
    checkpoint
        Bytes of a checkpoint: weights and AdamW.
    state
        Bytes of weights, gradients and AdamW on each device.
    devices
        What depends on the number of devices.
    """

    parameters: dict[str, int]
    n_trained: int
    batch_size: int
    steps_per_epoch: int
    n_steps: int
    n_samples: int
    patches: int
    checkpoint: int
    state: int
    devices: tuple[OnDevices, ...]

    def hours(self, flops_per_second: float) -> list[float]:
        """Time by the number of devices, each of which reaches ``flops_per_second``; reading slides is extra."""
        return [
            self.n_samples * each.flops / (flops_per_second * min(each.n_devices, self.batch_size)) / 3600
            for each in self.devices
        ]


def estimate(
    config: ModelConfig,
    recipe: Recipe,
    *,
    n_spots: int,
    n_genes: int,
    n_words: int = 0,
    pathways: bool = True,
    engine: Engine = Engine(),  # noqa: B008 - frozen
    n_devices: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
) -> Estimate:
    """What a training takes, on GPUs; nothing is trained, and no memory of that size is needed.

    A model without storage goes through a step with PyTorch's own operations: parameters, FLOPs and the bytes that are
    alive at a time are counted, not guessed. Attention is that of a fused kernel, which keeps no matrix of
    probabilities; its FLOPs count whole, causal or not. A GPU needs about 1 GiB more for libraries and fragments.

    Parameters
    ----------
    config
        Architecture.
    recipe
        Training values; ``precision="auto"`` counts as bf16.
    n_spots
        Spots with a sentence.
    n_genes
        Genes of the vocabulary.
    n_words
        Metadata words of the vocabulary.
    pathways
        Whether level two is trained.
    engine
        ``micro_batch`` and ``gradient_checkpointing`` decide on memory and on what is computed twice.
    n_devices
        Numbers of devices.

    Returns
    -------
    The estimate; ``hours(flops_per_second)`` gives the time for a speed.

    Raises
    ------
    DataError
        Fewer than two spots.

    Examples
    --------
    >>> import hibiost as hb
    >>> config, recipe = hb.model.ModelConfig.preset("ResNet-10"), hb.train.Recipe(epochs=2, batch_size=64)
    >>> found = hb.train.estimate(config, recipe, n_spots=1000, n_genes=500, n_devices=[1, 4])
    >>> found.n_steps, found.parameters["gene tokens"], [each.n_spots for each in found.devices]
    (30, 64384, [64, 16])
    """
    if n_spots < 2:
        raise DataError(f"{n_spots} spots; contrastive training needs two or more.")
    batch = min(recipe.batch_size, n_spots)
    with torch.device("meta"):
        model = HibioModel(
            config, numbered_vocabulary(n_genes), metadata=[f"word:{number}" for number in range(n_words)]
        )
        head = _head(config, recipe) if pathways and recipe.lambda2 > 0 else torch.nn.Module()
    model.freeze_image(recipe.freeze_image)
    modules = {
        "image tower": model.visual,
        "gene tower": model.text,
        "gene tokens": model.text.token_embedding,
        "pathways": head,
    }
    counts = {name: _size(module.parameters()) for name, module in modules.items()}
    counts["gene tower"] -= counts["gene tokens"]
    trained = [each for each in (*model.parameters(), *head.parameters()) if each.requires_grad]
    steps, n_trained, total = n_spots // batch, _size(trained), sum(counts.values()) + 1
    return Estimate(
        parameters={**counts, "logit scale": 1},
        n_trained=n_trained,
        batch_size=batch,
        steps_per_epoch=steps,
        n_steps=steps * recipe.epochs,
        n_samples=steps * recipe.epochs * batch,
        patches=PatchStore(Path(), n_spots, stored_side(config.image_size, recipe.shift)).n_bytes,
        checkpoint=WEIGHT * total + MOMENTS * n_trained + STEP * len(trained),
        state=WEIGHT * total + (GRADIENT + MOMENTS) * n_trained + STEP * len(trained),
        devices=_on_devices(_Imagined(model, recipe, engine), batch, engine.micro_batch, n_devices),
    )


def numbered_vocabulary(n_genes: int) -> Vocabulary:
    """Genes that stand for those of data which are not read."""
    return Vocabulary(tuple(f"GENE{number}" for number in range(n_genes)), np.ones(n_genes, int), np.ones(n_genes, int))


def _head(config: ModelConfig, recipe: Recipe) -> PathwayAnchors:
    nothing = sparse.csr_matrix((1, 1))
    width = config.text_cfg["width"]
    return PathwayAnchors(nothing, nothing, embed_dim=config.embed_dim, width=width, n_negatives=recipe.n_negatives)


def _size(parameters: Any) -> int:
    return sum(each.numel() for each in parameters)


def _on_devices(
    imagined: _Imagined, batch: int, micro_batch: int | None, n_devices: Sequence[int]
) -> tuple[OnDevices, ...]:
    peaks: dict[tuple[int, bool], int] = {}
    flops: dict[bool, float] = {}
    found = []
    for n in n_devices:
        own = len(range(batch)[share(batch, 0, n)])
        at_a_time = min(own, micro_batch or own)
        way = at_a_time, at_a_time < own
        if way not in peaks:
            peaks[way] = imagined.peak(*way)
        if way[1] not in flops:
            flops[way[1]] = imagined.flops(twice=way[1])
        found.append(OnDevices(n, own, *way, peaks[way], flops[way[1]]))
    return tuple(found)


class _Imagined:
    """A model whose tensors have no storage, and what a step with it takes.

    Parameters
    ----------
    model
        On the device "meta", changed in place.
    recipe, engine
        As of :func:`estimate`.
    """

    def __init__(self, model: HibioModel, recipe: Recipe, engine: Engine) -> None:
        self._model, self._engine = model.train(), replace(engine, compile=False)
        self._bf16 = recipe.precision != "32"
        longest = np.zeros((1, model.config.context_length), dtype=np.int32)
        longest[:, : recipe.n_genes + 2 + len(METADATA)] = 1
        self._length = trimmed(longest).shape[1]
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self._mode:
            model.to_empty(device="cpu")
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_forget_gradient)

    def peak(self, n_spots: int, twice: bool) -> int:  # noqa: FBT001
        """Most bytes that are alive at a time in a step; gradients of weights count while they arrive."""
        with _Bytes() as watched:
            self._step(n_spots, twice=twice)
        return watched.peak

    def flops(self, *, twice: bool) -> float:
        """Of one sample."""
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            self._step(1, twice=twice)
        return float(counter.get_total_flops())

    def _step(self, n_spots: int, *, twice: bool) -> None:
        model, size = self._model, self._model.config.image_size
        with self._mode, as_asked(model, self._engine):
            pixels = torch.empty(n_spots, 3, size, size, dtype=torch.uint8)
            tokens = torch.ones(n_spots, self._length, dtype=torch.int32)

            def towers() -> tuple[torch.Tensor, torch.Tensor]:
                return model.encode_image(pixels), model.encode_genes(tokens)

            with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
                image, gene = checkpoint(towers, use_reentrant=False) if twice else towers()
            info_nce(image, gene, model.scale).backward()


def _forget_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


class _Bytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, as long as they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, int] = {}
        self._now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, found)
        return found

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place not in self._alive:
            self._alive[place] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._gone, place)

    def _gone(self, place: int) -> None:
        self._now -= self._alive.pop(place)
