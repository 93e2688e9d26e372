"""The template surface, and which voxels each of its vertices samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array, csr_array

MESH = "fsaverage5"
DEPTHS = 10
"""Points between white and pial surface that a vertex samples, as in nilearn's ``vol_to_surf``."""

SERIES_DEPTHS = 6
"""Those at which a run is sampled for a series on the surface: a step of a fifth, as fMRIPrep's."""

HEMISPHERES = {"left": "L", "right": "R"}


@dataclass(frozen=True, eq=False)
class Surface:
    """Both hemispheres of a template surface, the left one first, no edge between them.

    Attributes
    ----------
    white, pial
        Coordinates of the vertices, mm, shape (n_vertices, 3).
    faces
        Shape (n_faces, 3).
    hemisphere
        ``left`` or ``right`` of each vertex.
    index
        Number of each vertex in its hemisphere, int32.
    """

    white: np.ndarray
    pial: np.ndarray
    faces: np.ndarray
    hemisphere: np.ndarray
    index: np.ndarray

    @property
    def cortex(self) -> np.ndarray:
        """Which vertices have cortex: bool; in parts of the medial wall white and pial are one."""
        return np.linalg.norm(self.pial - self.white, axis=1) > 0.1

    @property
    def midthickness(self) -> np.ndarray:
        """Coordinates half way between white and pial, on which distances are measured."""
        return 0.5 * (self.white + self.pial)


def template_surface() -> Surface:
    """Return fsaverage5, 10,242 vertices a hemisphere, from nilearn's own files."""
    from nilearn.datasets import load_fsaverage

    mesh = load_fsaverage(MESH)
    parts = {
        side: [mesh[name].parts[side] for name in ("white_matter", "pial")]
        for side in ("left", "right")
    }
    counts = [len(white.coordinates) for white, _ in parts.values()]
    return Surface(
        white=np.concatenate([white.coordinates for white, _ in parts.values()]).astype(float),
        pial=np.concatenate([pial.coordinates for _, pial in parts.values()]).astype(float),
        faces=np.concatenate(
            [np.asarray(pial.faces) + k * counts[0] for k, (_, pial) in enumerate(parts.values())]
        ),
        hemisphere=np.repeat(np.array(list(parts), dtype=object), counts),
        index=np.concatenate([np.arange(n, dtype=np.int32) for n in counts]),
    )


def sampling_weights(
    surface: Surface, voxels: np.ndarray, shape: Sequence[int], affine: np.ndarray
) -> csr_array:
    """Return how much of each voxel a vertex samples.

    Parameters
    ----------
    surface
        In the world space of the volume.
    voxels
        Index triples of the voxels that there are, shape (n_voxels, 3).
    shape, affine
        Of the volume.

    Returns
    -------
    scipy.sparse.csr_array
        Shape (n_vertices, n_voxels). A row adds up to 1 where the volume has all that the vertex
        samples: the mean over `DEPTHS` points on the line from white to pial, each interpolated
        linearly, as nilearn's ``vol_to_surf`` with an inner mesh does.
    """
    shape = np.asarray(shape, dtype=np.int64)
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    row = np.full(int(shape.prod()), -1, dtype=np.int64)
    row[np.asarray(voxels, dtype=np.int64) @ strides] = np.arange(len(voxels))
    inverse = np.linalg.inv(np.asarray(affine, dtype=np.float64))
    vertices, columns, weights = [], [], []
    for depth in np.linspace(0.0, 1.0, DEPTHS):
        point = surface.white + depth * (surface.pial - surface.white)
        at = point @ inverse[:3, :3].T + inverse[:3, 3]
        low = np.floor(at).astype(np.int64)
        part = at - low
        for corner in np.ndindex(2, 2, 2):
            weight = np.where(np.array(corner) == 1, part, 1.0 - part).prod(axis=1)
            cell = low + corner
            inside = ((cell >= 0) & (cell < shape)).all(axis=1) & (weight > 0)
            vertex = np.flatnonzero(inside)
            column = row[cell[vertex] @ strides]
            vertices.append(vertex[column >= 0])
            columns.append(column[column >= 0])
            weights.append(weight[vertex[column >= 0]] / DEPTHS)
    return coo_array(
        (np.concatenate(weights), (np.concatenate(vertices), np.concatenate(columns))),
        shape=(len(surface.index), len(voxels)),
    ).tocsr()


def write_texture(path: str | Path, values: np.ndarray, *, side: str, name: str) -> Path:
    """Write one value a vertex of a hemisphere as GIFTI: labels for int32, else a function.

    Parameters
    ----------
    path
        ``.label.gii`` or ``.func.gii``.
    values
        Shape (vertices of the hemisphere,).
    side
        ``left`` or ``right``.
    name
        What the values are.
    """
    import nibabel as nib

    labels = values.dtype == np.int32
    array = nib.gifti.GiftiDataArray(
        values,
        intent="NIFTI_INTENT_LABEL" if labels else "NIFTI_INTENT_NONE",
        datatype="NIFTI_TYPE_INT32" if labels else "NIFTI_TYPE_FLOAT32",
        meta=nib.gifti.GiftiMetaData(Name=name),
    )
    image = nib.gifti.GiftiImage(
        darrays=[array],
        meta=nib.gifti.GiftiMetaData(AnatomicalStructurePrimary=f"Cortex{side.capitalize()}"),
    )
    nib.save(image, path)
    return Path(path)


def series_image(values: np.ndarray, *, side: str, repetition_time: float) -> Any:
    """A GIFTI time series of one hemisphere, an array a volume.

    Parameters
    ----------
    values
        Shape (time, vertices of the hemisphere).
    side
        ``left`` or ``right``.
    repetition_time
        Seconds; the file has it in ms, as FreeSurfer's and fMRIPrep's have.
    """
    import nibabel as nib

    meta = {"TimeStep": f"{1000 * repetition_time:f}"}
    return nib.gifti.GiftiImage(
        darrays=[
            nib.gifti.GiftiDataArray(
                np.asarray(volume, np.float32),
                intent="NIFTI_INTENT_TIME_SERIES",
                datatype="NIFTI_TYPE_FLOAT32",
                meta=nib.gifti.GiftiMetaData(meta),
            )
            for volume in values
        ],
        meta=nib.gifti.GiftiMetaData(
            {**meta, "AnatomicalStructurePrimary": f"Cortex{side.capitalize()}"}
        ),
    )
