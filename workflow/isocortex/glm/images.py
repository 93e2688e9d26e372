"""Images of a subject's runs: grids, masks and time series as matrices."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from isocortex.errors import InputError

_CHUNK_BYTES = 8 << 20
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
)


def open_image(path: str | Path, *, n_dims: int) -> nib.spatialimages.SpatialImage:
    """Open a NIfTI image of 3 or 4 dimensions; its data stay on disk.

    Raises
    ------
    InputError
        Where the file is missing, damaged, or of other dimensions.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is missing: correct the path or make the file")
    try:
        # Kept open, so that volumes of a compressed file are read in one pass.
        image = nib.load(path, keep_file_open=True)
        shape = image.shape
    except _DAMAGE as error:
        raise InputError(f"{path} is no readable NIfTI ({_line(error)}): restore it") from None
    if len(shape) == 4 and n_dims == 3 and shape[3] == 1:
        return nib.funcs.squeeze_image(image)
    if len(shape) != n_dims:
        raise InputError(f"{path} has {len(shape)} dimensions, not {n_dims}: pass another image")
    return image


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_grid(
    image: nib.spatialimages.SpatialImage,
    path: str | Path,
    reference: nib.spatialimages.SpatialImage,
    reference_path: str | Path,
) -> None:
    """Raise where two images do not share shape and affine (to 0.001 mm)."""
    if image.shape[:3] != reference.shape[:3]:
        raise InputError(
            f"{path} has the grid {image.shape[:3]}, {reference_path} {reference.shape[:3]}: "
            f"resample them to one space"
        )
    if not np.allclose(image.affine, reference.affine, rtol=0, atol=1e-3):
        raise InputError(
            f"{path} and {reference_path} have different affines: resample them to one space"
        )


def intersect_masks(
    masks: Sequence[str | Path], images: Sequence[str | Path]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels that all runs' masks share, and their affine.

    Parameters
    ----------
    masks
        Brain masks, one a run.
    images
        Time series, one a run, on the same grid.

    Returns
    -------
    mask : numpy.ndarray of bool, shape (x, y, z)
    affine : numpy.ndarray, shape (4, 4)

    Raises
    ------
    InputError
        Where grids differ, or the masks share nothing.
    """
    reference = open_image(images[0], n_dims=4)
    shared = np.ones(reference.shape[:3], dtype=bool)
    for mask_path, image_path in zip(masks, images, strict=True):
        image = open_image(image_path, n_dims=4)
        check_grid(image, image_path, reference, images[0])
        mask = open_image(mask_path, n_dims=3)
        check_grid(mask, mask_path, image, image_path)
        values = read_volumes(mask, mask_path)
        if not (values > 0).any():
            raise InputError(f"{mask_path} is empty: make the brain mask again")
        shared &= values > 0
    if not shared.any():
        raise InputError(
            f"the masks of {len(masks)} runs, the first {masks[0]}, share no voxel: check that the "
            f"runs are aligned"
        )
    return shared, np.asarray(reference.affine, dtype=float)


def read_volumes(image: nib.spatialimages.SpatialImage, path: str | Path) -> np.ndarray:
    """Return the values of an image, with damage to the file told in one line."""
    try:
        return np.asarray(image.dataobj)
    except _DAMAGE as error:
        raise InputError(f"{path} is truncated or damaged ({_line(error)}): restore it") from None


def read_volume_groups(path: str | Path, mask: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the volumes of a time series inside a mask, a few at a time.

    Parameters
    ----------
    path
        4D image.
    mask : numpy.ndarray of bool, shape (x, y, z)
        Voxels to read.

    Yields
    ------
    first : int
        Number of the first of these volumes.
    values : numpy.ndarray of float32, shape (volumes, n_voxels)
        Voxels in the order of ``numpy.nonzero(mask)``.

    Raises
    ------
    InputError
        Where the file is missing, truncated or damaged.
    """
    image = open_image(path, n_dims=4)
    n_volumes = image.shape[3]
    inside = np.ravel_multi_index(np.nonzero(mask), mask.shape, order="F")
    step = max(1, _CHUNK_BYTES // (8 * mask.size))
    for first in range(0, n_volumes, step):
        try:
            volumes = np.asarray(image.dataobj[..., first : first + step])
        except _DAMAGE as error:
            raise InputError(
                f"{path} is truncated or damaged ({_line(error)}): restore it"
            ) from None
        flat = volumes.reshape((mask.size, -1), order="F")
        yield first, np.stack([column[inside] for column in flat.T]).astype(np.float32, copy=False)


def read_series(path: str | Path, mask: np.ndarray) -> np.ndarray:
    """Read a time series inside a mask.

    Parameters
    ----------
    path
        4D image.
    mask : numpy.ndarray of bool, shape (x, y, z)
        Voxels to read.

    Returns
    -------
    numpy.ndarray of float32, shape (n_volumes, n_voxels)
        Voxels in the order of ``numpy.nonzero(mask)``. Volumes are read a few at a time: outside
        the mask nothing is kept.
    """
    return np.concatenate([values for _, values in read_volume_groups(path, mask)])
