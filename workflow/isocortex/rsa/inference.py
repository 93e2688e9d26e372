"""Uncertainty of scores: bootstraps of subjects and stimuli, and their variances.

Samples are counts, of how often each subject and each stimulus was drawn: no RDM is ever re-made.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from isocortex.rsa.compare import check_comparison
from isocortex.rsa.rdms import MINIMUM_STIMULI
from isocortex.rsa.sampling import SampledRDMs, pair_weights

__all__ = ["bootstrap_counts", "bootstrap_scores", "dual_bootstrap_variance", "pair_weights"]


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
    Schütt et al. (2023, eLife 12), as in rsatoolbox.

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
