"""Agreement of brain and model summary statistics, with inference over subjects and stimuli."""

from __future__ import annotations

import numpy as np
from scipy import stats

from isocortex.multiple_tests import correct_p
from isocortex.rsa.compare import correlate
from isocortex.rsa.inference import bootstrap_scores, dual_bootstrap_variance
from isocortex.topology.identification import Draws


def _without_gaps(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows with missing and constant ones as zeros, and which rows those are not."""
    known = np.isfinite(rows).all(axis=-1)
    filled = np.where(known[:, None], rows, 0.0)
    known &= np.ptp(filled, axis=-1) > 0
    return np.where(known[:, None], filled, 0.0), known


def _of_pairs(rows: np.ndarray, pairs: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return rows with pairs that are not used as NaN, and which rows have values and spread."""
    pairs = np.ones(rows.shape[-1], dtype=bool) if pairs is None else pairs
    used, known = _without_gaps(rows[:, pairs])
    full = np.full(rows.shape, np.nan)
    full[:, pairs] = used
    return full, known


def correlations(
    brain: np.ndarray,
    models: np.ndarray,
    *,
    comparison: str = "pearson",
    pairs: np.ndarray | None = None,
) -> np.ndarray:
    """Return correlations of every model layer's statistic with every RDM's.

    Parameters
    ----------
    brain
        Shape (subject, region, pair), all pairs of the stimuli; rows with NaN are taken as missing.
    models
        Shape (predictor, pair).
    comparison
        One of `grid.COMPARED_BY`.
    pairs
        Which pairs to use, bool (pair,); all where not given.

    Returns
    -------
    numpy.ndarray
        Shape (predictor, region, subject); NaN where a row is missing or without spread.
    """
    n_subjects, n_regions, n_pairs = brain.shape
    rows, known = _of_pairs(brain.reshape(-1, n_pairs), pairs)
    layers, spread = _of_pairs(models, pairs)
    scores = np.full((len(models), len(rows)), np.nan)
    if known.any() and spread.any():
        found = correlate(layers[spread], rows[known], comparison=comparison)
        scores[np.ix_(spread, known)] = np.clip(found, -1.0, 1.0)
    return scores.reshape(len(models), n_subjects, n_regions).swapaxes(1, 2)


def bootstrap_means(
    brain: np.ndarray,
    models: np.ndarray,
    draws: Draws,
    *,
    comparison: str = "pearson",
    pairs: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean correlations over subjects under bootstraps of stimuli, and of both.

    Parameters
    ----------
    brain
        Shape (subject, region, pair), all pairs of the stimuli; rows with NaN are taken as missing.
    models
        Shape (predictor, pair).
    draws
        Bootstrap samples.
    comparison
        One of `grid.COMPARED_BY`.
    pairs
        Which pairs to use, bool (pair,); all where not given.

    Returns
    -------
    stimuli : numpy.ndarray
        Means over all subjects, stimuli resampled, shape (sample, predictor, region).
    both : numpy.ndarray
        Means over resampled subjects too, same shape.
    """
    n_subjects, n_regions, n_pairs = brain.shape
    pairs = np.ones(n_pairs, dtype=bool) if pairs is None else pairs
    rows, known = _of_pairs(brain.reshape(-1, n_pairs), pairs)
    full, spread = _of_pairs(models, pairs)
    present = known.reshape(n_subjects, n_regions)
    shape = (len(draws), len(models), n_regions)
    by_stimuli, by_both = np.full(shape, np.nan), np.full(shape, np.nan)
    if not known.any() or not spread.any():
        return by_stimuli, by_both
    found = bootstrap_scores(
        full[spread], rows[known], draws.stimuli, comparison=comparison, valid=pairs
    )
    for samples, scores in found:
        r = np.full((len(scores), int(spread.sum()), len(rows)), np.nan)
        r[:, :, known] = scores
        r = r.reshape(len(scores), -1, n_subjects, n_regions)
        index = np.arange(len(draws))[samples]
        where = np.ix_(index, np.flatnonzero(spread))
        by_stimuli[where] = _mean_over_subjects(r, present[None])
        by_both[where] = _mean_over_subjects(r, present * draws.subjects[samples, :, None])
    return by_stimuli, by_both


def _mean_over_subjects(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return means of (sample, predictor, subject, region), weighted (sample, subject, region)."""
    finite = np.isfinite(scores)
    weights = counts[:, None] * finite
    total = weights.sum(axis=2)
    summed = (np.where(finite, scores, 0.0) * weights).sum(axis=2)
    return np.divide(summed, total, out=np.full(total.shape, np.nan), where=total > 0)


def infer(
    scores: np.ndarray,
    by_stimuli: np.ndarray,
    by_both: np.ndarray,
    *,
    n_stimuli: int,
    resample: str,
    interval: float,
) -> dict[str, np.ndarray]:
    """Return means over subjects, their intervals and p-values against 0.

    A t-test on the variance of the mean: over subjects; over stimuli from their bootstrap; or over
    both from the dual bootstrap of Schütt et al. (2023), with the smaller number of degrees of
    freedom.

    Parameters
    ----------
    scores
        Shape (predictor, region, subject), NaN where a subject lacks a region.
    by_stimuli, by_both
        Bootstrapped means, shape (sample, predictor, region), see `bootstrap_means`.
    n_stimuli
        Number of stimuli.
    resample
        What the inference generalises to: ``"both"``, ``"subjects"`` or ``"stimuli"``. Where a
        region has a single subject, ``"both"`` is ``"stimuli"`` and ``"subjects"`` gives NaN.
    interval
        Coverage, as 0.95.

    Returns
    -------
    dict
        ``score``, ``interval_low``, ``interval_high``, ``p`` (one-sided, above 0), ``p_corrected``
        (Holm, over all predictors and regions), each of shape (predictor, region).
    """
    known = np.isfinite(scores)
    count = known.sum(axis=-1)
    total = np.where(known, scores, 0.0).sum(axis=-1)
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    deviation = np.where(known, scores - mean[..., None], 0.0)
    several = np.maximum(count, 2)
    # The variance of bootstrapped means over subjects is known: no need to draw them.
    subjects = (deviation**2).sum(axis=-1) / several**2
    stimuli, both = _variance(by_stimuli), _variance(by_both)
    alone = stimuli * n_stimuli / (n_stimuli - 1)
    if resample == "subjects":
        variance = np.where(count > 1, subjects * several / (several - 1), np.nan)
        degrees = np.where(count > 1, count - 1.0, np.nan)
    elif resample == "stimuli":
        variance, degrees = alone, np.full(count.shape, n_stimuli - 1.0)
    else:
        dual = dual_bootstrap_variance(
            both, subjects, stimuli, n_subjects=several, n_stimuli=n_stimuli
        )
        variance = np.where(count > 1, dual, alone)
        degrees = np.where(count > 1, np.minimum(count, n_stimuli) - 1.0, n_stimuli - 1.0)
    spread = np.sqrt(variance)
    reach = stats.t.ppf((1 + interval) / 2, degrees) * spread
    with np.errstate(divide="ignore", invalid="ignore"):
        p = stats.t.sf(mean / spread, degrees)
    return {
        "score": mean,
        "interval_low": np.clip(mean - reach, -1, 1),
        "interval_high": np.clip(mean + reach, -1, 1),
        "p": p,
        "p_corrected": correct_p(p, correction="holm"),
    }


def _variance(samples: np.ndarray) -> np.ndarray:
    """Return variances over the first axis of the samples that have a value."""
    known = np.isfinite(samples)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, samples, 0.0).sum(axis=0) / count
    variance = np.where(known, (samples - mean) ** 2, 0.0).sum(axis=0) / count
    return np.where(known.any(axis=0), variance, np.nan)
