"""Searchlight: correlation RDM of every sphere, scored against one model by Pearson."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from rsatoolbox.rdm import RDMs, compare
from rsatoolbox.util.searchlight import get_searchlight_RDMs

from benchmarks.measure import largest_difference, side_by_side
from isocortex.rsa import neighbourhoods, searchlight_scores, sphere_offsets

_BLOCK_BYTES = 16 << 20


def run(*, small: bool = False) -> dict[str, Any]:
    """Spheres of 93 voxels, 32 conditions; ours every centre, the peer every n-th of them."""
    shape, stimuli, every = ((8, 8, 8), 8, 1) if small else ((40, 40, 30), 32, 24)
    rng = np.random.default_rng(0)
    voxels = np.argwhere(np.ones(shape, dtype=bool))
    means = rng.standard_normal((stimuli, len(voxels)))
    models = rng.random((1, stimuli * (stimuli - 1) // 2))
    offsets = sphere_offsets(2.9, np.eye(4))
    # Whole spheres only: every centre costs the same.
    inside = ((voxels >= 2) & (voxels < np.array(shape) - 2)).all(axis=1)
    members, sizes = neighbourhoods(voxels, shape, offsets, voxels[inside])
    block = max(1, _BLOCK_BYTES // (4 * len(offsets) * stimuli))
    chosen = slice(None, None, every)
    centres = np.flatnonzero(inside)[chosen]
    neighbours = [list(row) for row in members[chosen]]
    events = np.array([f"s{k:02d}" for k in range(stimuli)])

    def ours() -> np.ndarray:
        parts = [
            searchlight_scores(means, members[start : start + block], models)
            for start in range(0, len(members), block)
        ]
        return np.concatenate(parts, axis=1)

    def peer() -> np.ndarray:
        with contextlib.redirect_stderr(io.StringIO()):
            rdms = get_searchlight_RDMs(means, centres, neighbours, events, verbose=False)
        return compare(RDMs(models), rdms, "corr")

    return side_by_side(
        ours,
        peer,
        difference=lambda mine, theirs: largest_difference(mine[:, chosen], theirs),
        tolerance=1e-5,
        one_thread=True,
        package="rsatoolbox",
        note=f"seconds a centre of {sizes.max()} voxels, {stimuli} conditions, 1 model: ours "
        f"{len(members)} centres, the peer {len(centres)} of them",
        ours_units=len(members),
        peer_units=len(centres),
    )
