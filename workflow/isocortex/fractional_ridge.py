"""Fractional ridge regression: the penalty that shrinks coefficients to a fraction of their length.

Rokem & Kay (2020), GigaScience 9:giaa133, as the package fracridge 2.0 computes it. Penalties mean
different things for different designs and targets; the length of the coefficients, as a fraction
of that without a penalty, does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BIG, SMALL, STEP = 1e4, 1e-2, 0.2
"""Grid of penalties: from the least eigenvalue x SMALL to the largest x BIG, in steps of the
decimal logarithm."""

RANK_TOLERANCE = 1e-7
"""Singular values below this share of the largest take no part."""


def check_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    """Return fractions as numbers, or raise ``ValueError`` where they do not ascend to 1."""
    wanted = tuple(float(fraction) for fraction in fractions)
    if not wanted or wanted[0] <= 0 or wanted[-1] > 1 or (np.diff(wanted) <= 0).any():
        raise ValueError(f"fractions {list(wanted)} do not ascend from above 0 to 1")
    return wanted


def penalty_grid(eigenvalues: np.ndarray) -> np.ndarray:
    """Return the penalties at which lengths are computed, ascending, the first 0.

    Parameters
    ----------
    eigenvalues : numpy.ndarray, shape (rank,)
        Of the design's cross-product, above 0, in any order.
    """
    if not len(eigenvalues):
        return np.array([0.0, 1.0])
    low, high = float(np.min(eigenvalues)) * SMALL, float(np.max(eigenvalues)) * BIG
    steps = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)), STEP)
    return np.concatenate([[0.0], 10**steps])


@dataclass(frozen=True)
class FractionalRidge:
    """A design, decomposed; see `decompose_design`.

    Attributes
    ----------
    projection : numpy.ndarray, shape (n_rows, rank)
        Left singular vectors.
    values : numpy.ndarray, shape (rank,)
        Singular values.
    rotation : numpy.ndarray, shape (n_regressors, rank)
        Right singular vectors.
    grid : numpy.ndarray
        Penalties of `penalty_grid`.
    """

    projection: np.ndarray
    values: np.ndarray
    rotation: np.ndarray
    grid: np.ndarray

    def rotate(self, targets: np.ndarray) -> np.ndarray:
        """Return coefficients without a penalty, on the principal axes: (rank, n_targets)."""
        return (self.projection.T @ targets) / self.values[:, None]

    def penalties(self, rotated: np.ndarray, fractions: np.ndarray) -> np.ndarray:
        """Return the penalty that gives each target's coefficients a fraction of their length.

        Parameters
        ----------
        rotated : numpy.ndarray, shape (rank, n_targets)
            From `rotate`.
        fractions : numpy.ndarray, shape (n_targets,) or a number

        Returns
        -------
        numpy.ndarray, shape (n_targets,)
            log(1 + penalty) is interpolated in the lengths on the grid.
        """
        squares = self.values**2
        shrink = squares / (squares + self.grid[:, None])
        length = np.sqrt(shrink**2 @ rotated**2)
        with np.errstate(divide="ignore", invalid="ignore"):
            length = np.where(length[0] > 0, length / length[0], 1.0)
        logs = np.log1p(self.grid)
        # Lengths descend: how many are above is where a fraction lies.
        above = (length > fractions).sum(axis=0)
        right = np.clip(above, 1, len(self.grid) - 1)
        column = np.arange(length.shape[1])
        high, low = length[right - 1, column], length[right, column]
        with np.errstate(divide="ignore", invalid="ignore"):
            part = np.where(high > low, (high - fractions) / (high - low), 0.0)
        part = np.clip(part, 0, 1)
        return np.expm1(logs[right - 1] + part * (logs[right] - logs[right - 1]))

    def shrink(self, rotated: np.ndarray, fractions: np.ndarray) -> np.ndarray:
        """Return coefficients on the principal axes, shrunk to fractions: (rank, n_targets)."""
        squares = self.values[:, None] ** 2
        return rotated * (squares / (squares + self.penalties(rotated, fractions)))

    def coefficients(self, targets: np.ndarray, fractions: np.ndarray) -> np.ndarray:
        """Return the coefficients of targets at fractions: (n_regressors, n_targets)."""
        return self.rotation @ self.shrink(self.rotate(targets), fractions)


def decompose_design(design: np.ndarray) -> FractionalRidge:
    """Decompose a design for fractional ridge.

    Parameters
    ----------
    design : numpy.ndarray, shape (n_rows, n_regressors)
        Nuisance taken out before, as from the targets. There is no intercept.

    Returns
    -------
    FractionalRidge

    Notes
    -----
    Axes below `RANK_TOLERANCE` of the largest singular value get the coefficient 0, with or
    without a penalty: the solution of least length.
    """
    projection, values, rotation = np.linalg.svd(design, full_matrices=False)
    kept = values > RANK_TOLERANCE * (values[0] if values.size else 0.0)
    values = values[kept]
    return FractionalRidge(projection[:, kept], values, rotation[kept].T, penalty_grid(values**2))
