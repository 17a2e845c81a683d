import numpy as np
import pytest
import torch

from hibiost.train import Pairs
from hibiost.train.data import Batches, Draws, Shares, augment, centre, region_order, share


def test_pairs_may_stand_elsewhere_among_the_patches():
    patches = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    pairs = Pairs(patches, np.zeros((2, 3), dtype=np.int32), rows=np.array([4, 1]))
    assert len(pairs) == 2
    np.testing.assert_array_equal(pairs.patches_of(np.array([1, 0])), patches[[1, 4]])


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 7])
def test_shares_are_a_batch_in_order_and_differ_by_one_at_most(n_ranks):
    for n in range(20):
        parts = [list(range(n))[share(n, rank, n_ranks)] for rank in range(n_ranks)]
        assert [number for part in parts for number in part] == list(range(n))
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_a_share_has_its_own_patches_and_the_spots_of_all():
    patches = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    tokens = np.zeros((9, 24), dtype=np.int32)
    tokens[:, :5] = np.arange(1, 46).reshape(9, 5)
    tokens[7, 5:11] = 3
    spots = np.array([8, 2, 7, 0, 4])
    parts = [Shares(Pairs(patches, tokens), rank, 2)[spots] for rank in range(2)]
    for part, own in zip(parts, (spots[:3], spots[3:]), strict=True):
        np.testing.assert_array_equal(part.pixels.numpy(), patches[own])
        np.testing.assert_array_equal(part.spots, spots)
        np.testing.assert_array_equal(part.tokens.numpy(), tokens[own][:, : part.tokens.shape[1]])
    assert [part.tokens.shape[1] for part in parts] == [16, 8]


@pytest.mark.parametrize(("side", "size"), [(6, 4), (7, 4), (4, 4)])
def test_centre_leaves_equal_margins(side, size):
    patches = np.arange(2 * side * side * 3).reshape(2, side, side, 3)
    low = (side - size) // 2
    np.testing.assert_array_equal(centre(patches, size), patches[:, low : low + size, low : low + size])


def symmetries(patch):
    turned = [np.rot90(patch, k) for k in range(4)]
    return [*turned, *(np.fliplr(t) for t in turned)]


def drawn(n, margin, jitter, seed=0):
    return Draws.of(n, margin, jitter, torch.Generator().manual_seed(seed))


def test_augment_crops_and_turns_only():
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (64, 6, 6, 3), dtype=np.uint8)
    out = augment(torch.from_numpy(patches), 4, drawn(64, 2, 0.0))
    assert out.is_contiguous(memory_format=torch.channels_last)
    seen = set()
    for patch, result in zip(patches, out.permute(0, 2, 3, 1).numpy(), strict=True):
        candidates = {
            (y, x, turn): turned
            for y in range(3)
            for x in range(3)
            for turn, turned in enumerate(symmetries(patch[y : y + 4, x : x + 4]))
        }
        hits = [key for key, turned in candidates.items() if np.array_equal(turned, result)]
        assert len(hits) == 1
        seen.add(hits[0])
    assert {turn for *_, turn in seen} == set(range(8))
    assert {(y, x) for y, x, _ in seen} == {(y, x) for y in range(3) for x in range(3)}


def test_colour_jitter_stays_in_range_and_is_bounded():
    pixels = torch.full((200, 4, 4, 3), 100, dtype=torch.uint8)
    out = augment(pixels, 4, drawn(200, 0, 0.1))
    assert out.min() >= 0
    assert out.max() <= 255
    means = out.mean((2, 3))
    assert ((means - 100).abs() <= 11.4).all()
    assert means.std() > 2


def test_draws_follow_from_the_generator_alone_and_parts_are_of_the_whole():
    pixels = torch.randint(0, 256, (5, 6, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    first, again, other = (augment(pixels, 4, drawn(5, 2, 0.1, seed)) for seed in (0, 0, 1))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)
    part = drawn(5, 2, 0.1).part(slice(1, 3), torch.device("cpu"))
    torch.testing.assert_close(augment(pixels[1:3], 4, part), first[1:3], rtol=0, atol=0)


def test_batches_visit_every_spot_in_an_order_of_the_epoch():
    batches = Batches(20, 4, seed=3)
    first = np.stack(list(batches))
    batches.set_epoch(1)
    second = np.stack(list(batches))
    assert first.shape == (len(batches), 4) == (5, 4)
    assert sorted(first.ravel()) == sorted(second.ravel()) == list(range(20))
    assert not np.array_equal(first, second)
    again = Batches(20, 4, seed=3)
    again.first = 3
    np.testing.assert_array_equal(np.stack(list(again)), first[3:])
    np.testing.assert_array_equal(np.stack(list(again)), first)
    assert len(list(Batches(23, 4, seed=3))) == 5


def in_runs(values):
    """How often a value differs from the one before."""
    return int((np.diff(values) != 0).sum())


def test_region_order_visits_every_spot_and_brings_regions_together():
    rng = np.random.default_rng(0)
    slide = np.repeat([0, 1, 2], [70, 50, 40])
    regions = np.concatenate([rng.integers(0, 3, 70), 3 + rng.integers(0, 2, 50), 5 + rng.integers(0, 2, 40)])
    orders = [region_order(slide, regions, 16, torch.Generator().manual_seed(seed)).numpy() for seed in (0, 0, 1)]
    for order in orders:
        assert sorted(order) == list(range(160))
        assert in_runs(slide[order]) <= 5 + 4 + 3
        assert in_runs(regions[order]) <= 5 + 4 + 3 + 3 + 2 + 2
        for start in range(0, 160, 32):
            counts = np.bincount(regions[order[start : start + 32]])
            assert (counts > 1).sum() >= 2, "two regions at least can be told apart in each batch"
    assert np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])


def test_batches_take_another_order():
    batches = Batches(4, 2, seed=0)
    batches.order = lambda generator: torch.tensor([3, 1, 2, 0])
    assert np.stack(list(batches)).tolist() == [[3, 1], [2, 0]]
