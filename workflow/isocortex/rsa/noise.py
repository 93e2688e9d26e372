"""Noise covariance of voxels, shrunk so that it can be inverted, and whitening by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import lapack

from isocortex.rsa.patterns import indicator, levels

SHRINKAGES = ("shrinkage_diag", "shrinkage_eye", "diag", "full")


def covariance(
    residuals: np.ndarray,
    *,
    method: str = "shrinkage_diag",
    degrees_of_freedom: int | None = None,
    present: np.ndarray | None = None,
) -> np.ndarray:
    """Estimate the covariance of voxels from residuals.

    Parameters
    ----------
    residuals
        Shape (..., n_samples, n_voxels); the mean of each voxel is taken off first.
    method
        ``shrinkage_diag`` shrinks correlations towards 0 (Schäfer & Strimmer 2005),
        ``shrinkage_eye`` the covariance towards a multiple of the identity (Ledoit & Wolf 2004),
        both by the amount that the data ask for; ``diag`` keeps variances only; ``full`` is the
        sample covariance.
    degrees_of_freedom
        Of the residuals; n_samples - 1 where not given. Pass the GLM's.
    present
        Which voxels are really there, shape (..., n_voxels), where a stack of neighbourhoods of
        several sizes is filled up with columns of zeros. Absent voxels have variance 1, covary
        with none and leave the others as they would be alone.

    Returns
    -------
    numpy.ndarray
        Shape (..., n_voxels, n_voxels), float64 (float32 of float32 residuals). The definitions
        are those of rsatoolbox ``cov_from_residuals``, the sums over samples written as matrix
        products.
    """
    if method not in SHRINKAGES:
        raise ValueError(f"method is {method!r}: choose one of {', '.join(SHRINKAGES)}")
    x = np.asarray(residuals)
    x = x - x.mean(axis=-2, keepdims=True)
    n, v = x.shape[-2:]
    there = np.ones(v, dtype=bool) if present is None else np.asarray(present, dtype=bool)
    dof = n - 1 if degrees_of_freedom is None else degrees_of_freedom
    diagonal = np.arange(v)
    variance = np.einsum("...ij,...ij->...j", x, x) / dof
    kept = np.where(there, variance, 1.0).astype(x.dtype)
    if method == "diag":
        sample = np.zeros((*x.shape[:-2], v, v), dtype=x.dtype)
        sample[..., diagonal, diagonal] = kept
        return sample
    sample = np.swapaxes(x, -1, -2) @ x / dof
    if method == "shrinkage_eye":
        held = np.broadcast_to(there.sum(axis=-1), variance.shape[:-1])
        whole = sample * (dof / n)
        target = np.einsum("...ii->...", whole) / held
        size = np.einsum("...ij,...ij->...", whole, whole)
        # The squared products of all pairs of voxels are the square of their sum of squares.
        fourth = np.square(np.square(x).sum(axis=-1)).sum(axis=-1)
        distance = size - held * target**2
        spread = np.minimum(distance, (fourth / n - size) / n)
        weight = np.where(distance > 0, spread / np.where(distance > 0, distance, 1), 1.0)
        sample = sample * (1 - weight)[..., None, None].astype(x.dtype)
        kept = np.where(
            there,
            (1 - weight)[..., None] * variance + (weight * target * n / dof)[..., None],
            1.0,
        )
    elif method == "shrinkage_diag":
        scaled = x / np.sqrt(np.where(there & (variance > 0), variance, 1))[..., None, :]
        each = np.square(scaled).sum(axis=-2)
        # Sums over all pairs of voxels but each with itself. Of products of sums over samples the
        # squares add up to those of the smaller of the two Gram matrices.
        flipped = np.swapaxes(scaled, -1, -2)
        gram = scaled @ flipped if n < v else flipped @ scaled
        total = np.einsum("...ij,...ij->...", gram, gram) - np.square(each).sum(axis=-1)
        total = np.maximum(total, 0) / (n - 1) ** 2
        scaled = np.square(scaled)
        fourth = (scaled.sum(axis=-1) ** 2 - np.square(scaled).sum(axis=-1)).sum(axis=-1)
        uncertainty = n / dof**2 * (fourth / (n - 1) - total)
        intensity = np.where(
            total > 0, np.clip(uncertainty / np.where(total > 0, total, 1), 0, 1), 1.0
        )
        sample = sample * (1 - intensity)[..., None, None].astype(x.dtype)
    sample[..., diagonal, diagonal] = kept
    return sample


def measurement_residuals(
    patterns: np.ndarray, labels: Sequence[str], runs: Sequence[str] | None = None
) -> tuple[np.ndarray, int]:
    """Return what is left of trials without the mean of their stimulus and of their run.

    Parameters
    ----------
    patterns
        Shape (n_trials, n_voxels).
    labels
        Stimulus of each trial.
    runs
        Run of each trial: offsets between runs, which no difference of patterns within a run
        holds, are not noise. Without them only stimulus means are taken off, as in rsatoolbox
        ``cov_from_unbalanced`` (and, of equal repeats, ``cov_from_measurements``).

    Returns
    -------
    residuals : numpy.ndarray
        float64, shape (n_trials, n_voxels), of the least-squares fit of both.
    degrees_of_freedom : int
        Trials less the means that were fitted; 0 where no stimulus is repeated.
    """
    patterns = np.asarray(patterns, dtype=np.float64)
    names, row, counts = levels(labels)
    sums = indicator(row, len(names))

    def without_stimuli(values: np.ndarray) -> np.ndarray:
        return values - (sums @ values / counts[:, None])[row]

    left = without_stimuli(patterns)
    freedom = len(patterns) - len(names)
    if runs is not None:
        # Fitting run means to what stimulus means leave is fitting both (Frisch & Waugh).
        run_names, run, _ = levels(runs)
        offsets = without_stimuli(np.eye(len(run_names))[run])
        weights, _, rank, _ = np.linalg.lstsq(offsets, left, rcond=None)
        left = left - offsets @ weights
        freedom -= int(rank)
    return left, freedom


def fold_freedom(labels: Sequence[str], runs: Sequence[str]) -> int:
    """Return the fewest degrees of freedom that noise has without one of the runs.

    Parameters
    ----------
    labels, runs
        Stimulus and run of each trial.
    """
    label, run = np.asarray(labels).astype(str), np.asarray(runs).astype(str)
    empty = np.zeros((len(label), 1))
    found = []
    for name in np.unique(run):
        rest = run != name
        if not rest.any():
            return 0
        found.append(measurement_residuals(empty[rest], label[rest], run[rest])[1])
    return min(found)


def whiten(patterns: np.ndarray, noise_covariance: np.ndarray) -> np.ndarray:
    """Return patterns in a space where the noise is white.

    Squared Euclidean distances there are squared Mahalanobis distances here; no matrix is
    inverted.

    Parameters
    ----------
    patterns
        Shape (..., n_voxels).
    noise_covariance
        Shape (n_voxels, n_voxels); or (..., n_voxels, n_voxels), one for each member of a stack
        of patterns (..., n_stimuli, n_voxels).

    Raises
    ------
    numpy.linalg.LinAlgError
        Where a covariance is not positive definite.
    """
    noise_covariance = np.asarray(noise_covariance)
    v = patterns.shape[-1]
    kind = np.result_type(patterns.dtype, noise_covariance.dtype, np.float32)
    stack = noise_covariance.shape[:-2]
    # (n_patterns, n_voxels) in C order is (n_voxels, n_patterns) in LAPACK's.
    flat = np.array(patterns, dtype=kind).reshape(*stack, -1, v)
    factorise, solve = (
        (lapack.spotrf, lapack.strtrs) if kind == np.float32 else (lapack.dpotrf, lapack.dtrtrs)
    )
    for at in np.ndindex(stack):
        sigma = noise_covariance[at].astype(kind)
        variance = np.diagonal(sigma)
        if np.count_nonzero(sigma) == np.count_nonzero(variance) and (variance > 0).all():
            flat[at] /= np.sqrt(variance)
            continue
        factor, failed = factorise(sigma, lower=1, clean=0)
        if failed:
            raise np.linalg.LinAlgError("the noise covariance is not positive definite")
        flat[at] = solve(factor, flat[at].T, lower=1, overwrite_b=1)[0].T
    return flat.reshape(patterns.shape)
