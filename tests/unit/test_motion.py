"""Head motion: against closed forms, the phantom's truth, ANTs and nipype's displacement."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
from nipype.algorithms.confounds import FramewiseDisplacement
from scipy import ndimage

from benchmarks.motion import make_phantom_run
from isocortex.errors import InputError
from isocortex.preprocess import interfaces, motion
from isocortex.preprocess.masks import epi_mask
from isocortex.preprocess.motion import (
    RigidAligner,
    estimate_motion,
    reference_volume,
    typical_volume,
)
from isocortex.preprocess.motion_ants import AntsAligner
from isocortex.preprocess.transforms import (
    AffineTransform,
    grid_points,
    read_motion,
    rigid_matrix,
    rigid_parameters,
)
from tests.unit.heads import FLIPPED, OBLIQUE, moved_series, save

CENTRE = np.array([0.0, -15, 20])
STEPS = np.array([0.2, 0.2, 0.2, 0.003, 0.003, 0.003])


def head_mask(series):
    return ndimage.binary_dilation(series.mean(axis=-1) > 200)


def errors_of(matrices, truth, *, centre=CENTRE):
    """How far each pose is off as (time, 6) parameters: mm and degrees about a centre."""
    off = [np.linalg.inv(true) @ found for true, found in zip(truth, matrices, strict=True)]
    return np.array([rigid_parameters(m, centre) for m in off]) * np.r_[1, 1, 1, [180 / np.pi] * 3]


def rms(errors):
    return np.sqrt(np.mean(np.square(errors), axis=0))


@pytest.mark.parametrize("affine", [OBLIQUE, FLIPPED], ids=["oblique", "flipped"])
def test_motion_is_recovered(affine):
    rng = np.random.default_rng(2)
    truth = np.cumsum(rng.standard_normal((8, 6)) * STEPS, axis=0)
    truth[4:] += [1.0, -1.5, 2.0, 0.03, -0.02, 0.02]
    series = moved_series(affine, truth, CENTRE, noise=12.0)  # tSNR about 60
    options = {"mask": head_mask(series), "centre": CENTRE}
    reference = reference_volume(series, affine, **options)
    matrices, parameters = estimate_motion(series, affine, reference=reference, **options)
    np.testing.assert_allclose(
        [rigid_parameters(m, CENTRE) for m in matrices], parameters, atol=1e-12
    )
    # the reference is in the pose of one volume, up to what that one's noise adds
    poses = np.array([rigid_matrix(row, CENTRE) for row in truth])
    typical = typical_volume(series, affine)
    errors = errors_of(matrices, poses @ np.linalg.inv(poses[typical]))
    assert np.abs(errors.mean(axis=0)).max() < 0.12
    found = rms(errors - errors.mean(axis=0))
    assert found[:3].max() < 0.06, "mm"
    assert found[3:].max() < 0.06, "degrees"


@cache
def phantom_run():
    return make_phantom_run(voxel_size=4.0, n_volumes=14)


def test_motion_of_the_phantom_is_within_a_twentieth_of_a_millimetre_and_degree():
    """Truth: all slices of a volume see the head in one pose, and the signal at their own times.

    What is compared is each volume's pose as seen from the volume in whose pose the reference is,
    in the scanner's axes about the head's centre: a parameter at a time, nothing subtracted.
    """
    made = phantom_run()
    scan, grid, centre = made.scan, made.grid, made.centre
    assert 40 < made.tsnr < 50
    assert len(np.unique(grid.slice_times)) > 10
    series = scan.data.astype(np.float32)
    mask = ndimage.binary_dilation(epi_mask(series.mean(axis=-1)))
    options = {"mask": mask, "centre": centre}
    reference = reference_volume(series, grid.affine, **options)
    matrices, _ = estimate_motion(series, grid.affine, reference=reference, **options)
    typical = typical_volume(series, grid.affine)
    truth = scan.poses @ np.linalg.inv(scan.poses[typical])
    found = rms(errors_of(matrices, truth, centre=centre))
    assert found[:3].max() < 0.05, "mm"
    assert found[3:].max() < 0.05, "degrees"
    # the bounds say something: the head did move
    moved = rms(errors_of(truth, np.tile(np.eye(4), (len(truth), 1, 1)), centre=centre))
    assert moved.min() > 0.1


def test_smooth_noise_is_weighed_for_what_it_is(monkeypatch):
    """Generalised least squares beats ordinary where neighbours share their noise."""
    made = phantom_run()
    scan, grid, centre = made.scan, made.grid, made.centre
    series = scan.data.astype(np.float32)
    mask = ndimage.binary_dilation(epi_mask(series.mean(axis=-1)))
    found = []
    for share in (motion._NOISE_SHARE, 0.0):
        monkeypatch.setattr(motion, "_NOISE_SHARE", share)
        aligner = RigidAligner(series[..., 0], grid.affine, mask, centre)
        truth = scan.poses @ np.linalg.inv(scan.poses[0])
        errors = errors_of(aligner.align_all(series), truth, centre=centre)
        found.append(rms(errors - errors.mean(axis=0))[3:].mean())
    assert found[0] < 0.8 * found[1]


def test_without_noise_whole_and_broken_voxels_are_found_alike():
    """The B-spline of the samples moves with the head: no bias towards whole voxels."""
    affine = FLIPPED @ np.diag([0.75, 0.75, 0.75, 1])  # finer than the head that is sampled
    truth = np.zeros((4, 6))
    truth[:, 0] = [0, 0.7, 1.5, 3.0]  # the last one a voxel
    truth[:, 4] = [0, 0.01, 0.02, 0.03]
    series = moved_series(affine, truth, CENTRE, shape=(59, 70, 56))
    matrices, _ = estimate_motion(
        series, affine, reference=series[..., 0], mask=head_mask(series), centre=CENTRE
    )
    poses = [rigid_matrix(row, CENTRE) for row in truth]
    assert np.abs(errors_of(matrices, poses)).max() < 0.05


def test_any_number_of_threads_gives_the_same_bytes():
    rng = np.random.default_rng(3)
    truth = np.cumsum(rng.standard_normal((4, 6)) * STEPS, axis=0)
    series = moved_series(OBLIQUE, truth, CENTRE, noise=12.0)
    before = series.copy()
    options = {"mask": head_mask(series), "centre": CENTRE}
    found = []
    for threads in (1, 3):
        reference = reference_volume(series, OBLIQUE, threads=threads, **options)
        matrices, _ = estimate_motion(
            series, OBLIQUE, reference=reference, threads=threads, **options
        )
        found.append(reference.tobytes() + matrices.tobytes())
    assert found[0] == found[1]
    np.testing.assert_array_equal(series, before)


def test_a_burst_of_motion_and_a_head_that_stays_away():
    truth = np.zeros((8, 6))
    truth[2] = [9, -8, 6, 0.12, -0.1, 0.1]
    truth[3] = [-10, 6, -9, -0.1, 0.15, -0.12]
    truth[6:] = [6, -12, 9, 0.1, 0.06, -0.15]
    series = moved_series(FLIPPED, truth, CENTRE, noise=12.0)
    # in the burst the brightness changes with the excited tissue, and a slice is lost
    series[..., 2] *= 0.7
    series[:, :, 20, 3] = 0
    mask = head_mask(series[..., [0, 1, 4, 5]])
    reference = reference_volume(series, FLIPPED, mask=mask, centre=CENTRE)
    assert typical_volume(series, FLIPPED) in (0, 1, 4, 5)
    matrices, _ = estimate_motion(series, FLIPPED, reference=reference, mask=mask, centre=CENTRE)
    errors = np.abs(errors_of(matrices, [rigid_matrix(row, CENTRE) for row in truth]))
    assert errors[[2, 3]].max() < 0.6
    assert errors[[0, 1, 4, 5, 6, 7]].max() < 0.2


@pytest.mark.parametrize("n_slices", [1, 2, 4, 9])
def test_few_slices(n_slices):
    """Motion that one slice cannot show is left at zero; what it shows is found."""
    affine = FLIPPED @ rigid_matrix(np.array([0, 0, 14.0, 0, 0, 0]), np.zeros(3))
    shape = (44, 54, n_slices)
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    truth = np.array([[0.0] * 6, [0.9, -0.6, 0, 0, 0, 0.03], [-0.5, 1.3, 0, 0, 0, -0.02]])
    series = moved_series(affine, truth, middle, shape=shape, noise=5.0)
    mask = series[..., 0] > 200
    matrices, parameters = estimate_motion(
        series, affine, reference=series[..., 0], mask=mask, centre=middle
    )
    errors = np.abs(errors_of(matrices, [rigid_matrix(r, middle) for r in truth], centre=middle))
    assert errors[:, [0, 1, 5]].max() < 0.12
    if n_slices == 1:
        assert np.abs(parameters[:, [2, 3, 4]]).max() < 1e-6
    if n_slices > 4:
        assert errors.max() < 0.3


def test_a_volume_of_noise_stays_near():
    """No brain to be seen: the pose is finite, and the volumes after it are found again."""
    rng = np.random.default_rng(0)
    series = moved_series(FLIPPED, np.zeros((4, 6)), CENTRE, noise=12.0)
    series[..., 2] = 50 * rng.standard_normal(series.shape[:3])
    matrices, parameters = estimate_motion(
        series,
        FLIPPED,
        reference=series[..., 0],
        mask=head_mask(series[..., :2]),
        centre=CENTRE,
    )
    assert np.isfinite(parameters).all()
    assert np.abs(errors_of(matrices[[1, 3]], np.tile(np.eye(4), (2, 1, 1)))).max() < 0.1


def test_motion_agrees_with_ants():
    truth = np.array([[0.0] * 6, [0.8, -0.5, 1.1, 0.02, -0.015, 0.01]])
    series = moved_series(FLIPPED, truth, CENTRE, noise=5.0)
    arguments = (series[..., 0], FLIPPED, series[..., 0] > 200, CENTRE)
    theirs = AntsAligner(*arguments, seed=1)
    twice = [theirs.align(series[..., 1]) for _ in range(2)]
    assert twice[0].tobytes() == twice[1].tobytes()
    corners = np.array([[60, 40, 60], [-60, -90, -30], [0, 0, 0], [50, -80, 50]], float)
    exact = AffineTransform(rigid_matrix(truth[1], CENTRE)).apply(corners)
    ours = AffineTransform(RigidAligner(*arguments).align(series[..., 1])).apply(corners)
    peer = AffineTransform(twice[0]).apply(corners)
    assert np.abs(ours - peer).max() < 0.2
    assert np.abs(ours - exact).max() <= np.abs(peer - exact).max() + 0.02


def test_ants_refuses_a_slab_that_it_cannot_register():
    with pytest.raises(InputError, match="motion is ants but volumes are 9x9x3 voxels"):
        AntsAligner(np.ones((9, 9, 3)), np.eye(4), np.ones((9, 9, 3), bool), seed=1)


def test_both_interfaces_write_the_same_files_and_their_displacement_is_nipypes(tmp_path):
    truth = np.zeros((5, 6))
    truth[1] = [0.8, -0.5, 1.1, 0.02, -0.015, 0.01]
    series = moved_series(FLIPPED, truth, CENTRE, noise=5.0)[::2, ::2, ::2]
    affine = FLIPPED @ np.diag([2.0, 2, 2, 1])
    path = str(save(tmp_path / "run.nii", series, affine, repetition_time=2.0))
    centre = affine[:3, :3] @ ((np.array(series.shape[:3]) - 1) / 2) + affine[:3, 3]
    tables = []
    for name, node in (
        ("gauss", interfaces.EstimateMotion(in_file=path)),
        ("ants", interfaces.EstimateMotionAnts(in_file=path, seed=1)),
    ):
        (tmp_path / name).mkdir()
        made = node.run(cwd=tmp_path / name).outputs
        matrices = read_motion(made.matrices)
        written = np.loadtxt(made.parameters)
        # rotations first, about the middle of the grid
        parameters = np.array([rigid_parameters(m, centre) for m in matrices])
        np.testing.assert_allclose(written, parameters[:, [3, 4, 5, 0, 1, 2]], atol=1e-7)
        (tmp_path / name / "fd").mkdir()
        node = FramewiseDisplacement(
            in_file=made.parameters,
            parameter_source="FSL",
            out_file=str(tmp_path / name / "fd.txt"),
        )
        node.run(cwd=tmp_path / name / "fd")
        theirs = pd.read_csv(tmp_path / name / "fd.txt", sep="\t").to_numpy().ravel()
        step = np.abs(np.diff(parameters, axis=0))
        expected = step[:, :3].sum(axis=1) + 50 * step[:, 3:].sum(axis=1)
        np.testing.assert_allclose(theirs, expected, atol=1e-6)
        points = grid_points(series.shape[:3], affine)[:: 53 * 7]
        tables.append(
            [AffineTransform(m @ np.linalg.inv(matrices[0])).apply(points) for m in matrices]
        )
    assert np.abs(np.array(tables[0]) - tables[1]).max() < 0.5, "mm, on a grid of 8 mm"
