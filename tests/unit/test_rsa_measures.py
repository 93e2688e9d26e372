"""RDMs of patterns against rsatoolbox and closed forms."""

import numpy as np
import pytest
from rsatoolbox.data import Dataset
from rsatoolbox.data.noise import cov_from_residuals, prec_from_residuals
from rsatoolbox.rdm import calc_rdm

from isocortex.rsa import (
    correlation_distance,
    covariance,
    crossnobis_distance,
    euclidean_distance,
    mean_patterns,
    n_stimuli,
    to_matrices,
    to_vectors,
    whiten,
)
from isocortex.rsa.noise import SHRINKAGES

TOLERANCE = 1e-8


def _trials(rng, *, repeats, n_stimuli=9, n_voxels=30):
    """Patterns with a stimulus part; repeats[run] trials of every stimulus in a run, shuffled."""
    signal = rng.standard_normal((n_stimuli, n_voxels))
    labels, runs = [], []
    for run, count in enumerate(repeats):
        for _ in range(count):
            labels += [f"s{k:02d}" for k in range(n_stimuli)]
            runs += [f"run-{run}"] * n_stimuli
    order = rng.permutation(len(labels))
    labels = [labels[k] for k in order]
    runs = [runs[k] for k in order]
    row = np.array([int(label[1:]) for label in labels])
    patterns = 3.0 + signal[row] + rng.standard_normal((len(labels), n_voxels))
    return patterns, labels, runs


def _peer(patterns, labels, runs, method, **options):
    dataset = Dataset(
        patterns.copy(), obs_descriptors={"stimulus": list(labels), "run": list(runs)}
    )
    return calc_rdm(dataset, method=method, descriptor="stimulus", **options).get_vectors()[0]


@pytest.mark.parametrize("repeats", [(1, 1, 1), (2, 1, 3)])
def test_distances_of_means_equal_rsatoolbox(repeats):
    patterns, labels, runs = _trials(np.random.default_rng(0), repeats=repeats)
    means, names, counts = mean_patterns(patterns, labels)
    assert names == tuple(sorted(set(labels)))
    assert (counts == sum(repeats)).all()
    for method, ours in (("correlation", correlation_distance), ("euclidean", euclidean_distance)):
        peer = _peer(patterns, labels, runs, method)
        np.testing.assert_allclose(ours(means), peer, rtol=0, atol=TOLERANCE)


def test_whitened_euclidean_is_mahalanobis():
    rng = np.random.default_rng(1)
    patterns, labels, runs = _trials(rng, repeats=(1, 1))
    residuals = rng.standard_normal((60, 30)) @ rng.standard_normal((30, 30))
    sigma = covariance(residuals)
    means = mean_patterns(patterns, labels)[0]
    peer = _peer(patterns, labels, runs, "mahalanobis", noise=np.linalg.inv(sigma))
    np.testing.assert_allclose(euclidean_distance(whiten(means, sigma)), peer, atol=TOLERANCE)


@pytest.mark.parametrize("method", SHRINKAGES)
@pytest.mark.parametrize("freedom", [None, 40])
def test_noise_covariance_equals_rsatoolbox(method, freedom):
    rng = np.random.default_rng(2)
    residuals = rng.standard_normal((50, 12)) @ rng.standard_normal((12, 12)) + 5.0
    peer = cov_from_residuals(residuals.copy(), method=method, dof=freedom)
    ours = covariance(residuals, method=method, degrees_of_freedom=freedom)
    np.testing.assert_allclose(ours, peer, rtol=1e-10, atol=TOLERANCE)


def test_shrinkage_makes_few_samples_invertible():
    residuals = np.random.default_rng(3).standard_normal((20, 60))
    with pytest.raises(np.linalg.LinAlgError):
        whiten(residuals, covariance(residuals, method="full"))
    assert np.isfinite(whiten(residuals, covariance(residuals))).all()


@pytest.mark.parametrize("repeats", [(1, 1), (1, 1, 1, 1), (2, 1, 3), (1, 4, 1, 2, 2)])
@pytest.mark.parametrize("whitened", [False, True])
def test_crossnobis_equals_rsatoolbox_with_unequal_repeats(repeats, whitened):
    rng = np.random.default_rng(4)
    patterns, labels, runs = _trials(rng, repeats=repeats)
    residuals = rng.standard_normal((80, 30)) @ rng.standard_normal((30, 30))
    options, white = {}, patterns
    if whitened:
        options["noise"] = prec_from_residuals(residuals.copy(), method="shrinkage_diag")
        white = whiten(patterns, covariance(residuals, method="shrinkage_diag"))
    peer = _peer(patterns, labels, runs, "crossnobis", cv_descriptor="run", **options)
    ours, names, folds = crossnobis_distance(white, labels, runs)
    assert names == tuple(sorted(set(labels)))
    assert (folds == len(repeats)).all()
    np.testing.assert_allclose(ours, peer, rtol=0, atol=TOLERANCE)


def test_crossnobis_of_two_runs_is_the_product_of_differences():
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((2, 4, 7))
    labels = ["a", "b", "c", "d"] * 2
    ours, _, _ = crossnobis_distance(np.r_[a, b], labels, ["1"] * 4 + ["2"] * 4)
    wanted = [(a[i] - a[j]) @ (b[i] - b[j]) / 7 for i in range(4) for j in range(i + 1, 4)]
    np.testing.assert_allclose(ours, wanted, atol=1e-12)


def test_crossnobis_leaves_out_pairs_without_two_runs_in_common():
    rng = np.random.default_rng(6)
    labels = ["a", "b", "c", "a", "b", "c", "a", "d"]
    runs = ["1", "1", "1", "2", "2", "2", "3", "3"]
    ours, names, folds = crossnobis_distance(rng.standard_normal((8, 5)), labels, runs)
    pairs = [(x, y) for k, x in enumerate(names) for y in names[k + 1 :]]
    for pair, value, common in zip(pairs, ours, folds):
        assert np.isnan(value) == (common < 2) == ("d" in pair)


def test_crossnobis_is_unbiased_for_pure_noise():
    """Mean 0 within 4 standard errors where the plain distance is far above 0."""
    rng = np.random.default_rng(7)
    labels = [f"s{k}" for k in range(5)] * 3
    runs = sorted(["1", "2", "3"] * 5)
    offsets = {run: 10 * rng.standard_normal(20) for run in "123"}
    draws = []
    for _ in range(400):
        noise = rng.standard_normal((15, 20)) + np.array([offsets[run] for run in runs])
        draws.append(crossnobis_distance(noise, labels, runs)[0].mean())
    draws = np.array(draws)
    assert abs(draws.mean()) < 4 * draws.std() / np.sqrt(len(draws))
    assert euclidean_distance(mean_patterns(noise, labels)[0]).mean() > 20 * abs(draws.mean())


def test_vectors_and_matrices_turn_into_each_other():
    vectors = np.random.default_rng(8).random((3, 15))
    square = to_matrices(vectors)
    assert square.shape == (3, 6, 6)
    np.testing.assert_array_equal(square, square.swapaxes(1, 2))
    np.testing.assert_array_equal(to_vectors(square), vectors)
    np.testing.assert_array_equal(square[0, 0, 1:], vectors[0, :5])
    assert n_stimuli(15) == 6
    with pytest.raises(ValueError, match="16 is not"):
        n_stimuli(16)
