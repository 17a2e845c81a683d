"""What a training step on a CPU gains by: its memory kept from step to step, and attention by matrix products."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Numbers of glibc's ``mallopt``."""


def keep_memory(keep: bool = True) -> None:  # noqa: FBT001, FBT002 - as of `freeze_image`
    """Have freed memory kept for the next tensors; or, with ``False``, given back to the system, as glibc does.

    The activations of a step are large: glibc maps each anew, and the system fills it with zeros page by page. Where
    the C library is another, nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_TRIM_THRESHOLD, -1 if keep else 64 << 20)
    libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(_MMAP_MAX, 0 if keep else 65_536)
    if not keep:
        libc.malloc_trim(0)


@contextmanager
def kept_memory(accelerator: str) -> Iterator[None]:
    """Memory kept, for the time of training on a CPU."""
    if accelerator != "cpu":
        yield
        return
    keep_memory()
    try:
        yield
    finally:
        keep_memory(False)  # noqa: FBT003


@contextmanager
def quick_attention(device: torch.device) -> Iterator[None]:
    """Attention in bfloat16 on a CPU by matrix products over the whole batch, where autocast is on.

    A layer of ViT-B/16 takes about half the time of PyTorch's fused kernel, forward and backward. The price: logits are
    rounded to bfloat16, as in any attention without a fused kernel, and each block keeps heads x length x length
    probabilities a spot.
    """
    if device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        yield
        return
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # noqa: FBT003 - of the CPU as well
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
