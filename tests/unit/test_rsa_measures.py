"""Dissimilarities and noise covariances against rsatoolbox, closed forms and simulated truth."""

import json
import tracemalloc

import numpy as np
import pytest
from rsatoolbox.data import Dataset
from rsatoolbox.data.noise import (
    cov_from_measurements,
    cov_from_residuals,
    cov_from_unbalanced,
    prec_from_measurements,
    prec_from_residuals,
)
from rsatoolbox.rdm import calc_rdm, calc_rdm_unbalanced

from isocortex.rsa import (
    MEASURES,
    correlation_distance,
    cosine_distance,
    covariance,
    crossnobis_distance,
    crossnobis_in_own_noise,
    crossnobis_of_run_means,
    crossvalidation_design,
    euclidean_distance,
    mahalanobis_distance,
    mean_patterns,
    measurement_residuals,
    n_stimuli,
    poisson_cv_distance,
    poisson_distance,
    to_matrices,
    to_vectors,
    whiten,
)
from isocortex.rsa.compute import MODEL_MEASURES, NOISE_SOURCES, usable_voxels
from isocortex.rsa.dissimilarity import poisson_cv_of_run_means
from isocortex.rsa.noise import SHRINKAGES, fold_freedom

TOLERANCE = 1e-8
REPEATS = {
    "balanced": (1, 1, 1, 1),
    "two runs": (1, 1),
    "repeated": (3, 3, 3),
    "unequal": (2, 1, 3),
    "very unequal": (1, 4, 1, 2, 2),
}


def _trials(rng, *, repeats, n_stimuli=9, n_voxels=30, kind="random"):
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
    if kind == "counts":
        return rng.poisson(np.exp(signal[row])).astype(float), labels, runs
    patterns = 3.0 + signal[row] + rng.standard_normal((len(labels), n_voxels))
    return (np.round(patterns) if kind == "tied" else patterns), labels, runs


def _dataset(patterns, labels, runs):
    return Dataset(patterns.copy(), obs_descriptors={"stimulus": list(labels), "run": list(runs)})


def _peer(patterns, labels, runs, method, *, calc=calc_rdm, **options):
    dataset = _dataset(patterns, labels, runs)
    rdm = calc(dataset, method=method, descriptor="stimulus", **options)
    # The unbalanced one keeps the stimuli in the order of their first trials.
    rdm.sort_by(reindex=True, stimulus="alpha")
    return rdm.get_vectors()[0]


def _missing(rng, patterns, labels, runs, share=0.2):
    """Leave trials out at random, so that runs lack stimuli."""
    keep = np.flatnonzero(rng.random(len(labels)) > share)
    return patterns[keep], [labels[k] for k in keep], [runs[k] for k in keep]


def _folds(patterns, labels, runs, product):
    """The definition in plain loops: for every pair the mean over the runs that hold both."""
    labels, runs = np.array(labels), np.array(runs)
    names = sorted(set(labels))
    found = []
    for a, i in enumerate(names):
        for j in names[a + 1 :]:
            values = []
            for run in sorted(set(runs)):
                cells = {s: (labels == s) & (runs == run) for s in (i, j)}
                if not all(cell.any() for cell in cells.values()):
                    continue
                test = {s: patterns[cells[s]].mean(axis=0) for s in (i, j)}
                left = {s: (labels == s) & (runs != run) for s in (i, j)}
                if not all(cell.any() for cell in left.values()):
                    continue
                train = {s: patterns[left[s]].mean(axis=0) for s in (i, j)}
                values.append(product(train[i], train[j], test[i], test[j]))
            found.append(np.mean(values) if len(values) > 1 else np.nan)
    return np.array(found)


@pytest.mark.parametrize("kind", ["random", "tied", "counts"])
@pytest.mark.parametrize("repeats", REPEATS.values(), ids=REPEATS)
def test_distances_of_means_equal_rsatoolbox(repeats, kind):
    patterns, labels, runs = _trials(np.random.default_rng(0), repeats=repeats, kind=kind)
    means, names, counts = mean_patterns(patterns, labels)
    assert names == tuple(sorted(set(labels)))
    assert (counts == sum(repeats)).all()
    ours = {"correlation": correlation_distance, "euclidean": euclidean_distance}
    if kind == "counts":
        ours["poisson"] = poisson_distance
    for method, distance in ours.items():
        peer = _peer(patterns, labels, runs, method)
        np.testing.assert_allclose(distance(means), peer, rtol=0, atol=TOLERANCE)


def test_unbalanced_trials_equal_rsatoolbox():
    """Stimuli with other numbers of trials: means over trials, as ``calc_rdm`` has them.

    ``calc_rdm_unbalanced`` gives the same for the Euclidean distance. Its correlation and Poisson
    distances are means over pairs of single trials, another definition, equal to ours where every
    stimulus has one trial.
    """
    rng = np.random.default_rng(1)
    trials = _missing(rng, *_trials(rng, repeats=(2, 1, 3), kind="counts"))
    means, names, counts = mean_patterns(*trials[:2])
    assert len(set(counts)) > 2
    for method, distance in (
        ("correlation", correlation_distance),
        ("euclidean", euclidean_distance),
        ("poisson", poisson_distance),
    ):
        np.testing.assert_allclose(distance(means), _peer(*trials, method), atol=TOLERANCE)
        once = _peer(means, names, ["1"] * len(names), method, calc=calc_rdm_unbalanced)
        np.testing.assert_allclose(distance(means), once, rtol=0, atol=TOLERANCE)
    peer = _peer(*trials, "euclidean", calc=calc_rdm_unbalanced)
    np.testing.assert_allclose(euclidean_distance(means), peer, rtol=0, atol=TOLERANCE)


def test_cosine_is_the_angle():
    """rsatoolbox has no cosine distance of patterns; of patterns with mean 0 it is 1 - r."""
    from scipy.spatial.distance import pdist

    patterns, labels, runs = _trials(np.random.default_rng(2), repeats=(1, 2), kind="tied")
    means = mean_patterns(patterns, labels)[0]
    np.testing.assert_allclose(cosine_distance(means), pdist(means, "cosine"), atol=1e-12)
    centred = means - means.mean(axis=1, keepdims=True)
    peer = _peer(patterns, labels, runs, "correlation")
    np.testing.assert_allclose(cosine_distance(centred), peer, atol=TOLERANCE)


@pytest.mark.parametrize("prior", [(1.0, 0.1), (2.5, 0.7)])
def test_poisson_prior_is_rsatoolbox_s(prior):
    trials = _trials(np.random.default_rng(3), repeats=(1, 2), kind="counts")
    ours = poisson_distance(
        mean_patterns(*trials[:2])[0], prior_mean=prior[0], prior_weight=prior[1]
    )
    peer = _peer(*trials, "poisson", prior_lambda=prior[0], prior_weight=prior[1])
    np.testing.assert_allclose(ours, peer, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("method", SHRINKAGES)
def test_mahalanobis_equals_rsatoolbox(method):
    rng = np.random.default_rng(4)
    trials = _trials(rng, repeats=(2, 1))
    residuals = rng.standard_normal((60, 30)) @ rng.standard_normal((30, 30))
    means = mean_patterns(*trials[:2])[0]
    peer = _peer(*trials, "mahalanobis", noise=prec_from_residuals(residuals.copy(), method=method))
    ours = mahalanobis_distance(means, covariance(residuals, method=method))
    np.testing.assert_allclose(ours, peer, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("method", SHRINKAGES)
@pytest.mark.parametrize("freedom", [None, 40])
@pytest.mark.parametrize("tied", [False, True])
def test_noise_covariance_equals_rsatoolbox(method, freedom, tied):
    rng = np.random.default_rng(5)
    residuals = rng.standard_normal((50, 12)) @ rng.standard_normal((12, 12)) + 5.0
    if tied:
        residuals = np.round(residuals)
    peer = cov_from_residuals(residuals.copy(), method=method, dof=freedom)
    ours = covariance(residuals, method=method, degrees_of_freedom=freedom)
    np.testing.assert_allclose(ours, peer, rtol=1e-10, atol=TOLERANCE)
    whitener = whiten(np.eye(12), ours)
    precision = prec_from_residuals(residuals.copy(), method=method, dof=freedom)
    np.testing.assert_allclose(whitener @ whitener.T, precision, rtol=1e-8, atol=TOLERANCE)


@pytest.mark.parametrize("method", SHRINKAGES)
@pytest.mark.parametrize("repeats", [(1, 1, 1, 1), (2, 1, 3)])
def test_noise_of_measurements_equals_rsatoolbox(method, repeats):
    """Deviations from stimulus means, run by run not looked at, as rsatoolbox has them.

    The degrees of freedom that ``cov_from_measurements`` takes by itself are (stimuli - 1) x
    repeats and not the trials less the stimuli; with the right number given it agrees.
    """
    rng = np.random.default_rng(6)
    patterns, labels, runs = _trials(rng, repeats=repeats, n_voxels=12)
    residuals, freedom = measurement_residuals(patterns, labels)
    assert freedom == len(labels) - 9
    ours = covariance(residuals, method=method, degrees_of_freedom=freedom)
    dataset = _dataset(patterns, labels, runs)
    for peer in (
        cov_from_unbalanced(dataset, "stimulus", method=method),
        cov_from_measurements(dataset, "stimulus", method=method, dof=freedom),
    ):
        np.testing.assert_allclose(ours, peer, rtol=1e-10, atol=TOLERANCE)
    precision = prec_from_measurements(dataset, "stimulus", method=method, dof=freedom)
    whitener = whiten(np.eye(12), ours)
    np.testing.assert_allclose(whitener @ whitener.T, precision, rtol=1e-7, atol=TOLERANCE)


def test_noise_of_measurements_is_left_by_stimuli_and_runs():
    """Least squares with both; with trials missing; run offsets leave no trace."""
    rng = np.random.default_rng(7)
    patterns, labels, runs = _missing(rng, *_trials(rng, repeats=(2, 1, 3), n_voxels=5))
    columns = [np.array(labels) == s for s in sorted(set(labels))]
    columns += [np.array(runs) == run for run in sorted(set(runs))]
    design = np.array(columns, dtype=float).T
    wanted = patterns - design @ np.linalg.lstsq(design, patterns, rcond=None)[0]
    residuals, freedom = measurement_residuals(patterns, labels, runs)
    np.testing.assert_allclose(residuals, wanted, atol=1e-10)
    assert freedom == len(labels) - np.linalg.matrix_rank(design)
    offset = {run: 10 * rng.standard_normal(5) for run in sorted(set(runs))}
    moved, _ = measurement_residuals(patterns + [offset[r] for r in runs], labels, runs)
    np.testing.assert_allclose(moved, residuals, atol=1e-9)


def test_noise_of_measurements_has_the_right_size():
    """Unbiased for the noise within runs, whatever runs are shifted by."""
    rng = np.random.default_rng(8)
    labels = [f"s{k}" for k in range(6)] * 4
    runs = sorted("1234" * 6)
    draws = []
    for _ in range(500):
        offset = {run: 5 * rng.standard_normal(3) for run in "1234"}
        noise = 2.0 * rng.standard_normal((24, 3)) + [offset[run] for run in runs]
        residuals, freedom = measurement_residuals(noise, labels, runs)
        draws.append(np.diag(covariance(residuals, method="diag", degrees_of_freedom=freedom)))
    draws = np.array(draws).mean(axis=1)
    assert abs(draws.mean() - 4.0) < 3 * draws.std() / np.sqrt(len(draws))


@pytest.mark.parametrize("method", SHRINKAGES)
def test_noise_covariance_of_fewer_samples_than_voxels(method):
    residuals = np.random.default_rng(24).standard_normal((15, 40)) * np.linspace(0.1, 30, 40)
    peer = cov_from_residuals(residuals.copy(), method=method)
    np.testing.assert_allclose(covariance(residuals, method=method), peer, rtol=1e-9, atol=1e-12)


def test_config_offers_what_there_is(root):
    schema = json.loads((root / "workflow/schemas/config/rsa.json").read_text())["properties"]
    assert tuple(schema["measures"]["items"]["enum"]) == MEASURES
    assert tuple(schema["model_measure"]["enum"]) == ("matched", *MODEL_MEASURES)
    noise = schema["noise_normalisation"]["properties"]
    assert tuple(noise["source"]["enum"]) == NOISE_SOURCES
    assert tuple(noise["shrinkage"]["enum"]) == SHRINKAGES


def test_shrinkage_makes_few_samples_invertible():
    residuals = np.random.default_rng(9).standard_normal((20, 60))
    with pytest.raises(np.linalg.LinAlgError):
        whiten(residuals, covariance(residuals, method="full"))
    for method in ("shrinkage_diag", "shrinkage_eye"):
        assert np.isfinite(whiten(residuals, covariance(residuals, method=method))).all()


@pytest.mark.parametrize("repeats", REPEATS.values(), ids=REPEATS)
@pytest.mark.parametrize("kind", ["random", "tied"])
@pytest.mark.parametrize("shrinkage", ["none", *SHRINKAGES])
def test_crossnobis_equals_rsatoolbox(repeats, kind, shrinkage):
    rng = np.random.default_rng(10)
    patterns, labels, runs = _trials(rng, repeats=repeats, kind=kind)
    residuals = rng.standard_normal((80, 30)) @ (np.eye(30) + 0.1 * rng.standard_normal((30, 30)))
    options, white = {}, patterns
    if shrinkage != "none":
        options["noise"] = prec_from_residuals(residuals.copy(), method=shrinkage)
        white = whiten(patterns, covariance(residuals, method=shrinkage))
    peer = _peer(patterns, labels, runs, "crossnobis", cv_descriptor="run", **options)
    ours, names, folds = crossnobis_distance(white, labels, runs)
    assert names == tuple(sorted(set(labels)))
    assert (folds == len(repeats)).all()
    np.testing.assert_allclose(ours, peer, rtol=0, atol=TOLERANCE)
    if len(set(repeats)) == 1:
        # With unequal repeats its weights are products of numbers of trials: another estimate.
        options |= {"calc": calc_rdm_unbalanced, "cv_descriptor": "run"}
        peer = _peer(patterns, labels, runs, "crossnobis", **options)
        np.testing.assert_allclose(ours, peer, rtol=0, atol=TOLERANCE)


def test_crossnobis_with_stimuli_missing_in_runs_is_its_definition():
    """``calc_rdm`` cannot be asked: its folds then have means of other stimuli, of other shapes.

    ``calc_rdm_unbalanced`` takes the mean over pairs of trials of different runs, term by term:
    another estimate, in which the terms of a distance come from different runs.
    """
    rng = np.random.default_rng(11)
    trials = _missing(rng, *_trials(rng, repeats=(1, 2, 1, 1, 1)), share=0.35)
    with pytest.raises(ValueError, match=r"shape|dimension"):
        _peer(*trials, "crossnobis", cv_descriptor="run")
    ours, _, folds = crossnobis_distance(*trials)
    wanted = _folds(*trials, lambda a, b, c, d: (a - b) @ (c - d) / len(a))
    np.testing.assert_allclose(ours, wanted, atol=1e-10)
    assert folds.min() < 2 < folds.max()
    assert (np.isnan(ours) == (folds < 2)).all()


def test_crossnobis_of_two_runs_is_the_product_of_differences():
    rng = np.random.default_rng(12)
    a, b = rng.standard_normal((2, 4, 7))
    labels = ["a", "b", "c", "d"] * 2
    ours, _, _ = crossnobis_distance(np.r_[a, b], labels, ["1"] * 4 + ["2"] * 4)
    wanted = [(a[i] - a[j]) @ (b[i] - b[j]) / 7 for i in range(4) for j in range(i + 1, 4)]
    np.testing.assert_allclose(ours, wanted, atol=1e-12)


def test_pairs_without_two_runs_in_common_are_left_out():
    rng = np.random.default_rng(13)
    labels = ["a", "b", "c", "a", "b", "c", "a", "d"]
    runs = ["1", "1", "1", "2", "2", "2", "3", "3"]
    patterns = rng.poisson(4.0, (8, 5)).astype(float)
    for distance in (crossnobis_distance, poisson_cv_distance):
        ours, names, folds = distance(patterns, labels, runs)
        pairs = [(x, y) for k, x in enumerate(names) for y in names[k + 1 :]]
        for pair, value, common in zip(pairs, ours, folds):
            assert np.isnan(value) == (common < 2) == ("d" in pair)


def test_poisson_cv_equals_rsatoolbox():
    """The mean over folds, as ``calc_rdm_unbalanced`` with one trial a run.

    ``calc_rdm(method='poisson_cv')`` forgets all folds but its last, which is tested as such; with
    repeats in a run ``calc_rdm_unbalanced`` takes logarithms of single trials, not of means.
    """
    rng = np.random.default_rng(14)
    trials = _trials(rng, repeats=(1, 1, 1, 1), kind="counts")
    ours, names, _ = poisson_cv_distance(*trials)
    peer = _peer(*trials, "poisson_cv", calc=calc_rdm_unbalanced, cv_descriptor="run")
    np.testing.assert_allclose(ours, peer, rtol=0, atol=TOLERANCE)

    def divergence(a, b, c, d):
        a, b, c, d = ((x + 0.1) / 1.1 for x in (a, b, c, d))
        return (a - b) @ (np.log(c) - np.log(d)) / len(a)

    last = []
    for i, j in zip(*np.triu_indices(9, 1)):
        sides = [
            np.mean([p for p, s, r in zip(*trials) if s == names[k] and (r == "run-3") == test], 0)
            for test in (False, True)
            for k in (i, j)
        ]
        last.append(divergence(*sides))
    peer = _peer(*trials, "poisson_cv", cv_descriptor="run")
    np.testing.assert_allclose(last, peer, rtol=0, atol=TOLERANCE)
    trials = _missing(rng, *_trials(rng, repeats=(2, 1, 3, 2), kind="counts"))
    ours = poisson_cv_distance(*trials)[0]
    np.testing.assert_allclose(ours, _folds(*trials, divergence), atol=1e-10)


def test_nan_voxels_are_dropped():
    """A voxel that is NaN anywhere is left out, as if it had not been measured.

    rsatoolbox ``calc_rdm`` gives NaN throughout. ``calc_rdm_unbalanced`` agrees with ours where
    whole voxels are NaN, for the Euclidean and crossnobis distances; its correlation divides by
    the number of all voxels, and its Mahalanobis distance reads past the end of its vectors.
    Where single entries are NaN it leaves them out trial by trial, another definition.
    """
    rng = np.random.default_rng(15)
    patterns, labels, runs = _trials(rng, repeats=(1, 1, 1))
    holes = patterns.copy()
    holes[:, [3, 11]] = np.nan
    holes[:, 20] = 7.5
    good = usable_voxels(holes)
    assert np.flatnonzero(~good).tolist() == [3, 11, 20]
    clean = patterns[:, good]
    # A constant voxel adds nothing to a distance but counts in its mean over voxels.
    share = good.sum() / (good.sum() + 1)
    assert np.isnan(_peer(holes, labels, runs, "euclidean")).all()
    means = mean_patterns(holes[:, good], labels)[0]
    peer = _peer(holes, labels, runs, "euclidean", calc=calc_rdm_unbalanced)
    np.testing.assert_allclose(share * euclidean_distance(means), peer, atol=TOLERANCE)
    ours = crossnobis_distance(holes[:, good], labels, runs)[0]
    peer = _peer(holes, labels, runs, "crossnobis", calc=calc_rdm_unbalanced, cv_descriptor="run")
    np.testing.assert_allclose(share * ours, peer, atol=TOLERANCE)
    for method, distance in (
        ("correlation", correlation_distance),
        ("euclidean", euclidean_distance),
    ):
        np.testing.assert_allclose(
            distance(means), _peer(clean, labels, runs, method), atol=TOLERANCE
        )
    holes = patterns.copy()
    holes[4, 3] = holes[9, 3] = holes[2, 8] = np.nan
    good = usable_voxels(holes)
    assert np.flatnonzero(~good).tolist() == [3, 8]
    ours = crossnobis_distance(holes[:, good], labels, runs)[0]
    peer = _peer(patterns[:, good], labels, runs, "crossnobis", cv_descriptor="run")
    np.testing.assert_allclose(ours, peer, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", ["balanced", "unequal", "missing"])
@pytest.mark.parametrize("voxels_first", [False, True])
def test_neighbourhoods_at_once_are_neighbourhoods_one_by_one(case, voxels_first):
    rng = np.random.default_rng(16)
    repeats = (1, 1, 1, 1) if case == "balanced" else (2, 1, 3, 1)
    patterns, labels, runs = _trials(rng, repeats=repeats, n_voxels=40)
    if case == "missing":
        patterns, labels, runs = _missing(rng, patterns, labels, runs, share=0.4)
    design = crossvalidation_design(labels, runs)
    assert design.balanced == (case == "balanced")
    means = design.run_means(patterns)
    members = [rng.choice(40, size, replace=False) for size in (12, 7, 12, 5)]
    table = np.concatenate([np.moveaxis(means, -1, 0), np.zeros((1, *means.shape[:2]))])
    padded = np.array([np.r_[m, np.full(12 - len(m), 40)] for m in members])
    stack = table[padded]  # centre, voxel, stimulus, run
    stack = stack.transpose(0, 1, 3, 2) if voxels_first else stack.transpose(0, 2, 3, 1)
    sizes = np.array([len(m) for m in members])
    ours = crossnobis_of_run_means(stack, design, voxels_first=voxels_first, n_voxels=sizes)
    for row, chosen in zip(ours, members):
        wanted = crossnobis_distance(patterns[:, chosen], labels, runs)[0]
        np.testing.assert_allclose(row, wanted, rtol=0, atol=1e-10)
    single = crossnobis_of_run_means(
        stack.astype(np.float32), design, voxels_first=voxels_first, n_voxels=sizes
    )
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, ours, rtol=0, atol=2e-5)
    counts = design.run_means(np.abs(patterns), centre=False)
    table[:40] = np.moveaxis(counts, -1, 0)
    stack = table[padded].transpose(*((0, 1, 3, 2) if voxels_first else (0, 2, 3, 1)))
    ours = poisson_cv_of_run_means(stack, design, voxels_first=voxels_first, n_voxels=sizes)
    for row, chosen in zip(ours, members):
        wanted = poisson_cv_distance(np.abs(patterns[:, chosen]), labels, runs)[0]
        np.testing.assert_allclose(row, wanted, rtol=0, atol=1e-10)


def test_stacks_of_patterns_are_patterns_one_by_one():
    rng = np.random.default_rng(17)
    stack = rng.poisson(3.0, (2, 3, 6, 11)) + 0.25
    noise = rng.standard_normal((2, 3, 20, 11))
    for distance in (correlation_distance, cosine_distance, euclidean_distance, poisson_distance):
        ours = distance(stack)
        assert ours.shape == (2, 3, 15)
        np.testing.assert_allclose(ours[1, 2], distance(stack[1, 2]), atol=1e-12)
    for method in SHRINKAGES:
        sigma = covariance(noise, method=method)
        np.testing.assert_allclose(sigma[1, 2], covariance(noise[1, 2], method=method), atol=1e-12)
        ours = mahalanobis_distance(stack, sigma)
        wanted = mahalanobis_distance(stack[1, 2], sigma[1, 2])
        np.testing.assert_allclose(ours[1, 2], wanted, rtol=1e-10)


@pytest.mark.parametrize("method", SHRINKAGES)
def test_absent_voxels_change_nothing(method):
    """Neighbourhoods of several sizes, filled up with columns of zeros, in one stack."""
    rng = np.random.default_rng(18)
    there = np.array([[True] * 8, [True] * 5 + [False] * 3])
    noise = rng.standard_normal((2, 30, 8)) @ rng.standard_normal((8, 8)) * there[:, None]
    means = 1.0 + rng.random((2, 6, 8)) * there[:, None]
    ours = covariance(noise, method=method, present=there)
    white = whiten(means, ours)
    for k, size in enumerate((8, 5)):
        alone = covariance(noise[k, :, :size], method=method)
        np.testing.assert_allclose(ours[k, :size, :size], alone, atol=1e-12)
        wanted = mahalanobis_distance(means[k, :, :size], alone)
        got = euclidean_distance(white[k], n_voxels=size)
        np.testing.assert_allclose(got, wanted, rtol=1e-10)
        np.testing.assert_allclose(
            poisson_distance(means[k], n_voxels=size),
            poisson_distance(means[k, :, :size]),
            rtol=1e-10,
        )


def _designs():
    """Labels and runs: balanced, unequal repeats, and stimuli missing in runs; 5 stimuli."""
    one = [f"s{k}" for k in range(5)]
    balanced = (one * 3, sorted("123" * 5))
    unequal = (one * 6, sorted("122333" * 5))
    four = zip(one * 4, sorted("1234" * 5))
    lacking = [(s, r) for s, r in four if (s, r) not in {("s0", "1"), ("s3", "3")}]
    return {
        "balanced": balanced,
        "unequal": unequal,
        "missing": ([s for s, _ in lacking], [r for _, r in lacking]),
    }


@pytest.mark.parametrize("design", ["balanced", "unequal", "missing"])
@pytest.mark.parametrize("shrinkage", ["none", *SHRINKAGES])
def test_crossnobis_is_unbiased_for_pure_noise(design, shrinkage):
    """Mean 0 within 3.3 standard errors (p = .001) where the plain distance is far above 0.

    The noise is correlated between voxels; its precision is estimated from other residuals. Runs
    have offsets of their own, which cancel but where a stimulus lacks a run.
    """
    rng = np.random.default_rng(19)
    labels, runs = _designs()[design]
    mix = np.eye(15) + 0.4 * rng.standard_normal((15, 15))
    draws, plain = [], []
    for _ in range(400):
        offset = {run: 3 * rng.standard_normal(15) for run in "1234"}
        noise = rng.standard_normal((len(labels), 15)) @ mix + [offset[run] for run in runs]
        if shrinkage != "none":
            residuals = rng.standard_normal((40, 15)) @ mix
            noise = whiten(noise, covariance(residuals, method=shrinkage))
        draws.append(crossnobis_distance(noise, labels, runs)[0].mean())
        plain.append(euclidean_distance(mean_patterns(noise, labels)[0]).mean())
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws)) < 3.3 * error
    assert np.mean(plain) > 20 * error


@pytest.mark.parametrize("shrinkage", SHRINKAGES)
def test_crossnobis_in_own_noise_is_whitened_fold_by_fold(shrinkage):
    rng = np.random.default_rng(25)
    patterns, labels, runs = _missing(
        rng, *_trials(rng, repeats=(2, 1, 3, 2), n_voxels=8), share=0.15
    )
    names = sorted(set(labels))
    sums, common = np.zeros((9, 9)), np.zeros((9, 9))
    for run in sorted(set(runs)):
        test, rest = np.array(runs) == run, np.array(runs) != run
        pick = lambda values, keep: [v for v, k in zip(values, keep) if k]  # noqa: E731
        residuals, freedom = measurement_residuals(
            patterns[rest], pick(labels, rest), pick(runs, rest)
        )
        sigma = covariance(residuals, method=shrinkage, degrees_of_freedom=freedom)
        mean = {s: patterns[rest & (np.array(labels) == s)].mean(axis=0) for s in names}
        here = {
            s: patterns[test & (np.array(labels) == s)].mean(axis=0)
            for s in set(pick(labels, test))
        }
        for i, a in enumerate(names):
            for j, b in enumerate(names):
                if a in here and b in here:
                    solved = np.linalg.solve(sigma, here[a] - here[b])
                    sums[i, j] += (mean[a] - mean[b]) @ solved / 8
                    common[i, j] += 1
    wanted = to_vectors(sums / common)
    ours, found, folds = crossnobis_in_own_noise(patterns, labels, runs, method=shrinkage)
    assert found == tuple(names)
    np.testing.assert_array_equal(folds, to_vectors(common))
    np.testing.assert_allclose(ours, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shrinkage", SHRINKAGES)
def test_noise_of_the_patterns_themselves_leaves_crossnobis_unbiased(shrinkage):
    """One covariance of all runs does not (rsatoolbox's ``prec_from_measurements``)."""
    rng = np.random.default_rng(26)
    n_voxels = 15
    labels, runs = [f"s{k}" for k in range(6)] * 5, sorted("12345" * 6)
    mix = np.eye(n_voxels) + 0.3 * rng.standard_normal((n_voxels, n_voxels))
    ours, whole = [], []
    for _ in range(400):
        noise = rng.standard_normal((len(labels), n_voxels)) @ mix
        ours.append(crossnobis_in_own_noise(noise, labels, runs, method=shrinkage)[0].mean())
        residuals, freedom = measurement_residuals(noise, labels, runs)
        sigma = covariance(residuals, method=shrinkage, degrees_of_freedom=freedom)
        whole.append(crossnobis_distance(whiten(noise, sigma), labels, runs)[0].mean())
    for draws, unbiased in ((ours, True), (whole, False)):
        error = np.std(draws) / np.sqrt(len(draws))
        assert (abs(np.mean(draws)) < 3.3 * error) == unbiased


def test_noise_without_repeats_in_the_other_runs_is_refused():
    labels, runs = ["a", "b", "c"] * 2, sorted("12" * 3)
    assert fold_freedom(labels, runs) == 0
    assert fold_freedom(labels * 2, runs * 2) == 6 - 3
    assert fold_freedom(labels, ["1"] * 6) == 0
    with pytest.raises(ValueError, match="runs other than 1 repeat no stimulus"):
        crossnobis_in_own_noise(np.random.default_rng(0).random((6, 4)), labels, runs)


@pytest.mark.parametrize("design", ["balanced", "unequal", "missing"])
def test_crossnobis_estimates_the_true_distance(design):
    """Every pair's mean over data sets is its Mahalanobis distance without noise."""
    rng = np.random.default_rng(20)
    labels, runs = _designs()[design]
    truth = 0.7 * rng.standard_normal((5, 12))
    mix = np.eye(12) + 0.3 * rng.standard_normal((12, 12))
    sigma = mix.T @ mix
    row = [int(s[1:]) for s in labels]
    draws = np.array(
        [
            crossnobis_distance(
                whiten(truth[row] + rng.standard_normal((len(row), 12)) @ mix, sigma), labels, runs
            )[0]
            for _ in range(600)
        ]
    )
    error = draws.std(axis=0) / np.sqrt(len(draws))
    # 10 pairs: 3.9 standard errors are p = .001 for all of them together.
    assert (np.abs(draws.mean(axis=0) - mahalanobis_distance(truth, sigma)) < 3.9 * error).all()


def test_poisson_cv_is_unbiased_for_pure_noise():
    rng = np.random.default_rng(21)
    labels, runs = _designs()["unequal"]
    counts = rng.poisson(3.0, (400, len(labels), 12)).astype(float)
    draws = np.array([poisson_cv_distance(x, labels, runs)[0].mean() for x in counts])
    plain = poisson_distance(mean_patterns(counts[0], labels)[0]).mean()
    error = draws.std() / np.sqrt(len(draws))
    assert abs(draws.mean()) < 3.3 * error < plain / 10


def test_no_input_is_changed():
    patterns, labels, runs = _trials(np.random.default_rng(23), repeats=(1, 1), kind="counts")
    before = patterns.copy()
    means = mean_patterns(patterns, labels)[0]
    crossnobis_distance(patterns, labels, runs)
    poisson_cv_distance(patterns, labels, runs)
    measurement_residuals(patterns, labels, runs)
    sigma = covariance(patterns)
    kept = sigma.copy()
    whiten(patterns, sigma)
    whiten(patterns.astype(np.float32), sigma)
    for distance in (correlation_distance, cosine_distance, euclidean_distance, poisson_distance):
        distance(means)
    np.testing.assert_array_equal(patterns, before)
    np.testing.assert_array_equal(sigma, kept)
    np.testing.assert_array_equal(means, mean_patterns(before, labels)[0])


def test_vectors_and_matrices_turn_into_each_other():
    vectors = np.random.default_rng(22).random((3, 15))
    square = to_matrices(vectors)
    assert square.shape == (3, 6, 6)
    np.testing.assert_array_equal(square, square.swapaxes(1, 2))
    np.testing.assert_array_equal(to_vectors(square), vectors)
    np.testing.assert_array_equal(square[0, 0, 1:], vectors[0, :5])
    assert n_stimuli(15) == 6
    with pytest.raises(ValueError, match="16 is not"):
        n_stimuli(16)


def test_constant_and_missing_voxels_are_not_usable():
    """Also beyond the first block, and where rounding gives equal values an SD."""
    values = np.random.default_rng(0).standard_normal((24, 3000)).astype(np.float32)
    values[:, [1, 2000]] = 3.3
    values[5, [2, 2999]] = np.nan, np.inf
    assert values[:, :2].std(axis=0)[1] > 0
    given = values.copy()
    usable = usable_voxels(values)
    assert np.flatnonzero(~usable).tolist() == [1, 2, 2000, 2999]
    np.testing.assert_array_equal(values, given)


def test_memory_beside_residuals_does_not_grow_with_the_voxels():
    values = np.random.default_rng(0).standard_normal((200, 20000)).astype(np.float32)
    tracemalloc.start()
    usable_voxels(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < values.nbytes / 4
