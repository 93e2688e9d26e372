"""Intervals and tests from bootstrap samples: against 0, against a ceiling, between predictors.

As in rsatoolbox 0.3.2: a t distribution with the bootstrap's variance of what is tested. The
variance that generalises to subjects and stimuli is corrected as in Schütt et al. (2023, eLife 12).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import stats

from isocortex.rsa.inference import dual_bootstrap_variance

_SMALLEST = np.finfo(np.float64).eps


def contrast_variances(drawn: np.ndarray, *, cuts: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the variances over bootstrap samples of values and of all their differences.

    Parameters
    ----------
    drawn
        Shape (n_samples, n_repeats, n_values, n_regions); NaN where a sample has no value. Two
        repeats are cross-validations of one sample by different cuts into folds: their covariance
        c is the variance that does not come from the cut (rsatoolbox ``bootstrap_crossval``).
    cuts
        Of how many cuts what the variance is of is the mean: it is c plus the share (v - c) / cuts
        of the variance v of one.

    Returns
    -------
    values : numpy.ndarray
        Shape (n_values, n_regions).
    differences : numpy.ndarray
        Shape (n_values, n_values, n_regions): of each less each other one, over the samples that
        have both.
    """
    size, n_regions = drawn.shape[2:]
    values, differences = np.empty((size, n_regions)), np.empty((size, size, n_regions))
    for r in range(n_regions):
        found = drawn[..., r]
        known = np.isfinite(found).all(axis=1)
        count = np.maximum(known.sum(axis=0), 1)
        centre = np.where(known[:, None], found, 0.0).sum(axis=0) / count
        # Values x samples, so that all sums are matrix products.
        x, y = (np.where(known, found[:, k] - centre[k], 0.0).T for k in (0, -1))
        shared = _contrast_covariances(x, y, known.T.astype(np.float64))
        if drawn.shape[1] > 1:
            alone = [_contrast_covariances(v, v, known.T.astype(np.float64)) for v in (x, y)]
            shared = tuple(
                np.maximum(c, 0.0) + np.maximum(0.5 * (v + w) - np.maximum(c, 0.0), 0.0) / cuts
                for c, v, w in zip(shared, *alone)
            )
        values[:, r], differences[:, :, r] = shared
    return values, differences


def _contrast_covariances(
    x: np.ndarray, y: np.ndarray, there: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return covariances of x and y, and of their differences between values.

    All of shape (values, samples); ``there`` is 1 where a sample has the value, else 0, as are x
    and y.
    """
    pairs, own = there @ there.T, there.sum(axis=1)
    product = x * y
    squares = product @ there.T + there @ product.T - x @ y.T - y @ x.T
    sums = [v @ there.T - there @ v.T for v in (x, y)]
    differences = squares - sums[0] * sums[1] / np.maximum(pairs, 1)
    differences = np.where(pairs > 1, differences / np.maximum(pairs - 1, 1), np.nan)
    return np.where(own > 1, product.sum(axis=1) / np.maximum(own - 1, 1), np.nan), differences


def combine_variances(
    variances: Mapping[str, np.ndarray],
    *,
    over: str,
    n_subjects: np.ndarray,
    n_stimuli: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the variance that generalises to what was resampled, and its degrees of freedom.

    Parameters
    ----------
    variances
        By what was resampled, ``subjects``, ``stimuli`` or ``both``; of one shape
        (..., n_regions).
    over
        ``subjects``, ``stimuli``, ``both`` (all three are needed), or ``none``.
    n_subjects
        Subjects that have each region, shape (n_regions,).
    n_stimuli
        Number of stimuli.

    Returns
    -------
    variance : numpy.ndarray
        Shape (..., n_regions), at least the machine's precision; NaN with ``none``.
    freedom : numpy.ndarray
        Shape (n_regions,); 0 where there is nothing to resample.
    """
    counted = np.maximum(n_subjects, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        if over == "both":
            variance = dual_bootstrap_variance(
                variances["both"],
                variances["subjects"],
                variances["stimuli"],
                n_subjects=counted,
                n_stimuli=n_stimuli,
            )
            freedom = np.minimum(counted, n_stimuli) - 1
        elif over == "subjects":
            variance = variances["subjects"] * counted / (counted - 1.0)
            freedom = counted - 1
        elif over == "stimuli":
            variance = variances["stimuli"] * n_stimuli / (n_stimuli - 1.0)
            freedom = np.full_like(counted, n_stimuli - 1)
        else:
            return np.array(np.nan), np.zeros_like(counted)
    variance = np.where(freedom > 0, np.maximum(variance, _SMALLEST), np.nan)
    return variance, freedom


def interval(
    mean: np.ndarray, variance: np.ndarray, freedom: np.ndarray, *, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the t interval around means, of coverage ``level``."""
    half = stats.t.ppf((1 + level) / 2, np.maximum(freedom, 1)) * np.sqrt(variance)
    return mean - half, mean + half


def p_above(mean: np.ndarray, variance: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """Return one-sided p-values of means over 0."""
    return stats.t.sf(mean / np.sqrt(variance), np.maximum(freedom, 1))


def p_different(mean: np.ndarray, variance: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """Return two-sided p-values of means that differ from 0."""
    return 2 * stats.t.sf(np.abs(mean) / np.sqrt(variance), np.maximum(freedom, 1))
