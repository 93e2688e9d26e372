"""Slice-timing correction: every slice read at the same moment of the volume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import spline_filter1d

_PADDING = 12  # volumes; the cubic spline forgets its end after about six


def correct_slice_timing(
    series: np.ndarray,
    *,
    slice_times: Sequence[float],
    repetition_time: float,
    reference_time: float,
    slice_axis: int = 2,
    n_dummy: int = 0,
) -> np.ndarray:
    """Shift every slice in time to one reference, by cubic B-spline interpolation.

    Parameters
    ----------
    series
        Shape (x, y, z, time).
    slice_times
        Seconds after the volume's start at which each slice was recorded.
    repetition_time
        Seconds.
    reference_time
        Seconds after the volume's start that the result refers to.
    slice_axis
        Array axis of the slices.
    n_dummy
        Volumes before the steady state: left as they are, and not mixed into others.

    Returns
    -------
    numpy.ndarray
        float32, the shape of ``series``. The series is continued beyond its ends by point
        reflection, so that a straight line stays one.
    """
    corrected = np.array(series, dtype=np.float32)
    steady = np.moveaxis(corrected, slice_axis, 0)[..., n_dummy:]
    n_volumes = steady.shape[-1]
    pad = min(_PADDING, n_volumes - 1)
    for k, time in enumerate(slice_times):
        shift = (reference_time - time) / repetition_time
        if abs(shift) < 1e-9 or n_volumes < 4:
            continue
        slab = steady[k].astype(np.float64)
        before = 2 * slab[..., :1] - slab[..., pad:0:-1]
        after = 2 * slab[..., -1:] - slab[..., -2 : -pad - 2 : -1]
        padded = np.concatenate([before, slab, after], axis=-1)
        coefficients = spline_filter1d(padded, order=3, axis=-1, mode="mirror")
        whole = int(np.floor(shift))
        f = shift - whole
        weights = (
            (1 - f) ** 3 / 6,
            (3 * f**3 - 6 * f**2 + 4) / 6,
            (-3 * f**3 + 3 * f**2 + 3 * f + 1) / 6,
            f**3 / 6,
        )
        start = pad + whole - 1
        steady[k] = sum(
            w * coefficients[..., start + n : start + n + n_volumes] for n, w in enumerate(weights)
        )
    return corrected
