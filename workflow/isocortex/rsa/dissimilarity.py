"""Dissimilarities between the patterns of stimuli, each a matrix product.

Definitions and scaling are those of rsatoolbox 0.3.2 ``calc_rdm``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from isocortex.rsa.rdms import to_vectors

MEASURES = ("correlation", "euclidean", "crossnobis")


def mean_patterns(
    patterns: np.ndarray, labels: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Average the patterns of equal labels.

    Parameters
    ----------
    patterns
        Shape (n_trials, n_voxels).
    labels
        One a trial.

    Returns
    -------
    means : numpy.ndarray
        float64, shape (n_labels, n_voxels).
    names : tuple of str
        The labels, sorted.
    counts : numpy.ndarray
        Trials of each label, int64.
    """
    names, inverse, counts = np.unique(
        np.array([str(label) for label in labels]), return_inverse=True, return_counts=True
    )
    indicator = np.zeros((len(names), len(inverse)))
    indicator[inverse, np.arange(len(inverse))] = 1.0
    means = indicator @ np.asarray(patterns, dtype=np.float64) / counts[:, None]
    return means, tuple(str(name) for name in names), counts


def constant_patterns(means: np.ndarray) -> np.ndarray:
    """Return which patterns (rows) have no variance, so that no correlation is defined."""
    centred = means - means.mean(axis=1, keepdims=True)
    scale = np.maximum(np.abs(means).max(axis=1), np.finfo(np.float64).tiny)
    return np.abs(centred).max(axis=1) <= 1e-10 * scale


def correlation_distance(means: np.ndarray) -> np.ndarray:
    """Return 1 - Pearson r of every pair of patterns.

    Parameters
    ----------
    means
        Shape (..., n_stimuli, n_voxels), no pattern constant.

    Returns
    -------
    numpy.ndarray
        Shape (..., n_pairs).
    """
    centred = means - means.mean(axis=-1, keepdims=True)
    centred /= np.sqrt(np.einsum("...ij,...ij->...i", centred, centred))[..., None]
    return 1.0 - to_vectors(centred @ np.swapaxes(centred, -1, -2))


def euclidean_distance(means: np.ndarray) -> np.ndarray:
    """Return the squared Euclidean distance of every pair, over the number of voxels.

    Parameters
    ----------
    means
        Shape (..., n_stimuli, n_voxels); whitened patterns give the squared Mahalanobis distance.

    Returns
    -------
    numpy.ndarray
        Shape (..., n_pairs).
    """
    # Distances do not depend on the mean pattern; without it less is lost to rounding.
    centred = means - means.mean(axis=-2, keepdims=True)
    return _distance_of_kernel(centred @ np.swapaxes(centred, -1, -2)) / means.shape[-1]


def crossnobis_distance(
    patterns: np.ndarray, labels: Sequence[str], runs: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Return the cross-validated squared distance of every pair, over the number of voxels.

    In each fold one run is the test; a stimulus' mean over its trials there meets its mean over
    all its trials in the other runs, so that noise, independent between runs, adds nothing on
    average. A pair takes the mean over the runs that hold both of its stimuli.

    Parameters
    ----------
    patterns
        Shape (n_trials, n_voxels), whitened by the noise (`isocortex.rsa.noise.whiten`) where
        distances are to be in its units.
    labels, runs
        Stimulus and run of each trial; stimuli may have any number of trials in a run.

    Returns
    -------
    distances : numpy.ndarray
        float64, shape (n_pairs,); may be negative. NaN for pairs with fewer than 2 runs in common.
    names : tuple of str
        The labels, sorted.
    folds : numpy.ndarray
        Runs in common of each pair, int64.

    References
    ----------
    Walther et al. (2016), NeuroImage 137; with every stimulus in every run it is rsatoolbox
    ``calc_rdm(method='crossnobis')``.
    """
    patterns = np.asarray(patterns, dtype=np.float64)
    names, row = np.unique(np.array([str(label) for label in labels]), return_inverse=True)
    folds, fold = np.unique(np.array([str(run) for run in runs]), return_inverse=True)
    n, n_voxels = len(names), patterns.shape[1]
    # Sparse: as a dense product the sums would cost more than the distances.
    cells = (np.ones(len(row)), (fold * n + row, np.arange(len(row))))
    indicator = csr_array(cells, shape=(len(folds) * n, len(row)))
    counts = np.bincount(fold * n + row, minlength=len(folds) * n).reshape(len(folds), n)
    # Differences do not depend on the mean pattern; without it less is lost to rounding.
    centred = patterns - patterns.mean(axis=0)
    sums = (indicator @ centred).reshape(len(folds), n, n_voxels)
    total, total_counts = sums.sum(axis=0), counts.sum(axis=0)

    distance = np.zeros((n, n))
    common = np.zeros((n, n), dtype=np.int64)
    for k in range(len(folds)):
        here = counts[k] > 0
        left = total_counts - counts[k]
        test = sums[k] / np.maximum(counts[k], 1)[:, None]
        train = (total - sums[k]) / np.maximum(left, 1)[:, None]
        kernel = train @ test.T
        own = np.diag(kernel)
        both = here[:, None] & here[None, :]
        common += both
        distance += np.where(both, own[:, None] + own[None, :] - kernel - kernel.T, 0.0)
    vector, runs_in_common = to_vectors(distance), to_vectors(common)
    enough = runs_in_common >= 2
    result = np.full(len(vector), np.nan)
    result[enough] = vector[enough] / runs_in_common[enough] / n_voxels
    return result, tuple(str(name) for name in names), runs_in_common


def _distance_of_kernel(kernel: np.ndarray) -> np.ndarray:
    """Return k_ii + k_jj - 2 k_ij for the pairs of symmetric kernels (..., n, n)."""
    own = np.diagonal(kernel, axis1=-2, axis2=-1)
    return to_vectors(own[..., :, None] + own[..., None, :] - 2 * kernel)
