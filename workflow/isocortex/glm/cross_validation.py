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

SURELY = 3.0
"""How many times its standard error over runs the gain must be for there to be any components: it
is the best of several, and held-out runs share what they are predicted from."""

WEAK = 5.0
"""Trials with more than this many times their run's median standard error choose no fraction."""

_WHOLE = 0.99
"""Share of a trial that must lie on the axes of its design for it to count as measured."""


@dataclass(frozen=True)
class Conditions:
    """What the trials of several runs have in common.

    Attributes
    ----------
    of_trial : list of numpy.ndarray of int, shape (n_trials,)
        For each run the condition of each trial.
    stimulus_of_trial : list of numpy.ndarray of int, shape (n_trials,)
        For each run the number of each trial's stimulus among those of the run: those that other
        runs show too, in the order of their conditions, before those that it alone shows.
    n
        Number of conditions.
    rest
        The condition that all stimuli share which one run alone shows; -1 where there are none.
    repeated
        Whether stimuli are shown in several runs.
    """

    of_trial: list[np.ndarray]
    stimulus_of_trial: list[np.ndarray]
    n: int
    rest: int
    repeated: bool

    @property
    def of_run(self) -> list[np.ndarray]:
        """For each run its conditions, ascending."""
        return [np.unique(conditions) for conditions in self.of_trial]

    def n_known(self, run: int) -> int:
        """Return how many of a run's conditions are stimuli that other runs show too."""
        return int((self.of_run[run] != self.rest).sum())

    def stimulus_incidence(self, run: int) -> np.ndarray:
        """Return which trials show which of a run's stimuli: (n_stimuli, n_trials)."""
        number = self.stimulus_of_trial[run]
        return (np.arange(number.max() + 1)[:, None] == number).astype(np.float64)

    def incidence(self, run: int) -> np.ndarray:
        """Return which trials belong to which of a run's conditions: (n of the run, n_trials)."""
        return (self.of_run[run][:, None] == self.of_trial[run]).astype(np.float64)

    def merge(self, run: int) -> np.ndarray:
        """Return which of a run's stimuli belong to which condition: (n of the run, n_stimuli)."""
        number = np.arange(self.stimulus_of_trial[run].max() + 1)
        condition = np.minimum(number, len(self.of_run[run]) - 1)
        return (np.arange(len(self.of_run[run]))[:, None] == condition).astype(np.float64)


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
        on-off model).
    """
    shown: dict[str, set[int]] = {}
    for run, names in enumerate(stimuli):
        for name in names:
            shown.setdefault(name, set()).add(run)
    several = {name: k for k, name in enumerate(n for n, w in shown.items() if len(w) > 1)}
    rest = len(several)
    of_trial = [np.array([several.get(name, rest) for name in names]) for names in stimuli]
    numbers = []
    for names in stimuli:
        ordered = sorted(dict.fromkeys(names), key=lambda name: several.get(name, rest))
        place = {name: k for k, name in enumerate(ordered)}
        numbers.append(np.array([place[name] for name in names]))
    n = 1 + max(int(run.max()) for run in of_trial)
    return Conditions(of_trial, numbers, n, rest if n > rest else -1, repeated=bool(several))


class Alone:
    """Takes the stimuli that one run alone shows out of what its other stimuli are to explain.

    Parameters
    ----------
    gram : numpy.ndarray, shape (n_stimuli, n_stimuli)
        Cross-product of the regressors of a run's stimuli, those known to other runs first.
    n_known
        How many those are.

    Attributes
    ----------
    gram : numpy.ndarray, shape (n_known, n_known)
        What is left of their cross-product.
    """

    def __init__(self, gram: np.ndarray, n_known: int) -> None:
        self._n = n_known
        self._norm, self._factor = _factor(gram[n_known:, n_known:])
        self._share = _substitute(self._norm, self._factor, gram[n_known:, :n_known])
        self.gram = gram[:n_known, :n_known] - gram[:n_known, n_known:] @ self._share

    def take_out(self, cross: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what is left of products with time series, and the squares that went.

        Parameters
        ----------
        cross : numpy.ndarray, shape (n_stimuli, v)

        Returns
        -------
        cross : numpy.ndarray, shape (n_known, v)
        squares : numpy.ndarray, shape (v,)
        """
        alone = cross[self._n :]
        response = _substitute(self._norm, self._factor, alone)
        return cross[: self._n] - self._share.T @ alone, np.einsum("cv,cv->v", response, alone)


def held_out_squares(
    gram: Sequence[np.ndarray],
    cross: Sequence[np.ndarray],
    of_run: Sequence[np.ndarray],
    squares: Sequence[np.ndarray],
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
    squares
        For each run the sum of squares of its time series, (v,).
    test_gram, test_cross
        The same products where a run is predicted; without them those it is trained on.

    Returns
    -------
    numpy.ndarray, shape (n_runs, v)

    Notes
    -----
    Conditions that no other run has are predicted not to respond.
    """
    test_gram = gram if test_gram is None else test_gram
    test_cross = cross if test_cross is None else test_cross
    n = 1 + max((int(run.max()) for run in of_run if run.size), default=-1)
    v = len(squares[0])
    whole_gram, whole_cross, count = np.zeros((n, n)), np.zeros((n, v)), np.zeros(n, dtype=int)
    for own, part, products in zip(of_run, gram, cross, strict=True):
        whole_gram[np.ix_(own, own)] += part
        whole_cross[own] += products
        count[own] += 1
    error = np.array(squares, dtype=np.float64)
    for run, own in enumerate(of_run):
        others_gram, others_cross = whole_gram.copy(), whole_cross.copy()
        others_gram[np.ix_(own, own)] -= gram[run]
        others_cross[own] -= cross[run]
        known = count - np.isin(np.arange(n), own) > 0
        if not known.any():
            continue
        response = np.zeros((n, v))
        response[known] = _substitute(
            *_factor(others_gram[np.ix_(known, known)]), others_cross[known]
        )
        response = response[own]
        error[run] -= 2 * np.einsum("cv,cv->v", response, test_cross[run])
        error[run] += np.einsum("cv,cv->v", response, test_gram[run] @ response)
    return error


def _factor(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the regressors' lengths and the Cholesky factor of normal equations."""
    norm = np.sqrt(np.maximum(np.diag(gram), 0))
    norm = np.where(norm > 1e-12 * norm.max(initial=1e-300), norm, np.inf)
    scaled = gram / norm[:, None] / norm
    np.fill_diagonal(scaled, 1 + PENALTY)
    return norm, np.linalg.cholesky(scaled)


def _substitute(norm: np.ndarray, factor: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Solve normal equations."""
    if not norm.size:
        return np.zeros_like(cross)
    solved = scipy.linalg.cho_solve((factor, True), cross / norm[:, None], check_finite=False)
    return solved / norm[:, None]


def choose_number(curve: np.ndarray, by_run: np.ndarray) -> int:
    """Return the least number of noise components that does nearly as well as the best.

    Parameters
    ----------
    curve : numpy.ndarray, shape (n_max + 1,)
        Share of variance that is explained with 0, 1, ... components.
    by_run : numpy.ndarray, shape (n_max + 1, n_runs)
        What each held-out run adds to it.

    Notes
    -----
    GLMdenoise's rule: the gain over no component must be that of the best number over `ENOUGH`.
    Beyond it, the runs must agree that there is one: where the gain is not `SURELY` times its
    standard error over held-out runs there are no components. A flat curve, too, has a highest
    point, and components without use cost degrees of freedom and take responses with them.
    """
    gain = curve - curve[0]
    if not np.isfinite(gain).all() or gain.max() <= 0:
        return 0
    number = int(np.flatnonzero(gain * ENOUGH >= gain.max())[0])
    each = by_run[number] - by_run[0]
    error = each.std(ddof=1) / np.sqrt(each.size)
    return number if each.mean() > SURELY * error else 0


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
        To choose from, ascending; one alone is taken. Where no stimulus is in several runs there
        is no choice, and no penalty.

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
        chosen = np.full(v, float(fractions[0]) if len(fractions) == 1 else 1.0)
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
    """Return each trial's standard error without a penalty, in units of the residual SD.

    Infinite where a trial lies, in part or whole, on axes that take no part, as one does that
    began just before the last volume.
    """
    error = np.sqrt(np.sum((model.rotation / model.values) ** 2, axis=1))
    return np.where(np.sum(model.rotation**2, axis=1) > _WHOLE, error, np.inf)


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
    v, of_run = rotated[0].shape[1], conditions.of_run
    sums = [conditions.incidence(run) * mask for run, mask in enumerate(measured)]
    count = np.zeros(conditions.n)
    for own, here in zip(of_run, sums, strict=True):
        count[own] += here.sum(axis=1)
    tested, place, others = [], [], []
    for run, (own, here) in enumerate(zip(of_run, sums, strict=True)):
        where = np.searchsorted(own, conditions.of_trial[run])
        left = (count[own] - here.sum(axis=1))[where]
        # What stimuli of one run alone have in common is no stimulus' own response.
        rows = np.flatnonzero(
            measured[run] & (left > 0) & (conditions.of_trial[run] != conditions.rest)
        )
        tested.append(rows)
        place.append(where[rows])
        others.append(left[rows, None])
    target, spread = _standardise(plain, measured, session)
    best, least = np.zeros(v, dtype=int), np.full(v, np.inf)
    for index in range(len(fractions) - 1, -1, -1):
        shrunk, _ = _standardise(
            [
                model.rotation @ model.shrink(values, fractions[index])
                for model, values in zip(models, rotated, strict=True)
            ],
            measured,
            session,
            spread=spread,
        )
        scale = _regression(shrunk, target, measured)
        means = [here @ values for here, values in zip(sums, shrunk, strict=True)]
        total = np.zeros((conditions.n, v))
        for own, values in zip(of_run, means, strict=True):
            total[own] += values
        error = np.zeros(v)
        for run, own in enumerate(of_run):
            predicted = (total[own] - means[run])[place[run]] / others[run]
            error += np.sum((scale * predicted - target[run][tested[run]]) ** 2, axis=0)
        better = error < least
        best[better], least[better] = index, error[better]
    return fractions[best]


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
    centred, means = [], []
    for parts in (beta, plain):
        mean = np.concatenate([p[m] for p, m in zip(parts, measured, strict=True)]).mean(axis=0)
        centred.append([values - mean for values in parts])
        means.append(mean)
    scale = _regression(*centred, measured)
    return [scale * values + means[1] for values in centred[0]]


def _regression(
    beta: Sequence[np.ndarray], target: Sequence[np.ndarray], measured: Sequence[np.ndarray]
) -> np.ndarray:
    """Return each voxel's factor from centred responses to others over the measured trials.

    It is 1 where there is none, or where it would turn signs around.
    """
    same = both = 0.0
    for values, wanted, mask in zip(beta, target, measured, strict=True):
        same = same + np.einsum("tv,tv->v", values[mask], values[mask])
        both = both + np.einsum("tv,tv->v", values[mask], wanted[mask])
    with np.errstate(divide="ignore", invalid="ignore"):
        found = both / same
    return np.where((same > 0) & (found > 0), found, 1.0)
