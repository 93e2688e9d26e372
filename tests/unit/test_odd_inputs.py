"""Inputs that real studies have: each is read as it is meant, or refused with what to do."""

import json
import logging
from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nipype.interfaces.base import isdefined

from isocortex import bids, store
from isocortex.config import check_config
from isocortex.confound_strategy import Scrub
from isocortex.errors import InputError
from isocortex.glm import fit_glm
from isocortex.glm.confounds import scrubbed_volumes
from isocortex.glm.images import read_series as read_voxels
from isocortex.preprocess import bold as bold_module
from isocortex.preprocess.images import read_anatomy, read_series, read_timing
from isocortex.preprocess.motion import estimate_motion
from isocortex.preprocess.resampling import resample_series
from isocortex.preprocess.transforms import grid_points
from isocortex.study import check_inputs, load_study

from ..workflow import tiny
from .heads import OBLIQUE, head, moved_series

TR, N = 2.0, 24
SHAPE = (6, 7, 5)
rng_values = np.random.default_rng(4).normal(500, 10, (*SHAPE, N)).astype(np.float32)


def run_of(path, **options):
    """A run with a mask beside it, as derivatives have: its timing is not looked at."""
    return bids.Run("01", "", "x", "1", "func/sub-01_task-x_run-1", Path(path), **options)


def write(path, values, affine=OBLIQUE, *, dtype=None, tr=TR, unit="sec", scaled=False):
    image = nib.Nifti1Image(values, affine)
    if values.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], tr))
    image.header.set_xyzt_units("mm", unit)
    if dtype:
        image.set_data_dtype(dtype)
    if scaled:  # as scanners do: a step of the integers is some fraction
        slope, middle = float(np.ptp(values)) / 60000, float(values.max() + values.min()) / 2
        raw = np.round((values - middle) / slope).astype(np.int16)
        image = nib.Nifti1Image(raw, affine, image.header)
        image.header.set_data_dtype(np.int16)
        image.header.set_slope_inter(slope, middle)
    nib.save(image, path)
    return Path(path)


def events(path, onsets=(2.0, 14.0, 26.0)):
    rows = [(onset, 1.0, "face", f"{k}.png") for k, onset in enumerate(onsets)]
    tiny.events(Path(path), rows)
    return Path(path)


# Kinds of files


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({"dtype": np.float64}, 1e-4),
        ({"scaled": True}, 2e-3),
        ({"dtype": np.uint16}, 0.51),
        ({}, 0),
    ],
    ids=["float64", "int16 with scaling", "uint16", "float32"],
)
def test_numbers_are_the_same_in_every_kind_of_file(tmp_path, options, ending, step):
    path = write(tmp_path / f"x{ending}", rng_values, **options)
    sidecar = tmp_path / "x.json"
    sidecar.write_text(json.dumps({"RepetitionTime": TR}))
    run = run_of(path, sidecars=(sidecar,), events=events(tmp_path / "e.tsv"))
    assert bids.check_run(run, stimulus_column="auto", stimuli=None).shape == rng_values.shape
    read = np.asarray(read_series(path).dataobj)
    np.testing.assert_allclose(read, rng_values, atol=step)
    voxels = read_voxels(path, np.ones(SHAPE, bool))
    np.testing.assert_allclose(voxels, rng_values.reshape(-1, N).T, atol=max(step, 1e-4))


def test_four_dimensions_with_one_volume(tmp_path):
    """A run it cannot be; a T1w it can."""
    path = write(tmp_path / "x.nii.gz", rng_values[..., :1])
    with pytest.raises(InputError, match=r"is no time series \(shape \(6, 7, 5, 1\)\)"):
        bids.check_run(run_of(path), stimulus_column="auto", stimuli=None)
    with pytest.raises(InputError, match=r"is one volume \(6x7x5x1\): give a 4D run"):
        read_series(path)
    t1w = np.random.default_rng(0).random((12, 13, 11, 1)).astype(np.float32)
    path = write(tmp_path / "t1w.nii.gz", t1w)
    bids.check_t1w(path)
    np.testing.assert_array_equal(read_anatomy(path).dataobj, t1w[..., 0])


# How the grid lies


def stored(series, affine, *, flip=(), order=(0, 1, 2)):
    """The same series in the same place with its axes stored in another order or direction."""
    change = np.eye(4)[[*order, 3]].T
    series = series.transpose(*order, 3)
    for axis in flip:
        one = np.eye(4)
        one[axis, [axis, 3]] = -1, series.shape[axis] - 1
        change = change @ one
        series = np.flip(series, axis)
    return np.ascontiguousarray(series), affine @ change


@pytest.mark.parametrize(
    "way", [{"flip": (0,)}, {"flip": (0, 2), "order": (2, 0, 1)}], ids=["flipped", "turned"]
)
def test_motion_does_not_depend_on_how_an_oblique_grid_is_stored(way):
    """Left-right flipped, or slices along another axis of the file: the head moves alike."""
    affine = OBLIQUE @ np.diag([2.0, 2, 2, 1])
    centre = np.array([0.0, -15, 20])
    truth = np.array([[0.0] * 6, [0.8, -0.5, 1.1, 0.02, -0.015, 0.01]])
    series = moved_series(affine, truth, centre, shape=(22, 27, 21))
    coarse = np.diag([12.0, 12, 12, 1])
    coarse[:3, 3] = -42, -60, -20
    points = grid_points((8, 9, 7), coarse)
    found, images = [], []
    for values, grid in ((series, affine), stored(series, affine, **way)):
        mask = values[..., 0] > 200
        matrices, parameters = estimate_motion(
            values, grid, reference=values[..., 0], mask=mask, centre=centre
        )
        found.append(parameters[1])
        still, inside = resample_series(values, grid, matrices, points, (8, 9, 7))
        images.append(still[..., 1])
        assert np.corrcoef(still[inside][:, 1], head(points)[inside.ravel()])[0, 1] > 0.97
    np.testing.assert_allclose(found[0][:3], truth[1, :3], atol=0.3)
    np.testing.assert_allclose(found[0][3:], truth[1, 3:], atol=6e-3)
    np.testing.assert_allclose(found[1][:3], found[0][:3], atol=0.05)
    np.testing.assert_allclose(found[1][3:], found[0][3:], atol=1e-3)
    np.testing.assert_allclose(images[1], images[0], atol=5)  # of some 800


# Times


@pytest.mark.parametrize(
    ("sidecar", "header", "unit", "expected"),
    [
        ({}, 2.0, "sec", 2.0),
        ({}, 1500.0, "msec", 1.5),
        ({"RepetitionTime": 2.0}, 2.0, "sec", 2.0),
        ({"RepetitionTime": 0.8}, 1.0, "sec", 0.8),
        ({"RepetitionTime": 2.0}, 2.5, "sec", "2.0 s in its JSON and 2.5 s in its header"),
        ({"RepetitionTime": 2.0}, 2.01, "sec", "2.0 s in its JSON and 2.01 s in its header"),
        ({"RepetitionTime": 2000}, 2.0, "sec", "RepetitionTime is 2000 in its JSON"),
        ({}, 0.0, "sec", "none in its header"),
        # a step without a unit is seconds, but for the 1 of converters that know none
        ({}, 2.0, None, 2.0),
        ({"RepetitionTime": 2.5}, 2.0, None, "2.5 s in its JSON and 2 s in its header"),
        ({"RepetitionTime": 2.0}, 1.0, None, 2.0),
        ({}, 1.0, None, "none in its header"),
        # sparse sampling
        ({"VolumeTiming": [0.0, 2.5, 5.0]}, 2.5, "sec", 2.5),
        ({"VolumeTiming": [0.0, 2.5, 5.0]}, 2.0, "sec", "2.5 s in its JSON and 2 s in its header"),
        ({"VolumeTiming": [0.0, 2.0, 7.0]}, 2.0, "sec", r"are 2 to 5 s apart \(VolumeTiming\)"),
        ({"VolumeTiming": 2.0}, 2.0, "sec", "VolumeTiming is no list of seconds"),
    ],
)
def test_the_repetition_time_is_told_once_or_alike(tmp_path, sidecar, header, unit, expected):
    """The check before any job and the reading inside of it say the same."""
    path = write(tmp_path / "x.nii", rng_values, tr=header, unit=unit)

    for read in (
        lambda: bids.repetition_time(path, sidecar, bids.read_header(path)),
        lambda: read_timing(nib.load(path), sidecar, path).repetition_time,
    ):
        if isinstance(expected, str):
            with pytest.raises(InputError, match=expected):
                read()
        else:
            assert read() == pytest.approx(expected, abs=1e-6)


def test_slices_of_several_bands_are_recorded_at_a_time(tmp_path):
    path = write(tmp_path / "x.nii", np.repeat(rng_values, 2, axis=2)[:, :, :9])
    times = [0.0, 1.0, 0.5] * 3
    timing = read_timing(nib.load(path), {"RepetitionTime": TR, "SliceTiming": times}, path)
    assert timing.slice_times == tuple(times)
    assert timing.reference_time == pytest.approx(0.5)  # in the middle of the acquisition
    back = {"RepetitionTime": TR, "SliceTiming": times, "SliceEncodingDirection": "k-"}
    assert read_timing(nib.load(path), back, path).slice_times == tuple(times[::-1])


class StoppedError(Exception):
    """In place of the run."""


def started(path, metadata, monkeypatch, caplog):
    """Return the workflow that a run starts, and what its log says by then."""
    seen = []

    def stop(workflow, **_):
        seen.append(workflow)
        raise StoppedError

    monkeypatch.setattr(bold_module, "run_workflow", stop)
    sidecar = path.with_suffix(".json")
    sidecar.write_text(json.dumps(metadata))
    config = check_config({"study": "x", "input": {"bids": "x"}})
    with caplog.at_level(logging.INFO), pytest.raises(StoppedError):
        bold_module.preprocess_bold(
            path,
            sidecars=[sidecar],
            anatomy={},
            subject="01",
            run="func/x",
            outputs={},
            options=config["preprocess"],
            seed=1,
            log=path.with_suffix(".log"),
            temporary=path.parent,
        )
    return seen[0], caplog.text


def test_missing_slice_times_are_stated_not_guessed(tmp_path, monkeypatch, caplog):
    path = write(tmp_path / "x.nii", rng_values)
    assert read_timing(nib.load(path), {"RepetitionTime": TR}, path).slice_times is None
    workflow, told = started(path, {"RepetitionTime": TR}, monkeypatch, caplog)
    assert "no SliceTiming in the sidecar: slices are not corrected" in told
    assert not isdefined(workflow.get_node("resample").inputs.slice_times)
    times = [0.0, 0.4, 0.8, 1.2, 1.6]
    caplog.clear()
    workflow, told = started(
        path, {"RepetitionTime": TR, "SliceTiming": times}, monkeypatch, caplog
    )
    assert "not corrected" not in told.replace("distortion is not corrected", "")
    assert workflow.get_node("resample").inputs.slice_times == times


def test_runs_of_different_length_are_fitted_each_by_itself(tmp_path):
    """Together they give what each gives alone."""
    inputs = {key: [] for key in ("bold", "mask", "sidecar", "events", "runs")}
    rng = np.random.default_rng(8)
    for number, n in enumerate((24, 40)):
        stem = tmp_path / f"run-{number}"
        values = rng.normal(500, 10, (*SHAPE, n)).astype(np.float32)
        inputs["bold"].append(write(f"{stem}.nii", values))
        inputs["mask"].append(write(f"{stem}_mask.nii", np.ones(SHAPE, np.uint8)))
        (tmp_path / f"run-{number}.json").write_text(json.dumps({"RepetitionTime": TR}))
        inputs["sidecar"].append(f"{stem}.json")
        inputs["events"].append(events(f"{stem}.tsv", onsets=np.arange(2.0, 2 * n - 16, 10)))
        inputs["runs"].append({"session": None, "run": str(number)})
    names = {"subject": "01", "task": "x", "space": "T1w", "confound_columns": "none"}
    fit_glm(**inputs, **names, out=tmp_path / "all.zarr")
    together = store.open(tmp_path / "all.zarr", "betas").load()
    assert together.sizes["time"] == 24 + 40
    for number in range(2):
        one = {key: values[number : number + 1] for key, values in inputs.items()}
        fit_glm(**one, **names, out=tmp_path / "one.zarr")
        alone = store.open(tmp_path / "one.zarr", "betas").load()
        rows = together.run.values == str(number)
        np.testing.assert_array_equal(together.beta.values[rows], alone.beta.values)


def test_a_burst_of_motion_is_followed_and_scrubbed():
    """A head that jumps away for two volumes is found there, and again after it is back."""
    affine = np.diag([8.0, 8, 8, 1])
    affine[:3, 3] = -84, -120, -60
    centre = np.array([0.0, -15, 20])
    truth = np.zeros((14, 6))
    truth[6:8] = [7.0, -5, 6, 0.10, -0.08, 0.06]
    series = moved_series(affine, truth, centre, shape=(22, 27, 21), noise=5.0)
    _, found = estimate_motion(
        series, affine, reference=series[..., 0], mask=series[..., 0] > 200, centre=centre
    )
    np.testing.assert_allclose(found[:, :3], truth[:, :3], atol=0.5)
    np.testing.assert_allclose(found[:, 3:], truth[:, 3:], atol=0.012)
    moved = np.abs(np.diff(found * [1, 1, 1, 50, 50, 50], axis=0)).sum(axis=1)
    displacement = np.r_[np.nan, moved]
    out = scrubbed_volumes(displacement, np.full(14, 1.0), scrub=Scrub(fd=2.0, segment=3))
    # away, the volume within the burst, and back
    assert out.tolist() == [6, 7, 8]


# What studies have, and have not


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("motion6", None),
        (["trans_?", "rot_?"], None),
        ("motion24", "has no column trans_x_derivative1, which motion24 takes"),
        ("compcor", "has no column trans_x_derivative1, which motion24 takes"),
        ("motion6+compcor", "tells no retained components of acompcor"),
        ("motion6+cmpcor", "'cmpcor' is no strategy: did you mean 'compcor'"),
    ],
)
def test_what_confounds_lack_is_found_before_any_job(tmp_path, wanted, message):
    config = study(tmp_path)
    names = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    table = "\n".join(["\t".join(names), *["\t".join(["0.1"] * 6)] * 20])
    for run in (1, 2):
        stem = tmp_path / f"out/sub-01/func/sub-01_task-objects_run-{run}"
        tiny.nifti(Path(f"{stem}_space-T1w_desc-preproc_bold.nii.gz"), (*tiny.SHAPE, 20))
        tiny.nifti(Path(f"{stem}_space-T1w_desc-brain_mask.nii.gz"), tiny.SHAPE)
        Path(f"{stem}_desc-confounds_timeseries.tsv").write_text(table)
        Path(f"{stem}_space-T1w_desc-preproc_bold.json").write_text('{"RepetitionTime": 2.0}')
    config["input"]["derivatives"] = str(tmp_path / "out")
    config["regions"]["space"] = "T1w"
    config["glm"] = {"space": "T1w", "confound_columns": wanted}
    with pytest.raises(InputError, match=message) if message else nullcontext():
        check_inputs(load_study(config))


def study(folder, *, sessions=(), t1w=1):
    """A raw study of one subject; return its config."""
    config = tiny.make(folder, subjects=("01",), runs=(1, 2))
    subject = folder / "bids/sub-01"
    if t1w != 1:
        (subject / "anat/sub-01_T1w.nii.gz").unlink()
        for run in range(1, t1w + 1):
            write(subject / f"anat/sub-01_run-{run}_T1w.nii.gz", np.ones((12, 12, 12), "f4"))
    for session in sessions:
        for file in sorted([*subject.glob("func/*"), *subject.glob("anat/*")]):
            name = file.name.replace("sub-01_", f"sub-01_ses-{session}_")
            place = subject / f"ses-{session}" / file.parent.name / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    if sessions:
        for file in [*subject.glob("func/*"), *subject.glob("anat/*")]:
            file.unlink()
    config["input"] = {"bids": str(folder / "bids")}
    for key in ("atlas", "labels"):
        config["regions"][key] = str(folder / config["regions"][key])
    return config


def test_two_t1w_are_both_taken(tmp_path):
    loaded = load_study(study(tmp_path, t1w=2))
    names = [path.name for path in loaded.subjects["01"].t1w]
    assert names == ["sub-01_run-1_T1w.nii.gz", "sub-01_run-2_T1w.nii.gz"]


def test_without_a_t1w_runs_go_to_the_template(tmp_path):
    config = study(tmp_path, t1w=0)
    loaded = load_study(config)
    assert loaded.subjects["01"].t1w == ()
    assert len(loaded.subjects["01"].runs) == 2
    config["preprocess"] = {"spaces": ["MNI152NLin2009aSym", "T1w"]}
    with pytest.raises(InputError, match=r"sub-01 has no T1w .* take T1w out of preprocess.spaces"):
        load_study(config)
    config.pop("preprocess")
    config["regions"]["space"] = "T1w"
    with pytest.raises(InputError, match="regions are in T1w and sub-01's data in MNI152"):
        load_study(config)


def test_sessions_share_one_anatomy_and_keep_their_names(tmp_path):
    """As in fMRIPrep: all T1w of a subject make one reference, runs stay in their sessions."""
    loaded = load_study(study(tmp_path, sessions=("pre", "post")))
    subject = loaded.subjects["01"]
    assert [path.parts[-3] for path in subject.t1w] == ["ses-post", "ses-pre"]
    assert [run.name for run in subject.of("objects")] == [
        f"ses-{session}_run-{run}" for session in ("post", "pre") for run in (1, 2)
    ]
    stem = "ses-pre/func/sub-01_ses-pre_task-objects_run-1"
    run = loaded.run("01", stem)
    assert (run.session, run.label, run.stem) == ("pre", "1", stem)
    assert run.events.name == "sub-01_ses-pre_task-objects_run-1_events.tsv"
    check = bids.check_run(run, stimulus_column="auto", stimuli=None)
    assert check.shape[3] == 20
