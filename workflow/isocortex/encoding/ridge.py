"""Ridge regression for many targets and many penalties at once.

One decomposition a fold serves all penalties and all targets. Rows that share their features
(repeats of one stimulus) are collapsed into one row with a count, which gives the same solution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from isocortex.encoding.scores import pearson

__all__ = [
    "InnerRidge",
    "Ridge",
    "gram",
    "held_out_loss",
    "inner_ridge",
    "pearson",
    "predict",
    "ridge_from_features",
    "ridge_from_gram",
    "standardisation",
]

FEATURE_BLOCK = 16384


@dataclass(frozen=True)
class Ridge:
    """Ridge regression of one training set, ready for any targets and penalties.

    With W = rotation @ targets, the prediction at penalty a is
    projection @ (W / (eigenvalues + a)[:, None]) + weights @ targets.

    Parameters
    ----------
    rotation
        Shape (rank, training rows).
    projection
        Shape (test rows, rank).
    eigenvalues
        Shape (rank,).
    weights
        Shape (training rows,): weights of the mean, the unpenalised intercept.
    """

    rotation: torch.Tensor
    projection: torch.Tensor
    eigenvalues: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> Ridge:
        """The same on another device and in another precision."""
        return Ridge(
            *(
                part.to(device, dtype)
                for part in (self.rotation, self.projection, self.eigenvalues, self.weights)
            )
        )


def gram(features: torch.Tensor, centre: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Inner products of all rows after (features - centre) * scale, in float64.

    Features are taken in blocks of columns, so that a scaled copy of all never exists.
    """
    total = features.new_zeros((len(features), len(features)), dtype=torch.float64)
    for first in range(0, features.shape[1], FEATURE_BLOCK):
        part = slice(first, first + FEATURE_BLOCK)
        block = (features[:, part].double() - centre[part]) * scale[part]
        total.addmm_(block, block.T)
    return total


def standardisation(
    features: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre and scale that z-score features, and make their rows' squared length about one.

    Parameters
    ----------
    features
        Shape (rows, features): the training rows.
    counts
        Shape (rows,): how many trials each row stands for.

    Returns
    -------
    centre, scale
        Shape (features,), float64. The scale is 1 / (SD sqrt(number of features that vary)), so
        that a penalty means the same for layers of any size; 0 for constant features.
    """
    weights = counts.double() / counts.sum()
    centres, spreads = [], []
    for first in range(0, features.shape[1], FEATURE_BLOCK):
        block = features[:, first : first + FEATURE_BLOCK].double()
        mean = weights @ block
        centres.append(mean)
        spreads.append((weights @ (block - mean).square()).sqrt())
    centre, spread = torch.cat(centres), torch.cat(spreads)
    varies = spread > 1e-6 * centre.abs()
    scale = torch.where(varies, 1 / torch.where(varies, spread, 1.0), 0.0)
    return centre, scale / max(int(varies.sum()), 1) ** 0.5


def _finish(
    values: torch.Tensor, vectors: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues and eigenvectors without those that are zero within rounding."""
    threshold = values.max().clamp(min=0) * size * torch.finfo(torch.float64).eps
    kept = values > threshold
    return values[kept], vectors[:, kept]


def ridge_from_gram(train: torch.Tensor, test: torch.Tensor, counts: torch.Tensor) -> Ridge:
    """Ridge in dual form.

    Parameters
    ----------
    train
        Shape (n, n): inner products of the training rows, float64.
    test
        Shape (m, n): inner products of test with training rows.
    counts
        Shape (n,): how many trials each training row stands for.
    """
    counts = counts.double()
    weights, root = counts / counts.sum(), counts.sqrt()
    mean = train @ weights
    centred = train - mean[:, None] - mean[None, :] + weights @ mean
    values, vectors = torch.linalg.eigh(root[:, None] * centred * root[None, :])
    values, vectors = _finish(values, vectors, len(train))
    across = test - (test @ weights)[:, None] - mean[None, :] + weights @ mean
    rotation = vectors.T * root
    rotation = rotation - rotation.sum(1, keepdim=True) * weights  # centres the targets
    return Ridge(rotation, (across * root) @ vectors, values, weights)


def ridge_from_features(train: torch.Tensor, test: torch.Tensor, counts: torch.Tensor) -> Ridge:
    """Ridge in primal form, for fewer features than rows.

    Parameters
    ----------
    train, test
        Shape (n, p) and (m, p), float64.
    counts
        Shape (n,): how many trials each training row stands for.
    """
    counts = counts.double()
    weights, root = counts / counts.sum(), counts.sqrt()
    mean = weights @ train
    rows = (train - mean) * root[:, None]
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    values, vectors = _finish(values, vectors, max(train.shape))
    length = values.sqrt()
    rotation = ((rows @ vectors) / length).T * root
    rotation = rotation - rotation.sum(1, keepdim=True) * weights
    return Ridge(rotation, (test - mean) @ vectors * length, values, weights)


@dataclass(frozen=True)
class InnerRidge:
    """One inner split, all penalties stacked, for the squared error of held-out rows.

    `stacked` is (penalties x test rows, rank); rows are scaled by the root of their share of
    the test trials.
    """

    rotation: torch.Tensor
    stacked: torch.Tensor
    weights: torch.Tensor
    root_share: torch.Tensor


def inner_ridge(
    ridge: Ridge,
    test_counts: torch.Tensor,
    alphas: torch.Tensor,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> InnerRidge:
    """Stack a ridge's predictions for all penalties."""
    root_share = (test_counts.double() / test_counts.sum()).sqrt()
    damped = ridge.projection[None] / (ridge.eigenvalues + alphas.double()[:, None])[:, None]
    stacked = (damped * root_share[None, :, None]).flatten(0, 1)
    return InnerRidge(
        ridge.rotation.to(device, dtype),
        stacked.to(device, dtype),
        ridge.weights.to(device, dtype),
        root_share.to(device, dtype),
    )


def held_out_loss(inner: InnerRidge, train: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Mean squared error of held-out trials, up to a constant of each target.

    Parameters
    ----------
    inner
        The split.
    train
        Training targets, shape (training rows, targets), means over each row's trials.
    offset
        (Held-out targets - training mean) x root_share, shape (test rows, targets).

    Returns
    -------
    torch.Tensor
        Shape (penalties, targets).
    """
    prediction = (inner.stacked @ (inner.rotation @ train)).view(-1, *offset.shape)
    return prediction.sub_(offset).square_().sum(1)


def predict(
    ridge: Ridge, train: torch.Tensor, alphas: torch.Tensor, choice: torch.Tensor
) -> torch.Tensor:
    """Predictions of the test rows, each target at its own penalty, without the intercept.

    Parameters
    ----------
    ridge
        The training set.
    train
        Targets, shape (training rows, targets).
    alphas
        Shape (penalties,).
    choice
        Shape (targets,): index of each target's penalty.
    """
    damping = 1 / (ridge.eigenvalues[:, None] + alphas[None, :])
    return ridge.projection @ ((ridge.rotation @ train).mul_(damping.index_select(1, choice)))
