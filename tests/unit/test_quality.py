"""Image quality measures: each against a closed form, a simulation or a peer's definition."""

import numpy as np
import pytest
from scipy import ndimage, stats

from isocortex.preprocess import quality

FLIPPED = np.array([[-3.0, 0, 0, 88], [0, 0, 4.0, -120], [0, 2.5, 0, -60], [0, 0, 0, 1]])
BOX = (slice(12, 36), slice(16, 48), slice(4, 20))


def head(shape=(48, 64, 24), signal=1000.0):
    mask = np.zeros(shape, bool)
    mask[BOX] = True
    return np.where(mask, signal, 0.0), mask


def test_axes_are_anatomical_whatever_the_order_of_the_array():
    assert quality.anatomical_axes(np.eye(4)) == (0, 1, 2)
    assert quality.anatomical_axes(FLIPPED) == (0, 2, 1)


def test_entropy_focus_criterion():
    one = np.zeros((4, 5, 6))
    one[1, 1, 1] = 7.0
    assert quality.entropy_focus_criterion(one) == pytest.approx(0, abs=1e-12)
    assert quality.entropy_focus_criterion(np.full((4, 5, 6), 3.0)) == pytest.approx(1)
    image, mask = head()
    # k of n voxels alike: sqrt(k) ln(sqrt(k)) over sqrt(n) ln(sqrt(n))
    k, n = np.sqrt(mask.sum()), np.sqrt(mask.size)
    expected = k * np.log(k) / (n * np.log(n))
    assert quality.entropy_focus_criterion(image) == pytest.approx(expected)
    ghosted = image + 0.1 * np.roll(image, 32, axis=1)
    assert quality.entropy_focus_criterion(ghosted) > expected


def test_energy_and_signal_to_noise():
    rng = np.random.default_rng(0)
    image, mask = head()
    image = image + rng.normal(0, 20, image.shape)
    expected = (1000**2 + 20**2) / 20**2
    assert quality.foreground_background_energy(image, mask) == pytest.approx(expected, rel=0.02)
    assert quality.signal_to_noise(image, mask) == pytest.approx(50, rel=0.02)
    empty, _ = head()
    assert np.isnan(quality.foreground_background_energy(empty, mask))


@pytest.mark.parametrize("ghost", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_planted_ghost_is_found(ghost, axis):
    """A copy at half of the field of view, of a known share of the signal."""
    rng = np.random.default_rng(1)
    image, mask = head()
    image *= 1 + 0.2 * ndimage.gaussian_filter(rng.standard_normal(image.shape), 3)
    image = image + ghost * np.roll(image, image.shape[axis] // 2, axis=axis)
    image += np.abs(rng.normal(0, 5, image.shape))
    found = quality.ghost_to_signal(image, mask, axis)
    assert found == pytest.approx(ghost, abs=0.002)
    other = quality.ghost_to_signal(image, mask, 1 - axis)
    assert other < 0.4 * ghost + 0.001


def test_no_ghost_where_the_brain_fills_the_field_of_view():
    assert np.isnan(quality.ghost_to_signal(np.ones((6, 6, 6)), np.ones((6, 6, 6), bool), 1))


@pytest.mark.parametrize("wide", [(6.0, 6.0, 6.0), (5.0, 8.0, 10.0)])
def test_smoothness_of_smoothed_noise(wide):
    """White Gaussian noise smoothed by a known kernel has that kernel's width."""
    rng = np.random.default_rng(2)
    size = np.linalg.norm(FLIPPED[:3, :3], axis=0)
    by_array = np.empty(3)
    by_array[list(quality.anatomical_axes(FLIPPED))] = wide
    noise = ndimage.gaussian_filter(
        rng.standard_normal((72, 72, 72)), by_array / np.sqrt(8 * np.log(2)) / size, mode="wrap"
    )
    mask = np.zeros(noise.shape, bool)
    mask[4:-4, 4:-4, 4:-4] = True
    # a kernel of about one voxel is drawn too coarsely to be exact
    found = quality.smoothness(noise + 500, mask, FLIPPED)
    np.testing.assert_allclose(found, wide, rtol=0.06)


def test_smoothness_of_white_noise_is_less_than_a_voxel():
    noise = np.random.default_rng(3).standard_normal((30, 30, 30))
    found = quality.smoothness(noise, np.ones(noise.shape, bool), np.diag([3.0, 3, 3, 1]))
    assert (np.nan_to_num(found) < 1.6).all()
    flat = quality.smoothness(noise[:, :, :1], np.ones((30, 30, 1), bool), np.eye(4))
    assert np.isnan(flat[2])


def test_summary_of_normal_intensities():
    image = np.random.default_rng(9).normal(200, 10, (60, 60, 20))
    inside = np.ones(image.shape, bool)
    found = quality.summary(image, inside)
    assert found["mean"] == pytest.approx(200, abs=0.2)
    assert found["mad"] == pytest.approx(10, rel=0.02)
    assert found["p95"] - found["p05"] == pytest.approx(2 * 1.645 * 10, rel=0.02)
    assert abs(found["k"]) < 0.1
    assert quality.summary(image, ~inside) == {"n": 0}


def test_global_correlation_is_the_mean_of_all_pairs():
    rng = np.random.default_rng(4)
    series = rng.standard_normal((60, 80)) + 0.7 * rng.standard_normal(80)
    expected = np.corrcoef(series).mean()
    assert quality.global_correlation(series) == pytest.approx(expected)
    still = np.r_[series, np.full((3, 80), 5.0)]
    assert quality.global_correlation(still) == pytest.approx(expected)


def test_outliers_of_noise_come_at_the_stated_rate():
    """alpha is the quantile of 0.001/time, and 1.4826 MAD is the deviation of noise."""
    rng = np.random.default_rng(5)
    n, n_voxels = 100, 40_000
    series = 100 + rng.standard_normal((n_voxels, n)).astype(np.float32)
    limit = stats.norm.isf(0.001 / n) * np.sqrt(np.pi / 2) * stats.norm.ppf(0.75)
    rate = 2 * stats.norm.sf(limit)
    found = quality.outlier_fraction(series)
    # the median absolute deviation of 100 numbers is itself uncertain: the tail is fatter
    low, high = stats.binom.interval(0.99, n_voxels * n, rate)
    assert low / (n_voxels * n) < found.mean() < 3 * high / (n_voxels * n)
    series[: n_voxels // 4, 17] += 50
    found = quality.outlier_fraction(series)
    assert found[17] == pytest.approx(0.25, abs=1e-3)
    assert np.delete(found, 17).max() < 0.01
    assert (quality.outlier_fraction(np.ones((9, 8))) == 0).all()


def test_quality_index_is_spearmans_distance_from_the_median_volume():
    rng = np.random.default_rng(6)
    series = rng.random((500, 1)) * 1000 + rng.normal(0, 20, (500, 12))
    series = series.round()  # with ties
    found = quality.quality_index(series)
    middle = np.median(series, axis=1)
    for t in (0, 5):
        expected = 1 - stats.spearmanr(series[:, t], middle).statistic
        assert found[t] == pytest.approx(expected, abs=1e-12)
    assert found.max() < 0.02
    series[:, 3] = rng.permutation(series[:, 3])
    assert quality.quality_index(series).argmax() == 3


def test_spikes_are_counted_by_slice_and_volume():
    rng = np.random.default_rng(7)
    means = 500 + rng.standard_normal((20, 150)) + np.linspace(0, 30, 150)
    assert quality.slice_spikes(means).sum() == 0
    means[3, 40] += 12
    means[[5, 9], 100] -= 15
    found = quality.slice_spikes(means)
    np.testing.assert_array_equal(np.argwhere(found), [[3, 40], [5, 100], [9, 100]])
    means[7] = np.nan
    assert quality.slice_spikes(means)[7].sum() == 0


@pytest.mark.parametrize("axis", [0, 2])
def test_slice_means(axis):
    rng = np.random.default_rng(10)
    series = np.asfortranarray(rng.random((6, 7, 5, 4)))
    mask = rng.random((6, 7, 5)) > 0.5
    mask[2], mask[:, :, 3] = False, False
    found = quality.slice_means(series, mask, axis=axis)
    for n in range(mask.shape[axis]):
        inside = np.take(mask, n, axis)
        if not inside.any():
            assert np.isnan(found[n]).all()
            continue
        expected = np.take(series, n, axis)[inside].mean(axis=0)
        np.testing.assert_allclose(found[n], expected)


def test_coverage_counts_the_brain_inside_the_field_of_view():
    points = np.stack(np.meshgrid(*[np.arange(0.0, 40)] * 3, indexing="ij"), -1).reshape(-1, 3)
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = 0.5
    assert quality.coverage(points, (20, 20, 20), affine) == 100
    assert quality.coverage(points, (20, 20, 10), affine) == 50
    affine[2, 3] += 10
    assert quality.coverage(points, (20, 20, 10), affine) == 50
    assert quality.coverage(points, (20, 20, 20), affine) == 75


def test_all_measures_of_a_run():
    rng = np.random.default_rng(8)
    image, mask = head()
    n, n_dummy = 40, 2
    series = (1000 + rng.normal(0, 20, (mask.sum(), n))).astype(np.float32)
    series[:, :n_dummy] += 300
    found = quality.run_quality(
        mean=image + rng.normal(0, 5, image.shape),
        affine=FLIPPED,
        mask=mask,
        series=series,
        slice_means=1000 + rng.standard_normal((24, n)),
        tsnr=np.full(mask.shape, 50.0),
        framewise_displacement=np.r_[5, 0.1, 0.1, 0.9, np.full(n - 5, 0.1)],
        dvars={"std": np.r_[9, 9, np.ones(n - 3)], "nstd": np.full(n - 1, np.nan)},
        n_dummy=n_dummy,
        fd_threshold=0.5,
        repetition_time=2.0,
        brain_points={"brain": np.zeros((0, 3))},
    )
    assert found["tsnr"] == 50
    assert (found["fd_num"], found["dummy_trs"], found["size_t"]) == (1, 2, n)
    assert found["fd_perc"] == pytest.approx(100 / (n - 3))
    assert found["fd_mean"] == pytest.approx((0.9 + 0.1 * (n - 4)) / (n - 3))
    assert found["dvars_std"] == 1
    assert found["dvars_nstd"] is None
    assert found["coverage_brain"] is None
    assert found["aor"] < 0.01
    assert found["gcor"] < 0.01
    assert (found["size_x"], found["size_y"], found["size_z"]) == (48, 24, 64)
    assert found["spacing_y"] == pytest.approx(4.0)
    assert found["summary_fg_median"] == pytest.approx(1000, rel=0.01)
    assert found["summary_fg_n"] + found["summary_bg_n"] == mask.size
    assert all(v is None or isinstance(v, int | float) for v in found.values())
