"""How well held-out responses are predicted, and the most that could be expected.

One definition of the noise ceiling serves the whole project. With `ncsnr` the SD of a voxel's
signal over the SD of the noise of a single sample (Allen et al. 2022, as `isocortex.glm`
estimates it from repeats), the explainable share of the variance of single samples is
ncsnr^2 / (ncsnr^2 + 1), and the highest correlation to be expected of a prediction with single
samples is its root. The betas' `noise_ceiling` is the same share for the mean over repeats, whose
noise is smaller. Encoding tests on single samples, so a score is normalised by the single-sample
ceiling: r over the correlation, r2 over the share.
"""

from __future__ import annotations

import numpy as np
import torch


def pearson(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Pearson correlation down the rows, shape (targets,).

    A constant prediction scores 0 (it explains nothing); a constant target has no score (NaN).
    """
    eps = torch.finfo(target.dtype).eps
    p = prediction - prediction.mean(0)
    t = target - target.mean(0)
    pp, tt = p.square().sum(0), t.square().sum(0)
    flat = pp <= prediction.square().sum(0) * (10 * eps) ** 2
    r = (p * t).sum(0) / (pp.sqrt() * tt.sqrt())
    r = torch.where(flat, torch.zeros_like(r), r.clamp(-1, 1))
    missing = tt <= target.square().sum(0) * (10 * eps) ** 2
    return torch.where(missing, torch.full_like(r, torch.nan), r)


def r2(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Coefficient of determination down the rows, 1 - SS_res / SS_tot, shape (targets,).

    SS_tot is about the target's own mean, so that r2 is below 0 where the prediction, intercept
    and all, is worse than that mean (scikit-learn's `r2_score`). NaN for a constant target.
    """
    eps = torch.finfo(target.dtype).eps
    total = (target - target.mean(0)).square().sum(0)
    left = (target - prediction).square().sum(0)
    missing = total <= target.square().sum(0) * (10 * eps) ** 2
    return torch.where(missing, torch.full_like(total, torch.nan), 1 - left / total)


def ceiling_correlation(ncsnr: np.ndarray) -> np.ndarray:
    """Highest correlation to be expected with single samples, sqrt(ncsnr^2 / (ncsnr^2 + 1)).

    Parameters
    ----------
    ncsnr
        Signal SD over noise SD of single samples; NaN where it is not known.
    """
    ncsnr = np.asarray(ncsnr, float)
    return np.sqrt(ncsnr**2 / (ncsnr**2 + 1))


def normalise(
    score: np.ndarray, ceiling: np.ndarray, *, power: int = 1, min_ceiling: float = 0.05
) -> np.ndarray:
    """Scores over their noise ceiling.

    Parameters
    ----------
    score
        Shape (..., voxels): r, or r2 with `power` 2.
    ceiling
        Shape (voxels,): highest correlation to be expected, NaN unknown.
    power
        Of the ceiling that the score is divided by: 1 for r, 2 for r2.
    min_ceiling
        Least explainable share of the variance (the ceiling squared); NaN below it, where the
        quotient would be mostly noise.

    Returns
    -------
    numpy.ndarray
        Same shape. Values can exceed 1 where the ceiling is uncertain.
    """
    ceiling = np.asarray(ceiling, float)
    enough = high_enough(ceiling, min_ceiling)
    return np.where(enough, score / np.where(enough, ceiling**power, 1), np.nan)


def high_enough(ceiling: np.ndarray, min_ceiling: float) -> np.ndarray:
    """Which ceilings' share of variance is at least `min_ceiling`; not those that are unknown."""
    return np.nan_to_num(np.asarray(ceiling, float) ** 2) >= max(min_ceiling, np.finfo(float).tiny)
