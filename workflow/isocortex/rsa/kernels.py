"""Bures similarity and Riemannian distance: comparisons of the kernels that RDMs stand for.

Squared Euclidean distances d are those of patterns whose centred kernel (second moment) is
-1/2 H d H, H taking off means. Both comparisons are of these matrices as a whole, so they need
every pair of stimuli.
"""

from __future__ import annotations

import numpy as np

from isocortex.rsa.rdms import n_stimuli, to_matrices

_BLOCK_BYTES = 32 << 20
_FARTHEST = 30.0
"""Logarithm of the largest ratio of noise to signal that is tried."""
_STEPS, _NARROW = 60, 1e-9


def complete_stimuli(valid: np.ndarray) -> np.ndarray | None:
    """Return the stimuli that have any pair; None where a pair among them is missing.

    Parameters
    ----------
    valid
        Pairs that there are, bool (n_pairs,).

    Returns
    -------
    numpy.ndarray or None
        bool, shape (n_stimuli,).
    """
    seen = to_matrices(valid)
    there = seen.any(axis=1)
    count = int(there.sum())
    return there if count >= 2 and valid.sum() == count * (count - 1) // 2 else None


def centred_kernels(vectors: np.ndarray, *, counts: np.ndarray | None = None) -> np.ndarray:
    """Return the centred kernel of every RDM.

    Parameters
    ----------
    vectors
        Squared Euclidean distances, shape (..., n_pairs), finite.
    counts
        How often each stimulus is there, shape (n_stimuli,); once where not given. Repeated rows
        are not made: their kernel has the eigenvalues of this one, whose rows and columns are
        weighted by the roots of the counts, and zeros.

    Returns
    -------
    numpy.ndarray
        float64, shape (..., n, n), n being the stimuli that are there.
    """
    square = to_matrices(np.asarray(vectors, dtype=np.float64))
    if counts is None:
        share = np.full(square.shape[-1], 1.0 / square.shape[-1])
        root = None
    else:
        there = counts > 0
        square = square[..., there, :][..., there]
        share = counts[there] / counts.sum()
        root = np.sqrt(counts[there].astype(np.float64))
    means = square @ share
    kernel = -0.5 * (
        square - means[..., :, None] - means[..., None, :] + (means @ share)[..., None, None]
    )
    return kernel if root is None else kernel * (root[:, None] * root)


def bures_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Bures similarity (normalised fidelity) of kernels with kernels.

    Parameters
    ----------
    a, b
        Kernels, shapes (n_a, n, n) and (n_b, n, n). Negative eigenvalues count as 0.

    Returns
    -------
    numpy.ndarray
        Shape (n_a, n_b): the trace of the root of root(a) b root(a), over the root of the product
        of the traces; 1 for equal kernels. NaN where a trace is not positive.
    """
    scores = np.empty((len(a), len(b)))
    trace_a, trace_b = (np.einsum("rii->r", kernel) for kernel in (a, b))
    size = max(1, _BLOCK_BYTES // (8 * a.shape[-1] ** 2))
    values, vectors = np.linalg.eigh(a)
    # Zero eigenvalues that came out as rounding errors would each add the root of one.
    floor = 1e-14 * np.abs(values).max(axis=1, keepdims=True)
    values = np.where(values > floor, values, 0.0)
    roots = np.sqrt(values)[:, :, None] * vectors.swapaxes(1, 2)
    for row, root in enumerate(roots):
        for start in range(0, len(b), size):
            product = root @ b[start : start + size] @ root.T
            found = np.linalg.eigvalsh(product)
            floor = 1e-14 * np.abs(found).max(axis=1, keepdims=True)
            scores[row, start : start + size] = np.sqrt(np.where(found > floor, found, 0.0)).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(trace_a[:, None]) * np.sqrt(trace_b)
        return np.where(scale > 0, scores / scale, np.nan)


def negative_riemannian_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the negative Riemannian distance of kernels to kernels, noise of the first fitted.

    The first kernel is scaled and gets a multiple of independent noise so as to come nearest to
    the second, as in rsatoolbox 0.3.2 ``neg_riem_dist`` (Shahbazi et al. 2021, NeuroImage 239),
    whose simplex search stops within 1e-4 of the optimum that is found here to 1e-9.

    Parameters
    ----------
    a, b
        Centred kernels, shapes (n_a, n, n) and (n_b, n, n).

    Returns
    -------
    numpy.ndarray
        Shape (n_a, n_b): minus the root of the sum of squared logarithms of the eigenvalues of one
        relative to the other, at most 0. NaN where the second kernel has not n - 1 positive
        eigenvalues (more patterns than channels, or dissimilarities that are no squared distances).
    """
    scores = np.full((len(a), len(b)), np.nan)
    n = a.shape[-1]
    if n < 2:
        return scores
    basis = np.linalg.qr(np.eye(n)[:, 1:] - 1.0 / n)[0]
    a, b = basis.T @ a @ basis, basis.T @ b @ basis
    values, vectors = np.linalg.eigh(b)
    able = values[:, 0] > 1e-12 * np.abs(values[:, -1])
    size = max(1, _BLOCK_BYTES // (8 * 6 * n * n))
    for start in range(0, len(b), size):
        part = start + np.flatnonzero(able[start : start + size])
        if not len(part):
            continue
        whiten = vectors[part].swapaxes(1, 2) / np.sqrt(values[part])[:, :, None]
        noise = whiten @ whiten.swapaxes(1, 2)
        for row, kernel in enumerate(a):
            signal = whiten @ kernel @ whiten.swapaxes(1, 2)
            smallest = np.linalg.eigvalsh(kernel)[0]
            scores[row, part] = -_nearest(signal, noise, smallest)
    return scores


def _nearest(signal: np.ndarray, noise: np.ndarray, smallest: float) -> np.ndarray:
    """Return the least distance to the identity of scale (signal + e^r noise), over scale and r.

    The best scale makes the mean logarithm 0, which leaves the spread of the logarithms: along r
    its derivative's zero is bracketed downhill from r = 0, as a search from there does, then
    found by regula falsi (Illinois), all matrices at once.
    """
    # Below this there are negative eigenvalues.
    lowest = max(-_FARTHEST, np.log(-smallest) + 1e-6 if smallest < 0 else -_FARTHEST)

    def spread(r: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = np.linalg.eigh(signal[rows] + np.exp(r)[:, None, None] * noise[rows])
        values = np.maximum(values, np.finfo(np.float64).tiny)
        logs = np.log(values)
        logs -= logs.mean(axis=1, keepdims=True)
        change = np.einsum("rij,rij->rj", vectors, noise[rows] @ vectors) * np.exp(r)[:, None]
        return np.square(logs).sum(axis=1), 2.0 * (logs * change / values).sum(axis=1)

    everything = np.arange(len(signal))
    near = np.full(len(signal), max(0.0, lowest))
    value, slope = spread(near, everything)
    best = value.copy()
    direction = np.where(slope > 0, -1.0, 1.0)
    far, far_slope = near.copy(), slope.copy()
    open_rows, step = everything, 1.0
    while len(open_rows):
        near[open_rows], slope[open_rows] = far[open_rows], far_slope[open_rows]
        ahead = np.clip(near[open_rows] + step * direction[open_rows], lowest, _FARTHEST)
        moved = ahead != near[open_rows]
        open_rows, ahead = open_rows[moved], ahead[moved]
        found, found_slope = spread(ahead, open_rows)
        best[open_rows] = np.minimum(best[open_rows], found)
        far[open_rows], far_slope[open_rows] = ahead, found_slope
        open_rows = open_rows[found_slope * direction[open_rows] < 0]
        step *= 2.0
    rows = np.flatnonzero(far_slope * slope < 0)
    for _ in range(_STEPS):
        if not len(rows):
            break
        a, b, at_a, at_b = near[rows], far[rows], slope[rows], far_slope[rows]
        middle = (a * at_b - b * at_a) / (at_b - at_a)
        found, at_middle = spread(middle, rows)
        best[rows] = np.minimum(best[rows], found)
        same = at_middle * at_b > 0
        # Illinois: an end that stays twice has its slope halved, so that both ends close in.
        near[rows] = np.where(same, a, b)
        slope[rows] = np.where(same, 0.5 * at_a, at_b)
        far[rows], far_slope[rows] = middle, at_middle
        rows = rows[(np.abs(far[rows] - near[rows]) > _NARROW) & (np.abs(at_middle) > 1e-10)]
    return np.sqrt(best)


def compare_kernels(
    a: np.ndarray, b: np.ndarray, *, comparison: str, counts: np.ndarray | None = None
) -> np.ndarray:
    """Compare RDMs by their kernels.

    Parameters
    ----------
    a, b
        Shapes (n_a, n_pairs) and (n_b, n_pairs), finite.
    comparison
        ``bures`` or ``riemann``.
    counts
        How often each stimulus is there, shape (n_stimuli,). Copies of a stimulus are at distance
        0. For ``riemann`` they change nothing: a copy adds no dimension, noise included.

    Returns
    -------
    numpy.ndarray
        Shape (n_a, n_b).
    """
    if comparison == "riemann" and counts is not None:
        counts = (np.asarray(counts) > 0).astype(np.int64)
    kernels = [centred_kernels(v, counts=counts) for v in (a, b)]
    return (bures_similarity if comparison == "bures" else negative_riemannian_distance)(*kernels)


def keep_stimuli(vectors: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the RDMs of some of the stimuli, bool (n_stimuli,)."""
    i, j = np.triu_indices(n_stimuli(vectors.shape[-1]), 1)
    return vectors[..., chosen[i] & chosen[j]]
