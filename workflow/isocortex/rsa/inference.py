"""Uncertainty of scores: bootstraps of subjects and stimuli, and their variances.

A bootstrap sample of stimuli is a weight c_i c_j on each pair of different stimuli, c_i being how
often stimulus i was drawn; two copies of one stimulus make no pair. So no RDM is ever re-made:
all samples together are a few matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from isocortex.rsa.compare import COMPARISONS
from isocortex.rsa.rdms import MINIMUM_STIMULI, n_stimuli, pair_indices, to_matrices

_BLOCK_BYTES = 64 << 20


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


def pair_weights(counts: np.ndarray) -> np.ndarray:
    """Return the weight c_i c_j of every pair.

    Parameters
    ----------
    counts
        Shape (..., n_stimuli).

    Returns
    -------
    numpy.ndarray
        float64, shape (..., n_pairs).
    """
    i, j = pair_indices(counts.shape[-1])
    return (counts[..., i] * counts[..., j]).astype(np.float64)


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
    if comparison not in COMPARISONS:
        raise ValueError(f"comparison is {comparison!r}: choose one of {', '.join(COMPARISONS)}")
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if valid is None:
        valid = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)
    ranked = comparison in ("spearman", "rho_a")
    a, b = _standardised(a, valid), _standardised(b, valid)
    sorted_a = _sorted_groups(a) if ranked else None
    sorted_b = _sorted_groups(b) if ranked else None
    rows = len(a) + (len(b) if ranked else 0)
    size = max(1, min(len(counts), _BLOCK_BYTES // (8 * a.shape[1] * max(rows, 1))))
    for start in range(0, len(counts), size):
        chunk = slice(start, min(start + size, len(counts)))
        drawn = counts[chunk]
        weights = pair_weights(drawn)[:, valid]
        total = weights.sum(axis=1)
        if ranked:
            x, y = _weighted_ranks(weights, *sorted_a), _weighted_ranks(weights, *sorted_b)
            cross, own_x, own_y = _rank_products(weights, x, y)
        else:
            cross, own_x, own_y = _products(weights, a, b)
        if comparison == "corr_cov":
            cross, own_x, own_y = _whitened_products(drawn, valid, a, b, cross, own_x, own_y)
        with np.errstate(divide="ignore", invalid="ignore"):
            if comparison == "rho_a":
                scores = cross * (12.0 / (total**3 - total))[:, None, None]
            else:
                scores = cross / np.sqrt(own_x[:, :, None] * own_y[:, None, :])
        scores[(drawn > 0).sum(axis=1) < MINIMUM_STIMULI] = np.nan
        yield chunk, scores


def _standardised(vectors: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the valid pairs, centred and scaled: no score changes, no precision is lost."""
    used = vectors[:, valid]
    centred = used - used.mean(axis=1, keepdims=True)
    deviation = centred.std(axis=1, keepdims=True)
    return centred / np.where(deviation > 0, deviation, 1.0)


def _products(
    weights: np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weighted sums of products of deviations from the weighted means: a·b, a·a, b·b."""
    total = np.maximum(weights.sum(axis=1), 1.0)[:, None]
    sum_a, sum_b = weights @ a.T, weights @ b.T
    own_a = weights @ np.square(a).T - sum_a**2 / total
    own_b = weights @ np.square(b).T - sum_b**2 / total
    weighted = (weights[:, None, :] * a[None]).reshape(-1, a.shape[1])
    cross = (weighted @ b.T).reshape(len(weights), len(a), len(b))
    return cross - sum_a[:, :, None] * sum_b[:, None, :] / total[:, :, None], own_a, own_b


def _sorted_groups(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each RDM's sorting order, and where every pair's group of equals starts and ends."""
    order = np.argsort(vectors, axis=1, kind="stable")
    starts, ends = np.empty_like(order), np.empty_like(order)
    for row, (values, sorting) in enumerate(zip(vectors, order)):
        ascending = values[sorting]
        first = np.flatnonzero(np.r_[True, ascending[1:] != ascending[:-1]])
        group = np.cumsum(np.r_[True, ascending[1:] != ascending[:-1]]) - 1
        starts[row, sorting] = first[group]
        ends[row, sorting] = np.r_[first[1:], len(values)][group]
    return order, starts, ends


def _weighted_ranks(
    weights: np.ndarray, order: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """Return the rank that each pair has among the copies drawn, shape (samples, rdms, pairs)."""
    ranks = np.empty((len(weights), *order.shape))
    below = np.zeros((len(weights), order.shape[1] + 1))
    for row in range(len(order)):
        np.cumsum(weights[:, order[row]], axis=1, out=below[:, 1:])
        ranks[:, row] = 0.5 * (below[:, starts[row]] + below[:, ends[row]] + 1.0)
    return ranks


def _rank_products(
    weights: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weighted sums of products of ranks' deviations from their known mean."""
    middle = 0.5 * (weights.sum(axis=1) + 1.0)[:, None, None]
    x, y = x - middle, y - middle
    weighted = x * weights[:, None, :]
    own_x = np.einsum("srp,srp->sr", weighted, x)
    own_y = np.einsum("srp,srp,sp->sr", y, y, weights, optimize=False)
    return weighted @ y.transpose(0, 2, 1), own_x, own_y


def _whitened_products(
    counts: np.ndarray,
    valid: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    cross: np.ndarray,
    own_a: np.ndarray,
    own_b: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn sums of products into those of double-centred matrices.

    Double centring a sample takes off, from entry ij, (m_i + m_j) / 2 with the m that leave every
    row's sum, diagonal included, at 0; by symmetry copies of a stimulus share their m. What is
    left of an inner product is the product before minus sum_i c_i m_i g_i, g being row sums.
    """
    n = n_stimuli(len(valid))
    c = counts.astype(np.float64)
    seen = to_matrices(valid.astype(np.float64))
    rows = seen @ c.T  # how many entries a row has: stimuli x samples
    sums_a, sums_b = (_row_sums(v, valid, c, rows) for v in (a, b))
    # Without gaps the system is a diagonal and a rank-one part; not where one stimulus fills
    # half of a (very small) sample, because the diagonal may then vanish.
    pivot = 0.5 * c.sum(axis=1)[:, None] + 1.0 - c
    if valid.all() and (pivot > 0).all():
        share = c / pivot
        held = 1.0 + 0.5 * share.sum(axis=1)

        def centre(sums: np.ndarray) -> np.ndarray:
            common = np.einsum("si,ris->rs", share, sums) / held
            return (sums - 0.5 * common[:, None, :]) / pivot.T[None]

        means_a, means_b = centre(sums_a), centre(sums_b)
    else:
        system = 0.5 * seen[None] * c[:, None, :]
        system[:, np.arange(n), np.arange(n)] += 1.0 + 0.5 * rows.T
        both = np.concatenate([sums_a, sums_b]).transpose(2, 1, 0)
        solved = np.linalg.solve(system, both).transpose(2, 1, 0)
        means_a, means_b = solved[: len(a)], solved[len(a) :]
    taken = (c.T[None] * means_a).transpose(2, 0, 1) @ sums_b.transpose(2, 1, 0)
    taken_a = np.einsum("si,ris,ris->sr", c, means_a, sums_a)
    taken_b = np.einsum("si,ris,ris->sr", c, means_b, sums_b)
    return 2 * cross - taken, 2 * own_a - taken_a, 2 * own_b - taken_b


def _row_sums(
    vectors: np.ndarray, valid: np.ndarray, c: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Return weighted row sums of matrices that have weighted mean 0: (rdms, stimuli, samples)."""
    full = np.zeros((len(vectors), len(valid)))
    full[:, valid] = vectors
    sums = to_matrices(full) @ c.T
    weight = np.maximum(np.einsum("si,is->s", c, rows), 1.0)
    mean = np.einsum("si,ris->rs", c, sums) / weight
    return sums - mean[:, None, :] * rows[None]


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
