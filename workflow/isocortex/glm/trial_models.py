"""A run's regressors of single trials with each haemodynamic response of a library."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isocortex.glm.cross_validation import Conditions
from isocortex.glm.design import balanced
from isocortex.glm.estimate import orthonormal
from isocortex.glm.prepare import PreparedRun
from isocortex.hrf_library import HRFLibrary


@dataclass
class TrialModel:
    """A run's regressors with each response, nuisance taken out.

    Attributes
    ----------
    nuisance : numpy.ndarray, shape (n_volumes, n_nuisance)
        Orthonormal basis of drift, confounds, events that are no trials (with the response of the
        config) and, once they are chosen, noise components.
    regressors : numpy.ndarray, shape (n_hrfs, n_volumes, n_trials)
        Of single trials.
    incidence : numpy.ndarray, shape (n_stimuli, n_trials)
        Which trials show which of the run's stimuli.
    merge : numpy.ndarray, shape (n_conditions, n_stimuli)
        Which stimuli belong to which of the run's conditions.
    """

    nuisance: np.ndarray
    regressors: np.ndarray
    incidence: np.ndarray
    merge: np.ndarray

    @property
    def n_regressors(self) -> int:
        """Trials and nuisance."""
        return self.nuisance.shape[1] + self.regressors.shape[2]

    def clean(self, values: np.ndarray) -> np.ndarray:
        """Return time series (n_volumes, v) without nuisance."""
        return values - self.nuisance @ (self.nuisance.T @ values)

    def cross(self, hrf: int, cleaned: np.ndarray) -> np.ndarray:
        """Return products of the stimuli's regressors and time series: (n_stimuli, v)."""
        return self.incidence @ (self.regressors[hrf].T @ cleaned)

    def stimulus_regressors(self, hrf: int) -> np.ndarray:
        """Return the regressors of the stimuli: (n_volumes, n_stimuli)."""
        return self.regressors[hrf] @ self.incidence.T

    def condition_regressors(self, hrf: int) -> np.ndarray:
        """Return the regressors of the conditions: (n_volumes, n_conditions)."""
        return self.stimulus_regressors(hrf) @ self.merge.T


def make_trial_model(
    run: PreparedRun, library: HRFLibrary, conditions: Conditions, number: int
) -> TrialModel:
    """Return the model of a run, the ``number``-th of those that ``conditions`` is of."""
    design = run.design
    nuisance = orthonormal(balanced(design)[0], design.nuisance_columns)
    table = run.events[run.events["trial_type"].str.startswith("trial_")]
    regressors = library.regressors(
        design.frame_times,
        table["onset"].to_numpy(float),
        table["duration"].to_numpy(float),
        table["trial_type"].str.removeprefix("trial_").astype(int).to_numpy() - 1,
        n_trials=len(design.trials),
    )
    regressors -= nuisance @ (nuisance.T @ regressors)
    return TrialModel(
        nuisance, regressors, conditions.stimulus_incidence(number), conditions.merge(number)
    )
