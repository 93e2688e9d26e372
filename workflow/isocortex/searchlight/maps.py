"""Searchlight results as images: NIfTI for volumes, GIFTI for the surface."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from isocortex.provenance import write_json
from isocortex.surface import HEMISPHERES, write_texture


def plain_name(predictor: str) -> str:
    """Return a predictor's name as a BIDS label: letters and digits only."""
    return re.sub(r"[^A-Za-z0-9]", "", predictor)


def map_labels(predictors: Iterable[str]) -> list[str]:
    """Return the `plain_name` of each predictor, numbered where another one has it already.

    ``net/a.1.0`` and ``net/a.10`` are ``neta10`` and ``neta10v2``: no map overwrites another.
    """
    taken, labels = {"best"}, []
    for name in predictors:
        label, number = plain_name(name), 1
        while label in taken:
            number += 1
            label = f"{plain_name(name)}v{number}"
        taken.add(label)
        labels.append(label)
    return labels


def write_maps(
    folder: str | Path,
    rows: Mapping[str, np.ndarray],
    centres: Mapping[str, np.ndarray],
    attrs: Mapping[str, Any],
    *,
    prefix: str,
    statistic: str,
    best: bool = False,
) -> None:
    """Write one map a predictor and, on request, the best of all.

    Parameters
    ----------
    folder
        Made where it is not there.
    rows
        Values at the centres by predictor, whose names are those of `map_labels`.
    centres
        Coordinates of the store: ``i``, ``j``, ``k`` of voxels (NIfTI, on the grid of the
        centres), or ``hemisphere`` and ``index`` of vertices (GIFTI, a file a hemisphere).
    attrs
        Of the store: ``space``, ``affine``, ``shape`` and ``step``, or ``mesh``.
    prefix
        First entities of the names: ``sub-01_task-objects`` or ``task-objects``.
    statistic
        Value of the ``stat`` entity.
    best
        Write the largest value over predictors and, as labels, whose it is.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save = _save_volume if "i" in centres else _save_surface

    for name, row in zip(map_labels(rows), rows.values()):
        label = f"{name}_stat-{statistic}_statmap"
        save(folder, row, label, np.float32, np.nan, centres, attrs, prefix)
    if not best:
        return
    table = np.array(list(rows.values()))
    some = np.isfinite(table).any(axis=0)
    filled = np.where(np.isfinite(table), table, -np.inf)
    top = np.where(some, filled.max(axis=0), np.nan)
    which = np.where(some, filled.argmax(axis=0) + 1, 0)
    save(folder, top, f"best_stat-{statistic}_statmap", np.float32, np.nan, centres, attrs, prefix)
    save(folder, which, "best_dseg", np.int32, 0, centres, attrs, prefix)
    space = attrs["mesh"] if "mesh" in attrs else attrs["space"]
    write_json(
        folder / f"{prefix}_space-{space}_desc-best_dseg.json",
        {"LabelMap": {str(k): name for k, name in enumerate(rows, start=1)}},
    )


def _save_volume(
    folder: Path,
    values: np.ndarray,
    label: str,
    dtype: type,
    outside: float,
    centres: Mapping[str, np.ndarray],
    attrs: Mapping[str, Any],
    prefix: str,
) -> None:
    import nibabel as nib

    step = int(attrs["step"])
    affine = np.asarray(attrs["affine"], dtype=np.float64).copy()
    affine[:3, :3] *= step
    volume = np.full([-(-int(n) // step) for n in attrs["shape"]], outside, dtype=dtype)
    volume[tuple(np.asarray(centres[axis]) // step for axis in "ijk")] = values
    image = nib.Nifti1Image(volume, affine)
    image.set_data_dtype(dtype)
    nib.save(image, folder / f"{prefix}_space-{attrs['space']}_desc-{label}.nii.gz")


def _save_surface(
    folder: Path,
    values: np.ndarray,
    label: str,
    dtype: type,
    outside: float,
    centres: Mapping[str, np.ndarray],
    attrs: Mapping[str, Any],
    prefix: str,
) -> None:
    sides = np.asarray(centres["hemisphere"])
    for side, letter in HEMISPHERES.items():
        here = sides == side
        # As many values as the template's hemisphere has vertices, whatever the store holds.
        row = np.full(int(attrs["n_vertices"]), outside, dtype=dtype)
        row[np.asarray(centres["index"])[here]] = np.asarray(values)[here]
        ending = "label.gii" if dtype is np.int32 else "func.gii"
        name = f"{prefix}_hemi-{letter}_space-{attrs['mesh']}_desc-{label}.{ending}"
        write_texture(folder / name, row, side=side, name=label)
