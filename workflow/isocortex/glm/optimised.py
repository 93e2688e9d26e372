"""The optimised estimator: a response, noise regressors and a regularisation chosen by the data.

The recipe of GLMsingle (Prince et al. 2022, eLife): each voxel's haemodynamic response from a
library, noise components as GLMdenoise finds them (Kay et al. 2013), and fractional ridge
regression (Rokem & Kay 2020), each chosen by cross-validation over runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np
from threadpoolctl import threadpool_limits

from isocortex import parallel
from isocortex.fractional_ridge import FractionalRidge, check_fractions, decompose_design
from isocortex.glm.cross_validation import (
    Alone,
    Conditions,
    choose_number,
    fit_fractions,
    held_out_squares,
    shared_conditions,
    standard_errors,
)
from isocortex.glm.estimate import RunModel
from isocortex.glm.estimators import Estimates
from isocortex.glm.noise_components import find_noise_pool, pool_covariance, principal_components
from isocortex.glm.prepare import PreparedRun
from isocortex.glm.scratch import RunBlocks
from isocortex.glm.series import Series
from isocortex.glm.trial_models import make_trial_model
from isocortex.hrf_library import HRFLibrary, hrf_library

log = logging.getLogger(__name__)

_TINY = np.finfo(np.float64).tiny

FRACTIONS = tuple(k / 20 for k in range(1, 21))
"""Fractions of the length of unpenalised responses, as GLMsingle has them."""


def fit_optimised(
    series: Series,
    runs: Sequence[PreparedRun],
    *,
    beta: RunBlocks,
    residual: RunBlocks,
    threads: int,
    hrfs: int = 20,
    noise_components_max: int = 10,
    noise_pool_r2: float = 0.0,
    fractions: Sequence[float] = FRACTIONS,
) -> Estimates:
    """Estimate all trials with what cross-validation chooses, see `Estimator`.

    Parameters
    ----------
    series, runs, beta, residual, threads
        As every estimator has them. Nothing but these runs has a part in any choice.
    hrfs
        Responses in the library (`isocortex.hrf_library.hrf_library`).
    noise_components_max
        Most noise components a run; 0 for none.
    noise_pool_r2
        Voxels whose cross-validated share of explained variance is below it are the noise pool.
    fractions
        To choose from, ascending to 1; ``(1,)`` for no regularisation.

    Returns
    -------
    Estimates
        With ``fraction``, ``noise_pool`` and ``r2_cross_validated`` of each voxel, and the noise
        components' number and curve in the attributes. ``effect`` and ``variance``, and thereby
        the z-scores, are those of the design with the response of the config, for which the data
        choose nothing: they keep their false-positive rate. Residuals, and thereby the explained
        variance, are those of the chosen design without a penalty, to which the degrees of freedom
        belong.

    Notes
    -----
    Each voxel's response is the one with which responses to stimuli (those that several runs
    show; all others as one) estimated from all other runs predict a run best. Where no stimulus
    is in several runs this is an on-off model, and there is no regularisation, since nothing says
    how much would serve. A single run has nothing to be held out: the response is the one that
    fits best, all having as many regressors, and there are neither noise components nor
    regularisation.

    The series are read up to five times, block by block of voxels.
    """
    wanted = check_fractions(fractions)
    library = hrf_library(hrfs)
    fit = _Fit(series, runs, library, threads)
    found = fit.choose_response()
    pool = np.zeros(series.n_voxels, dtype=bool)
    number, curve = 0, np.zeros(1)
    if len(runs) > 1 and noise_components_max > 0:
        brightness = found.brightness / len(runs)
        explained = np.stack([found.explained, found.explained_on_off])
        pool = find_noise_pool(brightness, explained, threshold=noise_pool_r2)
        components = fit.find_components(pool, noise_components_max)
        curve, by_run = fit.noise_curve(found, components, pool, threshold=noise_pool_r2)
        number = choose_number(curve, by_run)
        if number:
            fit.take_out([values[:, :number] for values in components])
            # What noise hid before may tell responses apart now.
            again = fit.choose_response()
            found.hrf, found.explained = again.hrf, again.explained
    log.info("%d noise components a run from a pool of %d voxels", number, pool.sum())
    last = fit.estimate(found.hrf, wanted, beta, residual)
    share = np.bincount(found.hrf[series.usable], minlength=hrfs) / max(series.usable.sum(), 1)
    return Estimates(
        residual_squares=last.residual_squares,
        nuisance_squares=last.nuisance_squares,
        tsnr=found.tsnr / len(runs),
        effect=found.effect,
        variance=found.variance,
        hrf_index=found.hrf.astype(np.int16),
        beta_se=np.concatenate([fit.errors(run, share) for run in range(len(runs))]),
        degrees_of_freedom=[
            n - model.n_regressors for n, model in zip(series.n_volumes, fit.models, strict=True)
        ],
        effect_degrees_of_freedom=[model.degrees_of_freedom for model in fit.plain],
        condition_number=[model.condition_number for model in fit.plain],
        voxel={
            "fraction": last.fraction,
            "noise_pool": pool,
            "r2_cross_validated": found.explained
            if len(runs) > 1
            else np.full(series.n_voxels, np.nan),
        },
        attrs={
            "noise_components": number,
            "noise_components_r2": [round(float(value), 6) for value in curve],
            "noise_pool_voxels": int(pool.sum()),
            "hrf_peak": [round(float(value), 4) for value in library.peak],
            "hrf_width": [round(float(value), 4) for value in library.width],
        },
        methods=_methods(len(runs), fit.conditions, library, number, len(curve) - 1, wanted),
    )


@dataclass
class _Responses:
    """What the first pass finds, an entry a voxel; sums over runs are not divided yet."""

    hrf: np.ndarray
    hrf_on_off: np.ndarray
    explained: np.ndarray
    explained_on_off: np.ndarray
    brightness: np.ndarray
    tsnr: np.ndarray
    effect: np.ndarray
    variance: np.ndarray


@dataclass
class _Last:
    """What the last pass finds, an entry a voxel."""

    fraction: np.ndarray
    residual_squares: np.ndarray
    nuisance_squares: np.ndarray


class _Fit:
    """The passes over the series of some runs."""

    def __init__(
        self, series: Series, runs: Sequence[PreparedRun], library: HRFLibrary, threads: int
    ) -> None:
        self.series, self.threads = series, threads
        self.library, self.n_hrfs = library, len(library)
        self.session = [run.session for run in runs]
        self.conditions = shared_conditions(
            [[trial.stimulus for trial in run.design.trials] for run in runs]
        )
        # On one thread: the number of cores must not change the last bits.
        with threadpool_limits(limits=1):
            self.plain = [RunModel(run.design) for run in runs]
            self.models = [
                make_trial_model(run, library, self.conditions, number)
                for number, run in enumerate(runs)
            ]
        self._take_products()
        self.decomposed: dict[tuple[int, int], FractionalRidge] = {}

    def choose_response(self) -> _Responses:
        """Choose each voxel's response, and fit the design of the config beside."""
        n = self.series.n_voxels
        found = _Responses(*np.zeros((2, n), dtype=int), *np.zeros((6, n)))
        together = [np.array([0])] * len(self.models)

        def one_block(part: slice) -> None:
            cleaned, mean = [], 0.0
            for run, plain in enumerate(self.plain):
                values = self.series.read(run, part)
                mean = mean + self.series.mean(run, part)
                fit = plain.fit(values)
                found.tsnr[part] += fit.tsnr
                found.effect[part] += fit.effect
                found.variance[part] += fit.variance
                cleaned.append(self.models[run].clean(np.nan_to_num(values)))
            each = [_squares(values) for values in cleaned]
            squares = sum(each)
            least, least_on_off = np.full((2, part.stop - part.start), np.inf)
            for hrf in range(self.n_hrfs):
                stimuli = [m.cross(hrf, y) for m, y in zip(self.models, cleaned, strict=True)]
                error = self._error(hrf, stimuli, each)
                better = error < least
                least[better] = error[better]
                found.hrf[part][better] = hrf
                if len(self.models) == 1:
                    continue
                cross = [m.merge @ values for m, values in zip(self.models, stimuli, strict=True)]
                conditions = error
                if self.conditions.rest >= 0:
                    conditions = held_out_squares(
                        self.gram[hrf], cross, self.conditions.of_run, each
                    ).sum(axis=0)
                on_off = held_out_squares(
                    [values.sum(keepdims=True) for values in self.gram[hrf]],
                    [values.sum(axis=0, keepdims=True) for values in cross],
                    together,
                    each,
                ).sum(axis=0)
                found.explained[part][better] = _explained(conditions, squares)[better]
                better = on_off < least_on_off
                least_on_off[better] = on_off[better]
                found.hrf_on_off[part][better] = hrf
                found.explained_on_off[part] = _explained(least_on_off, squares)
            found.brightness[part] = np.where(self.series.usable[part], mean, np.nan)

        self._each_block(one_block)
        if self.conditions.repeated:
            # To choose by what runs have in common where they have nothing in common would make
            # noise repeat: such voxels get what their mean response says, or the most frequent.
            known = self.series.usable & (found.explained > 0)
            votes = np.bincount(found.hrf[known], minlength=self.n_hrfs)
            common = int(votes.argmax()) if votes.any() else self.library.canonical
            other = np.where(found.explained_on_off > 0, found.hrf_on_off, common)
            found.hrf = np.where(known, found.hrf, other)
        return found

    def find_components(self, pool: np.ndarray, most: int) -> list[np.ndarray]:
        """Return each run's noise components, (n_volumes, n), as many in each."""

        def one_block(part: slice) -> list[np.ndarray]:
            inside = pool[part]
            return [
                pool_covariance(model.clean(self.series.read(run, part)[:, inside]))
                for run, model in enumerate(self.models)
            ]

        sums = [np.zeros((n, n)) for n in self.series.n_volumes]
        for found in self._blocks_in_order(one_block):
            for total, values in zip(sums, found, strict=True):
                total += values
        with threadpool_limits(limits=1):
            # Enough is left over for the trials and an estimate of the noise.
            components = [
                principal_components(
                    total, max(min(most, model.nuisance.shape[0] - model.n_regressors - 2), 0)
                )
                for total, model in zip(sums, self.models, strict=True)
            ]
        least = min(values.shape[1] for values in components)
        if least < most:
            log.info("there are %d noise components in every run, not %d", least, most)
        return [values[:, :least] for values in components]

    def noise_curve(
        self,
        found: _Responses,
        components: Sequence[np.ndarray],
        pool: np.ndarray,
        *,
        threshold: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the cross-validated share of variance with 0, 1, ... components.

        With what each held-out run adds to it, (n + 1, n_runs). The former is the median, the
        latter the mean over the voxels, those of the pool aside, that are above the threshold with
        any number of components. These have a part in the estimate of the responses that predict;
        what is predicted is always the same time series.
        """
        most = components[0].shape[1]
        n_runs = len(self.models)
        explained = np.full((most + 1, self.series.n_voxels), np.nan, dtype=np.float32)

        def one_block(part: slice) -> np.ndarray:
            wanted = self.series.usable[part] & ~pool[part]
            adds = np.zeros((most + 1, n_runs))
            if not wanted.any():
                return adds
            cleaned = [
                model.clean(np.nan_to_num(self.series.read(run, part)))
                for run, model in enumerate(self.models)
            ]
            for hrf, columns in _groups(found.hrf[part], wanted):
                own = [values[:, columns] for values in cleaned]
                cross = [
                    model.merge @ model.cross(hrf, values)
                    for model, values in zip(self.models, own, strict=True)
                ]
                squares = [_squares(values) for values in own]
                shared = [
                    model.condition_regressors(hrf).T @ values
                    for model, values in zip(self.models, components, strict=True)
                ]
                along = [u.T @ values for u, values in zip(components, own, strict=True)]
                share = np.empty((most + 1, n_runs, len(columns)))
                for n in range(most + 1):
                    error = held_out_squares(
                        [g - a[:, :n] @ a[:, :n].T for g, a in zip(self.gram[hrf], shared)],
                        [c - a[:, :n] @ b[:n] for c, a, b in zip(cross, shared, along)],
                        self.conditions.of_run,
                        squares,
                        test_gram=self.gram[hrf],
                        test_cross=cross,
                    )
                    share[n] = (squares - error) / np.maximum(sum(squares), _TINY)
                total = share.sum(axis=1)
                responds = (total > threshold).any(axis=0)
                explained[:, part.start + columns[responds]] = total[:, responds]
                adds += share[:, :, responds].sum(axis=2)
            return adds

        by_run = sum(self._blocks_in_order(one_block))
        responds = np.isfinite(explained[0])
        if not responds.any():
            return np.zeros(most + 1), by_run
        curve = np.median(explained[:, responds].astype(np.float64), axis=1)
        return curve, by_run / responds.sum()

    def take_out(self, components: Sequence[np.ndarray]) -> None:
        """Make noise components a part of the nuisance."""
        with threadpool_limits(limits=1):
            for model, values in zip(self.models, components, strict=True):
                model.regressors -= values @ (values.T @ model.regressors)
                model.nuisance = np.concatenate([model.nuisance, values], axis=1)
        self._take_products()

    def estimate(
        self, hrf: np.ndarray, fractions: Sequence[float], beta: RunBlocks, residual: RunBlocks
    ) -> _Last:
        """Choose each voxel's fraction, and write betas and residuals."""
        last = _Last(*(np.full(self.series.n_voxels, np.nan) for _ in range(3)))
        with threadpool_limits(limits=1):
            for index in np.unique(hrf[self.series.usable]):
                for run, model in enumerate(self.models):
                    self.decomposed[run, int(index)] = decompose_design(model.regressors[index])

        def one_block(part: slice) -> None:
            usable = self.series.usable[part]
            cleaned = [
                model.clean(self.series.read(run, part)) for run, model in enumerate(self.models)
            ]
            made = [np.full((m.regressors.shape[2], usable.size), np.nan) for m in self.models]
            last.nuisance_squares[part] = sum(_squares(values) for values in cleaned)
            for index, columns in _groups(hrf[part], usable):
                designs = [self.decomposed[run, index] for run in range(len(self.models))]
                rotated = [
                    design.rotate(values[:, columns])
                    for design, values in zip(designs, cleaned, strict=True)
                ]
                shrunk = fit_fractions(designs, rotated, self.conditions, self.session, fractions)
                last.fraction[part.start + columns] = shrunk.fraction
                for run, (design, values) in enumerate(zip(designs, shrunk.beta, strict=True)):
                    made[run][:, columns] = values
                    # Noise is what no response explains: a penalty would leave signal in it.
                    along = design.values[:, None] * rotated[run]
                    cleaned[run][:, columns] -= design.projection @ along
            last.residual_squares[part] = sum(_squares(values) for values in cleaned)
            for run, values in enumerate(made):
                beta.write(run, part, values)
                residual.write(run, part, cleaned[run])

        self._each_block(one_block)
        return last

    def errors(self, run: int, share: np.ndarray) -> np.ndarray:
        """Return each trial's standard error, mean over the shares of voxels of each response."""
        made = np.zeros(self.models[run].regressors.shape[2])
        for (number, hrf), design in self.decomposed.items():
            if number == run:
                made += share[hrf] * standard_errors(design)
        return made

    def _take_products(self) -> None:
        """Make the cross-products of each response's and run's regressors."""
        self.gram: list[list[np.ndarray]] = []
        self.alone: list[list[Alone]] = []
        with threadpool_limits(limits=1):
            for hrf in range(self.n_hrfs):
                gram = [_square(model.stimulus_regressors(hrf)) for model in self.models]
                self.gram.append(
                    [m.merge @ g @ m.merge.T for m, g in zip(self.models, gram, strict=True)]
                )
                self.alone.append(
                    [Alone(g, self.conditions.n_known(run)) for run, g in enumerate(gram)]
                )

    def _error(
        self, hrf: int, stimuli: Sequence[np.ndarray], squares: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Return the squared error by which responses are compared.

        Stimuli that other runs show are predicted from these, those that a run alone shows are
        fitted to it: of them, every response has as many.
        """
        cross, left = [], []
        for alone, values, whole in zip(self.alone[hrf], stimuli, squares, strict=True):
            known, went = alone.take_out(values)
            cross.append(known)
            left.append(whole - went)
        known = [own[own != self.conditions.rest] for own in self.conditions.of_run]
        error = held_out_squares([a.gram for a in self.alone[hrf]], cross, known, left)
        return error.sum(axis=0)

    def _each_block(self, function: Callable[[slice], None]) -> None:
        for _ in self._blocks_in_order(function):
            pass

    def _blocks_in_order(self, function: Callable[[slice], Any]) -> Iterator[Any]:
        """Yield what blocks give, in their order; few are held at a time."""
        blocks = self.series.blocks
        with parallel.dask_workers(self.threads):
            for first in range(0, len(blocks), self.threads):
                some = blocks[first : first + self.threads]
                yield from dask.compute(*(dask.delayed(function)(part) for part in some))


def _groups(hrf: np.ndarray, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each response and the columns of the voxels that have it."""
    for index in np.unique(hrf[wanted]):
        yield int(index), np.flatnonzero(wanted & (hrf == index))


def _square(values: np.ndarray) -> np.ndarray:
    return values.T @ values


def _squares(values: np.ndarray) -> np.ndarray:
    return np.einsum("tv,tv->v", values, values)


def _explained(error: np.ndarray, squares: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(squares > 0, 1 - error / squares, np.nan)


def _methods(
    n_runs: int,
    conditions: Conditions,
    library: HRFLibrary,
    number: int,
    most: int,
    fractions: Sequence[float],
) -> list[str]:
    """Return the sentences of the methods text."""
    if len(library) == 1:
        said = ["All voxels have one haemodynamic response, which peaks after 5 s."]
    else:
        said = [
            f"Each voxel's haemodynamic response is one of {len(library)}, which peak after "
            f"{library.peak[0]:g} to {library.peak[-1]:g} s: "
            + (
                "the one that fits the run best, as a single run leaves nothing to hold out."
                if n_runs == 1
                else "the one with which responses to stimuli predict held-out runs best."
                if conditions.repeated
                else "the one with which the mean response to all stimuli predicts held-out runs "
                "best, as no stimulus is in several runs."
            )
        ]
    if number:
        said.append(
            f"{number} principal component{'s' if number > 1 else ''} a run of the voxels that "
            f"do not respond (of at most {most}, by cross-validation over runs; Kay et al. 2013) "
            f"{'are' if number > 1 else 'is'} taken out."
        )
    elif n_runs == 1:
        said.append("A single run leaves nothing to choose noise components by: there are none.")
    elif most:
        said.append(
            f"No noise components are taken out: none of the numbers up to {most} improves the "
            "prediction of held-out runs by more than three standard errors over runs."
        )
    if len(fractions) > 1 and conditions.repeated:
        said.append(
            "Responses are estimated by fractional ridge regression (Rokem & Kay 2020), each "
            "voxel's fraction chosen by how well responses predict those to the same stimulus in "
            "other runs, and brought to the scale of those without regularisation (the recipe of "
            "GLMsingle, Prince et al. 2022)."
        )
    elif len(fractions) > 1:
        said.append(
            "Responses are not regularised, as no stimulus is in several runs to say how much "
            "would serve."
        )
    elif fractions[0] < 1:
        said.append(
            f"Responses are estimated by fractional ridge regression (Rokem & Kay 2020) at a "
            f"fraction of {fractions[0]:g}, and brought to the scale of those without "
            f"regularisation."
        )
    said.append(
        "z-values of the mean response are those of ordinary least squares with the response of "
        "the config, for which the data choose nothing."
    )
    return said
