from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibiost.errors import DataError
from hibiost.spatial import majority_vote


def vote_by_hand(labels, xy, k):
    """Eq 15, spot by spot."""
    smoothed = []
    for i, own in enumerate(labels):
        others = [j for j in range(len(xy)) if j != i]
        others.sort(key=lambda j: (((xy[j] - xy[i]) ** 2).sum(), xy[j][1], xy[j][0], j))
        votes = Counter(labels[j] for j in others[:k])
        winners = [c for c, n in votes.items() if n == max(votes.values())]
        smoothed.append(own if own in winners or not winners else min(winners))
    return np.array(smoothed)


@st.composite
def tissue(draw):
    n = draw(st.integers(1, 40))
    cells = draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=n, max_size=n, unique=True))
    labels = draw(st.lists(st.sampled_from("cab"), min_size=n, max_size=n))
    return np.array(labels), np.array(cells, dtype=float)


@given(tissue(), st.integers(1, 12))
def test_equals_eq_15_on_grids_with_ties(data, k):
    labels, xy = data
    np.testing.assert_array_equal(majority_vote(labels, xy, k=k), vote_by_hand(labels, xy, k))


@pytest.mark.parametrize("k", [1, 5, 8, 13, 30])
def test_full_grid_does_not_depend_on_the_order_of_spots(k):
    rng = np.random.default_rng(0)
    xy = np.stack(np.meshgrid(np.arange(20), np.arange(15)), -1).reshape(-1, 2) * 291
    labels = rng.integers(0, 4, len(xy))
    smoothed = majority_vote(labels, xy, k=k)
    np.testing.assert_array_equal(smoothed, vote_by_hand(labels, xy, k))
    order = rng.permutation(len(xy))
    np.testing.assert_array_equal(majority_vote(labels[order], xy[order], k=k), smoothed[order])


def test_rules_of_a_tie():
    xy = np.array([[0, 0], [1, 0], [0, 1], [-1, 0], [0, -1]])
    assert majority_vote([1, 1, 1, 0, 0], xy, k=4)[0] == 1
    assert majority_vote([0, 2, 2, 1, 1], xy, k=4)[0] == 1
    assert majority_vote([7, 2, 2, 2, 7], xy, k=4)[0] == 2


def test_few_spots_and_label_types():
    assert majority_vote(["b"], [[3, 4]]).tolist() == ["b"]
    assert majority_vote(np.array(["b", "a", "a"]), [[0, 0], [9, 9], [1, 0]]).tolist() == ["a", "a", "a"]
    assert majority_vote(np.array([1, 0], dtype=np.int8), [[0, 0], [0, 0]]).dtype == np.int8


def test_many_coincident_spots():
    labels = np.array([0] * 30 + [1] * 3)
    xy = np.r_[np.zeros((30, 2)), np.full((3, 2), 5.0)]
    assert majority_vote(labels, xy, k=2).tolist() == labels.tolist()


def test_refused():
    with pytest.raises(DataError, match="k is 0"):
        majority_vote([0], [[0, 0]], k=0)
    with pytest.raises(DataError, match=r"\(2,\) and xy of shape \(1, 2\)"):
        majority_vote([0, 1], [[0, 0]])
    with pytest.raises(DataError, match="1 NaN or infinite"):
        majority_vote([0, 1], [[0, 0], [1, np.nan]])
