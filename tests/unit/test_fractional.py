"""Fractional ridge against fracridge 2.0, and the choice of the fraction against a plain loop."""

import numpy as np
import pytest
import torch
from fracridge import fracridge

from isocortex.encoding.folds import cross_validation_folds
from isocortex.encoding.fractional import FractionalPlan, plan_fractional
from isocortex.encoding.ridge import Samples, Targets, choose_penalty

FRACTIONS = [0.1, 0.2, 0.35, 0.5, 0.8, 1.0]
PRECISION = [(torch.float32, 2e-4), (torch.float64, 1e-8)]


def made(n, p, n_targets=7, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n + 8, p)) * np.geomspace(1, 0.1, p) + 2
    weights = rng.standard_normal((p, n_targets))
    targets = features[:n] @ weights + 3 * rng.standard_normal((n, n_targets))
    return features, targets + 5


def all_train(n, n_tests, inner=()):
    everyone = np.arange(n + n_tests)
    return Samples(everyone, n + n_tests, everyone[:n], everyone[n:], tuple(inner))


def peers(features, targets, tests):
    """Predictions of tests, shape (fractions, tests, targets), with an intercept; penalties."""
    middle, mean = features.mean(0), targets.mean(0)
    weights, alphas = fracridge(features - middle, targets - mean, FRACTIONS, jit=False)
    return np.einsum("np,pft->fnt", tests - middle, weights) + mean, alphas


@pytest.mark.parametrize(("n", "p"), [(60, 12), (40, 39)])
@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION)
def test_equals_fracridge(n, p, solver, dtype, tolerance):
    features, targets = made(n, p)
    if p == 39:  # as wide as centred rows allow with full rank
        features = features * 0.5
    expected, alphas = peers(features[:n], targets, features[n:])
    plan = plan_fractional(
        torch.from_numpy(features),
        all_train(n, 8),
        FRACTIONS,
        solver=solver,
        standardise=False,
        dtype=dtype,
    )
    block = Targets(plan.samples, torch.from_numpy(np.pad(targets, ((0, 8), (0, 0)))).to(dtype))
    for index in range(len(FRACTIONS)):
        choice = torch.full((7,), index)
        got = plan.predict(block, choice).double().numpy()
        np.testing.assert_allclose(got, expected[index], atol=tolerance * np.abs(expected).max())
        if dtype == torch.float64:
            np.testing.assert_allclose(
                plan.penalties(block, choice), alphas[index], rtol=1e-6, atol=1e-12
            )


def test_without_an_intercept_and_more_features_than_rows():
    features, targets = made(20, 80)
    weights, _ = fracridge(features[:20], targets, FRACTIONS, jit=False)
    for solver in ("primal", "dual"):
        plan = plan_fractional(
            torch.from_numpy(features),
            all_train(20, 8),
            FRACTIONS,
            solver=solver,
            standardise=False,
            intercept=False,
            dtype=torch.float64,
        )
        block = Targets(plan.samples, torch.from_numpy(np.pad(targets, ((0, 8), (0, 0)))))
        for index in range(len(FRACTIONS)):
            got = plan.predict(block, torch.full((7,), index)).numpy()
            expected = features[20:] @ weights[:, index]
            np.testing.assert_allclose(got, expected, atol=1e-8 * np.abs(expected).max())


def test_coefficients_have_the_length_asked_for():
    """Closed form: with identity features coefficients are predictions of the identity's rows."""
    rng = np.random.default_rng(1)
    stretch = np.geomspace(1, 10, 30)
    features = np.concatenate([np.diag(stretch), np.eye(30)])
    targets = rng.standard_normal((60, 5))
    plan = plan_fractional(
        torch.from_numpy(features),
        all_train(30, 30),
        FRACTIONS,
        standardise=False,
        intercept=False,
        dtype=torch.float64,
    )
    block = Targets(plan.samples, torch.from_numpy(targets))
    full = np.linalg.norm(targets[:30] / stretch[:, None], axis=0)
    for index, fraction in enumerate(FRACTIONS):
        weights = plan.predict(block, torch.full((5,), index)).numpy()
        # Interpolation on the grid of penalties is what limits this, here and in fracridge
        np.testing.assert_allclose(np.linalg.norm(weights, axis=0) / full, fraction, atol=5e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION)
def test_choice_of_the_fraction_equals_a_plain_loop(dtype, tolerance):
    rng = np.random.default_rng(2)
    names = [f"s{index:02d}" for index in range(30)]
    stimuli = [names[i] for _ in range(3) for i in rng.permutation(30)]
    runs = np.repeat(["a", "b", "c"], 30)
    cv = cross_validation_folds(stimuli, runs, stimulus_folds=4)
    features = rng.standard_normal((30, 6))
    trials = features[cv.stimulus]
    targets = trials @ rng.standard_normal((6, 9)) + rng.standard_normal((90, 9)) * 6
    for fold in cv.folds[:2]:
        samples = Samples.of_fold(cv, fold)
        plan = plan_fractional(
            torch.from_numpy(features), samples, FRACTIONS, standardise=False, dtype=dtype
        )
        block = Targets(samples, torch.from_numpy(targets).to(dtype))
        losses = plan.losses(block)
        expected = 0
        for train, test in samples.inner:
            predicted, _ = peers(trials[train], targets[train], trials[test])
            expected = expected + ((predicted - targets[test]) ** 2).mean(1)
        losses, shift = losses.double().numpy(), expected
        # Only differences between fractions are defined where rows stand for several samples
        np.testing.assert_allclose(
            losses - losses.mean(0),
            shift - shift.mean(0),
            atol=tolerance * np.abs(expected).max(),
        )
        choice = choose_penalty(plan.losses(block))
        np.testing.assert_array_equal(choice, expected.argmin(0))
        predicted, _ = peers(trials[samples.train], targets[samples.train], trials[samples.test])
        own = predicted[choice.numpy(), :, np.arange(9)].T
        np.testing.assert_allclose(
            plan.predict(block, choice), own, atol=tolerance * np.abs(own).max()
        )


def test_constant_targets_and_features_predict_the_mean():
    features, targets = made(30, 5)
    targets[:, 2] = 4.0
    block = torch.from_numpy(np.pad(targets, ((0, 8), (0, 0))))
    for known in (features, np.ones_like(features)):
        plan = plan_fractional(
            torch.from_numpy(known), all_train(30, 8), FRACTIONS, dtype=torch.float64
        )
        got = plan.predict(Targets(plan.samples, block), torch.zeros(7, dtype=torch.int64))
        np.testing.assert_allclose(got[:, 2], 4.0, atol=1e-10)
        if known is not features:
            np.testing.assert_allclose(got, np.tile(targets.mean(0), (8, 1)), atol=1e-10)


def test_out_of_memory_halves_the_targets(monkeypatch, caplog):
    features, targets = made(30, 5)
    inner = [(np.arange(15), np.arange(15, 30)), (np.arange(15, 30), np.arange(15))]
    plan = plan_fractional(torch.from_numpy(features), all_train(30, 8, inner), FRACTIONS)
    block = torch.from_numpy(np.pad(targets, ((0, 8), (0, 0)))).float()
    choice = torch.arange(7) % 6
    whole = plan.losses(Targets(plan.samples, block))
    predicted = plan.predict(Targets(plan.samples, block), choice)

    def only_two(plain):
        def work(plan, some, *rest):
            if some.block.shape[1] > 2:
                raise MemoryError
            return plain(plan, some, *rest)

        return work

    for name in ("_losses", "_predict"):
        monkeypatch.setattr(FractionalPlan, name, only_two(getattr(FractionalPlan, name)))
    torch.testing.assert_close(plan.losses(Targets(plan.samples, block)), whole)
    torch.testing.assert_close(plan.predict(Targets(plan.samples, block), choice), predicted)
    assert "going on with 1" in caplog.text


@pytest.mark.parametrize("fractions", [[], [0.0, 0.5], [0.5, 0.2], [0.5, 1.2]])
def test_fractions_that_are_none(fractions):
    with pytest.raises(ValueError, match="ascend from above 0 to 1"):
        plan_fractional(torch.ones(3, 1), all_train(3, 0), fractions)
