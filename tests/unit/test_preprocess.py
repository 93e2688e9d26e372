"""Preprocessing: each part against a closed form or a peer, and what bad input says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nipype.interfaces.base import isdefined
from scipy import ndimage

from isocortex import bids
from isocortex.config import check_config
from isocortex.errors import InputError
from isocortex.preprocess import bold as bold_module
from isocortex.preprocess import (
    describe_derivatives,
    interfaces,
    transform_regions,
)
from isocortex.preprocess import registration as reg
from isocortex.preprocess.engine import run_workflow
from isocortex.preprocess.images import (
    Timing,
    as_image,
    open_image,
    read_anatomy,
    read_series,
    read_timing,
)
from isocortex.preprocess.outputs import sources_of, spatial_reference
from isocortex.preprocess.surfaces import SIDECAR as SURFACE_SIDECAR
from isocortex.preprocess.transforms import (
    AffineTransform,
    DisplacementField,
    apply_chain,
    grid_points,
    read_itk_affine,
    read_transforms,
    rigid_matrix,
    rigid_parameters,
    write_composite,
    write_itk_affine,
)
from isocortex.preprocess.workflows import init_bold_wf
from isocortex.surface import series_image
from tests.unit.heads import OBLIQUE, head, moved_series, save

# --- transforms ----------------------------------------------------------------------------


def test_rigid_parameters_come_back():
    rng = np.random.default_rng(0)
    for row in rng.uniform(-0.5, 0.5, (20, 6)):
        centre = rng.uniform(-30, 30, 3)
        np.testing.assert_allclose(
            rigid_parameters(rigid_matrix(row, centre), centre), row, atol=1e-12
        )


def test_transform_files_are_read_by_ants_as_by_us(tmp_path):
    import ants

    rng = np.random.default_rng(1)
    grid = np.diag([8.0, 8, 8, 1])
    grid[:3, 3] = [-90, -120, -70]
    field = ndimage.gaussian_filter(rng.standard_normal((23, 28, 24, 3)), (2, 2, 2, 0)) * 30
    chain = [
        DisplacementField(field.astype(np.float32), grid),
        AffineTransform(rigid_matrix(np.array([3, -2, 5, 0.1, 0.05, -0.2]), np.ones(3))),
    ]
    path = write_composite(tmp_path / "x.h5", chain)
    points = rng.uniform(-50, 50, (200, 3))
    again = apply_chain(read_transforms(path), points)
    np.testing.assert_allclose(again, apply_chain(chain, points), atol=1e-4)
    lps = pd.DataFrame(points * [-1, -1, 1], columns=["x", "y", "z"])
    theirs = ants.apply_transforms_to_points(3, lps, [str(path)])[["x", "y", "z"]].to_numpy()
    np.testing.assert_allclose(theirs * [-1, -1, 1], again, atol=1e-3)
    text = write_itk_affine(tmp_path / "x.txt", chain[1].matrix)
    np.testing.assert_allclose(read_itk_affine(text).matrix, chain[1].matrix, atol=1e-9)
    first = path.read_bytes()
    assert write_composite(tmp_path / "y.h5", chain).read_bytes() == first


def test_bad_series(tmp_path):
    good = np.random.default_rng(0).random((6, 6, 6, 8)).astype(np.float32)
    path = save(tmp_path / "good.nii.gz", good)
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(InputError, match=r"cut\.nii\.gz"):
        read_series(cut)
    cut = save(tmp_path / "cut.nii", good)
    cut.write_bytes(cut.read_bytes()[:-600])
    with pytest.raises(InputError, match=r"truncated.*cut\.nii"):
        read_series(cut)
    with pytest.raises(InputError, match="one volume"):
        read_series(save(tmp_path / "one.nii", good[..., 0]))
    bad = good.copy()
    bad[..., 3] = np.nan
    with pytest.raises(InputError, match=r"volumes 3 of .*nan\.nii are NaN"):
        read_series(save(tmp_path / "nan.nii", bad))
    bad[..., 3] = 0
    with pytest.raises(InputError, match="constant throughout"):
        read_series(save(tmp_path / "zero.nii", bad))
    (tmp_path / "text.nii").write_text("no image")
    with pytest.raises(InputError, match="not a readable NIfTI"):
        read_anatomy(tmp_path / "text.nii")
    with pytest.raises(InputError, match="missing"):
        open_image(tmp_path / "none.nii")
    with pytest.raises(InputError, match="constant"):
        read_anatomy(save(tmp_path / "flat.nii", np.ones((12, 12, 12), np.float32)))
    still = np.repeat(good[..., :1], 8, axis=3)
    with pytest.raises(InputError, match=r"no voxel of .*still\.nii changes over time"):
        read_series(save(tmp_path / "still.nii", still))


def test_scaled_integers_and_single_nans_are_read(tmp_path):
    values = np.random.default_rng(0).random((6, 6, 6, 8)).astype(np.float32) * 100
    image = as_image(values, OBLIQUE)
    image.header.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "scaled.nii")
    read = read_series(tmp_path / "scaled.nii")
    np.testing.assert_allclose(np.asarray(read.dataobj), values, atol=0.01)
    np.testing.assert_allclose(read.affine, OBLIQUE, atol=1e-4)
    values[0, 0, 0, 2] = np.nan
    read = read_series(save(tmp_path / "nan.nii", values))
    assert np.asarray(read.dataobj)[0, 0, 0, 2] == 0


def test_bad_timing(tmp_path):
    series = np.random.default_rng(0).random((6, 6, 5, 8)).astype(np.float32)
    image = open_image(save(tmp_path / "x.nii", series, repetition_time=2.0))
    times = [0.0, 0.4, 0.8, 1.2, 1.6]
    timing = read_timing(image, {"RepetitionTime": 2.0, "SliceTiming": times}, "x")
    assert timing.slice_times == tuple(times)
    back = {"RepetitionTime": 2.0, "SliceTiming": times, "SliceEncodingDirection": "k-"}
    assert read_timing(image, back, "x").slice_times == tuple(times[::-1])
    with pytest.raises(InputError, match=r"2\.5 s in its JSON and 2 s in its header"):
        read_timing(image, {"RepetitionTime": 2.5}, "x")
    with pytest.raises(InputError, match="4 values for the 5 slices"):
        read_timing(image, {"RepetitionTime": 2.0, "SliceTiming": times[:4]}, "x")
    with pytest.raises(InputError, match="0 to 1600 s"):
        read_timing(image, {"RepetitionTime": 2.0, "SliceTiming": [0, 400, 800, 1200, 1600]}, "x")
    bare = nib.Nifti1Image(series, np.eye(4))
    with pytest.raises(InputError, match="x: no RepetitionTime in its JSON"):
        read_timing(bare, {}, "x")
    with pytest.raises(InputError, match="RepetitionTime is -1"):
        read_timing(bare, {"RepetitionTime": -1}, "x")
    path = tmp_path / "bad.json"
    path.write_text("{")
    with pytest.raises(InputError, match=r"bad\.json cannot be read as JSON"):
        bids.metadata([path])
    path.write_text('{"RepetitionTime": 1}')
    below = tmp_path / "below.json"
    below.write_text('{"RepetitionTime": 2}')
    assert bids.metadata([path, below]) == {"RepetitionTime": 2}


# --- regions -------------------------------------------------------------------------------


def regions_case(tmp_path):
    labels = np.zeros((20, 20, 20), np.int16)
    labels[4:10, 4:10, 4:10] = 1
    labels[12:17, 4:10, 4:10] = 2
    save(tmp_path / "atlas.nii.gz", labels, np.diag([2.0, 2, 2, 1]))
    save(tmp_path / "mask.nii.gz", np.ones((13, 13, 13), np.uint8), np.diag([3.0, 3, 3, 1]))
    (tmp_path / "labels.tsv").write_text("index\tname\n1\tV1\n2\tV2\n")
    outputs = {
        "regions": tmp_path / "out.nii.gz",
        "labels": tmp_path / "out.tsv",
        "manifest": tmp_path / "manifest.json",
    }
    return {
        "atlas": tmp_path / "atlas.nii.gz",
        "labels": tmp_path / "labels.tsv",
        "grid": tmp_path / "mask.nii.gz",
        "subject": "07",
        "outputs": outputs,
    }


def test_regions_through_a_shift(tmp_path):
    case = regions_case(tmp_path)
    shift = np.eye(4)
    shift[0, 3] = 6.0
    write_composite(tmp_path / "x.h5", [AffineTransform(shift)])
    transform_regions(case.pop("atlas"), transforms=[tmp_path / "x.h5"], **case)
    found = nib.load(tmp_path / "out.nii.gz")
    data = np.asarray(found.dataobj)
    centre = found.affine[:3, :3] @ np.argwhere(data == 2).mean(axis=0)
    np.testing.assert_allclose(centre, [28 - 6, 13, 13], atol=1.0)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["n_voxels"]["V1"] == (data == 1).sum()
    assert (tmp_path / "out.tsv").read_text() == (tmp_path / "labels.tsv").read_text()


def test_regions_from_template_to_template_by_way_of_t1w(tmp_path):
    """Points of the grid go through the first file first: doubled, then shifted."""
    case = regions_case(tmp_path)
    shift = np.eye(4)
    shift[0, 3] = 6.0
    for name, matrix in (("double", np.diag([2.0, 2, 2, 1])), ("shift", shift)):
        write_composite(tmp_path / f"{name}.h5", [AffineTransform(matrix)])
    transforms = [tmp_path / "double.h5", tmp_path / "shift.h5"]
    transform_regions(case.pop("atlas"), transforms=transforms, **case)
    found = nib.load(tmp_path / "out.nii.gz")
    centre = found.affine[:3, :3] @ np.argwhere(np.asarray(found.dataobj) == 2).mean(axis=0)
    np.testing.assert_allclose(centre, [(28 - 6) / 2, 13 / 2, 13 / 2], atol=1.0)


def test_bad_regions(tmp_path):
    case = regions_case(tmp_path)
    atlas = case.pop("atlas")
    mask = np.ones((13, 13, 13), np.uint8)
    mask[:7] = 0
    save(tmp_path / "mask.nii.gz", mask, np.diag([3.0, 3, 3, 1]))
    with pytest.raises(InputError, match=r"region V1 .* is empty on the grid of subject 07"):
        transform_regions(atlas, **case)
    assert not (tmp_path / "out.nii.gz").exists()
    (tmp_path / "labels.tsv").write_text("index\tname\n1\tV1\n9\tV9\n")
    with pytest.raises(InputError, match=r"regions V9 .* have no voxel"):
        transform_regions(atlas, **case)
    (tmp_path / "labels.tsv").write_text("index\tname\n1\tV1\n1\tV2\n")
    with pytest.raises(InputError, match="line 3"):
        transform_regions(atlas, **case)
    (tmp_path / "labels.tsv").write_text("index\tname\n1\tV1\n")
    save(tmp_path / "half.nii", np.full((5, 5, 5), 0.5, np.float32))
    with pytest.raises(InputError, match="values that are not integers"):
        transform_regions(tmp_path / "half.nii", **case)


def test_the_validator_accepts_the_derivatives(tmp_path, root):
    """Every output that the rules name, in a dataset of one subject and one run."""
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.is_file():
        pytest.skip("bids-validator-deno is not installed beside this Python")
    rules = (root / "rules" / "preprocess.smk").read_text()
    rules = rules[: rules.index("rule transform_regions")]
    template = "MNI152NLin2009aSym"
    helpers = "anat|func|fmap|each_space|each_hemisphere|figures_of"
    found = re.findall(rf'({helpers})\(f?"([^"]+)"\)', rules)
    run = "sub-01_task-x_run-1"
    names = []
    for kind, name in found:
        name = name.replace("{TEMPLATE}", template).replace("{run}", f"func/{run}")
        names += {
            "anat": [f"sub-01/anat/sub-01_{name}"],
            "func": [f"sub-01/func/{run}_{name}"],
            "fmap": [f"sub-01/fmap/sub-01_fmapid-x_{name}"],
            "each_space": [f"sub-01/func/{run}_space-{s}_{name}" for s in ("T1w", template)],
            "each_hemisphere": [
                f"sub-01/func/{run}_hemi-{side}_space-fsaverage5_{name}" for side in "LR"
            ],
            "figures_of": [f"sub-01/figures/{name}/figure.svg"],
        }[kind]
    names = list(dict.fromkeys(names))  # rules with and without a T1w make much the same
    assert len(names) == 40
    small = np.ones((4, 4, 4), np.float32)
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".nii.gz"):
            values = np.ones((4, 4, 4, 6), np.float32) if name.endswith("bold.nii.gz") else small
            save(path, values, repetition_time=2.0 if values.ndim == 4 else None)
        elif name.endswith(("preproc_bold.json", "brain_mask.json")):
            space = re.search("space-([A-Za-z0-9]+)", name)[1]
            content = {"RepetitionTime": 2.0, "SkullStripped": False, "Type": "Brain"}
            content["SpatialReference"] = spatial_reference(space, "01")
            if "hemi-" in name:
                content |= SURFACE_SIDECAR
            path.write_text(json.dumps(content))
        elif name.endswith(".json"):
            path.write_text('{"SkullStripped": false}')
        elif name.endswith(".gii"):
            series_image(np.ones((2, 5)), side="left", repetition_time=2.0).to_filename(path)
        else:
            path.write_text("a\tb\n1\t2\n")
    describe_derivatives(
        raw=tmp_path / "raw",
        description=tmp_path / "dataset_description.json",
        ignore=tmp_path / ".bidsignore",
    )
    command = [validator, "--format", "json", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    assert done.returncode == 0


def test_carrying_labels_needs_no_registration_program():
    code = (
        "import sys; from isocortex.preprocess import describe_derivatives, transform_regions; "
        "print([m for m in ('ants', 'nipype', 'matplotlib', 'nilearn') if m in sys.modules])"
    )
    folder = Path(reg.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_description(tmp_path):
    paths = {"description": tmp_path / "d.json", "ignore": tmp_path / ".bidsignore"}
    describe_derivatives(raw=tmp_path / "raw", **paths)
    content = json.loads(paths["description"].read_text())
    assert content["DatasetType"] == "derivative"
    assert content["DatasetLinks"]["raw"] == "raw"
    assert "manifest" in paths["ignore"].read_text()


def test_sources_are_named_from_their_subject_on():
    paths = ["/data/sub-projects/x/sub-01/ses-2/func/sub-01_bold.nii.gz", "/data/atlas.nii.gz"]
    found = sources_of(paths)
    assert found == ["bids:raw:sub-01/ses-2/func/sub-01_bold.nii.gz", "bids:raw:atlas.nii.gz"]
    assert sources_of(paths[:1], "") == ["bids::sub-01/ses-2/func/sub-01_bold.nii.gz"]


@pytest.mark.parametrize(
    ("slice_timing", "times", "start"),
    [
        (True, [0.5, 0.0, 1.0, 1.5, 0.2], 0.75),
        (False, [0.5, 0.0, 1.0, 1.5, 0.2], 0),
        (True, None, 0),
    ],
)
def test_all_outputs_tell_the_time_that_the_slices_were_brought_to(
    tmp_path, monkeypatch, slice_timing, times, start
):
    """Volumes in both spaces and both hemispheres stand for the time that the workflow is given."""
    seen = {}

    def run(workflow, *, folder, **_):
        seen["resample"] = workflow.get_node("resample").inputs.trait_get()
        files = {name: Path(folder) / name for name in ("a", "b", "c", "d")}
        for path in files.values():
            path.write_text("x")
        made = {name: str(files["c"]) for name in ("confounds", "confounds_json", "motion")}
        made |= {name: list(files.values())[:2] for name in ("bold", "mask", "boldref")}
        made["surface"] = [str(files["c"]), str(files["d"])]
        return made | {"to_t1w": str(files["d"]), "qc": {"n_non_steady_state": 1}}

    monkeypatch.setattr(bold_module, "run_workflow", run)
    series = np.random.default_rng(0).random((6, 6, 5, 8)).astype(np.float32)
    path = save(tmp_path / "sub-01_bold.nii", series, repetition_time=2.0)
    (tmp_path / "s.json").write_text(json.dumps({"RepetitionTime": 2.0, "SliceTiming": times}))
    config = check_config({"study": "x", "input": {"bids": "x"}})
    spaces = ["T1w", "MNI152NLin2009aSym", "fsaverage5"]
    options = config["preprocess"] | {"spaces": spaces, "slice_timing": slice_timing}
    each = ("bold", "mask", "boldref", "surface", "sidecar", "mask_sidecar", "surface_sidecar")
    single = ("confounds", "confounds_json", "motion", "to_t1w", "manifest")
    outputs = {name: [tmp_path / f"{name}{n}" for n in (1, 2)] for name in each}
    bold_module.preprocess_bold(
        path,
        sidecars=[tmp_path / "s.json"],
        anatomy={"t1w": path},
        subject="01",
        run="func/x",
        outputs=outputs | {name: tmp_path / name for name in single},
        options=options,
        seed=1,
        log=tmp_path / "x.log",
        temporary=tmp_path,
    )
    for sidecar in outputs["sidecar"] + outputs["surface_sidecar"]:
        told = json.loads(sidecar.read_text())
        assert told["StartTime"] == start
        assert told["SliceTimingCorrected"] is (start > 0)
        assert told["NumberOfVolumesNonSteadyState"] == 1
    if start:
        assert seen["resample"]["slice_times"] == times
        assert seen["resample"]["reference_time"] == start
    else:
        assert not isdefined(seen["resample"]["slice_times"])


class StoppedError(Exception):
    """In place of the workflow."""


def test_every_key_of_the_config_reaches_the_workflow(tmp_path, monkeypatch):
    seen = {}

    def stop(**options):
        seen.update(options)
        raise StoppedError

    monkeypatch.setattr(bold_module, "init_bold_wf", stop)
    series = np.random.default_rng(0).random((6, 6, 5, 12)).astype(np.float32)
    path = save(tmp_path / "sub-01_bold.nii", series, repetition_time=2.0)
    told = {"RepetitionTime": 2.0, "SliceTiming": [0, 0.4, 0.8, 1.2, 1.6]}
    told |= {"PhaseEncodingDirection": "i-", "TotalReadoutTime": 0.03}
    (tmp_path / "s.json").write_text(json.dumps(told))
    config = check_config({"study": "x", "input": {"bids": "x"}})["preprocess"]
    options = {
        "spaces": ["T1w"],
        "resolution": 2.5,
        "motion": "ants",
        "slice_timing": True,
        "slice_timing_order": "motion_first",
        "interpolation": "linear",
        "distortion": {"correct": True, "jacobian": False},
        "dummy_scans": 4,
        "fd_threshold": 0.3,
        "dvars_threshold": 1.9,
        "high_pass": 99.0,
        "compcor_components": 6,
    }
    assert options.keys() == config.keys()
    changed = {name for name, value in options.items() if value != config[name]}
    assert changed == options.keys() - {"slice_timing"}
    with pytest.raises(StoppedError):
        bold_module.preprocess_bold(
            path,
            sidecars=[tmp_path / "s.json"],
            anatomy={"t1w": path},
            subject="01",
            run="func/x",
            outputs={},
            options=options,
            seed=3,
            log=tmp_path / "x.log",
            temporary=tmp_path,
            fieldmap=[path, path],
            distortion={"kind": "phases", "note": ""},
            threads=2,
        )
    same = ("spaces", "resolution", "interpolation", "dummy_scans", "fd_threshold")
    assert {name: seen[name] for name in same} == {name: options[name] for name in same}
    assert (seen["dvars_threshold"], seen["high_pass"], seen["compcor"]) == (1.9, 99.0, 6)
    assert (seen["motion_method"], seen["slice_timing"]) == ("ants", "motion_first")
    assert (seen["seed"], seen["threads"], seen["has_t1w"]) == (3, 2, True)
    field = seen["distortion"]
    assert (field.kind, field.jacobian) == ("phases", False)
    assert (field.encoding.axis, field.encoding.sign) == (0, -1)
    assert field.encoding.total_readout_time == 0.03


def test_every_option_and_the_dummies_reach_their_steps():
    """What the workflow is given is what its steps have; the detected dummies go to as many."""
    workflow = init_bold_wf(
        timing=Timing(2.0, (0.0, 0.5, 1.0), 1),
        spaces=["T1w"],
        resolution=3.5,
        slice_timing="motion_first",
        interpolation="quintic",
        dummy_scans=3,
        fd_threshold=0.31,
        dvars_threshold=1.7,
        high_pass=101.0,
        compcor=7,
        series_gb=0.01,
        seed=5,
        motion_method="ants",
        threads=2,
    )
    given = {
        "n_dummy": 3, "fd_threshold": 0.31, "dvars_threshold": 1.7, "high_pass": 101.0,
        "criterion": 7, "interpolation": "quintic", "slice_order": "motion_first", "seed": 5,
        "resolution": 3.5, "repetition_time": 2.0, "slice_axis": 1, "reference_time": 0.5,
        "threads": 2,
    }  # fmt: skip
    found = {}
    for name in workflow.list_node_names():
        inputs = workflow.get_node(name).inputs.trait_get()
        for option in given.keys() & inputs.keys():
            found.setdefault(option, set()).add(name)
            assert inputs[option] == given[option], f"{option} of {name}"
    assert found.keys() == given.keys()
    steady = plain_workflow(dummy_scans=None)
    told = {
        target.name
        for _, target, data in steady._graph.edges(data=True)
        if any(name == "n_dummy" for _, name in data["connect"])
    }
    # without slice times there is nothing that dummies would be kept out of
    assert told == found["n_dummy"] - {"resample"}
    assert isinstance(workflow.get_node("estimate_motion").interface, interfaces.EstimateMotionAnts)


# --- a step that fails ---------------------------------------------------------------------


def plain_workflow(dummy_scans=0):
    return init_bold_wf(
        timing=Timing(2.0, None, 2),
        spaces=["T1w"],
        resolution=4.0,
        slice_timing=None,
        interpolation="cubic",
        dummy_scans=dummy_scans,
        fd_threshold=0.5,
        dvars_threshold=1.5,
        high_pass=128,
        compcor=3,
        series_gb=0.01,
        seed=1,
    )


def bold_nodes(**options):
    workflow = plain_workflow(**options)
    return {name: workflow.get_node(name) for name in workflow.list_node_names()}


def bold_workflow(folder, bold):
    workflow = plain_workflow()
    workflow.get_node("inputnode").inputs.bold = str(bold)
    return {
        "workflow": workflow,
        "folder": folder / "work",
        "crash_file": folder / "run.crash.txt",
        "where": "sub-07 func/sub-07_task-x",
        "threads": 1,
        "mem_mb": 2000,
    }


def test_a_crash_names_step_subject_and_run(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("by design")

    series = np.random.default_rng(0).random((12, 12, 12, 8)).astype(np.float32)
    bold = save(tmp_path / "bold.nii", series)
    monkeypatch.setattr(interfaces.motion, "estimate_motion", broken)
    case = bold_workflow(tmp_path, bold)
    with pytest.raises(RuntimeError, match="estimate_motion failed for sub-07 func/") as caught:
        run_workflow(case.pop("workflow"), **case)
    assert "ZeroDivisionError: by design" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "ZeroDivisionError" in (tmp_path / "run.crash.txt").read_text()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"volumes 2, 3 of .* are NaN throughout"),
        (None, "no voxel of .* changes over time"),
    ],
    ids=["NaN", "zero variance"],
)
def test_bad_input_inside_a_workflow_is_one_line(tmp_path, capfd, caplog, value, message):
    series = np.random.default_rng(0).random((12, 12, 12, 8)).astype(np.float32)
    series[..., 2:4] = np.nan
    if value is None:
        series[:] = series[..., :1]
    bold = save(tmp_path / "bold.nii", series)
    case = bold_workflow(tmp_path, bold)
    with caplog.at_level("INFO"), pytest.raises(InputError, match=message) as caught:
        run_workflow(case.pop("workflow"), **case)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run.crash.txt").exists()
    # Neither nipype's own handler nor the job's log has its tracebacks.
    told = "".join(capfd.readouterr()) + caplog.text
    assert "Traceback" not in told
    assert caplog.text.count("Running in parallel") == 1


def test_a_run_with_hardly_a_volume_in_the_steady_state(tmp_path):
    series = np.random.default_rng(0).random((12, 12, 12, 8)).astype(np.float32)
    bold = str(save(tmp_path / "bold.nii", series))
    node = interfaces.EstimateMotion(in_file=bold, n_dummy=4)
    with pytest.raises(InputError, match=r"4 of 8 volumes are before the steady state: set pre"):
        node.run(cwd=tmp_path)
    node.inputs.n_dummy = 3
    assert len(pd.read_csv(node.run(cwd=tmp_path).outputs.matrices, sep="\t")) == 8


# --- registration --------------------------------------------------------------------------


def test_several_t1w_are_aligned_and_averaged(tmp_path):
    """Two poses on two grids, each with its own gain and noise: the mean has less noise."""
    poses = np.array([[0.0] * 6, [4, -3, 5, 0.08, -0.05, 0.06]])
    shape, centre = (36, 44, 36), np.array([0.0, -15, 20])
    straight = np.diag([5.0, 5, 5, 1])
    straight[:3, 3] = [-90, -126, -80]
    turned = rigid_matrix(np.array([0, 0, 0, 0.15, -0.1, 0.1]), np.zeros(3))
    turned = turned @ np.diag([-1.0, 1, 1, 1]) @ straight
    rng = np.random.default_rng(10)
    files = []
    for number, (affine, pose, gain) in enumerate(
        zip((straight, turned), poses, (1.0, 1.7), strict=True)
    ):
        values = moved_series(affine, [pose], centre, shape=shape)[..., 0].clip(0)
        values = gain * (values + 60 * rng.standard_normal(shape)).clip(0)
        # the second one ends inside of the head
        values = values[..., : shape[2] - 7 * number]
        files.append(str(save(tmp_path / f"{number}.nii", values.astype(np.float32), affine)))
    clean = head(grid_points(shape, straight)).reshape(shape)
    brain = ndimage.binary_erosion(clean > 300, iterations=2)
    errors, beyond = {}, {}
    to_second = np.linalg.inv(turned) @ rigid_matrix(poses[1], centre)
    cut = AffineTransform(to_second).apply(grid_points(shape, straight))[:, 2].reshape(shape)
    cut = (cut > shape[2] - 7) & brain
    for n in (1, 2):
        folder = tmp_path / str(n)
        folder.mkdir()
        done = interfaces.AverageAnatomy(in_files=files[:n], seed=1).run(cwd=folder)
        image = nib.load(done.outputs.out_file)
        np.testing.assert_allclose(image.affine, straight, atol=1e-4)
        found = np.asarray(image.dataobj)
        beyond[n] = np.median(found[cut]) / np.median(found[brain])
        found = found[brain]
        scale = (found @ clean[brain]) / (found @ found)
        errors[n] = np.sqrt(np.mean((scale * found - clean[brain]) ** 2))
    # by the square root of two; a pose missed by a voxel would add more than that
    assert errors[2] < errors[1] / 1.3
    assert cut.sum() > 50
    assert beyond[2] == pytest.approx(beyond[1], rel=0.1)


def test_registration_gives_the_same_bytes_again(tmp_path):
    template = reg.load_template(6.0)
    pose = rigid_matrix(np.array([5, -4, 3, 0.1, 0, 0.05]), np.zeros(3))
    moving = as_image(reg.warp(template, [AffineTransform(pose)], template), template.affine)
    written = []
    for number in range(2):
        chain, _ = reg.register(
            template, moving, "SyN", seed=3, aff_iterations=(20, 0, 0, 0), reg_iterations=(5, 0, 0)
        )
        written.append(write_composite(tmp_path / f"{number}.h5", chain).read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("flip", [1, -1], ids=["straight", "flipped and oblique"])
def test_coregistration_finds_a_slab(flip):
    t1w = reg.load_template(3.0)
    brain = np.asarray(reg.load_template(3.0, "mask").dataobj) > 0.5
    pose = rigid_matrix(np.array([6.0, -9, 4, 0.06, -0.04, 0.08]), np.array([0, -15, 10.0]))
    # a slab of 26 slices with the contrast of BOLD, in another pose
    affine = np.diag([3.0, 3, 4, 1])
    affine[:3, 3] = [-96, -132, -40]
    shape = (64, 74, 26)
    if flip < 0:
        affine[0] *= -1
        affine = rigid_matrix(np.array([0, 0, 0, 0.25, -0.1, 0.1]), np.zeros(3)) @ affine
    slab = as_image(np.zeros(shape, np.float32), affine)
    back = [AffineTransform(np.linalg.inv(pose))]
    values = reg.warp(t1w, back, slab)
    contrast = np.where(values > 0.05, 1.6 - values, 0.0) * 700
    rng = np.random.default_rng(7)
    contrast = (contrast + 8 * rng.standard_normal(shape)).clip(0).astype(np.float32)
    mask = values > 0.05
    found = reg.coregister(as_image(contrast, affine), mask, t1w, brain, seed=1)
    points = grid_points(t1w.shape, t1w.affine)[brain.ravel()][::1000]
    error = AffineTransform(found).apply(points) - AffineTransform(pose).apply(points)
    assert np.sqrt((error**2).sum(axis=1)).max() < 1.5, "mm"
