"""How much of the responses' variance there is to explain, and how surely that is known."""

from __future__ import annotations

from collections.abc import Sequence

import dask
import dask.array as da
import numpy as np
from scipy.stats import f as f_distribution

from isocortex import parallel

CONFIDENCE = 0.95
"""Of the intervals of ncsnr and noise ceiling, two-sided."""

_FEWEST = 3


def estimate_noise_ceiling(
    beta: np.ndarray, stimulus: Sequence[str], session: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the noise ceiling of single-trial responses from repeats.

    Parameters
    ----------
    beta, stimulus, session
        As for `describe_repeats`.

    Returns
    -------
    noise_ceiling, ncsnr : numpy.ndarray, shape (n_voxels,)
        See `describe_repeats`.
    """
    found = describe_repeats(beta, stimulus, session)
    return found["noise_ceiling"], found["ncsnr"]


def describe_repeats(
    beta: np.ndarray,
    stimulus: Sequence[str],
    session: Sequence[str],
    half: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """Estimate noise ceiling, signal-to-noise ratio and reliability of single-trial responses.

    Parameters
    ----------
    beta : numpy.ndarray, shape (n_trials, n_voxels)
        Responses.
    stimulus
        Stimulus of each trial; those shown once do not count.
    session
        Session of each trial; responses are z-scored within each, which needs two trials.
    half
        Half of each trial, where responses were estimated in halves that share nothing.

    Returns
    -------
    dict
        Arrays of shape (n_voxels,), NaN where fewer than two stimuli repeat (one varies with no
        other) or the responses do not vary:

        ``noise_ceiling``
            Share of the variance of the mean over all repeats that the stimuli explain, 0 to 1.
        ``ncsnr``
            SD of the signal over SD of the noise of single trials.
        ``noise_ceiling_low``, ``noise_ceiling_high``, ``ncsnr_low``, ``ncsnr_high``
            Their confidence intervals (`CONFIDENCE`).
        ``reliability``
            Pearson correlation over stimuli of the mean responses to odd and to even repeats (or
            in the halves). It is that of half the data: 2 r / (1 + r) estimates that of the mean
            over all repeats (Spearman-Brown).

    Notes
    -----
    The estimates are defined by the Natural Scenes Dataset (Allen et al. 2022, Nature
    Neuroscience, Methods): noise variance is the mean over stimuli of the variance over repeats,
    signal variance is the rest of the total, not below 0; ceiling = ncsnr² / (ncsnr² + mean of
    1/repeats). The total is taken over the trials of repeated stimuli.

    The intervals are those of the random-effects analysis of variance: with k stimuli, n repeats
    of each and N trials, mean squares between over within stimuli are (1 + n ncsnr²) times an F
    with k - 1 and N - k degrees of freedom, exactly so for normal responses. Where numbers of
    repeats differ, n is their harmonic mean and the numerator n times the variance of the means
    (Thomas & Hultquist 1978, Annals of Statistics). Noise is taken to be independent between
    trials, and the stimuli to be drawn from many. With few stimuli the estimate, whose total
    variance has few of them in it, lies below the interval's middle.
    """
    # What one half says about mean and scale is nothing that the other may know.
    groups = session if half is None else [f"{s} {h}" for s, h in zip(session, half, strict=True)]
    scaled, usable = _standardise(beta, np.asarray(groups))
    repeats = _repeats(np.asarray(stimulus), usable)
    names = ("noise_ceiling", "ncsnr")
    ends = tuple(f"{name}_{end}" for name in names for end in ("low", "high"))
    if len(repeats) < 2:
        return {name: np.full(beta.shape[1], np.nan) for name in (*names, *ends, "reliability")}
    counts = np.array([rows.size for rows in repeats])
    variances = np.array([scaled[rows].var(axis=0, ddof=1) for rows in repeats])
    noise = variances.mean(axis=0)
    total = scaled[np.concatenate(repeats)].var(axis=0, ddof=1)
    share = np.mean(1 / counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.maximum(total - noise, 0) / noise
    found = {"noise_ceiling": _ceiling(ratio, share), "ncsnr": np.sqrt(ratio)}
    n_stimuli, n_within = len(counts), int(counts.sum()) - len(counts)
    means = np.array([scaled[rows].mean(axis=0) for rows in repeats])
    pooled = np.einsum("s,sv->v", counts - 1, variances) / n_within
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = means.var(axis=0, ddof=1) / share / pooled
    for end, probability in (("low", (1 + CONFIDENCE) / 2), ("high", (1 - CONFIDENCE) / 2)):
        quantile = f_distribution.ppf(probability, n_stimuli - 1, n_within)
        with np.errstate(invalid="ignore"):
            bound = np.maximum((observed / quantile - 1) * share, 0)
        found[f"ncsnr_{end}"] = np.sqrt(bound)
        found[f"noise_ceiling_{end}"] = _ceiling(bound, share)
    found["reliability"] = _reliability(scaled, repeats, half)
    return found


def describe_repeats_blocks(
    beta: da.Array,
    stimulus: Sequence[str],
    session: Sequence[str],
    *,
    half: Sequence[int] | None = None,
    threads: int,
) -> dict[str, np.ndarray]:
    """Describe the repeats of lazy responses, block by block.

    Parameters
    ----------
    beta : dask.array.Array, shape (n_trials, n_voxels)
        Responses, all trials of a voxel in one block.
    stimulus, session, half
        Of each trial.
    threads
        Blocks that are worked on at a time.

    Returns
    -------
    dict
        Arrays of float32, shape (n_voxels,), see `describe_repeats`.
    """
    parts = [
        dask.delayed(describe_repeats)(block, list(stimulus), list(session), half)
        for block in beta.rechunk({0: -1}).to_delayed().ravel()
    ]
    with parallel.dask_workers(threads):
        done = dask.compute(*parts)
    return {
        name: np.concatenate([found[name] for found in done]).astype(np.float32) for name in done[0]
    }


def _standardise(beta: np.ndarray, session: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return responses z-scored within sessions, and which trials' sessions allow it."""
    scaled = np.full(beta.shape, np.nan)
    usable = np.zeros(len(session), dtype=bool)
    for label in np.unique(session):
        rows = np.flatnonzero(session == label)
        if rows.size < 2:
            continue
        usable[rows] = True
        part = np.asarray(beta[rows], dtype=np.float64)
        spread = part.std(axis=0, ddof=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled[rows] = (part - part.mean(axis=0)) / np.where(spread > 0, spread, np.nan)
    return scaled, usable


def _repeats(stimulus: np.ndarray, usable: np.ndarray) -> list[np.ndarray]:
    """Return the trials of each stimulus that is shown more than once."""
    labels, number = np.unique(stimulus, return_inverse=True)
    order = np.argsort(number, kind="stable")
    order = order[usable[order]]
    groups = np.split(order, np.searchsorted(number[order], np.arange(1, len(labels))))
    return [rows for rows in groups if rows.size > 1]


def _ceiling(ratio: np.ndarray, share: float) -> np.ndarray:
    """Return the explainable share of the mean over repeats from that of single trials."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isinf(ratio), 1.0, ratio / (ratio + share))


def _reliability(
    scaled: np.ndarray, repeats: Sequence[np.ndarray], half: Sequence[int] | None
) -> np.ndarray:
    """Return the correlation over stimuli of the means of two halves of their repeats."""
    pairs = []
    for rows in repeats:
        second = np.arange(rows.size) % 2 == 1 if half is None else np.asarray(half)[rows] == 2
        if second.any() and not second.all():
            pairs.append((scaled[rows[~second]].mean(axis=0), scaled[rows[second]].mean(axis=0)))
    if len(pairs) < _FEWEST:
        return np.full(scaled.shape[1], np.nan)
    first, second = (np.array(means) - np.mean(means, axis=0) for means in zip(*pairs, strict=True))
    lengths = np.sqrt(np.sum(first**2, axis=0) * np.sum(second**2, axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(lengths > 0, np.sum(first * second, axis=0) / lengths, np.nan)
