"""The optimised estimator: against fracridge, closed forms, planted responses and pure noise."""

import inspect
import json
import tracemalloc
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from fracridge import fracridge
from scipy.integrate import quad

from isocortex.fractional_ridge import decompose_design
from isocortex.glm.cross_validation import (
    Alone,
    choose_number,
    fit_fractions,
    held_out_squares,
    shared_conditions,
    standard_errors,
)
from isocortex.glm.estimate import fit_trials
from isocortex.glm.noise_components import find_noise_pool, pool_covariance, principal_components
from isocortex.glm.optimised import fit_optimised
from isocortex.glm.scratch import RunBlocks
from isocortex.hrf_library import HRFLibrary, hrf_library
from tests.unit.simulated_runs import (
    TR,
    ArraySeries,
    correlate,
    estimate,
    simulate,
    stimulus_means,
)

lsa = partial(fit_trials, estimator="lsa")


# The library of responses


def test_neighbouring_responses_are_equally_far_apart():
    library = hrf_library(20)
    assert len(library) == 20
    assert library.peak[[0, -1]] == pytest.approx([3.5, 8.0])
    assert (np.diff(library.peak) > 0).all()
    assert (np.diff(library.width) > 0).all()
    curves = np.diff(library.area(np.arange(0, 60, 0.1)), axis=1)
    curves /= np.linalg.norm(curves, axis=1, keepdims=True)
    angles = np.arccos(np.sum(curves[1:] * curves[:-1], axis=1))
    np.testing.assert_allclose(angles, angles.mean(), rtol=0.01)
    np.testing.assert_allclose(curves.argmax(axis=1) * 0.1, library.peak, atol=0.35)
    assert library.area(np.array([500.0])) == pytest.approx(1)
    assert library.peak[library.canonical] == pytest.approx(5, abs=0.15)


def test_a_response_is_the_difference_of_two_gamma_densities():
    library = HRFLibrary(np.array([5.0]), np.array([5.0]))
    from scipy.stats import gamma

    def density(mode, fwhm, t):
        scale = fwhm**2 / (8 * np.log(2)) / mode
        return gamma.pdf(t, 1 + mode / scale, scale=scale)

    def response(t):
        return (density(5.0, 5.0, t) - 0.35 * density(12.5, 7.0, t)) / 0.65

    for until in (2.0, 6.5, 30.0):
        assert library.area(np.array(until))[0] == pytest.approx(quad(response, 0, until)[0])


@pytest.mark.parametrize("start_time", [0.0, 0.7])
def test_regressors_are_the_convolution_at_the_times_of_the_volumes(start_time):
    library = hrf_library(3)
    times = start_time + TR * np.arange(30)
    onset, duration, trial = [3.3, 10.0, 14.0], [2.5, 4.0, 0.0], [0, 1, 1]
    ours = library.regressors(times, onset, duration, trial, n_trials=2)
    fine = np.arange(0, 70, 0.01)
    for hrf in range(3):
        kernel = np.diff(library.area(fine, hrf)[0])
        for number in range(2):
            neural = np.zeros(len(fine) - 1)
            for start, length, own in zip(onset, duration, trial, strict=True):
                if own == number:
                    length = max(length, TR / 50)
                    neural[round(start * 100) : round((start + length) * 100)] = 1
            expected = np.interp(times, fine[1:], np.convolve(neural, kernel)[: len(neural)])
            np.testing.assert_allclose(ours[hrf, :, number], expected, atol=2e-3)


# Fractional ridge


@pytest.mark.parametrize(("n", "p"), [(60, 12), (20, 20)])
def test_fractional_ridge_equals_fracridge(n, p):
    rng = np.random.default_rng(n)
    design = rng.standard_normal((n, p)) * np.geomspace(1, 0.1, p)
    targets = rng.standard_normal((n, 9))
    fractions = np.array([0.05, 0.1, 0.35, 0.7, 1.0])
    expected, penalties = fracridge(design, targets, fractions, jit=False)
    model = decompose_design(design)
    for index, fraction in enumerate(fractions):
        ours = model.coefficients(targets, np.full(9, fraction))
        np.testing.assert_allclose(ours, expected[:, index], atol=1e-6 * np.abs(ours).max())
        np.testing.assert_allclose(
            model.penalties(model.rotate(targets), fraction), penalties[index], rtol=1e-6, atol=1e-9
        )


def test_axes_without_variance_take_no_part():
    rng = np.random.default_rng(1)
    design = rng.standard_normal((40, 5))
    design = np.concatenate([design, design[:, :1] + design[:, 1:2]], axis=1)
    targets = rng.standard_normal((40, 3))
    ours = decompose_design(design).coefficients(targets, 1.0)
    np.testing.assert_allclose(ours, np.linalg.pinv(design) @ targets, atol=1e-9)


def test_a_target_without_variance_has_no_coefficients():
    model = decompose_design(np.eye(4, 3))
    assert (model.coefficients(np.zeros((4, 2)), np.array([0.3, 1.0])) == 0).all()


# Cross-validation


def test_what_is_not_measured_has_no_standard_error():
    rng = np.random.default_rng(5)
    design = rng.standard_normal((30, 4))
    expected = np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
    np.testing.assert_allclose(standard_errors(decompose_design(design)), expected)
    late = np.c_[design, 1e-9 * rng.standard_normal(30)]
    found = standard_errors(decompose_design(late))
    np.testing.assert_allclose(found[:4], expected)
    assert found[4] == np.inf
    twice = standard_errors(decompose_design(np.c_[design, design[:, 0]]))
    assert list(np.isinf(twice)) == [True, False, False, False, True]


def test_what_runs_have_in_common():
    found = shared_conditions([["a", "b", "x", "a"], ["b", "a", "y"], ["z", "z", "b"]])
    assert found.repeated
    assert (found.n, found.rest) == (3, 2)
    assert [list(run) for run in found.of_trial] == [[0, 1, 2, 0], [1, 0, 2], [2, 2, 1]]
    # The run's own stimuli come after those it shares
    assert [list(run) for run in found.stimulus_of_trial] == [[0, 1, 2, 0], [1, 0, 2], [1, 1, 0]]
    np.testing.assert_array_equal(found.merge(2) @ found.stimulus_incidence(2), found.incidence(2))
    alone = shared_conditions([["a", "a", "b"]])
    assert (alone.n, alone.rest, alone.repeated) == (1, 0, False)
    assert list(alone.stimulus_of_trial[0]) == [0, 0, 1]
    every = shared_conditions([["a", "b"], ["b", "a"]])
    assert (every.n, every.rest) == (2, -1)


def test_held_out_error_is_that_of_a_plain_loop():
    rng = np.random.default_rng(2)
    stimuli = [["a", "b", "c"], ["c", "a", "b"], ["b", "a", "d"]]
    found = shared_conditions(stimuli)
    designs = [rng.standard_normal((30, 3)) for _ in stimuli]
    series = [rng.standard_normal((30, 4)) for _ in stimuli]
    merged = [x @ found.incidence(r).T for r, x in enumerate(designs)]
    ours = held_out_squares(
        [x.T @ x for x in merged],
        [x.T @ y for x, y in zip(merged, series, strict=True)],
        found.of_run,
        [(y**2).sum(axis=0) for y in series],
    )
    columns = np.zeros((3, 30, found.n))
    for run, x in enumerate(merged):
        columns[run][:, found.of_run[run]] = x
    for run in range(3):
        others = [k for k in range(3) if k != run]
        # d, which no other run has, has no response to be predicted by
        weights = np.linalg.lstsq(
            np.concatenate(columns[others]), np.concatenate([series[k] for k in others]), rcond=None
        )[0]
        expected = ((series[run] - columns[run] @ weights) ** 2).sum(axis=0)
        np.testing.assert_allclose(ours[run], expected, rtol=1e-5)


def test_stimuli_of_one_run_alone_are_fitted_to_it():
    rng = np.random.default_rng(3)
    design, series = rng.standard_normal((40, 5)), rng.standard_normal((40, 6))
    alone = Alone(design.T @ design, 3)
    cross, squares = alone.take_out(design.T @ series)
    basis = np.linalg.qr(design[:, 3:])[0]
    left = design[:, :3] - basis @ (basis.T @ design[:, :3])
    np.testing.assert_allclose(alone.gram, left.T @ left, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(cross, left.T @ series, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(squares, ((basis.T @ series) ** 2).sum(axis=0), rtol=1e-4)


def test_the_fewest_noise_components_that_do_nearly_as_well():
    curve = np.array([0.1, 0.2, 0.297, 0.3, 0.25])
    agreed = curve[:, None] * [1.0, 1.1, 0.9] / 3
    assert choose_number(curve, agreed) == 2
    # One run alone is for it
    assert choose_number(curve, curve[:, None] * [3.0, 0.1, -0.1] / 3) == 0
    assert choose_number(np.array([0.1, 0.05, 0.02]), agreed[:3]) == 0
    assert choose_number(np.array([0.1, np.nan]), agreed[:2]) == 0


def test_the_fraction_is_that_of_a_plain_loop():
    """Each trial's response is predicted by the mean of the other runs', scaled back."""
    found = simulate(n_runs=3, n_trials=20, n_stimuli=20, n_volumes=70, n_voxels=5, noise=0.6)
    conditions = shared_conditions(
        [[trial.stimulus for trial in run.design.trials] for run in found.runs]
    )
    models, rotated, plain = [], [], []
    for run, series in zip(found.runs, found.data, strict=True):
        model = decompose_design(run.design.matrix[:, run.design.trial_columns])
        models.append(model)
        rotated.append(model.rotate(series))
        plain.append(model.coefficients(series, 1.0))
    fractions = (0.1, 0.3, 0.6, 1.0)
    result = fit_fractions(models, rotated, conditions, [""] * 3, fractions)
    stimuli = np.concatenate(conditions.of_trial)
    run_of = np.repeat(np.arange(3), 20)
    target = np.concatenate(plain)
    errors = []
    for fraction in fractions:
        shrunk = np.concatenate(
            [m.coefficients(y, fraction) for m, y in zip(models, found.data, strict=True)]
        )
        error = 0
        centred, wanted = shrunk - shrunk.mean(axis=0), target - target.mean(axis=0)
        scale = (centred * wanted).sum(axis=0) / (centred**2).sum(axis=0)
        for trial in range(60):
            others = (stimuli == stimuli[trial]) & (run_of != run_of[trial])
            predicted = scale * centred[others].mean(axis=0)
            error = error + (predicted - wanted[trial]) ** 2
        errors.append(error)
    assert list(result.fraction) == [fractions[k] for k in np.argmin(errors, axis=0)]
    # The scale of unpenalised responses is restored: regressing these on what is returned gives 1.
    beta = np.concatenate(result.beta)
    np.testing.assert_allclose(beta.mean(axis=0), target.mean(axis=0), atol=1e-9)
    beta, target = beta - beta.mean(axis=0), target - target.mean(axis=0)
    np.testing.assert_allclose((beta * target).sum(axis=0) / (beta**2).sum(axis=0), 1)


# Noise components


def test_noise_pool_is_bright_and_does_not_respond():
    brightness = np.array([100.0, 100, 5, 100, np.nan, 100])
    explained = np.array([[-0.1, 0.2, -0.1, -0.1, -0.1, -0.1], [-0.2, -0.1, -0.1, 0.1, -0.1, -0.1]])
    assert list(find_noise_pool(brightness, explained)) == [True, False, False, False, False, True]
    assert find_noise_pool(brightness, explained, threshold=0.3).sum() == 4
    assert not find_noise_pool(np.full(2, np.nan), np.zeros((1, 2))).any()


def test_components_are_those_of_a_singular_value_decomposition():
    rng = np.random.default_rng(4)
    series = rng.standard_normal((30, 50)) * rng.uniform(0.1, 9, 50)
    series[:, 7] = 0
    covariance = sum(pool_covariance(series[:, k : k + 13]) for k in range(0, 50, 13))
    ours = principal_components(covariance, 4)
    unit = np.delete(series, 7, axis=1)
    unit /= np.linalg.norm(unit, axis=0)
    expected = np.linalg.svd(unit)[0][:, :4]
    np.testing.assert_allclose(np.abs(np.sum(ours * expected, axis=0)), 1, atol=1e-9)
    assert (ours[np.abs(ours).argmax(axis=0), np.arange(4)] > 0).all()
    assert principal_components(np.zeros((5, 5)), 3).shape == (5, 0)


# Planted responses


def test_planted_responses_are_recovered(tmp_path):
    """Median share of variance that the trials explain .85 (signal over noise SD 2 or so)."""
    found = simulate(noise=0.2, n_voxels=160)
    result, beta, residual = estimate(fit_optimised, tmp_path, found.runs, found.data)
    off = np.abs(result.hrf_index - found.hrf)
    assert (off == 0).mean() >= 0.7
    assert (off <= 1).mean() >= 0.98
    # Betas are on the scale of what was planted.
    slope = np.sum(beta * found.truth, axis=0) / np.sum(found.truth**2, axis=0)
    assert np.median(slope) == pytest.approx(1, abs=0.06)
    # What is written is what is summed up.
    squares = (residual.astype(float) ** 2).sum(axis=0)
    np.testing.assert_allclose(squares, result.residual_squares, rtol=1e-4)
    assert (result.residual_squares < result.nuisance_squares).all()


@pytest.mark.parametrize(
    ("noise", "gain"), [(0.04, -0.01), (0.3, 0.1), (1.0, 0.05)], ids=["high", "middle", "low"]
)
def test_betas_are_closer_to_the_truth_than_least_squares(tmp_path, noise, gain):
    """Rapid trials, repeats in four runs, all voxels with the response least squares assumes."""
    found = simulate(noise=noise, hrf=7, n_voxels=64)
    _, plain, _ = estimate(lsa, tmp_path, found.runs, found.data)
    _, beta, _ = estimate(fit_optimised, tmp_path, found.runs, found.data)
    before, after = correlate(plain, found.truth), correlate(beta, found.truth)
    assert after.mean() > before.mean() + gain
    if gain < 0:
        assert (after > before - 0.01).all()


def test_shared_noise_is_taken_out(tmp_path):
    found = simulate(noise=0.3, shared=0.5, n_voxels=192, n_responsive=96)
    with_noise, plain, _ = estimate(
        fit_optimised, tmp_path, found.runs, found.data, noise_components_max=0
    )
    result, beta, _ = estimate(fit_optimised, tmp_path, found.runs, found.data)
    assert result.attrs["noise_components"] == 3
    assert len(result.attrs["noise_components_r2"]) == 11
    pool = result.voxel["noise_pool"]
    assert pool[96:].mean() > 0.3
    assert pool[:96].mean() < 0.1
    responds = slice(0, 96)
    truth = found.truth[:, responds]
    better = correlate(beta[:, responds], truth) - correlate(plain[:, responds], truth)
    assert np.median(better) > 0.02
    right = [(np.abs(r.hrf_index - found.hrf)[responds] <= 1).mean() for r in (with_noise, result)]
    assert right[1] > right[0]


def test_a_pool_of_no_voxels_gives_no_components(tmp_path):
    found = simulate(n_voxels=32, noise=0.2)
    result, *_ = estimate(
        fit_optimised, tmp_path, found.runs, found.data, noise_pool_r2=-1.0, hrfs=2
    )
    assert result.attrs["noise_components"] == 0
    assert not result.voxel["noise_pool"].any()


# Pure noise


def test_noise_gains_no_reliability(tmp_path):
    """Choices over all runs: the agreement of odd and even runs stays around 0, as their own do."""
    found = simulate(n_responsive=0, n_voxels=256, noise=1.0, seed=5)
    _, beta, _ = estimate(fit_optimised, tmp_path, found.runs, found.data)
    first = np.arange(len(beta)) // 50 % 2 == 0
    odd, even = found.part([0, 2])[0], found.part([1, 3])[0]
    together = correlate(stimulus_means(odd, beta[first]), stimulus_means(even, beta[~first]))
    halves = []
    for half in ([0, 2], [1, 3]):
        runs, data = found.part(half)
        halves.append(stimulus_means(runs, estimate(fit_optimised, tmp_path, runs, data)[1]))
    apart = correlate(*halves)
    # The standard error of the mean over independent voxels is 1 / sqrt(50 * 256)
    limit = 2.6 / np.sqrt(50 * 256)
    assert abs(apart.mean()) < limit
    assert abs(together.mean()) < 2 * limit
    assert apart.std() == pytest.approx(1 / np.sqrt(49), rel=0.15)


# What users of peers miss


def test_one_run_and_no_repeats_are_enough(tmp_path):
    found = simulate(n_runs=1, n_voxels=64, noise=0.03, spacing=5.5)
    result, beta, _ = estimate(fit_optimised, tmp_path, found.runs, found.data)
    assert (np.abs(result.hrf_index - found.hrf) <= 1).mean() > 0.9
    assert (result.voxel["fraction"] == 1).all()
    assert np.isnan(result.voxel["r2_cross_validated"]).all()
    assert result.attrs["noise_components"] == 0
    text = " ".join(result.methods)
    assert "a single run leaves nothing to hold out" in text
    assert "not regularised" in text
    _, plain, _ = estimate(lsa, tmp_path, found.runs, found.data)
    assert correlate(beta, found.truth).mean() > correlate(plain, found.truth).mean() + 0.1


def test_runs_without_a_common_stimulus_are_enough(tmp_path):
    found = simulate(unique=True, n_voxels=64, n_responsive=48, noise=0.05, n_runs=3)
    result, beta, _ = estimate(fit_optimised, tmp_path, found.runs, found.data)
    assert (result.voxel["fraction"] == 1).all()
    assert len(result.attrs["noise_components_r2"]) == 11
    responds = slice(0, 48)
    assert (np.abs(result.hrf_index - found.hrf)[responds] <= 1).mean() > 0.9
    assert "no stimulus is in several runs" in " ".join(result.methods)
    _, plain, _ = estimate(lsa, tmp_path, found.runs, found.data)
    truth = found.truth[:, responds]
    gain = correlate(beta[:, responds], truth) - correlate(plain[:, responds], truth)
    assert gain.mean() > 0.1


def test_same_bytes_whatever_the_threads_and_no_input_changed(tmp_path):
    found = simulate(n_voxels=150, n_responsive=80, shared=0.3, n_runs=2)
    kept = [values.copy() for values in found.data]
    found.data[0][:, 70] = np.nan
    one = estimate(fit_optimised, tmp_path, found.runs, found.data, block_voxels=64)
    two = estimate(fit_optimised, tmp_path, found.runs, found.data, block_voxels=64, threads=3)
    for first, second in zip(one[1:], two[1:], strict=True):
        assert first.tobytes() == second.tobytes()
    assert np.isnan(one[1][:, 70]).all()
    assert np.isfinite(np.delete(one[1], 70, axis=1)).all()
    np.testing.assert_array_equal(found.data[1], kept[1])


def test_memory_does_not_grow_with_the_brain(tmp_path):
    """Each run of a peer asked for all trials x voxels x responses at once."""
    peaks = []
    for n_voxels in (256, 1280):
        found = simulate(n_runs=2, n_trials=20, n_stimuli=20, n_volumes=60, n_voxels=n_voxels)
        series = ArraySeries(found.data)
        beta, residual = (
            RunBlocks(tmp_path / f"{name}-{n_voxels}", n, n_voxels, block_voxels=128)
            for name, n in (("beta", [20, 20]), ("residual", [60, 60]))
        )
        tracemalloc.start()
        fit_optimised(
            series, found.runs, beta=beta, residual=residual, threads=1, hrfs=4, fractions=(0.5, 1)
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # What is kept of a voxel is some numbers, one of its runs' volumes would be 60 * 2 * 8 bytes
    assert peaks[1] - peaks[0] < 400 * (1280 - 256)


def test_effect_and_variance_are_those_of_least_squares(tmp_path):
    """The z of a response that the data choose would be too large in noise."""
    found = simulate(n_voxels=20)
    plain, *_ = estimate(lsa, tmp_path, found.runs, found.data)
    result, *_ = estimate(fit_optimised, tmp_path, found.runs, found.data, hrfs=3)
    np.testing.assert_allclose(result.effect, plain.effect)
    np.testing.assert_allclose(result.variance, plain.variance)
    np.testing.assert_allclose(result.tsnr, plain.tsnr)


def test_nothing_to_choose_from_is_least_squares_with_the_same_responses(tmp_path):
    found = simulate(n_voxels=16)
    _, beta, residual = estimate(
        fit_optimised,
        tmp_path,
        found.runs,
        found.data,
        hrfs=1,
        noise_components_max=0,
        fractions=(1,),
    )
    library = hrf_library(1)
    run = found.runs[0]
    onset = [trial.onset for trial in run.design.trials]
    regressors = library.regressors(
        run.design.frame_times, onset, [2.0] * 50, range(50), n_trials=50
    )[0]
    matrix = np.concatenate([regressors, run.design.matrix[:, run.design.nuisance_columns]], axis=1)
    expected = np.linalg.lstsq(matrix, found.data[0], rcond=None)[0]
    np.testing.assert_allclose(beta[:50], expected[:50], atol=1e-4)
    np.testing.assert_allclose(residual[:150], found.data[0] - matrix @ expected, atol=1e-5)
    # A penalty shortens responses (and they are scaled back), not what is left as noise.
    _, shrunk, same = estimate(
        fit_optimised,
        tmp_path,
        found.runs,
        found.data,
        hrfs=1,
        noise_components_max=0,
        fractions=(0.3,),
    )
    assert np.abs(shrunk - beta).max() > 0.1
    np.testing.assert_allclose(same, residual, atol=1e-5)


def test_sessions_may_differ_in_their_mean_response(tmp_path):
    found = simulate(n_voxels=32, noise=0.5)
    runs = [replace(run, session="ab"[k // 2]) for k, run in enumerate(found.runs)]
    result, beta, _ = estimate(fit_optimised, tmp_path, runs, found.data, noise_components_max=0)
    assert np.median(result.voxel["fraction"]) < 1
    assert correlate(beta, found.truth).mean() > 0.6


def test_schema_and_signature_agree(root):
    schema = json.loads((root / "workflow/schemas/config/glm.json").read_text())
    options = schema["properties"]["optimised"]["properties"]
    parameters = inspect.signature(fit_optimised).parameters
    for name, entry in options.items():
        default = parameters[name].default
        assert entry["default"] == (list(default) if isinstance(default, tuple) else default)


def test_wrong_options_are_refused(tmp_path):
    found = simulate(n_voxels=4, n_runs=1)
    with pytest.raises(ValueError, match="do not ascend"):
        estimate(fit_optimised, tmp_path, found.runs, found.data, fractions=(0.5, 0.1))
    with pytest.raises(ValueError, match="at least 1"):
        estimate(fit_optimised, tmp_path, found.runs, found.data, hrfs=0)
