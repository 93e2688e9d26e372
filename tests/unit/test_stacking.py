"""Weights on the simplex against scipy; stacking finds planted mixes and is fair to noise."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import binom

from isocortex.encoding import stacking


def error(products, weights):
    return np.einsum("ni,nij,nj->n", weights, products, weights)


@pytest.mark.parametrize("spaces", [1, 2, 3, 6])
def test_weights_are_the_quadratic_programs(spaces):
    rng = np.random.default_rng(spaces)
    root = rng.standard_normal((25, spaces, 12)) * rng.uniform(0.3, 2, (25, spaces, 1))
    root += rng.standard_normal((25, 1, 12))
    products = root @ root.transpose(0, 2, 1)
    ours = stacking.simplex_weights(torch.from_numpy(products)).numpy()
    np.testing.assert_allclose(ours.sum(1), 1)
    assert (ours >= 0).all()
    if spaces == 6:
        assert ((ours == 0).sum(1) > 0).mean() > 0.5  # constraints that hold are hard zeros
    theirs = []
    for matrix in products:
        found = minimize(
            lambda w, matrix=matrix: w @ matrix @ w,
            np.full(spaces, 1 / spaces),
            jac=lambda w, matrix=matrix: 2 * matrix @ w,
            bounds=[(0, 1)] * spaces,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        theirs.append(found.x)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert (error(products, ours) <= error(products, np.array(theirs)) * (1 + 1e-9)).all()


def test_singular_products():
    twin = torch.tensor([[[2.0, 2, 3], [2, 2, 3], [3, 3, 5]], [[0, 0, 0], [0, 1, 0], [0, 0, 1]]])
    found = stacking.simplex_weights(twin.double())
    torch.testing.assert_close(found.sum(1), torch.ones(2).double())
    np.testing.assert_allclose(error(twin.numpy(), found.numpy()), [2, 0], atol=1e-12)
    assert torch.equal(stacking.simplex_weights(torch.zeros(1, 2, 2)).sum(1), torch.ones(1))


def test_too_many_spaces():
    with pytest.raises(ValueError, match="9 spaces"):
        stacking.simplex_weights(torch.zeros(1, 9, 9))


def test_a_planted_mix_comes_back():
    """Of predictions with noise of equal size the best mix is the planted one."""
    rng = np.random.default_rng(4)
    made = torch.from_numpy(rng.standard_normal((3, 4000, 20)))
    planted = torch.tensor([0.7, 0.3, 0.0]).double()
    target = (planted[:, None, None] * made).sum(0) + 0.1 * torch.from_numpy(
        rng.standard_normal((4000, 20))
    )
    found = stacking.stacking_weights(made, target)
    np.testing.assert_allclose(found.mean(1), planted, atol=0.01)


def test_no_space_is_preferred_for_noise():
    rng = np.random.default_rng(5)
    made = torch.from_numpy(rng.standard_normal((2, 30, 400)))
    target = torch.from_numpy(rng.standard_normal((30, 400)))
    found = stacking.stacking_weights(made, target)
    low, high = binom.interval(0.99, 400, 0.5)
    assert low <= int((found[0] > found[1]).sum()) <= high
