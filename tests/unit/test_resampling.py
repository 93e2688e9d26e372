"""The one resampling: motion, slice timing, distortion and registration against closed forms."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn import surface as peer
from scipy import ndimage
from scipy.interpolate import CubicSpline

from isocortex.errors import InputError
from isocortex.preprocess import (
    correct_slice_timing,
    interfaces,
    resample_labels,
    resample_series,
)
from isocortex.preprocess import resampling as code
from isocortex.preprocess.distortion import Distortion
from isocortex.preprocess.images import SeriesWriter, Timing, as_image
from isocortex.preprocess.resampling import grid_around, sample_series, voxel_offsets
from isocortex.preprocess.slice_timing import SliceTiming
from isocortex.preprocess.surfaces import DEPTHS, SurfaceSeries
from isocortex.preprocess.transforms import (
    AffineTransform,
    DisplacementField,
    grid_points,
    rigid_matrix,
    write_composite,
    write_itk_affine,
)
from isocortex.surface import template_surface
from tests.unit.heads import FLIPPED, OBLIQUE, head, moved_series, save


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


SINE = {"period": 24.0, "tr": 2.0}
CENTRE = np.array([0.0, -15, 20])


def scanned(times, motion, *, n_volumes, shape=(26, 30, 24), axis=2):
    """A head whose brightness is a sinusoid, read slice by slice while it moves.

    Each slice sees the head in the pose and brightness of its own moment: a closed form.
    """
    affine = np.diag([7.0, 7, 6, 1])
    affine[:3, 3] = [-88, -120, -55]
    points = grid_points(shape, affine).reshape(*shape, 3)
    series = np.empty((*shape, n_volumes), np.float32)
    for t in range(n_volumes):
        for k, time in enumerate(times):
            at = (slice(None),) * axis + (k,)
            now = (t + time / SINE["tr"]) * SINE["tr"]
            back = np.linalg.inv(rigid_matrix(motion(now), CENTRE))
            place = AffineTransform(back).apply(points[at].reshape(-1, 3))
            brightness = 1 + 0.2 * np.sin(2 * np.pi * now / SINE["period"])
            series[(*at, t)] = (head(place) * brightness).reshape(points[at].shape[:2])
    return series, affine


INTERLEAVED = [*np.arange(0, 24, 2), *np.arange(1, 24, 2)]
BANDS = {
    "ascending": np.arange(24) / 12.0,
    "interleaved": np.argsort(INTERLEAVED) / 12.0,
    "three bands": np.tile(np.argsort([0, 2, 4, 6, 1, 3, 5, 7]) / 4.0, 3),
}


@pytest.mark.parametrize("order", ["slices_first", "motion_first"])
@pytest.mark.parametrize("bands", BANDS)
def test_a_sinusoid_in_a_moving_head_is_recovered(bands, order):
    """Every volume shows the head of the reference, as bright as at the reference time."""
    times, tr = BANDS[bands], SINE["tr"]

    def motion(now):
        # nods and shifts by up to two thirds of a slice, slowly
        phase = 2 * np.pi * now / 90.0
        return np.array([0.5, 0.3, 4.0 * np.sin(phase), 0.02 * np.sin(phase), 0.0, 0.01])

    n_volumes, reference_time = 24, 1.0
    series, affine = scanned(times, motion, n_volumes=n_volumes)
    # what motion correction knows: the pose in the middle of each volume
    matrices = np.array(
        [rigid_matrix(motion(t * tr + reference_time), CENTRE) for t in range(n_volumes)]
    )
    rng = np.random.default_rng(0)
    points = rng.uniform([-45, -75, -15], [45, 45, 50], (1500, 3))
    timing = SliceTiming(tuple(times), 2, tr, reference_time, order=order)
    found, plain = (
        np.array([v for (v,) in sample_series(series, affine, matrices, [points], **options)])
        for options in ({"slice_timing": timing}, {})
    )
    now = np.arange(n_volumes) * tr + reference_time
    brightness = 1 + 0.2 * np.sin(2 * np.pi * now / SINE["period"])
    truth = head(points)
    inner = slice(4, -4)
    # brightness over the whole brain and per point, with what spatial blur does taken out
    still = found.mean(axis=0) / brightness.mean()
    error = (found / still - brightness[:, None])[inner][:, truth > 300]
    missed = (plain / still - brightness[:, None])[inner][:, truth > 300]
    rms = np.sqrt(np.mean(error**2))
    assert rms < 0.6 * np.sqrt(np.mean(missed**2))
    assert np.abs(error.mean(axis=1)).max() < 0.006
    assert rms < 0.03


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


# --- the interface -------------------------------------------------------------------------


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
    made = interfaces.ResampleSeries(
        **{name: str(path) for name, path in paths.items()},
        spaces=["T1w"],
        resolution=4.0,
        repetition_time=2.0,
    ).run(cwd=tmp_path)
    found, inside = nib.load(made.outputs.bold[0]), nib.load(made.outputs.mask[0])
    assert found.shape[:3] == inside.shape
    voxels = np.asarray(inside.dataobj) > 0
    truth = head(grid_points(inside.shape, inside.affine)).reshape(inside.shape)
    for volume in np.moveaxis(np.asarray(found.dataobj), -1, 0):
        error = (volume - truth)[voxels]
        assert np.sqrt((error**2).mean()) < 0.03 * truth[voxels].std()
    volume = voxels.sum() / mask.sum()
    assert 0.9 < volume < 1.1
