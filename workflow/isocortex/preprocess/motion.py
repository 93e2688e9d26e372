"""Rigid head motion by Gauss-Newton, inverse-compositional, a few ms a volume.

Conventions: a volume's matrix carries millimetres (RAS+) of the reference to those of the volume,
the direction in which the volume is resampled. Its six parameters are those of
`transforms.rigid_matrix` about a fixed centre, the middle of the grid in the interfaces:
x -> Rx Ry Rz (x - centre) + centre + translation, in mm and radians. What lies at x in the
reference lies there in the volume: positive trans_x says that the head is further to the right
than in the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy.ndimage import convolve1d, gaussian_filter, map_coordinates
from threadpoolctl import threadpool_limits

from isocortex.preprocess.resampling import resample_series
from isocortex.preprocess.transforms import grid_points, rigid_matrix, rigid_parameters

_COARSE_MM = 8.0  # voxel size of the coarse resolution, about
_FEW_POINTS, _ALL_POINTS = 8_000, 40_000
_ARM = 60.0  # mm from the centre: where a step is measured
_APART = 2.0  # mm: a jump that is looked at twice
# the noise of neighbours is alike: its Gaussian's width in voxels, and how much of it there is
_NOISE_WIDTH, _NOISE_SHARE = 1.0, 0.9
# the cubic B-spline and its derivative at the grid points
_SPLINE, _SLOPE = np.array([1.0, 4, 1]) / 6, np.array([1.0, 0, -1]) / 2


class Aligner(Protocol):
    """Finds the pose of volumes against one reference."""

    def align_all(self, series: np.ndarray, *, threads: int = 1) -> np.ndarray:
        """Matrices (time, 4, 4), reference mm to the volume's, of a series (x, y, z, time)."""


@dataclass(frozen=True)
class _Level:
    """One resolution of the fixed reference, with what does not change between volumes."""

    factor: tuple[int, ...]  # voxels of the run, along each axis, that make one of this level
    to_index: np.ndarray  # 4 x 4, mm to index of this level
    shape: np.ndarray
    points: np.ndarray  # (3, n) mm
    values: np.ndarray  # (n,)
    jacobian: np.ndarray  # (n, 8): six motions, gain, offset
    weighted: np.ndarray  # (n, 8): the same times the noise's inverse covariance
    normal: np.ndarray  # (8, 8)

    def thinned(self, n_points: int) -> _Level:
        """The level on an even subset of at most so many points."""
        n = len(self.values)
        if n <= n_points:
            return self
        kept = np.linspace(0, n - 1, n_points).round().astype(int)
        jacobian, weighted = self.jacobian[kept], self.weighted[kept]
        return replace(
            self,
            points=np.ascontiguousarray(self.points[:, kept]),
            values=self.values[kept],
            jacobian=jacobian,
            weighted=weighted,
            normal=weighted.T @ jacobian,
        )


def _shrink(volume: np.ndarray, factor: tuple[int, ...]) -> np.ndarray:
    """Means of blocks; voxels left over at the ends are not used."""
    # the last axis first: it is the outer one in memory, so that the sums run over whole planes
    for axis in (2, 1, 0):
        n = factor[axis]
        if n == 1:
            continue
        parts = [slice(None)] * 3
        total: np.ndarray | None = None
        for first in range(n):
            parts[axis] = slice(first, volume.shape[axis] // n * n, n)
            part = volume[tuple(parts)]
            total = part if total is None else total + part
        volume = total / np.float32(n)
    return volume


def _coarse_factor(shape: tuple[int, ...], affine: np.ndarray) -> tuple[int, ...]:
    """Blocks of about 8 mm; a thin axis keeps eight of them if it can."""
    size = np.linalg.norm(affine[:3, :3], axis=0)
    return tuple(
        int(max(1, min(round(_COARSE_MM / mm), n // 8)))
        for mm, n in zip(size, shape[:3], strict=True)
    )


def _level(
    reference: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    centre: np.ndarray,
    *,
    factor: tuple[int, ...],
) -> _Level:
    values = _shrink(reference, factor).astype(np.float64)
    share = _shrink(mask.astype(np.float32), factor)
    inside = share > min(0.5, 0.99 * share.max())
    own = np.array(affine)
    own[:3, :3] = affine[:3, :3] * factor
    own[:3, 3] += affine[:3, :3] @ ((np.array(factor) - 1) / 2)
    # The samples are taken as coefficients of a cubic B-spline: that is the image smoothed by
    # 0.58 voxels, and spares each volume both a Gaussian and a spline filter.
    slopes = []
    for along in range(3):
        slope = values
        for axis in range(3):
            kernel = _SLOPE if axis == along else _SPLINE
            slope = convolve1d(slope, kernel, axis=axis, mode="mirror")
        slopes.append(slope[inside])
    for axis in range(3):
        values = convolve1d(values, _SPLINE, axis=axis, mode="mirror")
    values = values[inside]
    gradient = np.stack(slopes, axis=-1) @ np.linalg.inv(own[:3, :3])
    points = np.argwhere(inside) @ own[:3, :3].T + own[:3, 3]
    # d/d(rotation about axis w) = gradient . (w x arm) = w . (arm x gradient)
    motions = np.column_stack([gradient, np.cross(points - centre, gradient)])
    nuisance = np.column_stack([values, np.ones(len(values))])
    jacobian = np.column_stack([motions, nuisance])
    weighted = np.column_stack([_whiten(motions, inside), nuisance])
    return _Level(
        factor=factor,
        to_index=np.linalg.inv(own),
        shape=np.array(inside.shape),
        points=np.ascontiguousarray(points.T),
        values=values,
        jacobian=jacobian,
        weighted=weighted,
        normal=weighted.T @ jacobian,
    )


def _whiten(columns: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Columns over the points of a mask without most of their smooth part.

    Physiological noise, drift and responses are smooth over some voxels, where the head's edges
    are not. With the noise's covariance near to the inverse of this filter the steps are those of
    generalised least squares, and no volume has to be filtered for it.
    """
    sigma = [_NOISE_WIDTH if n > 1 else 0.0 for n in inside.shape]
    white = np.empty_like(columns)
    grid = np.zeros(inside.shape)
    for number, column in enumerate(columns.T):
        grid[inside] = column
        smooth = gaussian_filter(grid, sigma, mode="constant", truncate=3.0)[inside]
        white[:, number] = column - _NOISE_SHARE * smooth
    return white


def _sample(volume: np.ndarray, level: _Level, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A volume at the level's points, carried by a matrix; and which of them it reaches."""
    matrix = level.to_index @ matrix
    index = matrix[:3, :3] @ level.points + matrix[:3, 3:]
    inside = np.all((index >= -0.5) & (index <= level.shape[:, None] - 0.5), axis=0)
    return map_coordinates(volume, index, order=3, mode="mirror", prefilter=False), inside


def _refine(
    volume: np.ndarray,
    level: _Level,
    start: np.ndarray,
    centre: np.ndarray,
    *,
    iterations: int,
    tolerance: float,
) -> np.ndarray:
    """Gauss-Newton steps from a start to the matrix of least squares."""
    matrix, gain = start, 1.0
    for _ in range(iterations):
        sampled, inside = _sample(volume, level, matrix)
        residual = sampled / gain - level.values
        if inside.all():
            normal, right = level.normal, level.weighted.T @ residual
        else:
            kept = level.weighted[inside]
            normal, right = kept.T @ level.jacobian[inside], kept.T @ residual[inside]
        # pseudo-inverse on a scaled system: one slice leaves three motions undetermined
        scale = np.sqrt(np.maximum(np.abs(np.diag(normal)), 1e-12))
        step = np.linalg.pinv(normal / np.outer(scale, scale), rcond=1e-9)
        step = step @ (right / scale) / scale
        gain = max(gain * (1.0 + step[6]), 0.1)
        matrix = matrix @ np.linalg.inv(rigid_matrix(step[:6], centre))
        if _size(step) < tolerance:
            break
    return matrix


def _size(parameters: np.ndarray) -> float:
    """A motion, as a displacement in mm of a place at the edge of the brain."""
    return float(np.abs(parameters[:3]).max() + _ARM * np.abs(parameters[3:6]).max())


def _likeness(volume: np.ndarray, level: _Level, matrix: np.ndarray) -> float:
    """Correlation with the reference over the points that the volume reaches; -1 if too few."""
    sampled, inside = _sample(volume, level, matrix)
    if inside.sum() < 0.5 * len(inside):
        return -1.0
    moved, fixed = sampled[inside].astype(np.float64), level.values[inside]
    moved, fixed = moved - moved.mean(), fixed - fixed.mean()
    return float(moved @ fixed / max(np.sqrt((moved @ moved) * (fixed @ fixed)), 1e-12))


class RigidAligner:
    """Aligns volumes to one reference: Gauss-Newton on two resolutions.

    The sum of squared differences between the reference and gain x volume + offset is minimised
    over the voxels of a mask; the derivative is that of the reference, so that it is made once
    (the inverse-compositional scheme of Baker & Matthews 2004, IJCV 56). Volumes are compared
    on blocks of about 8 mm first, then on single voxels: 8,000 of them until the steps are small,
    and up to 40,000 for the last step.

    Parameters
    ----------
    reference
        Shape (x, y, z).
    affine
        4 x 4, voxels to mm.
    mask
        Boolean (x, y, z): where the images are compared.
    centre
        Centre of rotation in mm; the steps refer to it.
    """

    def __init__(
        self, reference: np.ndarray, affine: np.ndarray, mask: np.ndarray, centre: np.ndarray
    ) -> None:
        reference = np.asarray(reference, np.float32)
        affine, self.centre = np.asarray(affine, float), np.asarray(centre, float)
        make = {"reference": reference, "mask": mask, "affine": affine, "centre": self.centre}
        factor = _coarse_factor(reference.shape, affine)
        self._coarse = _level(**make, factor=factor).thinned(_FEW_POINTS)
        self._fine = _level(**make, factor=(1, 1, 1)).thinned(_ALL_POINTS)
        self._few = self._fine.thinned(_FEW_POINTS)

    def align(self, volume: np.ndarray) -> np.ndarray:
        """The 4 x 4 matrix that carries reference mm into a volume's mm.

        Parameters
        ----------
        volume
            Shape (x, y, z), on the reference's grid.
        """
        return self.align_all(np.asarray(volume)[..., None])[0]

    def align_all(self, series: np.ndarray, *, threads: int = 1) -> np.ndarray:
        """The matrices of all volumes of a series.

        The coarse poses are found one after the other, each from the one before and from the
        reference's pose, whichever ends nearer to the reference: a head that has moved far
        is followed, and one lost in a burst of motion is found again. The fine ones do not depend
        on one another, so that the result is the same with any number of threads.

        Parameters
        ----------
        series
            Shape (x, y, z, time), on the reference's grid.
        threads
            Volumes worked on at the same time.

        Returns
        -------
        numpy.ndarray
            (time, 4, 4).
        """

        def shrink(t: int) -> np.ndarray:
            return np.ascontiguousarray(_shrink(_volume(series, t), self._coarse.factor))

        def fine(t: int) -> np.ndarray:
            volume = _volume(series, t)
            options = {"iterations": 12, "tolerance": 0.03}
            near = _refine(volume, self._few, coarse[t], self.centre, **options)
            options = {"iterations": 4, "tolerance": 0.03}
            return _refine(volume, self._fine, near, self.centre, **options)

        coarse: list[np.ndarray] = []
        times = range(series.shape[3])
        # sums differ in their last bits with the threads of linear algebra
        with threadpool_limits(limits=1), ThreadPoolExecutor(max(threads, 1)) as pool:
            previous = np.eye(4)
            for volume in pool.map(shrink, times):
                previous = self._find(volume, previous)
                coarse.append(previous)
            return np.array(list(pool.map(fine, times)))

    def _find(self, volume: np.ndarray, previous: np.ndarray) -> np.ndarray:
        """The coarse pose, from the one before and, away from the reference's, from that too."""
        starts = [previous]
        if _size(rigid_parameters(previous, self.centre)) > _APART:
            starts.append(np.eye(4))
        options = {"iterations": 30, "tolerance": 0.1}
        found = [_refine(volume, self._coarse, start, self.centre, **options) for start in starts]
        jump = rigid_parameters(np.linalg.inv(previous) @ found[0], self.centre)
        if len(found) == 1 and _size(jump) <= _APART:
            return found[0]
        return max(found + starts, key=lambda matrix: _likeness(volume, self._coarse, matrix))


def _volume(series: np.ndarray, t: int) -> np.ndarray:
    return np.asarray(series[..., t], np.float32)


def estimate_motion(
    series: np.ndarray,
    affine: np.ndarray,
    *,
    reference: np.ndarray,
    mask: np.ndarray,
    centre: np.ndarray,
    threads: int = 1,
    aligner: Callable[..., Aligner] = RigidAligner,
) -> tuple[np.ndarray, np.ndarray]:
    """Head motion of every volume against a reference.

    Parameters
    ----------
    series
        Shape (x, y, z, time).
    affine
        4 x 4, voxels to mm.
    reference
        Shape (x, y, z), on the same grid.
    mask
        Boolean (x, y, z).
    centre
        Centre of rotation, mm.
    threads
        Volumes worked on at the same time; the result does not depend on it.
    aligner
        Makes the aligner from reference, affine, mask and centre.

    Returns
    -------
    matrices : numpy.ndarray
        (time, 4, 4): reference mm to the volume's mm.
    parameters : numpy.ndarray
        (time, 6): trans_x, trans_y, trans_z in mm, rot_x, rot_y, rot_z in radians, of those
        matrices about the centre. Positive trans_x: the head is further to the right than in
        the reference.
    """
    matrices = aligner(reference, affine, mask, centre).align_all(series, threads=threads)
    return matrices, np.array([rigid_parameters(m, centre) for m in matrices])


def reference_volume(
    series: np.ndarray,
    affine: np.ndarray,
    *,
    mask: np.ndarray,
    centre: np.ndarray,
    n_dummy: int = 0,
    n_volumes: int = 20,
    threads: int = 1,
    aligner: Callable[..., Aligner] = RigidAligner,
) -> np.ndarray:
    """A reference: the median of volumes spread over the run, aligned to the most typical one.

    Parameters
    ----------
    series
        Shape (x, y, z, time).
    affine
        4 x 4, voxels to mm.
    mask
        Boolean (x, y, z).
    centre
        Centre of rotation, mm.
    n_dummy
        Volumes before the steady state, left out.
    n_volumes
        How many volumes make the median.
    threads
        Volumes worked on at the same time; the result does not depend on it.
    aligner
        As in `estimate_motion`.

    Returns
    -------
    numpy.ndarray
        float32, shape (x, y, z), in the pose of `typical_volume`.
    """
    picks = _picks(series.shape[3], n_dummy, n_volumes)
    chosen = np.stack([_volume(series, t) for t in picks], axis=-1)
    pivot = chosen[..., _most_typical(chosen, affine)]
    matrices = aligner(pivot, affine, mask, centre).align_all(chosen, threads=threads)
    points = grid_points(pivot.shape, affine)
    moved, _ = resample_series(chosen, affine, matrices, points, pivot.shape, threads=threads)
    return np.median(moved, axis=-1).astype(np.float32)


def typical_volume(
    series: np.ndarray, affine: np.ndarray, *, n_dummy: int = 0, n_volumes: int = 20
) -> int:
    """Number of the volume whose pose `reference_volume` takes; arguments as there.

    Of the volumes spread over the run it is the one nearest to the median of all, on coarse
    blocks: not one that the head moved in, nor one far from the others.
    """
    picks = _picks(series.shape[3], n_dummy, n_volumes)
    return int(picks[_most_typical(np.stack([_volume(series, t) for t in picks], -1), affine)])


def _picks(n_times: int, n_dummy: int, n_volumes: int) -> np.ndarray:
    last = n_times - 1
    first = min(n_dummy, last)
    spread = np.linspace(first, last, min(n_volumes, last - first + 1))
    return np.unique(spread.round()).astype(int)


def _most_typical(volumes: np.ndarray, affine: np.ndarray) -> int:
    factor = _coarse_factor(volumes.shape, affine)
    small = [_shrink(volumes[..., n], factor) for n in range(volumes.shape[3])]
    median = np.median(small, axis=0)
    return int(np.argmin([np.square(one - median).mean() for one in small]))
