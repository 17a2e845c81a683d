from __future__ import annotations

import numpy as np

from ..errors import DataError, ImageError
from .source import WHITE

_USUAL_WIDTH = 10_000.0  # micrometres across a picture of unknown pixel size
_SMOOTHING, _NEIGHBOURHOOD = 15.0, 30.0  # micrometres
_WIDENED = 15.0  # micrometres by which averaging moves an edge outwards
_BLACK = 0.2  # of the background's brightness: beyond the slide, blacked out, or a marker
_COLOURLESS = 0.12  # a background that absorbs more green than blue by this is tissue
_OF_OTSU = 0.8  # pale tissue lies nearer to the glass than to the mean of all tissue
_FAINTEST, _SUREST = 0.07, 0.12  # optical densities between which the threshold is kept
_BLUE_INK = 1.25  # red absorbed per green; haematoxylin's is about 1


def tissue_mask(
    pixels: np.ndarray, *, mpp: float | None = None, min_area: float = 0.1, max_hole: float = 0.1
) -> np.ndarray:
    """Where an H&E thumbnail shows tissue.

    Haematoxylin and eosin absorb more green than blue; glass, dust, shadows, fiducials and black, green or red marker
    do not. The difference of the two optical densities, against the background's own colour, is averaged over 30
    micrometres; its standard deviation there is added, since stain that leaked onto the glass is smooth. The sum is
    split at 0.8 times Otsu's threshold, kept between 0.07 and 0.12: on a blank slide nothing is tissue, and pale
    tissue is not lost beside dark. Blue marker and black borders are left out. The 15 micrometres by which averaging
    widens a piece of tissue are taken off again.

    Parameters
    ----------
    pixels
        The thumbnail, height x width x 3, uint8, RGB.
    mpp
        Micrometres per pixel of the thumbnail. Where not given, its longer side is taken for 10 mm.
    min_area
        Smaller pieces of tissue are left out, unless they fill a tenth of the picture; square millimetres.
    max_hole
        Smaller holes are filled; square millimetres.

    Returns
    -------
    bool, height x width.

    Raises
    ------
    ImageError
        The pixels are no uint8 RGB.
    DataError
        ``mpp`` is not positive, or an area is negative.

    Examples
    --------
    >>> import numpy as np, hibiost as hb
    >>> slide = np.full((100, 100, 3), 240, np.uint8)
    >>> slide[20:60, 30:80] = 200, 120, 180
    >>> hb.images.tissue_mask(slide)[40, [5, 50]]
    array([False,  True])
    """
    from skimage.filters import gaussian, threshold_otsu
    from skimage.morphology import isotropic_erosion, remove_small_holes, remove_small_objects

    _check(pixels, mpp, min_area, max_hole)
    mpp = _USUAL_WIDTH / max(pixels.shape[:2]) if mpp is None else mpp
    black = _black(pixels)
    if black.all():
        return np.zeros(black.shape, dtype=bool)
    background = _background(pixels[~black])
    # glass in place of black and ink, so that their edges are not smeared into the slide
    hidden = black | _blue_ink(pixels, background)
    image = np.where(hidden[..., None], background, pixels.astype(np.float32))
    smooth = gaussian(image, _SMOOTHING / mpp, channel_axis=-1, preserve_range=True)
    density = _density(smooth, background)
    stain = np.where(hidden, 0.0, density[..., 1] - density[..., 2])
    mean, square = (gaussian(values, _NEIGHBOURHOOD / mpp) for values in (stain, stain**2))
    evidence = mean + np.sqrt(np.maximum(square - mean**2, 0))
    threshold = np.clip(_OF_OTSU * threshold_otsu(evidence[~hidden]), _FAINTEST, _SUREST)
    tissue = remove_small_holes(evidence > threshold, max_size=int(max_hole * 1e6 / mpp**2))
    tissue = isotropic_erosion(tissue, _WIDENED / mpp)
    return remove_small_objects(tissue, max_size=int(min(min_area * 1e6 / mpp**2, tissue.size / 10)))


def _check(pixels: np.ndarray, mpp: float | None, min_area: float, max_hole: float) -> None:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or pixels.size == 0:
        raise ImageError(
            f"the thumbnail is {pixels.dtype} of shape {pixels.shape}; expected uint8, height x width x 3."
        )
    if mpp is not None and not 0 < mpp < np.inf:
        raise DataError(f"mpp is {mpp}; expected micrometres per pixel of the thumbnail, a positive number.")
    if not (0 <= min_area < np.inf and 0 <= max_hole < np.inf):
        raise DataError(f"min_area is {min_area} and max_hole is {max_hole}; expected square millimetres, 0 or more.")


def _black(pixels: np.ndarray) -> np.ndarray:
    brightness = pixels.max(axis=-1)
    return brightness <= _BLACK * np.percentile(brightness, 99)


def _background(pixels: np.ndarray) -> np.ndarray:
    """Colour of the glass: the commonest of the brighter half; where that is stained, the brightest there is."""
    darkest = pixels.min(axis=-1)
    counts = np.bincount(darkest, minlength=WHITE + 1)
    counts[: int(np.median(darkest))] = 0
    commonest = int(np.convolve(counts, np.ones(5), mode="same").argmax())
    colour = np.median(pixels[np.abs(darkest.astype(np.int16) - commonest) <= 3], axis=0).astype(np.float32)
    if np.log((colour[2] + 1) / (colour[1] + 1)) < _COLOURLESS:
        return colour
    return np.full(3, np.percentile(pixels.max(axis=-1), 99.9), dtype=np.float32)


def _density(pixels: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Optical density of each channel against the background; 1 keeps black finite."""
    return np.log((background + 1) / (pixels.astype(np.float32) + 1))


def _blue_ink(pixels: np.ndarray, background: np.ndarray) -> np.ndarray:
    density = _density(pixels, background)
    return (density[..., 0] > 0.3) & (density[..., 0] > _BLUE_INK * density[..., 1])
