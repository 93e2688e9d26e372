"""Betas as images: one 4D NIfTI of all trials, a table of the trials, a sidecar."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from isocortex import provenance, store
from isocortex.glm.scratch import RunBlocks
from isocortex.jobs import working_folder

_COLUMNS = (
    "onset",
    "duration",
    "condition",
    "stimulus",
    "session",
    "run",
    "half",
    "n_repeats",
    "beta_se",
)
_MAPS = {
    "r2": "Share of the variance that drift and confounds leave which the trials explain",
    "noiseceiling": "Explainable share of the variance of the mean over repeats, 0 to 1",
}


def export_betas(
    *,
    betas: str | Path,
    out: str | Path,
    manifest: str | Path,
    code: str = "",
) -> Path:
    """Write the responses of a betas store as BIDS-style images.

    Parameters
    ----------
    betas
        The betas store.
    out
        Folder to write: ``…_space-<s>_stat-effect_statmap.nii.gz`` with a volume a trial (percent
        signal change, float32; 0 outside of the voxels that were fitted),
        ``…_stat-effect_trials.tsv`` with a row a volume, ``…_stat-r2_statmap.nii.gz`` and
        ``…_stat-noiseceiling_statmap.nii.gz``, and a JSON beside each image.
    manifest
        JSON with the folder's digest.
    code
        Code version, for the provenance.

    Returns
    -------
    pathlib.Path
        The manifest.

    Notes
    -----
    The table has what `isocortex.glm.betas.import_betas` reads: image and table can enter another
    study as they are. Memory holds a shard of the store or a volume: the responses, which the store
    has voxel by voxel, are turned on disk.
    """
    dataset = store.open(betas, "betas")
    attrs = dataset.attrs
    folder = Path(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = provenance.temporary_beside(folder)
    temporary.mkdir()
    stem = f"sub-{attrs['subject']}_task-{attrs['task']}_space-{attrs['space']}_stat-"
    shape = tuple(int(n) for n in attrs["shape"])
    affine = np.asarray(attrs["affine"], dtype=np.float64)
    voxels = tuple(dataset[axis].values for axis in "ijk")
    # NIfTI has the first index running fastest.
    inside = np.ravel_multi_index(voxels, shape, order="F")
    n_trials, n_voxels = dataset.sizes["trial"], dataset.sizes["voxel"]
    with working_folder("export", out) as scratch:
        # One block of all voxels: a trial's row is read at once.
        turned = RunBlocks(Path(scratch) / "trials", [n_trials], n_voxels, block_voxels=n_voxels)
        width = store.shard_length("betas", (n_trials, n_voxels))
        for start in range(0, n_voxels, width):
            part = slice(start, min(start + width, n_voxels))
            turned.write_columns(0, part, dataset["beta"].isel(voxel=part).values)
        volumes = (_volume(turned.read_row(0, trial), inside, shape) for trial in range(n_trials))
        _write_image(
            temporary / f"{stem}effect_statmap.nii.gz", volumes, (*shape, n_trials), affine
        )
    table = {name: dataset[name].values for name in _COLUMNS if name in dataset.variables}
    _write_table(temporary / f"{stem}effect_trials.tsv", table)
    sidecar = {
        "Description": "Responses to single trials, a volume a row of the table of trials"
        if "n_repeats" not in table
        else "Mean responses to stimuli, a volume a row of the table of trials",
        "Units": "percent signal change",
        "Trials": f"{stem}effect_trials.tsv",
        "Estimator": attrs["estimator"],
        "Methods": attrs.get("methods", ""),
    }
    provenance.write_json(temporary / f"{stem}effect_statmap.json", sidecar)
    for name, description in _MAPS.items():
        key = {"noiseceiling": "noise_ceiling"}.get(name, name)
        values = dataset[key].values
        if np.isfinite(values).any():
            volume = _volume(np.nan_to_num(values), inside, shape)
            _write_image(temporary / f"{stem}{name}_statmap.nii.gz", [volume], shape, affine)
            provenance.write_json(
                temporary / f"{stem}{name}_statmap.json",
                {"Description": description, "Units": "arbitrary"},
            )
    digest = provenance.directory_digest(temporary)
    provenance.replace_with(temporary, folder)
    provenance.write_provenance(manifest, sources=[betas], code=code)
    provenance.write_json(manifest, {"content": digest, "n_trials": n_trials})
    return Path(manifest)


def _volume(values: np.ndarray, inside: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return a flat volume, the first index running fastest, with values at some voxels."""
    volume = np.zeros(int(np.prod(shape)), dtype=np.float32)
    volume[inside] = values
    return volume


def _write_image(
    path: Path,
    volumes: Iterator[np.ndarray] | Sequence[np.ndarray],
    shape: Sequence[int],
    affine: np.ndarray,
) -> None:
    """Write a compressed NIfTI one volume at a time."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape(tuple(shape))
    header.set_qform(affine, code="aligned")
    header.set_sform(affine, code="aligned")
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=4, fileobj=raw, mtime=0) as stream,
    ):
        stream.write(header.binaryblock + b"\0" * 4)
        for volume in volumes:
            stream.write(np.ascontiguousarray(volume, dtype="<f4"))


def _write_table(path: Path, table: Mapping[str, Any]) -> None:
    """Write a table of tab-separated columns, n/a where there is no number or text."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(table)
        for row in zip(*table.values(), strict=True):
            writer.writerow([_cell(value) for value in row])


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "n/a" if np.isnan(value) else f"{value:.10g}"
    return str(value) or "n/a"
