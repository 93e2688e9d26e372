"""From files to a betas store: the GLM of a subject, the import of betas, and bad input."""

import inspect
import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from isocortex import store
from isocortex.errors import InputError
from isocortex.glm import (
    clean_bold,
    fit_glm,
    import_betas,
    import_timeseries,
    map_contrasts,
)
from isocortex.provenance import directory_digest

SHAPE = (5, 4, 3)
TR = 2.0
N_VOLUMES = 60
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])


def save(path, data, affine=AFFINE):
    image = nib.Nifti1Image(data, affine)
    if data.ndim == 4:
        image.header.set_zooms((3, 3, 3, TR))
        image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
    return path


@pytest.fixture
def study(tmp_path):
    """Two runs of a small subject; the keywords of `fit_glm`."""
    rng = np.random.default_rng(1)
    inputs = {key: [] for key in ("bold", "mask", "confounds", "sidecar", "events", "runs")}
    for run in (1, 2):
        stem = tmp_path / f"sub-01_run-{run}"
        data = 500 + 10 * rng.standard_normal((*SHAPE, N_VOLUMES))
        mask = np.zeros(SHAPE, np.uint8)
        mask[: 4 + (run == 1)] = 1  # the second run sees less
        inputs["bold"].append(save(f"{stem}_bold.nii.gz", data.astype(np.float32)))
        inputs["mask"].append(save(f"{stem}_mask.nii.gz", mask))
        motion = {
            f"{kind}_{axis}": rng.standard_normal(N_VOLUMES).round(5)
            for kind in ("trans", "rot")
            for axis in "xyz"
        }
        frame = pd.DataFrame(motion)
        frame["fd"] = ["n/a", *["0.1"] * (N_VOLUMES - 1)]
        frame.to_csv(f"{stem}_confounds.tsv", sep="\t", index=False)
        inputs["confounds"].append(f"{stem}_confounds.tsv")
        (tmp_path / f"sub-01_run-{run}_bold.json").write_text(
            json.dumps({"RepetitionTime": TR, "StartTime": 0.9, "SliceTimingCorrected": True})
        )
        inputs["sidecar"].append(f"{stem}_bold.json")
        pd.DataFrame(
            {
                "onset": [4.0 + 9 * k + run for k in range(10)],
                "duration": 1.0,
                "trial_type": ["face", "house"] * 5,
                "stim_file": [f"{k % 5}.png" for k in range(10)],
            }
        ).to_csv(f"{stem}_events.tsv", sep="\t", index=False)
        inputs["events"].append(f"{stem}_events.tsv")
        inputs["runs"].append({"session": None, "run": f"0{run}"})
    return {
        **inputs,
        "out": tmp_path / "out" / "betas.zarr",
        "subject": "01",
        "task": "objects",
        "space": "T1w",
    }


def test_store_holds_what_was_fitted(study):
    manifest = fit_glm(**study, code="abc")
    assert manifest == study["out"].with_suffix(".json")
    betas = store.open(study["out"], "betas").load()
    assert dict(betas.sizes) == {
        "trial": 20, "voxel": 48, "time": 120, "volume": 60, "regressor": 10 + 6 + 3
    }  # fmt: skip
    assert list(betas.stimulus.values[:6]) == ["0.png", "1.png", "2.png", "3.png", "4.png", "0.png"]
    assert list(betas.run.values[[0, 10]]) == ["01", "02"]
    assert list(betas.onset.values[[0, 10]]) == [5.0, 6.0]
    assert list(betas.time_run.values[[0, 60]]) == ["01", "02"]
    assert betas.frame_time.values[1] == pytest.approx(2.9)
    assert betas.attrs["stimulus_column"] == "stim_file"
    assert betas.attrs["TR"] == TR
    assert betas.attrs["degrees_of_freedom"] == 2 * (60 - 19)
    assert [run["start_time"] for run in betas.attrs["design"]] == [0.9, 0.9]
    assert "0.9 s plus multiples" in betas.attrs["methods"]
    assert betas.i.values.max() == 3  # only what both masks share
    assert np.isfinite(betas.noise_ceiling).all()
    # Beta and residual belong together: with the nuisance part they make up the data.
    raw = nib.load(study["bold"][0]).get_fdata()[betas.i.values, betas.j.values, betas.k.values].T
    percent = 100 * (raw / raw.mean(axis=0) - 1)
    design = betas.design.values.astype(float)
    coefficients = np.linalg.lstsq(design, percent, rcond=None)[0]
    columns = [k for k, n in enumerate(betas.regressor.values) if n.startswith("trial_")]
    np.testing.assert_allclose(betas.beta.values[:10], coefficients[columns], atol=1e-3)
    np.testing.assert_allclose(
        betas.residual.values[:60], percent - design @ coefficients, atol=1e-3
    )


def test_same_input_gives_the_same_bytes(study):
    fit_glm(**study)
    first = directory_digest(study["out"])
    fit_glm(**study, threads=3)
    assert directory_digest(study["out"]) == first


def test_sessions_are_kept(study):
    study["runs"] = [{"session": s, "run": f"ses-{s}_run-1"} for s in "ab"]
    fit_glm(**study)
    betas = store.open(study["out"], "betas")
    assert sorted(set(betas.run.values)) == ["ses-a_run-1", "ses-b_run-1"]
    assert sorted(set(betas.session.values)) == ["a", "b"]


def test_one_run_is_enough(study):
    for key in ("bold", "mask", "confounds", "sidecar", "events", "runs"):
        study[key] = study[key][:1]
    fit_glm(**study, trials="condition")
    betas = store.open(study["out"], "betas")
    assert betas.sizes["trial"] == 2
    assert np.isnan(betas.noise_ceiling.values).all()
    assert "no noise ceiling" in betas.attrs["methods"]


def test_nan_and_constant_voxels_are_counted(study):
    image = nib.load(study["bold"][1])
    data = image.get_fdata()
    data[0, 0, 0, 7] = np.nan
    data[1, 0, 0] = 400.0
    data[2, 0, :2] -= 2000.0
    save(study["bold"][1], data.astype(np.float32))
    fit_glm(**study)
    betas = store.open(study["out"], "betas").load()
    assert betas.sizes["voxel"] == 44
    assert betas.attrs["n_voxels_mask"] == 48
    assert betas.attrs["n_voxels_nan"] == 1
    assert betas.attrs["n_voxels_constant"] == 1
    assert betas.attrs["n_voxels_nonpositive_mean"] == 2
    assert "4 voxels were left out" in betas.attrs["methods"]
    assert np.isfinite(betas.beta).all()
    assert np.isfinite(betas.residual).all()
    assert (0, 0, 0) not in set(zip(betas.i.values, betas.j.values, betas.k.values, strict=True))


def test_confounds_none_needs_no_tables(study):
    study["confounds"] = []
    fit_glm(**study, confound_columns="none")
    assert store.open(study["out"], "betas").sizes["regressor"] == 13


def edit_table(path, change):
    frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    change(frame).to_csv(path, sep="\t", index=False)


def shift_affine(study):
    data = np.asarray(nib.load(study["bold"][1]).dataobj)
    moved = AFFINE.copy()
    moved[0, 3] = 1.5
    save(study["bold"][1], data, moved)


def other_shape(study):
    save(study["bold"][1], np.ones((6, 4, 3, N_VOLUMES), np.float32))


def mask_grid(study):
    save(study["mask"][0], np.ones((5, 4, 2), np.uint8))


def empty_mask(study):
    save(study["mask"][1], np.zeros(SHAPE, np.uint8))


def disjoint_masks(study):
    for path, part in zip(study["mask"], (slice(0, 2), slice(3, 5)), strict=True):
        mask = np.zeros(SHAPE, np.uint8)
        mask[part] = 1
        save(path, mask)


def truncated(study):
    from pathlib import Path

    path = Path(study["bold"][0])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_number(study):
    data = nib.load(study["bold"][0]).get_fdata()
    data[..., 3] = np.nan
    save(study["bold"][0], data.astype(np.float32))


def all_constant(study):
    save(study["bold"][0], np.ones((*SHAPE, N_VOLUMES), np.float32))


def sidecar(study, **content):
    with open(study["sidecar"][1], "w") as stream:
        json.dump(content, stream)


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (shift_affine, {}, "run-2_bold.nii.gz and .*run-1_bold.nii.gz have different affines"),
        (other_shape, {}, r"run-2_bold.nii.gz has the grid \(6, 4, 3\), .*run-1_bold"),
        (mask_grid, {}, r"run-1_mask.nii.gz has the grid \(5, 4, 2\), .*run-1_bold"),
        (empty_mask, {}, "run-2_mask.nii.gz is empty"),
        (disjoint_masks, {}, "share no voxel"),
        (truncated, {}, r"run-1_bold.nii.gz.*truncated"),
        (no_number, {}, "run-1_bold.nii.gz has no number in the mask at 1 volumes, the first 3"),
        (all_constant, {}, "no voxel of 48 .* 48 are constant"),
        (
            lambda s: edit_table(
                s["events"][1], lambda f: f.assign(onset=f.onset.astype(float) + 90)
            ),
            {},
            r"run-2_events.tsv with .*run-2_bold.nii.gz: \d+ events at or beyond the last volume",
        ),
        (lambda s: edit_table(s["events"][0], lambda f: f[:0]), {}, "run-1_events.tsv .*no events"),
        (
            lambda s: edit_table(s["events"][0], lambda f: f.drop(columns="onset")),
            {},
            "run-1_events.tsv has no column 'onset'",
        ),
        (None, {"stimulus_column": "picture"}, "run-1_events.tsv .*no column picture"),
        (
            lambda s: edit_table(s["events"][1], lambda f: f.drop(columns="stim_file")),
            {},
            "run-2_events.tsv has its stimuli in column trial_type, the first run in stim_file",
        ),
        (None, {"trial_types": ["face", "hous"]}, "trial_types names 'hous'.*face, house"),
        (
            lambda s: edit_table(s["confounds"][1], lambda f: f[:-1]),
            {},
            "run-2_confounds.tsv has 59 rows for 60 volumes",
        ),
        (None, {"confound_columns": ["csf"]}, "run-1_confounds.tsv has no column csf"),
        (lambda s: s.update(confounds=[]), {}, "asks for motion6 but there is no confounds table"),
        (lambda s: sidecar(s, StartTime=0.9), {}, None),  # TR from the header
        (
            lambda s: sidecar(s, RepetitionTime=TR, SliceTimingCorrected=True),
            {},
            "run-2_bold.json says SliceTimingCorrected but has no StartTime",
        ),
        (lambda s: sidecar(s, RepetitionTime=TR, StartTime="late"), {}, "has StartTime 'late'"),
        (lambda s: sidecar(s, RepetitionTime=1.5), {}, "RepetitionTime is 1.5 s in its JSON"),
        (lambda s: s.update(runs=s["runs"][:1] * 2), {}, "run 01 is there twice"),
        (lambda s: s.update(mask=s["mask"][:1]), {}, "1 masks for 2 runs"),
        (None, {"high_pass": 0.2}, "10 trials and .* for 60 volumes: set glm.trials to block"),
    ],
)
def test_bad_input_is_one_clear_line(study, damage, options, message):
    if damage:
        damage(study)
    if message is None:
        fit_glm(**study, **options)
        return
    with pytest.raises(InputError, match=message) as caught:
        fit_glm(**study, **options)
    assert len(str(caught.value).splitlines()) == 1
    assert not study["out"].exists()


def test_schema_and_signature_agree(root):
    schema = json.loads((root / "workflow/schemas/config/glm.json").read_text())["properties"]
    parameters = inspect.signature(fit_glm).parameters
    cleaning = inspect.signature(clean_bold).parameters
    for name, entry in schema.items():
        if name in ("space", "continuous_tasks", "contrasts", "nifti", "optimised"):  # others'
            continue
        default = parameters[name].default
        assert name not in cleaning or cleaning[name].default == default
        assert entry["default"] == (list(default) if isinstance(default, tuple) else default)
    with pytest.raises(TypeError):
        fit_glm(hrff="glover")


@pytest.mark.parametrize("function", [map_contrasts, clean_bold, import_timeseries])
def test_rules_hand_on_every_option_that_there_is(root, function):
    """An option that a rule leaves out would be the default whatever the config says."""
    text = (root / "rules/glm.smk").read_text().split(f"rule {function.__name__}:")[1]
    handed = re.findall(r'"(\w+)"', re.search(r"options\((.*?)\)", text, re.DOTALL)[1])
    keys = json.loads((root / "workflow/schemas/config/glm.json").read_text())["properties"]
    taken = set(inspect.signature(function).parameters) & set(keys)
    # Of given time series, the space is a parameter of its own.
    assert {"glm", *taken} - set(handed) <= {"space"}
    assert set(handed) <= {"glm", *taken}


# Import


@pytest.fixture
def estimated(tmp_path):
    rng = np.random.default_rng(2)
    data = np.zeros((*SHAPE, 12), np.float32)
    data[:3] = rng.standard_normal((3, 4, 3, 12))
    data[0, 0, 0] = np.nan
    data[0, 0, 1, 4] = np.nan
    save(tmp_path / "betas.nii.gz", data)
    frame = pd.DataFrame(
        {"stimulus": [f"s{k % 6}" for k in range(12)], "run": ["1"] * 6 + ["2"] * 6, "session": "x"}
    )
    frame.to_csv(tmp_path / "trials.tsv", sep="\t", index=False)
    return {
        "image": tmp_path / "betas.nii.gz",
        "events": tmp_path / "trials.tsv",
        "out": tmp_path / "out.zarr",
        "subject": "01",
        "task": "objects",
        "space": "T1w",
    }


def test_betas_are_imported(estimated, tmp_path):
    import_betas(**estimated)
    betas = store.open(estimated["out"], "betas").load()
    data = nib.load(estimated["image"]).get_fdata()
    # 36 voxels have responses; of the two with NaN one is empty throughout, one has a gap.
    assert betas.sizes["voxel"] == 34
    assert betas.attrs["n_voxels_nan"] == 1
    np.testing.assert_allclose(
        betas.beta.values, data[betas.i.values, betas.j.values, betas.k.values].T, atol=1e-6
    )
    assert list(betas.run.values[[0, 6]]) == ["ses-x_run-1", "ses-x_run-2"]
    assert list(betas.condition.values) == list(betas.stimulus.values)
    assert np.isnan(betas.onset.values).all()
    assert betas.sizes["time"] == 0
    assert np.isfinite(betas.noise_ceiling).all()
    assert np.isnan(betas.r2).all()
    mask = np.zeros(SHAPE, np.uint8)
    mask[0] = 1
    save(tmp_path / "mask.nii.gz", mask)
    import_betas(**estimated, mask=tmp_path / "mask.nii.gz")
    betas = store.open(estimated["out"], "betas")
    assert betas.sizes["voxel"] == 10
    assert betas.attrs["n_voxels_nan"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[:-1], r"trials.tsv has 11 rows for 12 volumes of .*betas.nii.gz"),
        (lambda f: f.drop(columns="run"), "trials.tsv has no column run"),
        (lambda f: f.assign(stimulus=["n/a", *f.stimulus[1:]]), "line 2: stimulus is empty"),
        (lambda f: f.assign(onset="soon"), "column onset: .*'soon'"),
    ],
)
def test_bad_tables_of_trials_are_refused(estimated, change, message):
    edit_table(estimated["events"], change)
    with pytest.raises(InputError, match=message):
        import_betas(**estimated)


def test_a_mask_on_another_grid_is_refused(estimated, tmp_path):
    save(tmp_path / "mask.nii.gz", np.ones((5, 4, 2), np.uint8))
    with pytest.raises(InputError, match=r"mask.nii.gz has the grid \(5, 4, 2\), .*betas.nii.gz"):
        import_betas(**estimated, mask=tmp_path / "mask.nii.gz")


def test_an_empty_image_is_refused(estimated):
    save(estimated["image"], np.zeros((*SHAPE, 12), np.float32))
    with pytest.raises(InputError, match="no usable voxel"):
        import_betas(**estimated)


def test_trials_that_are_hardly_measured_are_pointed_out(study, caplog):
    late = {"onset": 117.5, "duration": "1.0", "trial_type": "face", "stim_file": "9.png"}
    edit_table(study["events"][0], lambda f: pd.concat([f, pd.DataFrame([late])]))
    fit_glm(**study)
    betas = store.open(study["out"], "betas").load()
    assert betas.attrs["design"][0]["weak_trials"] == [117.5]
    assert betas.attrs["design"][1]["weak_trials"] == []
    assert betas.beta_se.values[10] > 5 * np.median(betas.beta_se.values)
    assert "hardly measured" in caplog.text


def test_derivatives_of_the_response_add_no_betas(study):
    fit_glm(**study, hrf="glover + derivative", nuisance_types=["house"])
    betas = store.open(study["out"], "betas")
    assert set(betas.condition.values) == {"face"}
    assert betas.sizes["trial"] == 10
    names = set(betas.regressor.values)
    assert {"event_house", "event_house_derivative", "trial_00005_derivative"} <= names
    assert betas.attrs["design"][0]["n_other_events"] == 5


def test_nobodys_input_is_changed(study):
    from pathlib import Path

    files = [Path(p) for key in ("bold", "mask", "events", "confounds") for p in study[key]]
    before = [file.read_bytes() for file in files]
    fit_glm(**study)
    assert [file.read_bytes() for file in files] == before


def test_lazy_columns_copy_nothing_until_they_are_used(tmp_path):
    from isocortex.glm.scratch import RunBlocks, lazy_columns

    array = RunBlocks(tmp_path / "x", [4, 3], 9000)
    columns = np.flatnonzero(np.arange(9000) % 3)
    lazy = lazy_columns(array, columns)
    assert lazy.shape == (7, 6000)
    values = np.arange(7 * 9000).reshape(7, 9000)
    for run, rows in enumerate((values[:4], values[4:])):
        array.write(run, slice(0, 9000), rows)  # seen, as nothing was copied before
    np.testing.assert_array_equal(lazy.compute(), values[:, columns])
