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


def neighbour_table(edges: np.ndarray, n_points: int) -> np.ndarray:
    """Return the neighbours of each point as a table.

    Parameters
    ----------
    edges
        Neighbouring points, shape (n_edges, 2), from `grid_edges` or
        `isocortex.searchlight.mesh_edges`.
    n_points
        How many points there are.

    Returns
    -------
    numpy.ndarray
        int64, shape (n_points, most neighbours of a point), filled up with the point itself.
    """
    start, end = np.concatenate([edges, edges[:, ::-1]]).T
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    counts = np.bincount(start, minlength=n_points)
    table = np.repeat(np.arange(n_points)[:, None], int(counts.max(initial=0)), axis=1)
    table[start, np.arange(len(start)) - np.repeat(np.cumsum(counts) - counts, counts)] = end
    return table


def tfce(
    maps: np.ndarray,
    neighbours: np.ndarray,
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
    neighbours
        Of each point, from `neighbour_table`.
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
    From every point the way to its highest neighbour, and on, ends at a peak. Whatever the
    threshold, a point above it is in the cluster of its peak, so that clusters are sets of peaks
    which join at the saddles between them. Thresholds are gone through once from the top, for the
    peaks and saddles of all maps together; nilearn labels the volume anew at every threshold.
    """
    maps = np.asarray(maps, dtype=np.float64)
    positive = np.maximum(np.where(np.isfinite(maps), maps, 0.0), 0.0)
    largest = positive.max(axis=1, initial=0.0)
    if not largest.max(initial=0.0) > 0:
        return np.zeros(maps.shape)
    steps = np.broadcast_to(largest.max() / 100 if step is None else step, largest.shape)
    if (largest / steps >= 1 << 16).any():
        raise ValueError(f"step is {step}, but values reach {largest.max():g}: take a larger one")
    # In 16 bits, which numpy sorts by counting. A value on a threshold, but for rounding, is there.
    level = np.floor(positive / steps[:, None] * (1 + 1e-12)).astype(np.uint16)
    points, peak = _peaks(level, neighbours)
    n_peaks = int(peak.max(initial=-1)) + 1
    one, other, joined = _saddles(level, neighbours, points, peak, n_peaks)

    point_order, point_starts = _by_level(level.ravel()[points])
    order, saddle_starts = _by_level(joined, len(point_starts) - 1)
    one, other = one[order], other[order]
    cluster = np.arange(n_peaks)
    size, total = np.zeros(n_peaks), np.zeros(n_peaks)
    before = np.empty(len(points))
    for k in range(len(point_starts) - 2, 0, -1):
        new = point_order[point_starts[k] : point_starts[k + 1]]
        # What its peak has from thresholds above it is not the point's.
        before[new] = total[peak[new]]
        size += np.bincount(peak[new], minlength=n_peaks)
        here = slice(saddle_starts[k], saddle_starts[k + 1])
        cluster = _joined(cluster, one[here], other[here])
        held = np.bincount(cluster, weights=size, minlength=n_peaks)
        total += (held**extent)[cluster] * float(k) ** height
    out = np.zeros(maps.shape)
    out.ravel()[points] = total[peak] - before
    # In units of the step so far, whatever each map's is.
    return out * (steps ** (height + 1))[:, None]


def _peaks(level: np.ndarray, neighbours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points above level 0, counted on over maps, and the number of each one's peak."""
    n_points = level.shape[1]
    # Points of one level go by their number, so that every way ends.
    rank = level.astype(np.int64) * n_points + np.arange(n_points)
    highest = rank.copy()
    for column in neighbours.T:
        np.maximum(highest, rank[:, column], out=highest)
    points = np.flatnonzero(level)
    compact = np.empty(level.size, dtype=np.int64)
    compact[points] = np.arange(len(points))
    start = points - points % n_points
    up = compact[start + highest.ravel()[points] % n_points]
    while True:
        further = up[up]
        if np.array_equal(further, up):
            break
        up = further
    tops = np.flatnonzero(up == np.arange(len(points)))
    number = np.empty(len(points), dtype=np.int64)
    number[tops] = np.arange(len(tops))
    return points, number[up]


def _saddles(
    level: np.ndarray,
    neighbours: np.ndarray,
    points: np.ndarray,
    peak: np.ndarray,
    n_peaks: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return neighbouring points of different peaks: both peaks, and the lower of the levels."""
    of = np.full(level.size, n_peaks, dtype=np.int64)
    of[points] = peak
    of = of.reshape(level.shape)
    own = np.arange(level.shape[1])
    one, other, joined = [], [], []
    for column in neighbours.T:
        forward = np.flatnonzero(column > own)
        ahead = column[forward]
        a, b = of[:, forward], of[:, ahead]
        apart = (a != b) & (np.maximum(a, b) < n_peaks)
        one.append(a[apart])
        other.append(b[apart])
        joined.append(np.minimum(level[:, forward], level[:, ahead])[apart])
    if not one:
        return (np.empty(0, dtype=np.int64),) * 2 + (np.empty(0, dtype=np.uint16),)
    return np.concatenate(one), np.concatenate(other), np.concatenate(joined)


def _joined(cluster: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the cluster of each peak once clusters have met at saddles between peaks."""
    one, other = cluster[one], cluster[other]
    apart = one != other
    if not apart.any():
        return cluster
    touched, ends = np.unique(np.concatenate([one[apart], other[apart]]), return_inverse=True)
    a, b = np.split(ends, 2)
    graph = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), (len(touched),) * 2)
    _, label = connected_components(graph, directed=False)
    first = np.unique(label, return_index=True)[1]
    becomes = np.arange(len(cluster))
    becomes[touched] = touched[first[label]]
    return becomes[cluster]


def _by_level(levels: np.ndarray, n_levels: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return what sorts by level, and where each level starts in that order, and the end."""
    order = np.argsort(levels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(levels, minlength=n_levels))])
    return order, starts
