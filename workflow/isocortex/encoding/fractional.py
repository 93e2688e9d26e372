"""Fractional ridge regression: the penalty that shrinks each target's coefficients to a fraction.

Rokem & Kay (2020), GigaScience 9:giaa133. Penalties mean different things for different targets
and features; the length of the coefficients, as a fraction of that without a penalty, does not.
The same interface as a `RidgePlan`: fractions in the place of penalties.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from isocortex.encoding.ridge import Samples, Targets, choose_penalty, decompose, in_parallel
from isocortex.fractional_ridge import check_fractions, penalty_grid

ELEMENTS = 1 << 22  # coefficients of some targets: what a processor's cache holds


@dataclass(frozen=True)
class _Axes:
    """One training set in the coordinates of its principal axes."""

    rotation: torch.Tensor
    projection: torch.Tensor
    values: torch.Tensor
    grid: torch.Tensor  # penalties of the grid, float64, the first 0
    lengths: torch.Tensor  # (grid, rank): squared lengths of coefficients from squared rotated
    n_train: float
    root_share: torch.Tensor | None = None  # of inner splits' test rows
    test_counts: torch.Tensor | None = None

    def penalties(self, rotated: torch.Tensor, fractions: torch.Tensor) -> torch.Tensor:
        """Penalty of each fraction and target, float64, shape (fractions, targets)."""
        length = (self.lengths @ rotated.square()).double().clamp(min=0).sqrt()
        length = length / length[0].clamp(min=torch.finfo(torch.float64).tiny)
        # Rounding must not make it anything but descending in the penalty
        length = length.cummin(0).values.flip(0).T.contiguous()
        logs = torch.log1p(self.grid).flip(0)
        wanted = fractions.expand(len(length), -1).contiguous()
        above = torch.searchsorted(length, wanted).clamp(1, length.shape[1] - 1)
        low, high = length.gather(1, above - 1), length.gather(1, above)
        span = high - low
        part = torch.where(span > 0, (wanted - low) / torch.where(span > 0, span, 1), 0)
        part = part.clamp(0, 1)  # beyond the grid: its end
        found = logs[above - 1] + part * (logs[above] - logs[above - 1])
        return torch.expm1(found).T


@dataclass(frozen=True)
class FractionalPlan:
    """Fractional ridge of one training set, ready for any targets; see `plan_fractional`."""

    fractions: tuple[float, ...]
    form: str
    samples: Samples
    inner_axes: tuple[_Axes, ...]
    outer: _Axes
    test_position: torch.Tensor

    @property
    def n_bytes(self) -> int:
        """Memory of the plan."""
        parts = [
            part
            for axes in (*self.inner_axes, self.outer)
            for part in (axes.rotation, axes.projection, axes.lengths)
        ]
        return sum(part.numel() * part.element_size() for part in parts)

    def losses(self, targets: Targets) -> torch.Tensor:
        """Mean squared error over held-out samples, summed over inner splits.

        Up to a constant of each target where rows stand for several samples.

        Returns
        -------
        torch.Tensor
            Shape (fractions, targets).
        """
        return targets.halving(lambda some, _: self._losses(some))

    def choose(self, targets: Targets) -> torch.Tensor:
        """Index of each target's own fraction, shape (targets,)."""
        return choose_penalty(self.losses(targets))

    def _losses(self, targets: Targets) -> torch.Tensor:
        n_targets = targets.block.shape[1]
        total = targets.block.new_zeros((len(self.fractions), n_targets))
        wanted = self._wanted(targets)
        for number, axes in enumerate(self.inner_axes):
            sums = targets.sums(("train", number))
            rotated = axes.rotation @ sums
            offset = targets.sums(("test", number)) / axes.test_counts[:, None]
            offset = offset.sub_(sums.sum(0) / axes.n_train).mul_(axes.root_share[:, None])
            step = max(ELEMENTS // max(len(axes.values), 1), 64)
            for first in range(0, n_targets, step):
                part = slice(first, first + step)
                own = rotated[:, part]
                for row, alpha in enumerate(axes.penalties(own, wanted).to(own.dtype)):
                    residual = axes.projection @ (own / (axes.values[:, None] + alpha))
                    total[row, part] += residual.sub_(offset[:, part]).square_().sum(0)
        return total

    def penalties(self, targets: Targets, choice: torch.Tensor) -> torch.Tensor:
        """Penalty of each target at its own fraction, for the whole training set, float64."""
        rotated = self.outer.rotation @ targets.sums("train")
        return self.outer.penalties(rotated, self._wanted(targets)).gather(0, choice[None])[0]

    def predict(self, targets: Targets, choice: torch.Tensor) -> torch.Tensor:
        """Predictions of the test samples, each target at its own fraction.

        Parameters
        ----------
        targets
            The block.
        choice
            Shape (targets,): index of each target's fraction.

        Returns
        -------
        torch.Tensor
            Shape (test samples, targets), intercept included.
        """
        return targets.halving(lambda some, part: self._predict(some, choice[part]))

    def _predict(self, targets: Targets, choice: torch.Tensor) -> torch.Tensor:
        axes, sums = self.outer, targets.sums("train")
        rotated = axes.rotation @ sums
        alpha = axes.penalties(rotated, self._wanted(targets)).gather(0, choice[None])
        made = axes.projection @ (rotated / (axes.values[:, None] + alpha.to(rotated.dtype)))
        return (made + sums.sum(0) / axes.n_train)[self.test_position]

    def _wanted(self, targets: Targets) -> torch.Tensor:
        return torch.tensor(self.fractions, dtype=torch.float64, device=targets.block.device)


def plan_fractional(
    features: torch.Tensor,
    samples: Samples,
    fractions: Sequence[float],
    *,
    solver: str = "auto",
    standardise: bool = True,
    intercept: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FractionalPlan:
    """Decompose features for all inner splits of one training set and for the set itself.

    Parameters
    ----------
    features, samples, solver, standardise, intercept, device, dtype
        As of `isocortex.encoding.ridge.plan_ridge`.
    fractions
        Of the coefficients' length without a penalty (the least one, where features are more
        than rows), above 0 up to 1, ascending.

    Returns
    -------
    FractionalPlan
        Takes the place of a `RidgePlan`, fractions that of its penalties: `losses` gives each
        target's held-out squared error at each, `choose_penalty` the index of the best one,
        `predict` the prediction.

    Raises
    ------
    ValueError
        Where fractions do not ascend from above 0 to 1.

    Notes
    -----
    As fracridge does, lengths are computed on a grid of penalties, and log(1 + penalty) is
    interpolated in them, for every training set anew. Axes without variance take no part.
    """
    wanted = check_fractions(fractions)
    found = decompose(
        features,
        samples,
        solver=solver,
        standardise=standardise,
        intercept=intercept,
        device=device,
    )

    def axes(part, n_train: float, test_counts: torch.Tensor | None = None) -> _Axes:
        values, projection, root_share = part.values, part.projection, None
        if test_counts is not None:
            root_share = (test_counts / test_counts.sum()).sqrt()
            projection = projection * root_share[:, None]
            root_share, test_counts = root_share.to(dtype), test_counts.to(dtype)
        grid = torch.from_numpy(penalty_grid(values.double().cpu().numpy())).to(values)
        # A component's coefficient is rotated x root(value) / (value + penalty)
        lengths = values / (values + grid[:, None]).square()
        return _Axes(
            part.rotation.to(dtype),
            projection.to(dtype),
            values.to(dtype),
            grid,
            lengths.to(dtype),
            n_train,
            root_share,
            test_counts,
        )

    tasks = [lambda: axes(found.outer(), found.n_train)]
    tasks += [
        functools.partial(lambda number: axes(*found.inner(number)), number)
        for number in range(len(samples.inner))
    ]
    outer, *inner = in_parallel(tasks, found.known.device)
    return FractionalPlan(
        fractions=wanted,
        form=found.form,
        samples=samples,
        inner_axes=tuple(inner),
        outer=outer,
        test_position=found.test_position,
    )
