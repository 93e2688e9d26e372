"""The optimised estimator from files to a betas store."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from isocortex import store
from isocortex.errors import InputError
from isocortex.glm import fit_glm
from isocortex.provenance import directory_digest
from tests.unit.simulated_runs import TR, simulate

SHAPE = (6, 4, 2)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Four runs of 48 voxels in which each stimulus is shown once; the keywords of `fit_glm`."""
    folder = tmp_path_factory.mktemp("optimised")
    found = simulate(n_trials=16, n_stimuli=16, n_volumes=60, n_voxels=48, noise=0.2)
    inputs = {key: [] for key in ("bold", "mask", "sidecar", "events", "runs")}
    for run, series in zip(found.runs, found.data, strict=True):
        stem = folder / f"sub-01_run-{run.name}"
        values = 500 * (1 + series.T.reshape(*SHAPE, -1) / 100)
        image = nib.Nifti1Image(values.astype(np.float32), np.eye(4))
        image.header.set_zooms((1, 1, 1, TR))
        image.header.set_xyzt_units("mm", "sec")
        image.to_filename(f"{stem}_bold.nii.gz")
        mask = nib.Nifti1Image(np.ones(SHAPE, np.uint8), np.eye(4))
        mask.to_filename(f"{stem}_mask.nii.gz")
        sidecar = {"RepetitionTime": TR, "StartTime": run.start_time}
        (folder / f"{stem.name}_bold.json").write_text(json.dumps(sidecar))
        trials = run.design.trials
        table = pd.DataFrame(
            {key: [getattr(t, key) for t in trials] for key in ("onset", "duration")}
        )
        table["trial_type"] = "image"
        table["stim_file"] = [trial.stimulus for trial in trials]
        table.to_csv(f"{stem}_events.tsv", sep="\t", index=False)
        for key, ending in (("bold", "bold.nii.gz"), ("mask", "mask.nii.gz")):
            inputs[key].append(f"{stem}_{ending}")
        inputs["sidecar"].append(f"{stem}_bold.json")
        inputs["events"].append(f"{stem}_events.tsv")
        inputs["runs"].append({"session": None, "run": run.name})
    return {
        **inputs,
        "subject": "01",
        "task": "images",
        "space": "T1w",
        "confound_columns": "none",
        "estimator": "optimised",
    }, found


def test_store_says_what_was_chosen(study, tmp_path):
    options, found = study
    fit_glm(**options, out=tmp_path / "betas.zarr")
    betas = store.open(tmp_path / "betas.zarr", "betas").load()
    assert betas.hrf_index.dtype == np.int16
    assert (np.abs(betas.hrf_index.values - found.hrf) <= 2).mean() > 0.9
    assert ((betas.fraction > 0) & (betas.fraction <= 1)).all()
    assert betas.noise_pool.dtype == bool
    assert betas.r2_cross_validated.values.max() <= 1
    assert (betas.ncsnr_low <= betas.ncsnr_high).all()
    assert (betas.reliability > 0).mean() > 0.9
    assert len(betas.attrs["hrf_peak"]) == 20
    assert betas.attrs["noise_components"] <= 10
    assert len(betas.attrs["noise_components_r2"]) >= 1
    text = betas.attrs["methods"]
    assert "fractional ridge" in text
    assert "glover haemodynamic" not in text
    assert "ordinary least squares with one regressor" not in text
    slope = np.sum(betas.beta.values * found.truth, 0) / np.sum(found.truth**2, 0)
    assert np.median(slope) == pytest.approx(1, abs=0.15)
    again = tmp_path / "again.zarr"
    fit_glm(**options, out=again, threads=3)
    assert directory_digest(again) == directory_digest(tmp_path / "betas.zarr")


def test_halves_choose_for_themselves(study, tmp_path):
    options, _ = study
    few = {"hrfs": 5, "noise_components_max": 2, "fractions": [0.3, 0.6, 1.0]}
    chosen = {}
    for name, changed in (
        ("one", {}),
        ("two", {"bold": [*options["bold"][:3], options["bold"][0]]}),
    ):
        out = tmp_path / f"{name}.zarr"
        fit_glm(**{**options, **changed}, out=out, split_half=True, optimised=few)
        chosen[name] = store.open(out, "betas").load()
    first = chosen["one"]
    assert set(np.unique(first.fraction_1)) <= set(np.float32([0.3, 0.6, 1.0]))
    assert list(np.unique(first.half.values)) == [1, 2]
    assert np.isfinite(first.reliability).all()
    # Another fourth run changes the second half alone.
    odd = first.half.values == 1
    other = chosen["two"]
    np.testing.assert_array_equal(first.beta.values[odd], other.beta.values[odd])
    np.testing.assert_array_equal(first.fraction_1, other.fraction_1)
    assert (first.beta.values[~odd] != other.beta.values[~odd]).any()


def test_z_is_that_of_least_squares(study, tmp_path):
    """Also where the design of the config has other regressors than that of the betas."""
    options, _ = study
    few = {"hrfs": 2, "noise_components_max": 0, "fractions": [1.0]}
    found = {}
    for name in ("lsa", "optimised"):
        fit_glm(
            **{**options, "estimator": name},
            out=tmp_path / name,
            hrf="glover + derivative",
            optimised=few,
        )
        found[name] = store.open(tmp_path / name, "betas").load()
    plain, chosen = found["lsa"], found["optimised"]
    assert plain.attrs["degrees_of_freedom"] < chosen.attrs["degrees_of_freedom"]
    np.testing.assert_allclose(chosen.z_stimulus, plain.z_stimulus, rtol=1e-5)


def test_prewhitening_is_refused(study, tmp_path):
    options, _ = study
    with pytest.raises(InputError, match="set it to ols"):
        fit_glm(**options, out=tmp_path / "betas.zarr", noise_model="ar1")
