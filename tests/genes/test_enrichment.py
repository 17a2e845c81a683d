import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from hibiost.errors import DataError
from hibiost.genes import enrichment


def adjusted(pvals):
    """Benjamini and Hochberg by their definition: the lowest level at which each would be rejected."""
    order = sorted(range(len(pvals)), key=lambda i: pvals[i])
    out, lowest = [0.0] * len(pvals), 1.0
    for rank in range(len(pvals), 0, -1):
        lowest = min(lowest, pvals[order[rank - 1]] * len(pvals) / rank)
        out[order[rank - 1]] = lowest
    return out


@st.composite
def groups(draw):
    sizes = draw(st.lists(st.integers(1, 12), min_size=2, max_size=4))
    n_genes = draw(st.integers(1, 6))
    return [[draw(st.integers(0, size)) for _ in range(n_genes)] for size in sizes], sizes


@settings(max_examples=40)
@given(groups())
def test_equals_fisher_and_the_definitions(drawn):
    counts, sizes = drawn
    found = enrichment(counts, sizes)
    n, held = sum(sizes), np.sum(counts, axis=0)
    for g, size in enumerate(sizes):
        for i, count in enumerate(counts[g]):
            others, rest = held[i] - count, n - size
            table = [[count, size - count], [others, rest - others]]
            expected = fisher_exact(table, alternative="greater").pvalue
            assert found.pvals[g, i] == pytest.approx(expected, rel=1e-6)
            odds = (count + 0.5) * (rest - others + 0.5) / ((size - count + 0.5) * (others + 0.5))
            assert found.log_odds[g, i] == pytest.approx(np.log2(odds))
            assert (found.shares[g, i], found.shares_rest[g, i]) == (count / size, others / rest)
            draws = np.array([1.0] * held[i] + [0.0] * (n - held[i]))
            spread = np.sqrt(size * draws.var() * (n - size) / max(n - 1, 1))
            score = (count - size * draws.mean()) / spread if spread > 0 else 0
            assert found.scores[g, i] == pytest.approx(score, abs=1e-9)
        np.testing.assert_allclose(found.pvals_adj[g], adjusted(found.pvals[g]), rtol=1e-9)


@pytest.mark.parametrize(("counts", "sizes"), [([[1]], [2]), ([[1], [0]], [2, 0]), ([[3], [0]], [2, 2])])
def test_refused(counts, sizes):
    with pytest.raises(DataError, match="expected two groups or more"):
        enrichment(counts, sizes)
