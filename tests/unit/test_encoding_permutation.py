"""Permutation tests of held-out correlations: uniform under the null, with power."""

import numpy as np
import pytest
import scipy.stats
from scipy.signal import lfilter

from isocortex import encoding, store
from isocortex.encoding.permutation import (
    PermutationTest,
    count_permutations,
    permute_blocks,
    permute_stimuli,
)
from isocortex.multiple_tests import correct_p

from .test_volumes import write_features as write_volume_features
from .test_volumes import write_series


def repeated(n_stimuli, n_runs, seed=0, folds=3):
    """Every stimulus once a run, in another order each time."""
    rng = np.random.default_rng(seed)
    names = [f"s{index:03d}" for index in range(n_stimuli)]
    stimuli = [names[i] for _ in range(n_runs) for i in rng.permutation(n_stimuli)]
    runs = [str(run) for run in range(n_runs) for _ in range(n_stimuli)]
    return encoding.cross_validation_folds(stimuli, runs, stimulus_folds=folds), runs


def autoregressive(rng, n_runs, length, n, phi):
    noise = rng.standard_normal((length + 60, n_runs * n))
    return lfilter([1], [1, -phi], noise, axis=0)[60:].reshape(length, n_runs, n).swapaxes(0, 1)


def fit(layers, responses, cv, **options):
    return encoding.fit_layers(
        [lambda layer=layer: layer.astype(np.float32) for layer in layers],
        lambda first, last: responses[:, first:last],
        responses.shape[1],
        cv,
        [1.0, 10.0],
        **options,
    )


def within(count, n, level=0.05):
    low, high = scipy.stats.binom.interval(0.99, n, level)
    return low <= count <= high


# --- what is permuted ----------------------------------------------------------------------------


def test_stimuli_change_places_alike_in_all_runs():
    cv, _ = repeated(18, 3)
    orders = permute_stimuli(cv, permutations=20, seed=0)
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(54))
        np.testing.assert_array_equal(cv.group[order], cv.group)
        pairs = {(a, b) for a, b in zip(cv.stimulus, cv.stimulus[order], strict=True)}
        assert len(pairs) == 18  # each stimulus has one partner, in every run
    assert len(np.unique(orders, axis=0)) == 20
    np.testing.assert_array_equal(permute_stimuli(cv, permutations=20, seed=0), orders)


def test_only_stimuli_that_are_shown_alike_change_places():
    stimuli = [f"a{n}" for n in range(9)] * 2 + [f"b{n}" for n in range(9)] + ["b3", "b4"]
    runs = ["1"] * 9 + ["2"] * 9 + ["1"] * 11
    cv = encoding.cross_validation_folds(stimuli, runs)
    orders = permute_stimuli(cv, permutations=200, seed=1)
    kinds = np.array([stimulus[0] for stimulus in stimuli])
    counts = np.array([stimuli.count(stimulus) for stimulus in stimuli])
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(29))
        np.testing.assert_array_equal(kinds[order], kinds)
        np.testing.assert_array_equal(counts[order], counts)
    twice = np.flatnonzero(np.isin(stimuli, ["b3", "b4"]))
    assert len(np.unique(orders[:, twice], axis=0)) == 2


def test_blocks_keep_runs_and_neighbours():
    runs = np.repeat(["a", "b", "c"], [60, 60, 45])
    orders = permute_blocks(runs, block=15, permutations=50, seed=1)
    np.testing.assert_array_equal(orders[:, :60] + 60, orders[:, 60:120])
    for start, length in ((0, 60), (60, 60), (120, 45)):
        order = orders[:, start : start + length] - start
        assert (np.sort(order, axis=1) == np.arange(length)).all()
        breaks = (np.diff(order, axis=1) % length != 1).sum(1)
        assert (breaks <= length // 15).all()
        assert breaks.max() > 1


def test_runs_of_other_lengths_keep_what_they_repeat():
    runs = np.repeat(["a", "b"], [100, 98])
    orders = permute_blocks(runs, block=20, permutations=50, seed=1)
    moved = orders[:, :98] - (orders[:, 100:] - 100)
    # but for the samples that one lacks, a moment gets that of the other run or its neighbours
    assert (np.abs(moved) <= 2).mean() > 0.85
    assert not (orders == np.arange(198)).all(1).any()


# --- counting ------------------------------------------------------------------------------------


def test_p_values_equal_a_plain_count():
    rng = np.random.default_rng(2)
    observed = rng.standard_normal((2, 9)).round(2) + 1
    observed[1, 4] = np.nan
    null = rng.standard_normal((2, 99, 9))
    counted = PermutationTest(2, 9, 99)
    counted.observed[:] = observed
    for layer in range(2):
        for part in (slice(0, 4), slice(4, 9)):
            for rows in (slice(0, 50), slice(50, 99)):
                counts = count_permutations(observed[layer, part], null[layer, rows, part])
                counted.add(layer, part, rows, *counts)
    p = (1 + (null >= observed[:, None]).sum(1)) / 100
    p[1, 4] = np.nan
    np.testing.assert_array_equal(counted.p, p)
    null[1, :, 4] = -np.inf
    largest = null.max((0, 2))
    expected = (1 + (largest[:, None, None] >= observed).sum(0)) / 100
    expected[1, 4] = np.nan
    np.testing.assert_array_equal(counted.p_fwe, expected)
    np.testing.assert_array_equal(counted.p_fdr[0], correct_p(p[0], correction="fdr"))


@pytest.mark.parametrize("method", ["ridge", "fractional"])
def test_each_permutation_is_a_fit_of_permuted_responses(method):
    rng = np.random.default_rng(3)
    cv, _ = repeated(18, 2)
    layers = [rng.standard_normal((18, p)) for p in (4, 30)]
    responses = layers[0][cv.stimulus] @ rng.standard_normal((4, 6)) + rng.standard_normal((36, 6))
    orders = permute_stimuli(cv, permutations=7, seed=4)
    read = lambda values: lambda first, last: values[:, first:last]  # noqa: E731
    loaders = [lambda layer=layer: layer.astype(np.float32) for layer in layers]
    one = [0.7]  # one penalty, so that there is no choice to be kept
    options = {"method": method}
    found = encoding.fit_layers(loaders, read(responses), 6, cv, one, orders=orders, **options)
    null = np.stack(
        [
            encoding.fit_layers(loaders, read(responses[order]), 6, cv, one, **options).score
            for order in orders
        ]
    )
    expected = (1 + (null >= found.score - 1e-5).sum(0)) / 8
    np.testing.assert_array_equal(found.test.p, expected)
    highest = null.max((1, 2))[:, None, None]
    np.testing.assert_array_equal(
        found.test.p_fwe, (1 + (highest >= found.score - 1e-5).sum(0)) / 8
    )
    parts = encoding.fit_layers(
        loaders, read(responses), 6, cv, one, orders=orders, voxel_batch=4, **options
    )
    np.testing.assert_array_equal(parts.test.p, expected)


# --- calibration ---------------------------------------------------------------------------------


def rates(make, n_studies):
    """Over studies: p of one voxel at most .05, at most .5; any of all at most .05 corrected."""
    p, any_found = [], 0
    for _ in range(n_studies):
        test = make().test
        p.append(test.p[0, 0])
        any_found += bool((test.p_fwe <= 0.05).any())
    return (np.array(p) <= 0.05).sum(), (np.array(p) <= 0.5).sum(), any_found


def test_uniform_under_the_null_for_stimuli_with_signal_of_their_own():
    """Responses that repeat from run to run, and say nothing of the features."""
    rng = np.random.default_rng(5)
    cv, runs = repeated(24, 2, folds=2)
    orders = permute_stimuli(cv, permutations=59, seed=6)
    trials = permute_blocks(runs, block=1, permutations=59, seed=6)

    def study(orders=orders):
        layers = [rng.standard_normal((24, 6)) for _ in range(2)]
        own = rng.standard_normal((24, 5))[cv.stimulus]
        return fit(layers, own + 0.5 * rng.standard_normal((48, 5)), cv, orders=orders)

    low, half, family = rates(study, 100)
    assert within(low, 100)
    assert within(half, 100, 0.5)
    assert within(family, 100)
    wrong = np.mean([study(trials).test.p <= 0.05 for _ in range(25)])
    assert wrong > 0.08  # trials are not exchangeable


@pytest.mark.parametrize("phi", [0.0, 0.7])
def test_uniform_under_the_null_for_volumes(phi):
    """White noise, and noise and features of an autocorrelation of 6 s at a TR of 2 s."""
    rng = np.random.default_rng(7)
    length, n_runs = 120, 2
    runs = np.repeat(list("ab"), length)
    names = [f"{run}#{index:03d}" for run in "ab" for index in range(length)]
    cv = encoding.cross_validation_folds(names, runs)
    orders = permute_blocks(runs, block=20, permutations=59, seed=8)
    single = permute_blocks(runs, block=1, permutations=59, seed=8)

    def study(orders=orders):
        features = autoregressive(rng, n_runs, length, 6, phi).reshape(-1, 6)
        noise = autoregressive(rng, n_runs, length, 4, phi).reshape(-1, 4)
        shared = noise[:, :1] + noise  # voxels that are not independent
        return fit([features[:, :4], features[:, 2:]], shared, cv, orders=orders)

    low, half, family = rates(study, 100)
    assert within(low, 100)
    assert within(half, 100, 0.5)
    assert within(family, 100)
    if phi:
        wrong = np.mean([study(single).test.p <= 0.05 for _ in range(20)])
        assert wrong > 0.1  # volumes are not exchangeable


def test_power_at_an_effect():
    rng = np.random.default_rng(9)
    cv, _ = repeated(30, 2)
    layers = [rng.standard_normal((30, 5)) for _ in range(2)]
    responses = rng.standard_normal((60, 200))
    responses[:, :60] += 0.6 * layers[0][cv.stimulus] @ rng.standard_normal((5, 60))
    responses[4, 70], responses[:, 80] = np.nan, 2.5
    found = fit(layers, responses, cv, orders=permute_stimuli(cv, permutations=199, seed=10))
    assert (found.test.p_fdr[0, :60] <= 0.05).mean() > 0.8
    assert (found.test.p_fwe[0, :60] <= 0.05).mean() > 0.5
    assert (found.test.p_fwe[0, 60:] <= 0.05).sum() == 0
    assert np.isnan(found.test.p[:, [70, 80]]).all()
    assert np.nanmin(found.test.p) == 1 / 200  # never 0


def test_volumes_through_the_stage(tmp_path):
    """Blocks of seconds: the layer that drives the voxels is found, the other is not."""
    rng = np.random.default_rng(11)
    films = ("a", "b", "c")
    layers = {name: rng.standard_normal((3 * 120, 3)) for name in ("drives", "other")}
    features = write_volume_features(tmp_path / "f.zarr", layers, films=films)
    weights = rng.standard_normal((3, 12))
    runs, events = [], []
    for number in range(3):
        drive = layers["drives"][number * 120 : (number + 1) * 120].reshape(60, 2, 3).mean(1)
        bold = rng.standard_normal((60, 12))
        bold[2:] += drive[:-2] @ weights  # 4 s later
        runs.append(bold)
        events.append([(0, 120, films[number])])
    series = write_series(tmp_path, runs, events)
    options = {"over": "run", "new_stimuli": True}
    for block in (None, 20.0):
        encoding.fit_encoding(
            responses=series,
            features=features,
            out=tmp_path / "e.zarr",
            maps=tmp_path / "maps",
            alphas=[1.0, 10.0],
            cross_validation=options,
            delays=[2, 4, 6],
            permutations=39,
            permutation_block=block,
        )
        result = store.open(tmp_path / "e.zarr", "encoding")
        assert (result["p_fwe"].values[0] <= 0.05).mean() > 0.9
        assert (result["p_fwe"].values[1] <= 0.05).sum() <= 1
        assert result.attrs["kind"] == "volumes"
