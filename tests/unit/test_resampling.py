"""The one resampling: motion, slice timing, distortion and registration against closed forms."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn import surface as peer
from scipy import ndimage
from scipy.interpolate import CubicSpline

from isocortex import bids
from isocortex.errors import InputError
from isocortex.glm.timeseries import read_columns
from isocortex.preprocess import (
    correct_slice_timing,
    interfaces,
    resample_labels,
    resample_series,
)
from isocortex.preprocess.images import SeriesWriter, Timing
from isocortex.preprocess.resampling import grid_around, sample_series, voxel_offsets
from isocortex.preprocess.slice_timing import SliceTiming
from isocortex.preprocess.surfaces import SurfaceSeries
from isocortex.preprocess.transforms import (
    AffineTransform,
    DisplacementField,
    grid_points,
    rigid_matrix,
    write_composite,
    write_itk_affine,
)
from isocortex.study import check_spaces
from isocortex.surface import SERIES_DEPTHS as DEPTHS
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
    assert rms < 0.35 * np.sqrt(np.mean(missed**2))
    assert rms < 0.0045, "of 0.14; the blur of a moving head's splines is left"
    assert np.abs(error.mean(axis=1)).max() < 0.0012


@pytest.mark.parametrize("order", ["slices_first", "motion_first"])
def test_signal_that_changes_evenly_is_exact_whatever_the_motion(order):
    """The same everywhere and a line in time: each sample's own time gives it back."""
    rng = np.random.default_rng(1)
    times = np.argsort([0, 2, 4, 1, 3]) * 0.4
    line = 50 + 3.0 * (2.0 * np.arange(30)[None] + times[:, None])
    series = np.broadcast_to(line, (6, 6, 5, 30)).astype(np.float32)
    motion = np.array([rigid_matrix(row, np.zeros(3)) for row in 0.05 * rng.normal(size=(30, 6))])
    points = rng.uniform(1.5, 3.0, (40, 3))
    timing = SliceTiming(tuple(times), 2, 2.0, 0.8, order=order)
    options = {"slice_timing": timing, "threads": 2}
    found = np.array([v for (v,) in sample_series(series, np.eye(4), motion, [points], **options)])
    np.testing.assert_allclose(found.T, np.tile(50 + 3 * (np.arange(30) * 2 + 0.8), (40, 1)), 1e-5)
    with pytest.raises(InputError, match="SliceTiming has 5 values for 6 slices"):
        timing.check((6, 6, 6, 30))


def test_an_onset_stays_where_it_was():
    """A response to an event peaks at the same moment in every slice, to a thousandth of a TR."""
    times, tr, onset = np.array([0.0, 1.1, 0.4, 1.7]), 2.0, 61.3
    seconds = tr * np.arange(60)[None] + times[:, None]
    series = np.exp(-0.5 * ((seconds - onset) / 4) ** 2)[None, None].astype(np.float32)
    timing = {"slice_times": times, "repetition_time": tr, "reference_time": 0.85}
    for axis in range(3):
        moved = np.moveaxis(series, 2, axis)
        corrected = correct_slice_timing(moved, slice_axis=axis, **timing)
        corrected = np.moveaxis(corrected, axis, 2)[0, 0]
        volume_times = tr * np.arange(60) + 0.85
        centre = (corrected @ volume_times) / corrected.sum(axis=1)
        np.testing.assert_allclose(centre, onset, atol=2e-3)


@pytest.mark.parametrize("n_dummy", [0, 3])
def test_one_pass_equals_slices_corrected_first_and_resampled_after(n_dummy):
    """The run whose slices scipy's natural splines correct, resampled in a second step."""
    rng = np.random.default_rng(2)
    series = (500 + 40 * rng.standard_normal((12, 11, 10, 50))).astype(np.float32)
    series[..., :n_dummy] += 3000
    times = np.tile(np.argsort([0, 2, 4, 1, 3]) * 0.4, 2)
    motion = np.array([rigid_matrix(row, np.zeros(3)) for row in 0.1 * rng.normal(size=(50, 6))])
    points = grid_points((7, 6, 5), np.diag([1.1, 1.2, 1.3, 1])) + 2
    corrected = series.copy()
    n = np.arange(50 - n_dummy)
    for k, time in enumerate(times):
        steady = series[:, :, k, n_dummy:].astype(float)
        inner = CubicSpline(n, steady, axis=-1, bc_type="natural")
        at = n + (0.7 - time) / 2
        # beyond the ends a natural spline goes on by point reflection
        values = inner(np.clip(at, 0, n[-1]))
        values += np.where(at < 0, 2 * steady[..., :1] - inner(-at) - values, 0)
        values += np.where(at > n[-1], 2 * steady[..., -1:] - inner(2 * n[-1] - at) - values, 0)
        corrected[:, :, k, n_dummy:] = values
    two_steps, _ = resample_series(corrected, np.eye(4), motion, points, (7, 6, 5))
    timing = SliceTiming(tuple(times), 2, 2.0, 0.7, n_dummy=n_dummy)
    one_step, _ = resample_series(
        series, np.eye(4), motion, points, (7, 6, 5), slice_timing=timing, threads=2
    )
    np.testing.assert_allclose(one_step, two_steps, atol=5e-3)
    # without motion and on slices, both orders are the same splines in time
    grid = grid_points(series.shape, np.eye(4))
    still = np.tile(np.eye(4), (50, 1, 1))
    orders = [
        resample_series(
            series,
            np.eye(4),
            still,
            grid,
            series.shape[:3],
            slice_timing=SliceTiming(tuple(times), 2, 2.0, 0.7, n_dummy=n_dummy, order=order),
        )[0]
        for order in ("slices_first", "motion_first")
    ]
    np.testing.assert_allclose(orders[0], orders[1], atol=5e-3)
    np.testing.assert_allclose(orders[0], corrected, atol=5e-3)


@pytest.mark.parametrize("order", ["slices_first", "motion_first"])
def test_volumes_out_of_reach_stay_out_and_spoil_no_other(order):
    series = np.full((8, 8, 8, 20), 7.0, np.float32)
    motion = np.tile(np.eye(4), (20, 1, 1))
    motion[9, 0, 3] = 4.0
    timing = SliceTiming(tuple(np.arange(8) / 4.0), 2, 2.0, 1.0, order=order)
    points = grid_points((8, 8, 8), np.eye(4))
    out, inside = resample_series(series, np.eye(4), motion, points, (8, 8, 8), slice_timing=timing)
    assert inside[:4].all()
    assert not inside[4:].any()
    assert (out[4:, ..., 9] == 0).all()
    kept = np.arange(20) != 9
    np.testing.assert_allclose(out[..., kept], 7, rtol=1e-6)


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


@pytest.mark.parametrize("order", [1, 3, 5])
def test_values_are_those_of_scipys_splines(order):
    rng = np.random.default_rng(3)
    series = rng.standard_normal((9, 8, 7, 5)).astype(np.float32)
    points = rng.uniform(-2, 9, (200, 3))
    motion = np.tile(np.eye(4), (5, 1, 1))
    motion[:, :3, 3] = rng.uniform(-0.5, 0.5, (5, 3))
    found = [v for (v,) in sample_series(series, np.eye(4), motion, [points], order=order)]
    for t, values in enumerate(found):
        index = (points + motion[t, :3, 3]).T
        expected = ndimage.map_coordinates(
            series[..., t].astype(float), index, order=order, mode="mirror"
        )
        extent = np.array(series.shape[:3])[:, None]
        within = np.all((index >= -0.5) & (index <= extent - 0.5), axis=0)
        assert 0.2 < within.mean() < 0.8
        np.testing.assert_array_equal(np.isfinite(values), within)
        np.testing.assert_allclose(values[within], expected[within], atol=1e-5)


def test_threads_and_blocks_and_company_change_no_byte(monkeypatch):
    """Points read beside others, on more threads: the same bytes."""
    rng = np.random.default_rng(4)
    series = rng.standard_normal((10, 9, 8, 41)).astype(np.float32)
    motion = np.array([rigid_matrix(row, np.zeros(3)) for row in 0.2 * rng.normal(size=(41, 6))])
    points = [rng.uniform(0, 7, (size, 3)) for size in (300, 50)]
    for order in ("slices_first", "motion_first"):
        timing = SliceTiming(tuple(np.arange(8) / 4), 2, 2.0, 1.0, order=order)
        made = [
            [
                b"".join(values[part].tobytes() for values in volumes)
                for part, volumes in (
                    (which, list(sample_series(series, np.eye(4), motion, sets, **options)))
                    for which in ([0, 1] if len(sets) == 2 else [0])
                )
            ]
            for sets, options in (
                (points, {"slice_timing": timing, "threads": 1}),
                (points, {"slice_timing": timing, "threads": 3}),
                (points[:1], {"slice_timing": timing, "threads": 2}),
            )
        ]
        assert made[0] == made[1]
        assert made[0][0] == made[2][0]


def test_a_run_is_read_a_few_volumes_at_a_time():
    """Nobody asks the series for more than the splines in time reach."""

    class OnDisk:
        def __init__(self, values):
            self.values, self.most = values, 0
            self.shape = values.shape

        def __getitem__(self, key):
            found = self.values[key]
            self.most = max(self.most, found.shape[3])
            return found

    series = OnDisk(np.random.default_rng(5).random((5, 5, 5, 300), dtype=np.float32))
    timing = SliceTiming((0.0, 0.4, 0.8, 1.2, 1.6), 2, 2.0, 0.8)
    motion = np.tile(np.eye(4), (300, 1, 1))
    points = [grid_points((5, 5, 5), np.eye(4))]
    assert sum(1 for _ in sample_series(series, np.eye(4), motion, points, slice_timing=timing))
    assert series.most <= 40


class Ramp:
    """Displacement that grows along the phase-encoding axis: a closed form."""

    axis = 1

    def shift(self, points):
        return 1.0 + 0.1 * points[:, 1]

    def jacobian(self, points):
        return np.full(len(points), 1.1)


def test_displaced_signal_comes_back_to_its_place_and_brightness():
    """Signal of mm y lies at voxel y + 1 + 0.1 y, over 1.1 voxels: as bright as 1 / 1.1."""
    grid = np.indices((12, 30, 10)).astype(float)
    recorded = (grid[1] - 1) / 1.1  # the y whose signal each voxel holds
    signal = np.sin(recorded / 4) + 0.1 * grid[0]
    poses = np.zeros((4, 3))
    poses[:, 1] = [0, 0.4, -0.7, 1.2]
    # the field moves with the head: a head at y + d is displaced by the shift of y
    series = np.stack(
        [(np.sin((grid[1] - d - 1) / 1.1 / 4) + 0.1 * grid[0]) / 1.1 for d in poses[:, 1]], axis=-1
    )
    motion = np.tile(np.eye(4), (4, 1, 1))
    motion[:, :3, 3] = poses
    np.testing.assert_allclose(series[..., 0], signal / 1.1)
    points = np.random.default_rng(6).uniform([2, 4, 2], [9, 20, 7], (300, 3))
    found = list(sample_series(series, np.eye(4), motion, [points], distortion=Ramp()))
    truth = np.sin(points[:, 1] / 4) + 0.1 * points[:, 0]
    for (values,) in found:
        np.testing.assert_allclose(values, truth, atol=2e-3)


def test_a_run_written_volume_by_volume_is_the_one_written_at_once(tmp_path):
    values = np.random.default_rng(7).random((5, 4, 3, 6), dtype=np.float32)
    for name in ("x.nii", "x.nii.gz"):
        writer = SeriesWriter(tmp_path / name, values.shape, OBLIQUE, repetition_time=1.5)
        for volume in np.moveaxis(values, -1, 0):
            writer.put(volume)
        with pytest.raises(ValueError, match="a volume of shape"):
            writer.put(values[..., 0].T)
        writer.close()
        again = nib.load(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(again.dataobj), values)
        np.testing.assert_allclose(again.affine, OBLIQUE, atol=1e-4)
    save(tmp_path / "y.nii", values, OBLIQUE, repetition_time=1.5)
    assert (tmp_path / "x.nii").read_bytes() == (tmp_path / "y.nii").read_bytes()


# --- surfaces ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_a_surface_samples_as_nilearns_vol_to_surf():
    """The same depths, linear: a static volume over the left hemisphere's middle."""
    affine = np.diag([6.0, 6, 6, 1])
    affine[:3, 3] = [-80, -60, -20]
    values = np.random.default_rng(8).random((30, 12, 15)).astype(np.float32)
    series = SurfaceSeries(1)
    ((sampled,),) = sample_series(
        values[..., None], affine, np.eye(4)[None], [series.points], order=1
    )
    series.put(0, sampled)
    ours = series.values[0]
    mesh = template_surface()
    assert np.isnan(ours[~mesh.cortex]).all()
    assert (~mesh.cortex).sum() > 100
    seen = np.isfinite(ours)
    assert 2000 < seen.sum() < 15000
    faces = mesh.faces
    theirs = peer.vol_to_surf(
        nib.Nifti1Image(values, affine),
        [mesh.pial, faces],
        inner_mesh=[mesh.white, faces],
        depth=np.linspace(0, 1, DEPTHS),
        interpolation="linear",
    )
    # nilearn fills the half voxel beyond the centres of the outermost ones with zeros
    place = (series.points - affine[:3, 3]) / 6
    inner = np.all((place >= 0) & (place <= np.array(values.shape) - 1), axis=1)
    whole = np.zeros(len(ours), bool)
    whole[mesh.cortex] = inner.reshape(-1, DEPTHS).all(axis=1)
    assert whole.sum() > 2000
    np.testing.assert_allclose(ours[whole], np.ravel(theirs)[whole], atol=1e-5)


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


def test_all_spaces_of_a_run_from_one_reading(tmp_path):
    """Volumes and the surface, through the template: each shows the head where it is."""
    grid = np.diag([5.0, 5, 5, 1])
    grid[:3, 3] = [-100, -135, -75]
    shape = (40, 46, 40)
    # template mm to T1w mm, and T1w mm to reference mm
    to_t1w = rigid_matrix(np.array([2.0, -1, 1, 0.02, 0, 0.03]), np.zeros(3))
    coregistration = rigid_matrix(np.array([-3.0, 2, 1, 0, 0.04, 0]), np.zeros(3))
    warp = DisplacementField(np.full((23, 28, 24, 3), 1.5, np.float32), np.diag([8.0, 8, 8, 1]))
    warp.affine[:3, 3] = [-90, -120, -70]
    in_t1w = AffineTransform(np.linalg.inv(coregistration))
    back = AffineTransform(np.linalg.inv(to_t1w))

    def recorded(points):
        """The template's head where the run has it."""
        return head(back.apply(in_t1w.apply(points)) - 1.5)

    volume = recorded(grid_points(shape, grid)).reshape(shape).astype(np.float32)
    series = np.stack([volume, 1.1 * volume, 0.9 * volume], axis=-1)
    t1w_brain = head(back.apply(grid_points(shape, grid)) - 1.5).reshape(shape) > 300
    paths = {
        "in_file": save(tmp_path / "s.nii", series, grid),
        "reference": save(tmp_path / "r.nii", volume, grid),
        "t1w_mask": save(tmp_path / "m.nii", t1w_brain.astype(np.uint8), grid),
        "to_t1w": write_itk_affine(tmp_path / "to_t1w.txt", coregistration),
        "to_template": write_composite(tmp_path / "x.h5", [warp, AffineTransform(to_t1w)]),
        "matrices": tmp_path / "motion.tsv",
    }
    pd.DataFrame(np.tile(np.eye(4)[:3].ravel(), (3, 1))).to_csv(
        paths["matrices"], sep="\t", index=False
    )
    made = interfaces.ResampleSeries(
        **{name: str(path) for name, path in paths.items()},
        spaces=["T1w", "fsaverage5", "MNI152NLin2009aSym"],
        resolution=5.0,
        repetition_time=2.5,
        slice_times=list(np.arange(40) / 20.0),
        reference_time=1.0,
        threads=2,
    ).run(cwd=tmp_path)
    done = made.outputs
    native = nib.load(done.native_bold)
    np.testing.assert_allclose(native.affine, grid, atol=1e-5)
    for files in (done.bold, done.mask, done.boldref, done.surface):
        assert len(files) == 2
    template = nib.load(done.bold[1])
    truth = head(grid_points(template.shape, template.affine)).reshape(template.shape[:3])
    voxels = np.asarray(nib.load(done.mask[1]).dataobj) > 0
    first = np.asarray(template.dataobj)[..., 0]
    assert voxels.sum() > 5000
    assert np.sqrt(np.mean((first - truth)[voxels] ** 2)) < 0.04 * truth[voxels].std()
    mesh = template_surface()
    assert bids.count_volumes(done.surface[0]) == 3
    assert read_columns(done.surface[0]).shape == (3, 10242)
    for side, file in zip(("left", "right"), done.surface, strict=True):
        image = nib.load(file)
        assert image.meta["AnatomicalStructurePrimary"] == f"Cortex{side.capitalize()}"
        assert [float(array.meta["TimeStep"]) for array in image.darrays] == [2500.0] * 3
        values = np.array([array.data for array in image.darrays])
        part = mesh.hemisphere == side
        depths = np.linspace(0, 1, DEPTHS)[:, None, None]
        points = mesh.white[part] + depths * (mesh.pial - mesh.white)[part]
        expected = head(points.reshape(-1, 3)).reshape(DEPTHS, -1).mean(axis=0)
        cortex = mesh.cortex[part]
        np.testing.assert_array_equal(np.isfinite(values), np.tile(cortex, (3, 1)))
        error = values[0, cortex] - expected[cortex]
        assert np.sqrt(np.mean(error**2)) < 0.04 * truth[voxels].std()


def test_the_interface_resamples_as_it_is_told(tmp_path):
    """Dummies, order, spline, times and slice axis: the run is that of the function."""
    rng = np.random.default_rng(11)
    affine = np.diag([4.0, 4, 4, 1])
    series = (500 + 50 * rng.standard_normal((10, 11, 9, 14))).astype(np.float32)
    series[..., :2] += 900
    motion = np.array([rigid_matrix(row, np.zeros(3)) for row in 0.1 * rng.normal(size=(14, 6))])
    motion[:, :3, 3] *= 3
    pd.DataFrame(motion[:, :3].reshape(14, 12)).to_csv(tmp_path / "m.tsv", sep="\t", index=False)
    brain = np.zeros(series.shape[:3], np.uint8)
    brain[3:-3, 3:-3, 3:-3] = 1
    paths = {
        "in_file": save(tmp_path / "s.nii", series, affine),
        "reference": save(tmp_path / "r.nii", series[..., 5], affine),
        "t1w_mask": save(tmp_path / "b.nii", brain, affine),
        "to_t1w": write_itk_affine(tmp_path / "to_t1w.txt", np.eye(4)),
        "matrices": tmp_path / "m.tsv",
    }
    times = tuple(rng.permutation(11) / 5.5)
    runs = []
    for order, name, spline in (("slices_first", "linear", 1), ("motion_first", "quintic", 5)):
        folder = tmp_path / order
        folder.mkdir()
        done = interfaces.ResampleSeries(
            **{key: str(path) for key, path in paths.items()},
            spaces=["T1w"],
            resolution=4.0,
            repetition_time=2.0,
            interpolation=name,
            slice_times=list(times),
            slice_axis=1,
            slice_order=order,
            reference_time=0.9,
            n_dummy=2,
        ).run(cwd=folder)
        timing = SliceTiming(times, 1, 2.0, 0.9, n_dummy=2, order=order)
        points = grid_points(brain.shape, affine)
        expected, _ = resample_series(
            series, affine, motion, points, brain.shape, slice_timing=timing, order=spline
        )
        found = np.asarray(nib.load(done.outputs.native_bold).dataobj)
        inside = brain > 0
        np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-4)
        runs.append(found[inside])
    assert np.abs(runs[0] - runs[1]).max() > 1


def test_the_analysed_space_is_a_volume():
    template = "MNI152NLin2009aSym"
    check_spaces(["T1w", "fsaverage5"], "T1w")
    for spaces, analysed, message in (
        (["fsaverage5", template], template, "preprocess.spaces starts with fsaverage5, a surface"),
        ([template, "fsaverage5"], "fsaverage5", "glm.space is fsaverage5, a surface: name a vol"),
        (["T1w", "fsaverage5"], template, r"which preprocess.spaces \(T1w, fsaverage5\) does not"),
    ):
        with pytest.raises(InputError, match=message):
            check_spaces(spaces, analysed)
