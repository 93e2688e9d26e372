"""Dissimilarities between the patterns of stimuli, each a matrix product.

Definitions and scaling are those of rsatoolbox 0.3.2 ``calc_rdm``. Every distance takes stacks of
patterns, (..., n_stimuli, n_voxels), so that regions and searchlights share one code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from isocortex.rsa.noise import covariance, measurement_residuals, whiten
from isocortex.rsa.patterns import CrossvalidationDesign, crossvalidation_design
from isocortex.rsa.rdms import pair_indices, to_vectors

MEASURES = (
    "correlation",
    "cosine",
    "euclidean",
    "mahalanobis",
    "crossnobis",
    "poisson",
    "poissoncv",
)
CROSS_VALIDATED = ("crossnobis", "poissoncv")
WHITENED = ("mahalanobis", "crossnobis")
PRIOR_MEAN, PRIOR_WEIGHT = 1.0, 0.1
"""Of the gamma prior on rates in Poisson distances, as in rsatoolbox: 0.1 of a trial at rate 1."""


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
    return cosine_distance(means - means.mean(axis=-1, keepdims=True))


def cosine_distance(means: np.ndarray) -> np.ndarray:
    """Return 1 - cosine of the angle between every pair of patterns.

    Unlike the correlation distance it keeps the mean of a pattern over voxels, and unlike the
    Euclidean distance not its length.

    Parameters
    ----------
    means
        Shape (..., n_stimuli, n_voxels), no pattern zero throughout.

    Returns
    -------
    numpy.ndarray
        Shape (..., n_pairs).
    """
    unit = means / np.sqrt(np.einsum("...ij,...ij->...i", means, means))[..., None]
    return 1.0 - to_vectors(unit @ np.swapaxes(unit, -1, -2))


def euclidean_distance(
    means: np.ndarray, *, n_voxels: int | np.ndarray | None = None
) -> np.ndarray:
    """Return the squared Euclidean distance of every pair, over the number of voxels.

    Parameters
    ----------
    means
        Shape (..., n_stimuli, n_voxels).
    n_voxels
        Voxels that are really there, shape (...), where a stack of neighbourhoods of several
        sizes is filled up with equal columns; all where not given.

    Returns
    -------
    numpy.ndarray
        Shape (..., n_pairs).
    """
    # Distances do not depend on the mean pattern; without it less is lost to rounding.
    centred = means - means.mean(axis=-2, keepdims=True)
    kernel = centred @ np.swapaxes(centred, -1, -2)
    return _per_voxel(_distance_of_kernel(kernel), means.shape[-1], n_voxels)


def mahalanobis_distance(means: np.ndarray, noise_covariance: np.ndarray) -> np.ndarray:
    """Return the squared Mahalanobis distance of every pair, over the number of voxels.

    Parameters
    ----------
    means
        Shape (..., n_stimuli, n_voxels).
    noise_covariance
        Shape (n_voxels, n_voxels) or (..., n_voxels, n_voxels), from
        `isocortex.rsa.noise.covariance`.

    Returns
    -------
    numpy.ndarray
        Shape (..., n_pairs).

    Raises
    ------
    numpy.linalg.LinAlgError
        Where a covariance is not positive definite.
    """
    return euclidean_distance(whiten(means, noise_covariance))


def poisson_distance(
    means: np.ndarray,
    *,
    prior_mean: float = PRIOR_MEAN,
    prior_weight: float = PRIOR_WEIGHT,
    n_voxels: int | np.ndarray | None = None,
) -> np.ndarray:
    """Return the symmetrised Kullback-Leibler divergence of Poisson rates of every pair.

    Summed over both directions and over channels, divided by the number of channels. For spike
    counts and other rates; patterns must not be negative.

    Parameters
    ----------
    means
        Mean counts, shape (..., n_stimuli, n_voxels).
    prior_mean, prior_weight
        A gamma prior pulls rates towards ``prior_mean`` with the weight of ``prior_weight``
        trials, so that a rate of 0 has a logarithm.
    n_voxels
        As in `euclidean_distance`.

    Returns
    -------
    numpy.ndarray
        Shape (..., n_pairs).
    """
    rate = _posterior_rate(means, prior_mean, prior_weight)
    kernel = rate @ np.swapaxes(np.log(rate), -1, -2)
    return _per_voxel(_distance_of_kernel(kernel), means.shape[-1], n_voxels)


MEAN_DISTANCES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "correlation": correlation_distance,
    "cosine": cosine_distance,
    "euclidean": euclidean_distance,
    # Of patterns that `isocortex.rsa.noise.whiten` has been through.
    "mahalanobis": euclidean_distance,
    "poisson": poisson_distance,
}
"""Measures that compare mean patterns, not runs: (..., n_stimuli, n_voxels) to (..., n_pairs)."""


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
    design = crossvalidation_design(labels, runs)
    means = design.run_means(np.asarray(patterns, dtype=np.float64))
    return crossnobis_of_run_means(means, design), design.stimuli, design.common


def crossnobis_of_run_means(
    means: np.ndarray,
    design: CrossvalidationDesign,
    *,
    voxels_first: bool = False,
    n_voxels: int | np.ndarray | None = None,
) -> np.ndarray:
    """Return crossnobis distances of stacks of run-wise mean patterns.

    Parameters
    ----------
    means
        Whitened patterns from `CrossvalidationDesign.run_means`, shape
        (..., n_stimuli, n_runs, n_voxels), 0 where a run lacks a stimulus.
    design
        Of the trials; the same for every member of the stack.
    voxels_first
        The means are (..., n_voxels, n_runs, n_stimuli): a table of rows of voxels, from which
        neighbourhoods are taken as ``table[members]`` with no copy beyond that.
    n_voxels
        Voxels that are really there, shape (...), where a stack of neighbourhoods of several
        sizes is filled up with rows of zeros; all where not given.

    Returns
    -------
    numpy.ndarray
        Shape (..., n_pairs), in the precision of the means; NaN for pairs with fewer than 2 runs
        in common.

    Notes
    -----
    With equal trials in all M runs the folds add up to (S S' - sum_k B_k B_k') / (M (M - 1)), B_k
    the means in run k and S their sum: two products whatever the number of runs.
    """
    there = means.shape[-3] if voxels_first else means.shape[-1]
    if design.balanced and len(design.runs) > 1:
        total = means.sum(axis=-2)
        if voxels_first:
            total = np.swapaxes(total, -1, -2)
        flat = _flat(means, voxels_first)
        kernel = total @ np.swapaxes(total, -1, -2)
        kernel -= flat @ np.swapaxes(flat, -1, -2)
        kernel /= len(design.runs) * (len(design.runs) - 1)
        distance = _distance_of_kernel(kernel)
    else:
        others = _mean_of_other_runs(means, design, voxels_first)
        distance = _distance_over_folds(others, means, design, voxels_first)
    return _per_voxel(distance, there, n_voxels)


def crossnobis_in_own_noise(
    patterns: np.ndarray,
    labels: Sequence[str],
    runs: Sequence[str],
    *,
    method: str = "shrinkage_diag",
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Return crossnobis distances in units of the noise of the patterns themselves.

    In each fold the noise covariance is that of the training runs, what their trials keep without
    the means of their stimulus and run. The test run is then independent of all that it meets.
    With one covariance of all runs it is not: under pure noise such distances are well above 0
    (by two thirds of the plain distance for 24 stimuli x 3 runs x 200 voxels and
    ``shrinkage_eye``).

    Parameters
    ----------
    patterns, labels, runs
        As in `crossnobis_distance`, not whitened.
    method
        As in `isocortex.rsa.noise.covariance`.

    Returns
    -------
    distances, names, folds
        As `crossnobis_distance`.

    Raises
    ------
    ValueError
        Where the other runs of a run repeat no stimulus, so that nothing is left to estimate from.
    numpy.linalg.LinAlgError
        Where a covariance is not positive definite.
    """
    patterns = np.asarray(patterns, dtype=np.float64)
    design = crossvalidation_design(labels, runs)
    means = design.run_means(patterns)
    others = _mean_of_other_runs(means, design, False)
    labels, runs = np.asarray(labels).astype(str), np.asarray(runs).astype(str)
    train, test = np.empty_like(means), np.empty_like(means)
    for k, run in enumerate(design.runs):
        rest = runs != run
        residuals, freedom = measurement_residuals(patterns[rest], labels[rest], runs[rest])
        if freedom < 1:
            raise ValueError(f"the runs other than {run} repeat no stimulus: no noise to estimate")
        sigma = covariance(residuals, method=method, degrees_of_freedom=freedom)
        train[:, k], test[:, k] = whiten(np.stack([others[:, k], means[:, k]]), sigma)
    distance = _distance_over_folds(train, test, design, False)
    return _per_voxel(distance, patterns.shape[1], None), design.stimuli, design.common


def poisson_cv_distance(
    patterns: np.ndarray,
    labels: Sequence[str],
    runs: Sequence[str],
    *,
    prior_mean: float = PRIOR_MEAN,
    prior_weight: float = PRIOR_WEIGHT,
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Return the cross-validated symmetrised Poisson divergence of every pair.

    (a_i - a_j)(log b_i - log b_j) summed over channels, divided by their number, b the rates in
    one run and a those in the others; folds as in `crossnobis_distance`.

    Parameters
    ----------
    patterns
        Counts, not negative, shape (n_trials, n_voxels).
    labels, runs
        Stimulus and run of each trial.
    prior_mean, prior_weight
        As in `poisson_distance`, on the rates of both sides.

    Returns
    -------
    distances, names, folds
        As `crossnobis_distance`.

    Notes
    -----
    The mean over folds; rsatoolbox 0.3.2 ``calc_rdm(method='poisson_cv')`` gives its last fold.
    """
    design = crossvalidation_design(labels, runs)
    means = design.run_means(np.asarray(patterns, dtype=np.float64), centre=False)
    distance = poisson_cv_of_run_means(
        means, design, prior_mean=prior_mean, prior_weight=prior_weight
    )
    return distance, design.stimuli, design.common


def poisson_cv_of_run_means(
    means: np.ndarray,
    design: CrossvalidationDesign,
    *,
    prior_mean: float = PRIOR_MEAN,
    prior_weight: float = PRIOR_WEIGHT,
    voxels_first: bool = False,
    n_voxels: int | np.ndarray | None = None,
) -> np.ndarray:
    """Return cross-validated Poisson divergences of stacks of run-wise mean counts.

    Parameters
    ----------
    means
        From `CrossvalidationDesign.run_means` with ``centre=False``.
    design, voxels_first, n_voxels
        As in `crossnobis_of_run_means`.
    prior_mean, prior_weight
        As in `poisson_cv_distance`.

    Returns
    -------
    numpy.ndarray
        Shape (..., n_pairs); NaN for pairs with fewer than 2 runs in common.
    """
    here = (design.counts > 0).T if voxels_first else (design.counts > 0)[..., None]
    others = _mean_of_other_runs(means, design, voxels_first)
    test = np.log(_posterior_rate(means, prior_mean, prior_weight))
    train = _posterior_rate(others, prior_mean, prior_weight)
    distance = _distance_over_folds(train * here, test * here, design, voxels_first)
    there = means.shape[-3] if voxels_first else means.shape[-1]
    return _per_voxel(distance, there, n_voxels)


def _posterior_rate(means: np.ndarray, prior_mean: float, prior_weight: float) -> np.ndarray:
    return (means + prior_mean * prior_weight) / (1 + prior_weight)


def _mean_of_other_runs(
    means: np.ndarray, design: CrossvalidationDesign, voxels_first: bool
) -> np.ndarray:
    """Return each stimulus' mean over its trials outside each run, 0 where there are none."""
    counts = design.counts.T if voxels_first else design.counts[..., None]
    counts = counts.astype(means.dtype)
    axis = -2
    sums = means * counts
    left = counts.sum(axis=axis, keepdims=True) - counts
    return (sums.sum(axis=axis, keepdims=True) - sums) / np.maximum(left, 1)


def _flat(patterns: np.ndarray, voxels_first: bool) -> np.ndarray:
    """Return stacks of (n_stimuli, n_runs * n_voxels), views where they can be."""
    *lead, a, b, c = patterns.shape
    if voxels_first:
        return np.swapaxes(patterns.reshape(*lead, a * b, c), -1, -2)
    return patterns.reshape(*lead, a, b * c)


def _distance_over_folds(
    train: np.ndarray, test: np.ndarray, design: CrossvalidationDesign, voxels_first: bool
) -> np.ndarray:
    """Return the mean over common runs of (train_i - train_j) (test_i - test_j) for all pairs.

    ``test`` is 0 where a run lacks the stimulus; ``train`` is made so here.
    """
    here = (design.counts > 0).astype(train.dtype)
    train = train * (here.T if voxels_first else here[..., None])
    kernel = _flat(train, voxels_first) @ np.swapaxes(_flat(test, voxels_first), -1, -2)
    own = np.einsum("...vki,...vki->...ik" if voxels_first else "...ikv,...ikv->...ik", train, test)
    # A stimulus' product with itself counts in the runs that hold the other one, too.
    kernel = own @ here.T - kernel
    common = np.where(design.common >= 2, design.common, np.nan).astype(train.dtype)
    return to_vectors(kernel + np.swapaxes(kernel, -1, -2)) / common


def _per_voxel(distance: np.ndarray, there: int, n_voxels: int | np.ndarray | None) -> np.ndarray:
    """Return distances over the number of voxels, which may differ from row to row."""
    if n_voxels is None:
        return distance / there
    return distance / np.maximum(np.asarray(n_voxels, dtype=distance.dtype), 1)[..., None]


def _distance_of_kernel(kernel: np.ndarray) -> np.ndarray:
    """Return k_ii + k_jj - k_ij - k_ji for the pairs of kernels (..., n, n)."""
    own = np.diagonal(kernel, axis1=-2, axis2=-1)
    i, j = pair_indices(kernel.shape[-1])
    return own[..., i] + own[..., j] - kernel[..., i, j] - kernel[..., j, i]
