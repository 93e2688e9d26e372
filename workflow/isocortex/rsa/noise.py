"""Noise covariance of voxels, shrunk so that it can be inverted, and whitening by it."""

from __future__ import annotations

import numpy as np
from scipy import linalg

SHRINKAGES = ("shrinkage_diag", "shrinkage_eye", "diag", "full")


def covariance(
    residuals: np.ndarray, *, method: str = "shrinkage_diag", degrees_of_freedom: int | None = None
) -> np.ndarray:
    """Estimate the covariance of voxels from residuals.

    Parameters
    ----------
    residuals
        Shape (n_samples, n_voxels); the mean of each voxel is taken off first.
    method
        ``shrinkage_diag`` shrinks correlations towards 0 (Schäfer & Strimmer 2005),
        ``shrinkage_eye`` the covariance towards a multiple of the identity (Ledoit & Wolf 2004),
        both by the amount that the data ask for; ``diag`` keeps variances only; ``full`` is the
        sample covariance.
    degrees_of_freedom
        Of the residuals; n_samples - 1 where not given. Pass the GLM's.

    Returns
    -------
    numpy.ndarray
        float64, shape (n_voxels, n_voxels). The definitions are those of rsatoolbox
        ``cov_from_residuals``, the sums over samples written as matrix products.
    """
    if method not in SHRINKAGES:
        raise ValueError(f"method is {method!r}: choose one of {', '.join(SHRINKAGES)}")
    x = np.asarray(residuals, dtype=np.float64)
    x = x - x.mean(axis=0)
    n, v = x.shape
    dof = n - 1 if degrees_of_freedom is None else degrees_of_freedom
    if method == "diag":
        return np.diag(np.einsum("ij,ij->j", x, x) / dof)
    products = x.T @ x
    if method == "full":
        return products / dof
    squares = np.square(x)
    squared_products = squares.T @ squares
    if method == "shrinkage_eye":
        sample = products / n
        spread = np.sum(squared_products / n - sample**2) / n
        target = np.trace(sample) / v
        distance = np.sum((sample - target * np.eye(v)) ** 2)
        spread = min(distance, spread)
        shrunk = (spread / distance) * target * np.eye(v) + (1 - spread / distance) * sample
        return shrunk * n / dof
    sample = products / dof
    variance = np.diag(sample)
    deviation = np.sqrt(variance)
    correlation = products / np.outer(deviation, deviation) / (n - 1)
    correlation_squared = squared_products / np.outer(variance, variance) / (n - 1)
    uncertainty = n / dof**2 * (correlation_squared - correlation**2)
    off = ~np.eye(v, dtype=bool)
    total = np.sum(correlation[off] ** 2)
    intensity = np.clip(np.sum(uncertainty[off]) / total, 0, 1) if total > 0 else 1.0
    return np.where(off, (1 - intensity) * sample, sample)


def whiten(patterns: np.ndarray, noise_covariance: np.ndarray) -> np.ndarray:
    """Return patterns in a space where the noise is white.

    Squared Euclidean distances there are squared Mahalanobis distances here; no matrix is
    inverted.

    Parameters
    ----------
    patterns
        Shape (..., n_voxels).
    noise_covariance
        Shape (n_voxels, n_voxels).

    Raises
    ------
    numpy.linalg.LinAlgError
        Where the covariance is not positive definite.
    """
    factor = linalg.cholesky(noise_covariance, lower=True, check_finite=False)
    flat = patterns.reshape(-1, patterns.shape[-1])
    solved = linalg.solve_triangular(factor, flat.T, lower=True, check_finite=False)
    return np.ascontiguousarray(solved.T).reshape(patterns.shape)
