import numpy as np
import pytest
import torch

from hibiost.train import Pairs, store_patches
from hibiost.train.data import EpochSampler, augment, centre, region_order


def test_store_patches_keeps_order_and_is_read_only(tmp_path):
    patches = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    stored = store_patches(iter([patches[:3], patches[3:]]), 7, 4, tmp_path / "p")
    np.testing.assert_array_equal(stored, patches)
    with pytest.raises(ValueError, match="read-only"):
        stored[0] = 0


def test_pairs(tmp_path):
    patches = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    pixels, tokens, spot = Pairs(patches, np.arange(6, dtype=np.int32).reshape(3, 2))[1]
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), patches[1])
    assert (tokens.tolist(), spot) == ([2, 3], 1)


@pytest.mark.parametrize(("side", "size"), [(6, 4), (7, 4), (4, 4)])
def test_centre_leaves_equal_margins(side, size):
    patches = np.arange(2 * side * side * 3).reshape(2, side, side, 3)
    low = (side - size) // 2
    np.testing.assert_array_equal(centre(patches, size), patches[:, low : low + size, low : low + size])


def symmetries(patch):
    turned = [np.rot90(patch, k) for k in range(4)]
    return [*turned, *(np.fliplr(t) for t in turned)]


def test_augment_crops_and_turns_only():
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (64, 6, 6, 3), dtype=np.uint8)
    pixels = torch.from_numpy(patches).permute(0, 3, 1, 2)
    out = augment(pixels, 4, 0.0, torch.Generator().manual_seed(0)).permute(0, 2, 3, 1).numpy()
    seen = set()
    for patch, result in zip(patches, out, strict=True):
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
    pixels = torch.full((200, 3, 4, 4), 100, dtype=torch.uint8)
    out = augment(pixels, 4, 0.1, torch.Generator().manual_seed(0))
    assert out.min() >= 0
    assert out.max() <= 255
    means = out.mean((2, 3))
    assert ((means - 100).abs() <= 11.4).all()
    assert means.std() > 2


def test_draws_follow_from_the_generator_alone():
    pixels = torch.randint(0, 256, (5, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    first, again, other = (augment(pixels, 4, 0.1, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)


def test_sampler_visits_every_spot_in_an_order_of_the_epoch():
    sampler = EpochSampler(20, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert list(EpochSampler(20, seed=3)) == first


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


def test_sampler_takes_another_order():
    sampler = EpochSampler(4, seed=0)
    sampler.order = lambda generator: torch.tensor([3, 1, 2, 0])
    assert list(sampler) == [3, 1, 2, 0]
