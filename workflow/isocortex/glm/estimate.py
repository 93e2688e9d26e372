"""The general linear model of single runs, in blocks of voxels: all trials of a run at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dask
import numpy as np
from threadpoolctl import threadpool_limits

from isocortex import parallel
from isocortex.glm.design import Design, balanced
from isocortex.glm.estimators import Estimates, fixed_effects_z
from isocortex.glm.prepare import PreparedRun
from isocortex.glm.scratch import BLOCK_VOXELS, RunBlocks
from isocortex.glm.series import Series


@dataclass(frozen=True)
class BlockFit:
    """The fit of a run to a block of voxels; see `isocortex.glm.estimators.Estimates`.

    Attributes
    ----------
    beta : numpy.ndarray, shape (n_trials, n_voxels)
        Responses, percent signal change for a regressor of height 1 (with nilearn's responses of
        unit sum: what a stimulus that stays on would reach).
    residual : numpy.ndarray, shape (n_volumes, n_voxels)
        Percent signal change.
    residual_squares, nuisance_squares, tsnr, effect, variance : numpy.ndarray, shape (n_voxels,)
        Of this run.
    """

    beta: np.ndarray
    residual: np.ndarray
    residual_squares: np.ndarray
    nuisance_squares: np.ndarray
    tsnr: np.ndarray
    effect: np.ndarray
    variance: np.ndarray


def orthonormal(matrix: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of some columns of a full-rank matrix."""
    return np.linalg.qr(matrix[:, columns])[0]


class RunModel:
    """A run's design, decomposed once; fits blocks of voxels by ordinary least squares.

    Parameters
    ----------
    design
        The run's design.

    Attributes
    ----------
    beta_se : numpy.ndarray, shape (n_trials,)
        Standard error of each trial's beta in units of the residual SD.
    degrees_of_freedom
        Volumes less regressors.
    condition_number
        Of the design with centred, unit-norm columns.

    Notes
    -----
    One decomposition a run, then two matrix products a block, in double precision.
    """

    def __init__(self, design: Design) -> None:
        matrix, norms = balanced(design)
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        pseudo_inverse = ((right.T / values) @ left.T) / norms[:, None]
        self._left = left
        self._nuisance = orthonormal(matrix, design.nuisance_columns)
        self._drift = orthonormal(matrix, design.drift_columns)
        self._to_beta = pseudo_inverse[design.trial_columns]
        self._mean_response = self._to_beta.mean(axis=0)
        self.degrees_of_freedom = matrix.shape[0] - matrix.shape[1]
        self.beta_se = np.sqrt(np.einsum("tv,tv->t", self._to_beta, self._to_beta))
        self.condition_number = float(values[0] / values[-1])

    def fit(self, scaled: np.ndarray) -> BlockFit:
        """Fit a block of voxels; ``scaled`` is percent signal change (n_volumes, n_voxels)."""
        left_over = scaled - self._left @ (self._left.T @ scaled)
        without = scaled - self._nuisance @ (self._nuisance.T @ scaled)
        steady = scaled - self._drift @ (self._drift.T @ scaled)
        spread = np.sqrt(_squares(steady) / (scaled.shape[0] - self._drift.shape[1]))
        squares = _squares(left_over)
        weight = float(self._mean_response @ self._mean_response)
        with np.errstate(divide="ignore", invalid="ignore"):
            tsnr = 100 / spread
        return BlockFit(
            beta=self._to_beta @ scaled,
            residual=left_over,
            residual_squares=squares,
            nuisance_squares=_squares(without),
            tsnr=tsnr,
            effect=self._mean_response @ scaled,
            variance=squares
            / self.degrees_of_freedom
            * (self._mean_response @ self._mean_response),
        )


def _squares(values: np.ndarray) -> np.ndarray:
    return np.einsum("tv,tv->v", values, values)


def fit_all_trials(
    series: Series,
    runs: Sequence[PreparedRun],
    *,
    beta: RunBlocks,
    residual: RunBlocks,
    threads: int,
) -> Estimates:
    """Estimate all trials of a run at once, run by run, see `isocortex.glm.estimators.Estimator`.

    Parameters
    ----------
    series, runs, beta, residual, threads
        As every estimator has them.

    Returns
    -------
    Estimates
    """
    # On one thread: the number of cores must not change the last bits.
    with threadpool_limits(limits=1):
        models = [RunModel(run.design) for run in runs]
    sums = {
        name: np.zeros(series.n_voxels)
        for name in ("residual_squares", "nuisance_squares", "tsnr", "effect", "variance")
    }

    def fit_block(part: slice) -> None:
        for number, model in enumerate(models):
            fit = model.fit(series.read(number, part))
            beta.write(number, part, fit.beta)
            residual.write(number, part, fit.residual)
            for name, total in sums.items():
                total[part] += getattr(fit, name)

    with parallel.dask_workers(threads):
        dask.compute([dask.delayed(fit_block)(part) for part in series.blocks])
    sums["tsnr"] /= len(runs)
    return Estimates(
        **sums,
        hrf_index=np.zeros(series.n_voxels, dtype=np.int16),
        beta_se=np.concatenate([model.beta_se for model in models]),
        degrees_of_freedom=[model.degrees_of_freedom for model in models],
        condition_number=[model.condition_number for model in models],
    )


@dataclass(frozen=True)
class RunFit:
    """What a run's fit gives besides betas and residuals; arrays have an entry a voxel.

    The attributes are those of `isocortex.glm.estimators.Estimates`, of one run.
    """

    residual_squares: np.ndarray
    nuisance_squares: np.ndarray
    tsnr: np.ndarray
    effect: np.ndarray
    variance: np.ndarray
    beta_se: np.ndarray
    degrees_of_freedom: int
    condition_number: float


def fit_run(
    data: np.ndarray,
    design: Design,
    *,
    beta: np.ndarray,
    residual: np.ndarray,
    threads: int = 1,
    block_voxels: int = BLOCK_VOXELS,
) -> RunFit:
    """Fit a run's design by ordinary least squares to data in memory.

    Parameters
    ----------
    data : numpy.ndarray, shape (n_volumes, n_voxels)
        Time series in any unit; scaled here to percent of each voxel's mean.
    design
        The run's design.
    beta : numpy.ndarray, shape (n_trials, n_voxels)
        Receives the responses, see `BlockFit`.
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
    Voxels whose mean is not above 0 have no percent signal change: they get NaN.
    """
    with threadpool_limits(limits=1):
        model = RunModel(design)
    n_voxels = data.shape[1]
    names = ("residual_squares", "nuisance_squares", "tsnr", "effect", "variance")
    found = {name: np.empty(n_voxels) for name in names}

    def fit_block(start: int) -> None:
        part = slice(start, min(start + block_voxels, n_voxels))
        raw = data[:, part].astype(np.float64)
        mean = raw.mean(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = 100 * (raw / np.where(mean > 0, mean, np.nan) - 1)
        fit = model.fit(scaled)
        beta[:, part], residual[:, part] = fit.beta, fit.residual
        for name, values in found.items():
            values[part] = getattr(fit, name)

    with parallel.dask_workers(threads):
        starts = range(0, n_voxels, block_voxels)
        dask.compute([dask.delayed(fit_block)(start) for start in starts])
    return RunFit(
        **found,
        beta_se=model.beta_se,
        degrees_of_freedom=model.degrees_of_freedom,
        condition_number=model.condition_number,
    )


def stimulus_z(runs: Sequence[RunFit]) -> np.ndarray:
    """Return the z-score of the mean response to all trials, fixed effects over runs.

    Parameters
    ----------
    runs
        Fits of the runs.

    Returns
    -------
    numpy.ndarray, shape (n_voxels,)
    """
    return fixed_effects_z(
        np.sum([run.effect for run in runs], axis=0),
        np.sum([run.variance for run in runs], axis=0),
        sum(run.degrees_of_freedom for run in runs),
    )
