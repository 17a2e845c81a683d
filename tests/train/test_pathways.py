import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from hibiost.train import PathwayAnchors
from hibiost.train.pathways import draw_candidates


@given(st.integers(0, 1000), st.integers(1, 30))
def test_negatives_come_first_from_pathways_that_are_positive_for_no_spot(seed, n_negatives):
    generator = torch.Generator().manual_seed(seed)
    positive = torch.rand(4, 20, generator=generator) < 0.15
    candidates, negative = draw_candidates(positive, n_negatives, generator)
    in_batch = set(torch.nonzero(positive.any(dim=0)).ravel().tolist())
    drawn = set(candidates[negative].tolist())
    assert candidates.tolist() == sorted(in_batch | drawn)
    assert len(drawn) == min(n_negatives, 20)
    assert len(drawn - in_batch) == min(n_negatives, 20 - len(in_batch))


def test_every_negative_has_its_turn():
    positive = torch.zeros(2, 12, dtype=torch.bool)
    positive[0, 3] = True
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_candidates(positive, 2, generator) for _ in range(200)]
    counts = np.bincount(np.concatenate([candidates[negative].numpy() for candidates, negative in drawn]), minlength=12)
    assert counts[3] == 0
    assert (np.delete(counts, 3) > 15).all()


@pytest.fixture
def anchors():
    overlap = sparse.csr_matrix(np.array([[0.5, 0, 0], [0, 0, 0], [0.25, 1, 0]], dtype=np.float32))
    members = sparse.csr_matrix(np.array([[1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 1, 1]], dtype=np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PathwayAnchors(overlap, members, embed_dim=5, width=2, n_negatives=4)


def test_prototypes_are_means_of_the_members(anchors):
    embeddings = torch.tensor([[2.0, 0.0], [4.0, 2.0], [1.0, 1.0], [0.0, 5.0]], requires_grad=True)
    prototypes = anchors.prototypes(embeddings, torch.arange(3))
    torch.testing.assert_close(anchors.prototypes(embeddings, torch.tensor([2, 0])), prototypes[[2, 0]])
    torch.testing.assert_close(prototypes, torch.tensor([[3.0, 1.0], [1.0, 1.0], [1.0, 2.0]]))
    prototypes.sum().backward()
    torch.testing.assert_close(embeddings.grad[:, 0], torch.tensor([1 / 2 + 1 / 3, 1 / 2, 1 + 1 / 3, 1 / 3]))


def test_a_step_uses_the_rows_of_its_spots(anchors):
    image = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    embeddings = torch.randn(4, 2, generator=torch.Generator().manual_seed(2), requires_grad=True)
    shares = {}
    for spots in ((0, 1), (1, 1), (2, 0)):
        loss, shares[spots] = anchors(image, np.array(spots), embeddings, torch.Generator().manual_seed(0))
        loss.backward()
        assert torch.isfinite(loss)
        assert (loss > 0) == (spots != (1, 1))
    assert shares == {(0, 1): 0.5, (1, 1): 0, (2, 0): 1}
    assert anchors.project.weight.grad.any()
    assert anchors.logit_scale.grad != 0
    assert embeddings.grad.any()


@pytest.mark.global_rng
def test_first_temperature():
    members = sparse.csr_matrix(np.eye(2, dtype=np.float32))
    for temperature in (1.0, 0.07):
        anchors = PathwayAnchors(members, members, embed_dim=2, width=2, n_negatives=1, temperature=temperature)
        assert anchors.logit_scale.exp().item() == pytest.approx(1 / temperature)
