"""How much of the responses' variance there is to explain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def estimate_noise_ceiling(
    beta: np.ndarray, stimulus: Sequence[str], session: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the noise ceiling of single-trial responses from repeats.

    Parameters
    ----------
    beta : numpy.ndarray, shape (n_trials, n_voxels)
        Responses.
    stimulus
        Stimulus of each trial; those shown once do not count.
    session
        Session of each trial; responses are z-scored within each.

    Returns
    -------
    noise_ceiling : numpy.ndarray, shape (n_voxels,)
        Share of the variance of the mean over all repeats that the stimuli explain, 0 to 1; NaN
        where no stimulus repeats or the responses do not vary.
    ncsnr : numpy.ndarray, shape (n_voxels,)
        SD of the signal over SD of the noise of single trials.

    Notes
    -----
    The definition of the Natural Scenes Dataset (Allen et al. 2022, Nature Neuroscience, Methods):
    noise variance is the mean over stimuli of the variance over repeats, signal variance is the
    rest of the total, not below 0; ceiling = ncsnr² / (ncsnr² + mean of 1/repeats). The total is
    taken over the trials of repeated stimuli. A session needs at least two trials.
    """
    stimulus = np.asarray(stimulus)
    session = np.asarray(session)
    n_voxels = beta.shape[1]
    nothing = np.full(n_voxels, np.nan)
    scaled = np.full(beta.shape, np.nan)
    for label in np.unique(session):
        rows = np.flatnonzero(session == label)
        if rows.size < 2:
            continue
        part = np.asarray(beta[rows], dtype=np.float64)
        spread = part.std(axis=0, ddof=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled[rows] = (part - part.mean(axis=0)) / np.where(spread > 0, spread, np.nan)
    usable = np.array([(session == label).sum() >= 2 for label in session], dtype=bool)
    repeats = []
    for label in np.unique(stimulus[usable]):
        rows = np.flatnonzero(usable & (stimulus == label))
        if rows.size > 1:
            repeats.append(rows)
    if not repeats:
        return nothing, nothing.copy()
    noise = np.mean([scaled[rows].var(axis=0, ddof=1) for rows in repeats], axis=0)
    total = scaled[np.concatenate(repeats)].var(axis=0, ddof=1)
    signal = np.maximum(total - noise, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = signal / noise
        ceiling = ratio / (ratio + np.mean([1 / rows.size for rows in repeats]))
    return np.where(np.isinf(ratio), 1.0, ceiling), np.sqrt(ratio)
