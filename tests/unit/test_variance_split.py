"""Product measure and unique variance against himalaya, closed forms and a planted split."""

import numpy as np
import pytest
import torch
from himalaya.backend import set_backend
from himalaya.scoring import correlation_score_split, r2_score_split

from isocortex.encoding import banded, variance
from isocortex.encoding.scores import pearson, r2


@pytest.fixture
def made():
    rng = np.random.default_rng(0)
    parts = torch.from_numpy(rng.standard_normal((3, 40, 7)))
    return parts, parts.sum(0) * 0.5 + torch.from_numpy(rng.standard_normal((40, 7)))


def test_same_as_himalaya(made):
    parts, target = made
    set_backend("torch")
    try:
        wanted = target - target.mean(0)
        theirs = r2_score_split(wanted, parts)
        torch.testing.assert_close(variance.product_measure(parts, wanted), theirs)
        torch.testing.assert_close(
            variance.product_measure(parts, target, intercept=target.mean(0)), theirs
        )
        torch.testing.assert_close(
            variance.correlation_split(parts, target), correlation_score_split(target, parts)
        )
    finally:
        set_backend("numpy")


def test_shares_sum_to_the_score(made):
    parts, target = made
    whole, intercept = parts.sum(0), torch.linspace(-2, 2, 7).double()
    torch.testing.assert_close(
        variance.product_measure(parts, target, intercept=intercept).sum(0),
        r2(whole + intercept, target),
        atol=1e-12,
        rtol=0,
    )
    torch.testing.assert_close(
        variance.correlation_split(parts, target).sum(0),
        pearson(whole, target),
        atol=1e-12,
        rtol=0,
    )


def test_orthogonal_parts_have_their_own_variance():
    """With y = a + b and a, b orthogonal, the shares are |a|^2 and |b|^2 over |y|^2."""
    basis = torch.linalg.qr(torch.randn(20, 3, generator=torch.Generator().manual_seed(1)))[0]
    basis = torch.linalg.qr((basis - basis.mean(0)).double())[0]
    parts = torch.stack([3 * basis[:, :1], 4 * basis[:, 1:2]])
    shares = variance.product_measure(parts, parts.sum(0))[:, 0]
    torch.testing.assert_close(shares, torch.tensor([9 / 25, 16 / 25]).double())
    unique = variance.unique_variance(parts.sum(0), parts.flip(0), parts.sum(0))[:, 0]
    torch.testing.assert_close(unique, torch.tensor([9 / 25, 16 / 25]).double())


def test_a_shared_part_is_unique_to_none():
    one = torch.randn(30, 1, generator=torch.Generator().manual_seed(2)).double()
    one -= one.mean(0)
    unique = variance.unique_variance(one, torch.stack([one, one]), one)
    torch.testing.assert_close(unique, torch.zeros(2, 1).double())
    halves = variance.product_measure(torch.stack([one / 2, one / 2]), one)
    torch.testing.assert_close(halves, torch.full((2, 1), 0.5).double())


def test_constant_targets_have_no_share_and_constant_predictions_none_of_r(made):
    parts, target = made
    target[:, 0] = 3
    parts[:, :, 1] = 2
    found = variance.correlation_split(parts, target)
    assert found[:, 0].isnan().all()
    assert not found[:, 1].any()
    assert found[:, 2:].isfinite().all()
    found = variance.product_measure(parts, target)
    assert found[:, 0].isnan().all()
    assert (found[:, 1] < 0).all()  # off by a constant: worse than the mean


@pytest.mark.parametrize("planted", [(0.6, 0.3, 0.1), (0.2, 0.0, 0.8)])
def test_planted_shares_come_back(planted):
    """Shares of held-out r2 within .05 of the planted variances, noise a quarter of it all."""
    rng = np.random.default_rng(3)
    n, test, voxels = 700, 300, 150
    spaces = [torch.from_numpy(rng.standard_normal((n + test, p))) for p in (20, 40, 30)]
    y = 0
    for space, share in zip(spaces, planted, strict=True):
        signal = space @ torch.from_numpy(rng.standard_normal((space.shape[1], voxels)))
        y = y + (share / signal.square().mean(0)).sqrt() * signal
    y = y + torch.from_numpy(rng.standard_normal(y.shape)) * (1 / 3) ** 0.5
    spaces = [space / space.shape[1] ** 0.5 for space in spaces]

    def split_of(train, held):
        return banded.joint_from_features(
            [space[train] for space in spaces],
            [space[held] for space in spaces],
            torch.ones(len(train)),
        )

    folds = np.array_split(np.arange(n), 4)
    pairs = [(np.setdiff1d(np.arange(n), part), part) for part in folds]
    splits = [split_of(*pair) for pair in pairs]
    targets = [
        banded.held_out_targets(split, y[train], y[held])
        for split, (train, held) in zip(splits, pairs, strict=True)
    ]
    points = banded.points_of(banded.dirichlet_candidates(30, 3), np.geomspace(1e-4, 100, 7))
    found = points[banded.search_weights(splits, targets, points).point].T.log()
    held = np.arange(n, n + test)
    full = split_of(np.arange(n), held)
    parts = banded.predict_spaces(full, y[:n], found)
    shares = variance.product_measure(parts, y[held], intercept=full.weights @ y[:n])
    relative = (shares / shares.sum(0)).mean(1)
    np.testing.assert_allclose(relative, planted, atol=0.05)
    np.testing.assert_allclose(shares.sum(0).mean(), 0.75, atol=0.05)
