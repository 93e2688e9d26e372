"""The field from two echo-planar images of opposite phase encoding, as topup finds it.

Both images are undistorted by one field, each in its own direction and with its own change of
intensity, until they are the same (Andersson, Skare & Ashburner 2003, NeuroImage 20).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from threadpoolctl import threadpool_limits

from isocortex.preprocess.masks import epi_mask
from isocortex.preprocess.motion import estimate_motion
from isocortex.preprocess.resampling import resample_volume
from isocortex.preprocess.spline_field import SplineField, solve
from isocortex.preprocess.transforms import grid_points, rigid_matrix, rigid_parameters

logger = logging.getLogger(__name__)

# distance of knots, full width of the smoothing, voxel size (mm), Gauss-Newton steps
_LEVELS = ((40.0, 12.0, 6.0, 6), (24.0, 8.0, 5.0, 6), (15.0, 5.0, 3.5, 5), (9.0, 3.0, 2.5, 4))
# against the mean square difference of the images, for displacements in mm: second derivatives,
# and the displacements themselves, which nothing else holds where there is no signal
_BENDING, _HOLD = 4.0, 2e-3


@dataclass(frozen=True)
class OppositeField:
    """What two images of opposite phase encoding tell.

    Attributes
    ----------
    field
        Hz (x, y, z), on the first image's grid, undistorted.
    recorded
        Both images as they came (2, x, y, z), the second one in the first one's pose.
    corrected
        The same undistorted.
    matrix
        4 x 4, the first image's mm to the second one's.
    correlation
        Of both images inside the head before and after.
    """

    field: np.ndarray
    recorded: np.ndarray
    corrected: np.ndarray
    matrix: np.ndarray
    correlation: tuple[float, float]


class _Lines:
    """Cubic splines along the last axis of a volume: values and slopes at shifted places."""

    def __init__(self, volume: np.ndarray) -> None:
        self.coefficients = np.ascontiguousarray(
            ndimage.spline_filter1d(volume, 3, axis=-1, output=np.float64, mode="mirror")
        )
        n = volume.shape[-1]
        self.place = np.arange(n, dtype=float)
        self.base = (np.arange(volume.size // n) * n).reshape(*volume.shape[:-1], 1)

    def at(self, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = self.coefficients.shape[-1]
        place = np.clip(self.place + shift, -0.5, n - 0.5)
        low = np.floor(place).astype(np.int64)
        t = place - low
        flat = self.coefficients.ravel()
        taps = [
            flat[self.base + np.abs((n - 1) - np.abs((n - 1) - np.abs(low + k)))]
            for k in (-1, 0, 1, 2)
        ]
        u = 1 - t
        value = (
            u**3 * taps[0]
            + (4 - 6 * t**2 + 3 * t**3) * taps[1]
            + (4 - 6 * u**2 + 3 * u**3) * taps[2]
            + t**3 * taps[3]
        ) / 6
        slope = (
            -(u**2) * taps[0]
            + (3 * t**2 - 4 * t) * taps[1]
            - (3 * u**2 - 4 * u) * taps[2]
            + t**2 * taps[3]
        ) / 2
        return value, slope


def _thinned(volume: np.ndarray, width: Sequence[float], step: Sequence[int]) -> np.ndarray:
    sigma = [w / 2.355 for w in width]
    smooth = ndimage.gaussian_filter(volume, sigma, mode="nearest", truncate=3.0)
    return smooth[tuple(slice(None, None, every) for every in step)]


def _fit_level(
    volumes: Sequence[np.ndarray],
    weights: np.ndarray,
    spline: SplineField,
    coefficients: np.ndarray,
    scales: Sequence[float],
    *,
    bending: float,
    iterations: int,
) -> np.ndarray:
    """Gauss-Newton steps on the coefficients of the field, at one resolution."""
    lines = [_Lines(volume) for volume in volumes]
    share = weights / weights.sum()

    def state(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Difference of the undistorted images, and its derivatives by field and slope."""
        field, slope = spline.expand(values), spline.expand(values, slope=2)
        parts = []
        for line, scale in zip(lines, scales, strict=True):
            value, along = line.at(scale * field)
            bright = 1 + scale * slope
            parts.append((value * bright, scale * along * bright, scale * value))
        return tuple(one - two for one, two in zip(*parts, strict=True))

    def roughness(values: np.ndarray) -> np.ndarray:
        return spline.bend(values) + _HOLD * spline.hold(values)

    def cost(residual: np.ndarray, values: np.ndarray, weight: float) -> float:
        return float((share * residual**2).sum() + weight * np.vdot(values, roughness(values)))

    residual, by_field, by_slope = state(coefficients)
    for _ in range(iterations):
        # as the images come to agree less smoothness is asked for, as in topup
        weight = bending * max(float((share * residual**2).sum()), 1e-6)
        now = cost(residual, coefficients, weight)
        a, c = by_field, by_slope

        diagonal = spline.gather(share * a**2, squared=True)
        diagonal += spline.gather(share * c**2, slope=2, squared=True)
        ridge = 1e-4 * diagonal.max()

        def apply(step: np.ndarray, a=a, c=c, weight=weight, ridge=ridge) -> np.ndarray:
            change = share * (a * spline.expand(step) + c * spline.expand(step, slope=2))
            found = spline.gather(a * change) + spline.gather(c * change, slope=2)
            return found + weight * roughness(step) + ridge * step

        right = -spline.gather(share * a * residual) - spline.gather(share * c * residual, slope=2)
        right -= weight * roughness(coefficients)
        diagonal = diagonal + 3e-2 * diagonal.max()
        step = solve(apply, right, diagonal, iterations=30, tolerance=3e-2)
        for _ in range(5):
            tried = coefficients + step
            found = state(tried)
            if cost(found[0], tried, weight) < now:
                break
            step = step / 2
        else:
            return coefficients
        coefficients, (residual, by_field, by_slope) = tried, found
        if cost(residual, coefficients, weight) > 0.995 * now:
            break
    return coefficients


@threadpool_limits.wrap(limits=1, user_api="blas")
def opposite_field(
    first: np.ndarray,
    second: np.ndarray,
    affine: np.ndarray,
    second_affine: np.ndarray,
    *,
    axis: int,
    scales: tuple[float, float],
) -> OppositeField:
    """Estimate the field from two images of opposite phase encoding.

    Least squares on the coefficients of a cubic B-spline field by Gauss-Newton, on four
    resolutions, with the change of intensity in the model; between resolutions the second image
    is aligned rigidly to the first. A motion along the phase-encoding axis cannot be told from
    a constant field: it is taken as one, which moves the whole corrected image and nothing in
    it.

    Parameters
    ----------
    first, second
        (x, y, z) each, on grids of their own.
    affine, second_affine
        4 x 4, voxels to mm.
    axis
        Phase-encoding axis of the first image's array.
    scales
        Voxels of the first image's grid along its axis by which 1 Hz moves signal, of each
        image: sign times readout time where the grids are the same.

    Raises
    ------
    ValueError
        Both images were distorted the same way.
    """
    if scales[0] * scales[1] >= 0:
        raise ValueError("the images were not encoded in opposite directions")
    order = [n for n in range(3) if n != axis] + [axis]
    back = np.argsort(order)
    size = np.linalg.norm(affine[:3, :3], axis=0)
    shape = first.shape
    points = grid_points(shape, affine)
    centre = points.mean(axis=0)
    along = affine[:3, axis] / size[axis]
    head = epi_mask(np.asarray(first, np.float32))
    one = np.asarray(first, np.float64) / max(float(first[head].mean()), 1e-9)
    two = np.asarray(second, np.float64)
    extent = np.array(second.shape)
    to_second = np.linalg.inv(second_affine)

    def placed(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The second image in the first one's pose and on its grid, and where it reaches."""
        moved = points @ matrix[:3, :3].T + matrix[:3, 3]
        index = moved @ to_second[:3, :3].T + to_second[:3, 3]
        inside = np.all((index > -0.5) & (index < extent - 0.5), axis=1).reshape(shape)
        volume = resample_volume(two, second_affine, moved, shape, order=3)
        # distortion moves signal and makes none: both have as much of it around the head
        around = inside & ndimage.binary_dilation(head | epi_mask(volume), iterations=2)
        return volume * (one[around].sum() / max(float(volume[around].sum()), 1e-9)), inside

    def undistorted(field: np.ndarray, volume: np.ndarray, scale: float) -> np.ndarray:
        value, _ = _Lines(volume.transpose(order)).at((scale * field).transpose(order))
        value = value.transpose(back) * (1 + scale * _slope(field, axis))
        return np.maximum(value, 0)

    def aligned(matrix: np.ndarray, target: np.ndarray, volume: np.ndarray) -> np.ndarray:
        mask = ndimage.binary_dilation(head, iterations=1)
        found = estimate_motion(
            volume[..., None].astype(np.float32),
            affine,
            reference=target.astype(np.float32),
            mask=mask,
            centre=centre,
        )[0][0]
        parameters = rigid_parameters(found, centre)
        parameters[:3] -= along * (along @ parameters[:3])
        return matrix @ rigid_matrix(parameters, centre)

    # the first alignment waits for a field: opposite distortions look like rotations
    matrix = np.eye(4)
    field = np.zeros(shape)
    moved, inside = placed(matrix)
    before = _correlation(one, moved, head & inside)
    mean_scale = (abs(scales[0]) + abs(scales[1])) / 2
    for level, (knots, width, voxel, iterations) in enumerate(_LEVELS):
        step = np.maximum(np.round(voxel / size).astype(int), 1)
        step = np.where(np.array(shape) >= 16, step, 1)[order]
        widths = (np.where(np.array(shape) > 1, width / size, 0.0))[order]
        spline = SplineField(np.array(shape)[order], size[order], knots=knots, step=step)
        whole = SplineField(np.array(shape)[order], size[order], knots=knots, step=(1, 1, 1))
        coefficients = whole.from_field(field.transpose(order))
        volumes = [_thinned(v.transpose(order), widths, step) for v in (one, moved)]
        weights = _thinned(inside.transpose(order).astype(float), widths, step)
        # shifts in thinned voxels; bending energy of displacements in mm
        coefficients = _fit_level(
            volumes,
            weights,
            spline,
            coefficients,
            [scale / step[2] for scale in scales],
            bending=_BENDING * (mean_scale * size[axis]) ** 2,
            iterations=iterations,
        )
        field = whole.expand(coefficients).transpose(back)
        if level > 0:
            matrix = aligned(
                matrix,
                undistorted(field, one, scales[0]),
                undistorted(field, moved, scales[1]),
            )
            moved, inside = placed(matrix)
    corrected = np.stack(
        [undistorted(field, v, s) for v, s in zip((one, moved), scales, strict=True)]
    )
    after = _correlation(*corrected, head & inside)
    logger.info("opposite phase encoding: correlation of the images %.3f, %.3f", before, after)
    return OppositeField(
        field.astype(np.float32),
        np.stack([one, moved]).astype(np.float32),
        corrected.astype(np.float32),
        matrix,
        (before, after),
    )


def _slope(field: np.ndarray, axis: int) -> np.ndarray:
    if field.shape[axis] < 2:
        return np.zeros_like(field)
    return np.gradient(field, axis=axis)


def _correlation(one: np.ndarray, two: np.ndarray, mask: np.ndarray) -> float:
    return float(np.corrcoef(one[mask], two[mask])[0, 1])
