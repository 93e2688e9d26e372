"""Least squares of all trials of one run: betas and residuals of every voxel."""

from __future__ import annotations

from typing import Any

import numpy as np
from nilearn.glm.first_level import run_glm

from benchmarks.measure import CORES, largest_difference, side_by_side
from isocortex.glm import fit_run, make_design, make_trials


def run(*, small: bool = False) -> dict[str, Any]:
    """60 trials in 150 volumes, 40,000 voxels, percent signal change included."""
    n_trials, n_volumes, n_voxels = (12, 70, 50) if small else (60, 150, 40_000)
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
    data = (1000 + 10 * rng.standard_normal((n_volumes, n_voxels))).astype(np.float32)

    def ours() -> tuple[np.ndarray, np.ndarray]:
        beta = np.empty((n_trials, n_voxels), dtype=np.float32)
        residual = np.empty((n_volumes, n_voxels), dtype=np.float32)
        fit_run(data, design, beta=beta, residual=residual, threads=CORES)
        return beta, residual

    def peer() -> tuple[np.ndarray, np.ndarray]:
        exact = data.astype(np.float64)
        scaled = 100 * (exact / exact.mean(axis=0) - 1)
        _, results = run_glm(scaled, design.matrix, noise_model="ols", n_jobs=CORES)
        (fit,) = results.values()
        return fit.theta[design.trial_columns], fit.residuals

    return side_by_side(
        ours,
        peer,
        difference=lambda mine, theirs: max(map(largest_difference, mine, theirs)),
        tolerance=1e-4,
        package="nilearn",
        note=f"{n_volumes} volumes x {n_voxels} voxels, {n_trials} trials, "
        f"{design.matrix.shape[1]} regressors: betas and residuals, percent; ours also r2 terms, "
        "tSNR and the mean response with its variance",
    )
