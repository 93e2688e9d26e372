"""The demo study, made small: 6 mm BOLD, 4 mm T1w, few pictures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from isocortex.errors import InputError
from isocortex.phantom import REGIONS, make_atlas, make_images, make_study, scanner
from isocortex.phantom.anatomy import Anatomy, apply_affine, grid_points, rigid_matrix
from isocortex.phantom.regions import region_index
from isocortex.phantom.responses import Responses, design_matrix, response_curve

SMALL = {
    "n_subjects": 1,
    "n_runs": 1,
    "n_images": 12,
    "voxel_size": 6.0,
    "t1w_voxel_size": 4.0,
    "processes": 1,
}


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p for p in Path(folder).rglob("*") if p.is_file()}


def truth_of(out, subject="01"):
    return out / "truth" / f"sub-{subject}" / f"sub-{subject}_"


def load_truth(out, name, subject="01"):
    return json.loads(Path(f"{truth_of(out, subject)}{name}.json").read_text())


def bold_of(out, run=1):
    func = out / "bids" / "sub-01" / "func"
    return nib.load(func / f"sub-01_task-objects_run-{run:02d}_bold.nii.gz")


def events_of(out, run=1):
    func = out / "bids" / "sub-01" / "func"
    lines = (func / f"sub-01_task-objects_run-{run:02d}_events.tsv").read_text().splitlines()
    return [dict(zip(lines[0].split("\t"), line.split("\t"))) for line in lines[1:]]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    make_study(out, **SMALL | {"n_runs": 2})
    return out


@pytest.fixture(scope="module")
def noiseless(tmp_path_factory):
    out = tmp_path_factory.mktemp("noiseless")
    make_study(out, **SMALL | {"noise": 0.0, "motion": 0.0})
    return out


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    out = tmp_path_factory.mktemp("moving")
    make_study(out, **SMALL | {"noise": 0.0, "voxel_size": 4.0, "motion": 2.0, "n_images": 4})
    return out


def test_validator_accepts_the_dataset(study):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.is_file():
        pytest.skip("bids-validator-deno is not installed beside this Python")
    done = subprocess.run(
        [validator, "--format", "json", study / "bids"], capture_output=True, text=True
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    assert done.returncode == 0


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A study of one subject, what its files were like, and then a second subject."""
    out = tmp_path_factory.mktemp("grown")
    make_study(out, **SMALL)
    before = {
        name: (path.stat().st_mtime_ns, path.stat().st_ino) for name, path in files_of(out).items()
    }
    make_study(out, **SMALL | {"n_subjects": 2})
    return out, before


def test_adding_a_subject_touches_nothing_of_the_others(grown):
    out, before = grown
    after = files_of(out)
    for name, (changed, inode) in before.items():
        if name != "bids/participants.tsv":
            now = after[name].stat()
            assert (now.st_mtime_ns, now.st_ino) == (changed, inode), name
    assert any(name.startswith("bids/sub-02/") for name in after)
    assert "sub-02" in (out / "bids" / "participants.tsv").read_text()
    one, two = (out / "bids" / f"sub-0{k}" / "anat" / f"sub-0{k}_T1w.nii.gz" for k in (1, 2))
    assert one.read_bytes() != two.read_bytes()


def test_reruns_and_other_numbers_of_processes_give_equal_bytes(grown, tmp_path):
    make_study(tmp_path, **SMALL | {"n_subjects": 2, "processes": 2})
    first, second = files_of(grown[0]), files_of(tmp_path)
    assert set(first) == set(second)
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes(), name


def test_a_lost_file_is_made_again_and_no_other(study, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(study, out)
    events = out / "bids" / "sub-01" / "func" / "sub-01_task-objects_run-01_events.tsv"
    content = events.read_bytes()
    events.unlink()
    bold = out / "bids" / "sub-01" / "func" / "sub-01_task-objects_run-01_bold.nii.gz"
    changed = bold.stat().st_mtime_ns
    make_study(out, **SMALL | {"n_runs": 2})
    assert events.read_bytes() == content
    assert bold.stat().st_mtime_ns == changed


def test_fewer_runs_leave_none_of_the_others_behind(tmp_path):
    make_study(tmp_path, **SMALL | {"n_runs": 2, "n_images": 4})
    make_study(tmp_path, **SMALL | {"n_images": 4})
    assert [name for name in files_of(tmp_path) if "run-02" in name] == []
    assert sum("run-01_bold.nii" in name for name in files_of(tmp_path)) == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [("seed", 1), ("noise", 0.5), ("motion", 3.0), ("voxel_size", 7.0), ("n_images", 10)],
)
def test_parameters_have_an_effect_on_the_bold(study, tmp_path, option, value):
    make_study(tmp_path, **SMALL | {option: value})
    other, this = bold_of(study), bold_of(tmp_path)
    same = other.shape == this.shape and np.array_equal(other.dataobj, this.dataobj)
    assert not same
    if option == "voxel_size":
        assert this.header.get_zooms()[:3] == (7, 7, 7)
    if option == "n_images":
        assert len(list((tmp_path / "bids" / "stimuli").iterdir())) == 10
        assert len(events_of(tmp_path)) == 10
    if option == "motion":
        moved = [
            np.ptp(load_truth(o, "task-objects_run-01_motion")["parameters"], axis=0)
            for o in (tmp_path, study)
        ]
        np.testing.assert_allclose(moved[0], 3 * moved[1])


@pytest.mark.parametrize(
    "bad", [{"n_subjects": 0}, {"noise": -1.0}, {"voxel_size": 0.1}, {"n_images": 1}, {"n_runs": 0}]
)
def test_bad_values_are_named(tmp_path, bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        make_study(tmp_path, **SMALL | bad)
    assert not any(tmp_path.iterdir())


def test_command_line_tells_bad_input_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "isocortex.phantom", tmp_path, "--voxel-size", "99"],
        capture_output=True,
        text=True,
        cwd=Path(make_study.__code__.co_filename).parents[2],
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "voxel_size is 99" in done.stderr


def test_pictures_are_distinct_and_do_not_depend_on_their_number():
    many, few = make_images(60), make_images(12)
    assert len({pixels.tobytes() for _, _, pixels in many}) == 60
    assert len({name for name, _, _ in many}) == 60
    assert {category for _, category, _ in few} == {category for _, category, _ in many}
    for a, b in zip(few, many):
        assert a[0] == b[0]
        assert np.array_equal(a[2], b[2])
    assert min(pixels.std() for _, _, pixels in many) > 10


def test_events_show_each_picture_once_within_the_run(study):
    names = {p.name for p in (study / "bids" / "stimuli").iterdir()}
    orders = []
    for run in (1, 2):
        events = events_of(study, run)
        onsets = np.array([float(e["onset"]) for e in events])
        assert {e["stim_file"] for e in events} == names
        assert len(events) == len(names)
        assert np.diff(onsets).mean() <= 3.3
        assert onsets[-1] + 12 <= bold_of(study, run).shape[3] * 2.0
        orders.append([e["stim_file"] for e in events])
    assert orders[0] != orders[1]


def test_headers_and_sidecars_agree(study):
    image = bold_of(study)
    sidecar = study / "bids" / "sub-01" / "func" / "sub-01_task-objects_run-01_bold.json"
    times = json.loads(sidecar.read_text())["SliceTiming"]
    root = json.loads((study / "bids" / "task-objects_bold.json").read_text())
    assert len(times) == image.shape[2]
    assert 0 == min(times) < max(times) < root["RepetitionTime"] == image.header.get_zooms()[3]
    assert not np.all(np.diff(times[: len(times) // 2]) > 0)
    assert image.dataobj.slope == 2.0
    assert image.get_data_dtype() == np.int16


def test_atlas_is_on_the_template_grid_and_every_region_is_whole():
    atlas = make_atlas()
    data = np.asarray(atlas.dataobj)
    assert data.shape == (99, 117, 95)
    for number, region in enumerate(REGIONS, start=1):
        ball = 4 / 3 * np.pi * region.radius**3
        assert 8 * (data == number).sum() > 1.5 * ball, region.name
        labels, n = ndimage.label(data == number)
        sizes = np.sort(ndimage.sum_labels(data == number, labels, range(1, n + 1)))
        assert sizes[-2:].sum() > 0.97 * sizes.sum(), region.name
    for one in REGIONS:
        for other in REGIONS:
            if one is not other:
                apart = np.linalg.norm(np.subtract(one.centre, other.centre))
                assert apart >= one.radius + other.radius
    assert all(region.centre[0] >= region.radius for region in REGIONS)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_warp_is_smooth_small_and_invertible(seed):
    anatomy = Anatomy(np.random.default_rng(seed))
    axes = [np.arange(-84.0, 85.0, 12.0)] * 3
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    there = anatomy.to_template(points)
    jacobian = np.stack(
        [
            (anatomy.to_template(points + 0.5 * e) - anatomy.to_template(points - 0.5 * e))
            for e in np.eye(3)
        ],
        axis=-1,
    )
    determinant = np.linalg.det(jacobian)
    assert 0.4 < determinant.min() < 0.97
    assert determinant.max() < 2.0
    rest = there - apply_affine(anatomy.affine, points)
    assert 1.0 < np.sqrt((rest**2).sum(axis=1).mean()) < 5.0


def test_truth_of_the_anatomy_goes_with_the_image(study):
    t1w = nib.load(study / "bids" / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    there = nib.load(f"{truth_of(study)}from-T1w_to-MNI152NLin2009aSym_coordinates.nii.gz")
    np.testing.assert_allclose(there.affine, t1w.affine)
    regions = np.asarray(nib.load(f"{truth_of(study)}space-T1w_desc-regions_dseg.nii.gz").dataobj)
    # The atlas, read where the truth says that each voxel lies, is the planted regions, but for
    # its own 2 mm steps at their borders.
    atlas = make_atlas()
    index = apply_affine(np.linalg.inv(atlas.affine), there.get_fdata())
    read = ndimage.map_coordinates(
        np.asarray(atlas.dataobj), np.moveaxis(index, -1, 0), order=0, mode="constant"
    )
    dice = 2 * ((read == regions) & (regions > 0)).sum() / ((read > 0).sum() + (regions > 0).sum())
    assert dice > 0.85
    image, brain = t1w.get_fdata(), {}
    for name in ("GM", "WM", "CSF"):
        brain[name] = nib.load(
            f"{truth_of(study)}space-T1w_label-{name}_probseg.nii.gz"
        ).get_fdata()
    means = [image[brain[name] > 0.9].mean() for name in ("CSF", "GM", "WM")]
    assert means[0] * 1.5 < means[1] < means[2] / 1.2
    rest = load_truth(study, "truth")
    rebuilt = Anatomy(np.random.default_rng(0))
    rebuilt.affine = np.array(rest["affine_to_template"])
    rebuilt.displacement = np.array(rest["bspline_displacement_mm"], dtype=np.float32)
    points = grid_points(t1w.shape, t1w.affine)[::5, ::5, ::5]
    np.testing.assert_allclose(
        rebuilt.to_template(points), there.get_fdata()[::5, ::5, ::5], atol=1e-2
    )


def test_rigid_matrix_keeps_the_centre_and_distances():
    centre = np.array([3.0, -20.0, 10.0])
    matrix = rigid_matrix(np.array([0, 0, 0, 0.1, -0.2, 0.3]), centre)
    np.testing.assert_allclose(apply_affine(matrix, centre[None])[0], centre)
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)
    shift = rigid_matrix(np.array([1.0, 2.0, 3.0, 0, 0, 0]), centre)
    np.testing.assert_allclose(shift[:3, 3], [1, 2, 3])
    quarter = rigid_matrix(np.array([0, 0, 0, 0, 0, np.pi / 2]), np.zeros(3))
    np.testing.assert_allclose(quarter[:3, :3] @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_motion_truth_lays_every_volume_on_the_first(moving):
    bold = bold_of(moving)
    truth = load_truth(moving, "task-objects_run-01_motion")
    matrices = np.array(truth["from_first"])
    poses = np.array(truth["t1w_to_scanner"])
    session = np.array(load_truth(moving, "truth")["session"])
    for pose, parameters in zip(poses, truth["parameters"]):
        again = session @ rigid_matrix(np.array(parameters), np.array(truth["centre"]))
        np.testing.assert_allclose(pose, again, atol=1e-9)
    np.testing.assert_allclose(matrices[0], np.eye(4), atol=1e-9)
    data = bold.get_fdata()
    inside = ndimage.binary_erosion(data[..., 0] > 300, iterations=2)
    points = grid_points(data.shape[:3], bold.affine)[inside]
    far = int(np.argmax(np.linalg.norm(matrices - np.eye(4), axis=(1, 2))))
    first = data[..., 0][inside]

    def difference(matrix):
        index = apply_affine(np.linalg.inv(bold.affine), apply_affine(matrix, points))
        return np.sqrt(np.mean((ndimage.map_coordinates(data[..., far], index.T) - first) ** 2))

    right = difference(matrices[far])
    assert right < 0.3 * difference(np.eye(4))
    # The truth is the best pose, to a tenth of a mm.
    for axis in range(3):
        for step in (-0.3, 0.3):
            shift = np.eye(4)
            shift[axis, 3] = step
            assert difference(shift @ matrices[far]) > right


def test_design_matrix_against_direct_convolution():
    from nilearn.glm.first_level import glover_hrf

    onset, duration = 2.0, 1.0
    times = np.arange(0, 30, 0.5)
    hrf = glover_hrf(0.01, oversampling=1, time_length=32.0, onset=0.0)
    fine = np.arange(0, 60, 0.01)
    direct = np.convolve((fine >= onset) & (fine < onset + duration), hrf)[: len(fine)]
    expected = np.interp(times, fine, direct / direct.max())
    got = design_matrix(np.array([onset]), times, duration=duration)[:, 0]
    np.testing.assert_allclose(got, expected, atol=0.02)
    assert response_curve(duration).max() == 1


def test_plain_glm_recovers_the_planted_responses_without_noise(noiseless):
    """Each slice at its own time: a GLM that ignores slice timing does worse."""
    out, image = noiseless, bold_of(noiseless)
    regions = np.asarray(nib.load(f"{truth_of(out)}space-boldref_desc-regions_dseg.nii.gz").dataobj)
    voxels = np.argwhere(regions > 0)
    archive = np.load(f"{truth_of(out)}responses.npz")
    xyz, spacing = archive["xyz"], SMALL["voxel_size"]
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = xyz.min(axis=0) - 2 * spacing
    index = np.round((xyz - affine[:3, 3]) / spacing).astype(int)
    planted = Responses(
        affine,
        tuple(index.max(axis=0) + 3),
        index,
        archive["region"],
        archive["beta"],
        archive["field"],
    )
    pose = np.array(load_truth(out, "task-objects_run-01_motion")["t1w_to_scanner"])[0]
    points = apply_affine(np.linalg.inv(pose) @ image.affine, voxels.astype(float))
    truth = scanner.interpolate_betas(planted, points)

    names = list(archive["image"])
    events = events_of(out)
    onsets = np.array([float(e["onset"]) for e in events])
    shown = [names.index(e["stim_file"]) for e in events]
    sidecar = out / "bids" / "sub-01" / "func" / "sub-01_task-objects_run-01_bold.json"
    slice_time = np.array(json.loads(sidecar.read_text())["SliceTiming"])[voxels[:, 2]]
    course = image.get_fdata()[tuple(voxels.T)]
    times = np.arange(course.shape[1]) * 2.0

    def fit(delays):
        beta = np.empty_like(truth)
        for k, delay in enumerate(delays):
            design = design_matrix(onsets, times + delay, duration=1.0)
            design = np.column_stack([design, np.ones(len(times))])
            solved = np.linalg.lstsq(design, course[k], rcond=None)[0]
            beta[k, shown] = 100 * solved[:-1] / solved[-1]
        return beta

    right, wrong = fit(slice_time), fit(np.zeros(len(voxels)))
    assert np.corrcoef(right.ravel(), truth.ravel())[0, 1] > 0.99
    assert np.abs(right - truth).mean() < 0.25
    assert np.abs(wrong - truth).mean() > 1.5 * np.abs(right - truth).mean()
    # Nothing answers outside of the regions.
    quiet = ndimage.binary_dilation(regions > 0, iterations=3)
    data = image.get_fdata()
    assert data[~quiet].std(axis=1).max() == 0


def test_tsnr_is_the_declared_one(tmp_path):
    make_study(tmp_path, **SMALL | {"n_images": 40, "motion": 0.0, "voxel_size": 5.0})
    data = bold_of(tmp_path).get_fdata()
    n = data.shape[3]
    drift = np.cos(np.pi * (np.arange(n) + 0.5)[:, None] / n * np.arange(6))
    declared = nib.load(f"{truth_of(tmp_path)}space-boldref_desc-tsnr_statmap.nii.gz").get_fdata()
    regions = nib.load(f"{truth_of(tmp_path)}space-boldref_desc-regions_dseg.nii.gz").get_fdata()
    voxels = (declared > 0) & ~ndimage.binary_dilation(regions > 0, iterations=2)
    course = data[voxels].T
    residual = course - drift @ np.linalg.lstsq(drift, course, rcond=None)[0]
    measured = course.mean(axis=0) / np.sqrt((residual**2).sum(axis=0) / (n - 6))
    ratio = measured / declared[voxels]
    assert abs(np.median(ratio) - 1) < 0.06
    assert 50 < load_truth(tmp_path, "truth")["tsnr_grey_matter"] < 90


def test_noise_ceiling_is_that_of_repeated_estimates(tmp_path):
    """Two runs' least-squares estimates: their covariance is the signal, half their difference
    the noise."""
    make_study(tmp_path, **SMALL | {"n_runs": 2, "n_images": 40, "motion": 0.0, "voxel_size": 4.0})
    image = bold_of(tmp_path)
    regions = np.asarray(
        nib.load(f"{truth_of(tmp_path)}space-boldref_desc-regions_dseg.nii.gz").dataobj
    )
    voxels = np.argwhere(regions > 0)
    names = list(np.load(f"{truth_of(tmp_path)}responses.npz")["image"])
    sidecar = tmp_path / "bids" / "sub-01" / "func" / "sub-01_task-objects_run-01_bold.json"
    slice_time = np.array(json.loads(sidecar.read_text())["SliceTiming"])[voxels[:, 2]]
    betas = np.empty((2, len(names), len(voxels)))
    for run in (1, 2):
        course = bold_of(tmp_path, run).get_fdata()[tuple(voxels.T)].T
        course = 100 * (course / course.mean(axis=0) - 1)
        n = len(course)
        events = events_of(tmp_path, run)
        onsets = np.array([float(e["onset"]) for e in events])
        shown = [names.index(e["stim_file"]) for e in events]
        order = int(np.floor(2 * n * 2.0 / 128))
        drift = np.cos(np.pi * (np.arange(n) + 0.5)[:, None] / n * np.arange(order + 1))
        for delay in np.unique(slice_time):
            these = np.flatnonzero(slice_time == delay)
            design = design_matrix(onsets, np.arange(n) * 2.0 + delay, duration=1.0)
            solved = np.linalg.lstsq(np.hstack([design, drift]), course[:, these], rcond=None)[0]
            betas[run - 1][np.ix_(shown, these)] = solved[: len(shown)]
    assert image.shape[3] == n
    noise = ((betas[0] - betas[1]).var(axis=0) / 2).mean()
    centred = betas - betas.mean(axis=1, keepdims=True)
    signal = (centred[0] * centred[1]).mean(axis=0).mean()
    ceiling = nib.load(f"{truth_of(tmp_path)}space-boldref_desc-single_noiseceiling.nii.gz")
    declared = ceiling.get_fdata()[tuple(voxels.T)].mean()
    assert abs(signal / (signal + noise) - declared) < 0.12
    assert 0.3 < declared < 0.9


def test_regions_are_where_their_coordinates_say():
    for number, region in enumerate(REGIONS, start=1):
        for side in (-1, 1):
            point = np.array([region.centre]) * [side, 1, 1]
            assert region_index(point)[0] == number
    assert region_index(np.array([[0.0, 60.0, 10.0]]))[0] == 0
