"""Ridge regression for many targets and many penalties at once.

One decomposition a training set serves all penalties and all targets. Rows that share their
features (repeats of one stimulus) are collapsed into one row with a count, which gives the same
solution.

`plan_ridge` makes all that features and folds have to give; targets then pass by in blocks and
cost matrix products only (`ridge_cv` does both). Four things make these few, all exact to
rounding:

- Predictions at all penalties lie near a space of few dimensions, since the filters
  1 / (eigenvalue + penalty) are smooth: held-out predictions are made at some of the penalties
  alone, the residuals at the others are combinations of those (an interpolative decomposition,
  whose error is known beforehand), and squared errors are quadratic forms in their inner products.
- Where a target chooses for itself, losses need only be exact enough to tell which is least: they
  are taken from still fewer penalties, and again from all nodes for targets that their error's
  bound leaves undecided.
- From targets to a held-out prediction there is one product, not a rotation and a projection.
- With fewer features than rows, products of features and targets are made once for each inner
  fold and summed; what trains is the sum less what is held out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.linalg
import torch

from isocortex.device import halving, memory_batch
from isocortex.encoding.folds import CrossValidation, Fold
from isocortex.encoding.scores import pearson

__all__ = [
    "Decompositions",
    "RidgeFit",
    "RidgePlan",
    "Samples",
    "Targets",
    "choose_penalty",
    "decompose",
    "gram",
    "in_parallel",
    "interpolation",
    "pearson",
    "plan_ridge",
    "ridge_cv",
    "standardisation",
]

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}
"""Root mean square error of an interpolated prediction, for targets of variance one."""

MOST_TARGETS = 4096  # worked on together: more are no faster
LOSS_ELEMENTS = 1 << 22  # residuals of some targets at all nodes: what a processor's cache holds
MOST_GROWTH = 10.0  # of the rounding of moments, on the way to a prediction
PILOT = 128  # targets that tell at which nodes losses decide
PILOT_WORK = 1 << 18  # elements of all operators from which on deciding at fewer nodes pays
COLUMNS, ROWS = 4096, 512  # of features: blocks of inner products


def gram(features: torch.Tensor, centre: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Inner products of all rows after (features - centre) * scale, in float64.

    Features are taken in blocks of columns, so that a scaled copy of all never exists, and only
    the lower triangle's products are made.
    """
    n_rows = len(features)
    total = features.new_zeros((n_rows, n_rows), dtype=torch.float64)
    for first in range(0, features.shape[1], COLUMNS):
        part = slice(first, first + COLUMNS)
        block = (features[:, part].double() - centre[part]).mul_(scale[part])
        for row in range(0, n_rows, ROWS):
            total[row:, row : row + ROWS].addmm_(block[row:], block[row : row + ROWS].T)
    return total.tril() + total.tril(-1).T


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
    for first in range(0, features.shape[1], COLUMNS):
        block = features[:, first : first + COLUMNS].double()
        mean = weights @ block
        centres.append(mean)
        spreads.append((weights @ (block - mean).square()).sqrt())
    centre, spread = torch.cat(centres), torch.cat(spreads)
    varies = spread > 1e-6 * centre.abs()
    scale = torch.where(varies, 1 / torch.where(varies, spread, 1.0), 0.0)
    return centre, scale / max(int(varies.sum()), 1) ** 0.5


@dataclass(frozen=True)
class Samples:
    """Which samples train and test, outside and inside.

    Parameters
    ----------
    row
        Shape (samples,): row of features of each sample; repeats of a stimulus share one.
    n_rows
        Number of rows of features.
    train, test
        Indices of samples. What is tested may be empty.
    inner
        Pairs of indices of samples, train and test, among `train`.
    """

    row: np.ndarray
    n_rows: int
    train: np.ndarray
    test: np.ndarray
    inner: tuple[tuple[np.ndarray, np.ndarray], ...]

    @classmethod
    def of_fold(cls, cv: CrossValidation, fold: Fold) -> Samples:
        """One outer fold of a cross-validation with its inner splits."""

        def among(groups: Sequence[int], stimuli: np.ndarray) -> np.ndarray:
            return np.flatnonzero(np.isin(cv.group, groups) & np.isin(cv.stimulus, stimuli))

        inner = tuple(
            (
                among(split.train_groups, split.train_stimuli),
                among(split.test_groups, split.test_stimuli),
            )
            for split in fold.inner
        )
        train = among(fold.train_groups, fold.train_stimuli)
        return cls(cv.stimulus, len(cv.stimuli), train, fold.test_trials, inner)

    def counts(self, samples: np.ndarray) -> np.ndarray:
        """How many of the samples each row stands for, shape (n_rows,)."""
        return np.bincount(self.row[samples], minlength=self.n_rows)

    @property
    def partitioned(self) -> bool:
        """Whether every training sample is held out by one inner split and trains all others."""
        held_out = np.concatenate([test for _, test in self.inner] or [self.train[:0]])
        return np.array_equal(np.sort(held_out), self.train) and all(
            np.array_equal(np.sort(train), np.setdiff1d(self.train, test))
            for train, test in self.inner
        )


class Targets:
    """A block of targets, collapsed to rows as the training sets of `Samples` need it.

    Parameters
    ----------
    samples
        Which samples train and test.
    block
        Shape (samples, targets), finite. Serves all plans made for the same `samples`.
    """

    def __init__(self, samples: Samples, block: torch.Tensor) -> None:
        self.samples, self.block = samples, block
        self._sums: dict[Any, torch.Tensor] = {}

    def sums(self, key: int | str) -> torch.Tensor:
        """Sums over each row's samples of "train", or of ("train" | "test", inner split)."""
        if key not in self._sums:
            samples = self.samples
            chosen = samples.train if key == "train" else samples.inner[key[1]][key[0] == "test"]
            self._sums[key] = _row_sums(self.block, samples.row, chosen)
        return self._sums[key]

    def halving(self, work: Callable[[Targets, slice], torch.Tensor]) -> torch.Tensor:
        """Results of work on all targets side by side; in parts of them where memory runs out."""

        def part_of(first: int, last: int) -> torch.Tensor:
            if last - first == self.block.shape[1]:
                return work(self, slice(first, last))
            self._sums.clear()
            return work(Targets(self.samples, self.block[:, first:last]), slice(first, last))

        n_targets = self.block.shape[1]
        found = [
            result for *_, result in halving(part_of, n_targets, batch=n_targets, what="targets")
        ]
        return found[0] if len(found) == 1 else torch.cat(found, 1)


def _row_sums(block: torch.Tensor, row: np.ndarray, samples: np.ndarray) -> torch.Tensor:
    """Sum samples that share a row; rows ascending. The order of summation is always the same."""
    order = samples[np.argsort(row[samples], kind="stable")]
    _, first, counts = np.unique(row[order], return_index=True, return_counts=True)
    total = block[torch.from_numpy(order[first])]
    for repeat in range(1, counts.max(initial=1)):
        among = np.flatnonzero(counts > repeat)
        chosen = torch.from_numpy(among).to(block.device)
        total[chosen] = total[chosen] + block[torch.from_numpy(order[first[among] + repeat])]
    return total


@dataclass(frozen=True)
class _Decomposition:
    """Predictions of test rows are projection @ (rotation @ sums / (values + penalty)) + mean.

    `rotation` acts on sums over each training row's samples, or, where `moments` is set, on
    [basis' sums; sum over all].
    """

    rotation: torch.Tensor
    projection: torch.Tensor
    values: torch.Tensor

    def hats(self, alphas: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
        """Operators from sums to predictions without the mean, shape (penalties, tests, sums)."""
        rotation = self.rotation.to(dtype)
        return torch.stack(
            [(self.projection / (self.values + alpha)).to(dtype) @ rotation for alpha in alphas]
        )


def _kept(matrix: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues and eigenvectors without those that are zero within rounding."""
    if not len(matrix):  # features that never vary have no axes
        return matrix.new_zeros(0), matrix
    values, vectors = torch.linalg.eigh(matrix)
    largest = values[-1:].clamp(min=0)  # they ascend; there are none of constant features
    kept = values > largest * size * torch.finfo(matrix.dtype).eps
    return values[kept], vectors[:, kept]


def _from_gram(
    inner: torch.Tensor,
    train: torch.Tensor,
    test: torch.Tensor,
    counts: torch.Tensor,
    intercept: bool,
) -> _Decomposition:
    """Dual form, from inner products of all rows; `train` and `test` are indices of rows."""
    weights, root = counts / counts.sum() * intercept, counts.sqrt()
    among = inner[train][:, train]
    mean = among @ weights
    centred = among - mean[:, None] - mean + weights @ mean
    values, vectors = _kept(root[:, None] * centred * root, len(train))
    across = inner[test][:, train]
    across = across - (across @ weights)[:, None] - mean + weights @ mean
    rotation = vectors.T / root
    if intercept:  # centres the targets
        rotation = rotation - (vectors.T @ root)[:, None] / counts.sum()
    return _Decomposition(rotation, (across * root) @ vectors, values)


def _from_features(
    features: torch.Tensor,
    train: torch.Tensor,
    test: torch.Tensor,
    counts: torch.Tensor,
    intercept: bool,
    scale: torch.Tensor | None = None,
) -> _Decomposition:
    """Primal form; `train` and `test` are indices of rows.

    With `scale`, the rotation acts on [(features / scale)' sums; sum over all] in place of sums.
    """
    weights = counts / counts.sum() * intercept
    known = features[train]
    mean = weights @ known
    known = known - mean
    values, vectors = _kept((known.T * counts) @ known, max(known.shape))
    length = values.sqrt()
    projection = (features[test] - mean) @ vectors * length
    back = (vectors / length).T
    if scale is None:
        return _Decomposition(back @ known.T, projection, values)
    return _Decomposition(torch.cat([back * scale, -(back @ mean)[:, None]], 1), projection, values)


def interpolation(
    strength: torch.Tensor, values: torch.Tensor, alphas: Sequence[float], *, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Penalties at which predictions are made, and what makes those of all penalties of them.

    Parameters
    ----------
    strength
        Shape (rank,): root mean square of each component's prediction at unit coefficient.
    values
        Shape (rank,): eigenvalues.
    alphas
        All penalties.
    tolerance
        Largest root mean square error of a prediction, relative to the largest prediction of
        targets that are white noise.

    Returns
    -------
    nodes
        Indices of some penalties, at least one.
    coefficients
        Shape (penalties, nodes): filters 1 / (values + alpha) of all from those of the nodes.

    Notes
    -----
    Interpolative decomposition by a QR decomposition with column pivoting (Cheng et al. 2005,
    SIAM J Sci Comput 26:1389); nodes are added until the error, which is computed and not
    estimated, is below the tolerance.
    """
    alphas = np.asarray(alphas, float)
    filters = strength.double().cpu().numpy()[:, None] / (
        values.double().cpu().numpy()[:, None] + alphas
    )
    size = np.linalg.norm(filters, axis=0)
    if not len(filters) or size.max() == 0:
        return np.array([0]), np.zeros((len(alphas), 1))
    upper, order = scipy.linalg.qr(filters, mode="r", pivoting=True)
    most = min(upper.shape[0], len(alphas))
    for count in range(1, most + 1):
        # Below the triangle's first rows is what they leave unexplained.
        rest = upper[count:most, count:]
        left = np.linalg.norm(rest, axis=0).max() if rest.size else 0.0
        if left <= tolerance * size.max():
            break
    nodes = order[:count]
    coefficients = np.zeros((len(alphas), count))
    coefficients[order[:count]] = np.eye(count)
    coefficients[order[count:]] = scipy.linalg.solve_triangular(
        upper[:count, :count], upper[:count, count:]
    ).T
    ascending = np.argsort(nodes)
    return nodes[ascending], coefficients[:, ascending]


@dataclass(frozen=True)
class _Split:
    """One inner split: an operator to residuals at the nodes, and squared errors of those."""

    operator: torch.Tensor  # (nodes x test rows, rows or moments), test rows scaled by root_share
    squares: torch.Tensor  # (penalties, residuals x residuals)
    test_counts: torch.Tensor
    root_share: torch.Tensor
    n_train: float  # infinite where there is no intercept
    nodes: np.ndarray  # indices of penalties
    filters: np.ndarray  # (rank, penalties), scaled by the root mean squares of their predictions
    gain: float  # at least the length of a prediction, given rotated targets of length 1 and these

    def at(self, kept: np.ndarray) -> tuple[_Split, np.ndarray, np.ndarray]:
        """The split at some of its nodes, and what that makes of squared errors.

        Returns
        -------
        split, error, growth
            Shapes (penalties,): bound on the length of the error of a prediction, for targets of
            length 1; sum of the absolute weights of what it is a combination of.
        """
        position = np.flatnonzero(np.isin(self.nodes, kept))
        coefficients, error = self.foreseen(kept)
        own = self.operator.view(len(self.nodes), -1, self.operator.shape[1])
        operator = own[_on(position, own.device)].view(-1, self.operator.shape[1])
        weights = _with_target(coefficients)
        split = replace(
            self,
            operator=operator,
            squares=_on(_squares(weights), own.device).to(operator.dtype),
            nodes=self.nodes[position],
        )
        return split, error, np.abs(weights).sum(1)

    def foreseen(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (penalties, nodes kept) and bounds of `at`."""
        nodes = self.nodes[np.isin(self.nodes, kept)]
        coefficients = np.linalg.lstsq(self.triangle[:, nodes], self.triangle, rcond=None)[0]
        rest = self.filters - self.filters[:, nodes] @ coefficients
        return coefficients.T, self.gain * np.abs(rest).max(0, initial=0.0)

    @functools.cached_property
    def triangle(self) -> np.ndarray:
        """Inner products of filters are those of its columns."""
        return np.linalg.qr(self.filters, mode="r")


@dataclass(frozen=True)
class _Few:
    """Inner splits at few nodes, and what the error of their losses is bounded by."""

    inner: tuple[_Split, ...]
    error: np.ndarray  # (penalties,): of predictions of all splits, for targets of length 1
    growth: np.ndarray  # (penalties,): of rounding

    @classmethod
    def of(cls, splits: Sequence[_Split], kept: np.ndarray) -> _Few:
        found, error, growth = zip(*(split.at(kept) for split in splits), strict=True)
        return cls(found, np.linalg.norm(error, axis=0), np.max(growth, axis=0))


def _decide(
    losses: torch.Tensor, error: np.ndarray, growth: np.ndarray | float, length: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Penalties of the least loss, and for which targets another may have it.

    A loss is a squared distance. If the prediction is off by at most `error` x `length`, it is
    off by at most 2 root(loss) x that + that squared.
    """

    def column(values: np.ndarray | float) -> torch.Tensor:
        return torch.as_tensor(values).to(losses).reshape(-1, 1)

    losses = losses.clamp(min=0)
    off = column(error) * length
    room = off * (2 * losses.sqrt() + off)
    rounding = 8 * torch.finfo(losses.dtype).eps * column(growth) ** 2
    room += rounding * losses.amax(0)
    most, choice = (losses + room).min(0)
    least = (losses - room).scatter_(0, choice[None], math.inf).amin(0)
    return choice, least <= most


@dataclass(frozen=True)
class RidgePlan:
    """Ridge regression of one training set, ready for any targets; see `plan_ridge`.

    Attributes
    ----------
    alphas
        Penalties.
    form
        ``primal`` or ``dual``.
    n_nodes
        At how many penalties each inner split's predictions are made.
    """

    alphas: tuple[float, ...]
    form: str
    samples: Samples
    n_train: float  # samples that the intercept is the mean of; infinite where there is none
    basis: torch.Tensor | None
    inner: tuple[_Split, ...]
    hats: torch.Tensor  # (penalties, test rows, training rows)
    test_position: torch.Tensor
    _few: dict[str, _Few | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def n_nodes(self) -> tuple[int, ...]:
        return tuple(len(split.operator) // max(len(split.root_share), 1) for split in self.inner)

    @property
    def n_few(self) -> tuple[int, ...]:
        """At how many penalties `choose` made the predictions of targets soon decided."""
        return tuple(len(split.nodes) for split in self._chosen_by)

    @property
    def _chosen_by(self) -> tuple[_Split, ...]:
        few = self._few.get("few")
        return self.inner if few is None else few.inner

    @property
    def n_bytes(self) -> int:
        """Memory of the plan; that of fewer nodes is taken for as much again."""
        parts = [self.hats, *(split.operator for split in self.inner for _ in range(2))]
        parts += [] if self.basis is None else [self.basis]
        return sum(part.numel() * part.element_size() for part in parts)

    @property
    def target_bytes(self) -> float:
        """Memory that one target takes in `losses` and `predict`, copies and products included."""
        size = self.hats.element_size()
        samples = len(self.samples.row) + len(self.alphas)
        samples += 3 * sum(len(train) + len(test) for train, test in self.samples.inner)
        samples += 3 * len(self.samples.train) + 3 * self.hats.shape[1]
        if self.basis is not None:
            samples += 2 * len(self.inner) * self.basis.shape[1]
        return float(samples * size)

    def flop(self, n_targets: int) -> float:
        """Floating-point operations of `choose`, targets soon decided, and `predict`."""
        products = self.hats[0].numel()
        products += 0 if self.basis is None else self.basis.numel()
        products += sum(
            split.operator.numel() + split.squares.shape[1] * len(split.root_share)
            for split in self._chosen_by
        )
        return 2.0 * products * n_targets

    def losses(self, targets: Targets) -> torch.Tensor:
        """Mean squared error over held-out samples, summed over inner splits.

        Up to a constant of each target where rows stand for several samples.

        Returns
        -------
        torch.Tensor
            Shape (penalties, targets).
        """
        return targets.halving(lambda some, _: self._losses(some))

    def choose(self, targets: Targets) -> torch.Tensor:
        """Each target's own penalty: `choose_penalty` of `losses`, for less work.

        In single precision, some targets of the first block tell at which of the nodes losses
        are to be had for most targets to be decided within a bound on the error; the others'
        losses are made at all nodes.

        Returns
        -------
        torch.Tensor
            Shape (targets,), int64.
        """
        return targets.halving(lambda some, _: self._choose(some)[None])[0]

    def _choose(self, targets: Targets) -> torch.Tensor:
        block = targets.block
        small = sum(split.operator.numel() for split in self.inner) < PILOT_WORK
        if small or block.dtype != torch.float32 or block.shape[1] < 8 * PILOT:
            return choose_penalty(self._losses(targets))
        known = block[_on(self.samples.train, block.device)]
        if math.isfinite(self.n_train):
            known -= known.mean(0)
        length = torch.linalg.vector_norm(known, dim=0)
        del known
        if "few" not in self._few:
            every = torch.arange(0, block.shape[1], block.shape[1] // PILOT, device=block.device)
            pilot = self._losses(Targets(self.samples, block[:, every]))
            self._few["few"] = self._fewest(pilot, length[every])
        few = self._few["few"]
        if few is None:
            return choose_penalty(self._losses(targets))
        losses = self._losses(targets, few.inner)
        choice, open_ = _decide(losses, few.error, few.growth, length)
        again = open_.nonzero()[:, 0]
        if len(again):
            some = Targets(self.samples, block[:, again])
            choice[again] = choose_penalty(self._losses(some))
        return choice

    def _fewest(self, losses: torch.Tensor, length: torch.Tensor) -> _Few | None:
        """Nodes are left out one by one while that makes less work of targets such as these."""
        every = sum(self.n_nodes)

        def work(kept: np.ndarray) -> list[float]:
            error = np.linalg.norm([split.foreseen(kept)[1] for split in self.inner], axis=0)
            left = sum(np.isin(split.nodes, kept).sum() for split in self.inner)
            # Of equals, what would be the least with a larger error leaves room to go on
            shares = [_decide(losses, error * by, 1.0, length)[1].double().mean() for by in (1, 10)]
            return [float(left + every * share) for share in shares]

        kept = np.unique(np.concatenate([split.nodes for split in self.inner]))
        least = float(every)
        while len(kept) > 1:
            tried = [np.delete(kept, index) for index in range(len(kept))]
            found = [work(some) for some in tried]
            best = found.index(min(found))
            if found[best][0] >= least:
                break
            least, kept = found[best][0], tried[best]
        return _Few.of(self.inner, kept) if least < every else None

    def _losses(self, targets: Targets, inner: Sequence[_Split] | None = None) -> torch.Tensor:
        n_targets = targets.block.shape[1]
        known = self._moments(targets)
        total = targets.block.new_zeros((len(self.alphas), n_targets))
        for number, split in enumerate(self.inner if inner is None else inner):
            rows = known[number] if known else targets.sums(("train", number))
            mean = (rows[-1] if known else rows.sum(0)) / split.n_train
            offset = targets.sums(("test", number)) / split.test_counts[:, None]
            offset = offset.sub_(mean).mul_(split.root_share[:, None])
            step = max(LOSS_ELEMENTS // max(len(split.operator), 1), 64)
            for first in range(0, n_targets, step):
                part = slice(first, first + step)
                total[:, part] += _squared_error(split, rows[:, part], offset[:, part])
        return total

    def _moments(self, targets: Targets) -> list[torch.Tensor]:
        """[basis' sums; sum] of what trains in each inner split, where the plan works on these."""
        if self.basis is None:
            return []
        samples, tested = self.samples, []
        position = np.zeros(samples.n_rows, int)
        rows = np.unique(samples.row[samples.train])
        position[rows] = np.arange(len(rows))

        def moments(key: tuple[str, int]) -> torch.Tensor:
            among = np.unique(samples.row[samples.inner[key[1]][key[0] == "test"]])
            chosen = self.basis[torch.from_numpy(position[among]).to(self.basis.device)]
            return chosen.T @ targets.sums(key)

        if not samples.partitioned:
            return [moments(("train", number)) for number in range(len(self.inner))]
        tested = [moments(("test", number)) for number in range(len(self.inner))]
        total = torch.stack(tested).sum(0)
        return [total - one for one in tested]

    def predict(self, targets: Targets, choice: torch.Tensor) -> torch.Tensor:
        """Predictions of the test samples, each target at its own penalty.

        Parameters
        ----------
        targets
            The block.
        choice
            Shape (targets,): index of each target's penalty.

        Returns
        -------
        torch.Tensor
            Shape (test samples, targets), intercept included.
        """
        return targets.halving(lambda some, part: self._predict(some, choice[part]))

    def _predict(self, targets: Targets, choice: torch.Tensor) -> torch.Tensor:
        sums = targets.sums("train")
        mean = sums.sum(0) / self.n_train
        order = torch.argsort(choice, stable=True)  # targets of one penalty side by side
        sizes = torch.bincount(choice, minlength=len(self.alphas)).tolist()
        sums = sums[:, order]
        made = sums.new_empty((self.hats.shape[1], sums.shape[1]))
        first = 0
        for hat, size in zip(self.hats, sizes, strict=True):
            if size:
                torch.mm(hat, sums[:, first : first + size], out=made[:, first : first + size])
            first += size
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return (made[:, back] + mean)[self.test_position]


def _squared_error(split: _Split, rows: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Squared errors at all penalties, shape (penalties, targets)."""
    n_test, n_targets = offset.shape
    nodes = len(split.operator) // n_test
    # One small matrix a target, which a processor's cache holds while it is squared
    residual = offset.new_empty((n_targets, nodes + 1, n_test))
    residual[:] = offset.T[:, None]
    predicted = residual.view(n_targets, -1)[:, : len(split.operator)]
    predicted.addmm_(rows.T, split.operator.T, alpha=-1)
    products = torch.bmm(residual, residual.transpose(1, 2))
    return split.squares @ products.view(n_targets, -1).T


def _with_target(coefficients: np.ndarray) -> np.ndarray:
    """Weights of residuals: a target is its own at an infinite penalty, and takes what is left."""
    return np.column_stack([coefficients, 1 - coefficients.sum(1)])


def _squares(weights: np.ndarray) -> np.ndarray:
    """Weights of the inner products of residuals in squared errors."""
    return (weights[:, :, None] * weights[:, None]).reshape(len(weights), -1)


def _on(rows: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows)).to(device)


@dataclass(frozen=True)
class Decompositions:
    """What all penalties share: of the training set, and of each inner split as it is asked for.

    Attributes
    ----------
    form
        ``primal`` or ``dual``.
    samples
        Which samples train and test.
    known
        Inner products of all rows (dual), or features of all rows in the coordinates of the
        training set's principal axes (primal), whose lengths there are `stretch`.
    train
        Indices of the training rows.
    values
        Eigenvalues of the training set (primal).
    test_position
        Shape (test samples,): which of the predicted rows each has.
    n_train
        Training samples, which the intercept is the mean of; infinite where there is none.
    """

    form: str
    samples: Samples
    known: torch.Tensor
    train: torch.Tensor
    test: torch.Tensor
    counts: torch.Tensor
    values: torch.Tensor | None
    test_position: torch.Tensor
    n_train: float

    @property
    def stretch(self) -> torch.Tensor:
        """Lengths of the training set's principal axes (primal)."""
        return self.values.sqrt()

    def outer(self) -> _Decomposition:
        """Decomposition of the training set."""
        if self.form == "dual":
            intercept = math.isfinite(self.n_train)
            return _from_gram(self.known, self.train, self.test, self.counts, intercept)
        stretch, own = self.stretch, self.known[self.train]
        return _Decomposition((own / stretch).T, self.known[self.test] * stretch, self.values)

    def inner(
        self, number: int, *, moments: bool = False
    ) -> tuple[_Decomposition, float, torch.Tensor]:
        """Decomposition of an inner split, its training samples, and its test rows' counts.

        With `moments` (primal), its rotation acts on moments as `_from_features` says.
        """
        device = self.known.device
        trained, tested = (self.samples.counts(part) for part in self.samples.inner[number])
        train, test = (_on(np.flatnonzero(count), device) for count in (trained, tested))
        counts = _on(trained, device).double()[train]
        test_counts = _on(tested, device).double()[test]
        intercept = math.isfinite(self.n_train)
        if self.form == "dual":
            found = _from_gram(self.known, train, test, counts, intercept)
        else:
            scale = self.stretch if moments else None
            found = _from_features(self.known, train, test, counts, intercept, scale)
        return found, float(trained.sum()) if intercept else math.inf, test_counts


def decompose(
    features: torch.Tensor,
    samples: Samples,
    *,
    solver: str = "auto",
    standardise: bool = True,
    intercept: bool = True,
    device: torch.device | str = "cpu",
) -> Decompositions:
    """Centre features on a training set and decompose them; parameters as of `plan_ridge`."""
    if solver not in ("auto", "primal", "dual"):
        raise ValueError(f"unknown solver {solver!r}: auto, primal or dual")
    device = torch.device(device)
    features = features.to(device)
    counts = torch.from_numpy(samples.counts(samples.train)).to(device, torch.float64)
    rows = np.unique(samples.row[samples.train])
    train = _on(rows, device)
    if solver == "auto":
        solver = "dual" if features.shape[1] >= len(rows) else "primal"
    if standardise:
        centre, scale = standardisation(features[train], counts[train])
    else:
        centre = (counts[train] / counts.sum() * intercept) @ features[train].double()
        scale = torch.ones_like(centre)
    tests, position = np.unique(samples.row[samples.test], return_inverse=True)
    test = _on(tests, device)
    values = None
    if solver == "dual":
        known = gram(features, centre, scale)
    else:
        known = (features.double() - centre) * scale
        own = known[train]
        product = (own.T * counts[train]) @ own
        ((values, vectors),) = in_parallel([lambda: _kept(product, max(own.shape))], device)
        # Rotated, features have the same ridge solutions; divided by their lengths they are
        # orthonormal, so that rounding of their products with targets is not blown up.
        known = known @ vectors
    return Decompositions(
        form=solver,
        samples=samples,
        known=known,
        train=train,
        test=test,
        counts=counts[train],
        values=values,
        test_position=_on(position, device),
        n_train=len(samples.train) if intercept else math.inf,
    )


def in_parallel(tasks: Sequence[Callable[[], Any]], device: torch.device) -> list[Any]:
    """Results of tasks; on the CPU each on one of torch's threads, as many at a time as it has.

    An eigendecomposition on several threads waits most of the time, and far longer where other
    processes use the cores; on one each it also gives the same bits whatever their number.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return [task() for task in tasks]
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(threads, len(tasks))) as pool:
            return list(pool.map(lambda task: task(), tasks))
    finally:
        torch.set_num_threads(threads)


def plan_ridge(
    features: torch.Tensor,
    samples: Samples,
    alphas: Sequence[float],
    *,
    solver: str = "auto",
    standardise: bool = True,
    intercept: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tolerance: float | None = None,
) -> RidgePlan:
    """Decompose features for all inner splits of one training set and for the set itself.

    Parameters
    ----------
    features
        Shape (rows, features), float32 or float64, training and test rows.
    samples
        Which samples train and test.
    alphas
        Penalties, above 0.
    solver
        ``primal`` (decompositions of features x features), ``dual`` (rows x rows), or ``auto``:
        whichever is smaller. The answers are the same to rounding.
    standardise
        Z-score features over the training samples and divide by the root of their number (see
        `standardisation`); otherwise they are taken as they are.
    intercept
        Whether every training set has an intercept, which is not penalised.
    device, dtype
        Of the plan and of the targets that it will be given. Decompositions are made there, too,
        in float64.
    tolerance
        Largest root mean square error of an interpolated prediction, for targets of variance
        one; `TOLERANCE` of the dtype where None.

    Returns
    -------
    RidgePlan
        Serves any number of blocks of targets: `Targets(samples, block)` for `losses`, then
        `choose_penalty`, then `predict`.

    Notes
    -----
    Minimised is, over a training
    set's samples, the sum of squared errors + alpha |coefficients|^2, as in scikit-learn's Ridge
    and himalaya.
    """
    found = decompose(
        features,
        samples,
        solver=solver,
        standardise=standardise,
        intercept=intercept,
        device=device,
    )
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    numbers = range(len(samples.inner))
    grid = [float(alpha) for alpha in alphas]

    def hats() -> torch.Tensor:
        return found.outer().hats(grid, dtype)

    def split(number: int) -> _Split:
        return _plan_split(found, number, grid, dtype=dtype, tolerance=tolerance)

    tasks = [hats, *(functools.partial(split, number) for number in numbers)]
    made, *splits = in_parallel(tasks, found.known.device)
    basis = None
    if found.form == "primal" and splits:
        own = found.known[found.train]
        basis = torch.cat([own / found.stretch, torch.ones_like(own[:, :1])], 1)
        splits, basis = _sums_or_moments(splits, basis, samples, dtype)
    return RidgePlan(
        alphas=tuple(grid),
        form=found.form,
        samples=samples,
        n_train=found.n_train,
        basis=None if basis is None else basis.to(dtype),
        inner=tuple(splits),
        hats=made,
        test_position=found.test_position,
    )


def _plan_split(
    whole: Decompositions,
    number: int,
    alphas: list[float],
    *,
    dtype: torch.dtype,
    tolerance: float,
) -> _Split:
    """One inner split; its operator is on moments in primal form, on rows' sums in dual form."""
    found, n_train, test_counts = whole.inner(number, moments=whole.form == "primal")
    root_share = (test_counts / test_counts.sum()).sqrt()
    found = _Decomposition(found.rotation, found.projection * root_share[:, None], found.values)
    strength = found.projection.square().sum(0).sqrt()
    nodes, coefficients = interpolation(strength, found.values, alphas, tolerance=tolerance)
    operator = found.hats([alphas[node] for node in nodes], dtype).flatten(0, 1)
    device = operator.device
    filters = strength[:, None] / (found.values[:, None] + _on(np.asarray(alphas), device))
    return _Split(
        operator,
        _on(_squares(_with_target(coefficients)), device).to(dtype),
        test_counts.to(dtype),
        root_share.to(dtype),
        n_train,
        nodes,
        filters.cpu().numpy(),
        _largest_singular_value(found.projection / strength.clamp(min=1e-300)),
    )


def _largest_singular_value(matrix: torch.Tensor) -> float:
    """A bound from above that costs products only, too large by an eighth root of a trace."""
    inner = matrix @ matrix.T
    size = float(inner.diagonal().sum())
    if size == 0:
        return 0.0
    inner /= size
    fourth = torch.linalg.matrix_power(inner, 4)
    return (size * float(torch.linalg.matrix_norm(fourth)) ** 0.25) ** 0.5


def _sums_or_moments(
    splits: list[_Split],
    basis: torch.Tensor,
    samples: Samples,
    dtype: torch.dtype,
) -> tuple[list[_Split], torch.Tensor | None]:
    """Operators on moments where that is less work and as exact, on rows' sums otherwise."""
    lengths = [len(np.unique(samples.row[train])) for train, _ in samples.inner]
    moments = basis.numel() * (1 if samples.partitioned else len(splits))
    moments += sum(split.operator.numel() for split in splits)
    direct = sum(
        len(split.operator) * length for split, length in zip(splits, lengths, strict=True)
    )
    # How much rounding of the moments grows on the way to a held-out prediction
    growth = max(
        float(
            split.operator.double()
            .view(-1, len(split.root_share), basis.shape[1])
            .square()
            .sum((1, 2))
            .max()
            .sqrt()
        )
        for split in splits
    )
    if moments < direct and growth < MOST_GROWTH:
        return splits, basis
    moved, rows = [], np.unique(samples.row[samples.train])
    for split, (train, _) in zip(splits, samples.inner, strict=True):
        among = np.searchsorted(rows, np.unique(samples.row[train]))
        operator = split.operator.double() @ basis[_on(among, basis.device)].T
        moved.append(replace(split, operator=operator.to(dtype)))
    return moved, None


def choose_penalty(
    losses: torch.Tensor,
    *,
    labels: np.ndarray | None = None,
    usable: np.ndarray | None = None,
) -> torch.Tensor:
    """Index of the penalty with the least held-out squared error.

    Parameters
    ----------
    losses
        Shape (penalties, targets), of `RidgePlan.losses`.
    labels
        Shape (targets,): targets with the same label share a penalty, that of the least sum of
        their squared errors (himalaya's ``local_alpha=False`` within each label). None: each
        target has its own.
    usable
        Shape (targets,): targets that have a say; all where None.

    Returns
    -------
    torch.Tensor
        Shape (targets,), int64.
    """
    if labels is None:
        return losses.min(0).indices  # argmin over rows is many times slower
    names, label = np.unique(np.asarray(labels), return_inverse=True)
    vote = np.ones(len(label), bool) if usable is None else np.asarray(usable, bool)
    together = np.zeros((len(losses), len(names)))
    exact = losses.double().cpu().numpy()
    for row, values in enumerate(exact):
        together[row] = np.bincount(label[vote], values[vote], minlength=len(names))
    return torch.from_numpy(together.argmin(0)[label]).to(losses.device)


@dataclass(frozen=True)
class RidgeFit:
    """What `ridge_cv` finds.

    Attributes
    ----------
    alpha
        Shape (targets,): the penalty chosen; NaN for targets with a value that is not finite.
    choice
        Shape (targets,): its index in the penalties, -1 for those.
    prediction
        Shape (test rows, targets); NaN for those. None where there is nothing to predict.
    plan
        The decompositions: their form, and what they cost.
    """

    alpha: np.ndarray
    choice: np.ndarray
    prediction: np.ndarray | None
    plan: RidgePlan


def ridge_cv(
    features: np.ndarray | torch.Tensor,
    targets: np.ndarray | torch.Tensor | Callable[[int, int], np.ndarray],
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    alphas: Sequence[float],
    *,
    test_features: np.ndarray | torch.Tensor | None = None,
    row: np.ndarray | None = None,
    n_targets: int | None = None,
    solver: str = "auto",
    alpha_per: str | np.ndarray = "voxel",
    standardise: bool = False,
    intercept: bool = True,
    voxel_batch: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> RidgeFit:
    """Ridge regression with the penalty of each target, or group of targets, by cross-validation.

    Parameters
    ----------
    features
        Shape (rows, features).
    targets
        Shape (samples, targets), or a function that gives targets first to last of them, which
        needs `n_targets`: only a batch of them is held at a time.
    folds
        Pairs of indices of samples, train and test: the penalty is that of the least squared
        error of the test samples, mean over them, then over folds.
    alphas
        Penalties.
    test_features
        Shape (test rows, features): what to predict by the model of all samples.
    row
        Shape (samples,): row of features of each sample; by default sample k has row k. Repeats
        of a stimulus are collapsed, with the same result as if they were not.
    solver
        ``auto``, ``primal`` or ``dual``.
    alpha_per
        ``voxel``, or labels, shape (targets,): those with the same label share a penalty.
    standardise, intercept
        See `plan_ridge`.
    voxel_batch
        Targets that are worked on together, fewer where memory runs out; None: as many as half
        of the free memory holds, 4096 at most.
    device, dtype
        Where and in which precision the targets' share of the work is done.

    Returns
    -------
    RidgeFit

    Raises
    ------
    ValueError
        Where shapes do not match.
    """
    known = torch.as_tensor(features)
    given = targets if callable(targets) else None
    if given is None:
        whole = torch.as_tensor(targets)
        n_targets = whole.shape[1]
    elif n_targets is None:
        raise ValueError("targets given by a function need n_targets")
    index = np.arange(len(known)) if row is None else np.asarray(row)
    if given is None and len(whole) != len(index):
        raise ValueError(f"{len(whole)} samples of targets, {len(index)} of features")
    everyone = np.arange(len(index))
    n_rows = len(known)
    test_rows = everyone[:0]
    if test_features is not None:
        test_rows = np.arange(len(test_features))
        known = torch.cat([known, torch.as_tensor(test_features).to(known)])
    samples = Samples(
        np.concatenate([index, n_rows + test_rows]),
        len(known),
        everyone,
        len(index) + test_rows,
        tuple((np.asarray(train), np.asarray(test)) for train, test in folds),
    )
    plan = plan_ridge(
        known,
        samples,
        alphas,
        solver=solver,
        standardise=standardise,
        intercept=intercept,
        device=device,
        dtype=dtype,
    )
    labels = None if isinstance(alpha_per, str) else np.asarray(alpha_per)
    choice = np.full(n_targets, -1)
    usable = np.ones(n_targets, bool)
    prediction = None
    if test_features is not None:
        prediction = np.empty(
            (len(test_rows), n_targets), torch.empty(0, dtype=dtype).numpy().dtype
        )

    def block_of(part: slice) -> Targets:
        block = whole[:, part] if given is None else torch.as_tensor(given(part.start, part.stop))
        block = block.to(device, dtype)
        finite = torch.isfinite(block.sum(0))
        usable[part] = finite.cpu().numpy()
        if not usable[part].all():
            block = torch.where(finite, block, 0.0)
        return Targets(samples, block)

    def finish(part: slice, block: Targets, chosen: torch.Tensor) -> None:
        choice[part] = np.where(usable[part], chosen.cpu().numpy(), -1)
        if prediction is not None:
            prediction[:, part] = plan.predict(block, chosen).cpu().numpy()

    if voxel_batch is None:
        voxel_batch = memory_batch(plan.target_bytes, device=device, most=MOST_TARGETS, least=64)

    def batches(work: Callable[[slice], Any]) -> list[Any]:
        found = halving(
            lambda first, last: work(slice(first, last)),
            n_targets,
            batch=voxel_batch,
            what="targets",
        )
        return [result for *_, result in found]

    def own_penalty(part: slice) -> None:
        block = block_of(part)
        finish(part, block, plan.choose(block))

    if labels is None:
        batches(own_penalty)
    else:
        losses = torch.cat(batches(lambda part: plan.losses(block_of(part)).cpu()), 1)
        chosen = choose_penalty(losses, labels=labels, usable=usable).to(device)
        batches(lambda part: finish(part, block_of(part), chosen[part]))
    if prediction is not None:
        prediction[:, ~usable] = np.nan
    grid = np.append(np.asarray(alphas, float), np.nan)
    return RidgeFit(grid[choice], choice, prediction, plan)
