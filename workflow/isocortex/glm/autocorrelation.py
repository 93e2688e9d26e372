"""Autoregressive noise of first order, voxel by voxel, by nilearn's conventions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.signal import lfilter

BINS = 100
"""Coefficients are rounded towards 0 to multiples of its inverse, as nilearn does."""

_CACHE_BYTES = 128 << 20


def estimate_ar1(residual: np.ndarray) -> np.ndarray:
    """Estimate the autoregressive coefficient of each voxel.

    Parameters
    ----------
    residual : numpy.ndarray, shape (n_volumes, n_voxels)
        Residuals of ordinary least squares.

    Returns
    -------
    numpy.ndarray, shape (n_voxels,)
        By Yule-Walker, rounded towards 0 to hundredths; NaN where a residual is.

    Notes
    -----
    That of `nilearn.glm.first_level.run_glm`: autocovariances are divided by the number of their
    terms. Residuals have no mean, as every design has a constant.
    """
    power = np.einsum("tv,tv->v", residual, residual)
    lagged = np.einsum("tv,tv->v", residual[1:], residual[:-1])
    return yule_walker(power, lagged, n_volumes=residual.shape[0])


def yule_walker(power: np.ndarray, lagged: np.ndarray, *, n_volumes: int) -> np.ndarray:
    """Return rounded coefficients from sums of squares and of products of neighbouring volumes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = lagged / power * (n_volumes / (n_volumes - 1))
    return np.trunc(rho * BINS) / BINS + 0.0


def whiten(values: np.ndarray, rho: float) -> np.ndarray:
    """Return values (n_volumes, …) less ``rho`` times the volume before; the first stays."""
    white = np.array(values, dtype=np.float64)
    white[1:] -= rho * values[:-1]
    return white


def colour(values: np.ndarray, rho: float) -> np.ndarray:
    """Undo `whiten`."""
    return lfilter([1.0], [1.0, -rho], values, axis=0)


class PerCoefficient:
    """What is made once for each coefficient and kept while there is room.

    Parameters
    ----------
    make
        Takes a coefficient.
    n_bytes
        Size of what it makes.
    """

    def __init__(self, make: Callable[[float], object], *, n_bytes: int) -> None:
        self._make, self._most = make, max(4, _CACHE_BYTES // max(n_bytes, 1))
        self._kept: dict[float, object] = {}

    def __call__(self, rho: float):
        """Return what belongs to a coefficient."""
        found = self._kept.get(rho)
        if found is None:
            found = self._make(rho)
            # Two threads may both make it, to the same bits
            if len(self._kept) < self._most:
                self._kept[rho] = found
        return found
