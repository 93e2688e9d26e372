"""Volume searchlights: which voxels lie within a radius of each centre."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def sphere_offsets(radius: float, affine: np.ndarray) -> np.ndarray:
    """Return the voxel offsets whose centres lie within a radius.

    Parameters
    ----------
    radius
        mm; voxels at exactly the radius belong to the sphere.
    affine
        Of the volume, shape (4, 4).

    Returns
    -------
    numpy.ndarray
        int64, shape (n_offsets, 3), the centre among them.
    """
    step = np.asarray(affine, dtype=np.float64)[:3, :3]
    inverse = np.linalg.inv(step)
    reach = np.floor(radius * np.linalg.norm(inverse, axis=1) + 1e-6).astype(int)
    axes = [np.arange(-r, r + 1) for r in reach]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    distance = np.linalg.norm(grid @ step.T, axis=1)
    return grid[distance <= radius * (1 + 1e-6)]


@dataclass(frozen=True, eq=False)
class Spheres:
    """The voxels of every sphere, found when asked for: a whole list would not fit in memory.

    Attributes
    ----------
    lookup
        Row of each cell of a grid with an empty border, ``missing`` where no usable voxel is.
    steps
        What leads from a cell to its neighbours, int64, shape (n_offsets,).
    centres
        Cells of the centres, int64.
    missing
        Number of usable voxels: the row that stands for a voxel that is not there.
    """

    lookup: np.ndarray
    steps: np.ndarray
    centres: np.ndarray
    missing: int

    @property
    def full(self) -> int:
        """Voxels of a whole sphere."""
        return len(self.steps)

    @property
    def n_centres(self) -> int:
        """How many centres there are."""
        return len(self.centres)

    def members(self, block: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the voxels of some spheres.

        Parameters
        ----------
        block
            Which centres.

        Returns
        -------
        members : numpy.ndarray
            int32, shape (n_centres, n_offsets): rows of the usable voxels, ``missing`` where there
            is none.
        sizes : numpy.ndarray
            int32, usable voxels in each sphere.
        """
        members = self.lookup.take(self.centres[block, None] + self.steps)
        return members, np.count_nonzero(members < self.missing, axis=1).astype(np.int32)


def spheres(
    voxels: np.ndarray,
    shape: Sequence[int],
    *,
    radius: float,
    affine: np.ndarray,
    centres: np.ndarray,
) -> Spheres:
    """Return the spheres around centres, which hold usable voxels only.

    Parameters
    ----------
    voxels
        Index triples of the usable voxels, shape (n_voxels, 3).
    shape
        Of the volume.
    radius
        mm.
    affine
        Of the volume, shape (4, 4).
    centres
        Index triples, shape (n_centres, 3).
    """
    offsets = sphere_offsets(radius, affine)
    # A border as wide as the sphere reaches: no neighbour of a centre is off the grid.
    border = np.abs(offsets).max(axis=0, initial=0)
    padded = np.asarray(shape, dtype=np.int64) + 2 * border
    strides = np.array([padded[1] * padded[2], padded[2], 1])
    lookup = np.full(int(padded.prod()), len(voxels), dtype=np.int32)
    lookup[(np.asarray(voxels, dtype=np.int64) + border) @ strides] = np.arange(len(voxels))
    return Spheres(
        lookup=lookup,
        steps=offsets @ strides,
        centres=(np.asarray(centres, dtype=np.int64) + border) @ strides,
        missing=len(voxels),
    )
