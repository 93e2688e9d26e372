"""Noise ceilings under bootstrap samples of subjects and stimuli: how sure they are."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

from isocortex.rsa.compare import KERNELS, RANKED, TAUS, check_comparison
from isocortex.rsa.kernels import compare_kernels, complete_stimuli, keep_stimuli
from isocortex.rsa.ranking import tied_squares, weighted_concordance, weighted_ranks
from isocortex.rsa.rdms import MINIMUM_STIMULI, n_stimuli
from isocortex.rsa.sampling import SampledRDMs, pair_weights


def bootstrap_ceiling(
    brain: np.ndarray,
    subject_counts: np.ndarray | None,
    stimulus_counts: np.ndarray | None,
    *,
    comparison: str = "pearson",
) -> np.ndarray:
    """Return the lower and the upper noise ceiling of bootstrap samples.

    Parameters
    ----------
    brain
        RDMs, shape (n_subjects, n_pairs); pairs that are NaN in any subject are left out.
    subject_counts
        How often each subject is in each sample, shape (..., n_samples, n_subjects); leading axes
        share the samples of stimuli, whose work is done once. All subjects once where not given.
    stimulus_counts
        How often each stimulus is in each sample, shape (n_samples, n_stimuli). All stimuli once
        where not given.
    comparison
        One of `isocortex.rsa.compare.COMPARISONS`.

    Returns
    -------
    numpy.ndarray
        float64, shape (..., n_samples, 2): exactly `isocortex.rsa.compare.noise_ceiling` of the
        RDMs repeated as drawn, the copies of a subject being left out together and counted once,
        as rsatoolbox 0.3.2 ``boot_noise_ceiling`` does in its bootstraps. NaN for samples of one
        subject only, or of fewer than 4 different stimuli.

    Notes
    -----
    Where a score is an inner product, so is the pooled RDM's norm: the subjects' inner products
    with one another give both ceilings. Ranks of pooled RDMs are sorted again in every sample.
    """
    check_comparison(comparison)
    brain = np.asarray(brain, dtype=np.float64)
    n = len(brain)
    if subject_counts is None:
        samples = 1 if stimulus_counts is None else len(stimulus_counts)
        subject_counts = np.ones((samples, n), dtype=np.int64)
    if stimulus_counts is None:
        stimulus_counts = np.ones((1, n_stimuli(brain.shape[1])), dtype=np.int64)
    leading = subject_counts.shape[:-1]
    counts = subject_counts.reshape(-1, *subject_counts.shape[-2:]).astype(np.float64)
    ceilings = np.full((*counts.shape[:2], 2), np.nan)
    valid = np.isfinite(brain).all(axis=0)
    usable = (stimulus_counts > 0).sum(axis=1) >= MINIMUM_STIMULI
    one = len(stimulus_counts) == 1
    if comparison not in RANKED and comparison not in KERNELS:
        sampled = SampledRDMs(brain, brain, valid, comparison)
        for start in range(0, len(stimulus_counts), sampled.block):
            chunk = slice(start, min(start + sampled.block, len(stimulus_counts)))
            drawn = stimulus_counts[chunk]
            target = slice(None) if one else chunk
            ceilings[:, target] = _from_products(
                sampled.products(drawn)[0], sampled.plain_norms(drawn), counts[:, target]
            )
    else:
        prepared = (_Kernels if comparison in KERNELS else _Ranks)(brain, valid, comparison)
        for sample in np.flatnonzero(usable):
            own = prepared.sample(stimulus_counts[sample])
            rows = range(counts.shape[1]) if one else (sample,)
            for kind, row in itertools.product(range(len(counts)), rows):
                ceilings[kind, row] = own(counts[kind, row])
    ceilings[:, ~(np.repeat(usable, counts.shape[1]) if one else usable)] = np.nan
    ceilings[(counts > 0).sum(axis=-1) < 2] = np.nan
    return ceilings.reshape(*leading, 2)


def _from_products(gram: np.ndarray, norms: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return ceilings from inner products, (kinds, samples, 2).

    Parameters
    ----------
    gram
        Of the subjects' RDMs, shape (samples, subjects, subjects).
    norms
        What RDMs are divided by before they are pooled, shape (samples, subjects).
    counts
        Shape (kinds, samples, subjects).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        gram = gram / (norms[:, :, None] * norms[:, None, :])
        own = np.einsum("sii->si", gram)
        agreement = np.einsum("ksj,sij->ksi", counts, gram)
        whole = np.einsum("ksi,ksi->ks", counts, agreement)[:, :, None]
        high = agreement / np.sqrt(whole * own)
        others = whole - 2.0 * counts * agreement + counts**2 * own
        low = (agreement - counts * own) / np.sqrt(others * own)
    there = counts > 0
    number = np.maximum(there.sum(axis=-1), 1)
    return np.stack([np.where(there, v, 0.0).sum(axis=-1) / number for v in (low, high)], axis=-1)


class _Ranks:
    """RDMs of subjects as whole numbers of the same order."""

    def __init__(self, brain: np.ndarray, valid: np.ndarray, comparison: str) -> None:
        self._comparison, self._valid = comparison, valid
        self._ranks = rankdata(brain[:, valid], method="dense", axis=1).astype(np.int64)

    def sample(self, stimuli: np.ndarray) -> Callable[[np.ndarray], tuple[float, float]]:
        """Return the function from subject counts to the ceilings of one sample of stimuli."""
        weights = pair_weights(stimuli)[self._valid]
        kept = weights > 0
        weights = weights[kept]
        # Ranks are whole or halves: twice as much, sums stay exact and ties stay ties.
        twice = np.rint(2.0 * weighted_ranks(self._ranks[:, kept], weights)).astype(np.int64)
        total = weights.sum()
        centred = 0.5 * twice - 0.5 * (total + 1.0)
        squares = np.square(centred) @ weights

        def spearman(pooled: np.ndarray, who: np.ndarray) -> np.ndarray:
            ranks = weighted_ranks(pooled, weights)
            ranks -= 0.5 * (total + 1.0)
            every = (ranks * weights) @ centred[who].T
            cross = np.stack([every[:-1].diagonal(), every[-1]])
            if self._comparison == "rho_a":
                return cross * 12.0 / (total**3 - total)
            own = np.square(ranks) @ weights
            own = np.stack([own[:-1], np.repeat(own[-1], len(who))])
            return cross / np.sqrt(own * squares[who])

        def kendall(pooled: np.ndarray, who: np.ndarray) -> np.ndarray:
            ranks = np.concatenate([pooled[:-1], np.repeat(pooled[-1:], len(who), axis=0)])
            others = twice[np.concatenate([who, who])]
            sums = 2.0 * weighted_concordance(ranks, others, weights).reshape(2, -1)
            if self._comparison == "tau_a":
                return sums / (total * (total - 1.0))
            untied = [total**2 - tied_squares(v, weights) for v in (ranks, others)]
            return sums / np.sqrt(untied[0] * untied[1]).reshape(2, -1)

        def ceilings(counts: np.ndarray) -> tuple[float, float]:
            whole = counts.astype(np.int64)
            who = np.flatnonzero(whole)
            if not len(who):  # all draws are of subjects that lack the region
                return np.nan, np.nan
            everything = whole @ twice
            pooled = np.concatenate([everything - whole[who, None] * twice[who], everything[None]])
            with np.errstate(divide="ignore", invalid="ignore"):
                scores = (kendall if self._comparison in TAUS else spearman)(pooled, who)
            return tuple(scores.mean(axis=1))

        return ceilings


class _Kernels:
    """RDMs of subjects, for comparisons of kernels."""

    def __init__(self, brain: np.ndarray, valid: np.ndarray, comparison: str) -> None:
        self._comparison = comparison
        self._there = complete_stimuli(valid)
        self._brain = brain if self._there is None else keep_stimuli(brain, self._there)

    def sample(self, stimuli: np.ndarray) -> Callable[[np.ndarray], tuple[float, float]]:
        """Return the function from subject counts to the ceilings of one sample of stimuli."""
        if self._there is None or (stimuli[self._there] > 0).sum() < MINIMUM_STIMULI:
            return lambda counts: (np.nan, np.nan)
        stimuli = stimuli[self._there]
        brain = scaled = self._brain
        if self._comparison == "bures":
            mean = brain @ pair_weights(stimuli)
            scaled = brain / np.where(mean > 0, mean, np.nan)[:, None]
            if not np.isfinite(scaled).all():
                return lambda counts: (np.nan, np.nan)

        def score(pooled: np.ndarray, rows: np.ndarray) -> np.ndarray:
            return compare_kernels(pooled[None], rows, comparison=self._comparison, counts=stimuli)[
                0
            ]

        def ceilings(counts: np.ndarray) -> tuple[float, float]:
            who = np.flatnonzero(counts)
            if len(who) < 2:
                return np.nan, np.nan
            # A mean, not a sum: the Riemannian distance starts its search at the first one's scale.
            everything = counts @ scaled
            low = [
                score((everything - counts[k] * scaled[k]) / (counts.sum() - counts[k]), brain[[k]])
                for k in who
            ]
            return np.mean(low), score(everything / counts.sum(), brain[who]).mean()

        return ceilings
