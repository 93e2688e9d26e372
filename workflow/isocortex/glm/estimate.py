"""The general linear model of single runs, in blocks of voxels: all trials of a run at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import dask
import numpy as np
from threadpoolctl import threadpool_limits

from isocortex import parallel
from isocortex.glm.autocorrelation import PerCoefficient, colour, estimate_ar1, whiten
from isocortex.glm.design import Design, balanced
from isocortex.glm.estimators import Estimates, fixed_effects_z
from isocortex.glm.lss import SeparateModels
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


@dataclass(frozen=True)
class Decomposition:
    """A design, decomposed: what takes series to responses, and bases of what models span."""

    to_beta: np.ndarray
    left: np.ndarray
    nuisance: np.ndarray
    values: np.ndarray

    @property
    def mean_response(self) -> np.ndarray:
        """What takes a series to the mean response to all trials; shape (n_volumes,)."""
        return self.to_beta.mean(axis=0)


def decompose(design: Design, rho: float = 0.0) -> Decomposition:
    """Decompose a design, whitened by an autoregressive coefficient."""
    matrix, norms = balanced(design)
    if rho:
        matrix = whiten(matrix, rho)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    pseudo_inverse = ((right.T / values) @ left.T) / norms[:, None]
    return Decomposition(
        to_beta=pseudo_inverse[design.trial_columns],
        left=left,
        nuisance=orthonormal(matrix, design.nuisance_columns),
        values=values,
    )


class RunModel:
    """A run's design, decomposed once, which fits blocks of voxels.

    Parameters
    ----------
    design
        The run's design.
    estimator
        ``lsa`` or ``lss``, see `isocortex.glm.fit.fit_glm`.
    noise_model
        ``ols`` or ``ar1``.
    lss_others
        See `isocortex.glm.lss.SeparateModels`.

    Attributes
    ----------
    beta_se : numpy.ndarray, shape (n_trials,)
        Standard error of each trial's beta in units of the residual SD, of white noise.
    degrees_of_freedom
        Volumes less regressors.
    condition_number
        Of the design with centred, unit-norm columns.

    Notes
    -----
    One decomposition a run (with ``ar1`` one for each coefficient, in hundredths), then two matrix
    products a block, in double precision. With ``ar1`` squares are those of the whitened series;
    residuals are data less fit, not whitened. With ``lss`` betas alone are of separate models.
    """

    def __init__(
        self,
        design: Design,
        *,
        estimator: str = "lsa",
        noise_model: str = "ols",
        lss_others: str = "together",
    ) -> None:
        if estimator not in ("lsa", "lss") or noise_model not in ("ols", "ar1"):
            raise ValueError(
                f"estimator is {estimator!r}, noise_model {noise_model!r}: pass lsa or lss, ols or "
                "ar1"
            )
        matrix, _ = balanced(design)
        self._drift = orthonormal(matrix, design.drift_columns)
        self._plain = decompose(design)
        self._separate = SeparateModels(design, others=lss_others) if estimator == "lss" else None
        self._autoregressive = noise_model == "ar1"
        self._at = PerCoefficient(partial(decompose, design), n_bytes=3 * matrix.nbytes)
        to_beta = self._plain.to_beta if self._separate is None else self._separate.weights()
        self.degrees_of_freedom = matrix.shape[0] - matrix.shape[1]
        self.beta_se = np.sqrt(np.einsum("tv,tv->t", to_beta, to_beta))
        self.condition_number = float(self._plain.values[0] / self._plain.values[-1])

    def fit(self, scaled: np.ndarray) -> BlockFit:
        """Fit a block of voxels.

        Parameters
        ----------
        scaled : numpy.ndarray, shape (n_volumes, n_voxels)
            Percent signal change; a voxel with NaN gets NaN.
        """
        fitted = self._fit_ar1(scaled) if self._autoregressive else self._fit_plain(scaled)
        steady = scaled - self._drift @ (self._drift.T @ scaled)
        spread = np.sqrt(_squares(steady) / (scaled.shape[0] - self._drift.shape[1]))
        with np.errstate(divide="ignore", invalid="ignore"):
            return BlockFit(**fitted, tsnr=100 / spread)

    def _fit_plain(self, scaled: np.ndarray) -> dict[str, np.ndarray]:
        fitted = self._solve(self._plain, scaled)
        if self._separate is not None:
            fitted["beta"] = self._separate.weights() @ scaled
        return fitted

    def _fit_ar1(self, scaled: np.ndarray) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for rho, voxels, model, white in self._whitened(scaled):
            part = self._solve(model, white)
            part["residual"] = colour(part["residual"], rho)
            for name, values in part.items():
                if name not in found:
                    found[name] = np.full((*values.shape[:-1], scaled.shape[1]), np.nan)
                found[name][..., voxels] = values
        if not found:
            found = self._solve(self._plain, scaled)
        if self._separate is not None:
            found["beta"] = self._separate.fit_ar1(scaled)
        return found

    def _whitened(
        self, scaled: np.ndarray
    ) -> Iterator[tuple[float, np.ndarray, Decomposition, np.ndarray]]:
        """Yield each coefficient with its voxels, the design and their whitened series."""
        left = self._plain.left
        rho = estimate_ar1(scaled - left @ (left.T @ scaled))
        for value in np.unique(rho[np.isfinite(rho)]).tolist():
            voxels = np.flatnonzero(rho == value)
            yield value, voxels, self._at(value), whiten(scaled[:, voxels], value)

    def fit_contrasts(
        self, scaled: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Estimate contrasts of responses.

        Parameters
        ----------
        scaled : numpy.ndarray, shape (n_volumes, n_voxels)
            Percent signal change.
        weights : numpy.ndarray, shape (n_contrasts, n_trials)
            Of each trial, or condition where these are what gets a response.

        Returns
        -------
        effect, variance : numpy.ndarray, shape (n_contrasts, n_voxels)
            NaN where a series is.
        """
        effect, variance = (np.full((len(weights), scaled.shape[1]), np.nan) for _ in range(2))
        whole = (0.0, np.arange(scaled.shape[1]), self._plain, scaled)
        for _, voxels, model, white in self._whitened(scaled) if self._autoregressive else [whole]:
            to_effect = weights @ model.to_beta
            squares = _squares(white - model.left @ (model.left.T @ white))
            norms = np.einsum("ct,ct->c", to_effect, to_effect)
            effect[:, voxels] = to_effect @ white
            variance[:, voxels] = norms[:, None] * (squares / self.degrees_of_freedom)
        return effect, variance

    def _solve(self, model: Decomposition, values: np.ndarray) -> dict[str, np.ndarray]:
        """Fit a model to series; both whitened, or neither."""
        left_over = values - model.left @ (model.left.T @ values)
        without = values - model.nuisance @ (model.nuisance.T @ values)
        squares = _squares(left_over)
        mean_response = model.mean_response
        weight = float(mean_response @ mean_response)
        return {
            "beta": model.to_beta @ values,
            "residual": left_over,
            "residual_squares": squares,
            "nuisance_squares": _squares(without),
            "effect": mean_response @ values,
            "variance": squares / self.degrees_of_freedom * weight,
        }


def _squares(values: np.ndarray) -> np.ndarray:
    return np.einsum("tv,tv->v", values, values)


def fit_trials(
    series: Series,
    runs: Sequence[PreparedRun],
    *,
    beta: RunBlocks,
    residual: RunBlocks,
    threads: int,
    estimator: str = "lsa",
    noise_model: str = "ols",
    lss_others: str = "together",
) -> Estimates:
    """Estimate all trials run by run, by least squares.

    Parameters
    ----------
    series, runs, beta, residual, threads
        As every estimator has them, see `isocortex.glm.estimators.Estimator`.
    estimator, noise_model, lss_others
        See `RunModel`.

    Returns
    -------
    Estimates
    """
    # On one thread: the number of cores must not change the last bits.
    with threadpool_limits(limits=1):
        models = [
            RunModel(
                run.design, estimator=estimator, noise_model=noise_model, lss_others=lss_others
            )
            for run in runs
        ]
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
        effect_degrees_of_freedom=[model.degrees_of_freedom for model in models],
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
