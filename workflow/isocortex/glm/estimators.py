"""What an estimator of single-trial responses takes and gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from nilearn.glm.contrasts import Contrast

from isocortex.glm.scratch import RunBlocks
from isocortex.glm.series import Series

if TYPE_CHECKING:
    from isocortex.glm.prepare import PreparedRun


@dataclass(frozen=True)
class Estimates:
    """What a fit of several runs gives besides betas and residuals; arrays have an entry a voxel.

    Attributes
    ----------
    residual_squares
        Sum over runs of the squared residuals of the whole model.
    nuisance_squares
        The same of the model without the trials.
    tsnr
        Mean over SD, once drift is taken out, mean over runs.
    effect, variance
        Mean response to the trials, percent signal change, and its variance, summed over runs.
    hrf_index
        Which haemodynamic response was used, 0 where there is no choice.
    beta_se : numpy.ndarray, shape (n_trials,)
        Standard error of each trial's beta in units of the residual SD.
    degrees_of_freedom, effect_degrees_of_freedom
        Of each run: volumes less regressors, of the model of the betas and of that of ``effect``.
    condition_number
        Of each run's design with centred, unit-norm columns.
    voxel
        Further arrays of the betas store with an entry a voxel, by name.
    attrs
        Further attributes of the store.
    methods
        What was done, in sentences for the methods text.
    """

    residual_squares: np.ndarray
    nuisance_squares: np.ndarray
    tsnr: np.ndarray
    effect: np.ndarray
    variance: np.ndarray
    hrf_index: np.ndarray
    beta_se: np.ndarray
    degrees_of_freedom: list[int]
    effect_degrees_of_freedom: list[int]
    condition_number: list[float]
    voxel: Mapping[str, np.ndarray] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    methods: Sequence[str] = ()


class Estimator(Protocol):
    """Estimates the responses to all trials of some runs, and nothing but these runs.

    A split-half fit calls it once a half, with that half's series, runs and outputs: every choice
    (response, noise regressors, regularisation, which voxels it is made on) is thereby made inside
    a half. Linear algebra runs on one thread in each block (`isocortex.parallel.dask_workers`),
    and results do not depend on ``threads``.
    """

    def __call__(
        self,
        series: Series,
        runs: Sequence[PreparedRun],
        *,
        beta: RunBlocks,
        residual: RunBlocks,
        threads: int,
    ) -> Estimates:
        """Fit, and write betas and residuals block by block.

        Parameters
        ----------
        series
            Percent signal change; voxels that are not usable are NaN, and may get NaN or anything.
        runs
            The runs of the series, with their designs.
        beta
            Receives the responses: run, trials in the order of ``run.design.trials``, voxels.
        residual
            Receives the residuals: run, volumes, voxels.
        threads
            Blocks that are worked on at a time.
        """
        ...


def fixed_effects_z(effect: np.ndarray, variance: np.ndarray, dof: float) -> np.ndarray:
    """Return the z-score of an effect that was summed over runs, as its variance was.

    Parameters
    ----------
    effect, variance : numpy.ndarray, shape (n_voxels,)
        Sums over runs.
    dof
        Degrees of freedom of all runs together.

    Returns
    -------
    numpy.ndarray, shape (n_voxels,)

    Notes
    -----
    nilearn's contrast arithmetic: effects and variances add up over runs, and so do the degrees
    of freedom.
    """
    return Contrast(effect=effect, variance=variance, dof=dof, stat_type="t").z_score()
