"""Least squares separate: a model of its own for each trial, for all trials at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isocortex.glm.autocorrelation import PerCoefficient, whiten, yule_walker
from isocortex.glm.design import Design, balanced, response_names

OTHERS = ("together", "condition")


@dataclass(frozen=True)
class _Group:
    """Trials whose models have the same regressors but for the trial and its fellows.

    Attributes
    ----------
    trials
        Numbers of the trials.
    base : numpy.ndarray, shape (n_volumes, n_base)
        Orthonormal basis of what all of the models share.
    own : numpy.ndarray, shape (n_volumes, n_trials, n_own)
        Regressors of the trial and of the sum of the others, without what is in the base.
    inverse : numpy.ndarray, shape (n_trials, n_own, n_own)
        Inverses of the products of ``own``.
    """

    trials: np.ndarray
    base: np.ndarray
    own: np.ndarray
    inverse: np.ndarray


class SeparateModels:
    """The models of all trials of a run, by least squares separate.

    The model of a trial has a regressor for the trial, one for the sum of the others, and drift,
    confounds and other events. What the models share is taken out once; what is left are two
    regressors (twice as many with each derivative of the response), whose products for all trials
    are solved in one batch. By ordinary least squares all responses are then one matrix product.

    Parameters
    ----------
    design
        The run's design with all trials.
    others
        ``together``: one regressor for all other trials (Mumford et al. 2012). ``condition``: one
        for the other trials of each condition, as in nilearn's example of beta series.

    Notes
    -----
    Mumford, Turner, Ashby & Poldrack (2012), NeuroImage 59. A trial without others of its kind has
    no regressor for them.
    """

    def __init__(self, design: Design, *, others: str = "together") -> None:
        if others not in OTHERS:
            raise ValueError(f"others is {others!r}: pass one of {', '.join(OTHERS)}")
        matrix, norms = balanced(design)
        self._responses = _columns_of_trials(matrix * norms, design)
        # The derivative of a sum is the sum of derivatives before each is made orthogonal.
        self._summed = self._responses
        if design.derivatives is not None:
            centred = design.derivatives - design.derivatives.mean(axis=0)
            self._summed = np.concatenate([self._responses[:, :, :1], centred], axis=2)
        self._nuisance = matrix[:, design.nuisance_columns]
        conditions = np.array([trial.condition for trial in design.trials])
        names = list(dict.fromkeys(conditions.tolist())) if others == "condition" else [None]
        self._members = [
            np.arange(len(conditions)) if name is None else np.flatnonzero(conditions == name)
            for name in names
        ]
        self._groups = PerCoefficient(
            self._make_groups, n_bytes=2 * self._responses.nbytes + len(names) * matrix.nbytes
        )
        self._weights = PerCoefficient(
            self._make_weights, n_bytes=8 * matrix.shape[0] * len(conditions)
        )

    def weights(self, rho: float = 0.0) -> np.ndarray:
        """Return what takes a series to its responses.

        Parameters
        ----------
        rho
            Autoregressive coefficient that series and designs are whitened by.

        Returns
        -------
        numpy.ndarray, shape (n_trials, n_volumes)
        """
        return self._weights(rho)

    def fit_ar1(self, scaled: np.ndarray) -> np.ndarray:
        """Return responses with autoregressive noise of first order, one coefficient a model.

        Parameters
        ----------
        scaled : numpy.ndarray, shape (n_volumes, n_voxels)
            Time series.

        Returns
        -------
        numpy.ndarray, shape (n_trials, n_voxels)
            Each model has a coefficient of its own in each voxel, from the residuals of its
            ordinary least squares. NaN where the series is.
        """
        beta = np.full((self._responses.shape[1], scaled.shape[1]), np.nan)
        rho = self._coefficients(scaled)
        for value in np.unique(rho[np.isfinite(rho)]):
            of_value = rho == value
            voxels = np.flatnonzero(of_value.any(axis=0))
            trials = np.flatnonzero(of_value.any(axis=1))
            found = self.weights(float(value))[trials] @ whiten(scaled[:, voxels], float(value))
            here = np.ix_(trials, voxels)
            beta[here] = np.where(of_value[here], found, beta[here])
        return beta

    def _coefficients(self, scaled: np.ndarray) -> np.ndarray:
        """Autoregressive coefficient of each model in each voxel; (n_trials, n_voxels).

        The products of residuals of a model are quadratic forms of the data and of what its few
        regressors take out of them; no model's residuals are ever made.
        """
        n_volumes = scaled.shape[0]
        rho = np.empty((self._responses.shape[1], scaled.shape[1]))
        for group in self._groups(0.0):
            rest = scaled - group.base @ (group.base.T @ scaled)
            shifted = _neighbours(rest)
            n_trials, n_own = group.own.shape[1:]
            flat = group.own.reshape(n_volumes, -1)
            moments = (flat.T @ rest).reshape(n_trials, n_own, -1)
            beta = group.inverse @ moments
            crossed = (flat.T @ shifted).reshape(n_trials, n_own, -1)
            own_shifted = np.einsum(
                "tmi,tmj->mij", group.own, _neighbours(flat).reshape(group.own.shape)
            )
            power = np.einsum("tv,tv->v", rest, rest) - np.einsum("miv,miv->mv", beta, moments)
            lagged = (
                np.einsum("tv,tv->v", rest, shifted)
                - 2 * np.einsum("miv,miv->mv", beta, crossed)
                + np.einsum("miv,miv->mv", beta, own_shifted @ beta)
            )
            rho[group.trials] = yule_walker(power, lagged, n_volumes=n_volumes)
        return rho

    def _make_groups(self, rho: float) -> list[_Group]:
        responses, summed, nuisance = (
            whiten(values, rho) if rho else values
            for values in (self._responses, self._summed, self._nuisance)
        )
        sums = [summed[:, members].sum(axis=1) for members in self._members]
        groups = []
        for number, members in enumerate(self._members):
            others = [total for k, total in enumerate(sums) if k != number]
            base = np.linalg.qr(np.concatenate([nuisance, *others], axis=1))[0]
            own = _without(responses[:, members], base)
            if len(members) > 1:
                alone = _without(summed[:, members], base)
                own = np.concatenate([own, alone.sum(axis=1, keepdims=True) - alone], axis=2)
            inverse = np.linalg.inv(np.einsum("tmi,tmj->mij", own, own))
            groups.append(_Group(members, base, own, inverse))
        return groups

    def _make_weights(self, rho: float) -> np.ndarray:
        weights = np.empty(self._responses.shape[1::-1])
        for group in self._groups(rho):
            weights[group.trials] = np.einsum("tmj,mj->mt", group.own, group.inverse[:, 0])
        return weights


def _columns_of_trials(matrix: np.ndarray, design: Design) -> np.ndarray:
    """Return the regressors of each trial, canonical first; (n_volumes, n_trials, n_own)."""
    column = {name: k for k, name in enumerate(design.names)}
    columns = [
        [column[name] for name in response_names(design.names[k]) if name in column]
        for k in design.trial_columns
    ]
    return matrix[:, np.array(columns)]


def _without(values: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Return regressors (n_volumes, …) without what an orthonormal basis spans."""
    flat = values.reshape(values.shape[0], -1)
    return (flat - base @ (base.T @ flat)).reshape(values.shape)


def _neighbours(values: np.ndarray) -> np.ndarray:
    """Return half the sum of the volumes before and after; its product with values is lagged."""
    out = np.zeros_like(values)
    out[1:] += 0.5 * values[:-1]
    out[:-1] += 0.5 * values[1:]
    return out
