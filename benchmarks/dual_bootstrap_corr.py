"""Dual bootstrap of model scores by Pearson correlation, over subjects, stimuli and both."""

from __future__ import annotations

import contextlib
import io
from typing import Any
from unittest import mock

import numpy as np
from rsatoolbox.inference import eval_dual_bootstrap
from rsatoolbox.model import ModelFixed
from rsatoolbox.rdm import RDMs

from benchmarks.measure import largest_difference, side_by_side
from isocortex.rsa import bootstrap_counts, bootstrap_scores, correlate


def run(*, small: bool = False) -> dict[str, Any]:
    """24 subjects x 62 stimuli x 10 models; ours 1,000 samples, the peer the first of them."""
    subjects, stimuli, models, samples, few = (4, 12, 2, 20, 6) if small else (24, 62, 10, 1000, 60)
    rng = np.random.default_rng(0)
    pairs = stimuli * (stimuli - 1) // 2
    predicted = rng.random((models, pairs))
    measured = predicted.mean(axis=0) + rng.random((subjects, pairs))
    data = RDMs(measured)
    by_subject = bootstrap_counts(subjects, samples, rng=rng)
    by_stimulus = bootstrap_counts(stimuli, samples, rng=rng)

    def ours() -> np.ndarray:
        scores = np.empty((samples, models, 3))
        share = by_subject / subjects
        for part, drawn in bootstrap_scores(predicted, measured, by_stimulus):
            scores[part, :, 0] = np.einsum("bms,bs->bm", drawn, share[part])
            scores[part, :, 2] = drawn.mean(axis=2)
        scores[:, :, 1] = share @ correlate(predicted, measured).T
        return scores

    candidates = [ModelFixed(f"m{k}", row) for k, row in enumerate(predicted)]

    def peer() -> np.ndarray:
        rows = iter(range(few))

        def given(rdms: RDMs, **_: str) -> tuple[RDMs, np.ndarray, np.ndarray]:
            """The peer's bootstrap_sample, with the samples that ours has."""
            row = next(rows)
            who = np.repeat(np.arange(subjects), by_subject[row])
            what = np.repeat(np.arange(stimuli), by_stimulus[row])
            return rdms.subsample("index", who).subsample_pattern("index", what), who, what

        # Its samples cannot be seeded alone: it shuffles with the same global generator between.
        drawing = mock.patch("rsatoolbox.inference.evaluate.bootstrap_sample", given)
        with drawing, contextlib.redirect_stderr(io.StringIO()):
            result = eval_dual_bootstrap(candidates, data, method="corr", N=few)
        return result.evaluations[:, :, 0, 0, :]

    return side_by_side(
        ours,
        peer,
        difference=lambda mine, theirs: largest_difference(mine[:few], theirs),
        tolerance=1e-9,
        one_thread=True,
        package="rsatoolbox",
        note=f"seconds a sample, {subjects} subjects x {stimuli} stimuli x {models} models: ours "
        f"{samples} samples, the peer the first {few} of them, noise ceilings of each included",
        ours_units=samples,
        peer_units=few,
    )
