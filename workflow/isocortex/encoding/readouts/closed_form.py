"""Ridge regression in closed form, for the initial values of readouts.

Rows have weights; the loss is the weighted mean of squared errors plus alpha times the sum of
squared coefficients. Everything is float64: penalties can be small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

FOLDS = 5  # of neighbouring rows, for choices within the training rows


def row_coefficients(
    gram: Tensor, targets: Tensor, share: Tensor, alphas: Sequence[float]
) -> Iterator[Tensor]:
    """For each penalty, coefficients of the rows whose weighted sum are those of the features.

    Parameters
    ----------
    gram
        Inner products of the rows' features, (rows, rows).
    targets
        Shape (rows, voxels), weighted mean 0.
    share
        Weights of the rows with sum 1, shape (rows, 1).
    """
    root = share.sqrt()
    products = root * gram * root.T
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for alpha in alphas:
        factor = torch.linalg.cholesky(products + alpha * identity)
        yield root * torch.cholesky_solve(root * targets, factor)


def coefficients(
    features: Tensor, targets: Tensor, share: Tensor, alphas: Sequence[float]
) -> Iterator[Tensor]:
    """Coefficients of the features for each penalty, primal or dual, whichever is smaller.

    Parameters
    ----------
    features, targets
        Shapes (rows, features) and (rows, voxels), weighted means 0.
    share
        Weights of the rows with sum 1, shape (rows, 1).
    """
    if features.shape[1] > features.shape[0]:
        for rows in row_coefficients(features @ features.T, targets, share, alphas):
            yield features.T @ rows
        return
    weighted = share * features
    products, right = weighted.T @ features, weighted.T @ targets
    identity = torch.eye(len(products), dtype=products.dtype, device=products.device)
    for alpha in alphas:
        factor = torch.linalg.cholesky(products + alpha * identity)
        yield torch.cholesky_solve(right, factor)


def held_out_error(
    features: Tensor, targets: Tensor, weights: Tensor, alphas: Sequence[float]
) -> Tensor:
    """Weighted mean squared error over folds of neighbouring rows, shape (penalties, voxels).

    Parameters
    ----------
    features, targets
        Shapes (rows, features) and (rows, voxels); each fold centres them on its training rows.
    weights
        Weights of the rows, shape (rows, 1).
    """
    total = torch.zeros(len(alphas), targets.shape[1], dtype=targets.dtype, device=targets.device)
    for part in torch.arange(len(features), device=features.device).tensor_split(FOLDS):
        rest = torch.ones(len(features), dtype=torch.bool, device=features.device)
        rest[part] = False
        share = weights[rest] / weights[rest].sum()
        centre = [(share * values[rest]).sum(0) for values in (features, targets)]
        train = [
            values[rest] - mean for values, mean in zip((features, targets), centre, strict=True)
        ]
        for index, solved in enumerate(coefficients(*train, share, alphas)):
            predicted = (features[part] - centre[0]) @ solved + centre[1]
            total[index] += (weights[part] * (predicted - targets[part]).square()).sum(0)
    return total / weights.sum()
