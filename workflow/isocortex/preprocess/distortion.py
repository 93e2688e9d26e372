"""Susceptibility distortion of a run: where each point of the head was recorded, and how bright.

The convention is that of sdcflows and FSL: a field of +1 Hz moves signal by +1 x total readout
time voxels along the array axis of ``PhaseEncodingDirection``, and by as much the other way where
the direction ends in "-". Directions refer to the array's axes as the file has them, whatever way
its affine turns or flips them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import map_coordinates

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
        return _at(self.voxels, self.affine, points)

    def jacobian(self, points: np.ndarray) -> np.ndarray:
        """Factor (n,) by which resampled values are multiplied: 1 + d shift / d voxel.

        Signal that was drawn out over two voxels is half as bright in each (Andersson et al.
        2003); where the field folds the image, nothing is left: the factor is not below 0.
        """
        if not self.modulate or self.field.shape[self.axis] < 2:
            return np.ones(len(points), np.float32)
        slope = np.gradient(self.voxels, axis=self.axis)
        return _at(np.maximum(1 + slope, 0), self.affine, points)

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


def distort(
    volume: np.ndarray, voxels: np.ndarray, *, axis: int, fold: int = 4, order: int = 3
) -> np.ndarray:
    """What a scanner makes of a volume: signal moved along one axis, none gained or lost.

    Each voxel is split into parts along the axis; each part's signal is put where its own shift
    takes it and shared linearly between the two voxels there.

    Parameters
    ----------
    volume
        (x, y, z), undistorted.
    voxels
        (x, y, z), displacement in voxels.
    axis
        Of the phase encoding.
    fold
        Parts a voxel.
    order
        Of the spline between voxels.

    Returns
    -------
    numpy.ndarray
        float32 (x, y, z); signal that leaves the grid is lost.
    """
    size = volume.shape[axis]
    lines = np.moveaxis(np.asarray(volume, np.float32), axis, -1)
    shifts = np.moveaxis(np.asarray(voxels, np.float32), axis, -1)
    other = lines.shape[:-1]
    lines, shifts = lines.reshape(-1, size), shifts.reshape(-1, size)
    row = np.arange(len(lines))[:, None]
    out = np.zeros((len(lines), size + 2), np.float32)
    for part in range(fold):
        place = np.arange(size) + (part + 0.5) / fold - 0.5
        where = np.broadcast_arrays(row.astype(float), place)
        value = map_coordinates(lines, where, order=order, mode="nearest") / fold
        target = place + map_coordinates(shifts, where, order=1, mode="nearest")
        target = np.clip(target, -1, size)
        low = np.floor(target).astype(int)
        low = np.minimum(low, size - 1)
        share = (target - low).astype(np.float32)
        flat = np.broadcast_to(row, low.shape) * (size + 2) + low + 1
        out += np.bincount(
            np.r_[flat.ravel(), flat.ravel() + 1],
            np.r_[(value * (1 - share)).ravel(), (value * share).ravel()],
            out.size,
        ).reshape(out.shape)
    return np.moveaxis(out[:, 1:-1].reshape(*other, size), -1, axis)


def _at(values: np.ndarray, affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Linear interpolation that holds the edge's value beyond the grid."""
    to_index = np.linalg.inv(affine)
    index = (points @ to_index[:3, :3].T + to_index[:3, 3]).T
    return map_coordinates(values, index, order=1, mode="nearest", output=np.float32)
