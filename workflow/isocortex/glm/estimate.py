"""Least-squares fit of all trials of a run at once, in blocks of voxels."""

from __future__ import annotations

from dataclasses import dataclass

import dask
import numpy as np
from nilearn.glm.contrasts import Contrast
from threadpoolctl import threadpool_limits

from isocortex import parallel
from isocortex.glm.design import Design, balanced
from isocortex.glm.scratch import BLOCK_VOXELS


@dataclass(frozen=True)
class RunFit:
    """What a run's fit gives besides betas and residuals; arrays have an entry a voxel.

    Attributes
    ----------
    residual_squares
        Sum of squared residuals of the whole design.
    nuisance_squares
        The same of the design without the trials.
    tsnr
        Mean over SD, once drift is taken out.
    effect, variance
        Mean response to the trials, percent signal change, and its variance.
    beta_se : numpy.ndarray, shape (n_trials,)
        Standard error of each trial's beta in units of the residual SD.
    degrees_of_freedom
        Volumes less regressors.
    condition_number
        Of the design with centred, unit-norm columns.
    """

    residual_squares: np.ndarray
    nuisance_squares: np.ndarray
    tsnr: np.ndarray
    effect: np.ndarray
    variance: np.ndarray
    beta_se: np.ndarray
    degrees_of_freedom: int
    condition_number: float


def _basis(matrix: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of some columns of a full-rank matrix."""
    return np.linalg.qr(matrix[:, columns])[0]


def fit_run(
    data: np.ndarray,
    design: Design,
    *,
    beta: np.ndarray,
    residual: np.ndarray,
    threads: int = 1,
    block_voxels: int = BLOCK_VOXELS,
) -> RunFit:
    """Fit a run's design by ordinary least squares.

    Parameters
    ----------
    data : numpy.ndarray, shape (n_volumes, n_voxels)
        Time series in any unit; scaled here to percent of each voxel's mean.
    design
        The run's design.
    beta : numpy.ndarray, shape (n_trials, n_voxels)
        Receives the responses, percent signal change for a regressor of height 1 (with nilearn's
        responses of unit sum: what a stimulus that stays on would reach).
    residual : numpy.ndarray, shape (n_volumes, n_voxels)
        Receives the residuals, percent signal change.
    threads
        Blocks of voxels that are worked on at a time; the results do not depend on it.
    block_voxels
        Voxels in a block.

    Returns
    -------
    RunFit

    Notes
    -----
    One decomposition of the design a run, then two matrix products a block, in double precision.
    Voxels whose mean is not above 0 have no percent signal change: they get NaN.
    """
    matrix, norms = balanced(design)
    n_volumes, n_regressors = matrix.shape
    n_voxels = data.shape[1]
    # On one thread: the number of cores must not change the last bits.
    with threadpool_limits(limits=1):
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        pseudo_inverse = ((right.T / values) @ left.T) / norms[:, None]
        nuisance = _basis(matrix, design.nuisance_columns)
        drift = _basis(matrix, design.drift_columns)
    to_beta = pseudo_inverse[design.trial_columns]
    mean_response = to_beta.mean(axis=0)
    dof = n_volumes - n_regressors

    squares = np.empty((2, n_voxels))
    tsnr = np.empty(n_voxels)
    effect = np.empty(n_voxels)

    def fit_block(start: int) -> None:
        part = slice(start, min(start + block_voxels, n_voxels))
        raw = data[:, part].astype(np.float64)
        mean = raw.mean(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = 100 * (raw / np.where(mean > 0, mean, np.nan) - 1)
        beta[:, part] = to_beta @ scaled
        effect[part] = mean_response @ scaled
        left_over = scaled - left @ (left.T @ scaled)
        residual[:, part] = left_over
        squares[0, part] = np.einsum("tv,tv->v", left_over, left_over)
        without = scaled - nuisance @ (nuisance.T @ scaled)
        squares[1, part] = np.einsum("tv,tv->v", without, without)
        steady = scaled - drift @ (drift.T @ scaled)
        spread = np.sqrt(np.einsum("tv,tv->v", steady, steady) / (n_volumes - drift.shape[1]))
        with np.errstate(divide="ignore", invalid="ignore"):
            tsnr[part] = 100 / spread

    with parallel.dask_workers(threads):
        starts = range(0, n_voxels, block_voxels)
        dask.compute([dask.delayed(fit_block)(start) for start in starts])
    return RunFit(
        residual_squares=squares[0],
        nuisance_squares=squares[1],
        tsnr=tsnr,
        effect=effect,
        variance=squares[0] / dof * (mean_response @ mean_response),
        beta_se=np.sqrt(np.einsum("tv,tv->t", to_beta, to_beta)),
        degrees_of_freedom=dof,
        condition_number=float(values[0] / values[-1]),
    )


def stimulus_z(runs: list[RunFit]) -> np.ndarray:
    """Return the z-score of the mean response to all trials, fixed effects over runs.

    Parameters
    ----------
    runs
        Fits of the runs.

    Returns
    -------
    numpy.ndarray, shape (n_voxels,)

    Notes
    -----
    nilearn's contrast arithmetic: effects and variances add up over runs, and so do the degrees
    of freedom.
    """
    parts = [
        Contrast(
            effect=run.effect, variance=run.variance, dof=run.degrees_of_freedom, stat_type="t"
        )
        for run in runs
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.z_score()
