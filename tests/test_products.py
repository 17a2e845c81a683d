import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hibiost import _products
from hibiost._products import RoughRows, dot, reaches, widen


@st.composite
def tables(draw):
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    n, m, dim = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(1, 70))
    spread, offset = draw(st.sampled_from([1e-3, 1.0, 50.0])), draw(st.sampled_from([0.0, 1.0, -30.0]))
    make = [rng.normal(offset, spread, (rows, dim)).astype(draw(st.sampled_from(["f4", "f8"]))) for rows in (n, m)]
    return make[0], make[1], rng.uniform(0.1, 3, n), rng.permutation(n)[: draw(st.integers(1, n))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@given(table=tables())
@settings(max_examples=100)
def test_rough_products_lie_within_their_error(dtype, table):
    queries, bank, scale, order = table
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_products, "_rough_dtype", lambda device: dtype)
        centre = bank.mean(axis=0, dtype=float)
        some, all_ = RoughRows.of(queries, centre, scale=scale, order=order), RoughRows.of(bank, centre)
    scaled = queries[order].astype(float) * scale[order, None]
    rounded = torch.from_numpy(scaled - centre).float().to(dtype)
    assert torch.equal(some.rows, rounded)
    lost = scaled - centre - rounded.double().numpy()
    np.testing.assert_allclose(some.lost, np.linalg.norm(lost, axis=1), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(some.length, np.linalg.norm(rounded.double().numpy(), axis=1))
    bits = some.times(all_, some.room(len(some), len(all_) + 1))
    wide = np.empty(bits.shape, dtype=np.uint32)
    for row, out in zip(bits, wide, strict=True):
        widen(row, out)
    found = some.along[:, None] + wide.view(np.float32).astype(float) + all_.along - centre @ centre
    exact = scaled @ bank.astype(float).T
    assert (np.abs(found - exact) <= some.error(all_)[:, None] + 1e-12 * np.abs(exact).max()).all()
    np.testing.assert_allclose([[dot(a, b) for b in bank.astype(float)] for a in scaled], exact, rtol=1e-10, atol=1e-9)


def test_parts_are_those_of_the_whole():
    rows = np.random.default_rng(0).normal(size=(9, 5))
    whole = RoughRows.of(rows, np.zeros(5))
    assert len(whole) == 9
    for part in (slice(2, 6), np.array([7, 0, 7])):
        expected, found = RoughRows.of(rows[part], np.zeros(5)), whole[part]
        assert torch.equal(found.rows, expected.rows)
        for name in ("along", "length", "lost"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_a_multiplication_that_rounds_more_has_a_larger_error(monkeypatch):
    monkeypatch.setattr(_products, "_rough_dtype", lambda device: torch.float32)
    rows = RoughRows.of(np.eye(3, 8), np.zeros(8))
    error = rows.error(rows)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert (rows.error(rows) > 100 * error).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@given(
    values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=70),
    low=st.floats(width=32, allow_nan=False),
)
@settings(max_examples=200)
def test_what_reaches_a_limit_is_told_by_bits(dtype, values, low):
    rough = torch.tensor(values).to(dtype)
    bits = rough.view(torch.int16 if dtype == torch.bfloat16 else torch.int32).numpy()
    floor = torch.tensor([low]).view(torch.int32) >> (32 - 8 * rough.itemsize) << (32 - 8 * rough.itemsize)
    expected = low <= 0 or (rough.float() >= floor.view(torch.float32)).any()
    assert reaches(bits, np.float32(low)) == expected
    assert expected or not (rough.float() >= low).any()
