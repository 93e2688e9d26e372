"""Spatial transforms: rigid parameters, affine matrices, ITK files, coordinate maps.

Every transform here maps points of the *reference* space to points of the *moving* space, in
scanner millimetres (RAS+): the direction in which an image is resampled, and the one that a file
named ``from-<moving>_to-<reference>_mode-image_xfm`` holds. ITK stores its files in LPS+;
reading and writing convert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
from scipy.ndimage import map_coordinates

from isocortex.errors import InputError

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_HEADER = {
    "HDFVersion": b"HDF5 library version: 1.12.1",
    "ITKVersion": b"5.4.5",
    "OSName": b"Linux",
    "OSVersion": b"0",
}


@dataclass(frozen=True)
class AffineTransform:
    """A 4 x 4 matrix on RAS millimetres, reference to moving."""

    matrix: np.ndarray

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Map points of shape (n, 3), mm."""
        return points @ self.matrix[:3, :3].T + self.matrix[:3, 3]


@dataclass(frozen=True)
class DisplacementField:
    """Displacements (x, y, z, 3) in RAS millimetres on a grid with a 4 x 4 affine."""

    displacement: np.ndarray
    affine: np.ndarray

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Map points of shape (n, 3), mm; linear between grid points, zero outside, as ITK."""
        inverse = np.linalg.inv(self.affine)
        index = (points @ inverse[:3, :3].T + inverse[:3, 3]).T
        upper = np.array(self.displacement.shape[:3])[:, None] - 1
        inside = np.all((index >= 0) & (index <= upper), axis=0)
        moved = np.array(points, dtype=float)
        for axis in range(3):
            moved[inside, axis] += map_coordinates(
                self.displacement[..., axis], index[:, inside], order=1, mode="nearest"
            )
        return moved


Transform = AffineTransform | DisplacementField


def apply_chain(transforms: Sequence[Transform], points: np.ndarray) -> np.ndarray:
    """Map points through transforms, the first in the list first.

    Parameters
    ----------
    transforms
        Any number of transforms, in the order of application.
    points
        RAS millimetres, shape (n, 3).

    Returns
    -------
    numpy.ndarray
        RAS millimetres, shape (n, 3).
    """
    moved = np.array(points, dtype=float)
    for transform in transforms:
        moved = transform.apply(moved)
    return moved


def grid_points(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Millimetre coordinates (n_voxels, 3) of a grid's voxel centres, last index fastest."""
    shape = tuple(int(n) for n in shape[:3])
    points = np.empty((*shape, 3))
    i, j, k = (np.arange(n, dtype=float) for n in shape)
    for axis in range(3):
        a, b, c, start = affine[axis]
        points[..., axis] = (a * i)[:, None, None] + (b * j)[:, None] + (c * k + start)
    return points.reshape(-1, 3)


def rigid_matrix(parameters: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The 4 x 4 matrix of a rigid motion about a centre.

    Parameters
    ----------
    parameters
        trans_x, trans_y, trans_z in mm, rot_x, rot_y, rot_z in radians; the rotation is
        R = Rx Ry Rz.
    centre
        Fixed point of the rotation, RAS millimetres.

    Returns
    -------
    numpy.ndarray
        x -> R (x - centre) + centre + translation.
    """
    a, b, c = parameters[3:6]
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = rx @ ry @ rz
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre + np.asarray(parameters[:3])
    return matrix


def rigid_parameters(matrix: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The six parameters of `rigid_matrix` (mm, radians) from a 4 x 4 rigid matrix."""
    rotation = matrix[:3, :3]
    translation = matrix[:3, 3] - centre + rotation @ centre
    b = np.arcsin(np.clip(rotation[0, 2], -1, 1))
    a = np.arctan2(-rotation[1, 2], rotation[2, 2])
    c = np.arctan2(-rotation[0, 1], rotation[0, 0])
    return np.array([*translation, a, b, c])


def write_itk_affine(path: str | Path, matrix: np.ndarray) -> Path:
    """Write one affine as an ITK text file (LPS+), readable by ANTs.

    Parameters
    ----------
    path
        File to write, by convention ``..._mode-image_xfm.txt``.
    matrix
        4 x 4, RAS millimetres, reference to moving.
    """
    lps = _LPS @ matrix @ _LPS
    numbers = " ".join(f"{v:.12g}" for v in [*lps[:3, :3].ravel(), *lps[:3, 3]])
    text = (
        "#Insight Transform File V1.0\n#Transform 0\n"
        "Transform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 0 0 0\n"
    )
    Path(path).write_text(text)
    return Path(path)


def read_itk_affine(path: str | Path) -> AffineTransform:
    """Read an ITK text affine (LPS+) as a RAS reference-to-moving transform."""
    fields: dict[str, str] = {}
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value
    try:
        values = np.array(fields["Parameters"].split(), float)
        centre = np.array(fields["FixedParameters"].split(), float)
    except (KeyError, ValueError):
        raise InputError(f"no affine in {path}: give an ITK transform text file") from None
    return AffineTransform(_itk_matrix(values, centre))


def read_transforms(path: str | Path) -> list[Transform]:
    """Read an ITK transform file: a composite ``.h5`` or a text affine.

    Parameters
    ----------
    path
        ``..._mode-image_xfm.h5`` or ``.txt``.

    Returns
    -------
    list
        Transforms in the order in which they are applied to a point of the reference.

    Raises
    ------
    InputError
        The file cannot be read, or holds a kind of transform other than an affine or a
        displacement field.
    """
    path = Path(path)
    if path.suffix == ".txt":
        return [read_itk_affine(path)]
    transforms: list[Transform] = []
    try:
        with h5py.File(path, "r") as file:
            group = file["TransformGroup"]
            for key in sorted(group, key=int):
                kind = group[key]["TransformType"][0].decode()
                if kind.startswith("CompositeTransform"):
                    continue
                parameters = group[key]["TransformParameters"][()]
                fixed = group[key]["TransformFixedParameters"][()]
                transforms.append(_from_itk(kind, parameters, fixed, path))
    except (OSError, KeyError) as error:
        raise InputError(f"{path} is not an ITK composite transform: {error}") from None
    # ITK's queue is applied from its end
    return transforms[::-1]


def write_composite(path: str | Path, transforms: Sequence[Transform]) -> Path:
    """Write transforms as one ITK composite file, readable by ANTs.

    ITK's own writer stores the time and the kernel's version, so the same transform has other
    bytes each time; this one writes the same bytes for the same numbers.

    Parameters
    ----------
    path
        The ``.h5`` file to write.
    transforms
        In the order in which they are applied to a point of the reference.
    """
    with h5py.File(path, "w", track_order=False) as file:
        for key, value in _HEADER.items():
            file.create_dataset(key, data=np.array([value], dtype=object), dtype=_string())
        group = file.create_group("TransformGroup")
        _write_one(group.create_group("0"), "CompositeTransform_float_3_3", None, None)
        for number, transform in enumerate(reversed(transforms), start=1):
            target = group.create_group(str(number))
            if isinstance(transform, AffineTransform):
                lps = _LPS @ transform.matrix @ _LPS
                values = np.r_[lps[:3, :3].ravel(), lps[:3, 3]]
                _write_one(target, "AffineTransform_float_3_3", values, np.zeros(3))
            else:
                affine = _LPS @ transform.affine
                spacing = np.linalg.norm(affine[:3, :3], axis=0)
                direction = affine[:3, :3] / spacing
                shape = transform.displacement.shape[:3]
                fixed = np.r_[shape, affine[:3, 3], spacing, direction.ravel()]
                field = transform.displacement * np.array([-1, -1, 1], np.float32)
                values = np.ascontiguousarray(field.transpose(2, 1, 0, 3)).ravel()
                _write_one(target, "DisplacementFieldTransform_float_3_3", values, fixed)
    return Path(path)


def _string() -> np.dtype:
    return h5py.string_dtype("ascii")


def _write_one(
    group: h5py.Group, kind: str, values: np.ndarray | None, fixed: np.ndarray | None
) -> None:
    group.create_dataset("TransformType", data=np.array([kind], dtype=object), dtype=_string())
    if values is None or fixed is None:
        return
    chunks = (min(len(values), 1 << 20),)
    group.create_dataset(
        "TransformParameters",
        data=values.astype(np.float32),
        chunks=chunks,
        compression="gzip",
        compression_opts=1,
        shuffle=True,
    )
    group.create_dataset("TransformFixedParameters", data=np.asarray(fixed, float))


def _itk_matrix(values: np.ndarray, centre: np.ndarray) -> np.ndarray:
    linear = np.asarray(values[:9], float).reshape(3, 3)
    lps = np.eye(4)
    lps[:3, :3] = linear
    lps[:3, 3] = np.asarray(values[9:12], float) + centre - linear @ centre
    return _LPS @ lps @ _LPS


def _from_itk(kind: str, values: np.ndarray, fixed: np.ndarray, path: Path) -> Transform:
    if kind.startswith(("AffineTransform", "MatrixOffsetTransformBase")):
        return AffineTransform(_itk_matrix(values, fixed))
    if kind.startswith("DisplacementFieldTransform"):
        shape = tuple(int(v) for v in fixed[:3])
        affine = np.eye(4)
        affine[:3, :3] = fixed[9:18].reshape(3, 3) * fixed[6:9]
        affine[:3, 3] = fixed[3:6]
        field = np.asarray(values, np.float32).reshape(*shape[::-1], 3).transpose(2, 1, 0, 3)
        return DisplacementField(field * np.array([-1, -1, 1], np.float32), _LPS @ affine)
    if kind.startswith("TranslationTransform"):
        return AffineTransform(_itk_matrix(np.r_[np.eye(3).ravel(), values], np.zeros(3)))
    if kind.startswith("Euler3DTransform"):
        # ITK: R = Rz Rx Ry with angles x, y, z
        x, y, z = values[:3]
        parts = [
            rigid_matrix(np.array([0, 0, 0, *v]), np.zeros(3))[:3, :3]
            for v in ((0, 0, z), (x, 0, 0), (0, y, 0))
        ]
        linear = parts[0] @ parts[1] @ parts[2]
        return AffineTransform(_itk_matrix(np.r_[linear.ravel(), values[3:6]], fixed[:3]))
    raise InputError(f"{kind} in {path} is not supported: give affines and displacement fields")


def centre_of_grid(image: nib.Nifti1Image) -> np.ndarray:
    """RAS millimetres of the middle of an image's grid."""
    middle = (np.array(image.shape[:3]) - 1) / 2
    return image.affine[:3, :3] @ middle + image.affine[:3, 3]


def read_motion(path: str | Path) -> np.ndarray:
    """Matrices (time, 4, 4) from the table that `EstimateMotion` writes."""
    rows = pd.read_csv(path, sep="\t").to_numpy(float)
    matrices = np.tile(np.eye(4), (len(rows), 1, 1))
    matrices[:, :3] = rows.reshape(-1, 3, 4)
    return matrices
