from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hibiost import _products
from hibiost.spatial import cosines, projected, tiles
from hibiost.spatial.projected import ENDS, Projected
from hibiost.spatial.tiles import inverse_lengths, tiled


def all_cosines(features):
    """Of all pairs, in double precision; 0 with a row of zeros."""
    features = features.astype(np.float64)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = np.divide(features, lengths, out=np.zeros_like(features), where=lengths > 0)
    return unit @ unit.T


def range_by_hand(spots):
    """The least and the greatest cosine, pair by pair, as a search computes one."""
    features, inverse, n = spots.features, spots.inverse, len(spots.features)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    found = [_products.dot(features[i], features[j]) * inverse[i] * inverse[j] for i, j in pairs]
    return min(found), max(found)


@st.composite
def rows(draw, most=40):
    """Rows about a few centres in a few dimensions, some of zeros, some the same, some far shorter than others."""
    n, dims = draw(st.integers(2, most)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0, 1e-7, 1e-3, 0.1, 1.0]))
    features = rng.normal(size=(4, dims))[rng.integers(0, draw(st.integers(1, 4)), n)]
    features += spread * rng.normal(size=(n, dims))
    features *= rng.choice([0, 1e-3, 1.0, 1.0, 50.0], (n, 1))
    features[rng.integers(0, n, n // 4)] = features[0]
    return features.astype(draw(st.sampled_from([np.float32, np.float64])))


@given(rows(), st.sampled_from([1, 2, 8]), st.data())
@settings(max_examples=300)
def test_those_left_out_have_no_cosine_beyond_the_range(features, axes, data):
    n, inverse = len(features), inverse_lengths(features)
    order = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(n)
    start, stop = sorted(data.draw(st.sets(st.integers(0, n), min_size=2, max_size=2)))
    exact = all_cosines(features)[np.ix_(order, order)]
    low, high = (data.draw(st.sampled_from([*exact.ravel(), -np.inf, np.inf, 0.3])) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projected, "AXES", axes)
        rivals = Projected.of(features, inverse)[order].rivals(start, stop, low, high)
    left = np.setdiff1d(np.arange(stop, n), rivals)
    assert stop + len(left) + len(rivals) == n
    assert (exact[start:stop, left] >= low - 1e-12).all()
    assert (exact[start:stop, left] <= high + 1e-12).all()


@pytest.mark.parametrize(
    ("row", "inside", "beyond"),
    [((0.8, -0.6), (0.2799, np.inf), (0.2801, np.inf)), ((0, 1), (-np.inf, 0.6001), (-np.inf, 0.5999))],
    ids=["least", "greatest"],
)
def test_bounds_are_reached_by_what_the_axis_leaves(monkeypatch, row, inside, beyond):
    monkeypatch.setattr(projected, "AXES", 1)
    features = np.array([(1, 0), (0.8, 0.6), row, *[(1, 0), (-1, 0)] * 1_000])
    found = Projected.of(features, np.ones(len(features)))[np.arange(3)]
    assert found.rivals(0, 2, *inside).tolist() == []
    assert found.rivals(0, 2, *beyond).tolist() == [2]


def test_places_are_products_with_orthogonal_axes_and_the_length_of_the_rest():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(3_001, 3)) @ rng.normal(size=(3, 20))
    features = np.vstack([plane, rng.normal(size=(1, 20)), np.zeros((1, 20))])
    found = Projected.of(features, inverse_lengths(features))
    places, slack = found.places.astype(np.float64), found.slack
    assert slack < 2e-5
    np.testing.assert_allclose((places**2).sum(axis=0), [*np.ones(3_002), 0], rtol=0, atol=slack)
    assert (places[-1, :3_001] < slack).all()
    assert 0.1 < places[-1, 3_001] < 1
    np.testing.assert_allclose(places[:-1, :500].T @ places[:-1, :500], all_cosines(plane[:500]), rtol=0, atol=slack)


def test_ends_hold_the_most_opposite_pair_of_a_plane():
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 2, 500)
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ np.linalg.qr(rng.normal(size=(5, 5)))[0][:2]
    ends = Projected.of(features, inverse_lengths(features)).ends()
    assert {angles.argmin(), angles.argmax()} <= set(ends.tolist())
    assert len(ends) <= ENDS


@given(rows(), st.integers(1, 6), st.integers(1, 3), st.sampled_from(["bfloat16", "float32"]), st.booleans())
@example(np.ones((9, 3)), 2, 1, "bfloat16", True)
@example(np.zeros((9, 3)), 2, 1, "bfloat16", True)
@settings(max_examples=200)
def test_range_is_that_of_all_pairs_to_the_last_bit(features, tile, group, rough, few):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_products, "_rough_dtype", lambda device: getattr(torch, rough))
        patch.setattr(tiles, "TILE", tile)
        patch.setattr(tiles, "GROUP", group)
        patch.setattr(cosines, "_FEW", 1.0 if few else 0.25)
        spots = tiled(np.random.default_rng(0).uniform(size=(len(features), 2)), features)
        found = cosines.cosine_range(spots)
    one = cosines.ONE
    assert np.clip(found, -one, one).tolist() == np.clip(range_by_hand(spots), -one, one).tolist()


@pytest.mark.parametrize(("noise", "at_least", "at_most"), [(0.01, 0, 0.2), (10, 1, 1.3)])
def test_of_embeddings_that_spread_along_few_axes_few_pairs_are_compared(monkeypatch, noise, at_least, at_most):
    rng = np.random.default_rng(0)
    n = 4_000
    features = rng.normal(size=(n, 3)) @ rng.normal(size=(3, 64)) + noise * rng.normal(size=(n, 64))
    monkeypatch.setattr(tiles, "TILE", 64)
    compared, extremes = [], cosines._extremes

    def counted(bits, *rest):
        compared.append(bits.size)
        return extremes(bits, *rest)

    monkeypatch.setattr(cosines, "_extremes", counted)
    found = cosines.cosine_range(tiled(rng.uniform(size=(n, 2)), features))
    assert at_least <= sum(compared) / (n * n / 2) <= at_most
    expected = all_cosines(features)[np.triu_indices(n, 1)]
    assert found == pytest.approx((expected.min(), expected.max()), abs=1e-12)
