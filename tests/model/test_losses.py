import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hibiost.model.losses import info_nce


def brute_force(image, gene, scale):
    """Eqs 9 and 10 term by term: each row against every row of the other side, both ways."""
    n = len(image)
    total = 0.0
    for i in range(n):
        to_genes = [scale * float(image[i] @ gene[j]) for j in range(n)]
        to_images = [scale * float(image[j] @ gene[i]) for j in range(n)]
        total += -np.log(np.exp(to_genes[i]) / np.sum(np.exp(to_genes)))
        total += -np.log(np.exp(to_images[i]) / np.sum(np.exp(to_images)))
    return total / (2 * n)


def unit(seed, n, dim=5):
    rows = np.random.default_rng(seed).normal(size=(n, dim))
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@given(st.integers(1, 9), st.integers(0, 1000), st.floats(0.1, 20))
def test_equals_brute_force(n, seed, scale):
    image, gene = unit(seed, n), unit(seed + 1, n)
    assert info_nce(image, gene, torch.tensor(scale)).item() == pytest.approx(brute_force(image, gene, scale), abs=1e-6)


def test_gradients_against_finite_differences():
    image, gene = unit(0, 4).requires_grad_(), unit(1, 4).requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(info_nce, (image, gene, scale))


def test_equal_embeddings_give_chance_and_order_does_not_matter():
    same = unit(0, 1).repeat(8, 1)
    assert info_nce(same, same, torch.tensor(10.0)).item() == pytest.approx(np.log(8))
    image, gene, order = unit(0, 8), unit(1, 8), torch.randperm(8, generator=torch.Generator().manual_seed(0))
    first, second = (info_nce(a, b, torch.tensor(5.0)) for a, b in ((image, gene), (image[order], gene[order])))
    torch.testing.assert_close(first, second)
