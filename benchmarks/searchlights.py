"""What the searchlight figures share: spheres, ours in blocks, the peer on a subset."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from rsatoolbox.inference import eval_fixed
from rsatoolbox.model import ModelFixed
from rsatoolbox.util.searchlight import evaluate_models_searchlight, get_searchlight_RDMs

from benchmarks.measure import CORES, largest_difference, side_by_side
from isocortex import parallel
from isocortex.searchlight import Models, Patterns, score_block, spheres

_BLOCK = 2048
_PEER = {"pearson": "corr", "spearman": "spearman"}


def searchlight_figure(
    comparison: str,
    *,
    shape: tuple[int, int, int],
    stimuli: int,
    every: int,
    tolerance: float,
    whole: bool = True,
) -> dict[str, Any]:
    """Correlation RDM of every sphere of 93 voxels, scored against 3 models.

    Parameters
    ----------
    comparison
        ``pearson`` or ``spearman``.
    shape
        Of the volume, all of it brain.
    stimuli
        Conditions of an RDM.
    every
        The peer gets each n-th centre.
    tolerance
        On the largest difference of scores.
    whole
        Leave out centres whose spheres the border cuts, so that every centre costs the same.
    """
    rng = np.random.default_rng(0)
    voxels = np.argwhere(np.ones(shape, dtype=bool))
    rows = np.zeros((len(voxels) + 1, stimuli), dtype=np.float32)
    rows[:-1] = rng.standard_normal((len(voxels), stimuli), dtype=np.float32)
    patterns = Patterns(rows, tuple(f"s{k:03d}" for k in range(stimuli)))
    models = rng.random((3, stimuli * (stimuli - 1) // 2))
    edge = 2 if whole else 0
    inside = ((voxels >= edge) & (voxels < np.array(shape) - edge)).all(axis=1)
    around = spheres(voxels, shape, radius=2.9, affine=np.eye(4), centres=voxels[inside])
    chosen = np.arange(0, around.n_centres, every)
    centres = np.flatnonzero(inside)[chosen]
    members, _ = around.members(chosen)
    neighbours = [list(row[row < len(voxels)]) for row in members]
    means = rows[:-1].T.astype(np.float64)
    events = np.array(patterns.stimuli)
    fixed = [ModelFixed(f"model{k}", rdm) for k, rdm in enumerate(models)]
    blocks = [slice(start, start + _BLOCK) for start in range(0, around.n_centres, _BLOCK)]

    def ours() -> np.ndarray:
        scored = parallel.map_blocks(
            score_block, blocks, around, patterns, Models(models, comparison), threads=CORES
        )
        return np.concatenate([scores for scores, _ in scored], axis=1)

    def peer() -> np.ndarray:
        with contextlib.redirect_stderr(io.StringIO()):
            rdms = get_searchlight_RDMs(means, centres, neighbours, events, verbose=False)
            results = evaluate_models_searchlight(
                rdms, fixed, eval_fixed, method=_PEER[comparison], n_jobs=1
            )
        return np.array([result.evaluations.ravel() for result in results]).T

    return side_by_side(
        ours,
        peer,
        difference=lambda mine, theirs: largest_difference(mine[:, chosen], theirs),
        tolerance=tolerance,
        package="rsatoolbox",
        note=f"seconds a centre: correlation RDMs of {around.full} voxels, {stimuli} conditions, "
        f"3 models by {comparison}: ours {around.n_centres} centres on {CORES} threads, the "
        f"peer's get_searchlight_RDMs and evaluate_models_searchlight {len(centres)} of them",
        ours_units=around.n_centres,
        peer_units=len(centres),
    )
