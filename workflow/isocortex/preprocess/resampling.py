"""One resampling: motion, coregistration and warp composed into one map, evaluated once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any, Protocol

import numpy as np
from scipy.ndimage import find_objects, map_coordinates, spline_filter
from threadpoolctl import threadpool_limits

from isocortex.preprocess.slice_timing import (
    SliceTiming,
    acquisition_times,
    corrected_volumes,
    interpolate_samples,
)

SPLINE_ORDERS = {"linear": 1, "cubic": 3, "quintic": 5}
_VOLUMES = 4  # that a thread works on at a time
_POINTS = 4096  # whose time series are interpolated at a time


class Displacement(Protocol):
    """Where the signal of points was recorded: susceptibility distortion of a run."""

    axis: int
    """Array axis of the run along which signal was displaced."""

    def shift(self, points: np.ndarray) -> np.ndarray:
        """Voxels (n,) by which the signal of points (n, 3) was displaced along the axis."""

    def jacobian(self, points: np.ndarray) -> np.ndarray:
        """Factor (n,) that gives the signal at those points its brightness back."""


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


def sample_series(
    series: np.ndarray,
    affine: np.ndarray,
    motion: np.ndarray,
    points: Sequence[np.ndarray],
    *,
    slice_timing: SliceTiming | None = None,
    distortion: Displacement | None = None,
    order: int = 3,
    threads: int = 1,
) -> Iterator[list[np.ndarray]]:
    """Read every volume of a run once at several sets of points: one interpolation for all.

    A volume's slices are brought to one time and its spline coefficients are made once; all sets
    of points are read from them. A few volumes are in memory at a time; with slice timing in
    order ``motion_first`` the samples of all points and volumes are.

    Parameters
    ----------
    series
        Raw volumes (x, y, z, time); may lie on disk.
    affine
        4 x 4, of the series.
    motion
        (time, 4, 4): reference mm to each volume's mm.
    points
        Arrays (n, 3): mm of the (undistorted) reference.
    slice_timing
        Brings every value to the reference time; not by default.
    distortion
        Displaces the points along the phase-encoding axis; its field moves with the head.
    order
        Of the spatial spline: 1, 3 or 5.
    threads
        Volumes worked on at the same time; the values do not depend on it.

    Yields
    ------
    list of numpy.ndarray
        Of each volume in turn: float32 (n,) for each set of points, NaN where the volume does
        not reach.
    """
    if slice_timing is not None:
        slice_timing.check(series.shape)
    sampler = _Sampler(series, affine, motion, points, slice_timing, distortion, order)
    volumes = _in_order(sampler.block, sampler.blocks, threads)
    if not sampler.motion_first:
        for block in volumes:
            yield from ([values for values, _ in volume] for volume in block)
        return
    n_volumes = series.shape[3]
    samples = [np.empty((n_volumes, len(part)), np.float32) for part in points]
    times = [np.empty((n_volumes, len(part)), np.float32) for part in points]
    t = 0
    for block in volumes:
        for volume in block:
            for part, (values, taken) in enumerate(volume):
                samples[part][t], times[part][t] = values, taken
            t += 1
    for values, taken in zip(samples, times, strict=True):
        cuts = [slice(at, at + _POINTS) for at in range(0, values.shape[1], _POINTS)]

        def interpolate(cut: slice, values=values, taken=taken) -> np.ndarray:
            return _interpolate_reached(values[:, cut], taken[:, cut], slice_timing)

        for cut, found in zip(cuts, _in_order(interpolate, cuts, threads), strict=True):
            values[:, cut] = found
    for t in range(n_volumes):
        yield [values[t] for values in samples]


def resample_series(
    series: np.ndarray,
    affine: np.ndarray,
    motion: np.ndarray,
    points: np.ndarray,
    shape: Sequence[int],
    *,
    near: np.ndarray | None = None,
    slice_timing: SliceTiming | None = None,
    distortion: Displacement | None = None,
    order: int = 3,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Resample every volume of a run once onto one grid (see `sample_series`).

    Parameters
    ----------
    series
        Raw volumes (x, y, z, time).
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
    slice_timing, distortion, order, threads
        As in `sample_series`.

    Returns
    -------
    resampled : numpy.ndarray
        float32 (*shape, time); 0 where a volume does not reach.
    inside : numpy.ndarray
        Boolean (*shape): voxels that every volume reaches.
    """
    filled = np.arange(len(points)) if near is None else np.flatnonzero(near)
    out = np.zeros((series.shape[3], len(points)), np.float32)
    inside = np.zeros(len(points), bool)
    inside[filled] = True
    options: dict[str, Any] = {"order": order, "threads": threads}
    options |= {"slice_timing": slice_timing, "distortion": distortion}
    volumes = sample_series(series, affine, motion, [points[filled]], **options)
    for t, (values,) in enumerate(volumes):
        reached = np.isfinite(values)
        out[t, filled[reached]] = values[reached]
        inside[filled[~reached]] = False
    return np.moveaxis(out.reshape(-1, *shape), 0, -1), inside.reshape(shape)


class _Sampler:
    """What `sample_series` keeps between volumes, and how a block of them is read."""

    def __init__(
        self,
        series: np.ndarray,
        affine: np.ndarray,
        motion: np.ndarray,
        points: Sequence[np.ndarray],
        timing: SliceTiming | None,
        distortion: Displacement | None,
        order: int,
    ) -> None:
        self.series, self.motion, self.timing, self.order = series, motion, timing, order
        self.motion_first = timing is not None and timing.order == "motion_first"
        self.to_index = np.linalg.inv(affine)
        self.extent = np.array(series.shape[:3])
        self.sizes = [len(part) for part in points]
        starts = range(0, series.shape[3], _VOLUMES)
        self.blocks = [slice(at, min(at + _VOLUMES, series.shape[3])) for at in starts]
        # points far from the grid in the reference are not reached by any head that moves
        self.kept, self.moving, self.shift, self.factor = [], [], [], []
        self.axis = None if distortion is None else distortion.axis
        for part in points:
            index = part @ self.to_index[:3, :3].T + self.to_index[:3, 3]
            kept = np.flatnonzero(np.all((index >= -8) & (index <= self.extent + 7), axis=1))
            part = part[kept]
            self.kept.append(kept)
            self.moving.append(np.ascontiguousarray(part.T))
            self.shift.append(None if distortion is None else distortion.shift(part))
            self.factor.append(None if distortion is None else distortion.jacobian(part))

    def block(self, block: slice) -> list[list[tuple[np.ndarray, np.ndarray | None]]]:
        """Values and acquisition times (or None) of each volume of a block and set of points."""
        if self.timing is None or self.motion_first:
            volumes = self.series[..., block]
        else:
            volumes = corrected_volumes(self.series, self.timing, block.start, block.stop)
        return [
            self._volume(volumes[..., n], self.motion[t])
            for n, t in enumerate(range(block.start, block.stop))
        ]

    def _volume(
        self, volume: np.ndarray, motion: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray | None]]:
        coefficients = np.asarray(volume, np.float32)
        if self.order > 1:
            coefficients = spline_filter(coefficients, self.order, output=np.float32, mode="mirror")
        matrix = self.to_index @ motion
        found = []
        for part, moving in enumerate(self.moving):
            index = matrix[:3, :3] @ moving + matrix[:3, 3:]
            if self.axis is not None:
                index[self.axis] += self.shift[part]
            within = np.all((index >= -0.5) & (index <= self.extent[:, None] - 0.5), axis=0)
            kept = self.kept[part]
            if not within.all():
                index, kept = index[:, within], kept[within]
            sampled = map_coordinates(
                coefficients,
                index,
                order=self.order,
                mode="mirror",
                prefilter=False,
                output=np.float32,
            )
            if self.axis is not None:
                sampled *= self.factor[part][within]
            values = np.full(self.sizes[part], np.nan, np.float32)
            values[kept] = sampled
            times = None
            if self.motion_first:
                times = np.zeros(self.sizes[part], np.float32)
                times[kept] = acquisition_times(
                    self.timing, index[self.timing.axis], order=self.order
                )
            found.append((values, times))
        return found


def _interpolate_reached(samples: np.ndarray, times: np.ndarray, timing: SliceTiming) -> np.ndarray:
    """`interpolate_samples` (time, points) where a volume's NaN stays a NaN of that volume."""
    missing = ~np.isfinite(samples)
    partly = missing.any(axis=0) & ~missing.all(axis=0)
    known = np.where(missing, 0, samples)
    taken = np.array(times, np.float64)
    if partly.any():
        # the point's own mean stands in, so that its neighbours in time keep their size
        for values in (known, taken):
            count = (~missing[:, partly]).sum(axis=0)
            mean = np.where(missing, 0, values)[:, partly].sum(axis=0) / count
            values[:, partly] = np.where(missing[:, partly], mean, values[:, partly])
    found = interpolate_samples(known, taken, timing)
    found[missing] = np.nan
    return found


def _in_order(function: Any, blocks: Iterable[Any], threads: int) -> Iterator[Any]:
    """Results of blocks in their order, with no more than a few at work or waiting."""
    # not parallel.map_blocks: the series stays in this process whatever dask.scheduler says
    with threadpool_limits(limits=1), ThreadPoolExecutor(max(threads, 1)) as pool:
        waiting: deque[Any] = deque()
        for block in blocks:
            waiting.append(pool.submit(function, block))
            if len(waiting) > 2 * max(threads, 1):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


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
