"""How alike RDMs are, and the noise ceiling of a set of subjects.

Most comparisons are inner products of vectors that are made once per RDM, so that all scores of a
study are one matrix product; Kendall's tau and the comparisons of kernels are not. Definitions are
those of rsatoolbox 0.3.2 ``compare`` and ``boot_noise_ceiling``.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from isocortex.rsa.kernels import compare_kernels, complete_stimuli, keep_stimuli
from isocortex.rsa.ranking import concordance, sorted_groups
from isocortex.rsa.rdms import n_stimuli, to_matrices, to_vectors

EMBEDDED = ("pearson", "spearman", "corr_cov", "rho_a", "cosine", "cosine_cov")
"""Comparisons that are inner products of vectors, those of `embed`."""
TAUS = ("tau_a", "tau_b")
KERNELS = ("bures", "riemann")
COMPARISONS = (*EMBEDDED, *TAUS, *KERNELS)
"""``corr_cov`` and ``cosine_cov`` are the Pearson correlation and the cosine after whitening by the
covariance that the entries of an RDM have because pairs share stimuli (Diedrichsen et al. 2021);
of squared Euclidean distances they are linear CKA. ``rho_a`` and ``tau_a`` are Spearman's and
Kendall's correlation under random tie-breaking, ``tau_b`` the one that corrects for ties.
``bures`` is the Bures similarity of the kernels, ``riemann`` their negative Riemannian distance, at
most 0."""
RANKED = ("spearman", "rho_a", *TAUS)
"""Comparisons that see the order of dissimilarities only."""


def correlate(a: np.ndarray, b: np.ndarray, *, comparison: str = "pearson") -> np.ndarray:
    """Compare every RDM of one set with every RDM of another.

    Parameters
    ----------
    a, b
        Shapes (n_a, n_pairs) and (n_b, n_pairs). Pairs that are NaN in any RDM are left out of
        all. For ``riemann`` the first set is the models'.
    comparison
        One of `COMPARISONS`.

    Returns
    -------
    numpy.ndarray
        Shape (n_a, n_b). Where an RDM is constant 0 for ``rho_a`` and ``tau_a``, NaN for other
        correlations; NaN for cosines where it is 0, and for kernels where a pair is missing among
        the stimuli that have any.

    Raises
    ------
    ValueError
        Where there is no such comparison.
    """
    check_comparison(comparison)
    valid = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)
    if comparison in TAUS:
        return _tau(np.asarray(a)[:, valid], np.asarray(b)[:, valid], comparison=comparison)
    if comparison in KERNELS:
        there = complete_stimuli(valid)
        if there is None:
            return np.full((len(a), len(b)), np.nan)
        a, b = (keep_stimuli(np.asarray(v, dtype=np.float64), there) for v in (a, b))
        return compare_kernels(a, b, comparison=comparison)
    return (
        embed(a, comparison=comparison, valid=valid)
        @ embed(b, comparison=comparison, valid=valid).T
    )


def check_comparison(comparison: str, choices: tuple[str, ...] = COMPARISONS) -> None:
    """Raise `ValueError` where there is no such comparison."""
    if comparison not in choices:
        raise ValueError(f"comparison is {comparison!r}: choose one of {', '.join(choices)}")


def _tau(a: np.ndarray, b: np.ndarray, *, comparison: str) -> np.ndarray:
    """Return Kendall's correlations; all pairs finite."""
    n = a.shape[1]
    total = n * (n - 1) / 2
    sums = concordance(a, b).astype(np.float64)
    if comparison == "tau_a":
        return sums / total if total else np.full(sums.shape, np.nan)
    untied = []
    for vectors in (a, b):
        _, starts, ends = sorted_groups(vectors)
        untied.append(total - 0.5 * (ends - starts - 1).sum(axis=1))
    with np.errstate(invalid="ignore"):
        return sums / np.sqrt(untied[0][:, None] * untied[1])


def embed(
    vectors: np.ndarray, *, comparison: str = "pearson", valid: np.ndarray | None = None
) -> np.ndarray:
    """Return vectors whose inner products are the comparison's scores.

    Parameters
    ----------
    vectors
        RDMs, shape (n_rdms, n_pairs).
    comparison
        One of `EMBEDDED`.
    valid
        Pairs to use, bool (n_pairs,); all where not given. They must be finite.

    Returns
    -------
    numpy.ndarray
        float64, shape (n_rdms, n_features); NaN rows where an RDM is constant (for
        cosines where it is 0), zeros for ``rho_a``.
    """
    check_comparison(comparison, EMBEDDED)
    vectors = np.asarray(vectors, dtype=np.float64)
    valid = np.ones(vectors.shape[1], dtype=bool) if valid is None else valid
    used = vectors[:, valid]
    if comparison in RANKED:
        used = rankdata(used, axis=1)
    if comparison in ("cosine", "cosine_cov"):
        centred = used
    else:
        centred = used - used.mean(axis=1, keepdims=True)
        scale = np.abs(used).max(axis=1, initial=0.0)
        constant = np.abs(centred).max(axis=1, initial=0.0) <= 1e-14 * scale
        centred[constant] = 0.0
    if comparison == "rho_a":
        n = float(used.shape[1])
        return centred * np.sqrt(12.0 / (n**3 - n))
    embedded = _whitened(centred, valid) if comparison in ("corr_cov", "cosine_cov") else centred
    norm = np.sqrt(np.einsum("ij,ij->i", embedded, embedded))[:, None]
    return embedded / np.where(norm > 0, norm, np.nan)


def _whitened(vectors: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return RDMs as double-centred matrices, stretched out, diagonal included.

    Missing pairs are left out of the row and column means, which then solve a linear system.
    """
    n = n_stimuli(len(valid))
    full = np.zeros((len(vectors), len(valid)))
    full[:, valid] = vectors
    square = to_matrices(full)
    seen = to_matrices(valid.astype(np.float64))
    system = 0.5 * seen + np.diag(1.0 + 0.5 * seen.sum(axis=1))
    means = np.linalg.solve(system, square.sum(axis=2).T).T
    square = square - 0.5 * (means[:, :, None] + means[:, None, :])
    off = np.sqrt(2.0) * to_vectors(square)[:, valid]
    return np.concatenate([off, square[:, np.arange(n), np.arange(n)]], axis=1)


def pool(vectors: np.ndarray, *, comparison: str = "pearson") -> np.ndarray:
    """Return the one RDM that agrees best, on average, with all of a set.

    Parameters
    ----------
    vectors
        Shape (n_rdms, n_pairs); pairs that are NaN in any RDM are NaN in the pooled one.
    comparison
        One of `COMPARISONS`.

    Returns
    -------
    numpy.ndarray
        Shape (n_pairs,), as rsatoolbox's ``pool_rdm``: the mean of RDMs on the scale of
        `pooling_scale`, its smallest entry at 0 for ``pearson`` and ``corr_cov``.
    """
    pooled = pooling_scale(vectors, comparison=comparison).mean(axis=0)
    if comparison in ("pearson", "corr_cov") and np.isfinite(pooled).any():
        pooled = pooled - np.nanmin(pooled)
    return pooled


def pooling_scale(vectors: np.ndarray, *, comparison: str) -> np.ndarray:
    """Return RDMs on the scale on which `pool` averages them.

    Parameters
    ----------
    vectors
        Shape (n_rdms, n_pairs); pairs that are NaN in any RDM are NaN in all.
    comparison
        One of `COMPARISONS`.

    Returns
    -------
    numpy.ndarray
        Shape (n_rdms, n_pairs): z-scores (``pearson``, ``corr_cov``), RDMs over their root mean
        square (cosines), ranks (rank correlations), RDMs over their mean (``bures``, which
        rsatoolbox does not pool) or as they are (``riemann``). For the whitened ones that is not
        exactly the best scaling, and neither are ranks for taus; they are rsatoolbox's.
    """
    check_comparison(comparison)
    vectors = np.asarray(vectors, dtype=np.float64)
    valid = np.isfinite(vectors).all(axis=0)
    used = vectors[:, valid]
    scaled = np.full(vectors.shape, np.nan)
    if comparison in RANKED:
        scaled[:, valid] = rankdata(used, axis=1)
        return scaled
    divisor = np.ones((len(used), 1))
    if comparison in ("pearson", "corr_cov"):
        used = used - used.mean(axis=1, keepdims=True)
    if comparison == "bures":
        divisor = used.mean(axis=1, keepdims=True)
    elif comparison != "riemann":
        divisor = np.sqrt(np.square(used).mean(axis=1, keepdims=True))
    scaled[:, valid] = used / np.where(divisor > 0, divisor, np.nan)
    return scaled


def noise_ceiling(vectors: np.ndarray, *, comparison: str = "pearson") -> tuple[float, float]:
    """Return the lower and the upper noise ceiling of a set of subjects.

    The score that the true model would reach lies between them: the upper one compares every
    subject with the RDM pooled over all subjects, the lower one with that pooled over the others
    (Nili et al. 2014).

    Parameters
    ----------
    vectors
        RDMs, shape (n_subjects, n_pairs); pairs that are NaN in any subject are left out.
    comparison
        One of `COMPARISONS`.

    Returns
    -------
    tuple of float
        Lower and upper ceiling; NaN with fewer than 2 subjects.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    n = len(vectors)
    if n < 2:
        return np.nan, np.nan
    scaled = pooling_scale(vectors, comparison=comparison)
    pooled = np.array([*((scaled.sum(axis=0) - scaled) / (n - 1.0)), scaled.mean(axis=0)])
    valid = np.isfinite(vectors).all(axis=0)
    if comparison in EMBEDDED:
        own = embed(vectors, comparison=comparison, valid=valid)
        best = embed(pooled, comparison=comparison, valid=valid)
        low, high = np.einsum("ij,ij->i", best[:-1], own), own @ best[-1]
    else:
        vectors = np.where(valid, vectors, np.nan)
        low = np.array(
            [correlate(p[None], v[None], comparison=comparison) for p, v in zip(pooled, vectors)]
        )
        high = correlate(pooled[-1:], vectors, comparison=comparison)
    return float(low.mean()), float(high.mean())
