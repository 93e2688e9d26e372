"""Scores of RDMs under bootstrap samples of the stimuli.

A bootstrap sample of stimuli is a weight c_i c_j on each pair of different stimuli, c_i being how
often stimulus i was drawn; two copies of one stimulus make no pair. So all samples together are a
few matrix products, for ranks after one sort of each RDM.
"""

from __future__ import annotations

import numpy as np

from isocortex.rsa.compare import KERNELS, RANKED, TAUS
from isocortex.rsa.kernels import compare_kernels, complete_stimuli, keep_stimuli
from isocortex.rsa.ranking import sample_concordance, sample_ranks, sample_ties, sorted_groups
from isocortex.rsa.rdms import MINIMUM_STIMULI, n_stimuli, pair_indices, to_matrices

_BLOCK_BYTES = 64 << 20


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


class SampledRDMs:
    """Two sets of RDMs, made ready for scores under bootstrap samples of the stimuli.

    Parameters
    ----------
    a, b
        RDMs, shapes (n_a, n_pairs) and (n_b, n_pairs), float64.
    valid
        Pairs to use, bool (n_pairs,); they must be finite.
    comparison
        One of `isocortex.rsa.compare.COMPARISONS`.

    Attributes
    ----------
    block
        How many samples to ask for at once, so that memory stays bounded.
    """

    def __init__(self, a: np.ndarray, b: np.ndarray, valid: np.ndarray, comparison: str) -> None:
        self.comparison = comparison
        self.valid = valid
        self.there = complete_stimuli(valid) if comparison in KERNELS else None
        if self.there is not None:
            self.a, self.b = (keep_stimuli(v, self.there) for v in (a, b))
        elif comparison in KERNELS:
            self.a, self.b = a, b
        else:
            cosine = comparison in ("cosine", "cosine_cov")
            self.a, self.b = (_standardised(v, valid, centred=not cosine) for v in (a, b))
        if comparison in RANKED:
            self.sorted_a, self.sorted_b = sorted_groups(self.a), sorted_groups(self.b)
        # What a sample holds beside its weights: Kendall's sums only gain by more samples at once.
        rows = 4 if comparison in TAUS else len(a)
        if comparison in RANKED and comparison not in TAUS:
            rows = 2 * (len(a) + len(b))
        self.block = max(1, _BLOCK_BYTES // (8 * max(self.a.shape[1], 1) * max(rows, 1)))

    def scores(self, counts: np.ndarray) -> np.ndarray:
        """Return the scores of a block of samples, (samples, n_a, n_b)."""
        if self.comparison in KERNELS:
            return self._kernel_scores(counts)
        cross, own_a, own_b = self.products(counts)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.comparison == "rho_a":
                total = pair_weights(counts)[:, self.valid].sum(axis=1)
                return cross * (12.0 / (total**3 - total))[:, None, None]
            return cross / np.sqrt(own_a[:, :, None] * own_b[:, None, :])

    def products(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return inner products of each sample's RDMs: a with b, a and b with themselves."""
        weights = pair_weights(counts)[:, self.valid]
        a, b, comparison = self.a, self.b, self.comparison
        if comparison in TAUS:
            # Twice Kendall's sum is over all ordered two copies; so are the numbers of those
            # that are not tied, or of all for tau a.
            total = weights.sum(axis=1)[:, None]
            if comparison == "tau_a":
                own_a, own_b = (np.repeat(total * (total - 1.0), len(v), axis=1) for v in (a, b))
            else:
                own_a, own_b = (
                    total**2 - sample_ties(weights, *groups)
                    for groups in (self.sorted_a, self.sorted_b)
                )
            return 2.0 * sample_concordance(a, b, weights), own_a, own_b
        if comparison in RANKED:
            x, y = (sample_ranks(weights, *groups) for groups in (self.sorted_a, self.sorted_b))
            return _rank_products(weights, x, y)
        products = _products(weights, a, b, centred=comparison in ("pearson", "corr_cov"))
        if comparison in ("corr_cov", "cosine_cov"):
            return _whitened_products(
                counts, self.valid, a, b, *products, centred=comparison == "corr_cov"
            )
        return products

    def plain_norms(self, counts: np.ndarray) -> np.ndarray:
        """Return the norms of each sample's RDMs a, before whitening: (samples, n_a)."""
        weights = pair_weights(counts)[:, self.valid]
        centred = self.comparison in ("pearson", "corr_cov")
        return np.sqrt(np.maximum(_squares(weights, self.a, centred=centred), 0.0))

    def _kernel_scores(self, counts: np.ndarray) -> np.ndarray:
        scores = np.full((len(counts), len(self.a), len(self.b)), np.nan)
        if self.there is not None:
            for sample, row in enumerate(counts[:, self.there]):
                if (row > 0).sum() >= MINIMUM_STIMULI:
                    scores[sample] = compare_kernels(
                        self.a, self.b, comparison=self.comparison, counts=row
                    )
        return scores


def _standardised(vectors: np.ndarray, valid: np.ndarray, *, centred: bool) -> np.ndarray:
    """Return the valid pairs, centred and scaled: no score changes, no precision is lost."""
    used = vectors[:, valid]
    if centred:
        used = used - used.mean(axis=1, keepdims=True)
    size = np.sqrt(np.square(used).mean(axis=1, keepdims=True))
    return used / np.where(size > 0, size, 1.0)


def _products(
    weights: np.ndarray, a: np.ndarray, b: np.ndarray, *, centred: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weighted sums of products a·b, a·a, b·b, of deviations from the weighted means."""
    own_a, own_b = (_squares(weights, v, centred=centred) for v in (a, b))
    weighted = (weights[:, None, :] * a[None]).reshape(-1, a.shape[1])
    cross = (weighted @ b.T).reshape(len(weights), len(a), len(b))
    if not centred:
        return cross, own_a, own_b
    total = np.maximum(weights.sum(axis=1), 1.0)[:, None]
    sum_a, sum_b = weights @ a.T, weights @ b.T
    return cross - sum_a[:, :, None] * sum_b[:, None, :] / total[:, :, None], own_a, own_b


def _squares(weights: np.ndarray, vectors: np.ndarray, *, centred: bool) -> np.ndarray:
    squares = weights @ np.square(vectors).T
    if centred:
        total = np.maximum(weights.sum(axis=1), 1.0)[:, None]
        squares -= np.square(weights @ vectors.T) / total
    return squares


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
    *,
    centred: bool,
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
    sums_a, sums_b = (_row_sums(v, valid, c, rows, centred=centred) for v in (a, b))
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
    vectors: np.ndarray, valid: np.ndarray, c: np.ndarray, rows: np.ndarray, *, centred: bool
) -> np.ndarray:
    """Return weighted row sums of matrices, less their weighted mean: (rdms, stimuli, samples)."""
    full = np.zeros((len(vectors), len(valid)))
    full[:, valid] = vectors
    sums = to_matrices(full) @ c.T
    if not centred:
        return sums
    weight = np.maximum(np.einsum("si,is->s", c, rows), 1.0)
    mean = np.einsum("si,ris->rs", c, sums) / weight
    return sums - mean[:, None, :] * rows[None]
