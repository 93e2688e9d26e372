"""What predicts held-out runs best: haemodynamic responses, noise components, fractions.

Pure numerics on the cross-products of designs and time series of single runs, from which drift
and confounds are taken out before. GLMdenoise (Kay et al. 2013, Frontiers in Neuroscience) and
GLMsingle (Prince et al. 2022, eLife) are the source of the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from isocortex.fractional_ridge import FractionalRidge

PENALTY = 1e-6
"""Added to the diagonal of a model's cross-product, scaled to 1: conditions that data cannot tell
apart share their response."""

ENOUGH = 1.05
"""The number of noise components is the least whose gain, times this, is that of the best."""

WEAK = 5.0
"""Trials with more than this many times their run's median standard error choose no fraction."""


@dataclass(frozen=True)
class Conditions:
    """What the trials of several runs have in common.

    Attributes
    ----------
    of_trial : list of numpy.ndarray of int, shape (n_trials,)
        For each run the condition of each trial.
    n
        Number of conditions.
    repeated
        Whether stimuli are shown in several runs.
    """

    of_trial: list[np.ndarray]
    n: int
    repeated: bool

    @property
    def of_run(self) -> list[np.ndarray]:
        """For each run its conditions, ascending."""
        return [np.unique(conditions) for conditions in self.of_trial]

    def sum_trials(self, run: int, values: np.ndarray) -> np.ndarray:
        """Return sums over the trials of each of a run's conditions; values (n_trials, ...)."""
        found, place = np.unique(self.of_trial[run], return_inverse=True)
        total = np.zeros((len(found), *values.shape[1:]))
        np.add.at(total, place, values)
        return total


def shared_conditions(stimuli: Sequence[Sequence[str]]) -> Conditions:
    """Say what can be predicted in a run from other runs.

    Parameters
    ----------
    stimuli
        For each run the stimulus of each trial.

    Returns
    -------
    Conditions
        Each stimulus that several runs show is a condition; all others together are one more, the
        response to any stimulus. Where no stimulus is in several runs, this is all there is (an
        on-off model). Of a single run, what is shown several times in it counts.
    """
    shown: dict[str, set[tuple[int, int]]] = {}
    for run, names in enumerate(stimuli):
        for trial, name in enumerate(names):
            where = (run, 0) if len(stimuli) > 1 else (run, trial)
            shown.setdefault(name, set()).add(where)
    several = {name: k for k, name in enumerate(n for n, w in shown.items() if len(w) > 1)}
    rest = len(several)
    of_trial = [np.array([several.get(name, rest) for name in names]) for names in stimuli]
    n = 1 + max(int(run.max()) for run in of_trial)
    return Conditions(of_trial, n, repeated=bool(several) and len(stimuli) > 1)


def held_out_squares(
    gram: Sequence[np.ndarray],
    cross: Sequence[np.ndarray],
    of_run: Sequence[np.ndarray],
    squares: np.ndarray,
    *,
    test_gram: Sequence[np.ndarray] | None = None,
    test_cross: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Return the squared error of predicting each run from all others.

    Parameters
    ----------
    gram
        For each run the cross-product of its conditions' regressors, (n_conditions of the run,)*2.
    cross
        For each run the products of regressors and time series, (n_conditions of the run, v).
    of_run
        For each run the numbers of its conditions.
    squares : numpy.ndarray, shape (v,)
        Sum of squares of the time series, over all runs.
    test_gram, test_cross
        The same products where a run is predicted; without them those it is trained on.

    Returns
    -------
    numpy.ndarray, shape (v,)
        Sum over runs. With a single run: the squared error of the fit to that run.

    Notes
    -----
    Conditions that no other run has are predicted not to respond.
    """
    test_gram = gram if test_gram is None else test_gram
    test_cross = cross if test_cross is None else test_cross
    n, v = 1 + max(int(run.max()) for run in of_run), cross[0].shape[1]
    whole_gram, whole_cross, count = np.zeros((n, n)), np.zeros((n, v)), np.zeros(n, dtype=int)
    for own, part, products in zip(of_run, gram, cross, strict=True):
        whole_gram[np.ix_(own, own)] += part
        whole_cross[own] += products
        count[own] += 1
    error = squares.astype(np.float64, copy=True)
    for run, own in enumerate(of_run):
        others_gram, others_cross, known = whole_gram, whole_cross, count > 0
        if len(of_run) > 1:
            others_gram, others_cross = whole_gram.copy(), whole_cross.copy()
            others_gram[np.ix_(own, own)] -= gram[run]
            others_cross[own] -= cross[run]
            known = count - np.isin(np.arange(n), own) > 0
        response = np.zeros((n, v))
        response[known] = _solve(others_gram[np.ix_(known, known)], others_cross[known])
        response = response[own]
        error -= 2 * np.einsum("cv,cv->v", response, test_cross[run])
        error += np.einsum("cv,cv->v", response, test_gram[run] @ response)
    return error


def _solve(gram: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Solve normal equations, nearly collinear ones too."""
    norm = np.sqrt(np.diag(gram))
    norm = np.where(norm > 1e-12 * max(norm.max(initial=0.0), 1e-300), norm, np.inf)
    scaled = gram / norm[:, None] / norm
    np.fill_diagonal(scaled, 1 + PENALTY)
    factor = scipy.linalg.cho_factor(scaled, check_finite=False)
    return scipy.linalg.cho_solve(factor, cross / norm[:, None], check_finite=False) / norm[:, None]


def choose_number(curve: np.ndarray) -> int:
    """Return the least number of noise components that does nearly as well as the best.

    Parameters
    ----------
    curve : numpy.ndarray, shape (n_max + 1,)
        What is gained with 0, 1, ... components.

    Notes
    -----
    GLMdenoise's rule: the gain over no component must be that of the best number over `ENOUGH`.
    """
    gain = curve - curve[0]
    if not np.isfinite(gain).all() or gain.max() <= 0:
        return 0
    return int(np.flatnonzero(gain * ENOUGH >= gain.max())[0])


@dataclass(frozen=True)
class Shrunk:
    """The responses of a group of voxels with one haemodynamic response.

    Attributes
    ----------
    fraction : numpy.ndarray, shape (v,)
        What was chosen.
    beta : list of numpy.ndarray, shape (n_trials, v)
        For each run the responses.
    """

    fraction: np.ndarray
    beta: list[np.ndarray]


def fit_fractions(
    models: Sequence[FractionalRidge],
    rotated: Sequence[np.ndarray],
    conditions: Conditions,
    session: Sequence[str],
    fractions: Sequence[float],
) -> Shrunk:
    """Choose each voxel's fraction by cross-validation over runs, and return its responses.

    Parameters
    ----------
    models
        Each run's design of single trials.
    rotated
        Each run's time series in the coordinates of its design (`FractionalRidge.rotate`).
    conditions
        Of all runs; repeats within a run alone decide nothing, as they share that run's noise.
    session
        Of each run: responses are compared in standard deviations from their session's mean.
    fractions
        To choose from, ascending; with one, or where no stimulus is in several runs, it is the
        last.

    Returns
    -------
    Shrunk

    Notes
    -----
    Each trial's response without a penalty is predicted by the mean shrunk response to the same
    stimulus in all other runs. GLMsingle compares shrunken responses as they are, and brings them
    to the scale of those without a penalty in the end. Here they are brought there first, since
    that is how they are handed on: compared as they are, a strong mean response, which shrinks
    with all else, keeps a voxel from as much regularisation as serves it.
    """
    measured = [_measured(model) for model in models]
    plain = [model.rotation @ values for model, values in zip(models, rotated, strict=True)]
    v = rotated[0].shape[1]
    if len(fractions) == 1 or not conditions.repeated:
        chosen = np.full(v, float(fractions[-1]))
    else:
        chosen = _choose_fraction(
            models, rotated, plain, measured, conditions, session, np.asarray(fractions, float)
        )
    beta = [
        model.rotation @ model.shrink(values, chosen)
        for model, values in zip(models, rotated, strict=True)
    ]
    return Shrunk(chosen, _restore_scale(beta, plain, measured))


def _measured(model: FractionalRidge) -> np.ndarray:
    """Return which trials are not hardly measured, such as those cut off by the end of a run."""
    error = standard_errors(model)
    return error <= WEAK * np.median(error)


def standard_errors(model: FractionalRidge) -> np.ndarray:
    """Return each trial's standard error without a penalty, in units of the residual SD."""
    return np.sqrt(np.sum((model.rotation / model.values) ** 2, axis=1))


def _choose_fraction(
    models: Sequence[FractionalRidge],
    rotated: Sequence[np.ndarray],
    plain: Sequence[np.ndarray],
    measured: Sequence[np.ndarray],
    conditions: Conditions,
    session: Sequence[str],
    fractions: np.ndarray,
) -> np.ndarray:
    """Return each voxel's fraction of the least cross-validated error, the larger of equals."""
    v = rotated[0].shape[1]
    n_runs = len(models)
    count = np.zeros(conditions.n, dtype=int)
    own = [np.where(measured[r], conditions.of_trial[r], -1) for r in range(n_runs)]
    within = []
    for trials in own:
        here = np.bincount(trials[trials >= 0], minlength=conditions.n)
        within.append(here)
        count += here
    # What stimuli in one run alone have in common is no stimulus' own response.
    single = conditions.n - 1 if _has_rest(conditions) else -1
    tested = [
        np.flatnonzero((trials >= 0) & (trials != single) & ((count - here)[trials] > 0))
        for trials, here in zip(own, within, strict=True)
    ]
    target, spread = _standardise(plain, measured, session)
    best, least = np.zeros(v, dtype=int), np.full(v, np.inf)
    for index in range(len(fractions) - 1, -1, -1):
        shrunk = [
            model.rotation @ model.shrink(values, fractions[index])
            for model, values in zip(models, rotated, strict=True)
        ]
        shrunk, _ = _standardise(shrunk, measured, session, spread=spread)
        same = sum(np.einsum("tv,tv->v", a[m], a[m]) for a, m in zip(shrunk, measured))
        both = sum(np.einsum("tv,tv->v", a[m], b[m]) for a, b, m in zip(shrunk, target, measured))
        scale = _ratio(both, same)
        total = np.zeros((conditions.n, v))
        for run in range(n_runs):
            np.add.at(total, own[run][measured[run]], shrunk[run][measured[run]])
        error = np.zeros(v)
        for run in range(n_runs):
            rows = tested[run]
            if not rows.size:
                continue
            here = np.zeros((conditions.n, v))
            np.add.at(here, own[run][measured[run]], shrunk[run][measured[run]])
            wanted = own[run][rows]
            others = (count - within[run])[wanted][:, None]
            predicted = scale * (total[wanted] - here[wanted]) / others
            error += np.sum((predicted - target[run][rows]) ** 2, axis=0)
        better = error < least
        best[better], least[better] = index, error[better]
    return fractions[best]


def _has_rest(conditions: Conditions) -> bool:
    """Whether the last condition is what stimuli of one run alone share."""
    last = conditions.n - 1
    return sum(last in run for run in conditions.of_run) < 2 or conditions.rest


def _standardise(
    beta: Sequence[np.ndarray],
    measured: Sequence[np.ndarray],
    session: Sequence[str],
    *,
    spread: Sequence[np.ndarray] | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return responses less their session's mean, over its SD or the one given, and the SDs."""
    made: list[np.ndarray] = [np.empty(0)] * len(beta)
    deviations: list[np.ndarray] = [np.empty(0)] * len(beta)
    for label in dict.fromkeys(session):
        runs = [k for k, name in enumerate(session) if name == label]
        values = np.concatenate([beta[k][measured[k]] for k in runs])
        mean, deviation = values.mean(axis=0), values.std(axis=0)
        for k in runs:
            deviations[k] = deviation if spread is None else spread[k]
            with np.errstate(divide="ignore", invalid="ignore"):
                made[k] = np.where(deviations[k] > 0, (beta[k] - mean) / deviations[k], 0.0)
    return made, deviations


def _restore_scale(
    beta: Sequence[np.ndarray], plain: Sequence[np.ndarray], measured: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Bring shrunken responses to the scale and mean of those without a penalty.

    One factor and one offset a voxel, by least squares over all trials, as GLMsingle does.
    """
    shrunk = np.concatenate([values[m] for values, m in zip(beta, measured, strict=True)])
    target = np.concatenate([values[m] for values, m in zip(plain, measured, strict=True)])
    mean, wanted = shrunk.mean(axis=0), target.mean(axis=0)
    shrunk, target = shrunk - mean, target - wanted
    scale = _ratio(
        np.einsum("tv,tv->v", shrunk, target), np.einsum("tv,tv->v", shrunk, shrunk)
    )
    return [scale * (values - mean) + wanted for values in beta]


def _ratio(both: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Return the factor of a regression; 1 where there is none or it would turn signs around."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = both / same
    return np.where((same > 0) & (found > 0), found, 1.0)
