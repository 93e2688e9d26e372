"""Rigid head motion by Gauss-Newton, inverse-compositional, a few tens of ms a volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates, spline_filter

from isocortex.preprocess.transforms import rigid_matrix, rigid_parameters

_COARSE_MM, _FINE_MM = 4.0, 1.7  # sigma of the smoothing at the two resolutions
_COARSE_POINTS, _FINE_POINTS = 8_000, 25_000


@dataclass(frozen=True)
class _Level:
    """One resolution of the fixed reference, with what does not change between volumes."""

    points: np.ndarray  # (n, 3) mm
    values: np.ndarray  # (n,)
    jacobian: np.ndarray  # (n, 8): six motions, gain, offset
    sigma: np.ndarray  # voxels
    order: int


def _smooth(volume: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    return gaussian_filter(volume, sigma, mode="nearest", truncate=3.0)


def _level(
    reference: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    centre: np.ndarray,
    *,
    sigma_mm: float,
    n_points: int,
    order: int,
) -> _Level:
    sigma = sigma_mm / np.linalg.norm(affine[:3, :3], axis=0)
    # one slice has nothing to smooth over, and no gradient, in its thin direction
    sigma = np.where(np.array(reference.shape) > 1, sigma, 0.0)
    smooth = _smooth(reference, sigma)
    slopes = [
        np.gradient(smooth, axis=axis) if size > 1 else np.zeros_like(smooth)
        for axis, size in enumerate(reference.shape)
    ]
    gradient = np.stack(slopes, axis=-1)[mask] @ np.linalg.inv(affine[:3, :3])
    index = np.argwhere(mask)
    values = smooth[mask]
    if len(index) > n_points:
        # an even subset of the voxels with the steeper half of the gradients and of the rest
        chosen = np.unique(np.linspace(0, len(index) - 1, n_points).round().astype(int))
        index, values, gradient = index[chosen], values[chosen], gradient[chosen]
    points = index @ affine[:3, :3].T + affine[:3, 3]
    arm = points - centre
    # d/d(rotation about axis w) = gradient . (w x arm) = w . (arm x gradient)
    jacobian = np.column_stack([gradient, np.cross(arm, gradient), values, np.ones(len(values))])
    return _Level(points, values, jacobian, sigma, order)


def _align(
    volume: np.ndarray,
    level: _Level,
    start: np.ndarray,
    affine: np.ndarray,
    centre: np.ndarray,
    *,
    iterations: int,
    tolerance: float,
) -> np.ndarray:
    """Refine the 4 x 4 matrix that carries points of the reference into the volume."""
    moving = _smooth(volume, level.sigma)
    if level.order > 1:
        moving = spline_filter(moving, level.order, output=np.float32, mode="mirror")
    to_index = np.linalg.inv(affine)
    upper = np.array(volume.shape)[:, None] - 0.5
    matrix = start
    gain = 1.0
    normal_all = level.jacobian.T @ level.jacobian
    for _ in range(iterations):
        step_matrix = to_index @ matrix
        index = (level.points @ step_matrix[:3, :3].T + step_matrix[:3, 3]).T
        inside = np.all((index >= -0.5) & (index <= upper), axis=0)
        sampled = map_coordinates(moving, index, order=level.order, mode="mirror", prefilter=False)
        residual = sampled / gain - level.values
        if inside.all():
            normal, right = normal_all, level.jacobian.T @ residual
        else:
            kept = level.jacobian[inside]
            normal, right = kept.T @ kept, kept.T @ residual[inside]
        # pseudo-inverse on a scaled system: one slice leaves three motions undetermined
        scale = np.sqrt(np.maximum(np.diag(normal), 1e-12))
        step = np.linalg.pinv(normal / np.outer(scale, scale), rcond=1e-9, hermitian=True)
        step = step @ (right / scale) / scale
        gain *= 1.0 + step[6]
        matrix = matrix @ np.linalg.inv(rigid_matrix(step[:6], centre))
        # the step, as a displacement 60 mm from the centre
        if np.abs(step[:3]).max() + 60 * np.abs(step[3:6]).max() < tolerance:
            break
    return matrix


class RigidAligner:
    """Aligns volumes to one reference: Gauss-Newton on two resolutions.

    The sum of squared differences between the reference and gain x volume + offset is minimised
    over the voxels of a mask; the derivative is that of the reference, so that it is made once
    (the inverse-compositional scheme of Baker & Matthews 2004, IJCV 56).

    Parameters
    ----------
    reference
        Shape (x, y, z).
    affine
        4 x 4, voxels to mm.
    mask
        Boolean (x, y, z): where the images are compared.
    centre
        Centre of rotation in mm; the parameters refer to it.
    """

    def __init__(
        self, reference: np.ndarray, affine: np.ndarray, mask: np.ndarray, centre: np.ndarray
    ) -> None:
        reference = np.asarray(reference, np.float32)
        self.affine, self.centre = np.asarray(affine, float), np.asarray(centre, float)
        make = {"affine": self.affine, "centre": self.centre}
        self._coarse = _level(
            reference, mask, sigma_mm=_COARSE_MM, n_points=_COARSE_POINTS, order=1, **make
        )
        self._fine = _level(
            reference, mask, sigma_mm=_FINE_MM, n_points=_FINE_POINTS, order=3, **make
        )

    def align(self, volume: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
        """The 4 x 4 matrix that carries reference mm into the volume's mm.

        Parameters
        ----------
        volume
            Shape (x, y, z), on the reference's grid.
        start
            Matrix to start from, that of the volume before; identity by default.
        """
        volume = np.asarray(volume, np.float32)
        matrix = np.eye(4) if start is None else start
        keep = {"affine": self.affine, "centre": self.centre}
        matrix = _align(volume, self._coarse, matrix, iterations=20, tolerance=0.02, **keep)
        return _align(volume, self._fine, matrix, iterations=12, tolerance=0.003, **keep)


def estimate_motion(
    series: np.ndarray,
    affine: np.ndarray,
    *,
    reference: np.ndarray,
    mask: np.ndarray,
    centre: np.ndarray,
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

    Returns
    -------
    matrices : numpy.ndarray
        (time, 4, 4): reference mm to the volume's mm.
    parameters : numpy.ndarray
        (time, 6): trans_x, trans_y, trans_z in mm, rot_x, rot_y, rot_z in radians, of those
        matrices about the centre. Positive trans_x: the head is further to the right than in
        the reference.
    """
    aligner = RigidAligner(reference, affine, mask, centre)
    matrices = np.empty((series.shape[3], 4, 4))
    previous = np.eye(4)
    for t in range(series.shape[3]):
        previous = aligner.align(series[..., t], start=previous)
        matrices[t] = previous
    return matrices, np.array([rigid_parameters(m, centre) for m in matrices])


def reference_volume(
    series: np.ndarray,
    affine: np.ndarray,
    *,
    mask: np.ndarray,
    centre: np.ndarray,
    n_dummy: int = 0,
    n_volumes: int = 20,
) -> np.ndarray:
    """A reference: the median of volumes spread over the run, each aligned to the middle one.

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

    Returns
    -------
    numpy.ndarray
        float32, shape (x, y, z).
    """
    last = series.shape[3] - 1
    first = min(n_dummy, last)
    picks = np.unique(np.linspace(first, last, min(n_volumes, last - first + 1)).round())
    picks = picks.astype(int)
    middle = np.asarray(series[..., picks[len(picks) // 2]], np.float32)
    aligner = RigidAligner(middle, affine, mask, centre)
    grid = np.indices(middle.shape).reshape(3, -1)
    aligned = []
    for t in picks:
        volume = np.asarray(series[..., t], np.float32)
        matrix = np.linalg.inv(affine) @ aligner.align(volume) @ affine
        index = matrix[:3, :3] @ grid + matrix[:3, 3:]
        coefficients = spline_filter(volume, 3, output=np.float32, mode="mirror")
        moved = map_coordinates(
            coefficients, index, order=3, mode="mirror", prefilter=False, output=np.float32
        )
        aligned.append(moved.reshape(middle.shape))
    return np.median(aligned, axis=0).astype(np.float32)
