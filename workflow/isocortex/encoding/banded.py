"""Banded ridge: one ridge over several feature spaces, each space with its own penalty.

With kernels K_s (inner products of the training rows in space s) and weights g_s = gamma_s / alpha
the prediction is sum_s g_s K_s(test, train) (sum_s g_s K_s + I)^-1 y: multiple-kernel ridge on
linear kernels (la Tour et al. 2022, NeuroImage 264, 119728; peer: himalaya). gamma lies on the
simplex, alpha is the common penalty; both are chosen per voxel by cross-validation.

One decomposition a training set turns all kernels into the basis of their mean (`JointSplit`), of
rank at most the number of features: kernels and features give the same thing from there on.
The held-out loss of the pairs (gamma, alpha) is a smooth function of them, so a few well-placed
pairs give the losses of all others by interpolation, with an error that is measured on the data
(`search_weights`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import solve_triangular

DIRECT_POINTS = 48  # so few points that interpolation would save nothing
DIRECT_SHARE = 0.6  # where so many points had to be computed the others are, too
NODE_BATCH = 24  # nodes between two looks at the error of interpolation
SURROGATE_RANK = 160  # directions of the small problem that places the nodes
SURROGATE_PAIRS = 600
SAFETY = 3.0  # factor on the error seen at the nodes that were hardest to foretell


@dataclass(frozen=True)
class JointSplit:
    """A training set of several feature spaces and rows to predict, for any targets and weights.

    With Z = rotation @ targets, the part of space s in the prediction is
    g_s across[s] @ (sum_s g_s kernels[s] + I)^-1 Z; the intercept is weights @ targets.

    Parameters
    ----------
    kernels
        Shape (spaces, rank, rank): kernels of the training rows in the basis of their mean.
    across
        Shape (spaces, test rows, rank).
    rotation
        Shape (rank, training rows); it centres the targets.
    weights
        Shape (training rows,): weights of the mean, the unpenalised intercept.
    root_share
        Shape (test rows,): root of the share of each test row in the loss.
    """

    kernels: torch.Tensor
    across: torch.Tensor
    rotation: torch.Tensor
    weights: torch.Tensor
    root_share: torch.Tensor

    def to(self, device: torch.device) -> JointSplit:
        """The same on another device."""
        return JointSplit(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def without(self, space: int) -> JointSplit:
        """The same without one feature space."""
        kept = [index for index in range(len(self.kernels)) if index != space]
        return JointSplit(
            self.kernels[kept], self.across[kept], self.rotation, self.weights, self.root_share
        )


def _mean_weights(counts: torch.Tensor, intercept: bool) -> tuple[torch.Tensor, torch.Tensor]:
    counts = counts.double()
    weights = counts / counts.sum() if intercept else torch.zeros_like(counts)
    return weights, counts.sqrt()


def _root_share(test_counts: torch.Tensor | None, rows: int) -> torch.Tensor:
    counts = torch.ones(rows) if test_counts is None else test_counts
    return (counts.double() / counts.sum()).sqrt()


def _basis(values: torch.Tensor, vectors: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Directions that are not zero within rounding, the longest first."""
    kept = values > values.max().clamp(min=0) * size * torch.finfo(torch.float64).eps
    return values[kept].flip(0), vectors[:, kept].flip(1)


def _centred_rotation(vectors: torch.Tensor, root: torch.Tensor, weights: torch.Tensor):
    rotation = vectors.T * root
    return rotation - rotation.sum(1, keepdim=True) * weights


def joint_from_kernels(
    train: torch.Tensor,
    test: torch.Tensor,
    counts: torch.Tensor,
    test_counts: torch.Tensor | None = None,
    *,
    intercept: bool = True,
) -> JointSplit:
    """Joint ridge in dual form.

    Parameters
    ----------
    train
        Shape (spaces, n, n): inner products of the training rows, float64.
    test
        Shape (spaces, m, n): inner products of test with training rows.
    counts, test_counts
        Shape (n,), (m,): how many samples each row stands for; tests default to one each.
    intercept
        Fit an unpenalised intercept: kernels and targets are centred on the training rows.
    """
    weights, root = _mean_weights(counts, intercept)
    mean = train @ weights
    grand = (mean @ weights)[:, None, None]
    centred = train - mean[:, :, None] - mean[:, None, :] + grand
    centred = centred * root * root[:, None]
    sizes = centred.diagonal(dim1=1, dim2=2).sum(1).clamp(min=torch.finfo(torch.float64).tiny)
    values, vectors = torch.linalg.eigh((centred / sizes[:, None, None]).sum(0))
    _, vectors = _basis(values, vectors, len(root))
    across = test - (test @ weights)[:, :, None] - mean[:, None, :] + grand
    return JointSplit(
        vectors.T @ centred @ vectors,
        (across * root) @ vectors,
        _centred_rotation(vectors, root, weights),
        weights,
        _root_share(test_counts, test.shape[1]).to(train.device),
    )


def joint_from_features(
    train: Sequence[torch.Tensor],
    test: Sequence[torch.Tensor],
    counts: torch.Tensor,
    test_counts: torch.Tensor | None = None,
    *,
    intercept: bool = True,
) -> JointSplit:
    """Joint ridge in primal form, for fewer features in all than rows.

    Parameters
    ----------
    train, test
        Shapes (n, features of the space) and (m, features of the space), one a space, float64.
    counts, test_counts, intercept
        See `joint_from_kernels`.
    """
    weights, root = _mean_weights(counts, intercept)
    means = [weights @ space for space in train]
    rows = [(space - mean) * root[:, None] for space, mean in zip(train, means, strict=True)]
    tiny = torch.finfo(torch.float64).tiny ** 0.5
    lengths = [space.square().sum().sqrt().clamp(min=tiny) for space in rows]
    scaled = torch.cat([space / length for space, length in zip(rows, lengths, strict=True)], 1)
    values, vectors = torch.linalg.eigh(scaled.T @ scaled)
    values, vectors = _basis(values, vectors, max(scaled.shape))
    kernels, across, first = [], [], 0
    for mean, length, apart in zip(means, lengths, test, strict=True):
        part = vectors[first : first + len(mean)] * values.sqrt() * length
        kernels.append(part.T @ part)
        across.append((apart - mean) @ part)
        first += len(mean)
    left = (scaled @ vectors) / values.sqrt()
    return JointSplit(
        torch.stack(kernels),
        torch.stack(across),
        _centred_rotation(left, root, weights),
        weights,
        _root_share(test_counts, len(test[0])).to(scaled.device),
    )


def dirichlet_candidates(
    number: int, spaces: int, *, concentrations: Sequence[float] = (0.1, 1.0), seed: int = 0
) -> np.ndarray:
    """Weights of the spaces to try: the first all equal, the others drawn from Dirichlets.

    Parameters
    ----------
    number
        How many candidates; draws go through the concentrations in turn.
    spaces
        Number of feature spaces. One space has one candidate.
    concentrations
        Of the Dirichlets: 1 is uniform over the simplex, less is sparser.
    seed
        Of the draws.

    Returns
    -------
    np.ndarray
        Shape (candidates, spaces), rows sum to 1.
    """
    if spaces == 1:
        return np.ones((1, 1))
    rng = np.random.default_rng(seed)
    draws = [
        rng.dirichlet([concentrations[index % len(concentrations)]] * spaces)
        for index in range(number)
    ]
    draws[0] = np.full(spaces, 1 / spaces)
    return np.stack(draws)


def points_of(candidates: np.ndarray, alphas: Sequence[float]) -> torch.Tensor:
    """All pairs of candidate and penalty as kernel weights gamma / alpha.

    Returns
    -------
    torch.Tensor
        Shape (candidates x penalties, spaces), float64, penalties fastest, the largest first, so
        that of equal losses the larger penalty's comes first.
    """
    grid = torch.tensor(sorted(map(float, alphas), reverse=True), dtype=torch.float64)
    gammas = torch.as_tensor(np.asarray(candidates, dtype=float))
    return (gammas[:, None, :] / grid[None, :, None]).flatten(0, 1)


def _operator(split: JointSplit, weights: torch.Tensor) -> torch.Tensor:
    """Turns rotated targets into predictions at these weights, shape (test rows, rank)."""
    spaces, rank, _ = split.kernels.shape
    system = (weights @ split.kernels.view(spaces, -1)).view(rank, rank)
    system.diagonal().add_(1)
    across = (weights @ split.across.reshape(spaces, -1)).view(-1, rank)
    return torch.cholesky_solve(across.T, torch.linalg.cholesky(system)).T


@dataclass(frozen=True)
class HeldOut:
    """Targets of one split, ready for losses: rotated training and weighted held-out rows."""

    rotated: torch.Tensor
    offset: torch.Tensor


def held_out_targets(split: JointSplit, train: torch.Tensor, test: torch.Tensor) -> HeldOut:
    """Rotate training targets, centre and weight held-out ones.

    Parameters
    ----------
    split
        The split.
    train, test
        Shapes (training rows, targets) and (test rows, targets), means over each row's samples.
    """
    weights, root_share = split.weights.to(train), split.root_share.to(train)
    offset = (test - weights @ train) * root_share[:, None]
    return HeldOut(split.rotation.to(train) @ train, offset)


def point_losses(
    splits: Sequence[JointSplit], targets: Sequence[HeldOut], points: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of held-out samples at some kernel weights, mean over splits.

    Parameters
    ----------
    splits, targets
        The inner splits and their targets.
    points
        Shape (points, spaces): kernel weights gamma / alpha, float64.

    Returns
    -------
    torch.Tensor
        Shape (points, targets), of the targets' precision.
    """
    first = targets[0].offset
    total = first.new_zeros((len(points), first.shape[1]))
    for split, held_out in zip(splits, targets, strict=True):
        for row, weights in zip(total, points.to(split.kernels), strict=True):
            operator = (_operator(split, weights) * split.root_share[:, None]).to(first)
            error = torch.addmm(held_out.offset, operator, held_out.rotated, alpha=-1)
            row += error.square_().sum(0)
    return total / len(splits)


@dataclass
class Interpolation:
    """How losses at all points follow from those at a few, by a small problem of the same kind.

    The small problem keeps some directions of the mean kernel's basis and random targets; its
    losses span, nearly, the functions of the kernel weights that the losses of any target are.
    Its columns (one a point) are orthogonalised greedily: the point that the nodes so far foretell
    worst is the next node.
    """

    columns: np.ndarray
    basis: np.ndarray
    rest: np.ndarray
    nodes: list[int]

    @classmethod
    def of(cls, split: JointSplit, points: torch.Tensor, *, seed: int = 0) -> Interpolation:
        """Make it from one split: losses of its small problem at all points."""
        rank = split.kernels.shape[1]
        count = min(rank, SURROGATE_RANK)
        # Denser among the long directions, where the kernels differ most
        kept = np.unique(np.round(np.linspace(0, 1, count) ** 1.5 * (rank - 1)).astype(int))
        rows = np.unique(np.linspace(0, split.across.shape[1] - 1, 64).astype(int))
        kernels = split.kernels.cpu()[:, kept][:, :, kept]
        across = split.across.cpu()[:, rows][:, :, kept]
        rng = np.random.default_rng(seed)
        train = torch.from_numpy(rng.standard_normal((len(kept), 40)))
        test = torch.from_numpy(rng.standard_normal((len(rows), SURROGATE_PAIRS)))
        one, other = rng.integers(0, train.shape[1], (2, SURROGATE_PAIRS))
        columns = []
        for batch in points.cpu().split(64):
            system = torch.einsum("bs,sij->bij", batch, kernels)
            system.diagonal(dim1=1, dim2=2).add_(1)
            solved = torch.cholesky_solve(
                train.expand(len(batch), -1, -1), torch.linalg.cholesky(system)
            )
            made = torch.einsum("bs,sij->bij", batch, across) @ solved
            linear = (made[:, :, one] * test).sum(1)
            square = (made[:, :, one] * made[:, :, other]).sum(1)
            columns.append(torch.cat([linear, square], 1) / len(rows))
        values = np.concatenate([torch.cat(columns).numpy().T, np.ones((1, len(points)))])
        return cls(values, np.empty((len(values), 0)), values.copy(), [])

    def copy(self) -> Interpolation:
        """One to go on with from the same start."""
        return Interpolation(self.columns, self.basis, self.rest.copy(), list(self.nodes))

    @property
    def residual(self) -> np.ndarray:
        """How badly the nodes foretell each point in the small problem, root mean square."""
        return np.sqrt(np.square(self.rest).mean(0))

    def next_nodes(self, number: int, among: np.ndarray) -> list[int]:
        """Take up to `number` more nodes from the points of the mask `among`, the worst first."""
        chosen = []
        length = np.square(self.rest).sum(0)
        for _ in range(number):
            candidate = int(np.where(among, length, -1).argmax())
            if not among[candidate] or length[candidate] <= 1e-26 * len(self.rest):
                break
            direction = self.rest[:, candidate]
            direction = direction - self.basis @ (self.basis.T @ direction)  # against rounding
            direction /= np.linalg.norm(direction)
            self.rest -= np.outer(direction, direction @ self.rest)
            self.basis = np.column_stack([self.basis, direction])
            length = np.square(self.rest).sum(0)
            length[[*self.nodes, *chosen, candidate]] = 0
            chosen.append(candidate)
        self.nodes += chosen
        return chosen

    def foretell(self, points: Sequence[int], known: torch.Tensor) -> torch.Tensor:
        """Losses of some points from those of the nodes, the first rows of `known`."""
        triangle = self.basis.T @ self.columns[:, self.nodes]
        right = self.basis.T @ self.columns[:, np.asarray(points)]
        weights = solve_triangular(triangle, right, check_finite=False)
        return torch.from_numpy(weights.T).to(known) @ known[: len(self.nodes)]


@dataclass(frozen=True)
class Choice:
    """What a search found.

    Parameters
    ----------
    point
        Shape (targets,): index of the point with the least loss.
    loss
        Shape (targets,): its loss, mean squared error of held-out samples.
    evaluated
        How many points' losses were computed for all targets, not interpolated.
    error
        Bound on the interpolated losses' error that the nodes showed, as a share of the targets'
        variance; 0 where nothing was interpolated.
    """

    point: torch.Tensor
    loss: torch.Tensor
    evaluated: int
    error: float


def search_weights(
    splits: Sequence[JointSplit],
    targets: Sequence[HeldOut],
    points: torch.Tensor,
    *,
    interpolation: Interpolation | None = None,
    tolerance: float | None = None,
) -> Choice:
    """Find each target's kernel weights with the least held-out error among many.

    Parameters
    ----------
    splits, targets
        The inner splits and their targets.
    points
        Shape (points, spaces): kernel weights to choose from, see `points_of`.
    interpolation
        Of the first split and these points, where it was made before.
    tolerance
        Largest error of an interpolated loss, as a share of the target's held-out variance;
        default 2e-6 in float32, 1e-10 in float64. 0 computes every loss.

    Notes
    -----
    Losses of the nodes are computed for all targets. Each batch of nodes, which are those points
    that the earlier nodes foretell worst, is foretold first: the error seen calibrates the bound
    on all others. A point whose foretold loss is worse by more than its bound than a computed loss,
    for every target, can be nobody's choice and is dropped. It ends when no point that is left
    has a bound above the tolerance.
    """
    single = targets[0].offset.dtype == torch.float32
    if tolerance is None:
        tolerance = 2e-6 if single else 1e-10
    null = sum(held_out.offset.square().sum(0) for held_out in targets) / len(targets)
    scale = torch.where(null > 0, null, 1.0)
    if len(points) <= DIRECT_POINTS or not tolerance:
        loss = point_losses(splits, targets, points)
        best = loss.min(0)
        return Choice(best.indices, best.values, len(points), 0.0)
    made = Interpolation.of(splits[0], points) if interpolation is None else interpolation.copy()
    rest = np.ones(len(points), bool)  # neither computed nor dropped
    computed: list[int] = []
    known = scale.new_empty((0, len(scale)))
    factor, bound = 0.0, np.full(len(points), np.inf)
    while rest.any():
        before, spread = len(computed), made.residual
        weights_before = made.copy() if before else None
        fresh = made.next_nodes(NODE_BATCH * (1 + (before == 0)), rest)
        interpolated = bool(fresh) and before < DIRECT_SHARE * len(points)
        if not interpolated:
            fresh = np.flatnonzero(rest).tolist()
        losses = point_losses(splits, targets, points[fresh]) / scale
        if weights_before is not None and interpolated:
            seen = (weights_before.foretell(fresh, known) - losses).abs().amax(1).cpu().numpy()
            factor = float((seen / spread[fresh]).max())
        computed += fresh
        known = torch.cat([known, losses])
        rest[fresh] = False
        if not before or not interpolated:
            continue
        bound = SAFETY * factor * made.residual
        best = known.min(0).values
        for part in _parts(rest):
            margin = torch.from_numpy(bound[part]).to(known)[:, None]
            rest[part] = (made.foretell(part, known) - margin <= best).any(1).cpu().numpy()
        if not rest.any() or bound[rest].max() <= tolerance:
            break
    value, index = known.min(0)
    point = torch.tensor(computed, device=known.device)[index]
    for part in _parts(rest):
        guess, index = made.foretell(part, known).min(0)
        better = guess < value
        value = torch.where(better, guess, value)
        point = torch.where(better, torch.from_numpy(part).to(point)[index], point)
    error = float(bound[rest].max()) if rest.any() else 0.0
    return Choice(point, value * scale, len(computed), error)


def _parts(mask: np.ndarray) -> list[np.ndarray]:
    """Indices where a mask is true, in parts of about 64."""
    found = np.flatnonzero(mask)
    return np.array_split(found, -(-len(found) // 64)) if len(found) else []
