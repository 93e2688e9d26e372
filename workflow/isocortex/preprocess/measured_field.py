"""The field as measured by gradient echoes: from phases, or from a map in Hz, rad/s or tesla."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage.restoration import unwrap_phase
from threadpoolctl import threadpool_limits

from isocortex.errors import InputError
from isocortex.preprocess.registration import foreground, largest_piece
from isocortex.preprocess.spline_field import smooth_field

logger = logging.getLogger(__name__)

_HZ_PER_TESLA = 42.577478518e6
_TO_HZ = {"Hz": 1.0, "rad/s": 1 / (2 * np.pi), "T": _HZ_PER_TESLA}


def to_radians(phase: np.ndarray, name: str) -> np.ndarray:
    """A phase image in radians, whatever units a scanner wrote it in.

    Radians (-pi to pi, 0 to 2 pi) stay; integers of a known full circle (4096 from 0, 8192 from
    -4096) are scaled by it; anything else spans the full circle from its least to its greatest
    value, as noise in the air does.

    Parameters
    ----------
    phase
        (x, y, z).
    name
        Of the file, for messages.

    Raises
    ------
    InputError
        The image is constant.
    """
    phase = np.asarray(phase, np.float64)
    low, high = float(phase.min()), float(phase.max())
    span = high - low
    if not span > 0:
        raise InputError(f"{name} is constant, which no phase image is: restore it")
    slack = 1e-2
    if span <= 2 * np.pi + slack and low >= -np.pi - slack and high <= 2 * np.pi + slack:
        return phase
    whole = np.array_equal(phase, np.round(phase))
    if whole and low >= 0 and 2048 < high <= 4096:
        return (phase - 2048) * (2 * np.pi / 4096)
    if whole and -4096 <= low < -2048 and 2048 < high <= 4096:
        return phase * (2 * np.pi / 8192)
    logger.info("%s: values from %g to %g are taken as a full circle", name, low, high)
    return (phase - low) * (2 * np.pi / span) - np.pi


def field_of_phases(
    phases: Sequence[np.ndarray],
    magnitude: np.ndarray,
    size: Sequence[float],
    *,
    echo_times: tuple[float, float],
) -> np.ndarray:
    """The field from a phase difference, or from the phases of two echoes.

    Parameters
    ----------
    phases
        One difference (second echo less the first), or both phases, in radians, (x, y, z) each.
    magnitude
        (x, y, z).
    size
        Voxel size, mm.
    echo_times
        s, the shorter first.

    Returns
    -------
    numpy.ndarray
        Hz, float32 (x, y, z), as `regular_field` gives it.
    """
    difference = phases[0] if len(phases) == 1 else phases[1] - phases[0]
    wrapped = np.angle(np.exp(1j * difference))
    head = head_mask(magnitude)
    masked = np.ma.masked_array(wrapped, mask=~head)
    # its random start is given a seed; a single slice is unwrapped in its plane
    if wrapped.shape[2] == 1:
        unwrapped = np.asarray(unwrap_phase(masked[..., 0], rng=0))[..., None]
    else:
        unwrapped = np.asarray(unwrap_phase(masked, rng=0))
    field = unwrapped / (2 * np.pi * (echo_times[1] - echo_times[0]))
    return regular_field(field, magnitude, head, size)


def field_of_map(
    values: np.ndarray, units: str, magnitude: np.ndarray, size: Sequence[float]
) -> np.ndarray:
    """A measured field in Hz, as `regular_field` gives it.

    Parameters
    ----------
    values
        (x, y, z).
    units
        Hz, rad/s or T.
    magnitude
        (x, y, z).
    size
        Voxel size, mm.
    """
    field = np.asarray(values, np.float64) * _TO_HZ[units]
    return regular_field(field, magnitude, head_mask(magnitude), size)


def head_mask(magnitude: np.ndarray) -> np.ndarray:
    """Where a gradient echo has signal, boolean: the largest piece, without holes."""
    head = foreground(np.asarray(magnitude, np.float32))
    structure = ndimage.generate_binary_structure(3, 1)
    if min(magnitude.shape) < 5:
        structure[:, :, [0, 2]] = False
    opened = ndimage.binary_opening(head, structure)
    return largest_piece(opened if opened.sum() > 0.3 * head.sum() else head)


@threadpool_limits.wrap(limits=1, user_api="blas")
def regular_field(
    field: np.ndarray, magnitude: np.ndarray, head: np.ndarray, size: Sequence[float]
) -> np.ndarray:
    """A measured field without its offset, without outliers, smooth, and continued to all voxels.

    The field's most frequent value inside the head becomes 0: scanners tune to the bulk of the
    brain, and unwrapping leaves multiples of a full circle. Voxels that are far from the median
    around them count nothing; the others as their signal.

    Parameters
    ----------
    field
        Hz (x, y, z).
    magnitude
        (x, y, z).
    head
        Boolean (x, y, z): where the field was measured.
    size
        Voxel size, mm.

    Returns
    -------
    numpy.ndarray
        Hz, float32 (x, y, z).
    """
    offset = most_frequent(field[head])
    centred = np.where(head, field - offset, 0.0)
    local = _local_median(centred, head)
    away = np.abs(centred - local)
    spread = 1.4826 * np.median(away[head])
    trusted = head & (away <= np.maximum(5 * spread, 10.0))
    level = float(np.median(magnitude[head]))
    weights = np.where(trusted, np.minimum(magnitude / max(level, 1e-9), 1.5) ** 2, 0.0)
    logger.info(
        "fieldmap: %.0f Hz taken off, %d of %d voxels inside the head left out",
        offset,
        int((head & ~trusted).sum()),
        int(head.sum()),
    )
    return smooth_field(centred, weights, size)


def most_frequent(values: np.ndarray) -> float:
    """The mode of values: where their histogram, smoothed, is highest."""
    low, high = np.percentile(values, [1, 99])
    if not high > low:
        return float(np.median(values))
    counts, edges = np.histogram(values, bins=256, range=(low, high))
    smooth = ndimage.gaussian_filter1d(counts.astype(float), 6.0, mode="constant")
    best = int(smooth.argmax())
    return float((edges[best] + edges[best + 1]) / 2)


def _local_median(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Median over the 3 x 3 x 3 voxels around each that are in a mask."""
    padded = np.pad(np.where(mask, values, np.nan).astype(np.float32), 1, constant_values=np.nan)
    index = np.argwhere(mask)
    around = np.stack([padded[tuple((index + step).T)] for step in np.ndindex(3, 3, 3)])
    out = np.zeros(values.shape)
    out[mask] = np.nanmedian(around, axis=0)
    return out
