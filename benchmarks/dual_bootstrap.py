"""Dual bootstrap of model scores, over subjects, stimuli and both; one figure a comparison."""

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
from isocortex.rsa import (
    bootstrap_ceiling,
    bootstrap_counts,
    bootstrap_scores,
    correlate,
    dual_bootstrap_variance,
)


def side_by_side_bootstrap(
    comparison: str, *, method: str, few: int, small: bool
) -> dict[str, Any]:
    """24 subjects x 62 stimuli x 10 models; ours 1,000 samples, the peer the first of them.

    Parameters
    ----------
    comparison, method
        Its name here and in rsatoolbox.
    few
        How many samples the peer is given.
    small
        Tiny arrays, to see that both run and agree.
    """
    subjects, stimuli, models, samples = (4, 12, 2, 20) if small else (24, 62, 10, 1000)
    few = min(few, samples // 3)
    rng = np.random.default_rng(0)
    pairs = stimuli * (stimuli - 1) // 2
    predicted = rng.random((models, pairs))
    measured = predicted.mean(axis=0) + rng.random((subjects, pairs))
    data = RDMs(measured)
    by_subject = bootstrap_counts(subjects, samples, rng=rng)
    by_stimulus = bootstrap_counts(stimuli, samples, rng=rng)

    def ours() -> np.ndarray:
        """Scores and ceilings: (samples, models + 2, both/subjects/stimuli)."""
        found = np.empty((samples, models + 2, 3))
        share = by_subject / subjects
        for part, drawn in bootstrap_scores(
            predicted, measured, by_stimulus, comparison=comparison
        ):
            found[part, :models, 0] = np.einsum("bms,bs->bm", drawn, share[part])
            found[part, :models, 2] = drawn.mean(axis=2)
        found[:, :models, 1] = share @ correlate(predicted, measured, comparison=comparison).T
        kinds = np.stack([by_subject, np.ones_like(by_subject)])
        found[:, models:, [0, 2]] = bootstrap_ceiling(
            measured, kinds, by_stimulus, comparison=comparison
        ).transpose(1, 2, 0)
        found[:, models:, 1] = bootstrap_ceiling(measured, by_subject, None, comparison=comparison)
        return found

    candidates = [ModelFixed(f"m{k}", row) for k, row in enumerate(predicted)]

    def peer() -> tuple[np.ndarray, np.ndarray]:
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
            result = eval_dual_bootstrap(candidates, data, method=method, N=few)
        ceilings = result.noise_ceiling[:, :, 0].transpose(1, 0, 2)
        scores = np.concatenate([result.evaluations[:, :, 0, 0], ceilings], axis=1)
        return scores, result.model_var

    def difference(mine: np.ndarray, theirs: tuple[np.ndarray, np.ndarray]) -> float:
        scores, variance = theirs
        own = dual_bootstrap_variance(
            *mine[:few, :models].var(axis=0, ddof=1).T, n_subjects=subjects, n_stimuli=stimuli
        )
        return max(largest_difference(mine[:few], scores), largest_difference(own, variance))

    return side_by_side(
        ours,
        peer,
        difference=difference,
        tolerance=1e-8,
        one_thread=True,
        package="rsatoolbox",
        note=f"seconds a sample, {subjects} subjects x {stimuli} stimuli x {models} models, scores "
        f"and noise ceilings of the bootstraps over subjects, stimuli and both: ours {samples} "
        f"samples, the peer the first {few} of them",
        ours_units=samples,
        peer_units=few,
    )
