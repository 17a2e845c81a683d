from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import hibiost as hb
from hibiost.errors import DataError, ImageError

MPP = 10.0
GLASS, PINK, PURPLE = (238, 236, 240), (225, 150, 195), (110, 70, 150)
PENS = {"black": (25, 25, 25), "green": (30, 120, 60), "blue": (40, 60, 160), "red": (190, 40, 40)}


def slide(glass=GLASS, *, noise=3.0) -> np.ndarray:
    """An empty slide of 4 x 5 mm."""
    rng = np.random.default_rng(0)
    return np.clip(np.array(glass) + rng.normal(0, noise, (400, 500, 3)), 0, 255).astype(np.uint8)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:400, :500]
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def section(pixels: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Purple nuclei in pink stroma."""
    rng = np.random.default_rng(1)
    texture = np.where(rng.random(where.shape)[..., None] < 0.3, PURPLE, PINK)
    return np.where(where[..., None], texture, pixels).astype(np.uint8)


def agreement(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


@pytest.mark.parametrize("glass", [GLASS, (255, 255, 255), (173, 177, 175), (236, 219, 235)])
def test_a_section_on_glass_of_any_colour(glass):
    truth = disc(250, 200, 120)
    mask = hb.images.tissue_mask(section(slide(glass), truth), mpp=MPP)
    assert mask.dtype == bool
    assert agreement(mask, truth) > 0.9


@pytest.mark.parametrize("glass", [GLASS, (255, 255, 255), (173, 177, 175), (236, 219, 235)])
def test_a_blank_slide_has_none(glass):
    pixels = slide(glass)
    pixels[100:110, 100:400] = np.array(glass) - 40  # dust, a fiducial
    assert not hb.images.tissue_mask(pixels, mpp=MPP).any()
    assert not hb.images.tissue_mask(np.zeros((30, 40, 3), np.uint8)).any()
    assert not hb.images.tissue_mask(np.full((30, 40, 3), 255, np.uint8)).any()


@pytest.mark.parametrize("pen", PENS)
def test_marker_is_no_tissue(pen):
    truth = disc(330, 200, 120)
    pixels = section(slide(), truth)
    pixels[60:340, 30:60] = PENS[pen]
    mask = hb.images.tissue_mask(pixels, mpp=MPP)
    assert not mask[:, :80].any()
    assert agreement(mask, truth) > 0.9


def test_black_border_is_no_tissue():
    truth = disc(250, 200, 120)
    pixels = section(slide(), truth)
    border = np.ones((400, 500), bool)
    border[40:-40, 40:-40] = False
    pixels[border] = np.random.default_rng(2).integers(0, 25, (int(border.sum()), 3))
    mask = hb.images.tissue_mask(pixels, mpp=MPP)
    assert not mask[border].any()
    assert agreement(mask, truth) > 0.9


def test_leaked_stain_is_no_tissue():
    """A pink halo that fades away from the section, as on her2st's slides."""
    truth = disc(200, 200, 90)
    rows, columns = np.mgrid[:400, :500]
    distance = np.hypot(columns - 200, rows - 200)
    halo = slide() - np.where(distance < 90, 0, 14 * np.exp(-(distance - 90) / 150))[..., None] * np.array([0, 1, 0.4])
    assert agreement(hb.images.tissue_mask(section(halo, truth), mpp=MPP), truth) > 0.9


def test_pale_tissue_stays_beside_dark():
    dark, pale = disc(150, 200, 80), disc(350, 200, 80)
    pixels = section(slide(), dark)
    pixels[pale] = np.clip(np.random.default_rng(3).normal((228, 185, 218), 4, (int(pale.sum()), 3)), 0, 255)
    assert agreement(hb.images.tissue_mask(pixels, mpp=MPP), dark | pale) > 0.9


def test_areas_are_physical():
    """Discs of 0.28 mm2 and a hole of 0.05 mm2, at two pixel sizes."""
    piece, crumb, hole = disc(200, 200, 100), disc(400, 200, 30), disc(200, 200, 12.6)
    pixels = section(slide(), (piece & ~hole) | crumb)
    usual = hb.images.tissue_mask(pixels, mpp=MPP)
    assert usual[200, 400]
    assert usual[200, 200]
    strict = hb.images.tissue_mask(pixels, mpp=MPP, min_area=0.5, max_hole=0)
    assert not strict[:, 350:].any()
    assert strict[200, 120]
    assert not strict[200, 200]
    assert not hb.images.tissue_mask(pixels, mpp=MPP / 2)[:, 350:].any()


def test_a_picture_of_less_than_the_least_piece():
    """0.05 mm2, all tissue."""
    pixels = section(slide(), np.ones((400, 500), bool))
    assert hb.images.tissue_mask(pixels, mpp=0.5).mean() > 0.9


def test_of_unknown_pixel_size_the_longer_side_is_10_mm():
    pixels = section(slide(), disc(250, 200, 120))
    np.testing.assert_array_equal(hb.images.tissue_mask(pixels), hb.images.tissue_mask(pixels, mpp=20.0))


@pytest.mark.parametrize(
    ("pixels", "options", "error", "words"),
    [
        (np.zeros((5, 5), np.uint8), {}, ImageError, r"shape \(5, 5\)"),
        (np.zeros((5, 5, 4), np.uint8), {}, ImageError, r"height x width x 3"),
        (np.zeros((5, 5, 3)), {}, ImageError, "float64"),
        (np.zeros((0, 5, 3), np.uint8), {}, ImageError, r"\(0, 5, 3\)"),
        (np.zeros((5, 5, 3), np.uint8), {"mpp": 0.0}, DataError, "mpp is 0.0"),
        (np.zeros((5, 5, 3), np.uint8), {"min_area": -1.0}, DataError, "min_area is -1.0"),
        (np.zeros((5, 5, 3), np.uint8), {"max_hole": np.inf}, DataError, "max_hole is inf"),
    ],
)
def test_refusals(pixels, options, error, words):
    with pytest.raises(error, match=words):
        hb.images.tissue_mask(pixels, **options)


@pytest.mark.data
@pytest.mark.parametrize(("name", "covered"), [("A1", 0.97), ("C3", 0.99), ("C6", 0.99)])
def test_it_covers_the_measured_spots(her2st_dir, name, covered):
    adata = hb.datasets.her2st(name)
    metadata, factors = (adata.uns["spatial"][name][part] for part in ("metadata", "scalefactors"))
    scale = factors["tissue_hires_scalef"]
    mask = hb.images.tissue_mask(adata.uns["spatial"][name]["images"]["hires"], mpp=metadata["mpp"] / scale)
    columns, rows = np.floor(adata.obsm["spatial"] * scale).astype(int).T
    assert mask[rows, columns].mean() > covered
    assert mask.mean() < 0.4


def brute_force(mask, spacing):
    """Share of tissue in each square, pixel by pixel."""
    height, width = mask.shape
    shares = np.zeros((int(np.ceil(height / spacing)), int(np.ceil(width / spacing))))
    for i, j in np.ndindex(shares.shape):
        for y, x in zip(*np.nonzero(mask), strict=True):
            high = min((i + 1) * spacing, y + 1) - max(i * spacing, y)
            wide = min((j + 1) * spacing, x + 1) - max(j * spacing, x)
            shares[i, j] += max(high, 0) * max(wide, 0)
    return shares / spacing**2


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    mask=hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7)),
    spacing=st.integers(3, 90).map(lambda tenths: tenths / 10),
    min_tissue=st.integers(0, 9).map(lambda tenths: tenths / 10 + 0.0123),
)
def test_grid_equals_brute_force(mask, spacing, min_tissue):
    places, share = hb.images.tissue_grid(mask, spacing=spacing, min_tissue=min_tissue)
    expected = brute_force(mask, spacing)
    rows, columns = np.nonzero(expected >= min_tissue)
    assert places.tolist() == np.column_stack([columns, rows]).tolist()
    np.testing.assert_allclose(share, expected[rows, columns], atol=1e-9)


def test_grid_takes_full_squares_but_no_empty_ones():
    mask = np.zeros((40, 60), bool)
    mask[:, 17:] = True
    places, share = hb.images.tissue_grid(mask, spacing=40 / 7, min_tissue=1.0)
    assert set(places[:, 0]) == set(range(3, 10))
    np.testing.assert_allclose(share, 1)
    assert len(hb.images.tissue_grid(mask, spacing=8.5, min_tissue=0.0)[0]) == 6 * 5


@pytest.mark.parametrize(
    ("options", "words"),
    [({"spacing": 0.0}, "spacing is 0.0"), ({"spacing": 1.0, "min_tissue": 1.5}, "min_tissue is 1.5")],
)
def test_grid_refusals(options, words):
    with pytest.raises(DataError, match=words):
        hb.images.tissue_grid(np.ones((3, 3), bool), **options)
