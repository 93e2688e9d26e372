"""Betas stores and contrast maps as the estimators leave them, for the tests of reports."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import xarray as xr
from scipy.stats import norm

from isocortex import store
from isocortex.hrf_library import hrf_library

CURVE = [0.021, 0.034, 0.041, 0.0432, 0.0431, 0.0429, 0.0425, 0.042]


def small_betas(*, n_runs: int = 4, seed: int = 0) -> xr.Dataset:
    """Betas of 6 stimuli in each run on a box of 6 x 6 x 4 voxels, half of which respond."""
    rng = np.random.default_rng(seed)
    shape = (6, 6, 4)
    where = np.stack(np.nonzero(np.ones(shape))).astype("i4")
    n = where.shape[1]
    stimuli = [f"{what}{k}.png" for what in ("face", "house") for k in range(3)]
    signal = where[0] < 3
    run = np.repeat([f"{k:02d}" for k in range(1, n_runs + 1)], len(stimuli)).astype(object)
    stimulus = np.array(stimuli * n_runs, dtype=object)
    response = np.where(signal, rng.standard_normal((len(stimuli), n)), 0)
    beta = np.tile(response, (n_runs, 1)) + 0.5 * rng.standard_normal((len(run), n))

    def voxel(high: float) -> tuple:
        return ("voxel", (high * signal + 0.02 * rng.random(n)).astype("f4"))

    return xr.Dataset(
        {
            "beta": (("trial", "voxel"), beta.astype("f4")),
            "beta_se": ("trial", np.ones(len(run))),
            "r2": voxel(0.5),
            "z_stimulus": voxel(6.0),
            "noise_ceiling": voxel(0.4),
            "ncsnr": voxel(0.6),
            "tsnr": voxel(50.0),
            "hrf_index": ("voxel", np.zeros(n, "i2")),
            "residual": (("time", "voxel"), np.zeros((4 * n_runs, n), "f4")),
            "design": (("volume", "regressor"), rng.standard_normal((30, 8)).astype("f4")),
        },
        coords={
            "regressor": np.array([f"r{k}" for k in range(8)], dtype=object),
            "frame_time": ("volume", 2.0 * np.arange(30)),
            "stimulus": ("trial", stimulus),
            "condition": ("trial", np.array([s.rstrip("012.png") for s in stimulus], object)),
            "session": ("trial", np.full(len(run), "", dtype=object)),
            "run": ("trial", run),
            "onset": ("trial", np.tile(4.0 + 8.0 * np.arange(len(stimuli)), n_runs)),
            "duration": ("trial", np.full(len(run), 1.0)),
            "time_run": ("time", np.repeat(np.unique(run.astype(str)).astype(object), 4)),
            **{axis: ("voxel", where[k]) for k, axis in enumerate("ijk")},
        },
        attrs={
            "affine": np.diag([4.0, 4.0, 4.0, 1.0]).tolist(),
            "shape": list(shape),
            "space": "T1w",
            "subject": "01",
            "task": "objects",
            "TR": 2.0,
            "estimator": "least squares, all trials of a run at once",
            "hrf": "glover",
            "n_voxels_mask": n,
            "design": [
                {"run": str(name), "n_volumes": 30, "n_trials": len(stimuli), "n_regressors": 12}
                for name in dict.fromkeys(run)
            ],
            "methods": "Responses were estimated.",
        },
    )


def with_choices(dataset: xr.Dataset, *, halves: bool = False, seed: int = 0) -> xr.Dataset:
    """Add what the optimised estimator leaves: the voxels with a high R² have a late response."""
    rng = np.random.default_rng(seed)
    library = hrf_library(20)
    n = dataset.sizes["voxel"]
    signal = dataset["r2"].values > 0.3
    out = dataset.copy()
    out.attrs = dict(dataset.attrs)
    out.attrs["estimator"] = "fractional ridge with each voxel's response and noise components"
    own = {
        "noise_components": 3,
        "noise_components_r2": CURVE,
        "hrf_peak": [round(float(v), 4) for v in library.peak],
        "hrf_width": [round(float(v), 4) for v in library.width],
    }
    out.attrs |= {"halves": [dict(own), dict(own)]} if halves else own
    for number, ending in enumerate(("_1", "_2") if halves else ("",)):
        explained = np.where(signal, 0.08, -0.01) + 0.02 * rng.standard_normal(n)
        index = np.clip(np.where(signal, 11, 7) + rng.integers(-3, 4, n), 0, 19)
        fraction = np.where(signal, rng.integers(12, 21, n), rng.integers(1, 9, n)) / 20
        out[f"r2_cross_validated{ending}"] = ("voxel", explained.astype("f4"))
        out[f"hrf_index{ending}"] = ("voxel", index.astype("i2"))
        out[f"fraction{ending}"] = ("voxel", fraction.astype("f4"))
        out[f"noise_pool{ending}"] = ("voxel", explained < 0)
        part = out.attrs["halves"][number] if halves else out.attrs
        part["noise_pool_voxels"] = int((explained < 0).sum())
    if halves:
        same = out["hrf_index_1"].values == out["hrf_index_2"].values
        out["hrf_index"] = ("voxel", np.where(same, out["hrf_index_1"].values, -1).astype("i2"))
        run = out["run"].values
        order = list(dict.fromkeys(run))
        out.coords["half"] = (
            "trial",
            np.array([1 + order.index(name) % 2 for name in run], dtype="i2"),
        )
    return with_confidence(out, seed=seed)


def with_confidence(dataset: xr.Dataset, *, seed: int = 0) -> xr.Dataset:
    """Add intervals of ncsnr and noise ceiling, and the reliability."""
    rng = np.random.default_rng(seed)
    out = dataset.copy()
    for name, width in (("ncsnr", 0.2), ("noise_ceiling", 0.12)):
        middle = dataset[name].values
        out[f"{name}_low"] = ("voxel", np.maximum(middle - width, 0).astype("f4"))
        out[f"{name}_high"] = ("voxel", (middle + width).astype("f4"))
    r = 0.6 * (dataset["r2"].values > 0.3) + 0.2 * rng.standard_normal(dataset.sizes["voxel"])
    out["reliability"] = ("voxel", np.clip(r, -1, 1).astype("f4"))
    return out


def write_betas(dataset: xr.Dataset, path: Path) -> Path:
    """Write a betas store."""
    store.write(dataset, path, spec="betas", code="0" * 16)
    return path


def write_contrasts(dataset: xr.Dataset, folder: Path, *, seed: int = 0) -> Path:
    """Write the z maps of two contrasts as map_contrasts leaves them, with a manifest."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    where = tuple(dataset[axis].values for axis in "ijk")
    effects = {"all": "all", "faces": "face - house", "nothing": "tool - food"}
    strength = {"all": 9.0, "faces": 5.0, "nothing": 0.0}
    for name in effects:
        z = strength[name] * (dataset["r2"].values > 0.3)
        # noise that no voxel passes by
        z = z + norm.ppf(rng.uniform(0.01, 0.99, len(z)))
        volume = np.zeros(dataset.attrs["shape"], dtype=np.float32)
        volume[where] = z
        stem = f"sub-{dataset.attrs['subject']}_task-objects_space-{dataset.attrs['space']}"
        image = nib.Nifti1Image(volume, np.asarray(dataset.attrs["affine"]))
        nib.save(image, folder / f"{stem}_contrast-{name}_stat-z_statmap.nii.gz")
    manifest = {
        "content": "1" * 64,
        "contrasts": effects,
        "runs": {"all": ["01", "02", "03"], "faces": ["01", "02"], "nothing": ["01", "02", "03"]},
        "degrees_of_freedom": {"all": 240, "faces": 160, "nothing": 240},
        "n_voxels": len(where[0]),
        "methods": "Contrasts were estimated with one regressor for each condition.",
    }
    folder.with_suffix(".json").write_text(json.dumps(manifest))
    return folder
