"""Principal components of features, fitted on training rows alone."""

from __future__ import annotations

import torch


def principal_components(
    rows: torch.Tensor,
    train: torch.Tensor,
    counts: torch.Tensor,
    *,
    number: int,
    inner_products: bool = False,
) -> torch.Tensor:
    """Scores of all rows on the principal components of the training rows.

    Parameters
    ----------
    rows
        All rows: features, shape (n, p), or their inner products, shape (n, n), float64. Inner
        products serve where there are more features than rows: nothing of size p x p is made.
    train
        Indices of the rows that the components are fitted on.
    counts
        Shape (training rows,): how many samples each training row stands for.
    number
        Components to keep; fewer where the training rows have a lower rank.
    inner_products
        Whether `rows` are inner products.

    Returns
    -------
    torch.Tensor
        Shape (n, components), largest variance first, with the components' own variances (not
        whitened), about the training rows' mean; signs are arbitrary. As scikit-learn's `PCA`
        fitted on the training samples.
    """
    weights = counts.double() / counts.sum()
    root = counts.double().sqrt()
    if inner_products:
        products = rows[train][:, train]
        mean = products @ weights
        centred = products - mean[:, None] - mean[None, :] + weights @ mean
        values, vectors = torch.linalg.eigh(root[:, None] * centred * root[None, :])
        across = rows[:, train]
        across = across - (across @ weights)[:, None] - mean[None, :] + weights @ mean
        across = across * root
        size = len(train)
    else:
        mean = weights @ rows[train]
        weighted = (rows[train] - mean) * root[:, None]
        values, vectors = torch.linalg.eigh(weighted.T @ weighted)
        across = rows - mean
        size = max(weighted.shape)
    threshold = values.max().clamp(min=0) * size * torch.finfo(torch.float64).eps
    rank = int((values > threshold).sum())
    kept = slice(len(values) - min(number, rank), len(values))
    values, vectors = values[kept].flip(0), vectors[:, kept].flip(1)
    scores = across @ vectors
    return scores / values.sqrt() if inner_products else scores
