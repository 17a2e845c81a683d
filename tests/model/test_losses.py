import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hibiost.model.losses import info_nce, pathway_alignment, region_alignment


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


# -- level two: eq 11 ------------------------------------------------------------------------------------------------


def pathways_by_hand(queries, prototypes, overlap, among, scale):
    """Eq 11, spot by spot and pathway by pathway."""
    losses = []
    for i in range(len(queries)):
        chosen = [j for j in range(len(prototypes)) if among[i, j]]
        if not any(overlap[i, j] > 0 for j in chosen):
            continue
        cosine = [
            float(queries[i] @ prototypes[j] / (np.linalg.norm(queries[i]) * np.linalg.norm(prototypes[j])))
            for j in chosen
        ]
        predicted = np.exp([scale * c for c in cosine]) / np.sum(np.exp([scale * c for c in cosine]))
        wanted = np.exp([overlap[i, j] for j in chosen]) / np.sum(np.exp([overlap[i, j] for j in chosen]))
        divergence = sum(p * np.log(p / q) for p, q in zip(predicted, wanted, strict=True))
        losses.append(1 - np.exp(-divergence / 1.0))
    return np.mean(losses) if losses else 0.0


def pathway_batch(seed, n=6, n_pathways=9, dim=4):
    """Queries, prototypes, overlaps and candidates; the first spot has no positive, the last no negative."""
    rng = np.random.default_rng(seed)
    overlap = rng.uniform(0.2, 1, (n, n_pathways)) * (rng.random((n, n_pathways)) < 0.4)
    overlap[0] = 0
    overlap[-1, 0] = 0.5
    among = (overlap > 0) | (rng.random(n_pathways) < 0.5)
    among[-1] = overlap[-1] > 0
    parts = rng.normal(size=(n, dim)), 3 * rng.normal(size=(n_pathways, dim)), overlap, among
    return [torch.from_numpy(part) for part in parts]


@given(st.integers(0, 1000), st.floats(0.1, 20))
def test_pathway_loss_equals_brute_force(seed, scale):
    batch = pathway_batch(seed)
    expected = pathways_by_hand(*(part.numpy() for part in batch), scale)
    loss = pathway_alignment(*batch, torch.tensor(scale, dtype=torch.float64))
    assert loss.item() == pytest.approx(expected, abs=1e-9)


def test_pathway_gradients_against_finite_differences():
    queries, prototypes, overlap, among = pathway_batch(0)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    inputs = queries.requires_grad_(), prototypes.requires_grad_(), overlap, among, scale
    assert torch.autograd.gradcheck(pathway_alignment, inputs)


def test_pathway_loss_knows_no_order():
    queries, prototypes, overlap, among = pathway_batch(1)
    scale, generator = torch.tensor(5.0), torch.Generator().manual_seed(0)
    spots, pathways = torch.randperm(6, generator=generator), torch.randperm(9, generator=generator)
    shuffled = queries[spots], prototypes[pathways], overlap[spots][:, pathways], among[spots][:, pathways]
    first = pathway_alignment(queries, prototypes, overlap, among, scale)
    torch.testing.assert_close(pathway_alignment(*shuffled, scale), first)


def test_a_perfect_prediction_costs_nothing():
    """Cosines that equal the overlaps, at scale 1, are the target."""
    prototypes = torch.eye(3, dtype=torch.float64)
    overlap = torch.tensor([[0.8, 0.6, 0.0]], dtype=torch.float64)
    loss = pathway_alignment(overlap, prototypes, overlap, torch.ones(1, 3, dtype=torch.bool), torch.tensor(1.0))
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_a_batch_without_pathways_gives_no_gradient():
    queries, prototypes, overlap, among = pathway_batch(2)
    queries.requires_grad_()
    loss = pathway_alignment(queries, prototypes, torch.zeros_like(overlap), among, torch.tensor(5.0))
    loss.backward()
    assert loss.item() == 0
    assert not queries.grad.any()


# -- level three: eqs 12 and 13 --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=1, max_size=14), st.integers(0, 1000), st.floats(0.1, 20))
def test_region_loss_equals_brute_force(regions, seed, scale):
    image, gene = unit(seed, len(regions)), unit(seed + 1, len(regions))
    means = []
    for region in sorted(set(regions)):
        members = [i for i, r in enumerate(regions) if r == region]
        if len(members) > 1:
            means.append([sum(side[i] for i in members) / len(members) for side in (image, gene)])
    loss, n_regions = region_alignment(image, gene, torch.tensor(regions), torch.tensor(scale))
    assert n_regions == len(means)
    if len(means) < 2:
        assert loss.item() == 0
    else:
        sides = [torch.stack([side / side.norm() for side in column]) for column in zip(*means, strict=True)]
        assert loss.item() == pytest.approx(brute_force(*sides, scale), abs=1e-6)


def test_region_gradients_against_finite_differences():
    image, gene = unit(0, 7).requires_grad_(), unit(1, 7).requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    regions = torch.tensor([5, 2, 5, 2, 9, 2, 5])
    assert torch.autograd.gradcheck(lambda i, g, s: region_alignment(i, g, regions, s)[0], (image, gene, scale))
    region_alignment(image, gene, regions, scale)[0].backward()
    assert not image.grad[4].any(), "a region of one spot is left out"
    assert image.grad[0].any()


def test_region_loss_knows_no_order_and_no_names():
    image, gene, regions = unit(0, 9), unit(1, 9), torch.tensor([0, 0, 1, 1, 2, 2, 2, 0, 1])
    order, scale = torch.randperm(9, generator=torch.Generator().manual_seed(0)), torch.tensor(5.0)
    first = region_alignment(image, gene, regions, scale)
    second = region_alignment(image[order], gene[order], torch.tensor([7, 3, 5])[regions][order], scale)
    torch.testing.assert_close(first, second)


def test_one_region_gives_no_gradient():
    image, gene = unit(0, 4).requires_grad_(), unit(1, 4)
    loss, n_regions = region_alignment(image, gene, torch.zeros(4, dtype=torch.int64), torch.tensor(5.0))
    loss.backward()
    assert (loss.item(), n_regions) == (0, 1)
    assert not image.grad.any()
