"""Shortest paths on the two-step graph of stimuli."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
from scipy.spatial.distance import pdist

from benchmarks.measure import largest_difference, side_by_side
from isocortex.rsa import to_matrices
from isocortex.topology import rgtm, shortest_paths


def run(*, small: bool = False) -> dict[str, Any]:
    """RDMs of 62 stimuli, weights RGTM(.05, .8): edges of weight zero are kept by both."""
    stimuli, count = (12, 2) if small else (62, 192)
    rng = np.random.default_rng(0)
    rdms = np.array([pdist(rng.standard_normal((stimuli, 8))) for _ in range(count)])
    weights = rgtm(rdms, 0.05, 0.8, scale="rank", threshold="quantile", pool="rdm")
    graphs = to_matrices(np.where(weights < 1, weights, np.inf))

    def peer() -> np.ndarray:
        lengths = []
        for matrix in graphs:
            graph = nx.Graph()
            graph.add_nodes_from(range(stimuli))
            # By hand, since from_numpy_array takes a weight of zero for no edge.
            i, j = np.nonzero(np.triu(np.isfinite(matrix), 1))
            graph.add_weighted_edges_from(zip(i.tolist(), j.tolist(), matrix[i, j].tolist()))
            # Its quickest: all_pairs_dijkstra_path_length takes four times as long.
            lengths.append(nx.floyd_warshall_numpy(graph))
        return np.array(lengths)

    return side_by_side(
        lambda: shortest_paths(graphs),
        peer,
        difference=largest_difference,
        tolerance=1e-12,
        package="networkx",
        note=f"seconds an RDM of {stimuli} stimuli, {count} RDMs, RGTM(0.05,0.80) rank; the peer "
        "floyd_warshall_numpy, graph included",
        ours_units=count,
        peer_units=count,
    )
