"""Noise that voxels without a response share: principal components of their time series.

GLMdenoise (Kay et al. 2013, Frontiers in Neuroscience): time series of the noise pool, cleaned of
drift and confounds and scaled to unit length, are decomposed run by run.
"""

from __future__ import annotations

import numpy as np

BRIGHT = 0.1
"""Voxels of the noise pool have a mean above this share of the 99th percentile of all voxels."""


def find_noise_pool(
    brightness: np.ndarray, explained: np.ndarray, *, threshold: float = 0.0
) -> np.ndarray:
    """Return which voxels are bright and do not respond.

    Parameters
    ----------
    brightness : numpy.ndarray, shape (n_voxels,)
        Mean of the raw time series; NaN where a voxel is not usable.
    explained : numpy.ndarray, shape (n_models, n_voxels)
        Cross-validated share of variance that models of the stimuli explain.
    threshold
        A voxel of the pool is below it with every model.

    Returns
    -------
    numpy.ndarray of bool, shape (n_voxels,)
    """
    usable = np.isfinite(brightness) & np.isfinite(explained).all(axis=0)
    if not usable.any():
        return usable
    least = BRIGHT * np.percentile(brightness[usable], 99)
    with np.errstate(invalid="ignore"):
        return usable & (brightness > least) & (explained < threshold).all(axis=0)


def pool_covariance(cleaned: np.ndarray) -> np.ndarray:
    """Return the sum over voxels of the products of their time series, each of unit length.

    Parameters
    ----------
    cleaned : numpy.ndarray, shape (n_volumes, n_voxels)
        Drift and confounds taken out. Voxels without variance count as nothing.

    Returns
    -------
    numpy.ndarray, shape (n_volumes, n_volumes)
        Sums over blocks of voxels are that of all of them.
    """
    length = np.linalg.norm(cleaned, axis=0)
    scaled = cleaned / np.where(length > 0, length, np.inf)
    return scaled @ scaled.T


def principal_components(covariance: np.ndarray, n: int) -> np.ndarray:
    """Return the first principal components of time series.

    Parameters
    ----------
    covariance : numpy.ndarray, shape (n_volumes, n_volumes)
        From `pool_covariance`.
    n
        How many at most.

    Returns
    -------
    numpy.ndarray, shape (n_volumes, up to n)
        Orthonormal, the strongest first, as many as there are; the value furthest from 0 is
        positive.
    """
    values, vectors = np.linalg.eigh(covariance)
    n = min(n, int((values > 1e-10 * max(values[-1], 1e-300)).sum()))
    chosen = vectors[:, ::-1][:, :n]
    peak = chosen[np.abs(chosen).argmax(axis=0), np.arange(n)]
    return chosen * np.sign(peak)
