"""Which fieldmap belongs to which run, and what is told where the dataset does not say."""

import json
import logging

import nibabel as nib
import numpy as np
import pytest

from isocortex import bids
from isocortex.errors import InputError
from isocortex.fieldmaps_index import (
    NO_FIELDMAP,
    OFF,
    add_fieldmaps,
    check_fieldmaps,
    warn_of_unused,
    without_fieldmaps,
)
from isocortex.fieldmaps_metadata import echo_times, opposite_groups, phase_encoding, units_of

ENCODED = {"PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.04, "RepetitionTime": 2.0}
BOLD = "func/sub-01_task-a_run-{}_bold"
EPI = {"PhaseEncodingDirection": "j", "TotalReadoutTime": 0.04}
ECHOES = {"EchoTime1": 0.004, "EchoTime2": 0.0065}


def write(root, files):
    """Images (one voxel more or less does not matter) with their sidecars; ``.json`` alone."""
    for name, told in files.items():
        path = root / "sub-01" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".json":
            shape = (4, 5, 3, 6) if name.endswith("_bold") else (4, 5, 3)
            nib.save(nib.Nifti1Image(np.ones(shape, "f4"), np.eye(4)), f"{path}.nii.gz")
            path = path.with_name(f"{path.name}.json")
        if told is not None:
            path.write_text(json.dumps(told))


def index(root, files, *, check=True):
    """The indexed subject of a dataset of two runs and the files given."""
    write(root, {BOLD.format(n): ENCODED for n in (1, 2)} | files)
    subject = add_fieldmaps(root, bids.index_raw(root))["01"]
    if check:
        check_fieldmaps(subject)
    return subject


def intended(told, *targets, key="IntendedFor"):
    return told | {key: list(targets) if len(targets) > 1 else targets[0]}


def phasediff(told):
    return {
        "fmap/sub-01_phasediff": ECHOES | told,
        "fmap/sub-01_magnitude1": None,
        "fmap/sub-01_magnitude2": None,
    }


# --- matching ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "func/sub-01_task-a_run-1_bold.nii.gz",
        "bids::sub-01/func/sub-01_task-a_run-1_bold.nii.gz",
        "bids:raw:sub-01/func/sub-01_task-a_run-1_bold.nii.gz",
        "./func/sub-01_task-a_run-1_bold.nii.gz",
        "sub-01/func/sub-01_task-a_run-1_bold.nii",
    ],
)
def test_intended_for_names_runs_in_every_way_that_datasets_do(tmp_path, target):
    subject = index(tmp_path, phasediff({"IntendedFor": target}))
    one, two = subject.runs
    assert one.fieldmap == "phasediff"
    assert (two.fieldmap, "IntendedFor" in two.no_fieldmap) == ("", True)
    found = subject.fieldmaps["phasediff"]
    assert (found.kind, found.stem) == ("phasediff", "fmap/sub-01_fmapid-phasediff")
    assert [path.name for path in found.magnitudes] == [
        "sub-01_magnitude1.nii.gz",
        "sub-01_magnitude2.nii.gz",
    ]
    assert echo_times(found) == (0.004, 0.0065)


def test_sessions_keep_their_fieldmaps_and_paths_from_the_session_are_understood(tmp_path):
    files = {}
    for session in "ab":
        bold = f"func/sub-01_ses-{session}_task-a_bold"
        target = f"{bold}.nii.gz" if session == "a" else f"ses-{session}/{bold}.nii.gz"
        stem = f"ses-{session}/fmap/sub-01_ses-{session}"
        files |= {
            f"ses-{session}/{bold}": ENCODED,
            f"{stem}_fieldmap": {"Units": "rad/s", "IntendedFor": target},
            f"{stem}_magnitude": None,
        }
    write(tmp_path, files)
    subject = add_fieldmaps(tmp_path, bids.index_raw(tmp_path))["01"]
    check_fieldmaps(subject)
    assert [run.fieldmap for run in subject.runs] == ["sesafieldmap", "sesbfieldmap"]
    for run, found in zip(subject.runs, subject.fieldmaps.values(), strict=True):
        assert found.stem == (
            f"ses-{run.session}/fmap/sub-01_ses-{run.session}_fmapid-ses{run.session}fieldmap"
        )
        assert f"ses-{run.session}" in str(found.files[0])
        assert units_of(found) == "rad/s"


def test_b0_fields_come_before_intended_for(tmp_path):
    target = BOLD.format(1) + ".nii.gz"
    files = {BOLD.format(1): ENCODED | {"B0FieldSource": "pe.polar-1"}}
    for direction, axis in (("AP", "j-"), ("PA", "j")):
        told = EPI | {"PhaseEncodingDirection": axis, "B0FieldIdentifier": ["x", "pe.polar-1"]}
        files[f"fmap/sub-01_dir-{direction}_epi"] = told
    subject = index(tmp_path, files | phasediff({"IntendedFor": target}))
    assert subject.runs[0].fieldmap == "pepolar1"
    found = subject.fieldmaps["pepolar1"]
    (first, one), (second, _) = opposite_groups(found)
    assert (first.sign, second.sign, first.axis) == (-1, 1, 1)
    assert one[0].name == "sub-01_dir-AP_epi.nii.gz"
    assert "phasediff" not in subject.fieldmaps


def test_one_identifier_in_two_sessions_is_a_field_of_each(tmp_path):
    files = {}
    for session in "ab":
        stem = f"ses-{session}/fmap/sub-01_ses-{session}"
        files[f"ses-{session}/func/sub-01_ses-{session}_task-a_bold"] = ENCODED | {
            "B0FieldSource": "field"
        }
        files[f"{stem}_fieldmap"] = {"Units": "Hz", "B0FieldIdentifier": "field"}
        files[f"{stem}_magnitude"] = None
    write(tmp_path, files)
    subject = add_fieldmaps(tmp_path, bids.index_raw(tmp_path))["01"]
    check_fieldmaps(subject)
    assert [run.fieldmap for run in subject.runs] == ["sesafield", "sesbfield"]
    for run in subject.runs:
        assert f"ses-{run.session}" in subject.fieldmaps[run.fieldmap].files[0].name


def test_metadata_is_inherited_as_everywhere(tmp_path):
    (tmp_path / "phasediff.json").write_text(json.dumps(ECHOES))
    target = {"IntendedFor": [BOLD.format(n) + ".nii.gz" for n in (1, 2)]}
    files = phasediff({}) | {"fmap/sub-01_phasediff": target}
    subject = index(tmp_path, files)
    assert [path.name for path in subject.fieldmaps["phasediff"].sidecars[0]] == [
        "phasediff.json",
        "sub-01_phasediff.json",
    ]
    assert [run.fieldmap for run in subject.runs] == ["phasediff"] * 2


def test_two_phases_belong_together(tmp_path):
    target = {"IntendedFor": BOLD.format(1) + ".nii.gz"}
    files = {f"fmap/sub-01_phase{n}": target | {"EchoTime": 0.002 * n} for n in (1, 2)}
    subject = index(tmp_path, files | {"fmap/sub-01_magnitude1": None})
    found = subject.fieldmaps["phases"]
    assert [path.name for path in found.files] == [f"sub-01_phase{n}.nii.gz" for n in (1, 2)]
    assert echo_times(found) == (0.002, 0.004)


def test_one_image_is_the_other_half_of_the_run_that_it_opposes(tmp_path):
    targets = [BOLD.format(n) + ".nii.gz" for n in (1, 2)]
    subject = index(tmp_path, {"fmap/sub-01_dir-PA_epi": intended(EPI, *targets)})
    assert [run.fieldmap for run in subject.runs] == ["pepolar"] * 2
    found = subject.fieldmaps["pepolar"]
    assert [path.name for path in found.files] == [
        "sub-01_task-a_run-1_bold.nii.gz",
        "sub-01_dir-PA_epi.nii.gz",
    ]
    assert [group.sign for group, _ in opposite_groups(found)] == [-1, 1]


def test_each_set_of_opposite_images_serves_its_own_runs(tmp_path):
    files = {}
    for run in (1, 2):
        for direction, axis in (("AP", "j-"), ("PA", "j")):
            told = EPI | {"PhaseEncodingDirection": axis}
            name = f"fmap/sub-01_dir-{direction}_run-{run}_epi"
            files[name] = intended(told, BOLD.format(run) + ".nii.gz")
    subject = index(tmp_path, files)
    assert [run.fieldmap for run in subject.runs] == ["run1pepolar", "run2pepolar"]
    assert all("run-1" in path.name for path in subject.fieldmaps["run1pepolar"].files)


# --- what stays as it is -------------------------------------------------------------------


def test_a_run_without_a_fieldmap_says_so(tmp_path, caplog):
    subject = index(tmp_path, {})
    assert {run.no_fieldmap for run in subject.runs} == {NO_FIELDMAP}
    assert subject.fieldmaps == {}
    off = without_fieldmaps({"01": subject})["01"]
    assert {run.no_fieldmap for run in off.runs} == {OFF}
    with caplog.at_level(logging.WARNING):
        warn_of_unused({"01": off})
        warn_of_unused({"01": subject})
    assert not caplog.records


def test_a_fieldmap_that_is_meant_for_no_run_is_warned_of(tmp_path, caplog):
    subject = index(tmp_path, phasediff({}))
    assert [run.fieldmap for run in subject.runs] == ["", ""]
    with caplog.at_level(logging.WARNING):
        warn_of_unused({"01": subject})
    assert len(caplog.records) == 1
    assert "2 runs are not corrected" in caplog.text
    assert "no IntendedFor names the run" in caplog.text


def test_one_image_along_the_runs_own_direction_corrects_nothing(tmp_path):
    told = EPI | {"PhaseEncodingDirection": "j-", "IntendedFor": BOLD.format(1) + ".nii.gz"}
    subject = index(tmp_path, {"fmap/sub-01_dir-AP_epi": told})
    assert "not opposite" in subject.runs[0].no_fieldmap


# --- what is refused -----------------------------------------------------------------------

TARGET = BOLD.format(1) + ".nii.gz"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({BOLD.format(1): ENCODED | {"B0FieldSource": "gone"}} | phasediff({}), "'gone', but"),
        ({BOLD.format(1): ENCODED | {"B0FieldSource": ["a", "b"]}} | phasediff({}), "names a, b"),
        ({BOLD.format(1): ENCODED | {"B0FieldSource": "gone"}}, "no image in fmap/"),
        (phasediff({"IntendedFor": 3}), "IntendedFor is 3"),
        (
            phasediff({"IntendedFor": TARGET})
            | {"fmap/sub-01_run-2_phasediff": ECHOES | {"IntendedFor": TARGET}},
            "several fieldmaps",
        ),
        (
            phasediff({"IntendedFor": TARGET}) | {"fmap/sub-01_dir-PA_epi": intended(EPI, TARGET)},
            "several fieldmaps",
        ),
        ({"fmap/sub-01_phasediff": ECHOES | {"IntendedFor": TARGET}}, "has no magnitude1"),
        ({"fmap/sub-01_phase1": {"EchoTime": 0.004, "IntendedFor": TARGET}}, "no other phase"),
        (
            {"fmap/sub-01_phasediff": {"IntendedFor": TARGET}, "fmap/sub-01_magnitude1": None},
            "EchoTime1 is missing",
        ),
        (phasediff({"EchoTime2": 0.003, "IntendedFor": TARGET}), "must come after the first"),
        (phasediff({"EchoTime2": 6.5, "IntendedFor": TARGET}), "above 0 and below 1"),
        (
            {
                "fmap/sub-01_fieldmap": {"Units": "ppm", "IntendedFor": TARGET},
                "fmap/sub-01_magnitude": None,
            },
            "Units is 'ppm'",
        ),
        ({"fmap/sub-01_dir-PA_epi": {"IntendedFor": TARGET}}, "PhaseEncodingDirection is missing"),
        (
            {
                BOLD.format(1): {"RepetitionTime": 2.0},
                "fmap/sub-01_dir-PA_epi": intended(EPI, TARGET),
            },
            "PhaseEncodingDirection is missing",
        ),
        (
            {BOLD.format(1): {"PhaseEncodingDirection": "j"}} | phasediff({"IntendedFor": TARGET}),
            "TotalReadoutTime is missing",
        ),
        (
            {
                f"fmap/sub-01_dir-{name}_epi": EPI
                | {"PhaseEncodingDirection": axis, "IntendedFor": TARGET}
                for name, axis in (("AP", "j-"), ("LR", "i"))
            },
            "different axes",
        ),
    ],
)
def test_what_is_missing_or_contradictory_is_told(tmp_path, files, message):
    with pytest.raises(InputError, match=message):
        index(tmp_path, files)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"PhaseEncodingDirection": "AP"}, "is 'AP'"),
        ({"PhaseEncodingDirection": "j", "TotalReadoutTime": 40}, "above 0 and below 1"),
        (
            {
                "PhaseEncodingDirection": "j",
                "TotalReadoutTime": 0.04,
                "EffectiveEchoSpacing": 0.0009,
            },
            "makes it 0.0891",
        ),
        (
            {
                "PhaseEncodingDirection": "j",
                "EffectiveEchoSpacing": 0.0005,
                "ReconMatrixPE": "all",
            },
            "ReconMatrixPE is 'all'",
        ),
    ],
)
def test_an_encoding_that_cannot_be_is_refused(told, message):
    with pytest.raises(InputError, match=message):
        phase_encoding("x.nii", told, (64, 100, 30))


def test_the_readout_time_follows_from_the_echo_spacing():
    told = {"PhaseEncodingDirection": "i-", "EffectiveEchoSpacing": 0.0005}
    found = phase_encoding("x.nii", told, (81, 100, 30))
    assert (found.axis, found.sign) == (0, -1)
    assert found.total_readout_time == pytest.approx(0.04)
    # zero-filled or cut: the matrix that was reconstructed counts
    found = phase_encoding("x.nii", told | {"ReconMatrixPE": 61}, (81, 100, 30))
    assert found.total_readout_time == pytest.approx(0.03)
