"""Crossnobis RDM of one region."""

from __future__ import annotations

from typing import Any

import numpy as np
from rsatoolbox.data import Dataset
from rsatoolbox.rdm import calc_rdm

from benchmarks.measure import largest_difference, side_by_side
from isocortex.rsa import crossnobis_distance


def run(*, small: bool = False) -> dict[str, Any]:
    """100 conditions x 6 runs x 500 voxels, noise white: from trials to distances, both."""
    stimuli, runs, voxels = (8, 3, 40) if small else (100, 6, 500)
    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((stimuli * runs, voxels))
    labels = np.tile([f"s{k:03d}" for k in range(stimuli)], runs)
    run_of = np.repeat([f"{k:02d}" for k in range(runs)], stimuli)
    dataset = Dataset(patterns, obs_descriptors={"stimulus": labels, "run": run_of})

    def peer() -> np.ndarray:
        rdm = calc_rdm(dataset, method="crossnobis", descriptor="stimulus", cv_descriptor="run")
        return rdm.dissimilarities[0]

    return side_by_side(
        lambda: crossnobis_distance(patterns, labels, run_of)[0],
        peer,
        difference=largest_difference,
        tolerance=1e-10,
        one_thread=True,
        package="rsatoolbox",
        note=f"{stimuli} conditions x {runs} runs x {voxels} voxels, from trials to RDM",
    )
