"""Banded ridge against himalaya and closed forms; search, refinement, calibration."""

import numpy as np
import pytest
import torch
from himalaya.backend import set_backend
from himalaya.kernel_ridge import (
    solve_multiple_kernel_ridge_hyper_gradient,
    solve_multiple_kernel_ridge_random_search,
    solve_weighted_kernel_ridge_conjugate_gradient,
)
from himalaya.ridge import solve_group_ridge_random_search
from scipy.stats import binom

from isocortex.encoding import banded

ALPHAS = np.geomspace(0.1, 1000, 7)


@pytest.fixture(autouse=True)
def torch_backend():
    set_backend("torch")
    yield
    set_backend("numpy")


def study(n, sizes, targets, *, seed=0, dtype=torch.float64, noise=1.0):
    """Centred spaces of about unit rows, targets that mix them, folds."""
    rng = np.random.default_rng(seed)
    spaces = [rng.standard_normal((n, p)) / p**0.5 for p in sizes]
    spaces = [space - space.mean(0) for space in spaces]
    mix = rng.dirichlet([0.5] * len(sizes), targets)
    y = noise * rng.standard_normal((n, targets))
    for index, space in enumerate(spaces):
        signal = space @ rng.standard_normal((space.shape[1], targets))
        y += 2 * np.sqrt(mix[:, index]) * signal
    parts = np.array_split(rng.permutation(n), 4)
    folds = [(np.setdiff1d(np.arange(n), part), np.sort(part)) for part in parts]
    return (
        [torch.from_numpy(space) for space in spaces],
        torch.from_numpy(y - y.mean(0)).to(dtype),
        folds,
    )


def kernels_of(spaces):
    return torch.stack([space @ space.T for space in spaces])


def splits_of(spaces, y, folds, *, form="dual", intercept=False):
    kernels = kernels_of(spaces)
    splits, targets = [], []
    for train, test in folds:
        ones = torch.ones(len(train))
        if form == "dual":
            split = banded.joint_from_kernels(
                kernels[:, train][:, :, train],
                kernels[:, test][:, :, train],
                ones,
                intercept=intercept,
            )
        else:
            split = banded.joint_from_features(
                [space[train] for space in spaces],
                [space[test] for space in spaces],
                ones,
                intercept=intercept,
            )
        splits.append(split)
        targets.append(banded.held_out_targets(split, y[train], y[test]))
    return splits, targets


# --- parity ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("sizes", [(6, 9, 4), (30, 80, 12)])
def test_fixed_weights_predict_as_himalaya(sizes, form, dtype, tolerance):
    spaces, y, _ = study(70, sizes, 11, seed=1)
    train, test = np.arange(55), np.arange(55, 70)
    spaces = [space - space[train].mean(0) for space in spaces]
    y = y - y[train].mean(0)
    deltas = torch.from_numpy(np.random.default_rng(2).uniform(-5, 4, (3, 11)))
    deltas[:, 5] = deltas[:, 4]  # two targets that share their weights
    kernels = kernels_of(spaces)
    dual = solve_weighted_kernel_ridge_conjugate_gradient(
        kernels[:, train][:, :, train], y[train], deltas, max_iter=2000, tol=1e-13
    )
    theirs = deltas.exp()[:, None] * (kernels[:, test][:, :, train] @ dual)
    shifted = [space + 5 for space in spaces]  # the intercept takes any shift up
    [split], _ = splits_of(shifted, y, [(train, test)], form=form, intercept=True)
    ours = banded.predict_spaces(split, y[train].to(dtype) + 3, deltas)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), theirs, atol=tolerance, rtol=0)


def test_a_space_left_out_has_no_part():
    spaces, y, folds = study(40, (5, 60), 3)
    [split], _ = splits_of(spaces, y, folds[:1])
    [alone], _ = splits_of(spaces[:1], y, folds[:1])
    weights = torch.tensor([[0.3] * 3, [-np.inf] * 3])
    parts = banded.predict_spaces(split, y[folds[0][0]], weights)
    expected = banded.predict_spaces(alone, y[folds[0][0]], weights[:1])
    torch.testing.assert_close(parts[0], expected[0], atol=1e-10, rtol=0)
    assert not parts[1].any()
    shorter = banded.predict_spaces(split.only([0]), y[folds[0][0]], weights[:1])
    torch.testing.assert_close(shorter, expected, atol=1e-10, rtol=0)


def test_counts_stand_for_repeated_rows():
    spaces, y, _ = study(30, (6, 40), 4)
    counts = torch.tensor([1, 2, 3] * 8)
    train, test = torch.arange(24), torch.arange(24, 30)
    repeated = torch.repeat_interleave(train, counts)
    weights = torch.zeros(2, 4)
    for form in ("dual", "primal"):
        [long], _ = splits_of(spaces, y, [(repeated, test)], form=form, intercept=True)
        if form == "dual":
            kernels = kernels_of(spaces)
            short = banded.joint_from_kernels(
                kernels[:, train][:, :, train], kernels[:, test][:, :, train], counts
            )
        else:
            short = banded.joint_from_features(
                [space[train] for space in spaces], [space[test] for space in spaces], counts
            )
        ours = banded.predict_spaces(short, y[train], weights)
        torch.testing.assert_close(
            ours, banded.predict_spaces(long, y[repeated], weights), atol=1e-10, rtol=0
        )
        torch.testing.assert_close(short.weights @ y[train], y[repeated].mean(0))


def test_constant_and_repeated_features():
    spaces, y, folds = study(40, (6, 10), 5)
    flat = [spaces[0], torch.cat([spaces[1], spaces[1]], 1), torch.full((40, 3), 2.0).double()]
    for form in ("dual", "primal"):
        splits, targets = splits_of(flat, y, folds, form=form, intercept=True)
        points = torch.tensor([[1.0, 0.5, 1.0]]).double()
        ours = banded.point_losses(splits, targets, points)
        plain, _ = splits_of(spaces, y, folds, form=form, intercept=True)
        theirs = banded.point_losses(
            plain, targets_like(plain, y, folds), torch.ones(1, 2).double()
        )
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_spaces_that_are_all_constant_predict_the_mean(form):
    _, y, folds = study(30, (4, 50), 1)
    flat = [torch.full((30, size), value).double() for size, value in ((4, 2.0), (50, -1.0))]
    splits, targets = splits_of(flat, y, folds, form=form, intercept=True)
    points = banded.points_of(banded.dirichlet_candidates(30, 2), ALPHAS)
    choice = banded.search_weights(splits, targets, points)
    null = sum(part.offset.square().sum(0) for part in targets) / len(targets)
    torch.testing.assert_close(choice.loss, null)
    weights, loss = banded.refine_weights(splits, targets, points[choice.point].T.log(), steps=2)
    torch.testing.assert_close(loss, null)
    parts = banded.predict_spaces(splits[0], y[folds[0][0]], weights)
    torch.testing.assert_close(parts, torch.zeros_like(parts))


def targets_like(splits, y, folds):
    return [
        banded.held_out_targets(split, y[train], y[test])
        for split, (train, test) in zip(splits, folds, strict=True)
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
@pytest.mark.parametrize("sizes", [(40, 90, 20), (6, 12, 5)])
def test_same_candidates_same_choices_as_himalaya(sizes, dtype, tolerance):
    spaces, y, folds = study(100, sizes, 60, seed=3, dtype=dtype)
    gammas = banded.dirichlet_candidates(40, 3, seed=4)
    points = banded.points_of(gammas, ALPHAS)
    form = "primal" if sum(sizes) < 100 else "dual"
    given = [space.to(dtype) for space in spaces]
    solve = solve_group_ridge_random_search
    if form == "dual":
        given, solve = kernels_of(given), solve_multiple_kernel_ridge_random_search
    deltas, _, scores = solve(
        given,
        y,
        n_iter=gammas.astype(str(dtype)[6:]),
        alphas=torch.from_numpy(ALPHAS).to(dtype),
        cv=folds,
        progress_bar=False,
    )
    splits, targets = splits_of(spaces, y, folds, form=form)
    choice = banded.search_weights(splits, targets, points)
    loss = -scores.max(0).values.to(dtype)
    torch.testing.assert_close(choice.loss, loss, atol=tolerance, rtol=0)
    same = torch.isclose(points[choice.point].T.log(), deltas.double(), atol=1e-3).all(0)
    assert same.double().mean() >= (0.95 if dtype == torch.float32 else 1)
    assert choice.evaluated < len(points)


# --- search ----------------------------------------------------------------------------------


def test_interpolated_losses_choose_as_all_losses_do():
    spaces, y, folds = study(90, (50, 100, 20, 30), 80, seed=5)
    splits, targets = splits_of(spaces, y, folds)
    points = banded.points_of(banded.dirichlet_candidates(60, 4, seed=6), ALPHAS)
    every = banded.point_losses(splits, targets, points)
    for tolerance in (1e-4, 1e-10):
        choice = banded.search_weights(splits, targets, points, tolerance=tolerance)
        chosen = every.gather(0, choice.point[None])[0]
        variance = every.max(0).values
        assert (chosen - every.min(0).values <= tolerance * variance).all()
        assert ((choice.loss - chosen).abs() <= tolerance * variance).all()
        assert choice.error <= tolerance
    direct = banded.search_weights(splits, targets, points, tolerance=0)
    assert torch.equal(direct.point, every.min(0).indices)
    assert direct.evaluated == len(points)


def test_a_voxel_without_variance_is_no_trouble():
    spaces, y, folds = study(60, (30, 40), 6)
    y[:, 2] = 0
    splits, targets = splits_of(spaces, y, folds)
    points = banded.points_of(banded.dirichlet_candidates(30, 2), ALPHAS)
    choice = banded.search_weights(splits, targets, points)
    assert torch.isfinite(choice.loss).all()
    assert choice.loss[2] == 0


def test_candidates_lie_on_the_simplex():
    found = banded.dirichlet_candidates(200, 3, concentrations=(0.1, 1.0), seed=1)
    np.testing.assert_allclose(found.sum(1), 1)
    np.testing.assert_array_equal(found[0], [1 / 3] * 3)
    np.testing.assert_array_equal(found, banded.dirichlet_candidates(200, 3, seed=1))
    assert (found[2::2].max(1) > 0.9).mean() > 2 * (found[1::2].max(1) > 0.9).mean()
    assert banded.dirichlet_candidates(50, 1).tolist() == [[1.0]]
    points = banded.points_of(found[:2], [1.0, 10.0])
    torch.testing.assert_close(points[0], torch.full((3,), 1 / 30).double())


# --- refinement ------------------------------------------------------------------------------


def test_gradient_is_that_of_the_closed_form():
    spaces, y, folds = study(40, (12, 30, 8), 5, seed=7)
    splits, targets = splits_of(spaces, y, folds)
    where = torch.from_numpy(np.random.default_rng(8).uniform(-3, 3, (3, 5))).requires_grad_()
    kernels = kernels_of(spaces)
    total = 0
    for train, test in folds:
        across, inside = kernels[:, test][:, :, train], kernels[:, train][:, :, train]
        for voxel in range(5):
            weight = where[:, voxel].exp()[:, None, None]
            system = (weight * inside).sum(0) + torch.eye(len(train))
            made = (weight * across).sum(0) @ torch.linalg.solve(system, y[train, voxel])
            total = total + (y[test, voxel] - made).square().mean() / len(folds)
    total.backward()
    loss, gradient = banded._Losses(splits, targets)(where.detach(), torch.arange(5))
    torch.testing.assert_close(loss.sum(), total.detach())
    torch.testing.assert_close(gradient, where.grad, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_refinement_never_does_worse_and_beats_himalayas(dtype):
    spaces, y, folds = study(80, (30, 60, 10), 25, seed=9, dtype=dtype)
    splits, targets = splits_of(spaces, y, folds)
    points = banded.points_of(banded.dirichlet_candidates(8, 3, seed=2), ALPHAS)
    choice = banded.search_weights(splits, targets, points)
    start = points[choice.point].T.log()
    made, loss = banded.refine_weights(splits, targets, start, steps=25, targets_at_once=10)
    exact = torch.stack(
        [
            banded.point_losses(splits, targets, made[:, [voxel]].T.double().exp())[0, voxel]
            for voxel in range(25)
        ]
    )
    torch.testing.assert_close(loss, exact, rtol=1e-4, atol=0)
    assert (exact <= choice.loss * (1 + 1e-6)).all()
    assert (exact < choice.loss * 0.999).double().mean() > 0.5
    theirs, _, _ = solve_multiple_kernel_ridge_hyper_gradient(
        kernels_of(spaces).to(dtype),
        y,
        cv=folds,
        initial_deltas=start.to(dtype),
        max_iter=30,
        hyper_gradient_method="direct",
        progress_bar=False,
        tol=None,
    )
    peer = torch.stack(
        [
            banded.point_losses(splits, targets, theirs[:, [voxel]].T.double().exp())[0, voxel]
            for voxel in range(25)
        ]
    )
    assert exact.mean() <= peer.mean() * (1 + 1e-4)


def test_refinement_can_take_a_space_in_that_the_search_left_out():
    spaces, y, folds = study(80, (20, 20), 12, seed=10, noise=0.3)
    splits, targets = splits_of(spaces, y, folds)
    start = torch.tensor([[2.0] * 12, [-40.0] * 12]).double()
    before = banded.point_losses(splits, targets, start[:, :1].T.exp())[0]
    made, loss = banded.refine_weights(splits, targets, start)
    assert (made[1] > -6).double().mean() > 0.5
    assert (loss < 0.9 * before).double().mean() > 0.5


# --- calibration -----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 5])
def test_scores_of_noise_centre_on_zero(steps):
    """Choice inside the training rows: test rows tell nothing, positive as often as negative."""
    rng = np.random.default_rng(11)
    spaces, _, _ = study(60, (15, 30), 1, seed=11)
    y = torch.from_numpy(rng.standard_normal((60, 300)))
    train, test = np.arange(40), np.arange(40, 60)
    folds = [(np.setdiff1d(train, part), part) for part in np.array_split(train, 4)]
    splits, targets = splits_of(spaces, y, folds, intercept=True)
    points = banded.points_of(banded.dirichlet_candidates(20, 2), ALPHAS)
    weights = points[banded.search_weights(splits, targets, points).point].T.log()
    if steps:
        weights, _ = banded.refine_weights(splits, targets, weights, steps=steps)
    [outer], _ = splits_of(spaces, y, [(train, test)], intercept=True)
    made = banded.predict_spaces(outer, y[train], weights).sum(0)
    error = made - made.mean(0)
    r = (error * (y[test] - y[test].mean(0))).sum(0)
    low, high = binom.interval(0.99, 300, 0.5)
    assert low <= int((r > 0).sum()) <= high
