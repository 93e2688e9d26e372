"""Shares of feature spaces in the variance that a joint model explains."""

from __future__ import annotations

import torch

from isocortex.encoding.scores import r2


def product_measure(
    parts: torch.Tensor, target: torch.Tensor, *, intercept: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """Split r2 of a joint prediction over its parts, so that the shares sum to it.

    Parameters
    ----------
    parts
        Shape (spaces, rows, targets): parts of the prediction.
    target
        Shape (rows, targets).
    intercept
        Of the prediction, shape (targets,) or a number; each part takes an equal share of it.

    Returns
    -------
    torch.Tensor
        Shape (spaces, targets): sum over rows of p_s (2 y - p) / SS_tot, with p_s a part, p the
        sum of all and y the target, all less the target's mean. The shares sum to r2
        (`isocortex.encoding.scores.r2`) of the prediction; one can be below 0. NaN for a constant
        target.

    Notes
    -----
    The product measure (Hoffman 1960; Pratt 1987; la Tour et al. 2022). For a target of mean 0 and
    no intercept it is himalaya's `r2_score_split`.
    """
    mean = target.mean(0)
    made, wanted = parts + (intercept - mean) / len(parts), target - mean
    total = wanted.square().sum(0)
    share = (made * (2 * wanted - made.sum(0))).sum(1) / total
    return torch.where(_constant(target, total), torch.nan, share)


def correlation_split(parts: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Split Pearson r of a joint prediction over its parts: shape (spaces, targets), sums to r.

    himalaya's `correlation_score_split`. A constant prediction has shares of 0, a constant target
    NaN.
    """
    centred, wanted = parts - parts.mean(1, keepdim=True), target - target.mean(0)
    total = wanted.square().sum(0)
    length = (total * centred.sum(0).square().sum(0)).sqrt()
    share = (centred * wanted).sum(1) / torch.where(length > 0, length, 1.0)
    return torch.where(_constant(target, total), torch.nan, share)


def _constant(target: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Which targets vary by rounding alone, as `isocortex.encoding.scores` says it."""
    return total <= target.square().sum(0) * (10 * torch.finfo(target.dtype).eps) ** 2


def unique_variance(full: torch.Tensor, without: torch.Tensor, target: torch.Tensor):
    """Held-out r2 that is lost when a space is left out of the joint model.

    Parameters
    ----------
    full
        Shape (rows, targets): predictions of the joint model.
    without
        Shape (spaces, rows, targets): predictions of the models without each space, fitted and
        their weights chosen anew.
    target
        Shape (rows, targets), of rows that trained neither.

    Returns
    -------
    torch.Tensor
        Shape (spaces, targets). Can be below 0 where the space does not help.
    """
    whole = r2(full, target)
    return torch.stack([whole - r2(prediction, target) for prediction in without])
