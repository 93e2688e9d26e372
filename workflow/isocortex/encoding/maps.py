"""Voxel values to NIfTI images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np


def write_map(
    path: Path,
    values: np.ndarray,
    voxels: np.ndarray,
    *,
    shape: Sequence[int],
    affine: Sequence[Sequence[float]],
    dtype: type = np.float32,
) -> Path:
    """Write one value a voxel as a NIfTI image.

    Parameters
    ----------
    path
        `.nii.gz`.
    values
        Shape (voxels,). NaN becomes 0, as everything outside the voxels.
    voxels
        Indices i, j, k, shape (voxels, 3).
    shape, affine, dtype
        Of the image.
    """
    volume = np.zeros(tuple(shape), dtype)
    volume[tuple(np.asarray(voxels).T)] = np.nan_to_num(np.asarray(values))
    image = nibabel.Nifti1Image(volume, np.asarray(affine, float))
    image.header.set_xyzt_units("mm")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def legend(names: Sequence[str]) -> Mapping[str, str]:
    """What the numbers of an index map stand for: 0 for none, 1 for the first name."""
    return {"0": "n/a"} | {str(index + 1): name for index, name in enumerate(names)}
