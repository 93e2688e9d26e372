"""How alike RDMs are, and the noise ceiling of a set of subjects.

Every comparison is an inner product of unit vectors that are made once per RDM, so that all
scores of a study are one matrix product. Definitions are those of rsatoolbox 0.3.2 ``compare``
and ``boot_noise_ceiling``.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from isocortex.rsa.rdms import n_stimuli, to_matrices, to_vectors

COMPARISONS = ("pearson", "spearman", "corr_cov", "rho_a")
"""``corr_cov`` is the Pearson correlation after whitening by the covariance that the entries of
an RDM have because pairs share stimuli (Diedrichsen et al. 2021); it equals linear CKA.
``rho_a`` is Spearman's correlation under random tie-breaking."""


def correlate(a: np.ndarray, b: np.ndarray, *, comparison: str = "pearson") -> np.ndarray:
    """Compare every RDM of one set with every RDM of another.

    Parameters
    ----------
    a, b
        Shapes (n_a, n_pairs) and (n_b, n_pairs). Pairs that are NaN in any RDM are left out of
        all.
    comparison
        One of `COMPARISONS`.

    Returns
    -------
    numpy.ndarray
        Shape (n_a, n_b); NaN where an RDM is constant.
    """
    valid = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)
    return (
        embed(a, comparison=comparison, valid=valid)
        @ embed(b, comparison=comparison, valid=valid).T
    )


def embed(
    vectors: np.ndarray, *, comparison: str = "pearson", valid: np.ndarray | None = None
) -> np.ndarray:
    """Return vectors whose inner products are the comparison's scores.

    Parameters
    ----------
    vectors
        RDMs, shape (n_rdms, n_pairs).
    comparison
        One of `COMPARISONS`.
    valid
        Pairs to use, bool (n_pairs,); all where not given. They must be finite.

    Returns
    -------
    numpy.ndarray
        float64, shape (n_rdms, n_features); NaN rows where an RDM is constant.
    """
    if comparison not in COMPARISONS:
        raise ValueError(f"comparison is {comparison!r}: choose one of {', '.join(COMPARISONS)}")
    vectors = np.asarray(vectors, dtype=np.float64)
    valid = np.ones(vectors.shape[1], dtype=bool) if valid is None else valid
    used = vectors[:, valid]
    if comparison in ("spearman", "rho_a"):
        used = rankdata(used, axis=1)
    centred = used - used.mean(axis=1, keepdims=True)
    scale = np.abs(used).max(axis=1, initial=0.0)
    constant = np.abs(centred).max(axis=1, initial=0.0) <= 1e-14 * scale
    if comparison == "rho_a":
        n = used.shape[1]
        embedded = centred * np.sqrt(12.0 / (float(n) ** 3 - n))
    else:
        embedded = _whitened(centred, valid) if comparison == "corr_cov" else centred
        norm = np.sqrt(np.einsum("ij,ij->i", embedded, embedded))[:, None]
        embedded = embedded / np.where(norm > 0, norm, np.nan)
    embedded[constant] = np.nan
    return embedded


def _whitened(centred: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return centred RDMs as double-centred matrices, stretched out, diagonal included.

    Missing pairs are left out of the row and column means, which then solve a linear system.
    """
    n = n_stimuli(len(valid))
    full = np.zeros((len(centred), len(valid)))
    full[:, valid] = centred
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
        Shape (n_pairs,): the mean of z-scored or, for rank correlations, ranked RDMs. For
        ``corr_cov`` z-scores are not exactly the best scaling; they are rsatoolbox's.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    valid = np.isfinite(vectors).all(axis=0)
    used = vectors[:, valid]
    if comparison in ("spearman", "rho_a"):
        scaled = rankdata(used, axis=1)
    else:
        scaled = used - used.mean(axis=1, keepdims=True)
        scaled = scaled / np.sqrt(np.einsum("ij,ij->i", scaled, scaled))[:, None]
    pooled = np.full(vectors.shape[1], np.nan)
    pooled[valid] = scaled.mean(axis=0)
    return pooled


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
    vectors = np.where(np.isfinite(vectors).all(axis=0), vectors, np.nan)
    valid = np.isfinite(vectors[0])
    own = embed(vectors, comparison=comparison, valid=valid)
    pooled = [pool(vectors[np.arange(n) != k], comparison=comparison) for k in range(n)]
    pooled.append(pool(vectors, comparison=comparison))
    best = embed(np.array(pooled), comparison=comparison, valid=valid)
    return float(np.einsum("ij,ij->i", best[:-1], own).mean()), float((own @ best[-1]).mean())
