"""Adaptive geo-topological dependence with its re-maximised permutation test."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist, squareform

from benchmarks.measure import largest_difference, side_by_side
from isocortex.topology import agtdm
from isocortex.topology.dependence import draw_orders


def run(*, small: bool = False) -> dict[str, Any]:
    """One pair of RDMs, 8 thresholds: 784 distance correlations a permutation."""
    stimuli, ours, theirs = (12, 20, 2) if small else (62, 1000, 5)
    rng = np.random.default_rng(0)
    x, y = (pdist(rng.standard_normal((stimuli, 6))) for _ in range(2))
    orders = draw_orders(ours, stimuli, seed=0)[:theirs]
    pairs = list(combinations(np.linspace(0, 1, 8), 2))

    def u_centred(square: np.ndarray) -> np.ndarray:
        n = len(square)
        rows = square.sum(axis=1)
        out = square - rows[:, None] / (n - 2) - rows / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(out, 0.0)
        return out

    def transforms(distances: np.ndarray) -> list[np.ndarray]:
        found = []
        for low, high in pairs:
            t_low, t_high = np.quantile(distances, [low, high])
            ramp = np.clip((distances - t_low) / (t_high - t_low), 0, 1)
            found.append(u_centred(squareform(ramp)))
        return [matrix / np.linalg.norm(matrix) for matrix in found]

    def peer() -> np.ndarray:
        of_x, of_y = transforms(x), transforms(y)
        largest = []
        for order in orders:
            # A permutation moves the entries of transforms, which need not be made again.
            moved = [b[np.ix_(order, order)] for b in of_y]
            largest.append(max((a * b).sum() for a in of_x for b in moved))
        return np.array(largest)

    return side_by_side(
        lambda: agtdm(x, y, permutations=ours, seed=0).null[:theirs],
        peer,
        difference=largest_difference,
        tolerance=1e-10,
        package="numpy",
        note=f"seconds a permutation of {stimuli} stimuli, 28 x 28 threshold pairs; ours the whole "
        f"test of {ours} permutations, the peer {theirs} of them, transform by transform",
        ours_units=ours,
        peer_units=theirs,
        one_thread=True,
    )
