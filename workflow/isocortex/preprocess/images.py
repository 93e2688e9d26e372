"""Reading raw images with every check that bad recordings need, and writing derivatives."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from isocortex import bids
from isocortex.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """When the volumes and slices of a run were recorded.

    Attributes
    ----------
    repetition_time
        Seconds between volumes.
    slice_times
        Seconds after the volume's start, one a slice in the order of the array's axis; None
        where the sidecar has none.
    slice_axis
        Array axis of the slices.
    """

    repetition_time: float
    slice_times: tuple[float, ...] | None
    slice_axis: int

    @property
    def reference_time(self) -> float:
        """Seconds after the volume's start that corrected slices refer to: the middle slice."""
        if self.slice_times is None:
            return 0.0
        first, last = min(self.slice_times), max(self.slice_times)
        return first + (last - first) / 2


def open_image(path: str | Path) -> nib.Nifti1Image:
    """Open a NIfTI image, or say what is wrong with it.

    Raises
    ------
    InputError
        There is no such file, or it is not NIfTI.
    """
    try:
        return nib.load(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: restore it or exclude its subject") from None
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(
            f"{path} is not a readable NIfTI image ({_first_line(error)}): restore the file"
        ) from None


def read_values(image: nib.Nifti1Image, path: str | Path) -> np.ndarray:
    """All voxel values, scaled, as float32.

    Raises
    ------
    InputError
        The file ends before its header's shape is filled, or is damaged.
    """
    try:
        return np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(
            f"truncated or damaged image data in {path} ({_first_line(error)}): restore the file"
        ) from None


def read_anatomy(path: str | Path) -> nib.Nifti1Image:
    """Read a T1w volume as float32 with a well-formed affine.

    A fourth dimension of length one is dropped; NaN voxels become zero and are counted in the
    log.

    Raises
    ------
    InputError
        Not readable, not three-dimensional, thinner than 10 voxels, or constant.
    """
    image = open_image(path)
    values = read_values(image, path)
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise InputError(f"T1w {path} has {values.ndim} dimensions: give one 3D volume")
    if min(values.shape) < 10:
        raise InputError(f"T1w {path} has the shape {values.shape}: give a whole-head volume")
    bad = ~np.isfinite(values)
    if bad.any():
        logger.info("%d NaN or infinite voxels set to 0 in %s", bad.sum(), path)
        values = np.where(bad, 0, values)
    if values.max() == values.min():
        raise InputError(f"T1w {path} is constant ({values.min():g}): restore the file")
    return as_image(values, clean_affine(image, path))


def read_series(path: str | Path) -> nib.Nifti1Image:
    """Read a BOLD run as float32.

    Single NaN voxels become 0 and are counted in the log (they are outside the brain in what
    scanners write); whole volumes of NaN are an error.

    Raises
    ------
    InputError
        Not readable, not four-dimensional, fewer than 5 volumes, volumes that are NaN or
        constant throughout, or no change from volume to volume.
    """
    image = open_image(path)
    if len(image.shape) != 4 or image.shape[3] == 1:
        shape = "x".join(map(str, image.shape))
        raise InputError(f"BOLD {path} is one volume ({shape}): give a 4D run")
    if image.shape[3] < 5:
        raise InputError(f"BOLD {path} has {image.shape[3]} volumes: give at least 5")
    values = read_values(image, path)
    bad = ~np.isfinite(values)
    if bad.any():
        whole = np.flatnonzero(bad.all(axis=(0, 1, 2)))
        if len(whole):
            raise InputError(
                f"volumes {_some(whole)} of {path} are NaN throughout: "
                "cut them off or exclude the run"
            )
        logger.info("%d NaN or infinite values set to 0 in %s", bad.sum(), path)
        values[bad] = 0
    if not any((values[..., t] != values[..., 0]).any() for t in range(1, values.shape[3])):
        raise InputError(f"no voxel of {path} changes over time: restore the file")
    empty = np.flatnonzero(values.max(axis=(0, 1, 2)) == values.min(axis=(0, 1, 2)))
    if len(empty):
        raise InputError(
            f"volumes {_some(empty)} of {path} are constant throughout: "
            "cut them off or exclude the run"
        )
    return as_image(values, clean_affine(image, path))


def clean_affine(image: nib.Nifti1Image, path: str | Path) -> np.ndarray:
    """An image's affine, checked to be invertible and free of shear.

    Raises
    ------
    InputError
        The affine is singular, has a zero or NaN, or is sheared by more than a degree.
    """
    affine = np.array(image.affine, float)
    with np.errstate(invalid="ignore"):
        size = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.all(np.isfinite(affine)) or (size < 1e-3).any():
        raise InputError(f"no usable affine in {path}: set its sform or qform")
    direction = affine[:3, :3] / size
    left, _, right = np.linalg.svd(direction)
    rotation = left @ right
    if np.abs(direction - rotation).max() > np.sin(np.radians(1.0)):
        raise InputError(f"sheared affine in {path}: give an image on an orthogonal grid")
    # headers hold float32: the small shear of rounding would stop ITK
    affine[:3, :3] = rotation * size
    return affine


def read_timing(image: nib.Nifti1Image, metadata: Mapping[str, Any], path: str | Path) -> Timing:
    """Repetition time and slice times of a run, from its sidecar and header.

    Parameters
    ----------
    image
        The raw run, as opened.
    metadata
        The merged sidecars.
    path
        The run, for messages.

    Raises
    ------
    InputError
        RepetitionTime is missing, is not positive, or contradicts the header's; SliceTiming has
        another length than there are slices, or values outside of
        [0, RepetitionTime).
    """
    step = float(image.header["pixdim"][4])
    found = bids.header_seconds(step, int(image.header["xyzt_units"]))
    header = bids.Header(image.shape, image.header.get_zooms(), (), found)
    value = bids.repetition_time(path, metadata, header)
    times, axis = bids.slice_times(path, metadata, image.shape, value)
    return Timing(value, times, axis)


def as_image(
    values: np.ndarray, affine: np.ndarray, *, repetition_time: float | None = None
) -> nib.Nifti1Image:
    """A NIfTI image with both affines set, in mm and seconds."""
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    if repetition_time is not None:
        image.header.set_zooms([*image.header.get_zooms()[:3], repetition_time])
    return image


def save_image(
    path: str | Path,
    values: np.ndarray,
    affine: np.ndarray,
    *,
    repetition_time: float | None = None,
) -> str:
    """Write a NIfTI file; the same values give the same bytes. Returns the path as text."""
    nib.save(as_image(values, affine, repetition_time=repetition_time), path)
    return str(path)


class SeriesWriter:
    """Writes a 4D float32 NIfTI a volume at a time: the run never lies in memory.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz``.
    shape
        (x, y, z, time).
    affine
        4 x 4.
    repetition_time
        Seconds.
    """

    def __init__(
        self,
        path: str | Path,
        shape: Sequence[int],
        affine: np.ndarray,
        *,
        repetition_time: float,
    ) -> None:
        self.path = Path(path)
        self._shape = tuple(int(n) for n in shape[:3])
        empty = np.broadcast_to(np.float32(0), shape)
        header = as_image(empty, affine, repetition_time=repetition_time).header
        header["vox_offset"] = 352
        header.set_slope_inter(1, 0)
        self._file = nib.openers.Opener(self.path, "wb")
        header.write_to(self._file)

    def put(self, volume: np.ndarray) -> None:
        """Append one volume (x, y, z)."""
        if volume.shape != self._shape:
            raise ValueError(f"a volume of shape {volume.shape} in a run of {self._shape}")
        self._file.write(np.asarray(volume, "<f4").tobytes("F"))

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def _some(numbers: np.ndarray) -> str:
    shown = ", ".join(str(n) for n in numbers[:5])
    return shown if len(numbers) <= 5 else f"{shown} and {len(numbers) - 5} more"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
