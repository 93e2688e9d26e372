"""Preprocessing: each part against a closed form or a peer, and what bad input says."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from isocortex import bids
from isocortex.errors import InputError
from isocortex.preprocess import (
    correct_slice_timing,
    describe_derivatives,
    estimate_motion,
    interfaces,
    resample_labels,
    resample_series,
    transform_regions,
)
from isocortex.preprocess import registration as reg
from isocortex.preprocess.images import (
    Timing,
    as_image,
    open_image,
    read_anatomy,
    read_series,
    read_timing,
)
from isocortex.preprocess.motion import reference_volume
from isocortex.preprocess.outputs import spatial_reference
from isocortex.preprocess.resampling import grid_around, voxel_offsets
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
from isocortex.preprocess.workflows import init_bold_wf, run_workflow

OBLIQUE = rigid_matrix(np.array([-80, -110, -50, 0.2, -0.1, 0.15]), np.zeros(3)) @ np.diag(
    [4.0, 4, 4, 1]
)
FLIPPED = np.array([[-4.0, 0, 0, 88], [0, 4, 0, -120], [0, 0, 4, -60], [0, 0, 0, 1]])


@functools.cache
def head_spline():
    image = reg.load_template(4.0)
    values = ndimage.gaussian_filter(np.asarray(image.dataobj), 0.8) * 1000
    return ndimage.spline_filter(values, order=3), image.affine


def head(points):
    """A smooth head-like intensity at mm coordinates, defined everywhere: a closed form."""
    spline, affine = head_spline()
    index = (points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    return ndimage.map_coordinates(spline, index.T, order=3, prefilter=False)


def moved_series(affine, parameters, centre, shape=(44, 54, 42), noise=0.0):
    """Volumes of the head in the poses that the parameters say."""
    points = grid_points(shape, affine)
    rng = np.random.default_rng(5)
    volumes = []
    for row in parameters:
        back = np.linalg.inv(rigid_matrix(row, centre))
        volume = head(AffineTransform(back).apply(points)).reshape(shape)
        volumes.append(volume + noise * rng.standard_normal(shape))
    return np.stack(volumes, axis=-1).astype(np.float32)


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


# --- motion --------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [OBLIQUE, FLIPPED], ids=["oblique", "flipped"])
def test_motion_is_recovered(affine):
    rng = np.random.default_rng(2)
    steps = rng.standard_normal((10, 6)) * [0.2, 0.2, 0.2, 0.003, 0.003, 0.003]
    truth = np.cumsum(steps, axis=0)
    truth[5:] += [1.0, -1.5, 2.0, 0.03, -0.02, 0.02]
    centre = np.array([0.0, -15, 20])
    series = moved_series(affine, truth, centre, noise=12.0)  # tSNR about 60
    mask = ndimage.binary_dilation(series.mean(axis=-1) > 200)
    options = {"mask": mask, "centre": centre}
    reference = reference_volume(series, affine, **options)
    matrices, parameters = estimate_motion(series, affine, reference=reference, **options)
    np.testing.assert_allclose(
        [rigid_parameters(m, centre) for m in matrices], parameters, atol=1e-12
    )
    # poses are known up to the pose of the reference
    against = [
        np.linalg.inv(rigid_matrix(row, centre)) @ found
        for row, found in zip(truth, matrices, strict=True)
    ]
    errors = np.array([rigid_parameters(np.linalg.inv(against[0]) @ a, centre) for a in against])
    errors -= errors.mean(axis=0)
    rms = np.sqrt((errors**2).mean(axis=0))
    assert rms[:3].max() < 0.08, "mm"
    assert np.degrees(rms[3:]).max() < 0.05, "degrees"


def test_motion_agrees_with_ants():
    centre = np.array([0.0, -15, 20])
    truth = np.array([[0.0] * 6, [0.8, -0.5, 1.1, 0.02, -0.015, 0.01]])
    series = moved_series(FLIPPED, truth, centre, noise=5.0)
    mask = series[..., 0] > 200
    matrices, _ = estimate_motion(
        series, FLIPPED, reference=series[..., 0], mask=mask, centre=centre
    )
    chain, _ = reg.register(
        as_image(series[..., 0], FLIPPED),
        as_image(series[..., 1], FLIPPED),
        "Rigid",
        seed=1,
        aff_metric="GC",
        aff_iterations=(100, 50),
        aff_shrink_factors=(2, 1),
        aff_smoothing_sigmas=(1, 0),
    )
    corners = np.array([[60, 40, 60], [-60, -90, -30], [0, 0, 0], [50, -80, 50]], float)
    ours = AffineTransform(matrices[1]).apply(corners)
    theirs = AffineTransform(reg.linear_part(chain)).apply(corners)
    assert np.abs(ours - theirs).max() < 0.25
    exact = AffineTransform(rigid_matrix(truth[1], centre)).apply(corners)
    assert np.abs(ours - exact).max() <= np.abs(theirs - exact).max() + 0.02


# --- slice timing --------------------------------------------------------------------------


def test_slice_timing_of_a_sinusoid_and_a_line():
    times = [0.0, 0.5, 1.0, 1.5]
    volume_times = np.arange(120) * 2.0
    period = 20.0
    series = np.empty((2, 1, 4, 120))
    for k, time in enumerate(times):
        series[0, 0, k] = np.sin(2 * np.pi * (volume_times + time) / period)
        series[1, 0, k] = 3 + 0.5 * (volume_times + time)
    corrected = correct_slice_timing(
        series, slice_times=times, repetition_time=2.0, reference_time=0.75
    )
    expected = np.sin(2 * np.pi * (volume_times + 0.75) / period)
    for k in range(4):
        np.testing.assert_allclose(corrected[0, 0, k, 8:-8], expected[8:-8], atol=2e-3)
        line = 3 + 0.5 * (volume_times + 0.75)
        np.testing.assert_allclose(corrected[1, 0, k], line, rtol=1e-5)
    assert Timing(2.0, tuple(times), 2).reference_time == 0.75


def test_slice_timing_leaves_dummy_volumes_out():
    series = np.full((1, 1, 2, 30), 100.0)
    series[..., :3] = 900
    corrected = correct_slice_timing(
        series, slice_times=[0, 1], repetition_time=2.0, reference_time=0.5, n_dummy=3
    )
    np.testing.assert_allclose(corrected, series, rtol=1e-6)


# --- resampling ----------------------------------------------------------------------------


def test_identity_changes_nothing():
    rng = np.random.default_rng(3)
    series = rng.standard_normal((12, 13, 11, 3)).astype(np.float32)
    points = grid_points(series.shape, OBLIQUE)
    out, inside = resample_series(
        series, OBLIQUE, np.tile(np.eye(4), (3, 1, 1)), points, series.shape[:3]
    )
    np.testing.assert_allclose(out, series, atol=1e-5)
    assert inside.all()


def test_one_resampling_of_motion_coregistration_and_warp():
    """The composed map gives the closed-form image of the composed transforms."""
    centre = np.array([0.0, -15, 20])
    motion = np.array([[0.5, 1.0, -0.7, 0.02, 0.01, -0.03], [-1, 0.3, 0.4, -0.01, 0.02, 0.01]])
    series = moved_series(FLIPPED, motion, centre)
    coregistration = AffineTransform(rigid_matrix(np.array([4, -3, 2, 0.05, 0, 0.1]), centre))
    grid = np.diag([4.0, 4, 4, 1])
    grid[:3, 3] = [-60, -80, -20]
    shape = (28, 24, 20)
    points = grid_points(shape, grid)
    in_reference = coregistration.apply(points)
    out, inside = resample_series(
        series,
        FLIPPED,
        np.array([rigid_matrix(row, centre) for row in motion]),
        in_reference,
        shape,
        threads=2,
    )
    assert inside.all()
    expected = head(in_reference).reshape(shape)
    for t in range(2):
        error = np.abs(out[..., t] - expected)
        assert np.sqrt((error**2).mean()) < 0.02 * expected.std()


def test_voxels_that_a_volume_does_not_reach():
    series = np.ones((10, 10, 10, 2), np.float32)
    motion = np.tile(np.eye(4), (2, 1, 1))
    motion[1, 0, 3] = 3.0
    points = grid_points((10, 10, 10), np.eye(4))
    out, inside = resample_series(series, np.eye(4), motion, points, (10, 10, 10))
    assert inside[:7].all()
    assert not inside[7:].any()
    assert (out[7:, ..., 1] == 0).all()
    assert (out[7:, ..., 0] == 1).all()


def test_labels_keep_their_volume_and_values():
    labels = np.zeros((40, 40, 40), np.int32)
    labels[5:20, 5:20, 5:20] = 3
    labels[20:35, 5:20, 5:20] = 7
    affine = np.eye(4)
    target = np.diag([3.0, 3, 3, 1])
    points = grid_points((13, 13, 13), target)
    out = resample_labels(labels, affine, points, (13, 13, 13), supersampling=voxel_offsets(target))
    assert set(np.unique(out)) == {0, 3, 7}
    assert abs((out == 3).sum() * 27 / 15**3 - 1) < 0.15
    same = resample_labels(labels, affine, grid_points(labels.shape, affine), labels.shape)
    np.testing.assert_array_equal(same, labels)


def test_grid_around_an_oblique_mask_holds_it():
    mask = np.zeros((30, 30, 30), bool)
    mask[5:25, 8:20, 4:28] = True
    for affine in (OBLIQUE, FLIPPED):
        shape, new = grid_around(mask, affine, resolution=3.0)
        points = grid_points(mask.shape, affine)[mask.ravel()]
        index = (points - new[:3, 3]) @ np.linalg.inv(new[:3, :3]).T
        assert index.min() >= 0
        assert (index <= np.array(shape) - 1).all()
        np.testing.assert_allclose(np.linalg.norm(new[:3, :3], axis=0), 3.0)
        assert (np.diag(new[:3, :3]) > 0).all()


# --- bad and odd input ---------------------------------------------------------------------


def save(path, values, affine=FLIPPED, **options):
    nib.save(as_image(values, affine, **options), path)
    return path


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
    with pytest.raises(InputError, match="2 s in the header"):
        read_timing(image, {"RepetitionTime": 2.5}, "x")
    with pytest.raises(InputError, match="4 values for the 5 slices"):
        read_timing(image, {"RepetitionTime": 2.0, "SliceTiming": times[:4]}, "x")
    with pytest.raises(InputError, match="0 to 1600 s"):
        read_timing(image, {"RepetitionTime": 2.0, "SliceTiming": [0, 400, 800, 1200, 1600]}, "x")
    bare = nib.Nifti1Image(series, np.eye(4))
    with pytest.raises(InputError, match="RepetitionTime is missing for x"):
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
    transform_regions(case.pop("atlas"), transform=tmp_path / "x.h5", **case)
    found = nib.load(tmp_path / "out.nii.gz")
    data = np.asarray(found.dataobj)
    centre = found.affine[:3, :3] @ np.argwhere(data == 2).mean(axis=0)
    np.testing.assert_allclose(centre, [28 - 6, 13, 13], atol=1.0)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["n_voxels"]["V1"] == (data == 1).sum()
    assert (tmp_path / "out.tsv").read_text() == (tmp_path / "labels.tsv").read_text()


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
    found = re.findall(r'(anat|func|each_space|figures_of)\(f?"([^"]+)"\)', rules)
    run = "sub-01_task-x_run-1"
    names = []
    for kind, name in found:
        name = name.replace("{TEMPLATE}", template).replace("{run}", f"func/{run}")
        names += {
            "anat": [f"sub-01/anat/sub-01_{name}"],
            "func": [f"sub-01/func/{run}_{name}"],
            "each_space": [f"sub-01/func/{run}_space-{s}_{name}" for s in ("T1w", template)],
            "figures_of": [f"sub-01/figures/{name}/figure.svg"],
        }[kind]
    assert len(names) == 12 + 10 + 6
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
            path.write_text(json.dumps(content))
        elif name.endswith(".json"):
            path.write_text('{"SkullStripped": false}')
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


# --- a step that fails ---------------------------------------------------------------------


def plain_workflow(dummy_scans=0):
    return init_bold_wf(
        timing=Timing(2.0, None, 2),
        spaces=["T1w"],
        resolution=4.0,
        correct_slices=False,
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
def test_bad_input_inside_a_workflow_is_one_line(tmp_path, value, message):
    series = np.random.default_rng(0).random((12, 12, 12, 8)).astype(np.float32)
    series[..., 2:4] = np.nan
    if value is None:
        series[:] = series[..., :1]
    bold = save(tmp_path / "bold.nii", series)
    case = bold_workflow(tmp_path, bold)
    with pytest.raises(InputError, match=message) as caught:
        run_workflow(case.pop("workflow"), **case)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run.crash.txt").exists()


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
        files.append(str(save(tmp_path / f"{number}.nii", values.astype(np.float32), affine)))
    clean = head(grid_points(shape, straight)).reshape(shape)
    brain = ndimage.binary_erosion(clean > 300, iterations=2)
    errors = {}
    for n in (1, 2):
        folder = tmp_path / str(n)
        folder.mkdir()
        done = interfaces.AverageAnatomy(in_files=files[:n], seed=1).run(cwd=folder)
        image = nib.load(done.outputs.out_file)
        np.testing.assert_allclose(image.affine, straight, atol=1e-4)
        found = np.asarray(image.dataobj)[brain]
        scale = (found @ clean[brain]) / (found @ found)
        errors[n] = np.sqrt(np.mean((scale * found - clean[brain]) ** 2))
    # by the square root of two; a pose missed by a voxel would add more than that
    assert errors[2] < errors[1] / 1.3


def test_one_space_of_a_flipped_run_and_an_oblique_t1w(tmp_path):
    """Every image of an output space shows the head where the T1w has it."""
    pose = rigid_matrix(np.array([5.0, -4, 3, 0.1, -0.05, 0.08]), np.array([0, -15, 20.0]))
    motion = np.array([[0.0] * 6, [0.5, -0.4, 0.6, 0.01, 0.02, -0.01]])
    centre, shape = np.array([0.0, -15, 20]), (44, 54, 42)
    points = grid_points(shape, OBLIQUE)
    t1w = head(points).reshape(shape)
    mask = ndimage.binary_opening(t1w > 300)
    paths = {"t1w_mask": save(tmp_path / "mask.nii", mask.astype(np.uint8), OBLIQUE)}
    # the run sees the head in another pose: reference mm = pose x T1w mm
    back = AffineTransform(np.linalg.inv(pose))
    volumes = [
        head(
            back.apply(
                AffineTransform(np.linalg.inv(rigid_matrix(row, centre))).apply(
                    grid_points(shape, FLIPPED)
                )
            )
        ).reshape(shape)
        for row in motion
    ]
    series = np.stack(volumes, axis=-1).astype(np.float32)
    paths["in_file"] = save(tmp_path / "s.nii", series, FLIPPED, repetition_time=2.0)
    paths["reference"] = save(tmp_path / "r.nii", series[..., 0], FLIPPED)
    paths["to_t1w"] = write_itk_affine(tmp_path / "to_t1w.txt", pose)
    table = [rigid_matrix(row, centre)[:3].ravel() for row in motion]
    paths["matrices"] = tmp_path / "motion.tsv"
    pd.DataFrame(table).to_csv(paths["matrices"], sep="\t", index=False)
    made = interfaces.ResampleSpace(
        **{name: str(path) for name, path in paths.items()},
        space="T1w",
        resolution=4.0,
        repetition_time=2.0,
    ).run(cwd=tmp_path)
    found, inside = nib.load(made.outputs.bold), nib.load(made.outputs.mask)
    assert found.shape[:3] == inside.shape
    voxels = np.asarray(inside.dataobj) > 0
    truth = head(grid_points(inside.shape, inside.affine)).reshape(inside.shape)
    for volume in np.moveaxis(np.asarray(found.dataobj), -1, 0):
        error = (volume - truth)[voxels]
        assert np.sqrt((error**2).mean()) < 0.03 * truth[voxels].std()
    volume = voxels.sum() / mask.sum()
    assert 0.9 < volume < 1.1


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
