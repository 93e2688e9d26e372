"""Voxel values to images: NIfTI in the volume, GIFTI on fsaverage5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import xarray as xr
from scipy.sparse import csr_array

from isocortex import provenance
from isocortex.derivatives import on_mni152
from isocortex.errors import InputError
from isocortex.surface import (
    HEMISPHERES,
    MESH,
    sampling_weights,
    template_surface,
    write_texture,
)

MIN_SHARE = 0.25  # of a vertex' way through cortex that must hold a value


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


def write_subject_maps(folder: Path, result: xr.Dataset) -> None:
    """Write the maps of one subject and model, in the volume and on fsaverage5.

    Parameters
    ----------
    folder
        Made where it is not there.
    result
        An encoding dataset. Written are, at each voxel's best layer, r, r over its noise ceiling,
        r2 and -log10 of the family-wise p-value where there are these, and which layer is best (1
        for the first; a JSON file names them). Surface maps are written where the voxels are in a
        template space: means over the way from white matter to pia, labels by majority.
    """
    attrs = result.attrs
    best = result["best_layer"].values
    at_best = (np.maximum(best, 0), np.arange(len(best)))
    stem = f"sub-{attrs['subject']}_task-{attrs['task']}_model-{attrs['model']}"
    maps = {
        "stat-r_statmap": result["score"].values[at_best],
        "stat-rnormalised_statmap": result["score_normalised"].values[at_best],
    }
    if "r2" in result:
        maps["stat-r2_statmap"] = result["r2"].values[at_best]
    if "p_fwe" in result:
        maps["stat-logp_statmap"] = -np.log10(result["p_fwe"].values[at_best])
    maps["desc-bestlayer_dseg"] = (best + 1).astype(np.int16)
    write_maps(folder, stem, maps, result, names=result["layer"].values)


def write_maps(
    folder: Path,
    stem: str,
    maps: Mapping[str, np.ndarray],
    result: xr.Dataset,
    *,
    names: Sequence[str],
) -> None:
    """Write maps of one subject in the volume and, of voxels in a template space, on fsaverage5.

    Parameters
    ----------
    folder
        Made where it is not there.
    stem
        Of the files' names, up to the space.
    maps
        End of the files' names to values, shape (voxels,); those that end in dseg are labels.
    result
        Has i, j, k of the voxels and the attributes affine, shape and space.
    names
        What labels stand for, from 1 on: the JSON files beside label maps say so.
    """
    folder, attrs = Path(folder), result.attrs
    voxels = np.stack([result[axis].values for axis in "ijk"], axis=1)
    geometry = {"shape": attrs["shape"], "affine": attrs["affine"]}
    for suffix, values in maps.items():
        path = folder / f"{stem}_space-{attrs['space']}_{suffix}.nii.gz"
        dtype = np.int16 if suffix.endswith("dseg") else np.float32
        write_map(path, values, voxels, dtype=dtype, **geometry)
    spaces = [attrs["space"]]
    if on_mni152(str(attrs["space"])):
        spaces.append(MESH)
        _write_surface_maps(folder, stem, maps, voxels, **geometry)
    for space in spaces:
        for suffix in maps:
            if suffix.endswith("dseg"):
                path = folder / f"{stem}_space-{space}_{suffix}.json"
                provenance.write_json(path, {"Levels": legend(names)})


def sample_on_surface(weights: csr_array, values: np.ndarray, *, labels: bool) -> np.ndarray:
    """Sample a map onto vertices.

    Parameters
    ----------
    weights
        Of `isocortex.surface.sampling_weights`, shape (vertices, voxels).
    values
        Shape (voxels,); NaN, and 0 of labels, is nothing.
    labels
        Take the label with most weight instead of the mean.

    Returns
    -------
    numpy.ndarray
        Shape (vertices,). float32 with NaN, or int32 with 0, where less than a quarter of the way
        holds a value.
    """
    if labels:
        names = np.unique(values[values > 0])
        shares = np.stack([weights @ (values == name).astype(float) for name in names] or [[0.0]])
        enough = shares.sum(0) > MIN_SHARE
        if not len(names):
            return np.zeros(weights.shape[0], np.int32)
        return np.where(enough, names[shares.argmax(0)], 0).astype(np.int32)
    finite = np.isfinite(values)
    share = weights @ finite.astype(float)
    total = weights @ np.where(finite, values, 0.0).astype(float)
    enough = share > MIN_SHARE
    return np.where(enough, total / np.where(enough, share, 1.0), np.nan).astype(np.float32)


def _write_surface_maps(folder, stem, maps, voxels, *, shape, affine) -> None:
    surface = template_surface()
    weights = sampling_weights(surface, voxels, shape, np.asarray(affine, float))
    for suffix, values in maps.items():
        labels = suffix.endswith("dseg")
        sampled = sample_on_surface(weights, np.asarray(values), labels=labels)
        for side, letter in HEMISPHERES.items():
            ending = "label.gii" if labels else "func.gii"
            name = f"{stem}_hemi-{letter}_space-{MESH}_{suffix.rsplit('_', 1)[0]}.{ending}"
            here = surface.hemisphere == side
            write_texture(folder / name, sampled[here], side=side, name=suffix)


def regions_of_voxels(
    path: str | Path,
    coords: Mapping[str, np.ndarray],
    attrs: Mapping[str, Any],
    *,
    where: str,
) -> np.ndarray:
    """Region label of each voxel, shape (voxels,), from a label image on the voxels' grid.

    Raises
    ------
    InputError
        Where the image lies on another grid.
    """
    image = nibabel.load(path)
    if tuple(image.shape[:3]) != tuple(attrs["shape"]) or not np.allclose(
        image.affine, attrs["affine"], atol=1e-3
    ):
        raise InputError(
            f"regions {path} are not on the grid of the encoding of {where}: resample them to it"
        )
    volume = np.rint(np.asarray(image.dataobj)).astype(int).reshape(image.shape[:3])
    return volume[tuple(np.asarray(coords[axis]) for axis in "ijk")]
