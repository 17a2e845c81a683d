"""Memory and attention of training on a CPU."""

import platform
import resource
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hibiost.train.cpu import kept_memory, quick_attention

CPU = torch.device("cpu")


def share_of_new_pages() -> float:
    """Of the memory of a few tensors, when others as large have just been freed."""
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(1 << 20) for _ in range(16)]
        new = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        n_bytes = sum(each.nbytes for each in tensors)
        del tensors
    return new * resource.getpagesize() / n_bytes


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is kept by glibc")
def test_memory_is_kept_while_training_and_given_back_after():
    with kept_memory("cpu"):
        assert share_of_new_pages() < 0.5
        kept = resident()
    assert resident() < kept - (48 << 20)


def test_memory_is_left_alone_beside_a_gpu(monkeypatch):
    asked = []
    monkeypatch.setattr("hibiost.train.cpu.keep_memory", lambda keep=True: asked.append(keep))
    for accelerator, expected in (("cuda", []), ("cpu", [True, False])):
        with kept_memory(accelerator):
            pass
        assert asked == expected


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def gradients(*qkv: torch.Tensor, causal: bool) -> list[torch.Tensor]:
    qkv = [each.clone().requires_grad_() for each in qkv]
    out = F.scaled_dot_product_attention(*qkv, is_causal=causal)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), qkv)]


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_that_of_float64(causal):
    qkv = torch.randn(3, 2, 4, 33, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = gradients(*qkv.double(), causal=causal)
    with torch.autocast("cpu", torch.bfloat16), quick_attention(CPU):
        quick = gradients(*qkv, causal=causal)
    for true, found in zip(exact, quick, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found - true).norm() < 0.01 * true.norm()


def settings() -> tuple[bool, bool]:
    return torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()


def test_attention_changes_in_bfloat16_on_a_cpu_only():
    before = settings()
    with quick_attention(CPU):
        assert settings() == before
    with torch.autocast("cpu", torch.bfloat16):
        with quick_attention(torch.device("meta")):
            assert settings() == before
        with quick_attention(CPU):
            assert settings() == (False, True)
    assert settings() == before
