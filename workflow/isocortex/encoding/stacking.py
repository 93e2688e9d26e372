"""Stacking: each feature space predicts by itself, and predictions are mixed per voxel.

The mix is convex and learnt on out-of-fold predictions of the training rows (Lin, Naselaris, Kay &
Wehbe 2023, NeuroImage; Breiman 1996).
"""

from __future__ import annotations

from itertools import combinations

import torch

MOST_SPACES = 8  # all 255 subsets are looked at


def simplex_weights(products: torch.Tensor) -> torch.Tensor:
    """Minimise w' G w over the simplex (w >= 0, sum w = 1), for many G at once.

    Parameters
    ----------
    products
        Shape (problems, spaces, spaces): inner products of the spaces' residuals, so that w' G w
        is the squared error of the mix of predictions with weights w.

    Returns
    -------
    torch.Tensor
        Shape (problems, spaces).

    Raises
    ------
    ValueError
        For more than 8 spaces.

    Notes
    -----
    Exact: the optimum is that of one subset of the spaces with the others at 0, and within a
    subset G_S w proportional to 1. All subsets are solved; of those with no negative weight the
    one with the least error counts. Where a subset's products are singular a smaller one reaches
    the same error.
    """
    number, spaces, _ = products.shape
    if spaces > MOST_SPACES:
        raise ValueError(f"{spaces} spaces: at most {MOST_SPACES} can be stacked")
    matrix = products.double()
    matrix = (matrix + matrix.transpose(1, 2)) / 2
    scale = matrix.diagonal(dim1=1, dim2=2).amax(1).clamp(min=torch.finfo(torch.float64).tiny)
    matrix = matrix / scale[:, None, None]
    best = matrix.new_full((number,), torch.inf)
    weights = matrix.new_full((number, spaces), 1 / spaces)
    for size in range(1, spaces + 1):
        for subset in combinations(range(spaces), size):
            index = torch.tensor(subset, device=matrix.device)
            part = matrix[:, index[:, None], index]
            solved, info = torch.linalg.solve_ex(part, part.new_ones((number, size, 1)))
            raw = solved[:, :, 0]
            if size == 1:  # a space that errs nowhere has no inverse
                raw, info = torch.ones_like(raw), torch.zeros_like(info)
            total = raw.sum(1, keepdim=True)
            mix = raw / torch.where(total > 0, total, 1.0)
            error = torch.einsum("ni,nij,nj->n", mix, part, mix)
            feasible = (info == 0) & (total[:, 0] > 0) & (mix >= 0).all(1) & error.isfinite()
            # A larger subset must gain something: rounding is no reason to mix
            better = feasible & (error < best - 1e-12)
            best = torch.where(better, error, best)
            chosen = matrix.new_zeros((number, spaces))
            chosen[:, index] = mix
            weights = torch.where(better[:, None], chosen, weights)
    return weights.to(products)


def stacking_weights(predictions: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Convex weights of the spaces' out-of-fold predictions, per target.

    Parameters
    ----------
    predictions
        Shape (spaces, rows, targets): of training rows, by models that did not see them.
    target
        Shape (rows, targets). Weight rows of both by the root of their share beforehand.

    Returns
    -------
    torch.Tensor
        Shape (spaces, targets), each column on the simplex.
    """
    residuals = (target - predictions).permute(2, 0, 1)
    return simplex_weights(residuals @ residuals.transpose(1, 2)).T.contiguous()
