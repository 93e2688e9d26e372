"""`ridge_cv` and its plans against himalaya and scikit-learn, and where arrays are awkward."""

import numpy as np
import psutil
import pytest
import torch
from himalaya.backend import set_backend
from himalaya.kernel_ridge import KernelRidgeCV
from himalaya.ridge import RidgeCV
from sklearn.linear_model import Ridge as SklearnRidge

from isocortex.encoding import ridge
from isocortex.encoding.folds import cross_validation_folds
from isocortex.encoding.ridge import (
    RidgePlan,
    Samples,
    Targets,
    choose_penalty,
    interpolation,
    plan_ridge,
    ridge_cv,
)

pytestmark = pytest.mark.filterwarnings("ignore:Solving")  # the peer, of the other form
ALPHAS = np.logspace(-2, 4, 13)
PRECISION = [(torch.float32, 1e-4), (torch.float64, 1e-8)]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    ),
]


def problem(n, p, n_targets=40, *, seed=0, n_tests=10):
    """Features of training and test rows, targets, and 5 folds."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n + n_tests, p)) * np.geomspace(1, 0.03, p)
    weights = rng.standard_normal((p, n_targets)) * np.geomspace(0.05, 20, n_targets)
    targets = features[:n] @ weights + rng.standard_normal((n, n_targets)) * 3
    parts = np.array_split(rng.permutation(n), 5)
    folds = [(np.setdiff1d(np.arange(n), part), np.sort(part)) for part in parts]
    return features, targets, folds


def assert_close(got, expected, tolerance):
    np.testing.assert_allclose(got, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION)
@pytest.mark.parametrize("solver", ["auto", "primal", "dual"])
@pytest.mark.parametrize(("n", "p"), [(80, 15), (50, 300)])
def test_equals_himalaya_ridge_cv(n, p, solver, dtype, tolerance, device):
    features, targets, folds = problem(n, p)
    features, targets = features + 3, targets + 5
    set_backend("numpy")
    peer = RidgeCV(alphas=ALPHAS, cv=folds, fit_intercept=True).fit(features[:n], targets)
    assert len(np.unique(peer.best_alphas_)) > 3  # the choice is put to the test
    found = ridge_cv(
        features[:n],
        targets,
        folds,
        ALPHAS,
        test_features=features[n:],
        solver=solver,
        dtype=dtype,
        device=device,
    )
    assert found.plan.form == {"auto": "primal" if p < n else "dual"}.get(solver, solver)
    np.testing.assert_allclose(found.alpha, peer.best_alphas_, rtol=1e-6)
    assert_close(found.prediction, peer.predict(features[n:]), tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION)
@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize(("n", "p"), [(80, 15), (50, 300)])
def test_equals_himalaya_kernel_ridge_cv(n, p, solver, dtype, tolerance, device):
    features, targets, folds = problem(n, p, seed=1)
    set_backend("numpy")
    peer = KernelRidgeCV(alphas=ALPHAS, kernel="linear", cv=folds).fit(features[:n], targets)
    found = ridge_cv(
        features[:n],
        targets,
        folds,
        ALPHAS,
        test_features=features[n:],
        solver=solver,
        intercept=False,  # the peer's folds have none
        dtype=dtype,
        device=device,
    )
    np.testing.assert_allclose(found.alpha, peer.best_alphas_, rtol=1e-6)
    assert_close(found.prediction, peer.predict(features[n:]), tolerance)


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_one_penalty_for_a_group_of_targets(solver):
    """himalaya's local_alpha=False, group by group, also where groups cross batches."""
    features, targets, folds = problem(60, 30)
    labels = np.arange(40) % 3
    found = ridge_cv(
        features[:60],
        targets,
        folds,
        ALPHAS,
        test_features=features[60:],
        alpha_per=labels,
        solver=solver,
        voxel_batch=7,
        dtype=torch.float64,
    )
    set_backend("numpy")
    for label in range(3):
        own = labels == label
        peer = RidgeCV(
            alphas=ALPHAS, cv=folds, fit_intercept=True, solver_params={"local_alpha": False}
        ).fit(features[:60], targets[:, own])
        np.testing.assert_allclose(found.alpha[own], peer.best_alphas_, rtol=1e-6)
        assert_close(found.prediction[:, own], peer.predict(features[60:]), 1e-8)


def squared_errors(trials, targets, samples, alphas):
    """Mean squared error over each inner split's test samples, summed: trial by trial."""
    total = np.zeros((len(alphas), targets.shape[1]))
    for train, test in samples.inner:
        for row, alpha in enumerate(alphas):
            model = SklearnRidge(alpha=alpha).fit(trials[train], targets[train])
            total[row] += ((model.predict(trials[test]) - targets[test]) ** 2).mean(0)
    return total


@pytest.mark.parametrize("new_stimuli", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION)
@pytest.mark.parametrize(
    ("p", "solver"), [(8, "primal"), (8, "dual"), (70, "dual"), (70, "primal")]
)
def test_repeats_collapse_to_the_same_answer(p, solver, dtype, tolerance, new_stimuli):
    """Nested folds of runs and stimuli, uneven repeats, against a loop over all trials."""
    rng = np.random.default_rng(3)
    stimuli = [f"s{index:02d}" for index in rng.integers(0, 24, 90)]
    runs = np.repeat(["a", "b", "c"], 30)
    cv = cross_validation_folds(stimuli, runs, new_stimuli=new_stimuli, stimulus_folds=3)
    features = rng.standard_normal((len(cv.stimuli), p))
    trials = features[cv.stimulus]
    targets = trials @ rng.standard_normal((p, 6)) / p**0.5 + rng.standard_normal((90, 6)) * 2
    for fold in cv.folds[:2]:
        samples = Samples.of_fold(cv, fold)
        plan = plan_ridge(
            torch.from_numpy(features),
            samples,
            ALPHAS,
            solver=solver,
            standardise=False,
            dtype=dtype,
        )
        block = Targets(samples, torch.from_numpy(targets).to(dtype))
        expected = squared_errors(trials, targets, samples, ALPHAS)
        losses = plan.losses(block).double().numpy()
        # Repeats' own variance is a constant of each target, which no choice depends on
        assert_close(losses - losses.mean(0), expected - expected.mean(0), tolerance)
        choice = choose_penalty(torch.from_numpy(losses))
        np.testing.assert_array_equal(choice, expected.argmin(0))
        got = plan.predict(block, choice)
        for target, chosen in enumerate(choice.tolist()):
            model = SklearnRidge(alpha=ALPHAS[chosen])
            model.fit(trials[samples.train], targets[samples.train, target])
            assert_close(got[:, target], model.predict(trials[samples.test]), tolerance)


@pytest.mark.parametrize("spectrum", [(1, 1), (1e-3, 1e3), (1e-9, 1e5)])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-14])
def test_interpolated_filters_are_within_the_tolerance(spectrum, tolerance):
    values = torch.from_numpy(np.geomspace(*spectrum, 400))
    strength = values.sqrt()
    nodes, coefficients = interpolation(strength, values, ALPHAS, tolerance=tolerance)
    filters = (strength[:, None] / (values[:, None] + torch.from_numpy(ALPHAS))).numpy()
    size = np.linalg.norm(filters, axis=0).max()
    error = np.linalg.norm(filters - filters[:, nodes] @ coefficients.T, axis=0).max()
    assert error <= max(tolerance, 1e-13) * size
    if tolerance == 1e-4:
        assert len(nodes) < len(ALPHAS)
    if spectrum == (1, 1):
        assert len(nodes) == 1  # filters of one eigenvalue are multiples of each other


def many_targets(n, p, *, noise, steepness, seed=0):
    """Features of a spectrum, 1,500 targets of one noise level, and their samples in 5 folds."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, p)) * np.geomspace(1, steepness, p)
    signal = features @ rng.standard_normal((p, 1500))
    targets = signal / signal.std(0) + noise * rng.standard_normal((n, 1500))
    parts = np.array_split(rng.permutation(n), 5)
    folds = tuple((np.setdiff1d(np.arange(n), part), np.sort(part)) for part in parts)
    samples = Samples(np.arange(n), n, np.arange(n), np.arange(0), folds)
    return torch.from_numpy(features), torch.from_numpy(targets).float(), samples


@pytest.mark.parametrize("steepness", [1, 0.01])
@pytest.mark.parametrize("noise", [0.3, 2])
@pytest.mark.parametrize(("n", "p"), [(200, 60), (100, 160)])
def test_few_nodes_choose_the_penalties_of_all(n, p, noise, steepness, monkeypatch):
    monkeypatch.setattr(ridge, "PILOT_WORK", 0)
    features, targets, samples = many_targets(n, p, noise=noise, steepness=steepness)
    plan = plan_ridge(features, samples, ALPHAS, standardise=False)
    expected = plan.losses(Targets(samples, targets))
    made, plain = [], RidgePlan._losses

    def counted(plan, block, *inner):
        made.append(block.block.shape[1])
        return plain(plan, block, *inner)

    monkeypatch.setattr(RidgePlan, "_losses", counted)
    choice = plan.choose(Targets(samples, targets))
    assert sum(plan.n_few) < sum(plan.n_nodes)
    assert made[1] == 1500
    assert sum(made[2:]) < 750  # that few nodes leave undecided
    # The same, or equal within rounding
    least = expected.min(0).values
    own = expected.gather(0, choice[None])[0]
    assert (own <= least * (1 + 1e-5)).all()
    assert (choice == choose_penalty(expected)).double().mean() > 0.995
    # Targets unlike those that the nodes were chosen for
    _, others, _ = many_targets(n, p, noise=8, steepness=steepness, seed=1)
    expected = plan.losses(Targets(samples, others))
    own = expected.gather(0, plan.choose(Targets(samples, others))[None])[0]
    assert (own <= expected.min(0).values * (1 + 1e-5)).all()


@pytest.mark.parametrize("steepness", [1, 0.01])
@pytest.mark.parametrize(("n", "p"), [(200, 60), (100, 160)])
def test_errors_of_few_nodes_are_within_their_bound(n, p, steepness):
    """Also of targets that are one principal axis each, which are the worst for some penalty."""
    features, targets, samples = many_targets(n, p, noise=1, steepness=steepness)
    plan = plan_ridge(features, samples, ALPHAS, standardise=False, tolerance=1e-10)
    axes = (
        torch.linalg.svd(features - features.mean(0), full_matrices=False)
        .U[:, : min(n - 1, p)]
        .float()
    )
    targets = torch.cat([targets[:, :50], axes * n**0.5], 1)
    exact = plan.losses(Targets(samples, targets))
    length = torch.linalg.vector_norm(targets - targets.mean(0), dim=0)
    for kept in ([0, 6, 9, 12], [8, 10], [11]):
        inner, error = [], []
        for split in plan.inner:
            few, off, growth = split.at(split.nodes[np.isin(split.nodes, kept)][-3:])
            inner.append(few)
            error.append(off)
        if not all(len(few.nodes) for few in inner):
            continue
        got = plan._losses(Targets(samples, targets), inner)
        off = torch.from_numpy(np.linalg.norm(error, axis=0)).float()[:, None] * length
        room = off * (2 * exact.sqrt() + off)
        assert ((got - exact).abs() <= room + 1e-5 * growth.max() ** 2 * exact.amax(0)).all()
        assert (got - exact).abs().max() > 1e-3 * room.max()  # the bound is not far off


def test_moments_are_used_and_change_nothing():
    features, targets, folds = problem(400, 40, 30)
    options = {"test_features": features[400:], "dtype": torch.float32}
    found = ridge_cv(features[:400], targets, folds, ALPHAS, **options)
    assert found.plan.basis is not None
    rows = ridge_cv(features[:400], targets, folds, ALPHAS, solver="dual", **options)
    assert rows.plan.basis is None
    np.testing.assert_array_equal(found.choice, rows.choice)
    assert_close(found.prediction, rows.prediction, 1e-5)


def test_folds_that_do_not_cover_the_samples():
    features, targets, folds = problem(60, 10)
    folds = [(train[::2], test[:4]) for train, test in folds[:3]]
    found = ridge_cv(features[:60], targets, folds, ALPHAS, dtype=torch.float64)
    samples = Samples(np.arange(60), 60, np.arange(60), np.arange(0), tuple(folds))
    expected = squared_errors(features[:60], targets, samples, ALPHAS)
    np.testing.assert_array_equal(found.choice, expected.argmin(0))
    assert found.prediction is None


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("p", [6, 100])
def test_constant_duplicated_and_collinear_features(solver, p):
    features, targets, folds = problem(50, p)
    options = {"solver": solver, "dtype": torch.float64}
    same = np.concatenate([features, np.full((60, 3), 7.0)], 1)
    plain = ridge_cv(features[:50], targets, folds, ALPHAS, test_features=features[50:], **options)
    padded = ridge_cv(same[:50], targets, folds, ALPHAS, test_features=same[50:], **options)
    np.testing.assert_array_equal(padded.choice, plain.choice)
    assert_close(padded.prediction, plain.prediction, 1e-8)
    # Twice the same features are those features at half the penalty
    twice = np.tile(features, 2)
    doubled = ridge_cv(twice[:50], targets, folds, ALPHAS * 2, test_features=twice[50:], **options)
    np.testing.assert_array_equal(doubled.choice, plain.choice)
    assert_close(doubled.prediction, plain.prediction, 1e-7)
    constant = np.ones((60, p))
    nothing = ridge_cv(
        constant[:50], targets, folds, ALPHAS, test_features=constant[50:], **options
    )
    assert_close(nothing.prediction, np.tile(targets.mean(0), (10, 1)), 1e-10)


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_one_constant_and_missing_targets(solver):
    features, targets, folds = problem(50, 12)
    options = {"test_features": features[50:], "solver": solver}
    whole = ridge_cv(features[:50], targets, folds, ALPHAS, **options)
    one = ridge_cv(features[:50], targets[:, :1], folds, ALPHAS, **options)
    assert one.prediction.shape == (10, 1)
    assert_close(one.prediction, whole.prediction[:, :1], 1e-5)
    awkward = targets.copy()
    awkward[:, 1], awkward[3, 2], awkward[7, 5] = 4.5, np.nan, np.inf
    labels = np.zeros(40, int)
    for alpha_per in ("voxel", labels):
        found = ridge_cv(features[:50], awkward, folds, ALPHAS, alpha_per=alpha_per, **options)
        missing = np.isin(np.arange(40), [2, 5])
        np.testing.assert_array_equal(np.isnan(found.alpha), missing)
        np.testing.assert_array_equal(found.choice < 0, missing)
        np.testing.assert_array_equal(np.isnan(found.prediction).all(0), missing)
        assert not np.isnan(found.prediction[:, ~missing]).any()
        assert_close(found.prediction[:, 1], np.full(10, 4.5), 1e-5)
    others = np.delete(np.arange(40), [1, 2, 5])
    found = ridge_cv(features[:50], awkward, folds, ALPHAS, **options)
    np.testing.assert_array_equal(found.choice[others], whole.choice[others])


@pytest.mark.parametrize("p", [8, 64])
def test_200_000_targets_in_bounded_memory(p):
    features, _, folds = problem(40, p)
    n_targets, asked = 200_000, []
    weights = np.random.default_rng(5).standard_normal((p, 64))

    def read(first, last):
        asked.append(last - first)
        return features[:40] @ weights[:, np.arange(first, last) % 64]

    process = psutil.Process()
    before = process.memory_info().rss
    most = []
    found = ridge_cv(
        features[:40],
        lambda first, last: (most.append(process.memory_info().rss), read(first, last))[1],
        folds,
        ALPHAS,
        n_targets=n_targets,
        test_features=features[40:42],
    )
    assert max(asked) <= 4096
    assert sum(asked) == n_targets
    assert found.prediction.shape == (2, n_targets)
    np.testing.assert_array_equal(found.choice[:64], found.choice[64:128])
    # All targets at once would be 64 MB and their predictions at all penalties some 800
    assert (max(most) - before) / 2**20 < 150


def test_batches_and_threads_change_nothing():
    features, targets, folds = problem(60, 100)
    options = {"test_features": features[60:], "dtype": torch.float64}
    whole = ridge_cv(features[:60], targets, folds, ALPHAS, **options)
    parts = ridge_cv(features[:60], targets, folds, ALPHAS, voxel_batch=7, **options)
    np.testing.assert_array_equal(parts.choice, whole.choice)
    assert_close(parts.prediction, whole.prediction, 1e-12)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        more = ridge_cv(features[:60], targets, folds, ALPHAS, **options)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert_close(more.prediction, whole.prediction, 1e-12)


@pytest.mark.parametrize("alpha_per", ["voxel", np.arange(40) % 3], ids=["voxel", "groups"])
def test_out_of_memory_halves_the_batch(alpha_per, monkeypatch, caplog):
    features, targets, folds = problem(60, 10)
    options = {"test_features": features[60:], "alpha_per": alpha_per, "dtype": torch.float64}
    whole = ridge_cv(features[:60], targets, folds, ALPHAS, **options)

    def only_ten(plain):
        def work(plan, block, *choice):
            if block.block.shape[1] > 10:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return plain(plan, block, *choice)

        return work

    for name in ("_losses", "_predict"):
        monkeypatch.setattr(RidgePlan, name, only_ten(getattr(RidgePlan, name)))
    with caplog.at_level("WARNING"):
        found = ridge_cv(features[:60], targets, folds, ALPHAS, **options)
    assert "going on with 10" in caplog.text
    np.testing.assert_array_equal(found.choice, whole.choice)
    assert_close(found.prediction, whole.prediction, 1e-12)


def test_inputs_stay_as_they_were():
    features, targets, folds = problem(40, 10)
    copies = features.copy(), targets.copy()
    ridge_cv(features[:40], targets, folds, ALPHAS, test_features=features[40:], standardise=True)
    np.testing.assert_array_equal(features, copies[0])
    np.testing.assert_array_equal(targets, copies[1])


def test_what_cannot_be():
    features, targets, folds = problem(40, 10)
    with pytest.raises(ValueError, match="39 samples of targets, 40 of features"):
        ridge_cv(features[:40], targets[:39], folds, ALPHAS)
    with pytest.raises(ValueError, match="need n_targets"):
        ridge_cv(features[:40], lambda first, last: targets[:, first:last], folds, ALPHAS)
    with pytest.raises(ValueError, match="unknown solver 'both'"):
        ridge_cv(features[:40], targets, folds, ALPHAS, solver="both")
