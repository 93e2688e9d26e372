"""Brain masks of BOLD references."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from isocortex.preprocess import registration


def epi_mask(mean: np.ndarray) -> np.ndarray:
    """Boolean mask of the bright, compact part of a BOLD mean: the brain, roughly."""
    # a slab of one or two slices cannot be opened across its thickness
    structure = ndimage.generate_binary_structure(3, 1)
    if min(mean.shape) < 5:
        structure[:, :, [0, 2]] = False
    smooth = ndimage.gaussian_filter(mean, 0.5)
    # in BOLD the brain outshines the scalp: Otsu on the plain scale, a little below
    top = np.percentile(smooth, 99)
    threshold = 0.8 * threshold_otsu(np.minimum(smooth, top))
    mask = ndimage.binary_fill_holes(smooth > threshold)
    opened = ndimage.binary_opening(mask, structure, iterations=2)
    if opened.sum() < 0.3 * mask.sum():
        opened = mask
    piece = registration.largest_piece(opened)
    return ndimage.binary_fill_holes(ndimage.binary_dilation(piece, structure) & mask)


def signal_mask(reference: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Where a BOLD reference has signal: above a fifth of the brain's median, holes filled.

    Parameters
    ----------
    reference
        Bias-corrected, (x, y, z).
    brain
        Boolean, the brain, roughly: gives the level.

    Returns
    -------
    numpy.ndarray
        Boolean, true beyond the brain as well; where it is false inside of the T1w's brain mask
        the run has dropout or ends.
    """
    level = float(np.median(reference[brain])) if brain.any() else 0.0
    return ndimage.binary_fill_holes(ndimage.gaussian_filter(reference, 0.5) > 0.2 * level)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Dice's coefficient of two boolean masks; 0 where both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 0.0


def crown(brain: np.ndarray, *, width: int = 2) -> np.ndarray:
    """Band of voxels around the brain, whose signal is motion's (Patriat et al. 2017).

    Parameters
    ----------
    brain
        Boolean mask.
    width
        Voxels; fMRIPrep dilates the mask by a ball of 2.

    Returns
    -------
    numpy.ndarray
        Boolean, of the mask's shape, apart from the mask.
    """
    steps = np.arange(-width, width + 1)
    ball = sum(np.square(g) for g in np.meshgrid(steps, steps, steps)) <= width**2
    return ndimage.binary_dilation(brain, ball) & ~brain
