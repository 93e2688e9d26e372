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

ROUNDING = 1e-12  # what centring leaves of the squared length of constant features
SINGLE_CONDITION = 150.0  # largest eigenvalue up to which float32 factors err by rounding alone
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

    def only(self, spaces: Sequence[int]) -> JointSplit:
        """The same with some of the feature spaces."""
        kept = list(spaces)
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
    """Directions that are not zero within rounding, the longest first; one where all are."""
    kept = values > values.max().clamp(min=0) * size * torch.finfo(torch.float64).eps
    kept[-1] = True
    lengths = values[kept].flip(0)
    return torch.where(lengths > 0, lengths, 1.0), vectors[:, kept].flip(1)


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
    sizes = centred.diagonal(dim1=1, dim2=2).sum(1)
    whole = (train.diagonal(dim1=1, dim2=2) * counts).sum(1)
    shares = torch.where(sizes > ROUNDING * whole, 1 / sizes, 0.0)  # none of a constant space
    values, vectors = torch.linalg.eigh((centred * shares[:, None, None]).sum(0))
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
    whole = [(space * root[:, None]).square().sum() for space in train]
    sizes = [space.square().sum() for space in rows]
    lengths = [
        torch.where(size > ROUNDING * total, size, torch.inf).sqrt()  # none of a constant space
        for size, total in zip(sizes, whole, strict=True)
    ]
    scaled = torch.cat([space / length for space, length in zip(rows, lengths, strict=True)], 1)
    values, vectors = torch.linalg.eigh(scaled.T @ scaled)
    values, vectors = _basis(values, vectors, max(scaled.shape))
    kernels, across, first = [], [], 0
    for mean, length, apart in zip(means, lengths, test, strict=True):
        part = vectors[first : first + len(mean)] * values.sqrt()
        part = part * torch.where(length.isfinite(), length, 0.0)
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


class _Systems:
    """Factors of sum_s weights[s] kernels[s] + I, in float32 where that costs no accuracy.

    For targets in float64 everything is float64.
    """

    def __init__(self, split: JointSplit, dtype: torch.dtype) -> None:
        spaces = len(split.kernels)
        self.rank = split.kernels.shape[1]
        self.flat = [(split.kernels.reshape(spaces, -1), split.across.reshape(spaces, -1))]
        self.largest = torch.full((spaces,), torch.inf, dtype=torch.float64)
        if dtype == torch.float32:
            self.largest = _largest_eigenvalues(split.kernels).cpu()
            self.flat.append(tuple(part.float() for part in self.flat[0]))

    def _precision(self, weights: torch.Tensor) -> int:
        used = weights.cpu() > 0
        return int((weights.cpu() * self.largest)[used].sum() <= SINGLE_CONDITION)

    def factor(self, weights: torch.Tensor) -> torch.Tensor:
        """Cholesky factor at some weights, shape (spaces,), float64."""
        flat = self.flat[self._precision(weights)][0]
        system = (weights.to(flat) @ flat).view(self.rank, self.rank)
        system.diagonal().add_(1)
        return torch.linalg.cholesky(system)

    def operator(self, weights: torch.Tensor) -> torch.Tensor:
        """Turns rotated targets into predictions at these weights, shape (test rows, rank)."""
        factor = self.factor(weights)
        across = self.flat[factor.dtype == torch.float32][1]
        scaled = (weights.to(across) @ across).view(-1, self.rank)
        return torch.cholesky_solve(scaled.T, factor).T


def _largest_eigenvalues(kernels: torch.Tensor) -> torch.Tensor:
    """Largest eigenvalue of each kernel, from below but near, by power iteration."""
    vectors = torch.ones_like(kernels[:, :, :1])
    for _ in range(12):
        vectors = kernels @ vectors
        lengths = vectors.norm(dim=1, keepdim=True)
        vectors = vectors / torch.where(lengths > 0, lengths, 1.0)
    return (kernels @ vectors).norm(dim=1)[:, 0]


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
    return _Held(splits, targets).losses(points)


class _Held:
    """Inner splits and their targets, ready for losses at any points."""

    def __init__(self, splits: Sequence[JointSplit], targets: Sequence[HeldOut]) -> None:
        self.splits, self.targets = splits, targets
        self.systems = [_Systems(split, targets[0].offset.dtype) for split in splits]

    def losses(self, points: torch.Tensor) -> torch.Tensor:
        """See `point_losses`."""
        like = self.targets[0].offset
        total = like.new_zeros((len(points), like.shape[1]))
        error = torch.empty_like(like)
        for split, systems, held_out in zip(self.splits, self.systems, self.targets, strict=True):
            share = split.root_share.to(like)[:, None]
            if error.shape != held_out.offset.shape:
                error = torch.empty_like(held_out.offset)
            for row, weights in zip(total, points, strict=True):
                operator = systems.operator(weights).to(like) * share
                torch.addmm(held_out.offset, operator, held_out.rotated, alpha=-1, out=error)
                row += error.square_().sum(0)
        return total / len(self.splits)


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
    held = _Held(splits, targets)
    if len(points) <= DIRECT_POINTS or not tolerance:
        loss = held.losses(points)
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
        losses = held.losses(points[fresh]) / scale
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


def predict_spaces(
    split: JointSplit, train: torch.Tensor, log_weights: torch.Tensor
) -> torch.Tensor:
    """Parts of the spaces in the predictions of the test rows, without the intercept.

    Parameters
    ----------
    split
        The training set and its test rows.
    train
        Targets, shape (training rows, targets), means over each row's samples.
    log_weights
        Shape (spaces, targets): log of gamma / alpha (himalaya's deltas); -inf leaves a space out.

    Returns
    -------
    torch.Tensor
        Shape (spaces, test rows, targets); their sum plus `weights @ train` is the prediction.
    """
    rotated = split.rotation.to(train) @ train
    weights = log_weights.double().exp().to(split.kernels.device)
    systems = _Systems(split, rotated.dtype)
    distinct, member = torch.unique(weights, dim=1, return_inverse=True)
    spaces, rows, _ = split.across.shape
    parts = rotated.new_empty((spaces, rows, rotated.shape[1]))
    across = split.across.to(rotated)
    order = torch.argsort(member, stable=True)
    groups = torch.split(order, torch.bincount(member, minlength=distinct.shape[1]).tolist())
    for weight, group in zip(distinct.T, groups, strict=True):
        factor = systems.factor(weight)
        coefficients = torch.cholesky_solve(rotated[:, group].to(factor), factor)
        scaled = across * weight.to(across)[:, None, None]
        parts[:, :, group] = scaled @ coefficients.to(rotated)
    return parts


# --- refinement of each target's own weights --------------------------------------------------


def _conjugate_gradient(
    kernels: torch.Tensor,
    weights: torch.Tensor,
    right: torch.Tensor,
    start: torch.Tensor,
    *,
    tolerance: float = 1e-8,
    steps: int = 300,
) -> torch.Tensor:
    """Solve (sum_s weights[s] kernels[s] + I) x = right, each target with its own weights.

    The diagonal preconditions: in the basis of the mean kernel it is most of the system.
    """

    def apply(vector: torch.Tensor) -> torch.Tensor:
        total = vector.clone()
        for kernel, weight in zip(kernels, weights, strict=True):
            total.addcmul_(kernel @ vector, weight)
        return total

    scale = 1 / (1 + kernels.diagonal(dim1=1, dim2=2).T @ weights)
    solution = start.clone()
    rest = right - apply(solution)
    ahead = rest * scale
    direction, power = ahead.clone(), (rest * ahead).sum(0)
    goal = tolerance**2 * (right.square() * scale).sum(0)
    for _ in range(steps):
        if bool((power <= goal).all()):
            break
        image = apply(direction)
        curvature = (direction * image).sum(0)
        length = torch.where(curvature > 0, power / curvature, 0.0)
        solution.addcmul_(direction, length)
        rest.addcmul_(image, -length)
        ahead = rest * scale
        following = (rest * ahead).sum(0)
        direction = ahead + direction * torch.where(power > 0, following / power, 0.0)
        power = following
    return solution


class _Losses:
    """Held-out losses of a block of targets, each at its own weights, and their gradients.

    Solutions are kept: the next weights are near, so they start the next conjugate gradients.
    """

    def __init__(self, splits: Sequence[JointSplit], targets: Sequence[HeldOut]) -> None:
        like = targets[0].offset
        self.kernels = [split.kernels.to(like) for split in splits]
        self.across = [
            (split.across * split.root_share[None, :, None]).to(like) for split in splits
        ]
        self.targets = targets
        self.primal = [torch.zeros_like(held_out.rotated) for held_out in targets]
        self.adjoint = [torch.zeros_like(held_out.rotated) for held_out in targets]

    def __call__(
        self, log_weights: torch.Tensor, columns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss, shape (columns,), and its gradient in the log weights, (spaces, columns).

        With c = A^-1 Z, e the weighted held-out error and v = A^-1 (sum_s g_s across_s' e), the
        derivative of the loss in log g_s is -2 g_s (across_s' e . c - v . kernels_s c).
        """
        weights = log_weights.exp()
        loss, gradient = torch.zeros_like(weights[0]), torch.zeros_like(weights)
        for index, held_out in enumerate(self.targets):
            kernels, across = self.kernels[index], self.across[index]
            coefficients = _conjugate_gradient(
                kernels,
                weights,
                held_out.rotated[:, columns],
                self.primal[index][:, columns],
            )
            self.primal[index][:, columns] = coefficients
            parts = (across @ coefficients) * weights[:, None]
            error = held_out.offset[:, columns] - parts.sum(0)
            back = across.transpose(1, 2) @ error
            adjoint = _conjugate_gradient(
                kernels,
                weights,
                (back * weights[:, None]).sum(0),
                self.adjoint[index][:, columns],
            )
            self.adjoint[index][:, columns] = adjoint
            loss += error.square().sum(0)
            images = kernels @ coefficients
            gradient -= 2 * weights * ((back * coefficients).sum(1) - (images * adjoint).sum(1))
        return loss / len(self.targets), gradient / len(self.targets)


def refine_weights(
    splits: Sequence[JointSplit],
    targets: Sequence[HeldOut],
    log_weights: torch.Tensor,
    *,
    steps: int = 20,
    targets_at_once: int = 2048,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower each target's held-out loss by descent in its own log weights.

    Parameters
    ----------
    splits, targets
        The inner splits and their targets.
    log_weights
        Where to start, shape (spaces, targets): log of gamma / alpha.
    steps
        Most steps; a target stops when its loss no longer falls.
    targets_at_once
        Worked on together.

    Returns
    -------
    log_weights
        Same shape. A target keeps its start where nothing better was found.
    loss
        Shape (targets,): its held-out loss there, never above that at the start.

    Notes
    -----
    Quasi-Newton (BFGS, one small matrix a target) with Armijo's condition; gradients by implicit
    differentiation of the inner problem, as himalaya's hyper-gradient solver has them, but with
    the inner and the adjoint system both solved to tolerance by conjugate gradients. The descent
    starts with no space below a thousandth of the largest weight, where the loss is flat in the
    log weight and descent could not take the space in.
    """
    made, losses = [], []
    for columns in torch.arange(log_weights.shape[1]).split(targets_at_once):
        # Small gains decide: float64 whatever the targets' precision
        block = [
            HeldOut(part.rotated[:, columns].double(), part.offset[:, columns].double())
            for part in targets
        ]
        start = log_weights[:, columns].to(block[0].offset)
        weights, loss = _descend(_Losses(splits, block), start, steps)
        made.append(weights)
        losses.append(loss)
    return torch.cat(made, 1), torch.cat(losses).to(targets[0].offset)


def _descend(losses: _Losses, start: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    spaces, number = start.shape
    every = torch.arange(number, device=start.device)
    best = start.clone()
    best_loss, _ = losses(start, every)
    margin = 1e-7  # less than that of the loss is no gain
    x = torch.maximum(start, start.amax(0) - np.log(1000.0))
    value, slope = losses(x, every)
    inverse = torch.eye(spaces).to(start).expand(number, -1, -1).clone()
    inverse /= slope.norm(dim=0).clamp(min=1e-30)[:, None, None]
    stride = torch.ones_like(value)
    active = every
    for _ in range(steps):
        if not len(active):
            break
        here, fall = x[:, active], slope[:, active]
        step = -(inverse[active] @ fall.T[:, :, None])[:, :, 0].T
        step = step * (2 / step.abs().amax(0).clamp(min=2)) * stride[active]
        expected = (fall * step).sum(0)
        there, ahead = losses(here + step, active)
        taken = there <= value[active] + 1e-4 * expected
        moved, change = step[:, taken].T, (ahead - fall)[:, taken].T
        chosen = active[taken]
        inverse[chosen] = _bfgs(inverse[chosen], moved, change)
        x[:, chosen], slope[:, chosen] = (here + step)[:, taken], ahead[:, taken]
        gained = value[chosen] - there[taken]
        value[chosen] = there[taken]
        stride[chosen] = 1
        stride[active[~taken]] *= 0.25
        done = torch.zeros(number, dtype=torch.bool, device=start.device)
        done[chosen] = gained <= margin * value[chosen]
        done |= stride < 1e-3
        active = active[~done[active]]
    better = value < best_loss * (1 - margin)
    best[:, better], best_loss[better] = x[:, better], value[better]
    return best, best_loss


def _bfgs(inverse: torch.Tensor, moved: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Inverse Hessians after a step; those without positive curvature stay."""
    curvature = (moved * change).sum(1)
    usable = curvature > 1e-10 * moved.norm(dim=1) * change.norm(dim=1)
    rho = torch.where(usable, 1 / torch.where(usable, curvature, 1.0), 0.0)[:, None, None]
    eye = torch.eye(moved.shape[1]).to(moved)
    left = eye - rho * moved[:, :, None] * change[:, None, :]
    return left @ inverse @ left.transpose(1, 2) + rho * moved[:, :, None] * moved[:, None, :]
