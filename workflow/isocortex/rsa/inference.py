"""Uncertainty of scores: bootstraps of subjects and stimuli, and their variances.

Samples are counts, of how often each subject and each stimulus was drawn: no RDM is ever re-made.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from isocortex.rsa.compare import check_comparison
from isocortex.rsa.rdms import MINIMUM_STIMULI
from isocortex.rsa.sampling import SampledRDMs, pair_weights

__all__ = [
    "bootstrap_counts",
    "bootstrap_scores",
    "debiased_variance",
    "dual_bootstrap_variance",
    "left_out_counts",
    "pair_weights",
]


def bootstrap_counts(n: int, samples: int, *, rng: np.random.Generator) -> np.ndarray:
    """Draw bootstrap samples of n things, as how often each was drawn.

    Returns
    -------
    numpy.ndarray
        int64, shape (samples, n), rows sum to n.
    """
    drawn = rng.integers(0, n, size=(samples, n))
    flat = drawn + n * np.arange(samples)[:, None]
    return np.bincount(flat.ravel(), minlength=samples * n).reshape(samples, n)


def bootstrap_scores(
    a: np.ndarray,
    b: np.ndarray,
    counts: np.ndarray,
    *,
    comparison: str = "pearson",
    valid: np.ndarray | None = None,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Compare two sets of RDMs under bootstrap samples of the stimuli.

    Parameters
    ----------
    a, b
        RDMs, shapes (n_a, n_pairs) and (n_b, n_pairs).
    counts
        How often each stimulus is in each sample, shape (n_samples, n_stimuli).
    comparison
        One of `isocortex.rsa.compare.COMPARISONS`.
    valid
        Pairs to use, bool (n_pairs,); the finite ones of both sets where not given.

    Yields
    ------
    samples : slice
        Which samples.
    scores : numpy.ndarray
        Shape (n_samples of the slice, n_a, n_b): exactly the scores of RDMs with rows and columns
        repeated as drawn, pairs of copies left out. NaN for samples of fewer than 4 different
        stimuli.
    """
    check_comparison(comparison)
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if valid is None:
        valid = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)
    sampled = SampledRDMs(a, b, valid, comparison)
    for start in range(0, len(counts), sampled.block):
        chunk = slice(start, min(start + sampled.block, len(counts)))
        drawn = counts[chunk]
        scores = sampled.scores(drawn)
        scores[(drawn > 0).sum(axis=1) < MINIMUM_STIMULI] = np.nan
        yield chunk, scores


def dual_bootstrap_variance(
    both: np.ndarray,
    subjects: np.ndarray,
    stimuli: np.ndarray,
    *,
    n_subjects: int | np.ndarray,
    n_stimuli: int,
) -> np.ndarray:
    """Return the variance of a score that generalises to new subjects and new stimuli.

    The bootstrap of both factors counts the measurement noise thrice; the correction is that of
    Schütt et al. (2023, eLife 12), as in rsatoolbox. It is unbiased where there are many subjects
    and stimuli and scores vary with the stimuli by what each contributes; otherwise it is too
    large, for which see `debiased_variance`.

    Parameters
    ----------
    both, subjects, stimuli
        Variances over the samples of the three bootstraps, of one shape.
    n_subjects, n_stimuli
        At least 2 each.
    """
    s = n_subjects / (n_subjects - 1.0)
    p = n_stimuli / (n_stimuli - 1.0)
    variance = s * subjects + p * stimuli - s * p * (both - subjects - stimuli)
    variance = np.maximum(np.maximum(variance, s * subjects), p * stimuli)
    return np.minimum(variance, both)


def left_out_counts(n: int) -> np.ndarray:
    """Return the n samples that leave one of n stimuli out, as counts of shape (n, n)."""
    return 1 - np.eye(n, dtype=np.int64)


def debiased_variance(
    both: np.ndarray,
    subjects: np.ndarray,
    stimuli: np.ndarray,
    left_out: np.ndarray,
    *,
    n_subjects: int | np.ndarray,
    n_stimuli: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the variance of a score that generalises to both factors, and degrees of freedom.

    Parameters
    ----------
    both, subjects, stimuli
        Variances over the samples of the three bootstraps, shape (...).
    left_out
        Each subject's score without each stimulus (`left_out_counts`), shape
        (n_stimuli, ..., n_subjects); NaN where a subject has none.
    n_subjects, n_stimuli
        At least 2 each; how many subjects have a score may differ along the last axes of (...).

    Returns
    -------
    variance, freedom : numpy.ndarray
        Shape (...).

    Notes
    -----
    A score is a mean over pairs of stimuli. Its variance over studies has a part that each
    stimulus contributes (V1) and a part that belongs to the pairs (V2), which is all there is where
    a whitened correlation is truly 0. A bootstrap of stimuli finds V1 + 3 V2, because a pair's
    weight c_i c_j varies thrice as much as c_i; leaving one out finds V1 + 2 V2 (Efron and Stein
    1981, Annals of Statistics 9), so that twice the second less the first is V1 + V2. This is done
    for the covariance between subjects; what subjects do not share is in the variance between
    them, once. `dual_bootstrap_variance` keeps 3 V2, and its lower bound, the bootstrap of stimuli
    alone, holds each subject's measurement noise thrice. Degrees of freedom are Satterthwaite's,
    of a part with n_subjects - 1 and one with n_stimuli - 1.
    """
    n = np.asarray(n_subjects, dtype=np.float64)
    s, p = n / (n - 1.0), n_stimuli / (n_stimuli - 1.0)
    between = s * subjects
    bootstrapped = p * stimuli - s * p * (both - subjects - stimuli)
    known = np.isfinite(left_out)
    centred = np.where(known, left_out - np.where(known, left_out, 0.0).mean(axis=0), 0.0)
    scale = (n_stimuli - 1.0) / n_stimuli
    whole = scale * np.square(centred.sum(axis=-1)).sum(axis=0)
    alone = scale * np.square(centred).sum(axis=(0, -1))
    shared = (whole - alone) / (n * (n - 1.0))
    # V1 + V2 lies between half of V1 + 2 V2 and the whole of it.
    shared = np.maximum(shared, 0.0)
    of_stimuli = np.clip(2.0 * shared - bootstrapped, 0.5 * shared, shared)
    variance = between + of_stimuli
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = np.square(variance) / (
            np.square(between) / (n - 1.0) + np.square(of_stimuli) / (n_stimuli - 1.0)
        )
    return variance, freedom
