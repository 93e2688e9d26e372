"""The index finds what BIDS says, by the inheritance principle, whatever the study's shape."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest

from isocortex import bids
from isocortex.errors import InputError


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_sessions_tasks_runs_and_a_missing_run(tmp_path):
    touch(
        tmp_path,
        "task-a_bold.json",
        "task-b_events.tsv",
        "sub-02/ses-x/sub-02_ses-x_task-a_bold.json",
        *(f"sub-02/ses-x/func/sub-02_ses-x_task-a_run-{r}_bold.nii.gz" for r in (1, 2, 10)),
        "sub-02/ses-x/func/sub-02_ses-x_task-a_run-1_events.tsv",
        "sub-02/ses-x/func/sub-02_ses-x_task-a_run-1_sbref.nii.gz",
        "sub-02/ses-y/func/sub-02_ses-y_task-b_bold.nii.gz",
        "sub-02/ses-y/func/sub-02_ses-y_task-b_part-phase_bold.nii.gz",
        "sub-02/ses-x/anat/sub-02_ses-x_T1w.nii.gz",
        "sub-02/ses-x/anat/sub-02_ses-x_part-phase_T1w.nii.gz",
        "sub-01/func/sub-01_task-a_run-2_bold.nii",
    )
    index = bids.index_raw(tmp_path)
    assert list(index) == ["01", "02"]
    two = index["02"]
    assert [run.name for run in two.runs] == ["ses-x_run-1", "ses-x_run-2", "ses-x_run-10", "ses-y"]
    assert two.tasks() == ["a", "b"]
    assert two.runs[0].stem == "ses-x/func/sub-02_ses-x_task-a_run-1"
    assert [p.name for p in two.runs[0].sidecars] == [
        "task-a_bold.json",
        "sub-02_ses-x_task-a_bold.json",
    ]
    assert two.runs[0].events.name == "sub-02_ses-x_task-a_run-1_events.tsv"
    assert two.runs[1].events is None
    assert two.runs[3].events == tmp_path / "task-b_events.tsv"
    assert len(two.t1w) == 1
    assert [run.name for run in index["01"].runs] == ["2"]


def test_runs_that_differ_in_direction_only_have_names_of_their_own(tmp_path):
    touch(
        tmp_path,
        *(f"sub-01/func/sub-01_task-a_dir-{d}_run-1_bold.nii.gz" for d in ("AP", "PA")),
        "sub-01/func/sub-01_task-b_dir-AP_part-mag_bold.nii.gz",
    )
    runs = bids.index_raw(tmp_path)["01"].runs
    assert [run.name for run in runs] == ["dir-AP_run-1", "dir-PA_run-1", "dir-AP"]


@pytest.mark.parametrize(
    ("sidecar", "message"),
    [
        ({"SliceEncodingDirection": "x", "SliceTiming": [0, 1]}, "SliceEncodingDirection is 'x'"),
        ({"SliceEncodingDirection": ""}, "SliceEncodingDirection is ''"),
        ({"SliceTiming": 0.5}, "not a list of numbers"),
        ({"SliceTiming": ["0", "1"]}, "not a list of numbers"),
        ({"SliceTiming": []}, "0 values for the 2 slices"),
        ({"SliceTiming": [0.0, 2.5]}, "0 to 2.5 s"),
    ],
)
def test_bad_slice_times_are_told(sidecar, message):
    with pytest.raises(InputError, match=message):
        bids.slice_times("x", sidecar, (4, 4, 2, 9), 2.0)


def test_slice_times_follow_the_axis():
    assert bids.slice_times("x", {}, (4, 4, 2, 9), 2.0) == (None, 2)
    back = {"SliceEncodingDirection": "j-", "SliceTiming": [0, 0.5, 1]}
    assert bids.slice_times("x", back, (4, 3, 2, 9), 2.0) == ((1.0, 0.5, 0.0), 1)


def test_the_background_may_stand_in_a_table_of_labels(tmp_path):
    table = tmp_path / "labels.tsv"
    table.write_text("index\tname\n0\tBackground\n3\tV1\n")
    assert bids.read_labels(table) == {3: "V1"}
    table.write_text("index\tname\n0\tBackground\n")
    with pytest.raises(InputError, match="no region but the background"):
        bids.read_labels(table)


@pytest.mark.parametrize("wanted", [["01"], ["sub-01"]])
def test_subjects_are_chosen_with_or_without_prefix(tmp_path, wanted):
    touch(tmp_path, *(f"sub-{s}/func/sub-{s}_task-a_bold.nii" for s in ("01", "02")))
    assert list(bids.index_raw(tmp_path, subjects=wanted)) == ["01"]
    assert list(bids.index_raw(tmp_path, exclude=wanted)) == ["02"]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["i2", "f4", "u1", "f8"])
def test_header_equals_nibabel(tmp_path, ending, dtype):
    path = tmp_path / f"x{ending}"
    image = nib.Nifti1Image(np.zeros((5, 6, 7, 3), dtype), np.diag([2, 2, 2.5, 1]))
    image.header.set_zooms((2, 2, 2.5, 1500))
    image.header.set_xyzt_units("mm", "msec")
    nib.save(image, path)
    header = bids.read_header(path)
    assert header.shape == (5, 6, 7, 3)
    assert header.repetition_time == pytest.approx(1.5)
    np.testing.assert_allclose(np.reshape(header.affine, (3, 4)), image.affine[:3])


def test_several_gzip_members_are_not_taken_for_damage(tmp_path):
    image = nib.Nifti1Image(np.zeros((5, 6, 7), "f4"), np.eye(4))
    raw = image.to_bytes()
    path = tmp_path / "x.nii.gz"
    path.write_bytes(gzip.compress(raw[:500]) + gzip.compress(raw[500:]))
    assert bids.read_header(path).shape == (5, 6, 7)
    path.write_bytes(gzip.compress(raw[:500]) + gzip.compress(raw[500:-8]))
    with pytest.raises(InputError, match="truncated"):
        bids.read_header(path)


def test_big_endian_headers_are_read(tmp_path):
    path = tmp_path / "x.nii"
    image = nib.Nifti1Image(np.zeros((2, 3, 4), ">i2"), np.eye(4))
    nib.save(nib.Nifti1Image(image.dataobj, np.eye(4), image.header.as_byteswapped(">")), path)
    assert struct.unpack(">i", path.read_bytes()[:4]) == (348,)
    assert bids.read_header(path).shape == (2, 3, 4)


def test_events_duration_may_be_missing(tmp_path):
    (tmp_path / "e.tsv").write_text("onset\tduration\ttrial_type\n1.5\tn/a\tx\n")
    assert bids.read_events(tmp_path / "e.tsv")[0] == {
        "onset": 1.5,
        "duration": 0.0,
        "trial_type": "x",
    }
