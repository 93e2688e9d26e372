"""Least squares separate: a model of its own for each trial of one run."""

from __future__ import annotations

from typing import Any

import numpy as np
from nilearn.glm.first_level import run_glm

from benchmarks.measure import CORES, largest_difference, side_by_side
from isocortex.glm import make_design, make_trials
from isocortex.glm.lss import SeparateModels


def run(*, small: bool = False) -> dict[str, Any]:
    """80 trials in 300 volumes, 20,000 voxels: ours at once, nilearn's model in a loop."""
    n_trials, n_volumes, n_voxels = (12, 70, 50) if small else (80, 300, 20_000)
    spacing = (n_volumes * 2.0 - 30) / n_trials
    rng = np.random.default_rng(0)
    events = [
        {
            "onset": 3.0 + spacing * k + rng.uniform(0, 0.5),
            "duration": 1.0,
            "trial_type": "image",
            "stim_file": f"{k:03d}.png",
        }
        for k in range(n_trials)
    ]
    trials, table = make_trials(events, trials="single")
    design = make_design(trials, table, n_volumes=n_volumes, tr=2.0)
    data = rng.standard_normal((n_volumes, n_voxels))
    own = design.matrix[:, design.trial_columns]
    rest = design.matrix[:, design.nuisance_columns]

    def ours() -> np.ndarray:
        return SeparateModels(design).weights() @ data

    def peer() -> np.ndarray:
        beta = np.empty((n_trials, n_voxels))
        for trial in range(n_trials):
            others = own.sum(axis=1) - own[:, trial]
            matrix = np.column_stack([own[:, trial], others, rest])
            _, results = run_glm(data, matrix, noise_model="ols", n_jobs=CORES)
            beta[trial] = results[0.0].theta[0]
        return beta

    return side_by_side(
        ours,
        peer,
        difference=largest_difference,
        tolerance=1e-6,
        package="nilearn",
        note=f"{n_volumes} volumes x {n_voxels} voxels, {n_trials} trials, each with one regressor "
        f"for the others and {rest.shape[1]} of drift; the designs of the loop are made "
        "beforehand, ours are decomposed in the time given",
    )
