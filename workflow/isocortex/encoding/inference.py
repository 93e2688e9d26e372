"""Tests over subjects and over permutations, for the summary of encoding scores."""

from __future__ import annotations

import itertools
import math

import numpy as np


def one_sample_inference(
    scores: np.ndarray, *, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, interval and p-value of correlations over subjects.

    Parameters
    ----------
    scores
        Correlations (r, never r2, whose mean is above 0 by chance alone), shape (..., subjects);
        NaN for subjects without a score.
    confidence
        Coverage of the interval.

    Returns
    -------
    mean, low, high, p
        Shape (...). Mean and t interval of Fisher z, transformed back to r; p of the one-sided
        one-sample t-test of z above 0. With fewer than two subjects interval and p are NaN.
    """
    z = np.arctanh(np.clip(np.asarray(scores, float), -1 + 1e-9, 1 - 1e-9))
    mean, margin, p = t_test(z, confidence=confidence, alternative="greater")
    return np.tanh(mean), np.tanh(mean - margin), np.tanh(mean + margin), p


def t_test(
    values: np.ndarray, *, confidence: float = 0.95, alternative: str = "two-sided"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, half of its t interval and p-value of the one-sample t-test against 0.

    Parameters
    ----------
    values
        Shape (..., subjects); NaN for subjects without a value.
    confidence
        Coverage of the interval.
    alternative
        `greater` or `two-sided`.

    Returns
    -------
    mean, margin, p
        Shape (...). With fewer than two values margin and p are NaN.
    """
    import scipy.stats  # here, because fitting a subject should not wait for its import

    values = np.asarray(values, float)
    n = np.isfinite(values).sum(-1)
    enough = n > 1
    safe = np.maximum(n, 1)
    freedom = np.maximum(n - 1, 1)
    mean = np.where(n > 0, np.nansum(values, -1) / safe, np.nan)
    error = np.sqrt(np.nansum((values - mean[..., None]) ** 2, -1) / freedom / safe)
    margin = np.where(enough, error * scipy.stats.t.ppf(0.5 + confidence / 2, freedom), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = mean / error
    # No spread at all: certain where the mean is not 0, no evidence otherwise
    if alternative == "greater":
        t = np.where(error > 0, t, np.where(mean > 0, np.inf, -np.inf))
        p = scipy.stats.t.sf(t, freedom)
    else:
        t = np.where(error > 0, np.abs(t), np.where(mean != 0, np.inf, 0))
        p = 2 * scipy.stats.t.sf(t, freedom)
    return mean, margin, np.where(enough, p, np.nan)


def jackknife_test(
    values: np.ndarray, left_out: np.ndarray, *, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over subjects whose values depend on one another, tested by leaving each out.

    Parameters
    ----------
    values
        Shape (..., subjects); NaN for subjects without a value.
    left_out
        What the mean is without each subject, everything that follows from it done anew; shape
        (..., subjects).
    confidence
        Coverage of the interval.

    Returns
    -------
    mean, margin, p
        As of `t_test`, two-sided, with the jackknife's standard error, which is too large rather
        than too small (Efron & Stein 1981), and the t-test's where values are independent. NaN
        where a mean without a subject is not known.
    """
    known = np.isfinite(values)
    n = known.sum(-1)
    mean = t_test(values, confidence=confidence)[0]
    # As many pseudo-values of the same spread about the same mean as in an ordinary t-test
    middle = np.where(known, left_out, 0).sum(-1) / np.maximum(n, 1)
    pseudo = mean[..., None] + (n[..., None] - 1) * (middle[..., None] - left_out)
    _, margin, p = t_test(np.where(known, pseudo, np.nan), confidence=confidence)
    lacking = (known & ~np.isfinite(left_out)).any(-1)
    return mean, np.where(lacking, np.nan, margin), np.where(lacking, np.nan, p)


def permutation_p(
    values: np.ndarray, order: np.ndarray, *, alternative: str = "two-sided", seed: int = 0
) -> float:
    """p-value of a correlation by permuting one of its sides.

    Parameters
    ----------
    values, order
        Shape (n,), both without NaN.
    alternative
        `greater` or `two-sided`.
    seed
        Of the permutations where there are more than 5,040 (n over 7): 9,999 are drawn then, and
        the observed order is counted with them.
    """
    n = len(values)
    if math.factorial(n) <= 5040:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        rng = np.random.default_rng(seed)
        drawn = rng.permuted(np.tile(np.arange(n), (9999, 1)), axis=1)
        orders = np.concatenate([np.arange(n)[None], drawn])
    products = np.asarray(order, float)[orders] @ (values - np.mean(values))
    if alternative == "two-sided":
        products = np.abs(products)
    # The identity is first; ties count as at least as large, whatever the rounding
    return float((products >= products[0] - 1e-9 * np.abs(products).max()).mean())
