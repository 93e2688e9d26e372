"""Boundary-based registration of a BOLD reference to a T1w (Greve & Fischl 2009).

White and grey matter meet at a surface that the T1w shows sharply and an echo-planar image
hardly at all; what this image does show is that grey matter is brighter on one side of that
surface than white matter on the other. The cost of a pose is how often, and how clearly, it is
not.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage, optimize

from isocortex.preprocess.transforms import AffineTransform, rigid_matrix

logger = logging.getLogger(__name__)

DEPTH_MM = 2.0  # from the boundary to both samples
MAX_MOVE_MM = 10.0  # that the boundary may move away from where mutual information put it
MAX_COST = 0.9  # 1: no contrast at the boundary, or as much of the wrong sign
MIN_GAIN = 1e-5
_SLOPE = 0.5  # per percent of contrast, as in the paper
_SATURATION = 2.0  # an image's own typical contrast, times the slope: beyond it tanh is flat
_SMOOTHING_MM = 0.8
_COARSE_POINTS, _FINE_POINTS = 2_000, 8_000
_MIN_POINTS = 300
_LEVER_MM = 60.0  # a radian counts as this many mm: an angle moves the cortex as far


@dataclass(frozen=True)
class Boundary:
    """Points on the boundary of white and grey matter, sub-voxel, spread evenly over it.

    Attributes
    ----------
    points
        (n, 3), mm in the T1w's space.
    normals
        (n, 3), of length one, from white to grey matter.
    """

    points: np.ndarray
    normals: np.ndarray

    def subset(self, n: int) -> Boundary:
        """At most n of the points, evenly chosen."""
        if len(self.points) <= n:
            return self
        chosen = np.linspace(0, len(self.points) - 1, n).round().astype(int)
        return Boundary(self.points[chosen], self.normals[chosen])


@dataclass(frozen=True)
class Refinement:
    """What `refine` found.

    Attributes
    ----------
    matrix
        4 x 4, T1w mm to reference mm: the refined one where it is accepted, else the start.
    accepted
        Whether it is.
    cost_before, cost_after
        At the start and where the search ended; NaN where the reference has too little boundary.
    moved_mm
        The furthest that a boundary point went.
    reason
        In words, for the log.
    """

    matrix: np.ndarray
    accepted: bool
    cost_before: float
    cost_after: float
    moved_mm: float
    reason: str


def white_matter_boundary(
    white: nib.Nifti1Image, grey: nib.Nifti1Image, *, n_points: int = _FINE_POINTS
) -> Boundary:
    """Where white matter meets grey matter, from the tissue probabilities of a T1w.

    The level set of one half of the smoothed probability of white matter, by marching cubes;
    of its points those stay that have white matter on the one side and grey matter on the other,
    not a ventricle or the rim of the mask.

    Parameters
    ----------
    white, grey
        Probabilities on one grid, in the T1w's space.
    n_points
        At most so many, evenly chosen.

    Returns
    -------
    Boundary
        Empty where there is no white matter.
    """
    from skimage.measure import marching_cubes

    empty = Boundary(np.zeros((0, 3)), np.zeros((0, 3)))
    affine = np.asarray(white.affine, float)
    values = np.asarray(white.dataobj, np.float32)
    found = ndimage.find_objects((values > 0.5).astype(np.int8))
    if not found:
        return empty
    size = np.linalg.norm(affine[:3, :3], axis=0)
    pad = np.ceil(6.0 / size).astype(int)
    box = tuple(
        slice(max(part.start - p, 0), part.stop + p) for part, p in zip(found[0], pad, strict=True)
    )
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    sigma = _SMOOTHING_MM / size
    values = ndimage.gaussian_filter(values[box], sigma, mode="constant")
    other = ndimage.gaussian_filter(
        np.asarray(grey.dataobj, np.float32)[box], sigma, mode="constant"
    )
    if min(values.shape) < 2 or not values.max() > 0.5 > values.min():
        return empty
    # a fine T1w has several times the points that are needed
    step = 2 if (size < 1.5).all() and min(values.shape) > 8 else 1
    vertices = marching_cubes(values, 0.5, step_size=step, allow_degenerate=False)[0]
    # marching cubes lists vertices slice by slice, so that an even choice is even in space
    chosen = np.linspace(0, len(vertices) - 1, min(len(vertices), 3 * n_points))
    index = vertices[chosen.round().astype(int)].astype(float)
    slope = np.stack([_difference(values, index, axis) / size[axis] for axis in range(3)], axis=-1)
    normals = -slope @ (affine[:3, :3] / size).T
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = normals / np.maximum(length, 1e-9)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    inside = _sample(values, affine, points - DEPTH_MM * normals)[0]
    outside = _sample(other, affine, points + DEPTH_MM * normals)[0]
    kept = (inside > 0.6) & (outside > 0.5) & (length[:, 0] > 1e-3)
    return Boundary(points[kept], normals[kept]).subset(n_points)


def _difference(values: np.ndarray, index: np.ndarray, axis: int) -> np.ndarray:
    """Central difference over one voxel at places between voxels."""
    ends = []
    for side in (0.5, -0.5):
        place = index.T.copy()
        place[axis] += side
        ends.append(ndimage.map_coordinates(values, place, order=1, mode="nearest"))
    return ends[0] - ends[1]


def _sample(
    values: np.ndarray, affine: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Linear interpolation at mm coordinates, and which of them the grid holds."""
    to_index = np.linalg.inv(affine)
    index = (points @ to_index[:3, :3].T + to_index[:3, 3]).T
    upper = np.array(values.shape)[:, None] - 0.5
    held = np.all((index >= -0.5) & (index <= upper), axis=0)
    return ndimage.map_coordinates(values, index, order=1, mode="nearest"), held


def boundary_cost(
    reference: nib.Nifti1Image,
    boundary: Boundary,
    matrix: np.ndarray,
    *,
    slope: float = _SLOPE,
    floor: float = 0.0,
) -> float:
    """Greve & Fischl's cost of a pose: mean over the boundary of 1 + tanh(slope x contrast).

    Parameters
    ----------
    reference
        Bias-corrected BOLD reference: grey matter brighter than white matter.
    boundary
        In the T1w's space.
    matrix
        4 x 4, T1w mm to reference mm.
    slope
        Per percent of contrast; the paper's by default.
    floor
        Intensity up to which there is no signal. A point there, or outside of the image, counts
        as one without contrast: leaving the image gains nothing.

    Returns
    -------
    float
        0 (grey clearly brighter everywhere) to 2 (darker); 1 without contrast.
    """
    values = np.asarray(reference.dataobj, np.float32)
    contrast = _contrast(values, np.asarray(reference.affine, float), boundary, matrix, floor)
    return float(np.mean(1.0 + np.tanh(slope * contrast)))


def _contrast(
    values: np.ndarray, affine: np.ndarray, boundary: Boundary, matrix: np.ndarray, floor: float
) -> np.ndarray:
    """Percent by which each point's white side is brighter than its grey side."""
    there = AffineTransform(matrix).apply(boundary.points)
    step = DEPTH_MM * boundary.normals @ matrix[:3, :3].T
    both, held = _sample(values, affine, np.concatenate([there + step, there - step]))
    grey, white = np.split(both, 2)
    held = np.logical_and(*np.split(held, 2)) & (grey > floor) & (white > floor)
    return np.where(held, 200.0 * (white - grey) / np.maximum(grey + white, 1e-6), 0.0)


def refine(
    reference: nib.Nifti1Image, boundary: Boundary, start: np.ndarray, *, mask: np.ndarray
) -> Refinement:
    """Refine a rigid pose by the boundary, at two scales, and judge whether to keep it.

    Parameters
    ----------
    reference
        Bias-corrected BOLD reference, distortion-corrected where it can be; may be a slab.
    boundary
        In the T1w's space.
    start
        4 x 4, T1w mm to reference mm, by mutual information.
    mask
        Boolean, the reference's brain: gives the level of its signal.

    Returns
    -------
    Refinement
        Accepted where the cost is lower than at the start and lower than `MAX_COST`, no point
        moved by more than `MAX_MOVE_MM`, and the cost rises to all sides; else the start stays.

    Notes
    -----
    Powell's method over three shifts and three angles about the boundary's middle; first on an
    image smoothed by half a voxel and few points, then on the image itself.
    """
    values = np.asarray(reference.dataobj, np.float32)
    affine = np.asarray(reference.affine, float)
    floor = 0.2 * float(np.median(values[mask])) if mask.any() else 0.0
    _, used = _sample(values, affine, AffineTransform(start).apply(boundary.points))
    if used.sum() < _MIN_POINTS:
        reason = f"{int(used.sum())} points of the boundary are in the image: too few"
        return Refinement(start, False, np.nan, np.nan, 0.0, reason)
    boundary = Boundary(boundary.points[used], boundary.normals[used])
    centre = AffineTransform(start).apply(boundary.points.mean(axis=0, keepdims=True))[0]
    scale = np.r_[np.ones(3), np.full(3, 1 / _LEVER_MM)]

    def pose(x: np.ndarray) -> np.ndarray:
        return rigid_matrix(x * scale, centre) @ start

    def cost(image: np.ndarray, points: Boundary, x: np.ndarray, slope: float) -> float:
        contrast = _contrast(image, affine, points, pose(x), floor)
        return float(np.mean(1.0 + np.tanh(slope * contrast)))

    thick = np.array(values.shape) > 2
    smooth = ndimage.gaussian_filter(values, np.where(thick, 0.5, 0.0), mode="nearest")
    few = boundary.subset(_COARSE_POINTS)
    best, slope = np.zeros(6), _SLOPE
    for image, points, step, tolerance in (
        (smooth, few, 2.0, 0.05),
        (values, boundary, 0.5, 0.01),
    ):
        search = optimize.minimize(
            lambda x, i=image, p=points, s=slope: cost(i, p, x, s),
            best,
            method="Powell",
            bounds=[(-MAX_MOVE_MM, MAX_MOVE_MM)] * 6,
            options={"xtol": tolerance, "ftol": 1e-5, "direc": np.eye(6) * step, "maxiter": 12},
        )
        best = search.x
        # the paper's slope saturates at 4 %: in an image of more contrast the cost would be flat
        typical = -float(np.median(_contrast(values, affine, boundary, pose(best), floor)))
        slope = min(_SLOPE, _SATURATION / max(typical, 1e-6))
    before, after = (cost(values, boundary, x, slope) for x in (np.zeros(6), best))
    away = np.linalg.norm(
        AffineTransform(pose(best)).apply(boundary.points)
        - AffineTransform(start).apply(boundary.points),
        axis=1,
    ).max()
    around = min(
        cost(values, few, best + sign * 2.0 * axis, slope) for axis in np.eye(6) for sign in (1, -1)
    )
    accepted, reason = False, ""
    if after > before - MIN_GAIN:
        reason = "it is not better"
    elif after > MAX_COST:
        reason = f"its cost is above {MAX_COST:g}"
    elif away > MAX_MOVE_MM:
        reason = f"it went {away:.1f} mm away, more than {MAX_MOVE_MM:g} mm"
    elif around < cost(values, few, best, slope):
        reason = "the cost does not rise to all sides of it"
    else:
        accepted, reason = True, f"it moved by {away:.1f} mm"
    logger.info(
        "boundary cost %.3f at the mutual information's pose, %.3f at its own: %s, %s",
        before, after, "accepted" if accepted else "refused", reason,
    )  # fmt: skip
    return Refinement(
        pose(best) if accepted else start, accepted, before, after, float(away), reason
    )
