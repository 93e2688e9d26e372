"""Rigid head motion of a few volumes with a known truth."""

from __future__ import annotations

from typing import Any

import ants
import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter, map_coordinates, spline_filter

from benchmarks.measure import side_by_side
from isocortex.preprocess.images import as_image
from isocortex.preprocess.motion import estimate_motion
from isocortex.preprocess.registration import load_template, to_ants
from isocortex.preprocess.transforms import AffineTransform, grid_points, rigid_matrix

_LPS = np.array([-1.0, -1.0, 1.0])


def run(*, small: bool = False) -> dict[str, Any]:
    """The template's head at 3 mm in known poses, tSNR about 60; both align to the first volume."""
    step, volumes = (5.0, 2) if small else (3.0, 8)
    rng = np.random.default_rng(0)
    truth = np.cumsum(rng.standard_normal((volumes, 6)) * [0.3, 0.3, 0.3, 5e-3, 5e-3, 5e-3], axis=0)
    truth[0] = 0
    template = load_template(step)
    affine = np.asarray(template.affine, dtype=float)
    smooth = gaussian_filter(np.asarray(template.dataobj, dtype=float), 0.8) * 1000
    spline = spline_filter(smooth, order=3)
    points = grid_points(smooth.shape, affine)
    centre = np.zeros(3)
    poses = [rigid_matrix(row, centre) for row in truth]
    series = np.empty((*smooth.shape, volumes), dtype=np.float32)
    for k, pose in enumerate(poses):
        back = np.linalg.inv(affine) @ np.linalg.inv(pose)
        index = (points @ back[:3, :3].T + back[:3, 3]).T
        moved = map_coordinates(spline, index, order=3, prefilter=False).reshape(smooth.shape)
        series[..., k] = moved + 12 * rng.standard_normal(smooth.shape)
    mask = smooth > 200
    head = points[mask.ravel()][::200]
    fixed = to_ants(as_image(series[..., 0], affine))
    direction = np.eye(4)
    direction[:3, :3] = fixed.direction
    image = ants.from_numpy(
        series, spacing=(*fixed.spacing, 1.0), origin=(*fixed.origin, 0.0), direction=direction
    )

    def ours() -> np.ndarray:
        matrices, _ = estimate_motion(
            series, affine, reference=series[..., 0], mask=mask, centre=centre
        )
        return np.array([AffineTransform(matrix).apply(head) for matrix in matrices])

    def peer() -> np.ndarray:
        made = ants.motion_correction(image, fixed=fixed, random_seed=1)
        table = pd.DataFrame(head * _LPS, columns=["x", "y", "z"])
        return np.array(
            [
                ants.apply_transforms_to_points(3, table, one)[["x", "y", "z"]].to_numpy() * _LPS
                for one in made["motion_parameters"]
            ]
        )

    wanted = np.array([AffineTransform(pose).apply(head) for pose in poses])

    def error(found: np.ndarray) -> float:
        return float(np.sqrt(np.square(found - wanted).sum(axis=-1).mean()))

    def note(mine: np.ndarray, theirs: np.ndarray) -> str:
        shape = " x ".join(map(str, smooth.shape))
        return (
            f"seconds a volume of {shape} voxels at {step:g} mm, {volumes} volumes; RMS error of "
            f"points of the head: ours {error(mine):.3f} mm, the peer {error(theirs):.3f} mm "
            "(motion_correction with its defaults); the difference is the largest at any point"
        )

    return side_by_side(
        ours,
        peer,
        difference=lambda mine, theirs: float(np.linalg.norm(mine - theirs, axis=-1).max()),
        tolerance=1.0,
        package="antspyx",
        note=note,
        ours_units=volumes,
        peer_units=volumes,
    )
