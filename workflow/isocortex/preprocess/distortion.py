"""Susceptibility distortion of a run: where each point of the head was recorded, and how bright.

The convention is that of sdcflows and FSL: a field of +1 Hz moves signal by +1 x total readout
time voxels along the array axis of ``PhaseEncodingDirection``, and by as much the other way where
the direction ends in "-". Directions refer to the array's axes as the file has them, whatever way
its affine turns or flips them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.ndimage import map_coordinates

from isocortex.preprocess import registration
from isocortex.preprocess.images import as_image
from isocortex.preprocess.masks import epi_mask
from isocortex.preprocess.resampling import resample_volume
from isocortex.preprocess.transforms import grid_points


@dataclass(frozen=True)
class Distortion:
    """The displacement of a run's signal along its phase-encoding axis.

    Attributes
    ----------
    field
        Hz (x, y, z) at the places of the undistorted reference, on the run's own grid.
    affine
        4 x 4, of the run and the field, mm.
    axis
        Array axis of the phase encoding.
    sign
        +1, or -1 where PhaseEncodingDirection ends in "-".
    total_readout_time
        Seconds.
    modulate
        Whether `jacobian` says how signal was compressed; else it is 1 everywhere.
    """

    field: np.ndarray
    affine: np.ndarray
    axis: int
    sign: int
    total_readout_time: float
    modulate: bool = True

    @property
    def voxels(self) -> np.ndarray:
        """Displacement (x, y, z) in voxels along the phase-encoding axis."""
        scale = self.sign * self.total_readout_time
        return np.asarray(self.field, np.float32) * np.float32(scale)

    def shift(self, points: np.ndarray) -> np.ndarray:
        """Voxels along the phase-encoding axis by which the signal of points was displaced.

        Parameters
        ----------
        points
            (n, 3), mm in the undistorted reference's space.

        Returns
        -------
        numpy.ndarray
            float32 (n,): add it to the raw array's index on axis `axis`. Beyond the field's grid
            the value at its edge holds.
        """
        return values_at(self.voxels, self.affine, points)

    def jacobian(self, points: np.ndarray) -> np.ndarray:
        """Factor (n,) by which resampled values are multiplied: 1 + d shift / d voxel.

        Signal that was drawn out over two voxels is half as bright in each (Andersson et al.
        2003); where the field folds the image, nothing is left: the factor is not below 0.
        """
        if not self.modulate or self.field.shape[self.axis] < 2:
            return np.ones(len(points), np.float32)
        slope = np.gradient(self.voxels, axis=self.axis)
        return values_at(np.maximum(1 + slope, 0), self.affine, points)

    def correct(self, volume: np.ndarray) -> np.ndarray:
        """Undistort one volume (x, y, z) on the run's grid, in the reference's pose."""
        points = grid_points(volume.shape, self.affine)
        along = self.affine[:3, self.axis]
        moved = points + self.shift(points)[:, None] * along
        found = resample_volume(
            np.asarray(volume, np.float32), self.affine, moved, volume.shape, order=3
        )
        return np.maximum(found, 0) * self.jacobian(points).reshape(volume.shape)

    def save(self, path: str | Path) -> str:
        """Write it as ``.npz``; returns the path as text."""
        np.savez(
            path,
            field=self.field,
            affine=self.affine,
            numbers=[self.axis, self.sign, self.total_readout_time, self.modulate],
        )
        return str(path)

    @classmethod
    def load(cls, path: str | Path) -> Distortion:
        """Read what `save` wrote."""
        with np.load(path) as file:
            axis, sign, time, modulate = file["numbers"]
            field, affine = file["field"], file["affine"]
        return cls(field, affine, int(axis), int(sign), float(time), bool(modulate))


def place_field(
    field: nib.Nifti1Image,
    field_reference: nib.Nifti1Image,
    run_reference: nib.Nifti1Image,
    *,
    axis: int,
    sign: int,
    total_readout_time: float,
    seed: int,
) -> np.ndarray:
    """Rigid registration of a run's reference, as recorded, to a field's reference.

    The field's reference is undistorted and the run's is not: it is distorted by its field as
    the run would have been, so that both have the same shape.

    Parameters
    ----------
    field
        Hz.
    field_reference
        On the field's grid.
    run_reference
        As recorded.
    axis, sign, total_readout_time
        Of the run, as in `Distortion`.
    seed
        Of ANTs' sampling.

    Returns
    -------
    numpy.ndarray
        4 x 4, the run's mm to the field's mm.
    """
    along = sign * total_readout_time * run_reference.affine[:3, axis]
    moving = as_image(_as_recorded(field, field_reference, along), field.affine)
    mask = epi_mask(np.asarray(run_reference.dataobj, np.float32))
    around = as_image(
        ndimage.binary_dilation(mask, iterations=2).astype(np.float32), run_reference.affine
    )
    fixed, around = (registration.downsample(image, 3.0) for image in (run_reference, around))
    chain, _ = registration.register(
        fixed,
        registration.downsample(moving, 3.0),
        "Rigid",
        seed=seed,
        fixed_mask=np.asarray(around.dataobj) > 0.5,
        initial=np.eye(4),
        aff_iterations=(40, 20),
        aff_shrink_factors=(2, 1) if min(fixed.shape) >= 12 else (1, 1),
        aff_smoothing_sigmas=(1, 0),
        aff_random_sampling_rate=0.25,
    )
    return registration.linear_part(chain)


def _as_recorded(
    field: nib.Nifti1Image, reference: nib.Nifti1Image, along: np.ndarray
) -> np.ndarray:
    """An undistorted image as it would be recorded if 1 Hz moved signal by a vector in mm."""
    hertz = np.asarray(field.dataobj, np.float32)
    points = grid_points(field.shape, field.affine)
    source = points
    for _ in range(8):
        # where the signal that is recorded here came from
        source = points - values_at(hertz, field.affine, source)[:, None] * along
    # slope of the displacement along its own direction
    back = np.linalg.inv(field.affine[:3, :3]) @ along
    slopes = [
        np.gradient(hertz, axis=n) if hertz.shape[n] > 1 else np.zeros_like(hertz) for n in range(3)
    ]
    slope = sum(b * part for b, part in zip(back, slopes, strict=True))
    values = np.asarray(reference.dataobj, np.float32)
    found = resample_volume(values, reference.affine, source, field.shape, order=1)
    bright = values_at(slope, field.affine, source).reshape(field.shape)
    return found / np.maximum(1 + bright, 0.3)


def values_at(values: np.ndarray, affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values (n,) at points (n, 3) in mm, linear, those of the edge beyond the grid."""
    to_index = np.linalg.inv(affine)
    index = (points @ to_index[:3, :3].T + to_index[:3, 3]).T
    return map_coordinates(values, index, order=1, mode="nearest", output=np.float32)
