"""One resampling: motion, coregistration and warp composed into one map, evaluated once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
from scipy.ndimage import find_objects, map_coordinates, spline_filter


def grid_around(
    mask: np.ndarray, affine: np.ndarray, *, resolution: float, margin: float = 6.0
) -> tuple[tuple[int, int, int], np.ndarray]:
    """The grid of a mask's axes at another resolution, around the mask.

    Parameters
    ----------
    mask
        Boolean (x, y, z).
    affine
        4 x 4, of the mask.
    resolution
        Voxel size of the new grid, mm.
    margin
        Space left around the mask, mm.

    Returns
    -------
    shape : tuple of int
        Of the new grid.
    affine : numpy.ndarray
        4 x 4; the axes run towards right, anterior and superior as nearly as the mask's can.
    """
    size = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / size
    order = [int(np.argmax(np.abs(directions[axis]))) for axis in range(3)]
    if len(set(order)) < 3:
        order = [0, 1, 2]
    axes = directions[:, order]
    axes = axes * np.where(np.diag(axes) < 0, -1.0, 1.0)
    corners = np.argwhere(mask)
    low, high = corners.min(axis=0), corners.max(axis=0)
    box = np.array(list(product(*zip(low, high, strict=True))))
    along = (box @ affine[:3, :3].T + affine[:3, 3]) @ axes
    start, stop = along.min(axis=0) - margin, along.max(axis=0) + margin
    shape = np.ceil((stop - start) / resolution).astype(int) + 1
    new = np.eye(4)
    new[:3, :3] = axes * resolution
    new[:3, 3] = axes @ start
    return tuple(int(n) for n in shape), new


def resample_series(
    series: np.ndarray,
    affine: np.ndarray,
    motion: np.ndarray,
    points: np.ndarray,
    shape: Sequence[int],
    *,
    near: np.ndarray | None = None,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Resample every volume of a run once, by cubic splines.

    Parameters
    ----------
    series
        Raw (or slice-timing corrected) volumes (x, y, z, time).
    affine
        4 x 4, of the series.
    motion
        (time, 4, 4): reference mm to each volume's mm.
    points
        (n, 3): where each voxel of the output grid lies in the reference's mm; the whole chain
        from the output space to the reference is in here.
    shape
        Of the output grid, n voxels.
    near
        Boolean (*shape): voxels to fill, the others stay 0; all by default.
    threads
        Volumes worked on at the same time.

    Returns
    -------
    resampled : numpy.ndarray
        float32 (*shape, time); 0 where a volume does not reach.
    inside : numpy.ndarray
        Boolean (*shape): voxels that every volume reaches.
    """
    to_index = np.linalg.inv(affine)
    extent = np.array(series.shape[:3])
    reach = _near(points @ to_index[:3, :3].T + to_index[:3, 3], extent, slack=8)
    if near is not None:
        reach = reach[near.ravel()[reach]]
    moving = np.ascontiguousarray(points[reach].T)
    out = np.zeros((series.shape[3], int(np.prod(shape))), np.float32)
    covered = np.ones(len(reach), bool)

    def one(t: int) -> np.ndarray:
        matrix = to_index @ motion[t]
        index = matrix[:3, :3] @ moving + matrix[:3, 3:]
        within = np.all((index >= -0.5) & (index <= extent[:, None] - 0.5), axis=0)
        volume = np.asarray(series[..., t], np.float32)
        coefficients = spline_filter(volume, 3, output=np.float32, mode="mirror")
        values = map_coordinates(
            coefficients, index, order=3, mode="mirror", prefilter=False, output=np.float32
        )
        values[~within] = 0
        out[t, reach] = values
        return within

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for within in pool.map(one, range(series.shape[3])):
            covered &= within
    inside = np.zeros(len(points), bool)
    inside[reach] = covered
    return np.moveaxis(out.reshape(-1, *shape), 0, -1), inside.reshape(shape)


def resample_volume(
    volume: np.ndarray, affine: np.ndarray, points: np.ndarray, shape: Sequence[int], *, order: int
) -> np.ndarray:
    """Resample one volume at given points: order 0 nearest, 1 linear, 3 cubic spline.

    Parameters
    ----------
    volume
        Shape (x, y, z).
    affine
        4 x 4, of the volume.
    points
        (n, 3), mm in the volume's space.
    shape
        Of the output grid.

    Returns
    -------
    numpy.ndarray
        float32 (or the volume's integer type at order 0), 0 outside of the volume.
    """
    to_index = np.linalg.inv(affine)
    index = (points @ to_index[:3, :3].T + to_index[:3, 3]).T
    extent = np.array(volume.shape)[:, None]
    inside = np.all((index >= -0.5) & (index <= extent - 0.5), axis=0)
    kind = volume.dtype if order == 0 else np.float32
    values = np.zeros(len(points), kind)
    mode = "mirror" if order > 1 else "nearest"
    values[inside] = map_coordinates(volume, index[:, inside], order=order, mode=mode, output=kind)
    return values.reshape(shape)


def resample_labels(
    labels: np.ndarray,
    affine: np.ndarray,
    points: np.ndarray,
    shape: Sequence[int],
    *,
    supersampling: np.ndarray | None = None,
) -> np.ndarray:
    """Resample an integer label image: the label that holds most of each output voxel.

    Each label's indicator is interpolated linearly and the largest one wins, background
    included: smoother borders than the nearest neighbour's, and no new label between two.

    Parameters
    ----------
    labels
        Integers (x, y, z), 0 is background.
    affine
        4 x 4, of the labels.
    points
        (n, 3), mm in the labels' space.
    shape
        Of the output grid.
    supersampling
        (m, 3) offsets in mm, in the labels' space, whose mean stands for an output voxel that
        is larger than the labels' voxels.

    Returns
    -------
    numpy.ndarray
        int32, shape ``shape``.
    """
    offsets = np.zeros((1, 3)) if supersampling is None else np.asarray(supersampling)
    best = np.zeros(len(points), np.float32)
    chosen = np.zeros(len(points), np.int32)
    total = np.zeros(len(points), np.float32)
    to_index = np.linalg.inv(affine)
    index = points @ to_index[:3, :3].T + to_index[:3, 3]
    slack = np.abs(offsets @ to_index[:3, :3].T).max(axis=0) + 1
    numbers, flat = np.unique(labels, return_inverse=True)
    # a box around each label: an atlas of hundreds must not cost hundreds of whole volumes
    boxes = find_objects(flat.reshape(labels.shape) + 1)
    for label, box in zip(numbers.tolist(), boxes, strict=True):
        if label == 0:
            continue
        low = np.array([max(part.start - 1, 0) for part in box])
        high = np.array([part.stop for part in box])
        near = np.flatnonzero(np.all((index >= low - slack) & (index <= high + slack), axis=1))
        box = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
        indicator = (labels[box] == label).astype(np.float32)
        own = np.array(affine, float)
        own[:3, 3] += affine[:3, :3] @ low
        share = np.zeros(len(near), np.float32)
        for offset in offsets:
            share += resample_volume(
                indicator, own, points[near] + offset, (len(near),), order=1
            ) / len(offsets)
        total[near] += share
        better = share > best[near]
        chosen[near[better]], best[near[better]] = label, share[better]
    chosen[1 - total > best] = 0
    return chosen.reshape(shape)


def voxel_offsets(affine: np.ndarray, *, steps: int = 3) -> np.ndarray:
    """Offsets in mm (steps ** 3, 3) that spread evenly over one voxel of a grid."""
    along = (np.arange(steps) + 0.5) / steps - 0.5
    return np.array(list(product(along, repeat=3))) @ affine[:3, :3].T


def _near(index: np.ndarray, extent: np.ndarray, *, slack: float) -> np.ndarray:
    return np.flatnonzero(np.all((index >= -slack) & (index <= extent - 1 + slack), axis=1))
