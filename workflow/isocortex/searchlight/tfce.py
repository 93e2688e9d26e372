"""Threshold-free cluster enhancement on any neighbourhood graph: grids of voxels, meshes."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

CONNECTIVITIES = {6: 1, 18: 2, 26: 3}
"""Neighbours of a voxel: by how many axes two neighbours may differ."""


def grid_edges(voxels: np.ndarray, *, connectivity: int = 6) -> np.ndarray:
    """Return the neighbouring pairs among voxels.

    Parameters
    ----------
    voxels
        Index triples, shape (n_voxels, 3), no triple twice.
    connectivity
        6 (faces), 18 (edges) or 26 (corners).

    Returns
    -------
    numpy.ndarray
        int64, shape (n_pairs, 2): rows of ``voxels``, each pair once.
    """
    if connectivity not in CONNECTIVITIES:
        known = ", ".join(map(str, CONNECTIVITIES))
        raise ValueError(f"connectivity is {connectivity}: choose one of {known}")
    voxels = np.asarray(voxels, dtype=np.int64)
    if not len(voxels):
        return np.empty((0, 2), dtype=np.int64)
    low = voxels.min(axis=0) - 1
    shape = voxels.max(axis=0) - low + 2
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    cell = (voxels - low) @ strides
    row = np.full(int(shape.prod()), -1, dtype=np.int64)
    row[cell] = np.arange(len(voxels))
    offsets = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    offsets = offsets[np.abs(offsets).sum(axis=1) <= CONNECTIVITIES[connectivity]]
    pairs = []
    for step in offsets @ strides:
        if step <= 0:
            continue
        neighbour = row[cell + step]
        here = np.flatnonzero(neighbour >= 0)
        pairs.append(np.stack([here, neighbour[here]], axis=1))
    return np.concatenate(pairs)


def tfce(
    maps: np.ndarray,
    edges: np.ndarray,
    *,
    step: float | np.ndarray | None = None,
    extent: float = 0.5,
    height: float = 2.0,
) -> np.ndarray:
    """Enhance maps of a statistic by the extent of the clusters that support each value.

    Parameters
    ----------
    maps
        Shape (n_maps, n_points). Values that are not above 0, and NaN, get 0: one-sided.
    edges
        Neighbouring points, shape (n_edges, 2), from `grid_edges` or
        `isocortex.searchlight.mesh_edges`.
    step
        Between thresholds, above 0: of all maps or one a map; a 100th of the largest value of all
        maps where not given.
    extent, height
        The exponents E and H.

    Returns
    -------
    numpy.ndarray
        float64, shape (n_maps, n_points): the sum over thresholds h = step, 2 step, ... of
        (size of the point's cluster at h)^E h^H step (Smith & Nichols 2009, NeuroImage 44).

    Notes
    -----
    Thresholds are gone through from the top once for all maps together. At each one only the
    points and edges that it adds are looked at: clusters that they touch are joined into a new
    one, and the rest keep their size. nilearn labels the volume anew at every threshold.
    """
    maps = np.asarray(maps, dtype=np.float64)
    n_points = maps.shape[1]
    positive = np.where(np.isfinite(maps), maps, 0.0)
    largest = positive.max(axis=1, initial=0.0)
    if not largest.max(initial=0.0) > 0:
        return np.zeros(maps.shape)
    steps = np.broadcast_to(largest.max() / 100 if step is None else step, largest.shape)
    if (largest / steps >= 1 << 16).any():
        raise ValueError(f"step is {step}, but values reach {largest.max():g}: take a larger one")
    # In 16 bits, which numpy sorts by counting.
    scaled = np.maximum(positive, 0.0) / steps[:, None]
    level = np.floor(scaled * (1 + 1e-12)).astype(np.uint16)
    # In units of the step: one tree for maps of any scale.
    weight = np.cumsum(np.arange(int(level.max()) + 1, dtype=np.float64) ** height)
    weight -= weight[0]

    flat = level.ravel()
    point_order, point_starts = _by_level(flat, len(weight))
    joined = np.minimum(level[:, edges[:, 0]], level[:, edges[:, 1]])
    which, edge = np.nonzero(joined)
    edge_order, edge_starts = _by_level(joined[which, edge], len(weight))
    which, edge = which[edge_order] * n_points, edge[edge_order]
    a, b = edges[edge, 0] + which, edges[edge, 1] + which

    # Clusters in the order of their making. A join takes two clusters or more, so that there are
    # fewer than two for each point.
    room = 2 * (len(flat) - int(point_starts[1]))
    size, birth = np.ones(room), np.zeros(room, dtype=np.int32)
    parent = np.arange(room)
    current = np.arange(room)
    first_cluster = np.full(flat.shape, -1, dtype=np.int64)
    bounds = [0]
    for k in range(len(weight) - 1, 0, -1):
        new = point_order[point_starts[k] : point_starts[k + 1]]
        if not len(new):
            # An edge enters with the lower of its ends: there is none either.
            continue
        bounds.append(bounds[-1] + len(new))
        first_cluster[new] = np.arange(bounds[-2], bounds[-1])
        birth[bounds[-2] : bounds[-1]] = k
        here = slice(edge_starts[k], edge_starts[k + 1])
        one = _cluster_now(current, first_cluster[a[here]])
        other = _cluster_now(current, first_cluster[b[here]])
        apart = one != other
        if not apart.any():
            continue
        touched, ends = np.unique(np.concatenate([one[apart], other[apart]]), return_inverse=True)
        one, other = np.split(ends, 2)
        graph = coo_array((np.ones(len(one), dtype=np.int8), (one, other)), (len(touched),) * 2)
        n_joined, label = connected_components(graph, directed=False)
        bounds.append(bounds[-1] + n_joined)
        joint = np.arange(bounds[-2], bounds[-1])
        size[joint] = np.bincount(label, weights=size[touched], minlength=n_joined)
        birth[joint] = k
        parent[touched] = current[touched] = joint[label]

    made = bounds[-1]
    own = weight[birth[:made]]
    last = parent[:made] == np.arange(made)
    own = np.where(last, own, own - weight[birth[parent[:made]]]) * size[:made] ** extent
    for start, stop in zip(bounds[-2::-1], bounds[:0:-1]):
        within = np.arange(start, stop)
        own[within] += np.where(last[within], 0.0, own[parent[within]])
    inside = first_cluster >= 0
    found = np.where(inside, own[np.where(inside, first_cluster, 0)], 0.0).reshape(maps.shape)
    return found * (steps ** (height + 1))[:, None]


def _by_level(levels: np.ndarray, n_levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what sorts by level, and where each level starts in that order, and the end."""
    order = np.argsort(levels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(levels, minlength=n_levels))])
    return order, starts


def _cluster_now(current: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Return the cluster that each one is part of by now, and shorten the way there."""
    found = clusters
    while True:
        up = current[found]
        if np.array_equal(up, found):
            break
        found = up
    current[clusters] = found
    return found
