"""The GLM in blocks of voxels: scratch files, scaling, averaged repeats and halves."""

import errno
import json
import tracemalloc

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from isocortex import store
from isocortex.errors import InputError
from isocortex.glm import fit_glm, read_series
from isocortex.glm.scratch import RunBlocks, block_size
from isocortex.glm.series import Series
from isocortex.provenance import directory_digest

SHAPE = (9, 8, 7)
TR = 2.0
LENGTHS = (50, 60, 55, 60)
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
SESSIONS = ("a", "a", "a", "b")


def save_bold(path, data):
    image = nib.Nifti1Image(data, AFFINE)
    image.header.set_zooms((3, 3, 3, TR))
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)


@pytest.fixture
def study(tmp_path):
    """Four runs of two sessions; the keywords of `fit_glm`."""
    rng = np.random.default_rng(5)
    inputs = {key: [] for key in ("bold", "mask", "sidecar", "events", "runs")}
    for run, (length, session) in enumerate(zip(LENGTHS, SESSIONS, strict=True), start=1):
        stem = tmp_path / f"run-{run}"
        data = 400 + 30 * run + 10 * rng.standard_normal((*SHAPE, length))
        # Compressed or not, scaled integers or not: all are read
        ending = "nii.gz" if run % 2 else "nii"
        save_bold(f"{stem}_bold.{ending}", data.astype(np.float32 if run < 3 else np.int16))
        mask = rng.random(SHAPE) < 0.9
        mask[0, 0, 0] = run != 2
        nib.Nifti1Image(mask.astype(np.uint8), AFFINE).to_filename(f"{stem}_mask.nii.gz")
        (tmp_path / f"run-{run}.json").write_text(json.dumps({"RepetitionTime": TR}))
        pd.DataFrame(
            {
                "onset": [2.0 + 11 * k + run for k in range(8)],
                "duration": 1.0,
                "trial_type": ["face", "house"] * 4,
                "stim_file": [f"{k % 3}.png" for k in range(8)],
            }
        ).to_csv(f"{stem}_events.tsv", sep="\t", index=False)
        inputs["bold"].append(f"{stem}_bold.{ending}")
        inputs["mask"].append(f"{stem}_mask.nii.gz")
        inputs["sidecar"].append(f"{stem}.json")
        inputs["events"].append(f"{stem}_events.tsv")
        inputs["runs"].append({"session": session, "run": f"ses-{session}_run-{run}"})
    return {
        **inputs,
        "out": tmp_path / "betas.zarr",
        "subject": "01",
        "task": "objects",
        "space": "T1w",
        "confound_columns": "none",
    }


def shared_mask(study):
    return np.all([nib.load(path).get_fdata() > 0 for path in study["mask"]], axis=0)


def fitted(study, **options):
    fit_glm(**{**study, **options})
    return store.open(study["out"], "betas").load()


# Scratch files


def test_blocks_give_back_what_was_written(tmp_path):
    rng = np.random.default_rng(0)
    runs = [rng.standard_normal((rows, 23)).astype(np.float32) for rows in (4, 7, 1)]
    blocks = RunBlocks(tmp_path / "x", [4, 7, 1], 23, block_voxels=5)
    assert [part.stop - part.start for part in blocks.blocks] == [5, 5, 5, 5, 3]
    for number, values in enumerate(runs):
        for first in range(0, len(values), 3):  # rows a few at a time, as volumes are read
            blocks.write(number, slice(0, 23), values[first : first + 3], first_row=first)
    for part in (slice(0, 23), slice(5, 10), slice(3, 17), slice(22, 23)):
        np.testing.assert_array_equal(blocks.read(1, part), runs[1][:, part])
        np.testing.assert_array_equal(blocks.read_all(part), np.concatenate(runs)[:, part])
    np.testing.assert_array_equal(blocks.read_row(1, 6), runs[1][6])
    view = blocks.select([2, 0])
    assert view.n_rows == [1, 4]
    np.testing.assert_array_equal(view.read(1, slice(0, 23)), runs[0])
    with pytest.raises(ValueError, match="write whole blocks"):
        blocks.write(0, slice(0, 3), runs[0][:, :3])
    blocks.write_columns(0, slice(6, 8), np.zeros((4, 2)))
    expected = runs[0].copy()
    expected[:, 6:8] = 0
    np.testing.assert_array_equal(blocks.read(0, slice(0, 23)), expected)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    blocks = RunBlocks(tmp_path / "x", [300], 10_000)
    with pytest.raises(InputError, match=r"no space left for a scratch file of 11 MiB.*TMPDIR"):
        blocks.write(0, slice(0, 10_000), np.zeros((1, 10_000)))


def test_blocks_are_narrower_where_runs_are_long():
    assert block_size([150, 150]) == 4096
    assert block_size([3000]) == 2048
    assert block_size([300] * 40) == 512
    assert block_size([10**6]) == 128


def test_series_are_those_of_the_images(study, tmp_path):
    mask = shared_mask(study)
    series = Series(tmp_path, study["bold"], mask, block_voxels=50)
    assert series.n_volumes == list(LENGTHS)
    assert series.n_voxels == mask.sum()
    for run, path in enumerate(study["bold"]):
        raw = nib.load(path).get_fdata()[mask].T
        np.testing.assert_allclose(read_series(path, mask), raw, rtol=1e-6)
        found = np.concatenate([series.read(run, part) for part in series.blocks], axis=1)
        np.testing.assert_allclose(found, 100 * (raw / raw.mean(axis=0) - 1), atol=1e-4)


def test_series_of_a_session_have_one_mean(study, tmp_path):
    mask = shared_mask(study)
    series = Series(tmp_path, study["bold"], mask, groups=SESSIONS)
    raw = [nib.load(path).get_fdata()[mask].T for path in study["bold"]]
    together = np.concatenate(raw[:3]).mean(axis=0)
    whole = slice(0, series.n_voxels)
    np.testing.assert_allclose(series.read(1, whole), 100 * (raw[1] / together - 1), atol=1e-4)
    np.testing.assert_allclose(
        series.read(3, whole), 100 * (raw[3] / raw[3].mean(axis=0) - 1), atol=1e-4
    )


def test_a_view_decides_alone_which_voxels_are_usable(study, tmp_path):
    data = nib.load(study["bold"][1]).get_fdata()
    mask = shared_mask(study)
    hole = tuple(axis[0] for axis in np.nonzero(mask))
    data[(*hole, 3)] = np.nan
    save_bold(study["bold"][1], data.astype(np.float32))
    series = Series(tmp_path, study["bold"], mask)
    odd, even = series.select([0, 2]), series.select([1, 3])
    assert series.usable.sum() == even.usable.sum() == mask.sum() - 1
    assert odd.usable.all()
    assert np.isnan(even.read(1, slice(0, 2))[:, 0]).all()  # that of the run beside it, too
    assert np.isfinite(odd.read(1, slice(0, 2))).all()
    assert series.count_bad()["n_voxels_nan"] == 1


# The fit


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "lss", "noise_model": "ar1"},
        {"noise_model": "ar1", "scaling": "session", "split_half": True, "repeats": "average"},
    ],
)
def test_threads_change_nothing(study, options):
    digests = set()
    for threads in (1, 3):
        fit_glm(**study, **options, threads=threads)
        digests.add(directory_digest(study["out"]))
    assert len(digests) == 1


def test_betas_of_a_session_differ_by_its_gain(study):
    by_run, by_session = fitted(study), fitted(study, scaling="session")
    mask = shared_mask(study)
    means = [nib.load(path).get_fdata()[mask].mean(axis=1) for path in study["bold"]]
    total = np.average(means[:3], axis=0, weights=LENGTHS[:3])
    for run in range(3):
        rows = slice(8 * run, 8 * run + 8)
        np.testing.assert_allclose(
            by_session.beta[rows], by_run.beta[rows] * (means[run] / total), atol=1e-3
        )
    np.testing.assert_array_equal(by_session.beta[24:], by_run.beta[24:])
    assert "mean over the runs of the session." in by_session.attrs["methods"]


def test_averaged_repeats_are_the_means_of_betas(study):
    single, averaged = fitted(study), fitted(study, repeats="average")
    table = pd.DataFrame(
        {key: single[key].values for key in ("session", "stimulus", "condition", "beta_se")}
    )
    groups = table.groupby(["session", "stimulus", "condition"]).indices
    assert averaged.sizes["trial"] == len(groups) == 12
    for row in range(12):
        key = tuple(
            str(averaged[name].values[row]) for name in ("session", "stimulus", "condition")
        )
        members = groups[key]
        assert averaged.n_repeats.values[row] == len(members)
        np.testing.assert_allclose(averaged.beta[row], single.beta[members].mean(axis=0), atol=1e-6)
        assert averaged.beta_se.values[row] == pytest.approx(
            np.sqrt((table.beta_se[members] ** 2).sum()) / len(members)
        )
    # The one run of a session is itself; of several none.
    assert set(averaged.run.values) == {"ses-a_run-all", "ses-b_run-4"}
    np.testing.assert_array_equal(averaged.noise_ceiling, single.noise_ceiling)
    assert "averaged within a session." in averaged.attrs["methods"]
    assert "half" not in averaged


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "lss", "scaling": "session"},
        {"noise_model": "ar1", "scaling": "session", "repeats": "average"},
    ],
)
def test_halves_share_no_information(study, options):
    before = fitted(study, split_half=True, **options)
    assert set(before.half.values) == {1, 2}
    if "repeats" not in options:
        assert before.half.values.tolist() == [1] * 8 + [2] * 8 + [1] * 8 + [2] * 8
    data = nib.load(study["bold"][2]).get_fdata()
    rng = np.random.default_rng(9)
    save_bold(study["bold"][2], (700 + 40 * rng.standard_normal(data.shape)).astype(np.float32))
    after = fitted(study, split_half=True, **options)
    second = before.half.values == 2
    assert before.beta.values[second].tobytes() == after.beta.values[second].tobytes()
    assert np.abs(before.beta.values[~second] - after.beta.values[~second]).max() > 0.1
    assert "two halves that share no information" in after.attrs["methods"]


def test_without_halves_a_session_shares_its_mean(study):
    """The leak that halves must not have is there where there are none."""
    before = fitted(study, scaling="session")
    data = nib.load(study["bold"][2]).get_fdata()
    save_bold(study["bold"][2], (2 * data).astype(np.float32))
    after = fitted(study, scaling="session")
    assert np.abs(before.beta.values[8:16] - after.beta.values[8:16]).max() > 0.01


def test_one_run_has_no_halves(study):
    for key in ("bold", "mask", "sidecar", "events", "runs"):
        study[key] = study[key][:1]
    with pytest.raises(InputError, match=r"run-1_bold.*only run.*glm.split_half needs two"):
        fit_glm(**study, split_half=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"estimator": "lss", "lss_others": "condition"}, "the other trials of each condition"),
        ({"noise_model": "ar1"}, "autoregressive noise of first order"),
    ],
)
def test_methods_say_what_was_done(study, options, said):
    betas = fitted(study, **options)
    assert said in betas.attrs["methods"]
    assert betas.attrs["noise_model"] == options.get("noise_model", "ols")


def test_memory_does_not_grow_with_the_brain(tmp_path):
    """Four times the voxels: what is kept of each is a few numbers, no series."""
    peaks = []
    for depth in (10, 40):
        folder = tmp_path / str(depth)
        folder.mkdir()
        shape, length = (40, 40, depth), 40
        rng = np.random.default_rng(0)
        save_bold(folder / "bold.nii", rng.integers(400, 600, (*shape, length), dtype=np.int16))
        nib.Nifti1Image(np.ones(shape, np.uint8), AFFINE).to_filename(folder / "mask.nii")
        (folder / "bold.json").write_text(json.dumps({"RepetitionTime": TR}))
        events = {"onset": [4, 24, 44], "duration": 1.0, "trial_type": "a", "stim_file": "a.png"}
        pd.DataFrame(events).to_csv(folder / "events.tsv", sep="\t", index=False)
        tracemalloc.start()
        fit_glm(
            bold=[folder / "bold.nii"],
            mask=[folder / "mask.nii"],
            sidecar=[folder / "bold.json"],
            events=[folder / "events.tsv"],
            runs=[{"session": None, "run": "1"}],
            out=folder / "betas.zarr",
            subject="01",
            task="t",
            space="T1w",
            confound_columns="none",
        )
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    per_voxel = (peaks[1] - peaks[0]) * 2**20 / (40 * 40 * 30)
    # The series in double precision would be 320 bytes a voxel, and 160 more of residuals
    assert per_voxel < 160, peaks
