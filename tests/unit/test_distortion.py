"""Susceptibility distortion: planted fields come back, and what they did to a run is undone."""

import functools
import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from isocortex.bids import Fieldmap
from isocortex.errors import InputError
from isocortex.fieldmaps_metadata import PhaseEncoding, fieldmap_as_dict, fieldmap_from_dict
from isocortex.phantom.distortion import distorted_epi, phase_images, sinus_field
from isocortex.preprocess import interfaces, resample_series
from isocortex.preprocess.distortion import Distortion, place_field
from isocortex.preprocess.distortion_workflow import FieldOfRun
from isocortex.preprocess.fieldmaps import estimate_fieldmap
from isocortex.preprocess.images import Timing, as_image, save_image
from isocortex.preprocess.interfaces import distortion as own
from isocortex.preprocess.measured_field import (
    field_of_map,
    field_of_phases,
    most_frequent,
    regular_field,
    to_radians,
)
from isocortex.preprocess.opposite_phase import opposite_field
from isocortex.preprocess.spline_field import SplineField, smooth_field
from isocortex.preprocess.transforms import grid_points, rigid_matrix
from isocortex.preprocess.workflows import init_bold_wf
from tests.unit import heads

SIZE = 4.0
SHAPE = (43, 52, 37)
CENTRE = np.array([0.0, -18.0, 10.0])
AFFINE = np.diag([SIZE, SIZE, SIZE, 1.0])
AFFINE[:3, 3] = CENTRE - (np.array(SHAPE) - 1) / 2 * SIZE
READOUT = 0.045
ECHOES = (0.00492, 0.00738)


def head(points):
    """Intensity of the head, 1 where it is bright."""
    return np.maximum(heads.head(points.reshape(-1, 3)), 0).reshape(points.shape[:-1]) / 600


def moved(function, matrix):
    """The same in the pose that a matrix gives."""
    back = np.linalg.inv(matrix)
    return lambda points: function(points @ back[:3, :3].T + back[:3, 3])


def constant(value):
    return lambda points: np.full(points.shape[:-1], value)


FIELD = sinus_field([0, -18, 8], peak=60.0)


@functools.cache
def scanned(axis, sign, flip=(), noise=0.01):
    """An image distorted along an axis of an array that may run backwards in the scanner."""
    affine = np.array(AFFINE)
    for n in flip:
        affine[n, 3] += affine[n, n] * (SHAPE[n] - 1)
        affine[n, n] *= -1
    options = {"axis": axis, "sign": sign, "readout_time": READOUT}
    values = distorted_epi(head, FIELD, SHAPE, affine, **options)
    return values + noise * np.random.default_rng(3).standard_normal(SHAPE), affine


def truth(affine=AFFINE):
    """Intensity and field on a grid, and the inside of the brain."""
    points = grid_points(SHAPE, affine)
    intensity, field = head(points).reshape(SHAPE), FIELD(points).reshape(SHAPE)
    return intensity, field, ndimage.binary_erosion(intensity > 0.35, iterations=2)


def likeness(image, wanted, inside):
    return float(np.corrcoef(image[inside], wanted[inside])[0, 1])


# --- the correction ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "sign", "flip"), [(1, 1, ()), (1, -1, ()), (1, 1, (1,)), (0, 1, ()), (0, -1, (0, 1))]
)
def test_a_known_field_is_undone_in_every_direction_and_orientation(axis, sign, flip):
    image, affine = scanned(axis, sign, flip)
    intensity, field, inside = truth(affine)
    right = Distortion(field, affine, axis, sign, READOUT)
    corrected = likeness(right.correct(image), intensity, inside)
    assert corrected > 0.98
    assert likeness(image, intensity, inside) < 0.85
    # the other polarity makes it worse: the sign is no matter of taste
    wrong = Distortion(field, affine, axis, -sign, READOUT)
    assert likeness(wrong.correct(image), intensity, inside) < 0.7


def test_the_jacobian_conserves_intensity():
    image, _ = scanned(1, 1, noise=0.0)
    intensity, field, inside = truth()
    whole = Distortion(field, AFFINE, 1, 1, READOUT)
    plain = Distortion(field, AFFINE, 1, 1, READOUT, modulate=False)
    assert whole.correct(image).sum() == pytest.approx(intensity.sum(), rel=0.01)
    error = [np.abs(d.correct(image) - intensity)[inside].mean() for d in (whole, plain)]
    assert error[0] < 0.6 * error[1]
    np.testing.assert_array_equal(plain.jacobian(grid_points(SHAPE, AFFINE)), 1)


def test_the_shift_is_field_times_readout_time_and_the_edge_holds():
    ramp = np.broadcast_to(np.arange(SHAPE[1], dtype=float)[:, None], SHAPE) * 2.0
    distortion = Distortion(ramp, AFFINE, 1, -1, 0.05)
    points = grid_points((2, 3, 2), AFFINE) + 0.4 * AFFINE[:3, 1]
    index = np.array([0.4, 1.4, 2.4])[np.arange(len(points)) // 2 % 3]
    np.testing.assert_allclose(distortion.shift(points), -0.05 * 2 * index, atol=1e-6)
    np.testing.assert_allclose(distortion.jacobian(points), 1 - 0.1, atol=1e-6)
    far = points + 1e4 * np.array([0, 1, 0])
    np.testing.assert_allclose(distortion.shift(far), -0.05 * 2 * (SHAPE[1] - 1), atol=1e-5)


def test_a_distortion_is_read_as_it_was_written(tmp_path):
    _, field, _ = truth()
    written = Distortion(field, AFFINE, 0, -1, 0.03, modulate=False)
    read = Distortion.load(written.save(tmp_path / "d.npz"))
    np.testing.assert_array_equal(read.voxels, written.voxels)
    assert (read.axis, read.sign, read.modulate) == (0, -1, False)


def test_the_field_moves_with_the_head_through_the_one_resampling():
    pose = rigid_matrix(np.array([2.0, -1.5, 1.0, 0.05, -0.03, 0.06]), CENTRE)
    options = {"axis": 1, "sign": -1, "readout_time": READOUT}
    still = distorted_epi(head, FIELD, SHAPE, AFFINE, **options)
    turned = distorted_epi(moved(head, pose), moved(FIELD, pose), SHAPE, AFFINE, **options)
    intensity, field, inside = truth()
    series = np.stack([still, turned], axis=-1).astype(np.float32)
    resampled, _ = resample_series(
        series,
        AFFINE,
        np.stack([np.eye(4), pose]),
        grid_points(SHAPE, AFFINE),
        SHAPE,
        distortion=Distortion(field, AFFINE, 1, -1, READOUT),
    )
    for volume in range(2):
        assert likeness(resampled[..., volume], intensity, inside) > 0.98


# --- opposite phase encoding ---------------------------------------------------------------


@pytest.mark.parametrize(("axis", "flip"), [(1, ()), (0, (0,))])
def test_opposite_phase_encoding_gives_the_field(axis, flip):
    first, affine = scanned(axis, 1, flip)
    second, _ = scanned(axis, -1, flip)
    found = opposite_field(first, second, affine, affine, axis=axis, scales=(READOUT, -READOUT))
    intensity, field, inside = truth(affine)
    error = np.abs(found.field - field)[inside] * READOUT
    # voxels; the planted shifts reach 3
    assert np.median(error) < 0.03
    assert np.percentile(error, 95) < 0.1
    assert found.correlation[1] > 0.97 > 0.7 > found.correlation[0]
    # in the air, too, the field is one that could be
    assert np.abs(found.field).max() < 3 * np.abs(field[inside]).max()
    assert (
        likeness(found.corrected[0], intensity, inside) > 0.95 > likeness(first, intensity, inside)
    )
    if flip:
        again = opposite_field(first, second, affine, affine, axis=axis, scales=(READOUT, -READOUT))
        np.testing.assert_array_equal(again.field, found.field)


def test_a_head_that_moved_between_both_directions_is_aligned():
    # 1.2 mm along the phase encoding cannot be told from a constant shift by half of it
    pose = rigid_matrix(np.array([1.0, 1.2, -0.8, 0.02, -0.01, 0.015]), CENTRE)
    first, _ = scanned(1, 1)
    options = {"axis": 1, "sign": -1, "readout_time": READOUT}
    second = distorted_epi(moved(head, pose), moved(FIELD, pose), SHAPE, AFFINE, **options)
    found = opposite_field(first, second, AFFINE, AFFINE, axis=1, scales=(READOUT, -READOUT))
    _, field, inside = truth()
    away = (found.field - field)[inside] * READOUT
    assert np.median(away) == pytest.approx(-1.2 / SIZE / 2, abs=0.03)
    assert np.median(np.abs(away - np.median(away))) < 0.05
    left = found.matrix[:3, :3] @ CENTRE + found.matrix[:3, 3] - CENTRE
    assert np.abs(left - [1.0, 0.0, -0.8]).max() < 0.15
    assert np.abs(found.matrix[:3, :3] - pose[:3, :3]).max() < 0.005


def test_an_array_turned_round_is_encoded_the_other_way(tmp_path, monkeypatch):
    """j and j in arrays that run opposite ways in the scanner are opposite; j and j- are not."""
    seen = {}

    def stop(*_, scales, **__):
        seen["scales"] = scales
        raise StoppedError

    monkeypatch.setattr(own, "opposite_field", stop)
    values = np.random.default_rng(0).random((6, 7, 5)).astype(np.float32)
    turned = np.array(AFFINE)
    turned[:3, 1] *= -1
    paths = []
    for number, affine in enumerate((AFFINE, turned)):
        paths.append(str(tmp_path / f"{number}.nii"))
        save_image(paths[-1], values, affine)
    options = {"axis": 1, "readout_times": (0.03, 0.04)}
    for signs, opposite in (((1, 1), True), ((1, -1), False)):
        node = own.OppositeField(first=paths[:1], second=paths[1:], signs=signs, **options)
        with pytest.raises(StoppedError if opposite else InputError):
            node.run(cwd=str(tmp_path))
    assert seen["scales"] == pytest.approx((0.03, -0.04))


class StoppedError(Exception):
    """In place of the estimation."""


def test_images_of_one_direction_have_no_field_between_them():
    first, _ = scanned(1, 1)
    with pytest.raises(ValueError, match="opposite directions"):
        opposite_field(first, first, AFFINE, AFFINE, axis=1, scales=(0.04, 0.03))


# --- measured fields -----------------------------------------------------------------------


@functools.cache
def echoes():
    strong = sinus_field([0, -18, 8], peak=260.0)
    rng = np.random.default_rng(0)
    images = phase_images(head, strong, SHAPE, AFFINE, echo_times=ECHOES, rng=rng)
    return images, strong(grid_points(SHAPE, AFFINE)).reshape(SHAPE)


@pytest.mark.parametrize("names", [("phasediff",), ("phase1", "phase2")])
def test_wrapped_phases_give_the_field(names):
    images, field = echoes()
    inside = truth()[2]
    assert (np.abs(field[inside]) * (ECHOES[1] - ECHOES[0]) > 0.5).any()
    found = field_of_phases(
        [images[name] for name in names], images["magnitude1"], [SIZE] * 3, echo_times=ECHOES
    )
    away = (found - field)[inside]
    error = np.abs(away - np.median(away))
    assert np.median(error) < 2.0  # Hz: 0.1 voxels at a readout time of 50 ms
    assert np.percentile(error, 99) < 8.0
    assert np.isfinite(found).all()
    assert np.abs(found).max() < 1.5 * np.abs(field[inside]).max()
    # what is taken off is the field of most of the brain
    assert abs(most_frequent(found[inside])) < 5


@pytest.mark.parametrize(
    ("units", "scale"), [("Hz", 1.0), ("rad/s", 2 * np.pi), ("T", 1 / 42.577478518e6)]
)
def test_a_measured_field_is_brought_to_hertz(units, scale):
    images, field = echoes()
    inside = truth()[2]
    away = field_of_map(field * scale, units, images["magnitude1"], [SIZE] * 3)[inside]
    away = away - field[inside]
    assert np.abs(away - np.median(away)).max() < 6


def test_a_voxel_far_from_its_neighbours_counts_nothing():
    images, field = echoes()
    inside = truth()[2]
    broken = field.copy()
    broken[21, 26, 18] += 5000
    options = (images["magnitude1"], inside, [SIZE] * 3)
    np.testing.assert_allclose(
        regular_field(broken, *options)[inside], regular_field(field, *options)[inside], atol=1.0
    )


@pytest.mark.parametrize(
    ("scale", "kind"),
    [
        (lambda p: p, float),
        (lambda p: p + np.pi, float),
        (lambda p: np.round((p + np.pi) / (2 * np.pi) * 4095), int),
        (lambda p: np.round(p / np.pi * 4095), int),
        (lambda p: (p + np.pi) * 17.3, float),
    ],
)
def test_phases_in_any_units_are_radians_but_for_a_constant(scale, kind):
    phase = np.random.default_rng(1).uniform(-np.pi, np.pi, (20, 20, 20))
    phase[0, 0, :2] = [-np.pi, np.pi]
    found = to_radians(scale(phase).astype(kind), "x")
    away = np.angle(np.exp(1j * (found - phase)))
    away = np.angle(np.exp(1j * (away - np.angle(np.exp(1j * away).mean()))))
    assert np.abs(away).max() < 5e-3


def test_a_constant_phase_is_refused():
    with pytest.raises(InputError, match="is constant"):
        to_radians(np.ones((3, 3, 3)), "phase.nii")


# --- splines -------------------------------------------------------------------------------


def test_a_spline_field_is_its_own_derivative_and_adjoint():
    spline = SplineField((20, 23, 9), (3, 2, 4), knots=11, step=(2, 1, 1))
    rng = np.random.default_rng(0)
    one, two = rng.standard_normal(spline.knots), rng.standard_normal(spline.shape)
    for axis in (None, 0, 1, 2):
        assert np.vdot(spline.expand(one, axis), two) == pytest.approx(
            np.vdot(one, spline.gather(two, axis))
        )
    # central differences of a cubic are off by its third derivative only
    slope, field = spline.expand(one, 1), spline.expand(one)
    np.testing.assert_allclose(
        slope[:, 2:-2], np.gradient(field, axis=1)[:, 2:-2], atol=0.05 * np.abs(slope).max()
    )
    whole = SplineField((20, 23, 9), (3, 2, 4), knots=11, step=(1, 1, 1))
    np.testing.assert_allclose(whole.from_field(whole.expand(one)), one, atol=1e-8)


def test_the_bending_energy_of_a_parabola_is_its_closed_form():
    shape, size = (30, 12, 10), (2.0, 3.0, 4.0)
    spline = SplineField(shape, size, knots=9, step=(1, 1, 1))
    x = (np.arange(30) * 2.0)[:, None, None]
    values = spline.from_field(np.broadcast_to(0.5 * 0.1 * x**2, shape))
    assert np.vdot(values, spline.bend(values)) == pytest.approx(0.1**2, rel=1e-6)
    slanted = spline.from_field(np.broadcast_to(3 + 2 * x, shape))
    assert np.vdot(slanted, spline.bend(slanted)) == pytest.approx(0, abs=1e-9)


def test_a_smooth_field_goes_on_where_nothing_was_measured():
    x = np.linspace(-1, 1, 24)[:, None, None] + np.zeros((24, 20, 18))
    weights = (np.abs(x) < 0.7).astype(float)
    field = np.where(weights > 0, 40 * x, 1e6)
    found = smooth_field(field, weights, (4, 4, 4))
    np.testing.assert_allclose(found[weights > 0], 40 * x[weights > 0], atol=0.3)
    assert np.abs(found).max() < 60


# --- a run ---------------------------------------------------------------------------------


def test_a_run_is_undistorted_with_a_field_from_another_pose(tmp_path):
    intensity, field, _ = truth()
    save_image(tmp_path / "field.nii.gz", field.astype(np.float32), AFFINE)
    save_image(tmp_path / "reference.nii.gz", (1000 * intensity).astype(np.float32), AFFINE)
    pose = rigid_matrix(np.array([6.0, -9.0, 3.0, 0.04, -0.02, 0.03]), CENTRE)
    options = {"axis": 1, "sign": -1, "readout_time": READOUT}
    image = distorted_epi(moved(head, pose), moved(FIELD, pose), SHAPE, AFFINE, **options)
    save_image(tmp_path / "bold.nii", (800 * image).astype(np.float32), AFFINE)
    node = interfaces.UndistortReference(
        reference=str(tmp_path / "bold.nii"),
        field=str(tmp_path / "field.nii.gz"),
        field_reference=str(tmp_path / "reference.nii.gz"),
        kind="phasediff",
        seed=1,
        **options,
    )
    made = node.run(cwd=str(tmp_path)).outputs
    points = grid_points(SHAPE, AFFINE)
    wanted = moved(head, pose)(points).reshape(SHAPE)
    there = ndimage.binary_erosion(wanted > 0.35, iterations=2)
    corrected = np.asarray(nib.load(made.reference).dataobj)
    assert likeness(corrected, wanted, there) > 0.97 > 0.85 > likeness(image, wanted, there)
    shifts = Distortion.load(made.distortion).shift(points).reshape(SHAPE)
    planted = -READOUT * moved(FIELD, pose)(points).reshape(SHAPE)
    # half of it is the registration: the grid's voxels are 4 mm
    error = np.median(np.abs(shifts - planted)[there])
    unplaced = -READOUT * FIELD(points).reshape(SHAPE)
    assert error < 0.1
    assert error < 0.4 * np.median(np.abs(unplaced - planted)[there])
    assert made.qc["distortion"] == "phasediff"
    assert made.qc["fieldmap_moved_mm"] == pytest.approx(np.sqrt(126), abs=0.8)
    assert made.qc["distortion_max_mm"] == pytest.approx(
        np.percentile(np.abs(planted[there]), 99.5) * SIZE, rel=0.25
    )


def test_a_reference_is_placed_as_it_would_have_been_recorded():
    # without distorting the field's reference, the registration would follow the distortion
    intensity, field, _ = truth()
    image, _ = scanned(1, 1)
    matrix = place_field(
        as_image(field.astype(np.float32), AFFINE),
        as_image(intensity.astype(np.float32), AFFINE),
        as_image(image.astype(np.float32), AFFINE),
        axis=1,
        sign=1,
        total_readout_time=READOUT,
        seed=1,
    )
    corners = np.array([[60, 60, 40], [-60, -90, 40], [0, 0, -30.0]]) + CENTRE
    gone = corners @ matrix[:3, :3].T + matrix[:3, 3] - corners
    assert np.linalg.norm(gone, axis=1).max() < 0.8


def bold_workflow(distortion, **options):
    return init_bold_wf(
        timing=Timing(2.0, None, 2),
        spaces=["T1w"],
        resolution=3.0,
        slice_timing=None,
        interpolation="cubic",
        dummy_scans=0,
        fd_threshold=0.5,
        dvars_threshold=1.5,
        high_pass=128.0,
        compcor=0.5,
        series_gb=0.01,
        seed=1,
        distortion=distortion,
        **options,
    )


def connections(workflow):
    """Where the reference and the distortion of each node come from."""
    return {
        (target.name, name): source.name
        for source, target, data in workflow._graph.edges(data=True)
        for output, name in data["connect"]
        if output in ("reference", "distortion") and source.name != "coregister"
    }


def test_the_run_s_workflow_takes_the_undistorted_reference_where_there_is_a_field(tmp_path):
    for name in ("field.nii.gz", "reference.nii.gz"):
        save_image(tmp_path / name, np.ones((4, 4, 4), np.float32), AFFINE)
    given = FieldOfRun(
        tmp_path / "field.nii.gz",
        tmp_path / "reference.nii.gz",
        kind="pepolar",
        encoding=PhaseEncoding(1, -1, 0.03),
        jacobian=False,
    )
    workflow = bold_workflow(given)
    wired = connections(workflow)
    assert wired[("coregister", "reference")] == "undistort_reference"
    assert wired[("resample", "distortion")] == "undistort_reference"
    assert wired[("figures", "recorded")] == "estimate_motion"
    node = workflow.get_node("undistort_reference").inputs
    assert (node.axis, node.sign, node.readout_time, node.modulate) == (1, -1, 0.03, False)


def test_a_run_without_a_field_is_left_alone_and_says_why():
    workflow = bold_workflow(None, distortion_note="the dataset has no fieldmap for it")
    wired = connections(workflow)
    assert wired[("coregister", "reference")] == "estimate_motion"
    assert ("resample", "distortion") not in wired
    assert workflow.get_node("figures").inputs.distortion == {
        "distortion": "none",
        "distortion_note": "the dataset has no fieldmap for it",
    }


def test_a_constant_field_moves_the_phantom_by_whole_voxels_and_loses_nothing():
    intensity = truth()[0]
    options = {"axis": 1, "sign": -1, "readout_time": READOUT, "spins": 2}
    still = distorted_epi(head, constant(0.0), SHAPE, AFFINE, **options)
    gone = distorted_epi(head, constant(3 / READOUT), SHAPE, AFFINE, **options)
    np.testing.assert_allclose(gone[:, :-3], still[:, 3:], atol=1e-9)
    assert still.sum() == pytest.approx(intensity.sum(), rel=1e-3)
    bent = distorted_epi(head, FIELD, SHAPE, AFFINE, **options)
    assert bent.sum() == pytest.approx(still.sum(), rel=1e-3)


# --- the rule ------------------------------------------------------------------------------


def outputs(folder):
    names = {"field": "field.nii.gz", "reference": "reference.nii.gz", "sidecar": "field.json"}
    names |= {"reference_sidecar": "reference.json", "figures": "figures"}
    return {name: folder / file for name, file in names.items()} | {
        "manifest": folder / "manifest.json"
    }


def test_the_rule_estimates_a_field_from_files(tmp_path):
    files, sidecars = [], []
    for number, (direction, sign) in enumerate((("j-", -1), ("j", 1))):
        path = tmp_path / f"sub-01_dir-{number}_epi.nii.gz"
        save_image(path, (1000 * scanned(1, sign)[0]).astype(np.int16), AFFINE)
        told = {"PhaseEncodingDirection": direction, "EffectiveEchoSpacing": READOUT / 51}
        path.with_name(f"sub-01_dir-{number}_epi.json").write_text(json.dumps(told))
        files.append(path)
        sidecars.append((path.with_name(f"sub-01_dir-{number}_epi.json"),))
    fieldmap = Fieldmap("a", "fmap/sub-01_fmapid-a", "pepolar", tuple(files), tuple(sidecars))
    assert fieldmap_from_dict(fieldmap_as_dict(fieldmap)) == fieldmap
    options = {"subject": "01", "seed": 1, "log": tmp_path / "log.txt"}
    estimate_fieldmap(fieldmap, outputs=outputs(tmp_path / "out"), **options)
    _, field, inside = truth()
    found = np.asarray(nib.load(tmp_path / "out" / "field.nii.gz").dataobj)
    assert np.median(np.abs(found - field)[inside]) * READOUT < 0.03
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["qc"]["fieldmap"] == "pepolar"
    assert manifest["qc"]["correlation_after"] > 0.95
    listing = json.loads((tmp_path / "out" / "figures" / "figures.json").read_text())
    assert [len(entry.get("files", [1])) for entry in listing] == [1, 2, 2]
    assert json.loads((tmp_path / "out" / "field.json").read_text())["Units"] == "Hz"
