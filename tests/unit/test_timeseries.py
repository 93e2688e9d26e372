"""Cleaning of continuous runs, and time series made elsewhere: from files to a store."""

import json
import weakref

import dask.array as da
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.signal import clean

from isocortex import bids, store
from isocortex.errors import InputError
from isocortex.glm import clean_bold, import_timeseries, timeseries
from isocortex.glm.timeseries import read_columns, volume_ceiling
from isocortex.provenance import directory_digest
from isocortex.study import check_inputs, load_study

SHAPE, TR, N_VOLUMES = (4, 3, 2), 1.5, 90
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])


def save(path, data):
    image = nib.Nifti1Image(data, AFFINE)
    if data.ndim == 4:
        image.header.set_zooms((3, 3, 3, TR))
        image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
    return str(path)


def film(path, *, onset=3.0, duration=120.0):
    rows = {"onset": [onset], "duration": [duration], "trial_type": ["film"],
            "stim_file": ["film.mp4"]}  # fmt: skip
    pd.DataFrame(rows).to_csv(path, sep="\t", index=False)
    return str(path)


@pytest.fixture
def study(tmp_path):
    """Two runs, the first with two volumes before steady state; keywords of `clean_bold`."""
    rng = np.random.default_rng(1)
    inputs = {key: [] for key in ("bold", "mask", "confounds", "sidecar", "events", "runs")}
    for run in (1, 2):
        stem = tmp_path / f"sub-01_run-{run}"
        data = 500 + 10 * rng.standard_normal((*SHAPE, N_VOLUMES))
        data += 20 * np.linspace(-1, 1, N_VOLUMES) ** 2
        mask = np.ones(SHAPE, np.uint8)
        if run == 1:
            data[..., :2] += 300
        else:
            mask[0, 0, 0] = 0
            data[1, 1, 1] = 7
        inputs["bold"].append(save(f"{stem}_bold.nii.gz", data.astype(np.float32)))
        inputs["mask"].append(save(f"{stem}_mask.nii.gz", mask))
        frame = pd.DataFrame(
            {
                f"{kind}_{axis}": rng.standard_normal(N_VOLUMES)
                for kind in ("trans", "rot")
                for axis in "xyz"
            }
        )
        if run == 1:
            for volume in (0, 1):
                frame[f"non_steady_state_outlier0{volume}"] = np.eye(N_VOLUMES, dtype=int)[volume]
        frame.to_csv(f"{stem}_confounds.tsv", sep="\t", index=False)
        inputs["confounds"].append(f"{stem}_confounds.tsv")
        timing = {"RepetitionTime": TR, "StartTime": 0.7, "SliceTimingCorrected": True}
        (tmp_path / f"sub-01_run-{run}_bold.json").write_text(
            json.dumps(timing if run == 1 else {"RepetitionTime": TR})
        )
        inputs["sidecar"].append(f"{stem}_bold.json")
        inputs["events"].append(film(f"{stem}_events.tsv"))
        inputs["runs"].append({"session": None, "run": f"0{run}"})
    return {**inputs, "out": tmp_path / "out" / "bold.zarr", "subject": "01", "task": "film",
            "space": "T1w"}  # fmt: skip


def test_cleaned_signal_is_that_of_nilearn_without_the_outlying_volumes(study):
    manifest = clean_bold(**study, high_pass=0.01, code="abc")
    assert manifest == study["out"].with_suffix(".json")
    data = store.open(study["out"], "timeseries").load()
    assert dict(data.sizes) == {"volume": 178, "voxel": 22, "event": 2}
    assert data.attrs["n_volumes_left_out"] == 2
    assert data.attrs["n_voxels_constant"] == 1
    assert np.allclose(data["time"].values[:2], 0.7 + 2 * TR + TR * np.arange(2))
    assert np.allclose(data["time"].values[88:90], TR / 2 + TR * np.arange(2))
    assert list(data["event_stimulus"].values) == ["film.mp4"] * 2
    assert list(data["event_run"].values) == ["01", "02"]
    assert np.isfinite(data["tsnr"].values).all()
    where = tuple(data[axis].values for axis in "ijk")
    for number, rows in enumerate((slice(0, 88), slice(88, 178))):
        series = nib.load(study["bold"][number]).get_fdata()[where].T
        confounds = pd.read_csv(study["confounds"][number], sep="\t")
        steady = slice(2, None) if number == 0 else slice(None)
        mean = series[steady].mean(0)
        # cosines of the whole run: it is what the volumes' times say
        cosines = clean.__globals__["create_cosine_drift"](0.01, TR * np.arange(N_VOLUMES))
        regressors = np.column_stack([cosines, confounds.filter(regex="trans|rot")])[steady]
        wanted = clean(
            100 * (series[steady] / mean - 1),
            confounds=regressors,
            standardize=False,
            standardize_confounds=True,
            detrend=False,
        )
        wanted -= wanted.mean(0)
        np.testing.assert_allclose(data["signal"].values[rows], wanted, atol=2e-5)


def test_leaving_a_volume_out_is_giving_it_a_regressor(study):
    clean_bold(**study)
    data = store.open(study["out"], "timeseries").load()
    voxel = tuple(int(data[axis].values[0]) for axis in "ijk")
    series = nib.load(study["bold"][0]).get_fdata()[voxel]
    confounds = pd.read_csv(study["confounds"][0], sep="\t").to_numpy(float)
    n = np.arange(N_VOLUMES)
    order = int(np.floor(2 * N_VOLUMES * 0.01 * TR))
    cosines = [np.cos(np.pi / N_VOLUMES * (n + 0.5) * k) for k in range(1, order + 1)]
    design = np.column_stack([np.ones(N_VOLUMES), *cosines, confounds])
    percent = 100 * (series / series[2:].mean() - 1)
    residual = percent - design @ np.linalg.lstsq(design, percent, rcond=None)[0]
    assert np.abs(residual[:2]).max() < 1e-8
    np.testing.assert_allclose(data["signal"].values[:88, 0], residual[2:], atol=1e-4)


def test_cores_do_not_change_the_bytes(study):
    clean_bold(**study)
    first = directory_digest(study["out"])
    clean_bold(**study, threads=3)
    assert directory_digest(study["out"]) == first


def test_events_beyond_the_run_or_without_stimulus_are_refused(study):
    film(study["events"][1], onset=140)
    with pytest.raises(InputError, match=r"run-2_events.tsv: event 1 begins at 140 s"):
        clean_bold(**study)
    film(study["events"][1])
    with pytest.raises(InputError, match=r"names no stimulus.*glm\.trial_types"):
        clean_bold(**study, trial_types=["house"])


def test_ceiling_from_repeats_is_the_planted_share():
    rng = np.random.default_rng(0)
    n, tr = 300, 2.0
    signal = rng.standard_normal((n, 60))
    share = np.repeat([0.0, 0.3, 0.8], 20)
    runs, times = np.repeat(["1", "2", "3"], n), np.tile(tr * (np.arange(n) + 0.5), 3)
    values = np.concatenate(
        [np.sqrt(share) * signal + np.sqrt(1 - share) * rng.standard_normal((n, 60))
         for _ in range(3)]
    )  # fmt: skip
    events = [(run, 0.0, n * tr, "film") for run in ("1", "2", "3")]
    got = volume_ceiling(da.from_array(values), runs, times, events, tr=tr)
    means = got.reshape(3, 20).mean(1)
    assert np.abs(means[1:] - [0.3, 0.8]).max() < 0.03
    assert means[0] < 0.05
    once = volume_ceiling(da.from_array(values[:n]), runs[:n], times[:n], events[:1], tr=tr)
    assert np.isnan(once).all()


# Time series that were cleaned elsewhere


@pytest.fixture
def columns(tmp_path):
    """Two runs of 7 locations, one of them constant; keywords of `import_timeseries`."""
    rng = np.random.default_rng(2)
    values = rng.standard_normal((2, 40, 7)).astype(np.float32)
    values[1, :, 3] = 0
    files = []
    for run in (0, 1):
        np.save(tmp_path / f"run{run}.npy", values[run])
        files.append(str(tmp_path / f"run{run}.npy"))
    given = {
        "files": files,
        "events": [film(tmp_path / f"run{run}_events.tsv", duration=30) for run in (1, 2)],
        "tr": 1.2,
        "runs": [{"session": "", "run": "1"}, {"session": "", "run": "2"}],
        "out": tmp_path / "out" / "series.zarr",
        "subject": "01",
        "task": "film",
    }
    return values, given


def test_plain_columns_are_taken_over(columns):
    values, given = columns
    import_timeseries(**given, space="T1w")
    data = store.open(given["out"], "timeseries").load()
    kept = [0, 1, 2, 4, 5, 6]
    assert np.array_equal(data["signal"].values, values.reshape(80, 7)[:, kept])
    assert list(data["i"].values) == kept
    assert data.attrs["shape"] == [7, 1, 1]
    assert data.attrs["space"] == "none"
    assert np.array_equal(data.attrs["affine"], np.eye(4))
    assert np.allclose(data["time"].values[40:43], [0.6, 1.8, 3.0])
    assert list(data["run"].values[[0, 79]]) == ["1", "2"]


def test_one_run_of_columns_is_in_memory_at_a_time(columns, monkeypatch):
    _, given = columns
    seen = []

    def read(path):
        assert not [one for one in seen if one() is not None]
        values = read_columns(path)
        seen.append(weakref.ref(values))
        return values

    monkeypatch.setattr(timeseries, "read_columns", read)
    import_timeseries(**given)
    assert len(seen) >= 2


@pytest.mark.parametrize("kind", ["tsv", "tsv.gz", "headless", "csv", "gii", "npy"])
def test_every_kind_of_file_is_read_alike(columns, tmp_path, kind):
    values = columns[0][0]
    path = tmp_path / f"series.{'tsv' if kind == 'headless' else kind}"
    if kind == "gii":
        arrays = [nib.gifti.GiftiDataArray(row) for row in values]
        nib.gifti.GiftiImage(darrays=arrays).to_filename(path)
    elif kind == "npy":
        np.save(path, values)
    elif kind == "headless":
        pd.DataFrame(values).to_csv(path, sep="\t", index=False, header=False)
    else:
        frame = pd.DataFrame(values)
        if kind != "csv":  # there the header counts from 0, here it has a time
            frame.insert(0, "time", np.arange(40))
        frame.to_csv(path, sep="," if kind == "csv" else "\t", index=False)
    assert np.allclose(read_columns(path), values, atol=1e-6)
    assert bids.count_volumes(path) == 40


def test_images_are_taken_over_with_their_grid(tmp_path):
    rng = np.random.default_rng(3)
    data = rng.standard_normal((*SHAPE, 40)).astype(np.float32)
    data[0] = 0
    file = save(tmp_path / "a.nii.gz", data)
    given = {"files": [file], "events": [film(tmp_path / "e.tsv", duration=30)], "tr": TR,
             "runs": [{"session": "", "run": "1"}], "out": tmp_path / "s.zarr", "subject": "01",
             "task": "film", "space": "T1w"}  # fmt: skip
    import_timeseries(**given)
    got = store.open(given["out"], "timeseries").load()
    where = tuple(got[axis].values for axis in "ijk")
    assert got.sizes["voxel"] == 18
    assert got.attrs["space"] == "T1w"
    assert np.array_equal(got["signal"].values, data[where].T)
    mask = np.zeros(SHAPE, np.uint8)
    mask[2] = 1
    import_timeseries(**given, mask=[save(tmp_path / "m.nii.gz", mask)])
    assert set(store.open(given["out"], "timeseries")["i"].values) == {2}


def test_more_locations_than_an_axis_of_nifti_holds(tmp_path):
    values = np.random.default_rng(4).standard_normal((3, 40_000)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    given = {"files": [tmp_path / "a.npy"], "events": [film(tmp_path / "e.tsv", duration=2,
             onset=0)], "tr": TR, "runs": [{"session": "", "run": "1"}], "subject": "01",
             "task": "film", "out": tmp_path / "s.zarr"}  # fmt: skip
    import_timeseries(**given)
    data = store.open(given["out"], "timeseries")
    assert data.attrs["shape"] == [32_767, 2, 1]
    position = data["i"].values + 32_767 * data["j"].values
    assert np.array_equal(position, np.arange(40_000))


def test_runs_that_do_not_fit_are_refused(columns, tmp_path):
    values, given = columns
    np.save(tmp_path / "run1.npy", values[1][:, :5])
    with pytest.raises(InputError, match=r"5 locations, .*run0.npy 7"):
        import_timeseries(**given)
    np.save(tmp_path / "run1.npy", values[1][0])
    with pytest.raises(InputError, match="give time x location"):
        import_timeseries(**given)
    with pytest.raises(InputError, match="time x location"):
        bids.count_volumes(tmp_path / "run1.npy")
    (tmp_path / "a.gii").write_text("nothing")
    with pytest.raises(InputError, match="no GIFTI"):
        bids.count_volumes(tmp_path / "a.gii")


# The entry to the workflow


@pytest.fixture
def given(tmp_path):
    """A table of two runs of two subjects, and the config that names it."""
    rows = ["subject\tfile\trun\ttask\ttr\tevents\tmask"]
    (tmp_path / "stimuli").mkdir()
    (tmp_path / "stimuli" / "film.npy").write_bytes(b"")
    for subject in ("01", "02"):
        for run in "12":
            stem = f"sub-{subject}_run-{run}"
            np.save(tmp_path / f"{stem}.npy", np.zeros((40, 7), np.float32))
            film(tmp_path / f"{stem}_events.tsv", duration=30)
            rows.append(f"{subject}\t{stem}.npy\t{run}\tfilm\t1.5\t{stem}_events.tsv\t")
    table = tmp_path / "timeseries.tsv"
    table.write_text("\n".join(rows) + "\n")
    return table, {"study": "s", "input": {"timeseries": str(table)}}


def test_given_series_need_no_regions_and_have_no_trials(given):
    _, config = given
    study = load_study(config)
    assert study.entry == "timeseries"
    assert study.continuous_tasks == ["film"]
    assert study.trial_tasks == study.measures == []
    runs = study.subjects["01"].of("film")
    assert [run.name for run in runs] == ["1", "2"]
    assert {run.tr for run in runs} == {1.5}
    check_inputs(study)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\t1.5\tsub-02_run-1", "\t-1\tsub-02_run-1", "tr of subject 02, run 1 is '-1'"),
        ("\t1.5\tsub-02_run-1", "\t2 s\tsub-02_run-1", "write seconds, above 0"),
        ("\t1.5\tsub-02_run-1", "\t2\tsub-02_run-1", "runs 1 and 2 have different tr"),
        ("sub-02_run-2.npy", "sub-02_run-3.npy", "sub-02_run-3.npy of subject 02 is missing"),
        ("sub-02_run-2.npy\t2", "sub-02_run-2.npy\t1", "subject 02, run 1 is there twice"),
        ("sub-02_run-2.npy\t2", "sub-02_run-2.npy\tr-2", "run 'r-2' of subject 02 is no label"),
        ("sub-02_run-2_events.tsv", "", "subject 02, run 2 has no events"),
        ("\ttr\t", "\tTR\t", "add tr"),
        ("sub-02_run-2.npy", "sub-02_run-2_events.tsv", "2 volumes|1 volumes|needs at least 3"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_told_before_any_job(given, old, new, message):
    table, config = given
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message):
        check_inputs(load_study(config))


def test_events_after_the_last_volume_are_told_before_any_job(given):
    table, config = given
    film(table.parent / "sub-02_run-2_events.tsv", onset=60.0)
    with pytest.raises(InputError, match=r"events start after the last volume's end \(60 s\)"):
        check_inputs(load_study(config))


def test_continuous_tasks_must_be_there_and_have_runs(given, tmp_path):
    _, config = given
    with pytest.raises(InputError, match=r"glm\.continuous_tasks names 'film', and input\.times"):
        load_study(config | {"glm": {"continuous_tasks": ["film"]}})
    func = tmp_path / "bids" / "sub-01" / "func"
    func.mkdir(parents=True)
    anat = tmp_path / "bids" / "sub-01" / "anat"
    anat.mkdir()
    save(anat / "sub-01_T1w.nii.gz", np.ones(SHAPE, np.float32))
    for task in ("film", "objects"):
        save(func / f"sub-01_task-{task}_bold.nii.gz", np.ones((*SHAPE, 5), np.float32))
    atlas = save(tmp_path / "atlas.nii.gz", np.ones(SHAPE, np.int16))
    (tmp_path / "atlas.tsv").write_text("index\tname\n1\tA\n")
    raw = {
        "study": "s",
        "input": {"bids": str(tmp_path / "bids")},
        "regions": {"atlas": atlas, "labels": str(tmp_path / "atlas.tsv"),
                    "space": "MNI152NLin2009aSym"},
        "rsa": {"measures": ["correlation"]},
    }  # fmt: skip
    study = load_study(raw | {"glm": {"continuous_tasks": ["film"]}})
    assert study.continuous_tasks == ["film"]
    assert study.trial_tasks == ["objects"]
    with pytest.raises(InputError, match="names 'flim', which the study has not: did you mean 'f"):
        load_study(raw | {"glm": {"continuous_tasks": ["flim"]}})
    chosen = load_study(raw | {"glm": {"continuous_tasks": ["film"]}, "tasks": ["objects"]})
    assert chosen.continuous_tasks == []
    assert chosen.trial_tasks == ["objects"]
